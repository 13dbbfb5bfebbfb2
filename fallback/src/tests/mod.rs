//! Sessions on real sockets.

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(target_os = "linux")]
mod splice;
mod world;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use ringweir_flow::close::CloseReason;
use ringweir_flow::snapshot::{Protocol, Upstream};

use self::world::{
    SOCKETS, World, accept, connect, connect_with_small_window, pattern, read_exactly, read_to_end,
    read_to_reset, reset, upstream, wait_until,
};

/// A world and a session in it: driver, client, upstream.
fn session() -> (World, TcpStream, TcpStream) {
    let (listener, upstream) = upstream();
    let (world, address) = World::with_bind(Protocol::Tcp, upstream);
    let client = connect(address);
    (world, client, accept(&listener))
}

fn closed(world: &World, reason: CloseReason) -> u64 {
    world.listener.sum(|cell| &cell.closed[reason.index()])
}

#[test]
fn bytes_go_both_ways_and_the_ends_are_passed_on() {
    let (world, mut client, mut upstream) = session();
    for round in 1..=50 {
        client.write_all(&pattern(round)).unwrap();
        assert_eq!(read_exactly(&mut upstream, round), pattern(round));
        upstream.write_all(&pattern(round * 3)).unwrap();
        assert_eq!(read_exactly(&mut client, round * 3), pattern(round * 3));
    }
    drop(client);
    assert!(read_to_end(&mut upstream).is_empty());
    drop(upstream);
    wait_until(|| closed(&world, CloseReason::Finished) == 1);
    assert_eq!(world.target.sum(|cell| &cell.bytes_up), 50 * 51 / 2);
    assert_eq!(world.target.sum(|cell| &cell.bytes_down), 3 * 50 * 51 / 2);
    assert_eq!(world.target.sum(|cell| &cell.active), 0);
}

#[test]
fn an_answer_comes_after_the_client_has_ended_its_side() {
    let (_world, mut client, mut upstream) = session();
    client.write_all(&pattern(300_000)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&mut upstream) == pattern(300_000));
    upstream.write_all(&pattern(300_000)).unwrap();
    drop(upstream);
    assert!(read_to_end(&mut client) == pattern(300_000));
}

#[test]
fn a_client_goes_on_after_the_upstream_has_ended_its_side() {
    let (_world, mut client, mut upstream) = session();
    upstream.write_all(&pattern(300_000)).unwrap();
    upstream.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&mut client) == pattern(300_000));
    client.write_all(&pattern(300_000)).unwrap();
    drop(client);
    assert!(read_to_end(&mut upstream) == pattern(300_000));
}

#[test]
fn four_megabytes_arrive_though_the_sender_closes_at_once() {
    let (_world, client, mut upstream) = session();
    let sender = std::thread::spawn(move || {
        let mut client = client;
        client.write_all(&pattern(4_000_000)).unwrap();
    });
    assert!(read_to_end(&mut upstream) == pattern(4_000_000));
    sender.join().unwrap();
}

#[test]
fn a_reset_of_the_client_is_passed_on() {
    let (world, mut client, mut upstream) = session();
    client.write_all(b"last words").unwrap();
    assert_eq!(read_exactly(&mut upstream, 10), b"last words");
    reset(client);
    assert!(read_to_reset(&mut upstream).is_empty());
    wait_until(|| closed(&world, CloseReason::ClientReset) == 1);
}

#[test]
fn a_reset_of_the_upstream_is_passed_on_after_what_came_before_it() {
    const BYTES: usize = 100_000;
    let (listener, upstream) = upstream();
    let (world, address) = World::with_bind(Protocol::Tcp, upstream);
    let mut client = connect_with_small_window(address);
    let mut upstream = accept(&listener);
    upstream.write_all(&pattern(BYTES)).unwrap();
    // Everything waits to be sent to a client that does not read yet.
    wait_until(|| world.target.sum(|cell| &cell.bytes_down) == BYTES as u64);
    reset(upstream);
    wait_until(|| closed(&world, CloseReason::UpstreamReset) == 1);
    assert!(read_to_reset(&mut client) == pattern(BYTES));
}

