//! Start, drain, stop, and what the log says of each session.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::client::{ask_name, assert_echo, connect, is_served, read_rest, socks_tunnel};
use crate::harness::daemon::{Daemon, Setup, free_port, ringweir};
use crate::harness::pattern::{End, UP};
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{health, named};
use crate::harness::{Engine, PATIENCE, assert_took, eventually, scenarios};
use crate::relay::to;
use crate::socks::{proxy, rejected};

scenarios!(Welcome:
    sigterm_waits_for_running_sessions,
    sigint_ends_an_idle_daemon_at_once,
    the_drain_deadline_ends_what_still_runs,
    a_second_sigterm_ends_at_once,
    a_drained_target_keeps_its_sessions_and_gets_no_new_ones,
    nobody_is_served_when_every_member_is_drained,
    a_disabled_target_is_neither_picked_nor_probed,
    a_taken_port_refuses_to_start,
    a_killed_daemon_can_be_started_again_at_once,
    session_lines_tell_everything_in_text,
    session_lines_tell_everything_in_json,
    sessions_are_silent_by_default,
);

fn a_killed_daemon_can_be_started_again_at_once(engine: Engine) {
    let server = Server::echo();
    let port = free_port();
    let config = to(server.address()).replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    for _ in 0..5 {
        let mut daemon = Daemon::start(engine, &config);
        assert!(is_served(daemon.address("in")));
        daemon.signal(Signal::KILL);
        daemon.wait_exit(PATIENCE);
    }
}

fn sigterm_waits_for_running_sessions(engine: Engine) {
    let server = Server::echo();
    let mut daemon = Daemon::start(engine, &to(server.address()));
    let address = daemon.address("in");
    let mut client = connect(address);
    assert_echo(&mut client, b"before");
    daemon.signal(Signal::TERM);
    eventually(PATIENCE, "nothing listens any more", || TcpStream::connect(address).is_err());
    assert_echo(&mut client, UP.head(100_000));
    assert!(daemon.is_running());
    drop(client);
    let status = daemon.wait_exit(Duration::from_secs(3));
    assert_eq!(status.code(), Some(0), "{}", daemon.text());
}

fn sigint_ends_an_idle_daemon_at_once(engine: Engine) {
    let server = Server::echo();
    let mut daemon = Daemon::start(engine, &to(server.address()));
    assert!(is_served(daemon.address("in")));
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait_exit(Duration::from_secs(3)).code(), Some(0), "{}", daemon.text());
    assert!(!daemon.path("admin.sock").exists(), "the admin socket is left behind");
}

fn the_drain_deadline_ends_what_still_runs(engine: Engine) {
    let server = Server::echo();
    let config = format!("[timeouts]\ndrain = \"1s\"\n[log]\nsessions = true\n{}", to(server.address()));
    let mut daemon = Daemon::start(engine, &config);
    let mut client = connect(daemon.address("in"));
    assert_echo(&mut client, b"before");
    let begin = Instant::now();
    daemon.signal(Signal::TERM);
    let (rest, end) = read_rest(&mut client);
    assert!(rest.is_empty() && end != End::Silence, "{end:?}");
    assert_took(begin.elapsed(), Duration::from_secs(1), Duration::from_millis(500));
    assert_eq!(daemon.wait_exit(Duration::from_secs(3)).code(), Some(0), "{}", daemon.text());
    daemon.wait_line("the drained session", |line| line.contains("reason") && line.contains("drained"));
}

fn a_second_sigterm_ends_at_once(engine: Engine) {
    let server = Server::echo();
    let mut daemon = Daemon::start(engine, &to(server.address()));
    let address = daemon.address("in");
    let mut client = connect(address);
    assert_echo(&mut client, b"before");
    daemon.signal(Signal::TERM);
    eventually(PATIENCE, "it drains", || TcpStream::connect(address).is_err());
    let begin = Instant::now();
    daemon.signal(Signal::TERM);
    daemon.wait_exit(Duration::from_secs(3));
    assert!(begin.elapsed() < Duration::from_secs(2), "ended only after {:?}", begin.elapsed());
    let (rest, end) = read_rest(&mut client);
    assert!(rest.is_empty() && end != End::Silence, "{end:?}");
}

