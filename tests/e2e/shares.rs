//! Many streams at once through one worker: none of them stands still while others move.
//!
//! `SHARES_ROUNDS` (1 if nothing is said) is how often each direction of each session must get on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::client::{assert_echo, connect};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::server::Server;
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::relay::to;

scenarios!(Alone:
    every_session_gets_on_while_many_stream_both_ways,
    every_session_gets_on_when_all_are_sealed,
    readers_that_stall_stop_nobody_else,
);

/// Each has two directions, each of which takes up to 16 buffers at a time: eight times what a turn can receive.
const SESSIONS: usize = 64;

/// What each direction moves in a round; several times what lies in the buffers of its sockets.
const ROUND_BYTES: u64 = 8 << 20;

/// What one read or write takes.
const PIECE_BYTES: usize = 64 * 1024;

/// How long nothing may have moved before all are taken to be full.
const SETTLED: Duration = Duration::from_millis(500);

const COPYING: &str = "[engine]\nsplice = \"off\"\n";

/// How much each direction of each session has moved: first all up, then all down.
type Tally = Arc<[AtomicU64]>;

fn every_session_gets_on_while_many_stream_both_ways(engine: Engine) {
    let (server, tally) = crowd();
    let config = format!("{COPYING}{}", to(server.address()));
    let daemon = Setup::new(engine).workers(1).start(&config);
    assert_all_get_on(daemon.address("in"), &tally);
}

fn every_session_gets_on_when_all_are_sealed(engine: Engine) {
    const SEALED: &str = "method = \"aes-128-gcm\"\npassword = \"secret\"\n";
    let (server, tally) = crowd();
    let far = Setup::new(engine).workers(1).start(&format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"shadowsocks\"\n{SEALED}target = \"direct\"\n"
    ));
    let near: Daemon = Setup::new(engine).workers(1).start(&format!(
        "{}via = \"tunnel\"\n[upstream.tunnel]\nkind = \"shadowsocks\"\naddress = \"{}\"\n{SEALED}",
        to(server.address()),
        far.address("in")
    ));
    assert_all_get_on(near.address("in"), &tally);
}

fn readers_that_stall_stop_nobody_else(engine: Engine) {
    /// Each holds 16 buffers, and a worker has 1024.
    const STALLED: usize = 100;
    static SAID: [u8; 100_000] = [7; 100_000];
    let (source, echo) = (Server::source(u64::MAX), Server::echo());
    let second = to(echo.address()).replace("\"in\"", "\"echo\"").replace("\"up\"", "\"back\"");
    let config =
        format!("{COPYING}{}{}", to(source.address()), second.replace("upstream.up", "upstream.back"));
    let daemon = Setup::new(engine).workers(1).start(&config);
    let stalled: Vec<TcpStream> = (0..STALLED).map(|_| connect(daemon.address("in"))).collect();
    // Nothing tells from outside that all their buffers are full, but that no more comes to be sent.
    let sent = || number(named(&daemon.status(), "listeners", "in"), &["bytes_down"]);
    let mut last = (0, Instant::now());
    eventually(PATIENCE, "all of them stall", || {
        let now = sent();
        if now != last.0 || now == 0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > SETTLED
    });
    assert_echo(&mut connect(daemon.address("echo")), &SAID);
    drop(stalled);
    assert_echo(&mut connect(daemon.address("echo")), &SAID);
}

/// A server that reads and writes without end, whose clients say first which of them they are.
fn crowd() -> (Server, Tally) {
    let tally: Tally = (0..2 * SESSIONS).map(|_| AtomicU64::new(0)).collect();
    let counts = Arc::clone(&tally);
    let server = Server::new(move |mut stream| {
        let mut number = [0];
        if stream.read_exact(&mut number).is_ok() {
            stream_both_ways(&stream, &counts, usize::from(number[0]));
        }
    });
    (server, tally)
}

#[track_caller]
fn assert_all_get_on(address: SocketAddr, tally: &Tally) {
    let rounds = std::env::var("SHARES_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number"));
    let clients: Vec<TcpStream> = (0..SESSIONS).map(|_| connect(address)).collect();
    thread::scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            let mut stream = client;
            scope.spawn(move || {
                if stream.write_all(&[number as u8]).is_ok() {
                    stream_both_ways(stream, tally, SESSIONS + number);
                }
            });
        }
        let moved = || tally.iter().map(|count| count.load(Ordering::Relaxed));
        let got_on = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..rounds {
                let before: Vec<u64> = moved().collect();
                let what = format!("each direction of each session gets on in round {round}, of {before:?}");
                eventually(PATIENCE, &what, || {
                    moved().zip(&before).all(|(now, before)| now >= before + ROUND_BYTES)
                });
            }
        }));
        for client in &clients {
            // It fails where the connection is gone already.
            let _ = client.shutdown(Shutdown::Both);
        }
        if let Err(panic) = got_on {
            eprintln!("moved: {:?}", moved().collect::<Vec<_>>());
            std::panic::resume_unwind(panic);
        }
    });
}

/// Until the connection is over.
fn stream_both_ways(stream: &TcpStream, tally: &[AtomicU64], lane: usize) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, piece) = (stream, [0; PIECE_BYTES]);
            while stream.write_all(&piece).is_ok() {}
        });
        let (mut stream, mut piece) = (stream, [0; PIECE_BYTES]);
        while let Ok(bytes @ 1..) = stream.read(&mut piece) {
            tally[lane].fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
}
