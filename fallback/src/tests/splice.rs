//! Streams through pipes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use ringweir_flow::account::Counter;
use ringweir_flow::account::ListenerCell;
use ringweir_flow::close::CloseReason;
use ringweir_flow::snapshot::{Protocol, Upstream};
use ringweir_flow::way::{Refusal, Splicing};

use super::closed;
use super::world::{
    World, accept, connect, connect_with_small_window, pattern, read_exactly, read_to_end, read_to_reset,
    reset, upstream, wait_until,
};

/// From here on a receive is one of a stream. Little, so that one write is one receive.
const STREAMING: usize = 1000;

/// Two of them in a row, and the third goes through a pipe.
const WARM_UP: usize = 2 * STREAMING;

/// More than a pipe, and the kernel on behalf of a client with a small window, can hold.
const MUCH: usize = 6_000_000;

/// Nothing moves for so long when everything is full.
const STANDSTILL: Duration = Duration::from_millis(50);

fn world(upstream: Upstream) -> World {
    let mut world = World::new(Protocol::Tcp, upstream);
    world.splicing = Splicing::From(STREAMING);
    world
}

fn sum(world: &World, counter: impl Fn(&ListenerCell) -> &Counter) -> u64 {
    world.listener.sum(counter)
}

fn refused(world: &World) -> u64 {
    sum(world, |cell| &cell.ways.refused[Refusal::Budget.index()])
}

/// A session whose pump runs: what a client sends earlier than that is no receive of the pump's.
fn open(mut client: TcpStream, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut upstream = accept(listener);
    pass(&mut upstream, &mut client, 1);
    (client, upstream)
}

/// Sends a piece and waits until it is there, so that the next is another receive.
fn pass(from: &mut impl Write, to: &mut impl Read, bytes: usize) {
    from.write_all(&pattern(bytes)).unwrap();
    assert!(read_exactly(to, bytes) == pattern(bytes));
}

fn begin_streaming(from: &mut impl Write, to: &mut impl Read) {
    pass(from, to, STREAMING);
    pass(from, to, STREAMING);
}

/// A session that streams down to a client who reads nothing for now, until not even the pipe takes more: the client,
/// and the upstream, to which what it is told to is done while it cannot get rid of the rest.
fn stalled(world: &mut World, listener: &TcpListener, bytes: usize) -> (TcpStream, TcpStream) {
    let address = world.add_bind(1);
    let (mut client, mut upstream) = open(connect_with_small_window(address), listener);
    let (piped, delivered) = (sum(world, |cell| &cell.ways.piped_down), sum(world, |cell| &cell.bytes_down));
    begin_streaming(&mut upstream, &mut client);
    upstream.write_all(&pattern(bytes)).unwrap();
    let in_pipe = || {
        let delivered = sum(world, |cell| &cell.bytes_down) - delivered - WARM_UP as u64;
        (sum(world, |cell| &cell.ways.piped_down) - piped).saturating_sub(delivered)
    };
    let mut seen = (in_pipe(), Instant::now());
    wait_until(|| {
        let now = in_pipe();
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        // Nobody tells that a socket takes no more.
        now > 0 && seen.1.elapsed() > STANDSTILL
    });
    (client, upstream)
}

#[test]
fn a_stream_goes_through_a_pipe() {
    let (listener, upstream) = upstream();
    let (world, address) = World::with_bind(Protocol::Tcp, upstream);
    let (mut client, mut upstream) = open(connect(address), &listener);
    let sender = std::thread::spawn(move || client.write_all(&pattern(36_000_000)).unwrap());
    assert!(read_to_end(&mut upstream) == pattern(36_000_000));
    sender.join().unwrap();
    assert!(sum(&world, |cell| &cell.ways.to_pipe) >= 1);
    let piped = sum(&world, |cell| &cell.ways.piped_up);
    assert!(piped > 16_000_000, "{piped} bytes only");
    assert_eq!(sum(&world, |cell| &cell.ways.piped_down), 0);
}

#[test]
fn every_byte_arrives_through_changes_of_the_way() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    let address = world.add_bind(1);
    let (mut client, mut upstream) = open(connect(address), &listener);
    for round in 1..=20 {
        begin_streaming(&mut client, &mut upstream);
        // Through the pipe, the other direction and small pieces meanwhile included.
        for bytes in [3 * STREAMING, STREAMING, 1, STREAMING] {
            pass(&mut client, &mut upstream, bytes);
            pass(&mut upstream, &mut client, 10);
        }
        assert_eq!(sum(&world, |cell| &cell.ways.to_pipe), round);
        for _ in 0..8 {
            pass(&mut client, &mut upstream, 7);
        }
        assert_eq!(sum(&world, |cell| &cell.ways.to_buffer), round);
    }
    assert_eq!(sum(&world, |cell| &cell.ways.piped_up), 20 * (5 * STREAMING as u64 + 1 + 8 * 7));
    assert_eq!(sum(&world, |cell| &cell.ways.piped_down), 0);
}

