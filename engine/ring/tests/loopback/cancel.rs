//! Operations end exactly once, by themselves or cancelled.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Duration;

use ringweir_ring::{Completion, Errno, Op, PollEvents, Ring, Unsent};
use socket2::{Domain, Socket, Type};

use crate::{assert_quiet, next, pair, ring, small, token, write_behind};

/// Submits, and makes sure that the kernel has it and it waits.
fn settle(ring: &mut Ring) {
    ring.wait(Some(Duration::from_millis(20))).unwrap();
    let early = ring.next_completion();
    assert!(early.is_none(), "{early:?}");
}

#[test]
fn a_cancelled_receive_ends_once() {
    let mut ring = ring(&small());
    let (near, far) = pair();
    ring.receive(token(Op::Receive, 1), near.as_fd(), 4096);
    settle(&mut ring);
    ring.cancel(token(Op::Receive, 1));
    let Completion::Received { token: of, result, .. } = next(&mut ring) else { panic!() };
    assert_eq!((of, result.unwrap_err()), (token(Op::Receive, 1), Errno::CANCELED));
    assert_quiet(&mut ring);
    assert_eq!(ring.stats().pool_free, 64, "it held no buffer");
    drop(far);
}

#[test]
fn a_receive_submitted_and_cancelled_in_one_turn_ends_once() {
    let mut ring = ring(&small());
    let (near, _far) = pair();
    ring.receive(token(Op::Receive, 1), near.as_fd(), 4096);
    ring.cancel(token(Op::Receive, 1));
    let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
    assert_eq!(result.unwrap_err(), Errno::CANCELED);
    assert_quiet(&mut ring);
}

#[test]
fn only_the_named_operation_is_cancelled() {
    let mut ring = ring(&small());
    let (near, far) = pair();
    ring.poll(token(Op::Poll, 1), near.as_fd(), PollEvents::IN);
    ring.poll(token(Op::Poll, 2), near.as_fd(), PollEvents::IN);
    settle(&mut ring);
    ring.cancel(token(Op::Poll, 2));
    let Completion::Polled { token: of, result } = next(&mut ring) else { panic!() };
    assert_eq!((of, result), (token(Op::Poll, 2), Err(Errno::CANCELED)));
    settle(&mut ring);
    assert_eq!(ring.in_flight(), 1);
    write_behind(far, vec![1]).join().unwrap();
    let Completion::Polled { token: of, result } = next(&mut ring) else { panic!() };
    assert_eq!(of, token(Op::Poll, 1));
    assert!(result.unwrap().contains(PollEvents::IN));
    assert_quiet(&mut ring);
}

#[test]
fn a_cancelled_connect_ends_once() {
    // Nobody accepts, and the backlog is full: further connects hang.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = TcpListener::from(listener.try_clone().unwrap()).local_addr().unwrap();
    let mut ring = ring(&small());
    let sockets: Vec<_> = (0..4).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    for (slot, socket) in sockets.iter().enumerate() {
        ring.connect(token(Op::Connect, slot as u32), socket.as_fd(), address);
    }
    ring.wait(Some(Duration::from_millis(100))).unwrap();
    let mut open = vec![true; sockets.len()];
    while let Some(completion) = ring.next_completion() {
        let Completion::Connected { token, result: Ok(()) } = completion else { panic!() };
        open[token.slot() as usize] = false;
    }
    let hanging: Vec<_> = (0..sockets.len() as u32).filter(|slot| open[*slot as usize]).collect();
    assert!(!hanging.is_empty(), "a full backlog lets connects hang");
    assert_eq!(ring.in_flight(), hanging.len());
    for slot in &hanging {
        ring.cancel(token(Op::Connect, *slot));
    }
    for _ in &hanging {
        let Completion::Connected { result, .. } = next(&mut ring) else { panic!() };
        assert_eq!(result, Err(Errno::CANCELED));
    }
    assert_quiet(&mut ring);
}

#[test]
fn a_cancelled_accept_ends_once_and_is_not_armed() {
    let mut ring = ring(&small());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ring.accept_multishot(token(Op::Accept, 9), listener.as_fd());
    settle(&mut ring);
    ring.cancel(token(Op::Accept, 9));
    let Completion::Accepted { result, more, .. } = next(&mut ring) else { panic!() };
    assert_eq!((result.unwrap_err(), more), (Errno::CANCELED, false));
    assert_quiet(&mut ring);
}

#[test]
fn cancelling_what_has_ended_does_nothing() {
    let mut ring = ring(&small());
    let (near, _far) = pair();
    ring.poll(token(Op::Poll, 1), near.as_fd(), PollEvents::OUT);
    let Completion::Polled { result: Ok(_), .. } = next(&mut ring) else { panic!() };
    ring.cancel(token(Op::Poll, 1));
    ring.cancel(token(Op::Send, 12_345));
    assert_quiet(&mut ring);
}

#[test]
fn a_ring_dropped_in_mid_work_ends_everything_at_once() {
    let started = std::time::Instant::now();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (near, far) = pair();
    let (full, _stuck) = pair();
    {
        let mut ring = ring(&small());
        ring.accept_multishot(token(Op::Accept, 0), listener.as_fd());
        ring.send_owned(token(Op::Send, 2), full.as_fd(), vec![0; 16 << 20], 0);
        for slot in 0..100 {
            ring.receive(token(Op::Receive, slot), near.as_fd(), 4096);
            ring.poll(token(Op::Poll, slot), near.as_fd(), PollEvents::IN);
        }
        ring.wait(Some(Duration::from_millis(10))).unwrap();
        // Some in the kernel, some still queued, one with data on its way.
        ring.receive(token(Op::Receive, 101), near.as_fd(), 4096);
        write_behind(far, vec![0; 100_000]).join().unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "dropping hung");
}

#[test]
fn a_send_cancelled_before_it_starts_hands_everything_back() {
    let mut ring = ring(&small());
    let (near, _far) = pair();
    // Fill the socket first, so that the second send waits from its start.
    ring.send_owned(token(Op::Send, 1), near.as_fd(), vec![0; 16 << 20], 0);
    settle(&mut ring);
    ring.send_owned(token(Op::Send, 2), near.as_fd(), vec![7; 1000], 10);
    settle(&mut ring);
    ring.cancel(token(Op::Send, 2));
    let Completion::Sent { token: of, result, rest } = next(&mut ring) else { panic!() };
    assert_eq!((of, result), (token(Op::Send, 2), Err(Errno::CANCELED)));
    let Some(Unsent::Owned { bytes, offset }) = rest else { panic!() };
    assert_eq!((bytes, offset), (vec![7; 1000], 10));
    ring.cancel(token(Op::Send, 1));
    let Completion::Sent { token: of, .. } = next(&mut ring) else { panic!() };
    assert_eq!(of, token(Op::Send, 1));
    assert_quiet(&mut ring);
}