fn pool(a: SocketAddr, b: SocketAddr) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"{a}\"\n[upstream.b]\naddress = \"{b}\"\n\
         [group.pool]\npolicy = \"failover\"\nmembers = [\"a\", \"b\"]\n"
    )
}

fn command(daemon: &Daemon, arguments: &[&str]) -> i32 {
    ringweir(&[arguments, &["--admin", &daemon.admin()]].concat()).code
}

fn a_drained_target_keeps_its_sessions_and_gets_no_new_ones(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let config = pool(a.address(), b.address());
    let daemon = Daemon::start(engine, &config);
    let name = || ask_name(daemon.address("in")).map(|(name, _)| char::from(name));
    let (_, mut running) = ask_name(daemon.address("in")).expect("served");
    assert_eq!(name(), Some('a'));

    assert_eq!(command(&daemon, &["drain", "a"]), 0);
    assert_eq!(health(&daemon.status(), "a"), "draining");
    assert_eq!(name(), Some('b'));
    assert_echo(&mut running, b"goes on");
    daemon.reload(&config.replace("failover", "round-robin")).unwrap();
    for _ in 0..4 {
        assert_eq!(name(), Some('b'), "drained still after a reload");
    }
    daemon.reload(&config).unwrap();
    assert_eq!(command(&daemon, &["undrain", "a"]), 0);
    assert_eq!(name(), Some('a'));
    assert_echo(&mut running, b"goes on");
    assert_eq!(command(&daemon, &["drain", "nobody"]), 1, "an unknown target is an error");
}

fn a_disabled_target_is_neither_picked_nor_probed(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let check = "check = \"alive\"\n[check.alive]\nschedule = [\"20ms\"]\n";
    let config = pool(a.address(), b.address()) + check;
    let disabling = config.replace("[upstream.a]\n", "[upstream.a]\ndisabled = true\n");
    assert_ne!(config, disabling);
    let daemon = Daemon::start(engine, &config);
    let name = || ask_name(daemon.address("in")).map(|(name, _)| char::from(name));
    eventually(PATIENCE, "a is up", || health(&daemon.status(), "a") == "up");
    let (_, mut running) = ask_name(daemon.address("in")).expect("served");
    assert_eq!(command(&daemon, &["disable", "a"]), 0);
    assert_eq!(health(&daemon.status(), "a"), "disabled");
    assert_eq!(named(&daemon.status(), "targets", "a")["why"], "the operator's word");
    // A probe that was under way may still arrive.
    let probed = a.accepted() + 1;
    let others = b.accepted() + 10;
    eventually(PATIENCE, "b is probed on", || b.accepted() > others);
    assert!(a.accepted() <= probed, "a is probed no more");
    assert_eq!(name(), Some('b'));
    assert_echo(&mut running, b"goes on");
    assert_eq!(command(&daemon, &["enable", "a"]), 0);
    eventually(PATIENCE, "a is up", || health(&daemon.status(), "a") == "up");
    assert_eq!(name(), Some('a'));
    daemon.reload(&disabling).unwrap();
    assert_eq!(name(), Some('a'), "the operator's word stands over the file's");
    let daemon = Daemon::start(engine, &disabling);
    assert_eq!(named(&daemon.status(), "targets", "a")["why"], "the configuration's word");
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
    assert_eq!(command(&daemon, &["enable", "a"]), 0);
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'a'));
}

fn nobody_is_served_when_every_member_is_drained(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let daemon = Daemon::start(engine, &pool(a.address(), b.address()));
    assert_eq!(command(&daemon, &["drain", "pool"]), 0);
    assert_eq!(read_rest(&mut connect(daemon.address("in"))), (Vec::new(), End::Reset));
    assert_eq!(command(&daemon, &["undrain", "pool"]), 0);
    assert!(ask_name(daemon.address("in")).is_some());
    assert_eq!(command(&daemon, &["drain", "a"]), 0);
    assert_eq!(command(&daemon, &["drain", "b"]), 0);
    assert_eq!(read_rest(&mut connect(daemon.address("in"))), (Vec::new(), End::Reset));
}

