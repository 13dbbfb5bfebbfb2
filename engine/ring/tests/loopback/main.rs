//! The ring on real sockets of this machine.
#![cfg(target_os = "linux")]
// The lint's exception for tests covers functions marked as such, not the helpers of a test crate.
#![allow(clippy::unwrap_used)]

mod bundles;
mod cancel;
mod connections;
mod limits;
mod nonblocking;
mod pump;
mod waiting;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ringweir_ring::{Completion, Op, Ring, RingConfig, Token};

/// How long anything on loopback may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

fn ring(config: &RingConfig) -> Ring {
    Ring::new(config).unwrap()
}

/// A ring with bundles, small enough to go round often.
fn small() -> RingConfig {
    RingConfig {
        entries: 32,
        buffers: 64,
        buffer_bytes: 4096,
        ring_buffers: 16,
        receive_bundle: Ring::probe().unwrap().receive_bundle,
        busy_poll: None,
    }
}

fn token(op: Op, slot: u32) -> Token {
    Token::new(op, 1, slot, 3)
}

/// Two ends of a TCP connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.set_write_timeout(Some(PATIENCE)).unwrap();
    (near, far)
}

/// The next completion, waiting for it.
fn next(ring: &mut Ring) -> Completion {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = ring.next_completion() {
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion");
        ring.wait(Some(Duration::from_millis(100))).unwrap();
    }
}

/// Asserts that nothing more comes: every operation has ended once.
fn assert_quiet(ring: &mut Ring) {
    assert_eq!(ring.in_flight(), 0);
    ring.wait(Some(Duration::from_millis(20))).unwrap();
    let more = ring.next_completion();
    assert!(more.is_none(), "{more:?}");
}

/// Bytes of no short period.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Writes from a thread of its own, and ends the stream.
fn write_behind(mut stream: TcpStream, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || stream.write_all(&bytes).unwrap())
}
