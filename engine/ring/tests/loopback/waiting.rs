//! Waiting, and being woken.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ringweir_ring::{Completion, Op, PollEvents, RingConfig};

use crate::{PATIENCE, assert_quiet, next, pair, ring, small, token};

#[test]
fn a_wait_lasts_as_long_as_its_timeout() {
    let mut ring = ring(&RingConfig { entries: 8, ..small() });
    // The first turn submits the ring's own read; those after it have nothing to submit.
    for timeout in [5, 30, 30] {
        let timeout = Duration::from_millis(timeout);
        let started = Instant::now();
        ring.wait(Some(timeout)).unwrap();
        assert!(started.elapsed() >= timeout, "{:?} of {timeout:?}", started.elapsed());
        assert!(ring.next_completion().is_none());
    }
}

#[test]
fn a_wait_for_no_time_returns_at_once() {
    let mut ring = ring(&small());
    let started = Instant::now();
    (0..100).for_each(|_| ring.wait(Some(Duration::ZERO)).unwrap());
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_wait_does_not_sleep_on_unread_completions() {
    let mut ring = ring(&small());
    let (near, _far) = pair();
    ring.poll(token(Op::Poll, 1), near.as_fd(), PollEvents::OUT);
    ring.wait(Some(PATIENCE)).unwrap();
    let started = Instant::now();
    ring.wait(Some(PATIENCE)).unwrap();
    assert!(started.elapsed() < PATIENCE / 2);
    assert!(matches!(ring.next_completion(), Some(Completion::Polled { .. })));
    assert_quiet(&mut ring);
}

#[test]
fn another_thread_wakes_a_waiting_ring_again_and_again() {
    let mut ring = ring(&small());
    let waker = ring.waker();
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || asked.iter().for_each(|()| waker.wake()));
    for _ in 0..200 {
        ask.send(()).unwrap();
        let started = Instant::now();
        assert!(matches!(next(&mut ring), Completion::Woken));
        assert!(started.elapsed() < PATIENCE / 2);
    }
    drop(ask);
    thread.join().unwrap();
    assert_quiet(&mut ring);
}

#[test]
fn many_wakes_before_a_turn_are_one() {
    let mut ring = ring(&small());
    let waker = ring.waker();
    (0..1000).for_each(|_| waker.wake());
    assert!(matches!(next(&mut ring), Completion::Woken));
    assert_quiet(&mut ring);
    waker.wake();
    assert!(matches!(next(&mut ring), Completion::Woken), "and the next is one more");
}

#[test]
fn a_waker_outlives_its_ring() {
    let waker = ring(&small()).waker();
    waker.wake();
    waker.clone().wake();
}
