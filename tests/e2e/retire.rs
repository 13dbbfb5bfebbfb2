//! What becomes of running sessions when the member that serves them goes, and the order of a failover that measures.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::client::{ask_name, assert_echo, connect, ends, read_rest};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::pattern::End;
use crate::harness::server::{Server, be_patient};
use crate::harness::status::{health, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    sessions_of_a_member_that_is_down_go_on_by_default,
    sessions_of_a_member_that_dies_silently_end_within_a_second,
    a_group_closes_only_its_own_sessions,
    sessions_are_closed_over_the_time_that_was_asked_for,
    a_member_that_is_back_keeps_what_it_has,
    sessions_of_a_removed_member_end,
    a_failover_by_latency_goes_to_the_quickest_and_stays,
);

/// Two upstreams in a failover that does this with its sessions.
fn failover(a: SocketAddr, b: SocketAddr, more: &str) -> String {
    format!(
        "[log]\nsessions = true\n\
         [[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"{a}\"\n[upstream.b]\naddress = \"{b}\"\n\
         [group.pool]\npolicy = \"failover\"\nmembers = [\"a\", \"b\"]\n{more}\n"
    )
}

fn sessions(daemon: &Daemon, count: usize) -> Vec<TcpStream> {
    let open = |_| {
        let (name, stream) = ask_name(daemon.address("in")).expect("served");
        assert_eq!(name, b'a');
        stream
    };
    (0..count).map(open).collect()
}

fn drain(daemon: &Daemon, target: &str, word: &str) {
    let answer = daemon.ask("POST", &format!("/{word}?target={target}"));
    assert_eq!(answer.status, 200, "{word} {target}");
}

fn retired(daemon: &Daemon) -> u64 {
    let status = daemon.status();
    let listener = named(&status, "listeners", "in");
    listener["closed"]["retired"].as_u64().unwrap_or(0)
}

fn sessions_of_a_member_that_is_down_go_on_by_default(engine: Engine) {
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let daemon = Daemon::start(engine, &failover(servers[0].address(), servers[1].address(), ""));
    let mut held = sessions(&daemon, 3);
    drain(&daemon, "a", "drain");
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
    for stream in &mut held {
        assert_echo(stream, b"still here");
    }
    assert_eq!(retired(&daemon), 0);
}

/// Row 15: the upstream keeps its connections and says no more; the check finds that it listens no longer.
fn sessions_of_a_member_that_dies_silently_end_within_a_second(engine: Engine) {
    let other = Server::named(b'b');
    let dying = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let more = "on_down = \"close\"\ncheck = \"alive\"\n\
                [check.alive]\nkind = \"tcp\"\nschedule = [\"50ms\"]\nfall = 1";
    let address = dying.local_addr().expect("bound");
    let daemon = Daemon::start(engine, &failover(address, other.address(), more));
    eventually(PATIENCE, "a is up", || health(&daemon.status(), "a") == "up");
    let mut client = connect(daemon.address("in"));
    client.write_all(b"hello").expect("sent");
    // Checks connect too, and say nothing.
    let _silent = loop {
        let (mut stream, _) = dying.accept().expect("accepted");
        be_patient(&stream);
        let mut said = [0; 5];
        if stream.read_exact(&mut said).is_ok() {
            break stream;
        }
    };
    drop(dying);
    daemon.wait_line("down", |line| line.contains("event=\"down\"") || line.contains("event=down"));
    let down_at = Instant::now();
    let (said, end) = read_rest(&mut client);
    assert!(down_at.elapsed() < Duration::from_secs(1), "{:?} after it was found down", down_at.elapsed());
    assert!(said.is_empty() && end == End::Reset, "what is cut off is not to be taken for whole: {end:?}");
    let line = daemon.wait_line("its line", |line| line.contains("retired"));
    assert!(line.contains("a"), "{line}");
    eventually(PATIENCE, "nothing is left of it", || {
        number(named(&daemon.status(), "targets", "a"), &["active"]) == 0
    });
}

