//! Groups of real servers and proxies that die and return under load: as long as one of them is well, no client is the
//! worse for it. And the known faults of the systems that ringweir follows, which it does not have.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::client::{
    ask_name, assert_echo, connect, read_rest, socks_connect, socks_ip, socks_tunnel, try_echo,
};
use crate::harness::daemon::{Daemon, Setup, check};
use crate::harness::netns::Namespace;
use crate::harness::pattern::End;
use crate::harness::peers::Peer;
use crate::harness::server::{self, BlackHole, Refuser, Server, be_patient};
use crate::harness::status::{health, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    nginx_dies_and_returns_and_no_request_fails,
    socks_members_die_and_return_and_no_request_fails,
    a_member_that_accepts_and_never_answers_fails_nobody,
    a_member_that_resets_under_load_fails_nobody_before_its_first_byte,
    what_a_member_sent_before_it_reset_arrives_under_load,
    a_dial_that_hangs_holds_no_lock,
    a_remembered_member_that_fails_does_not_end_the_request,
    a_reply_says_success_only_after_the_dial,
    a_spare_takes_no_place_unprobed,
    a_group_with_a_wrong_key_is_an_error_and_not_a_group_less,
);

mod alone {
    use super::*;
    scenarios!(Alone:
        a_network_that_drops_is_given_up_at_the_connect_timeout,
        a_member_that_returns_starts_slowly,
        of_two_workers_one_gets_the_trial,
    );
}

/// Clients that ask without a pause, one session a question.
struct Load {
    is_over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Each of a few clients calls `ask` again and again; it says what went wrong.
    fn new(ask: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Load {
        let (is_over, served, ask) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::new(ask));
        let client = |_| {
            let (is_over, served, ask) = (Arc::clone(&is_over), Arc::clone(&served), Arc::clone(&ask));
            thread::spawn(move || {
                let mut failures = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    match ask() {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(error),
                    }
                }
                failures
            })
        };
        let clients = (0..4).map(client).collect();
        Load { is_over, served, clients }
    }

    /// Until so many more were served.
    fn go_on(&self, more: usize) {
        let enough = self.served.load(Ordering::Relaxed) + more;
        eventually(PATIENCE, "clients are served", || self.served.load(Ordering::Relaxed) >= enough);
    }

    /// What went wrong.
    fn stop(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    }
}

/// A listener before the group `pool` of members `a`, `b`, ….
fn pool(protocol: &str, kind: &str, members: &[SocketAddr], rest: &str) -> String {
    let mut config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\ntarget = \"pool\"\n"
    );
    let mut names = Vec::new();
    for (name, address) in ('a'..).zip(members) {
        config.push_str(&format!("[upstream.{name}]\nkind = \"{kind}\"\naddress = \"{address}\"\n"));
        names.push(name.to_string());
    }
    config + &format!("[group.pool]\nmembers = {names:?}\n{rest}\n")
}

fn count(daemon: &Daemon, target: &str, what: &[&str]) -> u64 {
    number(named(&daemon.status(), "targets", target), what)
}

/// One request, and its answer up to the end.
fn get(address: SocketAddr) -> Result<String, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    be_patient(&stream);
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    stream.write_all(request).map_err(|error| format!("send: {error}"))?;
    let (answer, end) = read_rest(&mut stream);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("HTTP/1.1 200") && end == End::Fin {
        Ok(answer)
    } else {
        Err(format!("{answer:?}, {end:?}"))
    }
}

fn nginx_dies_and_returns_and_no_request_fails(engine: Engine) {
    let (Some(mut a), Some(mut b)) = (Peer::nginx("alpha"), Peer::nginx("beta")) else { return };
    let rest = "commit = \"first-byte\"\npassive = { eject = \"200ms\" }\ncheck = \"alive\"\n\
                [check.alive]\nkind = \"http\"\nurl = \"http://a.example/\"\nschedule = [\"100ms\"]";
    let daemon = Daemon::start(engine, &pool("tcp", "tcp", &[a.address(), b.address()], rest));
    let address = daemon.address("in");
    let load = Load::new(move || get(address).map(drop));
    for _ in 0..2 {
        for (name, peer) in [("a", &mut a), ("b", &mut b)] {
            load.go_on(100);
            peer.kill();
            load.go_on(100);
            eventually(PATIENCE, "it is found out", || {
                matches!(health(&daemon.status(), name), "down" | "ejected")
            });
            peer.revive();
            eventually(PATIENCE, "it serves again", || health(&daemon.status(), name) == "up");
        }
    }
    load.go_on(200);
    let failures = load.stop();
    assert!(failures.is_empty(), "{} failed, such as {:?}", failures.len(), failures[0]);
    assert!(count(&daemon, "a", &["committed"]) > 50 && count(&daemon, "b", &["committed"]) > 50);
}

