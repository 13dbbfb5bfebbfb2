//! How many sessions an upstream bears at once, and who waits for a place there.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is configured of the places of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Sessions at once, over all workers.
    pub sessions: u32,
    /// How many more may wait.
    pub queue: u32,
    /// How long one waits at most.
    pub patience: Duration,
}

/// The places of one upstream, shared by all workers and kept across snapshots. First come, first served: nobody takes
/// a place past those who wait.
pub struct Capacity {
    state: Mutex<State>,
    /// What whoever picks is told, who looks at many: as it was when the state last changed.
    is_full: AtomicBool,
    has_queue: AtomicBool,
}

struct State {
    room: Room,
    taken: u32,
    waiting: VecDeque<Waiter>,
    next_number: u64,
}

struct Waiter {
    number: u64,
    wake: Wake,
}

/// Tells whoever waits, on any thread, that a place is theirs.
pub type Wake = Box<dyn FnOnce(Place) + Send>;

impl Capacity {
    /// Places that nobody has taken.
    pub fn new(room: Room) -> Capacity {
        let state = State { room, taken: 0, waiting: VecDeque::new(), next_number: 0 };
        Capacity {
            is_full: AtomicBool::new(state.is_full()),
            has_queue: AtomicBool::new(room.queue > 0),
            state: Mutex::new(state),
        }
    }

    /// What is configured changes; those who have a place keep it.
    pub fn set(self: &Arc<Self>, room: Room) {
        self.change(|state| state.room = room);
        self.serve();
    }

    /// How long one waits at most.
    pub fn patience(&self) -> Duration {
        self.state().room.patience
    }

    /// Whether anybody may wait.
    pub fn has_queue(&self) -> bool {
        self.has_queue.load(Ordering::Relaxed)
    }

    /// How many have a place, and how many wait.
    pub fn counts(&self) -> (u32, usize) {
        let state = self.state();
        (state.taken, state.waiting.len())
    }

    /// Whether [`Capacity::take`] would have been in vain a moment ago.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// A place, if one is free.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        self.change(|state| {
            let is_free = !state.is_full();
            state.taken += u32::from(is_free);
            is_free.then(|| Place(Arc::clone(self)))
        })
    }

    /// Waits for a place; `None` when as many wait as may. Whoever drops the ticket waits no longer; a place that comes
    /// all the same is given back by dropping it.
    pub fn join(self: &Arc<Self>, wake: Wake) -> Option<Ticket> {
        let number = self.change(|state| {
            if state.waiting.len() >= state.room.queue as usize {
                return None;
            }
            let number = state.next_number;
            state.next_number += 1;
            state.waiting.push_back(Waiter { number, wake });
            Some(number)
        })?;
        // One may have become free since it was asked for.
        self.serve();
        Some(Ticket { capacity: Arc::clone(self), number })
    }

    /// Gives free places to those who wait.
    fn serve(self: &Arc<Self>) {
        loop {
            let waiter = self.change(|state| {
                let has_room = state.taken < state.room.sessions;
                let waiter = if has_room { state.waiting.pop_front() } else { None };
                state.taken += u32::from(waiter.is_some());
                waiter
            });
            let Some(waiter) = waiter else { return };
            // Not under the lock: who is woken may give it back at once.
            (waiter.wake)(Place(Arc::clone(self)));
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        self.is_full.store(state.is_full(), Ordering::Relaxed);
        self.has_queue.store(state.room.queue > 0, Ordering::Relaxed);
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made at once: what a panic elsewhere has left is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Nobody takes a place past those who wait.
    fn is_full(&self) -> bool {
        self.taken >= self.room.sessions || !self.waiting.is_empty()
    }
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (taken, waiting) = self.counts();
        f.debug_struct("Capacity").field("taken", &taken).field("waiting", &waiting).finish()
    }
}

/// A place at an upstream; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Capacity>);

impl Place {
    pub(crate) fn is_of(&self, capacity: &Arc<Capacity>) -> bool {
        Arc::ptr_eq(&self.0, capacity)
    }

    pub(crate) fn capacity(&self) -> &Arc<Capacity> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.change(|state| state.taken -= 1);
        self.0.serve();
    }
}

/// A place in the line; given up when dropped.
#[derive(Debug)]
pub struct Ticket {
    capacity: Arc<Capacity>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let number = self.number;
        let waiter = self.capacity.change(|state| {
            let found = state.waiting.binary_search_by_key(&number, |waiter| waiter.number);
            found.ok().and_then(|at| state.waiting.remove(at))
        });
        // What it holds is dropped without the lock.
        drop(waiter);
    }
}

/// The line of an upstream, as a session asks its driver to join it.
#[derive(Clone, Debug)]
pub struct Line(pub(crate) Arc<Capacity>);

impl Line {
    /// See [`Capacity::join`].
    pub fn join(&self, wake: Wake) -> Option<Ticket> {
        self.0.join(wake)
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Line) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Line {}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn capacity(sessions: u32, queue: u32) -> Arc<Capacity> {
        Arc::new(Capacity::new(Room { sessions, queue, patience: Duration::from_secs(1) }))
    }

    fn wake(tell: &mpsc::Sender<(u32, Place)>, name: u32) -> Wake {
        let tell = tell.clone();
        Box::new(move |place| tell.send((name, place)).unwrap())
    }

    #[test]
    fn first_come_first_served_and_nobody_past_the_line() {
        let (tell, told) = mpsc::channel();
        let capacity = capacity(2, 2);
        let (a, b) = (capacity.take().unwrap(), capacity.take().unwrap());
        assert!(capacity.take().is_none());
        let (_first, second) = (capacity.join(wake(&tell, 1)), capacity.join(wake(&tell, 2)));
        assert!(second.is_some() && capacity.join(wake(&tell, 3)).is_none(), "the line is full");
        drop(a);
        let (name, place) = told.try_recv().unwrap();
        assert_eq!(name, 1);
        assert!(capacity.is_full() && capacity.take().is_none(), "somebody waits");
        drop(second);
        assert_eq!(capacity.counts(), (2, 0), "whoever leaves the line is forgotten");
        drop(b);
        assert!(told.try_recv().is_err());
        let again = capacity.take().unwrap();
        assert!(capacity.is_full());
        drop((place, again));
        assert!(capacity.counts() == (0, 0) && !capacity.is_full());
    }

    #[test]
    fn a_place_that_nobody_wants_goes_to_the_next() {
        let (tell, told) = mpsc::channel();
        let capacity = capacity(1, 5);
        let place = capacity.take().unwrap();
        let _gone = capacity.join(Box::new(drop));
        let _next = capacity.join(wake(&tell, 1));
        drop(place);
        assert_eq!(told.try_recv().unwrap().0, 1);
        assert_eq!(capacity.counts(), (0, 0));
    }

    #[test]
    fn more_places_are_given_to_those_who_wait() {
        let (tell, told) = mpsc::channel();
        let capacity = capacity(0, 2);
        let _tickets = [capacity.join(wake(&tell, 1)), capacity.join(wake(&tell, 2))];
        capacity.set(Room { sessions: 1, queue: 2, patience: Duration::ZERO });
        let (name, _place) = told.try_recv().unwrap();
        assert!(name == 1 && told.try_recv().is_err());
    }
}
