//! Plain forwarding: exact bytes, half-close, bulk, many sessions, Unix sockets, slow readers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::harness::client::{assert_echo, connect, connect_narrow, connect_unix, read_bytes, read_rest};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::pattern::{DOWN, End, UP};
use crate::harness::proc::own_memory_kib;
use crate::harness::server::{Server, be_patient, unix_echo};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, assert_took, eventually, scenarios};

scenarios!(Welcome:
    a_client_that_half_closes_gets_the_whole_answer,
    an_upstream_that_half_closes_gets_the_whole_request,
    everything_sent_before_a_close_arrives,
    an_upstream_that_closes_at_once_loses_nothing,
    unix_sockets_serve_on_both_sides,
    an_upstream_may_be_a_name,
    small_messages_in_lockstep_stay_exact,
    both_directions_stream_at_once,
);

mod alone {
    use super::*;
    scenarios!(Alone:
        a_gigabyte_each_way_is_exact,
        a_thousand_sessions_answer_at_once,
        a_stalled_reader_costs_one_sessions_buffers,
        a_dribbling_reader_gets_every_byte,
        an_idle_session_ends_at_the_idle_timeout,
        a_half_closed_session_ends_at_the_half_close_timeout,
    );
}

/// A `tcp` listener called `in` that leads to one upstream.
pub(crate) fn to(upstream: SocketAddr) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"up\"\n\
         [upstream.up]\naddress = \"{upstream}\"\n"
    )
}

fn a_client_that_half_closes_gets_the_whole_answer(engine: Engine) {
    const ANSWER_BYTES: u64 = 300_000;
    let (sender, requests) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        // Answers only once the request has ended.
        sender.send(UP.read_to_end(&mut stream)).unwrap();
        DOWN.write(&mut stream, ANSWER_BYTES).unwrap();
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    UP.write(&mut client, 5000).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    DOWN.read_to_end(&mut client).assert(ANSWER_BYTES, End::Fin);
    requests.recv_timeout(PATIENCE).unwrap().assert(5000, End::Fin);
}

fn an_upstream_that_half_closes_gets_the_whole_request(engine: Engine) {
    const REQUEST_BYTES: u64 = 300_000;
    let (sender, requests) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        DOWN.write(&mut stream, 5000).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        sender.send(UP.read_to_end(&mut stream)).unwrap();
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    DOWN.read_to_end(&mut client).assert(5000, End::Fin);
    UP.write(&mut client, REQUEST_BYTES).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    requests.recv_timeout(PATIENCE).unwrap().assert(REQUEST_BYTES, End::Fin);
}

fn everything_sent_before_a_close_arrives(engine: Engine) {
    const BYTES: u64 = 4_000_000;
    let (server, receipts) = Server::sink();
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    UP.write(&mut client, BYTES).unwrap();
    drop(client);
    receipts.recv_timeout(PATIENCE).unwrap().assert(BYTES, End::Fin);
}

fn an_upstream_that_closes_at_once_loses_nothing(engine: Engine) {
    const BYTES: u64 = 4_000_000;
    let server = Server::new(|mut stream| drop(DOWN.write(&mut stream, BYTES)));
    let daemon = Daemon::start(engine, &to(server.address()));
    DOWN.read_to_end(&mut connect(daemon.address("in"))).assert(BYTES, End::Fin);
}

fn unix_sockets_serve_on_both_sides(engine: Engine) {
    let setup = Setup::new(engine);
    let accepted = unix_echo(&setup.folder().join("app.sock"));
    let daemon = setup.start(
        "[[listener]]\nname = \"in\"\nbind = [\"unix:@dir@/in.sock\", \"127.0.0.1:0\"]\nprotocol = \"tcp\"\n\
         target = \"app\"\n[upstream.app]\naddress = \"unix:@dir@/app.sock\"\n",
    );
    daemon.wait_line("the Unix bind", |line| {
        line.contains("listening") && line.contains("name=in") && line.contains("in.sock")
    });
    let mut client = connect_unix(&daemon.path("in.sock"));
    assert_echo(&mut client, UP.head(200_000));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_rest(&mut client), (Vec::new(), End::Fin));

    daemon.wait_line("the TCP bind", |line| line.contains("listening") && line.contains("127.0.0.1:"));
    let port = daemon.text().lines().find_map(|line| {
        let (_, rest) = line.split_once("address=127.0.0.1:")?;
        rest.split_whitespace().next()?.parse::<u16>().ok()
    });
    let mut client = connect(SocketAddr::from(([127, 0, 0, 1], port.unwrap())));
    assert_echo(&mut client, UP.head(200_000));
    assert_eq!(accepted.load(std::sync::atomic::Ordering::SeqCst), 2);
}

