//! Upstreams that are proxies, chains of them, and what their clients are told. The proxies are ringweir itself, and
//! microsocks where it is installed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::client::{assert_echo, connect, socks_connect, socks_ip, socks_tunnel};
use crate::harness::daemon::{Daemon, check, free_port};
use crate::harness::http::http_tunnel;
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{health, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    clients_go_on_through_a_socks5_proxy,
    clients_go_on_through_an_http_proxy,
    a_wrong_password_passes_to_the_next_member,
    what_the_destination_answered_is_told_to_the_client,
    a_proxy_that_does_not_answer_is_passed_over,
    what_the_destination_says_first_is_not_lost,
    a_chain_leads_over_both_proxies_to_a_fixed_endpoint,
    the_first_byte_is_awaited_behind_a_proxy,
    checks_go_the_way_that_sessions_go,
    microsocks_serves_as_a_member,
    addresses_that_may_not_be_reached_are_not_asked_of_a_proxy,
);

/// A proxy for anybody on this machine, or for `ann` alone.
fn proxy(engine: Engine, is_closed: bool) -> Daemon {
    let users = if is_closed { "users = { ann = \"secret\" }\n" } else { "" };
    Daemon::start(
        engine,
        &format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"direct\"\n{users}"
        ),
    )
}

/// A `mixed` listener before this upstream and what else is declared.
fn before(declared: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"out\"\n{declared}"
    )
}

fn upstream(name: &str, kind: &str, address: SocketAddr, rest: &str) -> String {
    format!("[upstream.{name}]\nkind = \"{kind}\"\naddress = \"{address}\"\n{rest}\n")
}

const ANN: &str = "user = \"ann\"\npassword = \"secret\"";

fn clients_go_on_through_a_socks5_proxy(engine: Engine) {
    let (echo, proxy) = (Server::echo(), proxy(engine, true));
    let daemon = Daemon::start(engine, &before(&upstream("out", "socks5", proxy.address("in"), ANN)));
    assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"by SOCKS5");
    let authority = echo.address().to_string();
    assert_echo(&mut http_tunnel(daemon.address("in"), &authority).unwrap(), b"by CONNECT");
    let status = daemon.status();
    assert_eq!(number(named(&status, "targets", "out"), &["committed"]), 2);
    assert_eq!(number(named(&proxy.status(), "targets", "direct"), &["committed"]), 2);
}

fn clients_go_on_through_an_http_proxy(engine: Engine) {
    let (echo, proxy) = (Server::echo(), proxy(engine, true));
    let daemon = Daemon::start(engine, &before(&upstream("out", "http", proxy.address("in"), ANN)));
    let mut client = socks_tunnel(daemon.address("in"), echo.address());
    let bytes = vec![7; 300_000];
    let mut sink = client.try_clone().unwrap();
    let sender = std::thread::spawn({
        let bytes = bytes.clone();
        move || sink.write_all(&bytes).unwrap()
    });
    let mut received = vec![0; bytes.len()];
    client.read_exact(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == bytes);
}

fn a_wrong_password_passes_to_the_next_member(engine: Engine) {
    let (echo, closed, open) = (Server::echo(), proxy(engine, true), proxy(engine, false));
    for kind in ["socks5", "http"] {
        let config =
            before("[group.out]\npolicy = \"failover\"\nmembers = [\"wrong\", \"none\", \"open\"]\n")
                + &upstream("wrong", kind, closed.address("in"), "user = \"ann\"\npassword = \"guess\"")
                + &upstream("none", kind, closed.address("in"), "")
                + &upstream("open", kind, open.address("in"), ANN);
        let daemon = Daemon::start(engine, &config);
        assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"hello");
        let status = daemon.status();
        for name in ["wrong", "none"] {
            let target = named(&status, "targets", name);
            assert_eq!(number(target, &["failed", "proxy-authentication"]), 1, "{kind}: {target}");
        }
    }
}

