//! Bytes through receives and sends.

use std::io::Read;
use std::os::fd::AsFd;

use ringweir_ring::{Completion, Errno, Op, Ring, RingConfig, Unsent};
use socket2::SockRef;

use crate::{assert_quiet, next, pair, pattern, ring, small, token, write_behind};

/// Receives on one socket and sends on another until the stream ends; the bytes that passed.
fn pump(ring: &mut Ring, from: impl AsFd, to: impl AsFd, max_bytes: u32) -> usize {
    let mut passed = 0;
    ring.receive(token(Op::Receive, 1), from.as_fd(), max_bytes);
    loop {
        match next(ring) {
            Completion::Received { result, .. } => {
                let chunks = result.unwrap();
                if chunks.is_empty() {
                    return passed;
                }
                passed += chunks.len();
                ring.send(token(Op::Send, 1), to.as_fd(), chunks);
            }
            Completion::Sent { result, rest, .. } => {
                assert!(rest.is_none(), "{result:?} {rest:?}");
                result.unwrap();
                ring.receive(token(Op::Receive, 1), from.as_fd(), max_bytes);
            }
            other @ (Completion::Accepted { .. }
            | Completion::Connected { .. }
            | Completion::Polled { .. }
            | Completion::Woken) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stream_passes_through_unchanged_with_and_without_bundles() {
    for receive_bundle in [false, small().receive_bundle] {
        let mut ring = ring(&RingConfig { receive_bundle, ..small() });
        let bytes = pattern(3_000_001);
        let ((from, client), (to, mut server)) = (pair(), pair());
        let writer = write_behind(client, bytes.clone());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            all
        });
        assert_eq!(pump(&mut ring, &from, &to, 32 << 10), bytes.len());
        drop(to);
        writer.join().unwrap();
        assert!(reader.join().unwrap() == bytes, "bytes differ");
        assert_quiet(&mut ring);
        assert_eq!(ring.stats().pool_free, usize::from(small().buffers), "every buffer is back");
    }
}

#[test]
fn an_ended_stream_is_received_as_no_bytes() {
    let mut ring = ring(&small());
    let (near, far) = pair();
    drop(far);
    ring.receive(token(Op::Receive, 5), near.as_fd(), 4096);
    let Completion::Received { token: of, result, .. } = next(&mut ring) else { panic!() };
    assert_eq!(of, token(Op::Receive, 5));
    let chunks = result.unwrap();
    assert!(chunks.is_empty());
    assert_eq!(chunks.buffers(), 0);
    assert_quiet(&mut ring);
}

#[test]
fn a_reset_is_received_as_such() {
    let mut ring = ring(&small());
    let (near, far) = pair();
    SockRef::from(&far).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(far);
    ring.receive(token(Op::Receive, 5), near.as_fd(), 4096);
    let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
    assert_eq!(result.unwrap_err(), Errno::CONNRESET);
}

#[test]
fn owned_bytes_are_sent_from_their_offset() {
    let mut ring = ring(&small());
    let (near, mut far) = pair();
    ring.send_owned(token(Op::Send, 0), near.as_fd(), b"not this, but this".to_vec(), 10);
    let Completion::Sent { result, rest, .. } = next(&mut ring) else { panic!() };
    assert_eq!(result, Ok(8));
    assert!(rest.is_none());
    drop(near);
    let mut all = String::new();
    far.read_to_string(&mut all).unwrap();
    assert_eq!(all, "but this");
}

#[test]
fn a_cancelled_owned_send_hands_back_what_was_not_sent() {
    let mut ring = ring(&small());
    let (near, mut far) = pair();
    SockRef::from(&near).set_send_buffer_size(4096).unwrap();
    let bytes = pattern(8_000_000);
    ring.send_owned(token(Op::Send, 0), near.as_fd(), bytes.clone(), 1000);
    ring.wait(Some(std::time::Duration::from_millis(50))).unwrap();
    assert!(ring.next_completion().is_none(), "the peer does not read");
    ring.cancel(token(Op::Send, 0));
    let Completion::Sent { result, rest: Some(Unsent::Owned { bytes: back, offset }), .. } = next(&mut ring)
    else {
        panic!()
    };
    let sent = result.unwrap();
    assert!(sent > 0 && offset == 1000 + sent && back == bytes);
    drop(near);
    let mut all = Vec::new();
    far.read_to_end(&mut all).unwrap();
    assert!(all == bytes[1000..offset], "what was said to be sent was sent");
    assert_quiet(&mut ring);
}

#[test]
fn a_cancelled_send_of_chunks_hands_back_the_rest_which_can_be_sent_again() {
    let mut ring = ring(&RingConfig { buffers: 1024, ring_buffers: 256, buffer_bytes: 16 << 10, ..small() });
    let ((from, client), (to, mut server)) = (pair(), pair());
    SockRef::from(&to).set_send_buffer_size(4096).unwrap();
    let bytes = pattern(4_000_000);
    let writer = write_behind(client, bytes.clone());
    // Send until the unread socket is full.
    let mut passed = 0;
    ring.receive(token(Op::Receive, 1), from.as_fd(), 1 << 20);
    let (sent, rest) = loop {
        ring.wait(Some(std::time::Duration::from_millis(200))).unwrap();
        match ring.next_completion() {
            Some(Completion::Received { result, .. }) => {
                ring.send(token(Op::Send, 1), to.as_fd(), result.unwrap());
            }
            Some(Completion::Sent { result, rest: None, .. }) => {
                passed += result.unwrap();
                ring.receive(token(Op::Receive, 1), from.as_fd(), 1 << 20);
            }
            Some(Completion::Sent { result, rest: Some(Unsent::Chunks(rest)), .. }) => break (result, rest),
            None => ring.cancel(token(Op::Send, 1)),
            other => panic!("{other:?}"),
        }
    };
    // Cancelled before its first byte, it ends with CANCELED; after, with the count of the bytes sent.
    passed += sent.or_else(|errno| if errno == Errno::CANCELED { Ok(0) } else { Err(errno) }).unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        all
    });
    let len = rest.len();
    ring.send(token(Op::Send, 1), to.as_fd(), rest);
    let Completion::Sent { result, rest: None, .. } = next(&mut ring) else { panic!() };
    assert_eq!(result, Ok(len));
    passed += len;
    passed += pump(&mut ring, &from, &to, 1 << 20);
    drop(to);
    writer.join().unwrap();
    assert_eq!(passed, bytes.len());
    assert!(reader.join().unwrap() == bytes, "bytes differ");
    assert_eq!(ring.stats().pool_free, 1024);
}

