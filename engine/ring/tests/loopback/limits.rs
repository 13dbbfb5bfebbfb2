//! What happens where something is full.

use std::io::Write;
use std::os::fd::AsFd;

use ringweir_ring::{Completion, Errno, Op, PollEvents, Ring, RingConfig, SetupError, Token};

use crate::{assert_quiet, next, pair, ring, small, token};

#[test]
fn an_exhausted_pool_says_nobufs_and_recovers_by_recycling() {
    let config =
        RingConfig { buffers: 4, ring_buffers: 4, buffer_bytes: 4096, receive_bundle: false, ..small() };
    let mut ring = ring(&config);
    let (near, mut far) = pair();
    let mut held = Vec::new();
    far.write_all(&[1; 4096 * 6]).unwrap();
    for _ in 0..4 {
        ring.receive(token(Op::Receive, 1), near.as_fd(), 4096);
        let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
        held.push(result.unwrap());
    }
    assert_eq!(ring.buffers_available(), 0);
    ring.receive(token(Op::Receive, 1), near.as_fd(), 4096);
    let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
    assert_eq!(result.unwrap_err(), Errno::NOBUFS);
    let stats = ring.stats();
    assert_eq!((stats.no_buffers, stats.pool_free, stats.pool_low_water), (1, 0, 0));

    ring.recycle(held.swap_remove(1));
    assert_eq!(ring.buffers_available(), 1);
    ring.receive(token(Op::Receive, 1), near.as_fd(), 4096);
    let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
    held.push(result.unwrap());
    held.into_iter().for_each(|chunks| ring.recycle(chunks));
    assert_eq!(ring.stats().pool_free, 4);
    assert_quiet(&mut ring);
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    const OPERATIONS: u32 = 1000;
    let mut ring = ring(&RingConfig { entries: 8, ..small() });
    let (near, _far) = pair();
    for slot in 0..OPERATIONS {
        ring.poll(token(Op::Poll, slot), near.as_fd(), PollEvents::OUT);
    }
    assert_eq!(ring.in_flight(), OPERATIONS as usize);
    let mut seen = vec![0; OPERATIONS as usize];
    for _ in 0..OPERATIONS {
        let Completion::Polled { token, result: Ok(_) } = next(&mut ring) else { panic!() };
        seen[token.slot() as usize] += 1;
    }
    assert!(seen.iter().all(|times| *times == 1), "each once");
    assert_quiet(&mut ring);
    assert_eq!(ring.stats().backlog, 0);
}

#[test]
fn sends_beyond_the_queue_keep_their_order() {
    let mut ring = ring(&RingConfig { entries: 4, ..small() });
    let (near, far) = pair();
    for slot in 0..200u32 {
        ring.send_owned(token(Op::Send, slot), near.as_fd(), slot.to_be_bytes().to_vec(), 0);
    }
    for _ in 0..200 {
        let Completion::Sent { result, rest: None, .. } = next(&mut ring) else { panic!() };
        assert_eq!(result, Ok(4));
    }
    drop(near);
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut { far }, &mut all).unwrap();
    let expected: Vec<u8> = (0..200u32).flat_map(u32::to_be_bytes).collect();
    assert_eq!(all, expected);
}

#[test]
fn a_dropped_chunk_is_counted_as_lost_and_its_buffer_not_used_again() {
    let mut ring = ring(&RingConfig { buffers: 2, ring_buffers: 2, receive_bundle: false, ..small() });
    let (near, mut far) = pair();
    let before = ring.stats().leaked_buffers;
    far.write_all(b"lost").unwrap();
    ring.receive(token(Op::Receive, 1), near.as_fd(), 4096);
    let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
    drop(result);
    let stats = ring.stats();
    assert!(stats.leaked_buffers > before);
    assert_eq!(stats.pool_free, 1);
}

#[test]
fn impossible_sizes_are_refused_in_words() {
    for config in [
        RingConfig { entries: 0, ..small() },
        RingConfig { ring_buffers: 48, ..small() },
        RingConfig { ring_buffers: 128, buffers: 64, ..small() },
        RingConfig { buffer_bytes: 1000, ..small() },
    ] {
        assert!(matches!(Ring::new(&config), Err(SetupError::Config(_))), "{config:?}");
    }
}

#[test]
#[should_panic(expected = "given to")]
fn a_token_of_another_operation_is_refused() {
    let mut ring = ring(&small());
    let (near, _far) = pair();
    ring.receive(Token::new(Op::Send, 0, 0, 0), near.as_fd(), 1);
}

#[test]
fn polls_devices_busily_or_says_what_is_missing() {
    let time = std::time::Duration::from_micros(50);
    match Ring::new(&RingConfig { busy_poll: Some(time), ..small() }) {
        // Loopback has no queue to poll: the ring serves as ever.
        Ok(mut ring) => {
            assert!(ring.stats().completions == 0 && ring.wait(Some(time)).is_ok());
        }
        // Kernels before 6.9, and those built without CONFIG_NET_RX_BUSY_POLL.
        Err(error) => assert!(error.to_string().contains("IORING_REGISTER_NAPI"), "{error}"),
    }
}