fn what_the_destination_answered_is_told_to_the_client(engine: Engine) {
    let (refuser, proxy) = (Refuser::new(), proxy(engine, false));
    let daemon = Daemon::start(engine, &before(&upstream("out", "socks5", proxy.address("in"), "")));
    let to = refuser.address();
    let (reply, _) = socks_connect(daemon.address("in"), &socks_ip(to.ip()), to.port());
    assert_eq!(reply.code, 5, "refused");
    assert_eq!(http_tunnel(daemon.address("in"), &to.to_string()).unwrap_err(), 502);
    let daemon = Daemon::start(engine, &before(&upstream("out", "http", proxy.address("in"), "")));
    let (reply, _) = socks_connect(daemon.address("in"), &socks_ip(to.ip()), to.port());
    assert_eq!(reply.code, 1, "an HTTP proxy does not say which");
}

fn a_proxy_that_does_not_answer_is_passed_over(engine: Engine) {
    let silent = Server::new(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let leaving = Server::new(drop::<TcpStream>);
    let babbling = Server::new(|mut stream| {
        let _ = stream.write_all(&[0xaa; 40_000]);
        let _ = stream.read(&mut [0; 1]);
    });
    let (echo, good) = (Server::echo(), proxy(engine, false));
    for kind in ["socks5", "http"] {
        let config = before(
            "[group.out]\npolicy = \"failover\"\nattempt_timeout = \"400ms\"\n\
             members = [\"silent\", \"leaving\", \"babbling\", \"good\"]\n",
        ) + &upstream("silent", kind, silent.address(), "")
            + &upstream("leaving", kind, leaving.address(), "")
            + &upstream("babbling", kind, babbling.address(), "")
            + &upstream("good", kind, good.address("in"), "");
        let daemon = Daemon::start(engine, &config);
        let begin = Instant::now();
        assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"hello");
        assert!(begin.elapsed() >= Duration::from_millis(400), "{:?}", begin.elapsed());
        let status = daemon.status();
        assert_eq!(number(named(&status, "targets", "silent"), &["failed", "timed-out"]), 1);
        assert_eq!(number(named(&status, "targets", "babbling"), &["failed", "proxy-broken"]), 1);
        assert_eq!(number(named(&status, "targets", "good"), &["committed"]), 1);
    }
}