#[test]
fn a_stalled_reader_does_not_stop_the_other_direction() {
    let (world, mut client, mut upstream) = session();
    let full = std::thread::spawn({
        let mut client = client.try_clone().unwrap();
        move || client.write_all(&pattern(16_000_000))
    });
    wait_until(|| world.target.sum(|cell| &cell.bytes_up) > 100_000);
    for _ in 0..20 {
        upstream.write_all(b"tick").unwrap();
        assert_eq!(read_exactly(&mut client, 4), b"tick");
    }
    assert!(read_exactly(&mut upstream, 16_000_000) == pattern(16_000_000));
    full.join().unwrap().unwrap();
}

#[test]
fn a_client_is_reset_when_the_upstream_refuses() {
    let (listener, upstream) = upstream();
    drop(listener);
    let (world, address) = World::with_bind(Protocol::Tcp, upstream);
    assert!(read_to_reset(&mut connect(address)).is_empty());
    assert_eq!(closed(&world, CloseReason::ConnectFailed), 1);
}

#[test]
fn a_session_ends_when_nothing_flows_for_the_idle_timeout() {
    let (listener, upstream) = upstream();
    let mut world = World::new(Protocol::Tcp, upstream);
    world.timeouts.idle = Duration::from_millis(150);
    let mut client = connect(world.add_bind(SOCKETS));
    let mut upstream = accept(&listener);
    let begun = Instant::now();
    let mut last = begun;
    // Each byte puts the end off.
    while begun.elapsed() < Duration::from_millis(300) {
        last = Instant::now();
        client.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&mut upstream, 1), b"x");
    }
    assert!(read_to_end(&mut client).is_empty());
    assert!(last.elapsed() >= Duration::from_millis(149), "{:?}", last.elapsed());
    wait_until(|| closed(&world, CloseReason::IdleTimeout) == 1);
}

#[test]
fn a_silent_client_is_closed_at_the_handshake_timeout() {
    let mut world = World::new(Protocol::Socks5, Upstream::Direct);
    world.timeouts.handshake = Duration::from_millis(100);
    let mut client = connect(world.add_bind(SOCKETS));
    let begun = Instant::now();
    client.write_all(&[5]).unwrap();
    assert!(read_to_end(&mut client).is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(90), "{:?}", begun.elapsed());
    wait_until(|| closed(&world, CloseReason::HandshakeTimeout) == 1);
}

#[test]
fn a_name_is_resolved_and_dialled_for_a_socks5_client() {
    let (listener, _) = upstream();
    let port = listener.local_addr().unwrap().port().to_be_bytes();
    let (_world, address) = World::with_bind(Protocol::Socks5, Upstream::Direct);
    let mut client = connect(address);
    // Greeting, request and payload in one piece.
    let request = [b"\x05\x01\x00\x05\x01\x00\x03\x09here.test", &port[..], b"early"].concat();
    client.write_all(&request).unwrap();
    let mut upstream = accept(&listener);
    assert_eq!(read_exactly(&mut upstream, 5), b"early");
    upstream.write_all(b"late").unwrap();
    assert_eq!(read_exactly(&mut client, 5)[..], [5, 0, 5, 0, 0]);
    let bound = read_exactly(&mut client, 7);
    assert_eq!(bound[..5], [1, 127, 0, 0, 1]);
    assert_eq!(bound[5..], upstream.peer_addr().unwrap().port().to_be_bytes(), "what we dialled from");
    assert_eq!(read_exactly(&mut client, 4), b"late");
}

#[test]
fn a_name_that_nobody_knows_is_refused_in_words() {
    let (world, address) = World::with_bind(Protocol::Socks5, Upstream::Direct);
    let mut client = connect(address);
    for byte in b"\x05\x01\x00\x05\x01\x00\x03\x08not.test\x00\x50" {
        client.write_all(&[*byte]).unwrap();
    }
    let answer = read_to_end(&mut client);
    assert_eq!(answer[..3], [5, 0, 5]);
    assert_ne!(answer[3], 0, "a success");
    drop(client);
    wait_until(|| closed(&world, CloseReason::ResolveFailed) == 1);
}

