//! How groups share sessions out. One worker makes the shares exact.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::harness::client::{ask_name, assert_echo, read_bytes, socks_tunnel};
use crate::harness::daemon::{Daemon, Setup, ringweir};
use crate::harness::server::{BlackHole, Refuser, Server, be_patient};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    round_robin_follows_the_weights_exactly,
    round_robin_spreads_a_heavy_member_over_the_cycle,
    random_follows_the_weights_roughly,
    least_connections_evens_out_what_is_open,
    least_connections_fills_what_became_free,
    failover_stays_with_the_first_that_answers,
    nested_groups_share_by_their_own_weights,
    attempts_bound_how_many_members_are_tried,
    least_latency_leaves_the_slow_one_alone,
    hash_gives_a_source_the_same_member_every_time,
    the_loss_of_a_member_moves_its_sources_alone,
    sticky_sources_stay_together_over_all_workers,
    a_sticky_source_survives_the_loss_of_its_member,
    a_failover_remembers_who_served_a_destination,
    backups_serve_when_nobody_else_may,
    what_is_remembered_outlives_a_reload,
    the_operator_selects_and_a_restart_keeps_it,
);

/// The servers `a`, `b`, … and a `tcp` listener before a group of them.
struct Pool {
    _servers: Vec<Server>,
    daemon: Daemon,
}

impl Pool {
    fn start(engine: Engine, policy: &str, weights: &[u32]) -> Pool {
        let servers: Vec<Server> = (b'a'..).take(weights.len()).map(Server::named).collect();
        let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
        let config = group(policy, weights, &addresses);
        Pool { _servers: servers, daemon: Setup::new(engine).workers(1).start(&config) }
    }

    fn ask(&self) -> (char, TcpStream) {
        let (name, stream) = ask_name(self.daemon.address("in")).expect("served");
        (char::from(name), stream)
    }

    /// The members that served `sessions` sessions, one after the other.
    fn served(&self, sessions: usize) -> String {
        (0..sessions).map(|_| self.ask().0).collect()
    }
}

/// A listener before the group `pool` of members `a`, `b`, ….
fn group(policy: &str, weights: &[u32], addresses: &[SocketAddr]) -> String {
    let mut config =
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n"
            .to_owned();
    let mut members = Vec::new();
    for ((name, weight), address) in ('a'..).zip(weights).zip(addresses) {
        config.push_str(&format!("[upstream.{name}]\naddress = \"{address}\"\nweight = {weight}\n"));
        members.push(name.to_string());
    }
    config.push_str(&format!("[group.pool]\npolicy = \"{policy}\"\nmembers = {members:?}\n"));
    config
}

fn shares(served: &str) -> BTreeMap<char, usize> {
    let mut shares = BTreeMap::new();
    for name in served.chars() {
        *shares.entry(name).or_default() += 1;
    }
    shares
}

fn round_robin_follows_the_weights_exactly(engine: Engine) {
    let pool = Pool::start(engine, "round-robin", &[3, 1, 2]);
    assert_eq!(shares(&pool.served(60)), BTreeMap::from([('a', 30), ('b', 10), ('c', 20)]));
    for (name, sessions) in [("a", 30), ("b", 10), ("c", 20)] {
        assert_eq!(number(named(&pool.daemon.status(), "targets", name), &["committed"]), sessions);
    }
}

fn round_robin_spreads_a_heavy_member_over_the_cycle(engine: Engine) {
    let pool = Pool::start(engine, "round-robin", &[5, 1, 1]);
    let served = pool.served(70);
    assert_eq!(shares(&served)[&'a'], 50);
    // nginx's smooth order for 5:1:1 is a a b a c a a: never more than four in a row, over the seam.
    assert!(!served.contains("aaaaa"), "{served}");
}

