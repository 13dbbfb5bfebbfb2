//! How many sessions the descriptors of the process are enough for.
//!
//! The kernel deals clients out to the workers by their addresses, so one worker may get more than another: they share
//! what there is. A seat is counted once a session, not once a byte.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use ringweir_ring::Waker;

/// The seats of a process.
#[derive(Debug)]
pub(crate) struct Seats {
    /// Below zero for a moment when two workers take the last one.
    free: AtomicIsize,
    /// How many workers wait for a seat.
    waiting: AtomicUsize,
    wakers: Box<[OnceLock<Waker>]>,
}

impl Seats {
    pub(crate) fn new(seats: usize, workers: usize) -> Seats {
        Seats {
            free: AtomicIsize::new(isize::try_from(seats).unwrap_or(isize::MAX)),
            waiting: AtomicUsize::new(0),
            wakers: (0..workers).map(|_| OnceLock::new()).collect(),
        }
    }

    /// How a worker is told that a seat is free.
    pub(crate) fn introduce(&self, worker: usize, waker: Waker) {
        // A worker is introduced once, when it starts.
        let _ = self.wakers[worker].set(waker);
    }

    pub(crate) fn workers(&self) -> usize {
        self.wakers.len()
    }

    pub(crate) fn free(&self) -> usize {
        usize::try_from(self.free.load(Ordering::SeqCst)).unwrap_or(0)
    }

    pub(crate) fn take(&self) {
        self.free.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn give_back(&self) {
        self.free.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.wakers.iter().filter_map(OnceLock::get).for_each(Waker::wake);
        }
    }

    /// A worker that found none wants to be woken, or does so no more. Ask for [`Seats::free`] once more after saying so:
    /// one may have come free in between.
    pub(crate) fn set_waiting(&self, is_waiting: bool) {
        if is_waiting {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        } else {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_that_take_the_last_seat_leave_none() {
        let seats = Seats::new(1, 2);
        seats.take();
        seats.take();
        assert_eq!(seats.free(), 0);
        seats.give_back();
        assert_eq!(seats.free(), 0);
        seats.give_back();
        assert_eq!(seats.free(), 1);
    }
}