#[test]
fn unix_sockets_are_spliced_as_well() {
    let folder = std::env::temp_dir().join(format!("ringweir-fallback-splice-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (inside, outside) = (folder.join("in"), folder.join("out"));
    let listener = UnixListener::bind(&outside).unwrap();
    let mut world = world(Upstream::Unix(outside.as_path().into()));
    world.add_socket(UnixListener::bind(&inside).unwrap().into());
    let mut client = UnixStream::connect(&inside).unwrap();
    let mut upstream = listener.accept().unwrap().0;
    begin_streaming(&mut client, &mut upstream);
    begin_streaming(&mut upstream, &mut client);
    let sender = std::thread::spawn(move || {
        client.write_all(&pattern(MUCH)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let mut bytes = Vec::new();
    upstream.read_to_end(&mut bytes).unwrap();
    assert!(bytes == pattern(MUCH));
    let mut client = sender.join().unwrap();
    pass(&mut upstream, &mut client, 5 * STREAMING);
    assert!(sum(&world, |cell| &cell.ways.piped_up) > MUCH as u64 / 2);
    assert!(sum(&world, |cell| &cell.ways.piped_down) > 0);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_half_close_comes_after_what_is_in_the_pipe() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    let (mut client, mut upstream) = stalled(&mut world, &listener, MUCH);
    upstream.shutdown(Shutdown::Write).unwrap();
    pass(&mut client, &mut upstream, 100);
    assert!(read_to_end(&mut client) == pattern(MUCH));
    pass(&mut client, &mut upstream, 3 * STREAMING);
    drop(client);
    assert!(read_to_end(&mut upstream).is_empty());
    wait_until(|| closed(&world, CloseReason::Finished) == 1);
}

#[test]
fn a_reset_comes_after_what_is_in_the_pipe() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    let (mut client, upstream) = stalled(&mut world, &listener, MUCH);
    let piped = usize::try_from(sum(&world, |cell| &cell.ways.piped_down)).unwrap();
    reset(upstream);
    let arrived = read_to_reset(&mut client);
    assert!(pattern(MUCH).starts_with(&arrived));
    // A reset discards what the one who resets has not sent yet, and nothing else.
    assert!(arrived.len() >= piped, "{} bytes of {piped}", arrived.len());
    wait_until(|| closed(&world, CloseReason::UpstreamReset) == 1);
}

#[test]
fn a_client_that_resets_with_bytes_in_the_pipe_ends_the_session() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    let (client, mut upstream) = stalled(&mut world, &listener, MUCH);
    reset(client);
    wait_until(|| closed(&world, CloseReason::ClientReset) == 1);
    assert!(read_to_reset(&mut upstream).is_empty());
    assert_eq!(sum(&world, |cell| &cell.active), 0);
}

#[test]
fn a_slow_reader_keeps_the_only_pipe_and_others_are_copied_meanwhile() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    world.pipes = Some(1);
    // By the first worker, which gets the clients of a single socket first.
    let (mut slow, mut slow_upstream) = stalled(&mut world, &listener, MUCH);
    assert_eq!(refused(&world), 0);
    let address = world.add_bind(1);
    let (mut client, mut upstream) = open(connect(address), &listener);
    let piped = sum(&world, |cell| &cell.ways.piped_up);
    let sender = std::thread::spawn(move || {
        client.write_all(&pattern(MUCH)).unwrap();
        client
    });
    assert!(read_exactly(&mut upstream, MUCH) == pattern(MUCH));
    let mut client = sender.join().unwrap();
    assert!(refused(&world) > 0);
    assert_eq!(sum(&world, |cell| &cell.ways.piped_up), piped, "there is one pipe");
    assert!(read_exactly(&mut slow, MUCH) == pattern(MUCH));
    pass(&mut slow_upstream, &mut slow, 3 * STREAMING);
    // The same worker has it to give again.
    begin_streaming(&mut client, &mut upstream);
    pass(&mut client, &mut upstream, STREAMING);
    assert!(sum(&world, |cell| &cell.ways.piped_up) > piped);
}

#[test]
fn no_pipe_is_used_where_there_are_to_be_none() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    world.pipes = Some(0);
    let address = world.add_bind(1);
    let (mut client, mut upstream) = open(connect(address), &listener);
    begin_streaming(&mut client, &mut upstream);
    pass(&mut client, &mut upstream, 3 * STREAMING);
    assert_eq!(refused(&world), 1);
    assert_eq!(sum(&world, |cell| &cell.ways.piped_up), 0);
}

#[test]
fn no_descriptor_is_left_behind() {
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "tests::splice::descriptors_of_a_life"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// In a process of its own: the other tests open descriptors as well.
#[test]
#[ignore = "another test starts it where nothing else runs"]
fn descriptors_of_a_life() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // What a process opens once stays: tokio's socket pair for signals, where something in the build asks for them.
    live();
    let before = open();
    live();
    assert_eq!(open(), before);
}

/// A whole life, from the first listener to the end of the workers.
fn live() {
    let (listener, upstream) = upstream();
    let mut world = world(upstream);
    for round in 0..8 {
        let (mut client, upstream) = stalled(&mut world, &listener, MUCH);
        match round % 4 {
            0 => reset(client),
            1 => drop(upstream),
            2 => drop((client, upstream)),
            _ => {
                drop(upstream);
                assert!(read_to_end(&mut client) == pattern(MUCH));
            }
        }
    }
    world.stop();
}
