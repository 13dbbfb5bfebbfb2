//! A new configuration is applied whole or refused whole, and sessions live on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::client::{ask_name, assert_echo, connect, is_served, try_echo};
use crate::harness::daemon::{Daemon, ringweir};
use crate::harness::pattern::{DOWN, End};
use crate::harness::server::{Server, spawn};
use crate::harness::{Engine, PATIENCE, eventually, observe_for, scenarios};
use crate::relay::to;

scenarios!(Welcome:
    listeners_are_added_changed_and_removed,
    a_port_that_the_kernel_chose_stays_with_its_listener,
    a_target_is_changed_under_running_sessions,
    a_bad_file_is_refused_whole_and_the_old_one_serves,
    a_group_cycle_is_refused_with_its_path,
    groups_nested_too_deep_are_refused_with_their_path,
    sighup_reloads,
    the_reload_command_reloads_or_tells_why_not,
    counters_survive_a_reload,
    questions_are_answered_while_the_configuration_is_read,
);

mod alone {
    use super::*;
    scenarios!(Alone: fifty_reloads_under_load_lose_nothing);
}

fn questions_are_answered_while_the_configuration_is_read(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let upstreams = upstream("a", a.address()) + &upstream("b", b.address());
    let admin = "[admin]\nlisten = \"unix:@dir@/admin.sock\"\n";
    let to = |target: &str| format!("{}{upstreams}{admin}", listener("in", 0, target));
    let mut daemon = Daemon::start(engine, &to("a"));
    let address = daemon.address("in");
    // A file that is read for as long as somebody writes to it.
    let file = daemon.path("ringweir.toml");
    std::fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let folder = daemon.path("").display().to_string();
    let write = |mut pipe: File, target: &str| {
        pipe.write_all(to(target).replace("@dir@/", &folder).as_bytes()).unwrap();
    };
    thread::scope(|scope| {
        let ask = || daemon.ask("POST", "/reload");
        let first = scope.spawn(ask);
        // It opens when the daemon reads.
        let pipe = OpenOptions::new().write(true).open(&file).unwrap();
        let second = scope.spawn(ask);
        assert_eq!(daemon.status()["generation"], 1);
        assert_eq!(name_at(address), Some('a'));
        assert!(!first.is_finished() && !second.is_finished());
        write(pipe, "b");
        assert_eq!(first.join().unwrap().status, 200);
        // Whoever asked behind the first reading gets one of their own.
        write(OpenOptions::new().write(true).open(&file).unwrap(), "a");
        assert_eq!(second.join().unwrap().status, 200);
    });
    assert_eq!(name_at(address), Some('a'));
    assert!(
        daemon.metrics().contains("ringweir_reloads_total{result=\"applied\"} 2"),
        "{}",
        daemon.metrics()
    );
    // A file that hangs keeps nobody from ending.
    daemon.signal(Signal::HUP);
    let _pipe = OpenOptions::new().write(true).open(&file).unwrap();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_exit(PATIENCE).success());
}

/// A listener on a certain port.
pub(crate) fn listener(name: &str, port: u16, target: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:{port}\"\nprotocol = \"tcp\"\ntarget = \"{target}\"\n"
    )
}

pub(crate) fn upstream(name: &str, address: SocketAddr) -> String {
    format!("[upstream.{name}]\naddress = \"{address}\"\n")
}

fn name_at(address: SocketAddr) -> Option<char> {
    ask_name(address).map(|(name, _)| char::from(name))
}

fn listeners_are_added_changed_and_removed(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let upstreams = upstream("a", a.address()) + &upstream("b", b.address());
    let daemon = Daemon::start(engine, &(listener("one", 0, "a") + &upstreams));
    let one = daemon.address("one");
    let (_, mut running) = ask_name(one).expect("served");

    daemon.reload(&(listener("one", 0, "a") + &listener("two", 0, "b") + &upstreams)).unwrap();
    let two = daemon.address("two");
    assert_eq!((name_at(one), name_at(two)), (Some('a'), Some('b')));
    let (_, mut running_two) = ask_name(two).expect("served");

    daemon.reload(&(listener("one", 0, "b") + &listener("two", 0, "b") + &upstreams)).unwrap();
    assert_eq!(name_at(one), Some('b'), "a changed target counts at once");

    daemon.reload(&(listener("one", 0, "b") + &upstreams)).unwrap();
    eventually(PATIENCE, "the removed listener is closed", || std::net::TcpStream::connect(two).is_err());
    assert_eq!(name_at(one), Some('b'));
    assert_echo(&mut running, b"untouched by four configurations");
    assert_echo(&mut running_two, b"outlives its listener");
}

