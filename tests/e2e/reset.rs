//! Resets: passed on as resets, after what came before them.

use std::io::Write;
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;

use crate::harness::client::{assert_echo, connect, read_bytes, read_rest, socks_tunnel};
use crate::harness::daemon::Daemon;
use crate::harness::pattern::{DOWN, End, Receipt, UP};
use crate::harness::server::{self, Server};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::relay::to;

scenarios!(Welcome:
    an_upstreams_reset_reaches_the_client_after_its_data,
    a_clients_reset_reaches_the_upstream_after_its_data,
    an_upstreams_reset_in_mid_flow_reaches_the_client,
    a_clients_reset_in_mid_flow_reaches_the_upstream,
    a_reset_after_a_half_close_is_still_a_reset,
    a_reset_passes_through_a_tunnel,
);

/// What fits into the first window of a connection, so that it is delivered before the reset that follows.
const FIRST_WINDOW_BYTES: u64 = 16 * 1024;

fn an_upstreams_reset_reaches_the_client_after_its_data(engine: Engine) {
    let server = Server::new(|mut stream| {
        read_bytes(&mut stream, 2);
        DOWN.write(&mut stream, FIRST_WINDOW_BYTES).unwrap();
        server::reset(stream);
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    for _ in 0..20 {
        let mut client = connect(daemon.address("in"));
        client.write_all(b"go").unwrap();
        DOWN.read_to_end(&mut client).assert(FIRST_WINDOW_BYTES, End::Reset);
    }
    let closed = || number(named(&daemon.status(), "listeners", "in"), &["closed", "upstream-reset"]);
    eventually(PATIENCE, "the resets are counted", || closed() == 20);
}

fn a_clients_reset_reaches_the_upstream_after_its_data(engine: Engine) {
    let (sender, receipts) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        stream.write_all(b"go").unwrap();
        sender.send(UP.read_to_end(&mut stream)).unwrap();
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    for _ in 0..20 {
        let mut client = connect(daemon.address("in"));
        read_bytes(&mut client, 2);
        UP.write(&mut client, FIRST_WINDOW_BYTES).unwrap();
        server::reset(client);
        receipts.recv_timeout(PATIENCE).unwrap().assert(FIRST_WINDOW_BYTES, End::Reset);
    }
    let closed = || number(named(&daemon.status(), "listeners", "in"), &["closed", "client-reset"]);
    eventually(PATIENCE, "the resets are counted", || closed() == 20);
}

/// A socket tells of a reset once: to the reader or to the writer, whoever asks first.
#[track_caller]
fn assert_reset_once(read: &Receipt, written: End) {
    assert_eq!(read.wrong_at, None);
    assert!(read.end == End::Reset || written == End::Reset, "{read:?}, writing ended by {written:?}");
}

fn an_upstreams_reset_in_mid_flow_reaches_the_client(engine: Engine) {
    const BYTES: u64 = 8 << 20;
    let server = Server::new(|mut stream| {
        DOWN.write(&mut stream, BYTES).unwrap();
        server::reset(stream);
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    let mut sink = client.try_clone().unwrap();
    // Both directions are busy when it comes; this one ends with an error, then.
    let writing = thread::spawn(move || UP.write(&mut sink, u64::MAX));
    let receipt = DOWN.read_to_end(&mut client);
    let failure = writing.join().unwrap().expect_err("nobody takes the bytes");
    assert_reset_once(&receipt, End::of(&failure));
}

fn a_clients_reset_in_mid_flow_reaches_the_upstream(engine: Engine) {
    const BYTES: u64 = 8 << 20;
    let (sender, receipts) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        let mut sink = stream.try_clone().unwrap();
        let writing = server::spawn(move || DOWN.write(&mut sink, u64::MAX));
        let receipt = UP.read_to_end(&mut stream);
        sender.send((receipt, writing.join().unwrap().expect_err("nobody takes the bytes"))).unwrap();
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    UP.write(&mut client, BYTES).unwrap();
    server::reset(client);
    let (receipt, failure) = receipts.recv_timeout(PATIENCE).unwrap();
    assert_reset_once(&receipt, End::of(&failure));
}

fn a_reset_after_a_half_close_is_still_a_reset(engine: Engine) {
    let server = Server::new(|mut stream| {
        let _ = UP.read_to_end(&mut stream);
        stream.write_all(b"half an answer").unwrap();
        server::reset(stream);
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_rest(&mut client), (b"half an answer".to_vec(), End::Reset));
}

fn a_reset_passes_through_a_tunnel(engine: Engine) {
    let (sender, ends) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        stream.write_all(b"hello").unwrap();
        sender.send(read_rest(&mut stream)).unwrap();
    });
    let daemon = Daemon::start(
        engine,
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\ntarget = \"direct\"\n",
    );
    let mut client = socks_tunnel(daemon.address("in"), server.address());
    assert_eq!(read_bytes(&mut client, 5), b"hello");
    client.write_all(b"bye").unwrap();
    server::reset(client);
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), (b"bye".to_vec(), End::Reset));

    let echo = Server::new(|stream| {
        let mut stream = stream;
        read_bytes(&mut stream, 3);
        server::reset(stream);
    });
    let mut client = socks_tunnel(daemon.address("in"), echo.address());
    client.write_all(b"now").unwrap();
    assert_eq!(read_rest(&mut client), (Vec::new(), End::Reset));
    // The daemon lives on.
    let plain = Server::echo();
    assert_echo(&mut socks_tunnel(daemon.address("in"), plain.address()), b"alive");
}