fn random_follows_the_weights_roughly(engine: Engine) {
    const SESSIONS: usize = 400;
    let pool = Pool::start(engine, "random", &[3, 1]);
    let served = pool.served(SESSIONS);
    // 300 expected, with a standard deviation below 9: six of them.
    assert!((246..=354).contains(&shares(&served)[&'a']), "{:?}", shares(&served));
    assert!(served.contains("ab") && served.contains("ba") && served.contains("aa"), "{served}");
}

fn least_connections_evens_out_what_is_open(engine: Engine) {
    let pool = Pool::start(engine, "least-connections", &[2, 1, 1]);
    let held: Vec<(char, TcpStream)> = (0..40).map(|_| pool.ask()).collect();
    let names: String = held.iter().map(|(name, _)| *name).collect();
    assert_eq!(shares(&names), BTreeMap::from([('a', 20), ('b', 10), ('c', 10)]));
}

fn least_connections_fills_what_became_free(engine: Engine) {
    let pool = Pool::start(engine, "least-connections", &[1, 1]);
    let held: Vec<(char, TcpStream)> = (0..20).map(|_| pool.ask()).collect();
    let (gone, kept): (Vec<_>, Vec<_>) = held.into_iter().partition(|(name, _)| *name == 'a');
    assert_eq!((gone.len(), kept.len()), (10, 10));
    drop(gone);
    let active = || number(named(&pool.daemon.status(), "targets", "a"), &["active"]);
    eventually(PATIENCE, "the sessions of a have ended", || active() == 0);
    let held: Vec<(char, TcpStream)> = (0..10).map(|_| pool.ask()).collect();
    assert!(held.iter().all(|(name, _)| *name == 'a'), "all went where nothing was open");
}

fn failover_stays_with_the_first_that_answers(engine: Engine) {
    let pool = Pool::start(engine, "failover", &[1, 1, 1]);
    assert_eq!(pool.served(10), "a".repeat(10));
    let (dead, live) = (Refuser::new(), Server::named(b'b'));
    let config = group("failover", &[1, 1], &[dead.address(), live.address()]);
    let daemon = Daemon::start(engine, &config);
    for _ in 0..5 {
        assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
    }
}

fn nested_groups_share_by_their_own_weights(engine: Engine) {
    let servers: Vec<Server> = (b'a'..=b'd').map(Server::named).collect();
    let mut config =
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"outer\"\n"
            .to_owned();
    for (name, server) in ('a'..).zip(&servers) {
        config.push_str(&format!("[upstream.{name}]\naddress = \"{}\"\n", server.address()));
    }
    config.push_str(
        "[group.outer]\nmembers = [\"left\", \"right\", \"d\"]\n\
         [group.left]\nmembers = [\"a\", \"b\"]\nweight = 2\n\
         [group.right]\npolicy = \"failover\"\nmembers = [\"deep\", \"b\"]\n\
         [group.deep]\nmembers = [\"c\"]\n",
    );
    let daemon = Setup::new(engine).workers(1).start(&config);
    let served: String =
        (0..40).map(|_| char::from(ask_name(daemon.address("in")).expect("served").0)).collect();
    assert_eq!(shares(&served), BTreeMap::from([('a', 10), ('b', 10), ('c', 10), ('d', 10)]));
    let status = daemon.status();
    for (name, sessions) in [("outer", 40), ("left", 20), ("right", 10), ("deep", 10)] {
        assert_eq!(number(named(&status, "targets", name), &["committed"]), sessions, "{name}");
    }
}

fn attempts_bound_how_many_members_are_tried(engine: Engine) {
    let (one, other, live) = (Refuser::new(), Refuser::new(), Server::named(b'c'));
    let config =
        group("failover", &[1, 1, 1], &[one.address(), other.address(), live.address()]) + "attempts = 2\n";
    let daemon = Daemon::start(engine, &config);
    assert!(ask_name(daemon.address("in")).is_none(), "the third was tried");
    assert_eq!(live.accepted(), 0);
    daemon.reload(&config.replace("attempts = 2", "attempts = 3")).unwrap();
    assert!(ask_name(daemon.address("in")).is_some());
}