fn an_upstream_may_be_a_name(engine: Engine) {
    let server = Server::echo();
    let config = to(server.address()).replace("address = \"127.0.0.1:", "address = \"localhost:");
    assert!(config.contains("localhost"));
    let daemon = Daemon::start(engine, &config);
    // The name may be resolved a moment after the daemon is ready.
    eventually(PATIENCE, "localhost is resolved", || crate::harness::client::is_served(daemon.address("in")));
}

fn small_messages_in_lockstep_stay_exact(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    for bytes in (1..400).chain([4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537]) {
        assert_echo(&mut client, UP.head(bytes));
    }
}

fn both_directions_stream_at_once(engine: Engine) {
    const BYTES: u64 = 32 * 1024 * 1024;
    let (sender, receipts) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        let mut sink = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            DOWN.write(&mut sink, BYTES).unwrap();
            sink.shutdown(Shutdown::Write).unwrap();
        });
        sender.send(UP.read_to_end(&mut stream)).unwrap();
        writing.join().unwrap();
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    let mut sink = client.try_clone().unwrap();
    let writing = thread::spawn(move || {
        UP.write(&mut sink, BYTES).unwrap();
        sink.shutdown(Shutdown::Write).unwrap();
    });
    DOWN.read_to_end(&mut client).assert(BYTES, End::Fin);
    writing.join().unwrap();
    receipts.recv_timeout(PATIENCE).unwrap().assert(BYTES, End::Fin);
    let count = |key| number(named(&daemon.status(), "listeners", "in"), &[key]);
    eventually(PATIENCE, "both directions are counted", || {
        count("bytes_up") == BYTES && count("bytes_down") == BYTES
    });
}

fn a_gigabyte_each_way_is_exact(engine: Engine) {
    const BYTES: u64 = 1 << 30;
    let (sink, receipts) = Server::sink();
    let source = Server::source(BYTES);
    let up = Daemon::start(engine, &to(sink.address()));
    let mut client = connect(up.address("in"));
    UP.write(&mut client, BYTES).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    receipts.recv_timeout(PATIENCE).unwrap().assert(BYTES, End::Fin);
    drop(up);

    let down = Daemon::start(engine, &to(source.address()));
    DOWN.read_to_end(&mut connect(down.address("in"))).assert(BYTES, End::Fin);
}

fn a_thousand_sessions_answer_at_once(engine: Engine) {
    const SESSIONS: usize = 1000;
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    let address = daemon.address("in");
    let mut clients: Vec<TcpStream> = (0..SESSIONS).map(|_| connect(address)).collect();
    let message = |round: usize, index: usize| format!("round {round} session {index:4}").into_bytes();
    for round in 0..3 {
        for (index, client) in clients.iter_mut().enumerate() {
            client.write_all(&message(round, index)).unwrap();
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let expected = message(round, index);
            assert_eq!(read_bytes(client, expected.len()), expected, "session {index}");
        }
    }
    let active = || number(named(&daemon.status(), "listeners", "in"), &["active"]);
    assert_eq!(active(), SESSIONS as u64);
    drop(clients);
    eventually(PATIENCE, "every session has ended", || active() == 0);
}