fn a_port_that_the_kernel_chose_stays_with_its_listener(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let upstreams = upstream("a", a.address()) + &upstream("b", b.address());
    let daemon = Daemon::start(engine, &(listener("one", 0, "a") + &upstreams));
    let one = daemon.address("one");
    // The new one stands first, with the very same words for its address.
    daemon.reload(&(listener("two", 0, "b") + &listener("one", 0, "a") + &upstreams)).unwrap();
    assert_eq!(name_at(one), Some('a'));
    assert_eq!(name_at(daemon.address("two")), Some('b'));
    daemon.reload(&(listener("two", 0, "b") + &upstreams)).unwrap();
    assert_eq!(name_at(daemon.address("two")), Some('b'));
    eventually(PATIENCE, "the removed listener is closed", || std::net::TcpStream::connect(one).is_err());
}

fn a_target_is_changed_under_running_sessions(engine: Engine) {
    let (old, new) = (Server::named(b'o'), Server::named(b'n'));
    let config = |address| listener("in", 0, "up") + &upstream("up", address);
    let daemon = Daemon::start(engine, &config(old.address()));
    let (name, mut running) = ask_name(daemon.address("in")).expect("served");
    assert_eq!(name, b'o');
    daemon.reload(&config(new.address())).unwrap();
    assert_eq!(name_at(daemon.address("in")), Some('n'));
    assert_echo(&mut running, b"still at the old one");
}

fn a_bad_file_is_refused_whole_and_the_old_one_serves(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let good = listener("in", 0, "up") + &upstream("up", a.address());
    let daemon = Daemon::start(engine, &good);
    let address = daemon.address("in");
    // Everything about these is fine but one thing each.
    let changed = listener("in", 0, "up") + &upstream("up", b.address());
    let bad = [
        (changed.clone() + "wieght = 3\n", "wieght"),
        (changed.replace("target = \"up\"", "target = \"nowhere\""), "nowhere"),
        (changed.clone() + "weight = 0\n", "weight"),
        (changed.clone() + "this is no TOML\n", "ringweir.toml:"),
        (String::new() + "[[listener]\n", "ringweir.toml:1"),
    ];
    for (config, culprit) in bad {
        let errors = daemon.reload(&config).expect_err(&config);
        assert!(errors.contains(culprit), "{culprit} is not named in:\n{errors}");
        assert!(errors.contains("ringweir.toml:"), "no place in:\n{errors}");
        assert_eq!(name_at(address), Some('a'), "the old one serves after:\n{config}");
    }
    daemon.reload(&changed).unwrap();
    assert_eq!(name_at(daemon.address("in")), Some('b'));
}

/// Asserts that a text names the parts one after the other.
#[track_caller]
pub(crate) fn assert_path(text: &str, path: &[&str]) {
    let found = text.lines().any(|line| {
        let mut rest = line;
        path.iter().all(|part| {
            let at = rest.find(part);
            rest = at.map_or("", |at| &rest[at + part.len()..]);
            at.is_some()
        })
    });
    assert!(found, "no line names {path:?} in this order:\n{text}");
}

/// Groups of which each holds the next; the last holds `end`.
pub(crate) fn chain(names: &[String], end: &str) -> String {
    let members = names.iter().skip(1).map(String::as_str).chain([end]);
    names
        .iter()
        .zip(members)
        .map(|(name, member)| format!("[group.{name}]\nmembers = [\"{member}\"]\n"))
        .collect()
}

fn a_group_cycle_is_refused_with_its_path(engine: Engine) {
    let server = Server::echo();
    let good = to(server.address());
    let daemon = Daemon::start(engine, &good);
    let names = ["alpha", "beta", "gamma"].map(str::to_owned);
    let errors = daemon.reload(&(good + &chain(&names, "alpha"))).expect_err("a cycle");
    assert_path(&errors, &["alpha", "beta", "gamma", "alpha"]);
    assert!(is_served(daemon.address("in")));
}