fn name_from(daemon: &Daemon, source: u8) -> char {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 9, source], 0)).into()).expect("a loopback address");
    socket.connect(&daemon.address("in").into()).expect("the listener");
    let mut stream = TcpStream::from(socket);
    be_patient(&stream);
    char::from(read_bytes(&mut stream, 1)[0])
}

fn names_from(daemon: &Daemon, sources: std::ops::Range<u8>) -> String {
    sources.map(|source| name_from(daemon, source)).collect()
}

fn least_latency_leaves_the_slow_one_alone(engine: Engine) {
    // A black hole that the failures of connects are counted for, beside two that answer.
    let (hole, a, b) = (BlackHole::new(), Server::named(b'a'), Server::named(b'b'));
    let config = group("least-latency", &[1, 1, 1], &[a.address(), b.address(), hole.address()])
        + "attempt_timeout = \"300ms\"\n";
    let daemon = Setup::new(engine).workers(1).start(&config);
    let served: String =
        (0..60).map(|_| char::from(ask_name(daemon.address("in")).expect("served").0)).collect();
    assert!(shares(&served).len() == 2, "{served}");
    let tries = number(named(&daemon.status(), "targets", "c"), &["attempts"]);
    assert!((1..=6).contains(&tries), "the black hole was tried {tries} times in 60 sessions");
}

fn hash_gives_a_source_the_same_member_every_time(engine: Engine) {
    let servers: Vec<Server> = (b'a'..).take(4).map(Server::named).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let config = group("hash", &[1, 1, 1, 1], &addresses);
    let daemon = Setup::new(engine).workers(2).start(&config);
    let first = names_from(&daemon, 1..41);
    assert_eq!(names_from(&daemon, 1..41), first);
    assert!(shares(&first).len() == 4, "{first}");
    let other = Setup::new(engine).workers(1).start(&config);
    assert_eq!(names_from(&other, 1..41), first, "another daemon picks alike");
}

fn the_loss_of_a_member_moves_its_sources_alone(engine: Engine) {
    let mut servers: Vec<Server> = (b'a'..).take(3).map(Server::named).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let daemon = Daemon::start(engine, &group("hash", &[1, 1, 1], &addresses));
    let before = names_from(&daemon, 1..31);
    drop(servers.remove(1));
    let after = names_from(&daemon, 1..31);
    for (old, new) in before.chars().zip(after.chars()) {
        assert!(old == new || old == 'b', "{before} became {after}");
        assert_ne!(new, 'b');
    }
}

const STICKY: &str = "sticky = { key = \"source\" }\n";

fn sticky_sources_stay_together_over_all_workers(engine: Engine) {
    let servers: Vec<Server> = (b'a'..).take(4).map(Server::named).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let config = group("random", &[1, 1, 1, 1], &addresses) + STICKY;
    let daemon = Setup::new(engine).workers(2).start(&config);
    // The kernel spreads the connections of one source over the workers.
    let first = names_from(&daemon, 1..31);
    assert!(shares(&first).len() > 1, "{first}");
    for _ in 0..4 {
        assert_eq!(names_from(&daemon, 1..31), first);
    }
}

fn a_sticky_source_survives_the_loss_of_its_member(engine: Engine) {
    let mut servers: Vec<Server> = (b'a'..).take(2).map(Server::named).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let daemon = Daemon::start(engine, &(group("round-robin", &[1, 1], &addresses) + STICKY));
    let first = name_from(&daemon, 1);
    assert_eq!(name_from(&daemon, 1), first);
    let lost = usize::from(first == 'b');
    let address = addresses[lost];
    drop(servers.remove(lost));
    let second = name_from(&daemon, 1);
    assert_ne!(second, first);
    let _back = Server::at(address, |_| {});
    assert_eq!(name_from(&daemon, 1), second, "it stays where it went");
}

