//! Several attempts for one session: races, attempts that win by the first byte, and what is said again.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::harness::client::{assert_echo, connect, read_bytes, read_rest, socks_connect, socks_ip};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::pattern::{End, UP};
use crate::harness::server::{self, BlackHole, Refuser, Server};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    a_race_serves_from_whoever_is_first,
    a_race_that_fails_within_its_time_leaves_it_to_the_good_one,
    a_staggered_race_takes_the_place_of_a_failure_at_once,
    a_member_that_never_answers_is_passed_over,
    what_the_client_said_is_said_again_after_a_reset,
    more_than_can_be_held_commits_to_the_member_that_hears_it,
    a_half_close_reaches_whoever_is_asked,
    the_loser_of_a_race_to_the_first_byte_is_closed,
    a_client_that_breaks_off_ahead_of_the_first_byte_is_not_taken_for_done,
    who_speaks_first_wins_without_being_asked,
    a_client_that_was_told_of_success_is_reset_when_nobody_answers,
    the_log_lists_each_attempt,
);

/// A listener before the group `pool` of members `a`, `b`, …; `rest` is added to the group.
fn pool(members: &[SocketAddr], rest: &str) -> String {
    let listener = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n";
    format!("{listener}{}", group_of(members, rest))
}

fn group_of(members: &[SocketAddr], rest: &str) -> String {
    let mut config = String::new();
    let mut names = Vec::new();
    for (name, address) in ('a'..).zip(members) {
        config.push_str(&format!("[upstream.{name}]\naddress = \"{address}\"\n"));
        names.push(name.to_string());
    }
    config + &format!("[group.pool]\nmembers = {names:?}\n{rest}\n")
}

/// Accepts and reads, and never says a word.
fn silent() -> Server {
    Server::new(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

fn count(daemon: &Daemon, target: &str, what: &str) -> u64 {
    number(named(&daemon.status(), "targets", target), &[what])
}

fn a_race_serves_from_whoever_is_first(engine: Engine) {
    let (hole, echo) = (BlackHole::new(), Server::echo());
    let config = pool(&[hole.address(), echo.address()], "policy = \"race\"");
    let daemon = Daemon::start(engine, &config);
    let begin = Instant::now();
    assert_echo(&mut connect(daemon.address("in")), b"hello");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    eventually(PATIENCE, "the loser is given up", || count(&daemon, "a", "abandoned") == 1);
    assert_eq!(count(&daemon, "b", "committed"), 1);
    assert_eq!(count(&daemon, "pool", "committed"), 1);
}

/// The first example of leaf's article.
fn a_race_that_fails_within_its_time_leaves_it_to_the_good_one(engine: Engine) {
    let holes = [BlackHole::new(), BlackHole::new(), BlackHole::new()];
    let good = Server::echo();
    let members = holes.each_ref().map(BlackHole::address);
    let config = pool(&members, "policy = \"race\"")
        .replace("[group.pool]", "[group.cheap]")
        .replace("target = \"pool\"", "target = \"all\"")
        + &format!(
            "[upstream.good]\naddress = \"{}\"\n[group.all]\npolicy = \"failover\"\n\
         members = [\"cheap\", \"good\"]\nattempt_timeout = \"500ms\"\n",
            good.address()
        );
    let daemon = Daemon::start(engine, &config);
    let begin = Instant::now();
    assert_echo(&mut connect(daemon.address("in")), b"hello");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    let status = daemon.status();
    for name in ["a", "b", "c"] {
        assert_eq!(number(named(&status, "targets", name), &["attempts"]), 1, "{name}");
        assert_eq!(number(named(&status, "targets", name), &["active"]), 0, "{name}");
    }
    assert_eq!(number(named(&status, "targets", "good"), &["committed"]), 1);
}

fn a_staggered_race_takes_the_place_of_a_failure_at_once(engine: Engine) {
    let (refuser, echo) = (Refuser::new(), Server::echo());
    let config = pool(&[refuser.address(), echo.address()], "policy = \"race\"\nstagger = \"30s\"");
    let daemon = Daemon::start(engine, &config);
    let begin = Instant::now();
    assert_echo(&mut connect(daemon.address("in")), b"hello");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

const FIRST_BYTE: &str = "policy = \"failover\"\ncommit = \"first-byte\"\nattempt_timeout = \"400ms\"";

fn a_member_that_never_answers_is_passed_over(engine: Engine) {
    let (silent, echo) = (silent(), Server::echo());
    let daemon = Daemon::start(engine, &pool(&[silent.address(), echo.address()], FIRST_BYTE));
    let mut client = connect(daemon.address("in"));
    assert_echo(&mut client, b"hello");
    assert_echo(&mut client, b"and more");
    assert_eq!(count(&daemon, "b", "committed"), 1);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_rest(&mut client), (Vec::new(), End::Fin));
    eventually(PATIENCE, "the session has ended", || count(&daemon, "b", "active") == 0);
    // "hello" and "and more", each way.
    assert_eq!(count(&daemon, "b", "bytes_up"), 13);
    assert_eq!(count(&daemon, "b", "bytes_down"), 13);
}

fn what_the_client_said_is_said_again_after_a_reset(engine: Engine) {
    let resetting = Server::new(|mut stream| {
        let mut request = [0; 3];
        stream.read_exact(&mut request).unwrap();
        server::reset(stream);
    });
    let echo = Server::echo();
    let members = [resetting.address(), resetting.address(), echo.address()];
    let daemon = Daemon::start(engine, &pool(&members, FIRST_BYTE));
    for _ in 0..10 {
        let mut client = connect(daemon.address("in"));
        client.write_all(b"first").unwrap();
        client.write_all(b", second").unwrap();
        assert_eq!(read_bytes(&mut client, 13), b"first, second");
    }
    assert_eq!(count(&daemon, "c", "committed"), 10);
}

fn more_than_can_be_held_commits_to_the_member_that_hears_it(engine: Engine) {
    const BYTES: u64 = 1 << 20;
    let server = Server::new(|mut stream| {
        UP.read(&mut stream, BYTES, 64 << 10).assert(BYTES, End::Fin);
        stream.write_all(b"all of it").unwrap();
    });
    let daemon = Daemon::start(
        engine,
        &pool(&[server.address()], "commit = \"first-byte\"\nattempt_timeout = \"20s\""),
    );
    let mut client = connect(daemon.address("in"));
    UP.write(&mut client, BYTES).unwrap();
    assert_eq!(read_bytes(&mut client, 9), b"all of it");
}

fn a_half_close_reaches_whoever_is_asked(engine: Engine) {
    let (sender, requests) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        let (request, end) = read_rest(&mut stream);
        sender.send((request, end)).unwrap();
        stream.write_all(b"answer").unwrap();
    });
    let silent = silent();
    let daemon = Daemon::start(engine, &pool(&[silent.address(), server.address()], FIRST_BYTE));
    let mut client = connect(daemon.address("in"));
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_rest(&mut client), (b"answer".to_vec(), End::Fin));
    assert_eq!(requests.recv_timeout(PATIENCE).unwrap(), (b"request".to_vec(), End::Fin));
}