fn groups_nested_too_deep_are_refused_with_their_path(engine: Engine) {
    let server = Server::echo();
    let good = to(server.address());
    let daemon = Daemon::start(engine, &good);
    let names: Vec<String> = (1..=9).map(|level| format!("level{level}")).collect();
    daemon.reload(&(good.clone() + &chain(&names[..8], "up"))).expect("eight are allowed");
    let errors = daemon.reload(&(good + &chain(&names, "up"))).expect_err("nine are too deep");
    assert_path(&errors, &names.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(is_served(daemon.address("in")));
}

fn sighup_reloads(engine: Engine) {
    let (old, new) = (Server::named(b'o'), Server::named(b'n'));
    let config = |address| listener("in", 0, "up") + &upstream("up", address);
    let daemon = Daemon::start(engine, &config(old.address()));
    daemon.write_config(&config(new.address()));
    daemon.signal(Signal::HUP);
    eventually(PATIENCE, "the new file is applied", || name_at(daemon.address("in")) == Some('n'));
    daemon.write_config("nonsense = 1\n");
    daemon.signal(Signal::HUP);
    daemon.wait_line("the refusal", |line| line.contains("nonsense"));
    assert_eq!(name_at(daemon.address("in")), Some('n'));
}

fn the_reload_command_reloads_or_tells_why_not(engine: Engine) {
    let (old, new) = (Server::named(b'o'), Server::named(b'n'));
    let config = |address| listener("in", 0, "up") + &upstream("up", address);
    let daemon = Daemon::start(engine, &config(old.address()));
    daemon.write_config(&config(new.address()));
    let done = ringweir(&["reload", "--admin", &daemon.admin()]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(name_at(daemon.address("in")), Some('n'));
    daemon.write_config("nonsense = 1\n");
    let done = ringweir(&["reload", "--admin", &daemon.admin()]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("nonsense"), "{done:?}");
}

fn counters_survive_a_reload(engine: Engine) {
    use crate::harness::status::{named, number};
    let server = Server::echo();
    let good = to(server.address());
    let daemon = Daemon::start(engine, &good);
    assert!(is_served(daemon.address("in")));
    daemon.reload(&(good.clone() + &upstream("more", server.address()))).unwrap();
    assert!(is_served(daemon.address("in")));
    let status = daemon.status();
    assert_eq!(number(named(&status, "listeners", "in"), &["accepted"]), 2);
    assert_eq!(number(named(&status, "targets", "up"), &["committed"]), 2);
    assert_eq!(number(named(&status, "targets", "more"), &["committed"]), 0);
}

fn fifty_reloads_under_load_lose_nothing(engine: Engine) {
    const RELOADS: usize = 50;
    const DOWNLOAD_BYTES: u64 = 64 << 20;
    let (a, b, source) = (Server::echo(), Server::echo(), Server::source(DOWNLOAD_BYTES));
    let base =
        listener("in", 0, "pool") + &listener("bulk", 0, "source") + &upstream("source", source.address());
    // Every other one lacks a listener and a member, and gives the rest other numbers.
    let small = base.clone() + &upstream("a", a.address()) + "[group.pool]\nmembers = [\"a\"]\n";
    let large = listener("more", 0, "b")
        + &base
        + &upstream("b", b.address())
        + &upstream("a", a.address())
        + "[group.pool]\npolicy = \"random\"\nmembers = [\"b\", \"a\"]\n";
    let daemon = Daemon::start(engine, &small);
    let address = daemon.address("in");
    let load = Load::start(address);
    let bulk = daemon.address("bulk");
    let begin = Instant::now();
    let download = thread::spawn(move || {
        let mut paced = Paced { stream: connect(bulk), begin: Instant::now(), bytes: 0 };
        DOWN.read_to_end(&mut paced)
    });
    for round in 0..RELOADS {
        daemon.reload(if round % 2 == 0 { &large } else { &small }).unwrap();
        observe_for(Duration::from_millis(40));
    }
    assert!(daemon.reload("[[listener]]\nname = \"in\"\n").is_err());
    observe_for(Duration::from_millis(100));
    let (served, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {served} connects failed: {failures:?}", failures.len());
    let expected = begin.elapsed().as_millis() as usize * CONNECTS_PER_SECOND as usize / 1000;
    assert!(served >= expected / 2, "{served} connects, {expected} were due: too slow a test to mean much");
    download.join().unwrap().assert(DOWNLOAD_BYTES, End::Fin);
    assert!(is_served(address));
}

const CONNECTS_PER_SECOND: u32 = 200;

/// Exchanges at a steady rate, each on a connection and a thread of its own.
struct Load {
    stop: Arc<AtomicBool>,
    pacer: thread::JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    fn start(address: SocketAddr) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let pacer = thread::spawn(move || {
            let served = Arc::new(AtomicUsize::new(0));
            let begin = Instant::now();
            let mut clients = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let served = Arc::clone(&served);
                clients
                    .push(spawn(move || exchange(address).map(|()| served.fetch_add(1, Ordering::SeqCst))));
                let due = begin + Duration::from_secs(1) * clients.len() as u32 / CONNECTS_PER_SECOND;
                observe_for(due.saturating_duration_since(Instant::now()));
            }
            let failures = clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect();
            (served.load(Ordering::SeqCst), failures)
        });
        Load { stop, pacer }
    }

    fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.pacer.join().unwrap()
    }
}

fn exchange(address: SocketAddr) -> Result<(), String> {
    let mut stream = std::net::TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    crate::harness::server::be_patient(&stream);
    try_echo(&mut stream, b"one exchange").map_err(|error| format!("exchange: {error}"))
}

/// A reader that takes as long as the reloads.
struct Paced {
    stream: std::net::TcpStream,
    begin: Instant,
    bytes: u64,
}

impl std::io::Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        const BYTES_PER_MS: u64 = 24 << 10;
        let due = self.begin + Duration::from_millis(self.bytes / BYTES_PER_MS);
        observe_for(due.saturating_duration_since(Instant::now()));
        let bytes = std::io::Read::read(&mut self.stream, buffer)?;
        self.bytes += bytes as u64;
        Ok(bytes)
    }
}
