//! How many sessions each worker may have: as many as its share of the process's descriptors is enough for. The
//! others wait in the accept queue, where they lose nothing.

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

    pub(crate) fn has_room(&self, worker: usize) -> bool {
        self.taken(worker) < self.limit
    }

    /// The first worker with room, from `start` on in a circle.
    pub(crate) fn next_with_room(&self, start: usize) -> Option<usize> {
        let workers = self.taken.len();
        (0..workers).map(|step| (start + step) % workers).find(|worker| self.has_room(*worker))
    }

    /// Waits until `condition` holds, which is looked at whenever a seat becomes free.
    pub(crate) async fn wait_until<T>(&self, condition: impl Fn(&Seats) -> Option<T>) -> T {
        loop {
            if let Some(found) = condition(self) {
                return found;
            }
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            // Freed between the first look and the moment from which on it is told.
            if let Some(found) = condition(self) {
                return found;
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
    fn a_seat_is_taken_until_it_is_dropped() {
        let seats = Arc::new(Seats::new(2, 1));
        assert_eq!(seats.next_with_room(1), Some(1));
        let first = seats.take(1);
        assert_eq!((seats.has_room(1), seats.next_with_room(1)), (false, Some(0)));
        let second = seats.take(0);
        assert_eq!(seats.next_with_room(0), None);
        drop(first);
        assert_eq!(seats.next_with_room(0), Some(1));
        drop(second);
        assert_eq!(seats.taken(0), 0);
    }
}