fn socks_members_die_and_return_and_no_request_fails(engine: Engine) {
    let (Some(mut a), Some(mut b)) = (Peer::microsocks(), Peer::dante()) else { return };
    let echo = Server::echo();
    // A proxy that is killed between its answer and the first bytes takes the session with it; what a client asks
    // for here may be asked twice.
    let rest = "commit = \"first-byte\"\npassive = { eject = \"200ms\" }";
    let config = pool("socks5", "socks5", &[a.address(), b.address()], rest) + "[log]\nsessions = true\n";
    let daemon = Daemon::start(engine, &config);
    let (address, to) = (daemon.address("in"), echo.address());
    let load = Load::new(move || {
        let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
        be_patient(&stream);
        let ask = [&[5, 1, 0, 5, 1, 0][..], &socks_ip(to.ip()), &to.port().to_be_bytes()].concat();
        stream.write_all(&ask).map_err(|error| format!("send: {error}"))?;
        let mut reply = [0; 12];
        stream.read_exact(&mut reply).map_err(|error| format!("reply: {error}"))?;
        if reply[3] != 0 {
            return Err(format!("reply {reply:?}"));
        }
        try_echo(&mut stream, b"some words").map_err(|error| format!("echo: {error}"))
    });
    for peer in [&mut a, &mut b] {
        load.go_on(50);
        peer.kill();
        load.go_on(50);
        peer.revive();
    }
    load.go_on(50);
    let failures = load.stop();
    assert!(failures.is_empty(), "{} failed, such as {:?}", failures.len(), failures[0]);
    for name in ["a", "b"] {
        assert!(count(&daemon, name, &["committed"]) > 10, "{name}");
    }
}

fn a_network_that_drops_is_given_up_at_the_connect_timeout(engine: Engine) {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let Some(namespace) = Namespace::new() else { return };
    // What is sent to an address that no device has is gone, and nobody says so.
    namespace.ip(&["link", "add", "hole", "type", "veth", "peer", "name", "bottom"]);
    namespace.ip(&["addr", "add", "198.51.100.1/24", "dev", "hole"]);
    for end in ["hole", "bottom"] {
        namespace.ip(&["link", "set", end, "up"]);
    }
    let nobody =
        ["neigh", "add", "198.51.100.2", "lladdr", "02:00:00:00:00:02", "dev", "hole", "nud", "permanent"];
    namespace.ip(&nobody);
    namespace.enter(|| {
        let echo = Server::echo();
        let hole = SocketAddr::from(([198, 51, 100, 2], 80));
        let config = format!("[timeouts]\nconnect = \"1s\"\n{}", pool("tcp", "tcp", &[hole], ""));
        let daemon = Daemon::start(engine, &config);
        let begin = Instant::now();
        assert_eq!(read_rest(&mut connect(daemon.address("in"))), (Vec::new(), End::Reset));
        let took = begin.elapsed();
        assert!(took >= TIMEOUT * 9 / 10 && took <= TIMEOUT * 11 / 10, "{took:?}");
        let rest = "policy = \"failover\"\nattempt_timeout = \"300ms\"";
        let daemon = Daemon::start(engine, &pool("tcp", "tcp", &[hole, echo.address()], rest));
        assert_echo(&mut connect(daemon.address("in")), b"by the next");
        assert_eq!(count(&daemon, "a", &["failed", "timed-out"]), 1);
    });
}