fn a_group_closes_only_its_own_sessions(engine: Engine) {
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let config = failover(servers[0].address(), servers[1].address(), "on_down = \"close\"")
        + "[[listener]]\nname = \"other\"\nbind = \"127.0.0.1:0\"\ntarget = \"keeping\"\n\
           [group.keeping]\npolicy = \"failover\"\nmembers = [\"a\", \"b\"]\n\
           [[listener]]\nname = \"alone\"\nbind = \"127.0.0.1:0\"\ntarget = \"a\"\n";
    let daemon = Daemon::start(engine, &config);
    let held = sessions(&daemon, 3);
    let mut kept: Vec<TcpStream> = ["other", "alone"]
        .map(|listener| ask_name(daemon.address(listener)).expect("served").1)
        .into_iter()
        .collect();
    drain(&daemon, "a", "drain");
    let ended = ends(&held, Instant::now(), PATIENCE);
    assert!(ended.iter().all(Option::is_some), "{ended:?}");
    for stream in &mut kept {
        assert_echo(stream, b"none of its business");
    }
    assert_eq!(retired(&daemon), 3);
}

fn sessions_are_closed_over_the_time_that_was_asked_for(engine: Engine) {
    const SESSIONS: usize = 60;
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let more = "on_down = { close = \"2s\" }";
    let daemon = Daemon::start(engine, &failover(servers[0].address(), servers[1].address(), more));
    let held = sessions(&daemon, SESSIONS);
    let begin = Instant::now();
    drain(&daemon, "a", "drain");
    let ended = ends(&held, begin, Duration::from_secs(2) + PATIENCE);
    let mut at: Vec<Duration> = ended.into_iter().map(|end| end.expect("closed")).collect();
    at.sort_unstable();
    // Of sixty moments drawn from two seconds, the first third and the last third of the time have some, unless luck is
    // worse than one in ten to the tenth.
    assert!(at[0] < Duration::from_millis(700), "{at:?}");
    assert!(at[SESSIONS - 1] > Duration::from_millis(1300), "{at:?}");
    assert_eq!(retired(&daemon), SESSIONS as u64);
}

fn a_member_that_is_back_keeps_what_it_has(engine: Engine) {
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let more = "on_down = { close = \"24h\" }";
    let daemon = Daemon::start(engine, &failover(servers[0].address(), servers[1].address(), more));
    let mut held = sessions(&daemon, 8);
    drain(&daemon, "a", "drain");
    drain(&daemon, "a", "undrain");
    for stream in &mut held {
        assert_echo(stream, b"kept");
    }
    assert_eq!((retired(&daemon), number(named(&daemon.status(), "targets", "a"), &["active"])), (0, 8));
}

fn sessions_of_a_removed_member_end(engine: Engine) {
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let config = failover(servers[0].address(), servers[1].address(), "on_down = \"close\"");
    let daemon = Daemon::start(engine, &config);
    let held = sessions(&daemon, 3);
    let without = config
        .replace("[\"a\", \"b\"]", "[\"b\"]")
        .replace(&format!("[upstream.a]\naddress = \"{}\"\n", servers[0].address()), "");
    daemon.reload(&without).expect("reloaded");
    let ended = ends(&held, Instant::now(), PATIENCE);
    assert!(ended.iter().all(Option::is_some), "{ended:?}");
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
}

/// Names itself to those who say something, this long after a probe's question.
fn slow(name: u8, delay: Duration) -> Server {
    Server::new(move |mut stream| {
        let mut question = [0; 4];
        if stream.read_exact(&mut question).is_ok() {
            if &question == b"ping" {
                std::thread::sleep(delay);
            }
            let _ = stream.write_all(&[name]);
        }
    })
}

fn a_failover_by_latency_goes_to_the_quickest_and_stays(engine: Engine) {
    let (far, near) = (slow(b'a', Duration::from_millis(400)), slow(b'b', Duration::ZERO));
    let more = "order = \"latency\"\ntolerance = \"100ms\"\ncheck = \"alive\"\n\
                [check.alive]\nkind = \"send-expect\"\nsend = \"ping\"\nschedule = [\"50ms\"]";
    let daemon = Setup::new(engine).workers(1).start(&failover(far.address(), near.address(), more));
    let ask = || {
        let mut stream = connect(daemon.address("in"));
        let mut name = [0];
        stream.write_all(b"name").and_then(|()| stream.read_exact(&mut name)).map(|()| name[0]).ok()
    };
    eventually(PATIENCE, "the quick one serves", || ask() == Some(b'b'));
    // However often both are probed, nothing changes their order.
    let probes = near.accepted() + 20;
    eventually(PATIENCE, "it was probed again", || {
        assert_eq!(ask(), Some(b'b'));
        near.accepted() > probes
    });
    drop(near);
    eventually(PATIENCE, "the other stands in", || ask() == Some(b'a'));
}