fn the_loser_of_a_race_to_the_first_byte_is_closed(engine: Engine) {
    let (sender, heard) = mpsc::channel();
    let slow = Server::new(move |mut stream| {
        sender.send(read_rest(&mut stream)).unwrap();
    });
    let echo = Server::echo();
    let race = "policy = \"race\"\ncommit = \"first-byte\"";
    let daemon = Daemon::start(engine, &pool(&[slow.address(), echo.address()], race));
    let mut client = connect(daemon.address("in"));
    assert_echo(&mut client, b"who is first");
    // It is not to take that for all there was to be said.
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), (b"who is first".to_vec(), End::Reset));
    assert_echo(&mut client, b"go on");
    assert_eq!(count(&daemon, "a", "abandoned"), 1);
}

fn a_client_that_breaks_off_ahead_of_the_first_byte_is_not_taken_for_done(engine: Engine) {
    let (sender, heard) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        let first = read_bytes(&mut stream, 4);
        sender.send((first, End::Silence)).unwrap();
        sender.send(read_rest(&mut stream)).unwrap();
    });
    let config = pool(&[server.address()], "commit = \"first-byte\"");
    let daemon = Daemon::start(engine, &config);
    let mut client = connect(daemon.address("in"));
    client.write_all(b"half").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap().0, b"half");
    server::reset(client);
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), (Vec::new(), End::Reset));
    // One that has said it all, and then is gone before it is answered.
    let mut client = connect(daemon.address("in"));
    client.write_all(b"whole").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap().0, b"whol");
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), (b"e".to_vec(), End::Fin));
}

fn who_speaks_first_wins_without_being_asked(engine: Engine) {
    let banner = Server::new(|mut stream| {
        stream.write_all(b"220 welcome").unwrap();
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    let daemon = Daemon::start(engine, &pool(&[silent().address(), banner.address()], FIRST_BYTE));
    let mut client = connect(daemon.address("in"));
    assert_eq!(read_bytes(&mut client, 11), b"220 welcome");
    assert_echo(&mut client, b"hello");
}

fn a_client_that_was_told_of_success_is_reset_when_nobody_answers(engine: Engine) {
    let mute = Server::new(|mut stream: TcpStream| {
        let mut request = [0; 5];
        let _ = stream.read_exact(&mut request);
    });
    let listener = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\n\
                    target = \"pool\"\n";
    let config = format!("{listener}{}", group_of(&[mute.address(), mute.address()], FIRST_BYTE));
    let daemon = Daemon::start(engine, &config);
    let destination = socks_ip("127.0.0.1".parse().unwrap());
    let (reply, mut client) = socks_connect(daemon.address("in"), &destination, 80);
    assert_eq!(reply.code, 0);
    client.write_all(b"hello").unwrap();
    assert_eq!(read_rest(&mut client), (Vec::new(), End::Reset));
    assert_eq!(mute.accepted(), 2);
}

fn the_log_lists_each_attempt(engine: Engine) {
    let (refuser, silent, echo) = (Refuser::new(), silent(), Server::echo());
    let members = [refuser.address(), silent.address(), echo.address()];
    let config = pool(&members, FIRST_BYTE) + "[log]\nsessions = true\n";
    let daemon = Setup::new(engine).workers(1).start(&config);
    assert_echo(&mut connect(daemon.address("in")), b"hello");
    let line = daemon.wait_line("a line of the session", |line| line.contains("reason="));
    let (refused, timed_out) =
        (line.find("a: connection refused after "), line.find("; b: timed out after 4"));
    assert!(refused.is_some() && timed_out > refused, "{line}");
    assert!(line.contains("attempts=3") && line.contains("target_name=\"c\""), "{line}");
}