fn what_the_destination_says_first_is_not_lost(engine: Engine) {
    // Says yes and the destination's first words in one piece.
    let eager = Server::new(|mut stream| {
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(&[5, 0]).unwrap();
        let mut request = [0; 10];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00220 welcome").unwrap();
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    let daemon = Daemon::start(engine, &before(&upstream("out", "socks5", eager.address(), "")));
    let mut client = socks_tunnel(daemon.address("in"), "192.0.2.1:25".parse().unwrap());
    let mut banner = [0; 11];
    client.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"220 welcome");
    assert_echo(&mut client, b"and so on");
}

fn chain(first: &Daemon, second: &Daemon, fixed: SocketAddr) -> String {
    "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"fixed\"\n".to_owned()
        + &upstream("fixed", "tcp", fixed, "via = \"second\"\ncheck = \"alive\"")
        + &upstream("second", "http", second.address("in"), &format!("{ANN}\nvia = \"first\""))
        + &upstream("first", "socks5", first.address("in"), "")
        + "[check.alive]\nschedule = [\"50ms\"]\nfall = 1\n"
}

fn a_chain_leads_over_both_proxies_to_a_fixed_endpoint(engine: Engine) {
    let (echo, first, second) = (Server::echo(), proxy(engine, false), proxy(engine, true));
    let daemon = Daemon::start(engine, &chain(&first, &second, echo.address()));
    assert_echo(&mut connect(daemon.address("in")), b"over both");
    for proxy in [&first, &second] {
        assert!(number(named(&proxy.status(), "targets", "direct"), &["committed"]) >= 1);
    }
}

fn checks_go_the_way_that_sessions_go(engine: Engine) {
    let (echo, first, second) = (Server::echo(), proxy(engine, false), proxy(engine, true));
    let daemon = Daemon::start(engine, &chain(&first, &second, echo.address()));
    eventually(PATIENCE, "the chain is up", || health(&daemon.status(), "fixed") == "up");
    drop(echo);
    eventually(PATIENCE, "its end is down", || health(&daemon.status(), "fixed") == "down");
    let line = daemon.wait_line("why", |line| line.contains("fixed") && line.contains("down"));
    assert!(line.contains("proxy 2 of 2: HTTP status 502"), "{line}");
}

fn the_first_byte_is_awaited_behind_a_proxy(engine: Engine) {
    let (mute, open) = (Server::new(drop::<TcpStream>), proxy(engine, false));
    let echo = Server::echo();
    let config = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"all\"\n\
                  [group.all]\npolicy = \"failover\"\ncommit = \"first-byte\"\nmembers = [\"mute\", \"echo\"]\n"
        .to_owned()
        + &upstream("mute", "tcp", mute.address(), "via = \"open\"")
        + &upstream("echo", "tcp", echo.address(), "via = \"open\"")
        + &upstream("open", "socks5", open.address("in"), "");
    let daemon = Daemon::start(engine, &config);
    assert_echo(&mut connect(daemon.address("in")), b"who is there");
    assert_eq!(number(named(&daemon.status(), "targets", "echo"), &["committed"]), 1);
}

/// A program that is ended with the test.
pub(crate) struct Program(pub(crate) Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn microsocks_serves_as_a_member(engine: Engine) {
    let port = free_port();
    let started = Command::new("microsocks")
        .args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", "ann", "-P", "secret"])
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = started else {
        eprintln!("SKIPPED: microsocks is not installed");
        return;
    };
    let _microsocks = Program(child);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually(PATIENCE, "microsocks listens", || TcpStream::connect(address).is_ok());
    let echo = Server::echo();
    let daemon = Daemon::start(engine, &before(&upstream("out", "socks5", address, ANN)));
    assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"through microsocks");
    let to = Refuser::new();
    let (reply, _) = socks_connect(daemon.address("in"), &socks_ip(to.address().ip()), to.address().port());
    assert_eq!(reply.code, 5);
}

fn addresses_that_may_not_be_reached_are_not_asked_of_a_proxy(engine: Engine) {
    let (echo, proxy) = (Server::echo(), proxy(engine, false));
    let config = before(&upstream("out", "socks5", proxy.address("in"), ""))
        .replace("127.0.0.1:0", "0.0.0.0:0")
        .replace("target =", "allow = [\"127.0.0.0/8\"]\ntarget =");
    let daemon = Daemon::start(engine, &config);
    let listener = SocketAddr::from(([127, 0, 0, 1], daemon.address("in").port()));
    let (reply, _) = socks_connect(listener, &socks_ip(echo.address().ip()), echo.port());
    assert_eq!(reply.code, 2, "loopback is not for clients from elsewhere");
    assert_eq!(http_tunnel(listener, &echo.address().to_string()).unwrap_err(), 403);
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let listener = |protocol: &str| {
        format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\ntarget = \"out\"\n"
        )
    };
    let address: SocketAddr = "127.0.0.1:1080".parse().unwrap();
    for (config, expected) in [
        (
            listener("tcp") + &upstream("out", "socks5", address, ""),
            "leads to out, and clients of a tcp listener",
        ),
        (
            listener("mixed") + &upstream("out", "socks5", address, "user = \"ann\""),
            "upstream.out.user: has no password",
        ),
        (
            listener("mixed") + &upstream("out", "http", address, "password = \"x\""),
            "has a password and no user",
        ),
        (
            listener("mixed") + &upstream("out", "tcp", address, ANN),
            "upstream.out.user: has a meaning for kind",
        ),
        (
            listener("mixed") + &upstream("out", "tcp", address, "via = \"direct\""),
            "upstream.out.via: names no proxy",
        ),
        (
            listener("mixed")
                + &upstream("out", "socks5", address, "via = \"two\"")
                + &upstream("two", "socks5", address, "via = \"out\""),
            "via is a cycle: out -> two -> out",
        ),
        (
            listener("mixed")
                + &upstream("out", "socks5", address, "via = \"two\"\nmark = 3")
                + &upstream("two", "socks5", address, ""),
            "upstream.out.mark: has no meaning here",
        ),
    ] {
        let finished = check(&config);
        assert_ne!(finished.code, 0, "{config}");
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains(expected), "{said}\nfor {config}");
    }
}