fn a_taken_port_refuses_to_start(engine: Engine) {
    let server = Server::echo();
    let config = to(server.address()).replace("127.0.0.1:0", &server.address().to_string());
    let (code, said) = Setup::new(engine).refused(&config);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&server.address().to_string()), "the address is not named:\n{said}");
}

/// Plays three sessions of which each ends in its own way.
fn play_sessions(engine: Engine, arguments: &[&str]) -> (Daemon, SocketAddr, Server) {
    let (server, refuser) = (Server::echo(), Refuser::new());
    let config = proxy("socks5") + &to(server.address()).replace("\"in\"", "\"plain\"");
    let daemon = Setup::new(engine).arguments(arguments).start(&config);
    let mut client = socks_tunnel(daemon.address("in"), server.address());
    assert_echo(&mut client, UP.head(1000));
    let client_address = client.local_addr().unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_rest(&mut client), (Vec::new(), End::Fin));
    assert_eq!(rejected(daemon.address("in"), refuser.address()), 5);
    assert!(is_served(daemon.address("plain")));
    (daemon, client_address, server)
}

fn session_lines_tell_everything_in_text(engine: Engine) {
    let (daemon, client, server) = play_sessions(engine, &["--log-sessions", "--log-format", "text"]);
    let has = |line: &str, key: &str, value: &str| {
        line.contains(&format!("{key}={value} ")) || line.contains(&format!("{key}=\"{value}\""))
    };
    let line = daemon.wait_line("the session", |line| has(line, "client", &client.to_string()));
    for (key, value) in [
        ("listener", "in"),
        ("target_name", "direct"),
        ("destination", &server.address().to_string()),
        ("attempts", "1"),
        ("bytes_up", "1000"),
        ("bytes_down", "1000"),
    ] {
        assert!(has(&line, key, value), "no {key}={value} in {line}");
    }
    assert!(line.contains("setup_ms=") && line.contains("duration_ms="), "{line}");
    assert!(line.contains("reason=\"finished\"") || line.contains("reason=finished"), "{line}");
    let refused = daemon.wait_line("the refusal", |line| line.contains("connect-failed"));
    assert!(refused.contains("refused") && !refused.contains("setup_ms"), "{refused}");
    daemon.wait_line("the plain session", |line| has(line, "listener", "plain"));
}

fn session_lines_tell_everything_in_json(engine: Engine) {
    let (daemon, client, server) = play_sessions(engine, &["--log-sessions", "--log-format", "json"]);
    let line = daemon.wait_line("the session", |line| line.contains(&client.to_string()));
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let field = |key: &str| if line[key].is_null() { &line["fields"][key] } else { &line[key] };
    for (key, value) in [
        ("client", client.to_string()),
        ("listener", "in".to_owned()),
        ("target_name", "direct".to_owned()),
        ("destination", server.address().to_string()),
        ("reason", "finished".to_owned()),
    ] {
        assert_eq!(*field(key), Value::String(value), "{line:#}");
    }
    for (key, value) in [("attempts", 1), ("bytes_up", 1000), ("bytes_down", 1000)] {
        assert_eq!(field(key).as_u64(), Some(value), "{key} in {line:#}");
    }
    for key in ["setup_ms", "duration_ms"] {
        assert!(field(key).as_f64().is_some_and(|ms| ms > 0.0 && ms < 20_000.0), "{key} in {line:#}");
    }
}

fn sessions_are_silent_by_default(engine: Engine) {
    let (mut daemon, _, _server) = play_sessions(engine, &[]);
    let before = daemon.line_count();
    for _ in 0..50 {
        assert!(is_served(daemon.address("plain")));
    }
    assert_eq!(daemon.line_count(), before, "{}", daemon.text());
    daemon.signal(Signal::TERM);
    daemon.wait_exit(PATIENCE);
    assert!(!daemon.text().contains("bytes_up"), "{}", daemon.text());
}
