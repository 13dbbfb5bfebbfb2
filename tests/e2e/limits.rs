//! How many sessions a listener bears.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::client::{ask_name, assert_closed, connect};
use crate::harness::daemon::{Daemon, Setup, check};
use crate::harness::pattern::{DOWN, End, UP};
use crate::harness::server::Server;
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    a_full_listener_turns_clients_away_until_somebody_leaves,
    a_source_has_no_more_than_its_share,
    more_new_sessions_than_may_begin_in_a_second_are_reset,
    bytes_keep_to_their_rate_each_way,
    sessions_of_one_source_share_its_rate_evenly,
    who_leaves_and_comes_again_has_no_more_bytes_than_who_stays,
    a_full_upstream_is_passed_over_and_then_waited_for,
    whoever_waits_too_long_or_finds_the_line_full_is_refused,
    limits_that_make_no_sense_are_refused,
);

fn config(server: &Server, limit: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"up\"\n{limit}\n\
         [upstream.up]\naddress = \"{}\"\n",
        server.address()
    )
}

fn served(daemon: &Daemon) -> TcpStream {
    ask_name(daemon.address("in")).expect("served").1
}

fn turned_away(daemon: &Daemon) -> u64 {
    let status = daemon.status();
    named(&status, "listeners", "in")["closed"]["too-many-sessions"].as_u64().unwrap_or(0)
}

fn active(daemon: &Daemon) -> u64 {
    number(named(&daemon.status(), "listeners", "in"), &["active"])
}

fn a_full_listener_turns_clients_away_until_somebody_leaves(engine: Engine) {
    let server = Server::named(b'a');
    let daemon = Setup::new(engine).workers(1).start(&config(&server, "max_sessions = 3"));
    let mut held: Vec<TcpStream> = (0..3).map(|_| served(&daemon)).collect();
    for _ in 0..5 {
        assert_closed(&mut connect(daemon.address("in")));
    }
    eventually(PATIENCE, "they are counted", || turned_away(&daemon) == 5);
    let line = daemon.wait_line("a warning", |line| line.contains("turned away"));
    assert!(line.contains("WARN") && line.contains("127.0.0.1"), "{line}");
    assert_eq!(server.accepted(), 3, "nobody was troubled");
    held.pop();
    eventually(PATIENCE, "a place is free", || active(&daemon) == 2);
    held.push(served(&daemon));
    // A reload that raises the limit counts those that are there.
    daemon.reload(&config(&server, "max_sessions = 4")).expect("reloaded");
    held.push(served(&daemon));
    assert_closed(&mut connect(daemon.address("in")));
}

fn a_source_has_no_more_than_its_share(engine: Engine) {
    let server = Server::named(b'a');
    let daemon = Daemon::start(engine, &config(&server, "max_sessions_per_source = 2"));
    let held: Vec<TcpStream> = (0..2).map(|_| served(&daemon)).collect();
    assert_closed(&mut connect(daemon.address("in")));
    let mut other = connect_from("127.0.0.9:0", daemon.address("in"));
    assert_eq!(crate::harness::client::read_bytes(&mut other, 1), b"a", "another source has its own");
    // The count outlives a reload.
    daemon.reload(&config(&server, "max_sessions_per_source = 2\npeek = false")).expect("reloaded");
    assert_closed(&mut connect(daemon.address("in")));
    drop(held);
    eventually(PATIENCE, "its places are free", || ask_name(daemon.address("in")).is_some());
    assert!(turned_away(&daemon) >= 2);
}

fn more_new_sessions_than_may_begin_in_a_second_are_reset(engine: Engine) {
    let server = Server::named(b'a');
    for (limit, other_is_served) in
        [("max_new_per_second = 5", false), ("max_new_per_second_per_source = 5", true)]
    {
        let daemon = Daemon::start(engine, &config(&server, limit));
        let begin = Instant::now();
        let count =
            |clients: usize| (0..clients).filter(|_| ask_name(daemon.address("in")).is_some()).count();
        let served = count(40);
        let most = 5 + begin.elapsed().as_secs_f64().mul_add(5.0, 1.0) as usize;
        assert!((5..=most).contains(&served), "{limit}: {served} of 40, {most} at most");
        let other = connect_from("127.0.0.9:0", daemon.address("in")).read(&mut [0; 1]);
        assert_eq!(matches!(other, Ok(1)), other_is_served, "{limit}: {other:?}");
        eventually(PATIENCE, "time gives it back", || count(1) == 1);
        let status = daemon.status();
        let closed = &named(&status, "listeners", "in")["closed"]["too-many-new"];
        assert!(closed.as_u64().unwrap_or(0) >= 40 - served as u64, "{closed}");
    }
}