fn a_member_that_accepts_and_never_answers_fails_nobody(engine: Engine) {
    let silent = Server::new(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let echo = Server::echo();
    let rest = "commit = \"first-byte\"\nattempt_timeout = \"200ms\"\npassive = { failures = 3 }";
    let daemon = Daemon::start(engine, &pool("tcp", "tcp", &[silent.address(), echo.address()], rest));
    let address = daemon.address("in");
    let load =
        Load::new(move || try_echo(&mut connect(address), b"hello").map_err(|error| error.to_string()));
    load.go_on(100);
    assert!(load.stop().is_empty());
    eventually(PATIENCE, "it is left alone", || health(&daemon.status(), "a") == "ejected");
    assert_eq!(count(&daemon, "a", &["committed"]), 0);
}

fn a_member_that_resets_under_load_fails_nobody_before_its_first_byte(engine: Engine) {
    let resetting = Server::new(|mut stream| {
        let _ = stream.read(&mut [0; 4]);
        server::reset(stream);
    });
    let echo = Server::echo();
    let rest = "commit = \"first-byte\"\npassive = false";
    let daemon = Daemon::start(engine, &pool("tcp", "tcp", &[resetting.address(), echo.address()], rest));
    let address = daemon.address("in");
    let load =
        Load::new(move || try_echo(&mut connect(address), b"hello").map_err(|error| error.to_string()));
    load.go_on(400);
    let failures = load.stop();
    assert!(failures.is_empty(), "{} failed, such as {:?}", failures.len(), failures[0]);
    assert!(resetting.accepted() >= 100, "{} came to it", resetting.accepted());
}

fn what_a_member_sent_before_it_reset_arrives_under_load(engine: Engine) {
    const BYTES: usize = 5000;
    let cutting = Server::new(|mut stream| {
        let _ = stream.read(&mut [0; 4]);
        let _ = stream.write_all(&[7; BYTES]);
        // A reset throws away what the other end has not taken yet: it says when it has.
        let _ = stream.read(&mut [0; 1]);
        server::reset(stream);
    });
    let rest = "commit = \"first-byte\"\npassive = false";
    let daemon = Daemon::start(engine, &pool("tcp", "tcp", &[cutting.address()], rest));
    let address = daemon.address("in");
    let load = Load::new(move || {
        let mut stream = connect(address);
        stream.write_all(b"ask").map_err(|error| error.to_string())?;
        let mut answer = vec![0; BYTES];
        stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
        let _ = stream.write_all(b"!");
        match read_rest(&mut stream) {
            (rest, End::Reset) if rest.is_empty() && answer.iter().all(|byte| *byte == 7) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    load.go_on(300);
    let failures = load.stop();
    assert!(failures.is_empty(), "{} failed, such as {:?}", failures.len(), failures[0]);
}

fn a_member_that_returns_starts_slowly(engine: Engine) {
    let (stays, returns) = (Server::named(b'a'), Server::named(b'b'));
    let (stays, address) = (stays, returns.address());
    let rest = "slow_start = \"10s\"\ncheck = \"alive\"\n[check.alive]\nkind = \"tcp\"\nschedule = [\"50ms\"]\nfall = 1";
    let config = pool("tcp", "tcp", &[stays.address(), address], rest);
    let daemon = Setup::new(engine).workers(1).start(&config);
    let shares = || {
        let names = (0..100).map(|_| ask_name(daemon.address("in")).expect("served").0);
        names.filter(|name| *name == b'b').count()
    };
    eventually(PATIENCE, "both are up", || health(&daemon.status(), "b") == "up");
    assert_eq!(shares(), 50, "at the start nobody has come back");
    drop(returns);
    eventually(PATIENCE, "it is down", || health(&daemon.status(), "b") == "down");
    let _back = Server::at(address, |mut stream| {
        let _ = stream.write_all(b"b").and_then(|()| stream.read(&mut [0]));
    });
    eventually(PATIENCE, "it is up", || health(&daemon.status(), "b") == "up");
    let first = shares();
    // A tenth of the weight against a whole one is one in eleven; a few steps may have passed.
    assert!((1..=25).contains(&first), "{first} of 100 at once");
    eventually(PATIENCE, "it has its whole share again", || shares() == 50);
}

fn of_two_workers_one_gets_the_trial(engine: Engine) {
    let is_well = Arc::<AtomicBool>::default();
    let member = Server::new({
        let is_well = Arc::clone(&is_well);
        move |mut stream| match is_well.load(Ordering::Relaxed) {
            // Whether it is sound is not decided before it says something.
            true => drop(std::io::copy(&mut stream, &mut std::io::sink())),
            false => {
                let _ = stream.read(&mut [0; 1]);
                server::reset(stream);
            }
        }
    });
    let other = Server::named(b'b');
    let rest = "policy = \"failover\"\npassive = { failures = 3, eject = \"500ms\" }";
    let daemon = Daemon::start(engine, &pool("tcp", "tcp", &[member.address(), other.address()], rest));
    eventually(PATIENCE, "it is ejected", || {
        let mut stream = connect(daemon.address("in"));
        let _ = stream.write_all(b"?").and_then(|()| stream.read(&mut [0; 1]));
        health(&daemon.status(), "a") == "ejected"
    });
    is_well.store(true, Ordering::Relaxed);
    eventually(PATIENCE, "it is on trial", || health(&daemon.status(), "a") == "trial");
    let before = member.accepted();
    let mut waiting: Vec<TcpStream> = (0..30).map(|_| connect(daemon.address("in"))).collect();
    eventually(PATIENCE, "all have somebody", || {
        count(&daemon, "a", &["active"]) + count(&daemon, "b", &["active"]) == 30
    });
    assert_eq!(member.accepted() - before, 1, "one session of thirty, over two workers");
    waiting.clear();
}

/// leaf: the fallback cache's lock was held during a dial, so that one dead member held up every request.
fn a_dial_that_hangs_holds_no_lock(engine: Engine) {
    let (hole, echo) = (BlackHole::new(), Server::echo());
    let mut config =
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\ntarget = \"all\"\n\
                      [group.all]\npolicy = \"failover\"\nmembers = [\"direct\"]\nattempt_timeout = \"20s\"\n\
                      remember = { size = 16 }\n"
            .to_owned();
    config.push_str("[timeouts]\nconnect = \"20s\"\n");
    let daemon = Setup::new(engine).workers(1).start(&config);
    let ask =
        |to: SocketAddr| [&[5, 1, 0, 5, 1, 0][..], &socks_ip(to.ip()), &to.port().to_be_bytes()].concat();
    let hanging: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = connect(daemon.address("in"));
            stream.write_all(&ask(hole.address())).expect("sent");
            stream
        })
        .collect();
    eventually(PATIENCE, "they hang", || count(&daemon, "direct", &["active"]) == 20);
    let begin = Instant::now();
    for _ in 0..20 {
        assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"not held up");
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    eventually(PATIENCE, "they alone are left, and hang still", || {
        count(&daemon, "direct", &["active"]) == 20
    });
    drop(hanging);
}

/// leaf: an error of the member that the cache named ended the request, without a try of the others.
fn a_remembered_member_that_fails_does_not_end_the_request(engine: Engine) {
    let Some(mut proxy) = Peer::microsocks() else { return };
    let echo = Server::echo();
    let rest = "policy = \"failover\"\nremember = { ttl = \"5m\" }\npassive = false";
    let dead = Refuser::new();
    let config = pool("socks5", "socks5", &[dead.address(), proxy.address()], rest)
        .replace("members = [\"a\", \"b\"]", "members = [\"a\", \"b\", \"direct\"]");
    let daemon = Setup::new(engine).workers(1).start(&config);
    for _ in 0..3 {
        assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"by the second");
    }
    assert_eq!(count(&daemon, "a", &["attempts"]), 1, "it is remembered who served");
    proxy.kill();
    assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"by the third");
    assert_eq!(count(&daemon, "direct", &["committed"]), 1);
}