/// The second example of leaf's article.
fn a_failover_remembers_who_served_a_destination(engine: Engine) {
    let echo = Server::echo();
    let proxy = Daemon::start(
        engine,
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\ntarget = \"direct\"\n",
    );
    let refusing = Server::new(|mut stream| {
        let _ = stream.read_exact(&mut [0; 3]);
        let _ = stream.write_all(&[5, 0xff]);
    });
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\ntarget = \"out\"\n\
         [upstream.cheap]\nkind = \"socks5\"\naddress = \"{}\"\n\
         [upstream.good]\nkind = \"socks5\"\naddress = \"{}\"\n\
         [group.out]\npolicy = \"failover\"\nmembers = [\"cheap\", \"good\"]\nremember = {{ ttl = \"5m\" }}\n",
        refusing.address(),
        proxy.address("in")
    );
    let daemon = Setup::new(engine).workers(2).start(&config);
    for _ in 0..5 {
        assert_echo(&mut socks_tunnel(daemon.address("in"), echo.address()), b"hello");
    }
    let status = daemon.status();
    assert_eq!(number(named(&status, "targets", "cheap"), &["attempts"]), 1, "tried once, and then known");
    let other = Server::echo();
    assert_echo(&mut socks_tunnel(daemon.address("in"), other.address()), b"hello");
    assert_eq!(number(named(&daemon.status(), "targets", "cheap"), &["attempts"]), 2, "another destination");
}

fn backups_serve_when_nobody_else_may(engine: Engine) {
    let (first, spare) = (Server::named(b'a'), Server::named(b'b'));
    let config = group("random", &[1, 1], &[first.address(), spare.address()])
        .replace("[\"a\", \"b\"]", "[\"a\", { target = \"b\", backup = true }]");
    let daemon = Daemon::start(engine, &config);
    for _ in 0..20 {
        assert_eq!(ask_name(daemon.address("in")).expect("served").0, b'a');
    }
    drop(first);
    for _ in 0..5 {
        assert_eq!(ask_name(daemon.address("in")).expect("served").0, b'b');
    }
}

fn what_is_remembered_outlives_a_reload(engine: Engine) {
    let servers: Vec<Server> = (b'a'..).take(4).map(Server::named).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let config = group("random", &[1, 1, 1, 1], &addresses) + STICKY;
    let daemon = Daemon::start(engine, &config);
    let first = names_from(&daemon, 1..21);
    daemon.reload(&(config + "[log]\nlevel = \"info\"\n")).expect("a good configuration");
    assert_eq!(names_from(&daemon, 1..21), first);
}

fn the_operator_selects_and_a_restart_keeps_it(engine: Engine) {
    let servers: Vec<Server> = (b'a'..).take(3).map(Server::named).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::address).collect();
    let state = std::env::temp_dir().join(format!("ringweir-select-{}.json", addresses[0].port()));
    let config =
        group("select", &[1, 1, 1], &addresses) + &format!("[state]\nfile = \"{}\"\n", state.display());
    let served = |daemon: &Daemon| char::from(ask_name(daemon.address("in")).expect("served").0);
    let select =
        |daemon: &Daemon, target: &str| ringweir(&["select", "pool", target, "--admin", &daemon.admin()]);
    let daemon = Daemon::start(engine, &config);
    assert_eq!(served(&daemon), 'a', "the first until somebody says otherwise");
    let finished = select(&daemon, "c");
    assert_eq!((finished.code, finished.stdout.as_str()), (0, "pool leads to c\n"));
    eventually(PATIENCE, "all workers know", || (0..8).all(|_| served(&daemon) == 'c'));
    assert_eq!(named(&daemon.status(), "targets", "pool")["selected"], "c");
    let finished = select(&daemon, "d");
    assert!(
        finished.code != 0 && finished.stderr.contains("no member of pool: it has a, b, c"),
        "{}",
        finished.stderr
    );
    daemon.reload(&config).expect("a good configuration");
    assert_eq!(served(&daemon), 'c');
    drop(daemon);
    let daemon = Daemon::start(engine, &config);
    assert_eq!(served(&daemon), 'c');
    let _ = std::fs::remove_file(&state);
}