#[test]
fn clients_of_a_shared_socket_are_dealt_out_to_every_worker() {
    let (listener, upstream) = upstream();
    let mut world = World::new(Protocol::Tcp, upstream);
    let address = world.add_bind(1);
    let mut pairs = Vec::new();
    for _ in 0..6 {
        let mut client = connect(address);
        let mut upstream = accept(&listener);
        client.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut upstream, 5), b"hello");
        pairs.push((client, upstream));
    }
    let active: Vec<u64> = world.listener.cells().map(|cell| cell.active.get()).collect();
    assert_eq!(active, [3, 3]);
    world.remove_bind(address);
    wait_until(|| TcpStream::connect(address).is_err());
    for (client, upstream) in &mut pairs {
        upstream.write_all(b"still").unwrap();
        assert_eq!(read_exactly(client, 5), b"still", "sessions outlive their bind");
    }
}

#[test]
fn a_published_bind_serves_and_a_removed_one_refuses() {
    let (listener, upstream) = upstream();
    let (mut world, first) = World::with_bind(Protocol::Tcp, upstream);
    let second = world.add_bind(SOCKETS);
    for address in [first, second] {
        let mut client = connect(address);
        client.write_all(b"a").unwrap();
        assert_eq!(read_exactly(&mut accept(&listener), 1), b"a");
    }
    // Whoever was connected before the bind goes is served, accepted or not.
    let waiting: Vec<TcpStream> = (0..20).map(|_| connect(first)).collect();
    world.remove_bind(first);
    for mut client in &waiting {
        client.write_all(b"b").unwrap();
    }
    for _ in &waiting {
        assert_eq!(read_exactly(&mut accept(&listener), 1), b"b");
    }
    wait_until(|| TcpStream::connect(first).is_err());
    let _client = connect(second);
    accept(&listener);
}

#[test]
fn draining_stops_accepting_and_stopping_ends_every_session() {
    let (listener, upstream) = upstream();
    let (mut world, address) = World::with_bind(Protocol::Tcp, upstream);
    let mut client = connect(address);
    let mut upstream = accept(&listener);
    world.handle().drain();
    wait_until(|| TcpStream::connect(address).is_err());
    upstream.write_all(b"on it goes").unwrap();
    assert_eq!(read_exactly(&mut client, 10), b"on it goes");
    world.stop();
    assert!(read_to_end(&mut client).is_empty());
    assert!(read_to_end(&mut upstream).is_empty());
    assert!(closed(&world, CloseReason::Stopped) >= 1);
    assert_eq!(world.listener.sum(|cell| &cell.active), 0);
}

#[cfg(unix)]
#[test]
fn unix_sockets_serve_as_listener_and_as_upstream() {
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};

    let folder = std::env::temp_dir().join(format!("ringweir-fallback-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (inside, outside) = (folder.join("in"), folder.join("out"));
    let listener = UnixListener::bind(&outside).unwrap();
    let mut world = World::new(Protocol::Tcp, Upstream::Unix(outside.as_path().into()));
    world.add_socket(UnixListener::bind(&inside).unwrap().into());
    for _ in 0..3 {
        let mut client = UnixStream::connect(&inside).unwrap();
        let mut upstream = listener.accept().unwrap().0;
        client.write_all(&pattern(100_000)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        upstream.read_to_end(&mut bytes).unwrap();
        assert!(bytes == pattern(100_000));
        upstream.write_all(b"thanks").unwrap();
        assert_eq!(read_exactly(&mut client, 6), b"thanks");
    }
    drop(listener);
    std::fs::remove_file(&outside).unwrap();
    let mut client = UnixStream::connect(&inside).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "nobody listens there");
    wait_until(|| closed(&world, CloseReason::ConnectFailed) == 1);
    drop(world);
    std::fs::remove_dir_all(&folder).unwrap();
}