fn connect_from(source: &str, to: std::net::SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let source: std::net::SocketAddr = source.parse().expect("an address");
    socket.bind(&source.into()).expect("bound");
    socket.connect(&to.into()).expect("connected");
    let stream = TcpStream::from(socket);
    crate::harness::server::be_patient(&stream);
    stream
}

fn bytes_keep_to_their_rate_each_way(engine: Engine) {
    const BYTES: u64 = 3_000_000;
    let server = Server::new(|mut stream| {
        UP.read(&mut stream, BYTES, 65_536).assert(BYTES, End::Fin);
        DOWN.write(&mut stream, BYTES).unwrap();
    });
    // A second and a half up, three quarters down; less what may run ahead, and what sockets hold.
    let daemon = Daemon::start(engine, &config(&server, "rate_up = \"2MB\"\nrate_down = \"4MB\""));
    let mut stream = connect(daemon.address("in"));
    let begin = Instant::now();
    UP.write(&mut stream, BYTES).unwrap();
    assert_eq!(stream.read(&mut []).unwrap(), 0);
    let receipt = DOWN.read(&mut stream, 1, 1);
    let up = begin.elapsed();
    assert_eq!(receipt.wrong_at, None);
    assert!(up >= Duration::from_millis(1_300), "{up:?}");
    let begin = Instant::now();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() as u64 == BYTES - 1 && rest[..1000] == DOWN.head(1001)[1..]);
    let down = begin.elapsed();
    assert!(down >= Duration::from_millis(550), "{down:?}");
    assert!(up + down < Duration::from_secs(8), "{up:?} and {down:?}: no slower than asked for");
}

fn sessions_of_one_source_share_its_rate_evenly(engine: Engine) {
    let server = Server::new(|mut stream| {
        let _ = DOWN.write(&mut stream, u64::MAX);
    });
    let daemon = Setup::new(engine).workers(2).start(&config(&server, "rate_down_per_source = \"2MB\""));
    let address = daemon.address("in");
    let begin = Instant::now();
    let read = move |mut stream: TcpStream| {
        std::thread::spawn(move || {
            let mut bytes = 0u64;
            let mut buffer = vec![0; 65_536];
            while begin.elapsed() < Duration::from_millis(2_000) {
                bytes += stream.read(&mut buffer).unwrap() as u64;
            }
            bytes
        })
    };
    let ours: Vec<_> = (0..3).map(|_| read(connect(address))).collect();
    let other = read(connect_from("127.0.0.9:0", address));
    let ours: Vec<u64> = ours.into_iter().map(|reader| reader.join().unwrap()).collect();
    let (all, other) = (ours.iter().sum::<u64>(), other.join().unwrap());
    assert!((2_000_000..5_000_000).contains(&all), "{ours:?}");
    assert!(other > 2_000_000, "another source has a rate of its own: {other}");
    let (least, greatest) = (ours.iter().min().unwrap(), ours.iter().max().unwrap());
    assert!(*greatest < 2 * least, "{ours:?}");
}

