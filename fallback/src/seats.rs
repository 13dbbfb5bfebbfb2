//! How many sessions there may be: as many as the process's descriptors are enough for. The others wait in the accept
//! queue, where they lose nothing. The workers share them all: clients come unevenly, and a worker with a fixed share
//! would leave some waiting while another has room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The seats of all workers. Whoever accepts takes them on behalf of any worker, so they are shared.
#[derive(Debug)]
pub(crate) struct Seats {
    /// By worker.
    taken: Box<[AtomicUsize]>,
    limit: usize,
    freed: Notify,
}

/// A session's place at a worker; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    worker: usize,
}

impl Seats {
    pub(crate) fn new(workers: usize, limit: usize) -> Seats {
        Seats { taken: (0..workers).map(|_| AtomicUsize::new(0)).collect(), limit, freed: Notify::new() }
    }

    /// Takes a seat even if there is none left: the client is there already.
    pub(crate) fn take(self: &Arc<Self>, worker: usize) -> Seat {
        self.taken[worker].fetch_add(1, Ordering::Relaxed);
        Seat { seats: Arc::clone(self), worker }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.taken.iter().map(|taken| taken.load(Ordering::Relaxed)).sum::<usize>() < self.limit
    }

    /// Waits until `condition` holds, which is looked at whenever a seat becomes free.
    pub(crate) async fn wait_until(&self, condition: impl Fn(&Seats) -> bool) {
        while !condition(self) {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            // Freed between the first look and the moment from which on it is told.
            if condition(self) {
                return;
            }
            freed.await;
        }
    }

    pub(crate) fn taken(&self, worker: usize) -> usize {
        self.taken[worker].load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken[self.worker].fetch_sub(1, Ordering::Relaxed);
        self.seats.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_taken_until_it_is_dropped_whichever_worker_has_it() {
        let seats = Arc::new(Seats::new(2, 2));
        let (first, second) = (seats.take(1), seats.take(1));
        assert!(!seats.has_room());
        assert_eq!((seats.taken(0), seats.taken(1)), (0, 2));
        drop(first);
        assert!(seats.has_room());
        let third = seats.take(0);
        assert!(!seats.has_room());
        drop((second, third));
        assert_eq!((seats.taken(0), seats.taken(1)), (0, 0));
    }
}
