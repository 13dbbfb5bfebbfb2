//! Waking a ring that waits, from any thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Makes a [`Ring::wait`](crate::Ring::wait) return with a [`Completion::Woken`](crate::Completion::Woken). Cheap to
/// clone, and outlives the ring harmlessly.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    eventfd: OwnedFd,
    /// True from a wake until the ring has seen it, so that many wakes cost one write.
    pending: AtomicBool,
}

impl Waker {
    /// Wakes the ring. What the caller wrote before is visible to whoever handles the `Woken`. Wakes that come before
    /// the ring saw the first are one wake.
    pub fn wake(&self) {
        if self.0.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // The write cannot block, its counter is 1 at most; nor fail, the descriptor is an eventfd of our own.
        let written = rustix::io::write(&self.0.eventfd, &1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "write to our eventfd: {written:?}");
    }

    /// Without `NONBLOCK`: io_uring would answer a read of an empty counter with EAGAIN instead of waiting.
    pub(crate) fn new() -> io::Result<Waker> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Waker(Arc::new(Shared { eventfd, pending: AtomicBool::new(false) })))
    }

    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.0.eventfd
    }

    /// To be called once the counter has been read and before anything is done about the wake, so that a wake after
    /// this is seen by the next turn.
    pub(crate) fn acknowledge(&self) {
        self.0.pending.swap(false, Ordering::AcqRel);
    }
}