fn who_leaves_and_comes_again_has_no_more_bytes_than_who_stays(engine: Engine) {
    const BYTES: u64 = 4_000;
    let server = Server::new(|mut stream| {
        let _ = DOWN.write(&mut stream, BYTES);
    });
    let daemon = Setup::new(engine).workers(2).start(&config(&server, "rate_down_per_source = \"16kB\""));
    let begin = Instant::now();
    for _ in 0..10 {
        DOWN.read_to_end(&mut connect(daemon.address("in"))).assert(BYTES, End::Fin);
    }
    // Two seconds and a half, less the last one's and what may run ahead.
    assert!(begin.elapsed() >= Duration::from_millis(2_150), "{:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

fn a_full_upstream_is_passed_over_and_then_waited_for(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let daemon = Daemon::start(
        engine,
        &format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"all\"\n\
             [group.all]\npolicy = \"failover\"\nattempts = 1\nmembers = [\"a\", \"b\"]\n\
             [upstream.a]\naddress = \"{}\"\nmax_sessions = 2\n[upstream.b]\naddress = \"{}\"\nmax_sessions = 1\n",
            a.address(),
            b.address()
        ),
    );
    let mut held: Vec<(u8, TcpStream)> =
        (0..3).map(|_| ask_name(daemon.address("in")).expect("served")).collect();
    assert_eq!(held.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [b'a', b'a', b'b']);
    // The fourth and the fifth wait, on whatever workers, and are served in turn as others leave.
    let mut waiting: Vec<TcpStream> = (0..2).map(|_| connect(daemon.address("in"))).collect();
    eventually(PATIENCE, "both have come", || active(&daemon) == 5);
    assert_eq!((a.accepted(), b.accepted()), (2, 1), "nobody was troubled");
    drop(held.remove(0));
    drop(held.remove(0));
    for stream in &mut waiting {
        let mut name = [0];
        stream.read_exact(&mut name).expect("served");
        assert_eq!(&name, b"a", "where the places became free");
    }
    drop((held, waiting));
    eventually(PATIENCE, "everybody is gone", || active(&daemon) == 0);
    let again: Vec<_> = (0..3).map(|_| ask_name(daemon.address("in")).expect("served").0).collect();
    assert_eq!(again.len(), 3);
}

fn whoever_waits_too_long_or_finds_the_line_full_is_refused(engine: Engine) {
    let server = Server::named(b'a');
    let config = |rest: &str| format!("{}max_sessions = 1\n{rest}", config(&server, ""));
    let daemon = Daemon::start(engine, &config("queue = 1\nqueue_timeout = \"700ms\"\n"));
    let held = served(&daemon);
    let begin = Instant::now();
    let mut first = connect(daemon.address("in"));
    eventually(PATIENCE, "it waits", || active(&daemon) == 2);
    let second = Instant::now();
    assert_closed(&mut connect(daemon.address("in")));
    assert!(second.elapsed() < Duration::from_millis(500), "a line that is full lets nobody wait");
    assert_closed(&mut first);
    assert!(begin.elapsed() >= Duration::from_millis(700), "{:?}", begin.elapsed());
    let full = |daemon: &Daemon| {
        let status = daemon.status();
        named(&status, "listeners", "in")["closed"]["upstream-full"].as_u64().unwrap_or(0)
    };
    eventually(PATIENCE, "they are counted", || full(&daemon) == 2);
    // A client that leaves the line holds no place in it; more places are there for those who wait.
    drop(connect(daemon.address("in")));
    eventually(PATIENCE, "it has gone, or has waited in vain", || active(&daemon) == 1);
    let patient = config("queue = 1\nqueue_timeout = \"30s\"\n");
    daemon.reload(&patient).unwrap();
    let mut waiting = connect(daemon.address("in"));
    eventually(PATIENCE, "another waits", || active(&daemon) == 2);
    daemon.reload(&patient.replace("max_sessions = 1", "max_sessions = 2")).unwrap();
    let mut name = [0];
    waiting.read_exact(&mut name).expect("served");
    drop(held);
}

fn limits_that_make_no_sense_are_refused(_engine: Engine) {
    let server = Server::named(b'a');
    for (limit, complaint) in [
        ("rate_up = \"10\"", "wants a number of bytes with its unit"),
        ("rate_up = \"10KB\"", "wants a number of bytes with its unit"),
        ("rate_up = \"fastMB\"", "is no whole number"),
        ("rate_down = \"1B\"", "is too slow"),
        ("max_new_per_second = 0", "max_new_per_second"),
        ("[upstream.x]\naddress = \"127.0.0.1:1\"\nqueue = 5", "beside max_sessions alone"),
    ] {
        let finished = check(&config(&server, limit));
        assert!(finished.code != 0 && finished.stderr.contains(complaint), "{limit}: {}", finished.stderr);
    }
}