#[test]
fn advancing_drops_bytes_and_gives_whole_buffers_back() {
    let mut ring = ring(&small());
    let (near, far) = pair();
    let bytes = pattern(4096 * 3);
    write_behind(far, bytes.clone()).join().unwrap();
    let mut chunks = Vec::new();
    let mut received = 0;
    while received < bytes.len() {
        ring.receive(token(Op::Receive, 1), near.as_fd(), 32 << 10);
        let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
        chunks.push(result.unwrap());
        received += chunks.last().unwrap().len();
    }
    let mut at = 0;
    for mut chunks in chunks {
        while !chunks.is_empty() {
            let (len, buffers) = (chunks.len(), chunks.buffers());
            let step = len.min(1500);
            ring.advance(&mut chunks, step);
            at += step;
            assert_eq!(chunks.len(), len - step);
            assert!(chunks.buffers() <= buffers);
            let left: Vec<u8> = chunks.slices(&ring).flatten().copied().collect();
            assert!(left == bytes[at..at + chunks.len()]);
        }
        assert_eq!(chunks.buffers(), 0);
    }
    assert_eq!(ring.stats().pool_free, 64);
}

#[test]
#[should_panic(expected = "chunks of another ring")]
fn chunks_of_another_ring_are_refused() {
    let (mut one, mut other) = (ring(&small()), ring(&small()));
    let (near, far) = pair();
    write_behind(far, vec![1]).join().unwrap();
    one.receive(token(Op::Receive, 1), near.as_fd(), 4096);
    let Completion::Received { result, .. } = next(&mut one) else { panic!() };
    other.recycle(result.unwrap());
}
