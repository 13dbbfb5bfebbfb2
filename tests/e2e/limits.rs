//! How many sessions a listener bears.

use std::net::TcpStream;

use crate::harness::client::{ask_name, assert_closed, connect};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::server::Server;
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    a_full_listener_turns_clients_away_until_somebody_leaves,
    a_source_has_no_more_than_its_share,
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
    let from = |source: &str| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let source: std::net::SocketAddr = source.parse().expect("an address");
        socket.bind(&source.into()).expect("bound");
        socket.connect(&daemon.address("in").into()).expect("connected");
        TcpStream::from(socket)
    };
    let mut other = from("127.0.0.9:0");
    crate::harness::server::be_patient(&other);
    assert_eq!(crate::harness::client::read_bytes(&mut other, 1), b"a", "another source has its own");
    // The count outlives a reload.
    daemon.reload(&config(&server, "max_sessions_per_source = 2\npeek = false")).expect("reloaded");
    assert_closed(&mut connect(daemon.address("in")));
    drop(held);
    eventually(PATIENCE, "its places are free", || ask_name(daemon.address("in")).is_some());
    assert!(turned_away(&daemon) >= 2);
}
