//! Receives into several buffers at once.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use ringweir_ring::{Completion, Errno, Op, RingConfig};

use crate::{next, pair, pattern, ring, small, token, write_behind};

#[test]
fn bundles_keep_order_while_buffers_return_in_any_order() {
    const STREAMS: usize = 4;
    let config = small();
    let mut ring = ring(&config);
    let bytes = pattern(2_000_000);
    let streams: Vec<_> = (0..STREAMS).map(|_| pair()).collect();
    let (near, far): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    let writers: Vec<_> = far.into_iter().map(|far| write_behind(far, bytes.clone())).collect();
    let mut received = [0; STREAMS];
    let mut held = VecDeque::new();
    let mut open = STREAMS;
    let mut bundles = 0u32;
    let mut round = 0usize;
    for (slot, near) in near.iter().enumerate() {
        ring.receive(token(Op::Receive, slot as u32), near.as_fd(), 24 << 10);
    }
    while open > 0 {
        let Completion::Received { token: of, result, .. } = next(&mut ring) else { panic!() };
        let slot = of.slot() as usize;
        round = round.wrapping_mul(31).wrapping_add(slot + 7);
        match result {
            Ok(chunks) if chunks.is_empty() => {
                open -= 1;
                continue;
            }
            Ok(chunks) => {
                let expected = &bytes[received[slot]..received[slot] + chunks.len()];
                assert!(chunks.slices(&ring).flatten().eq(expected), "stream {slot} at {}", received[slot]);
                received[slot] += chunks.len();
                bundles += u32::from(chunks.buffers() > 1);
                held.push_back(chunks);
            }
            Err(errno) => {
                assert_eq!(errno, Errno::NOBUFS);
                held.drain(..).for_each(|chunks| ring.recycle(chunks));
            }
        }
        while held.len() > 3 {
            ring.recycle(held.swap_remove_back(round % 4).unwrap());
        }
        ring.receive(of, near[slot].as_fd(), 24 << 10);
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(received, [bytes.len(); STREAMS]);
    assert!(bundles > 0 || !config.receive_bundle);
    held.into_iter().for_each(|chunks| ring.recycle(chunks));
    assert_eq!(ring.stats().pool_free, usize::from(config.buffers));
}

#[test]
fn a_receive_takes_its_cap_of_what_waits() {
    // Twice the cap waits in the socket before anything is received.
    let config = RingConfig { buffers: 256, ring_buffers: 256, buffer_bytes: 4096, ..small() };
    for (receive_bundle, cap, most) in [(false, 64 << 10, 4096), (config.receive_bundle, 64 << 10, 64 << 10)]
    {
        let mut ring = ring(&RingConfig { receive_bundle, ..config.clone() });
        let (near, mut far) = pair();
        far.write_all(&pattern(2 << 20)).unwrap();
        for _ in 0..4 {
            ring.receive(token(Op::Receive, 1), near.as_fd(), cap);
            let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
            let chunks = result.unwrap();
            assert!(chunks.len() <= most, "{} bytes for a cap of {cap}", chunks.len());
            ring.recycle(chunks);
        }
    }
}

#[test]
fn a_small_receive_leaves_the_rest_in_the_socket() {
    let mut ring = ring(&small());
    let (mut near, mut far) = pair();
    far.write_all(b"first, then").unwrap();
    ring.receive(token(Op::Receive, 1), near.as_fd(), 5);
    let Completion::Received { result, .. } = next(&mut ring) else { panic!() };
    let chunks = result.unwrap();
    assert_eq!(chunks.slices(&ring).collect::<Vec<_>>(), [b"first"]);
    ring.recycle(chunks);
    let mut rest = [0; 6];
    near.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b", then");
}