/// leaf: the reply said success before the dial, and never carried a failure.
fn a_reply_says_success_only_after_the_dial(engine: Engine) {
    let (refuser, hole) = (Refuser::new(), BlackHole::new());
    let config = "[timeouts]\nconnect = \"300ms\"\n[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\n\
                  protocol = \"socks5\"\ntarget = \"direct\"\n";
    let daemon = Daemon::start(engine, config);
    for (to, code) in [(refuser.address(), 5), (hole.address(), 4)] {
        let (reply, _) = socks_connect(daemon.address("in"), &socks_ip(to.ip()), to.port());
        assert_eq!(reply.code, code);
    }
}

/// shadowsocks-electron: a spare took a place without a probe.
fn a_spare_takes_no_place_unprobed(engine: Engine) {
    let (serving, sound) = (Server::named(b'a'), Server::named(b'c'));
    let dead = Refuser::new();
    let rest =
        "active = 1\ncheck = \"alive\"\n[check.alive]\nkind = \"tcp\"\nschedule = [\"50ms\"]\nfall = 1";
    let members = [serving.address(), dead.address(), sound.address()];
    let daemon = Setup::new(engine).workers(1).start(&pool("tcp", "tcp", &members, rest));
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'a'));
    eventually(PATIENCE, "the dead spare is known", || health(&daemon.status(), "b") == "down");
    drop(serving);
    let replaced = || {
        let served = ask_name(daemon.address("in")).map(|(name, _)| name);
        assert!(served.is_none() || served == Some(b'c'), "nobody but the sound spare serves: {served:?}");
        served == Some(b'c')
            && named(&daemon.status(), "targets", "pool")["reserve"].to_string().contains('a')
    };
    eventually(PATIENCE, "the sound spare has the place", replaced);
    assert_eq!(count(&daemon, "b", &["attempts"]), 0);
}

/// leaf: a group that missed one key, or had an unknown one, was dropped silently.
fn a_group_with_a_wrong_key_is_an_error_and_not_a_group_less(engine: Engine) {
    let server = Server::echo();
    let sound = pool("tcp", "tcp", &[server.address()], "");
    for (wrong, told) in [("atempts = 2\n", "group.pool.atempts"), ("members = []\n", "group.pool.members")] {
        let config = match wrong {
            "members = []\n" => sound.replace("members = [\"a\"]\n", wrong),
            added => sound.clone() + added,
        };
        let done = check(&config);
        assert!(done.code != 0 && done.stderr.contains(told), "{}", done.stderr);
        let (code, said) = Setup::new(engine).refused(&config);
        assert!(code != 0 && said.contains(told), "{said}");
    }
}