fn a_stalled_reader_costs_one_sessions_buffers(engine: Engine) {
    const TOTAL_BYTES: u64 = 256 << 20;
    const GROWTH_KIB: u64 = 256;
    let source = Server::source(TOTAL_BYTES);
    let echo = Server::echo();
    let config = to(source.address())
        + &format!(
            "[[listener]]\nname = \"echo\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"echo\"\n\
             [upstream.echo]\naddress = \"{}\"\n",
            echo.address()
        );
    let daemon = Setup::new(engine).workers(1).start(&config);
    // Warm: whatever is touched once for all sessions is touched now.
    for _ in 0..4 {
        let warm = DOWN.read(&mut connect(daemon.address("in")), 8 << 20, 64 * 1024);
        warm.assert(8 << 20, End::Fin);
    }
    let mut other = connect(daemon.address("echo"));
    assert_echo(&mut other, UP.head(64 * 1024));
    let received = || number(named(&daemon.status(), "listeners", "in"), &["bytes_down"]);
    let active = || number(named(&daemon.status(), "listeners", "in"), &["active"]);
    eventually(PATIENCE, "the warm sessions have ended", || active() == 0);

    let before_kib = own_memory_kib(daemon.pid());
    let mut stalled = connect(daemon.address("in"));
    DOWN.read(&mut stalled, 1000, 1000).assert(1000, End::Fin);
    // Once two looks see the same count, every buffer on the way is full.
    let mut last = u64::MAX;
    eventually(PATIENCE, "the stalled session stands still", || {
        crate::harness::observe_for(Duration::from_millis(100));
        std::mem::replace(&mut last, received()) == last
    });
    let growth_kib = own_memory_kib(daemon.pid()).saturating_sub(before_kib);
    // The allocator and the admin endpoint that was asked meanwhile take a few pages.
    assert!(growth_kib <= GROWTH_KIB + 128, "{growth_kib} KiB for one stalled reader");

    let begin = Instant::now();
    const ROUNDS: u32 = 200;
    for _ in 0..ROUNDS {
        assert_echo(&mut other, b"still quick?");
    }
    let each = begin.elapsed() / ROUNDS;
    assert!(each < Duration::from_millis(5), "{each:?} for each round beside a stalled reader");
}

fn a_dribbling_reader_gets_every_byte(engine: Engine) {
    // A send buffer below one segment of loopback stalls in the kernel, behind any forwarder: 64 MB through 4 KiB take
    // half a minute, of which the daemon sleeps nearly all.
    for (send_buffer_bytes, total_bytes) in [(4096, 4_000_000), (48 * 1024, 64_000_000)] {
        let server = Server::new(move |mut stream| {
            SockRef::from(&stream).set_send_buffer_size(send_buffer_bytes).unwrap();
            if DOWN.write(&mut stream, total_bytes).is_ok() {
                stream.shutdown(Shutdown::Write).unwrap();
                let _ = read_rest(&mut stream);
            }
        });
        let daemon = Daemon::start(engine, &to(server.address()));
        let mut client = connect_narrow(daemon.address("in"), 16 * 1024);
        let mut dribble = Dribble { stream: &mut client, step: 0 };
        DOWN.read_to_end(&mut dribble).assert(total_bytes, End::Fin);
    }
}

/// Reads in small pieces of ever changing size.
struct Dribble<'a> {
    stream: &'a mut TcpStream,
    step: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        const MOST_BYTES: usize = 8191;
        self.step += 1;
        let most = (self.step * 2503 % MOST_BYTES + 1).min(buffer.len());
        self.stream.read(&mut buffer[..most])
    }
}

fn an_idle_session_ends_at_the_idle_timeout(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &format!("[timeouts]\nidle = \"1s\"\n{}", to(server.address())));
    let mut client = connect(daemon.address("in"));
    // Traffic in between puts the end off.
    for _ in 0..3 {
        crate::harness::observe_for(Duration::from_millis(500));
        assert_echo(&mut client, b"not idle");
    }
    let begin = Instant::now();
    let (rest, end) = read_rest(&mut client);
    assert!(rest.is_empty() && end != End::Silence, "{end:?}");
    assert_took(begin.elapsed(), Duration::from_secs(1), Duration::from_millis(300));
    let closed = |reason| number(named(&daemon.status(), "listeners", "in"), &["closed", reason]);
    eventually(PATIENCE, "it is counted", || closed("idle-timeout") == 1);
}

fn a_half_closed_session_ends_at_the_half_close_timeout(engine: Engine) {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    // Reads the request to its end and then says nothing.
    let server = Server::new(move |mut stream| {
        be_patient(&stream);
        let _ = UP.read_to_end(&mut stream);
        let _ = held.lock().unwrap().recv();
    });
    let daemon = Daemon::start(engine, &format!("[timeouts]\nhalf_close = \"1s\"\n{}", to(server.address())));
    let mut client = connect(daemon.address("in"));
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let begin = Instant::now();
    let (rest, end) = read_rest(&mut client);
    assert!(rest.is_empty() && end != End::Silence, "{end:?}");
    assert_took(begin.elapsed(), Duration::from_secs(1), Duration::from_millis(300));
    let closed = |reason| number(named(&daemon.status(), "listeners", "in"), &["closed", reason]);
    eventually(PATIENCE, "it is counted", || closed("half-close-timeout") == 1);
    drop(release);
}
