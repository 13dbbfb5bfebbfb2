//! Counters that one worker writes and anybody reads, and the record of a finished session.
//!
//! *A worker owns its counters*: every cell has a single writer, so an update is a relaxed load and a relaxed
//! store, never a locked instruction, and cells of different workers share no cache line. Readers sum the cells.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::close::{CloseReason, ConnectError};
use crate::health::OutcomeCell;
use crate::histogram::Histograms;
use crate::snapshot::WorkerIndex;
use crate::time::Instant;
use crate::way::Refusal;

/// A number with one writer. Gauges go down again by [`Counter::sub`].
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds `n`. Only the owning worker may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` off a gauge. Only the owning worker may call this.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Replaces the value. Only the owning worker may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value at about this moment; anybody may call this.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A peak-sensitive moving average of a duration, with one writer: a sample above it counts in full at once, those below
/// pull it down in the course of [`Latency::MEMORY`]. What nobody has measured for long is forgotten as slowly.
#[derive(Debug, Default)]
pub struct Latency {
    average_us: Counter,
    at_us: Counter,
}

impl Latency {
    /// How long it takes until about two thirds of what was known are forgotten.
    pub const MEMORY: Duration = Duration::from_secs(10);

    /// Takes a sample. Only the owning worker may call this.
    pub fn record(&self, took: Duration, now: Instant) {
        let sample = took.as_micros().try_into().unwrap_or(u64::MAX);
        let known = self.at(now);
        let kept = if sample >= known { sample } else { known - (known - sample) / 8 };
        self.average_us.set(kept);
        self.at_us.set(now.as_micros());
    }

    /// What it was at the last sample, in microseconds; 0 when there was none.
    pub fn at_last(&self) -> u64 {
        self.average_us.get()
    }

    /// What it is at a moment, in microseconds; 0 when nothing is known.
    pub fn at(&self, now: Instant) -> u64 {
        let idle_us = now.as_micros().saturating_sub(self.at_us.get());
        let decay = (-(idle_us as f64) / Latency::MEMORY.as_micros() as f64).exp();
        (self.average_us.get() as f64 * decay) as u64
    }
}

/// One cell a worker, so that no two cores write the same cache line.
#[derive(Debug)]
pub struct PerWorker<T>(Box<[Padded<T>]>);

// 128 bytes: adjacent-line prefetch pairs cache lines of 64 on x86, and Apple's lines are 128.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T: Default> PerWorker<T> {
    /// A cell for each of `workers` workers.
    pub fn new(workers: usize) -> PerWorker<T> {
        PerWorker((0..workers).map(|_| Padded::default()).collect())
    }
}

impl<T> PerWorker<T> {
    /// The cell of one worker.
    ///
    /// # Panics
    /// When `worker` is not below the number of workers it was made for.
    pub fn cell(&self, worker: WorkerIndex) -> &T {
        &self.0[worker.0].0
    }

    /// Every worker's cell.
    pub fn cells(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }

    /// The sum of one counter over all workers.
    pub fn sum(&self, counter: impl Fn(&T) -> &Counter) -> u64 {
        self.cells().fold(0, |sum, cell| sum.wrapping_add(counter(cell).get()))
    }
}

/// What one worker counts for one target.
#[derive(Debug, Default)]
pub struct TargetCell {
    /// Sessions and attempts that hold this target at the moment (a gauge).
    pub active: Counter,
    /// Attempts begun.
    pub attempts: Counter,
    /// Attempts that won: the session was pumped through this target.
    pub committed: Counter,
    /// Attempts given up because another won or the client left: nobody's failure.
    pub abandoned: Counter,
    /// Attempts that failed, by [`ConnectError::index`].
    pub failed: [Counter; ConnectError::KINDS],
    /// Sessions that the upstream reset in mid-flow.
    pub resets: Counter,
    /// What sessions met there, for passive health.
    pub outcomes: OutcomeCell,
    /// Bytes from clients to this target.
    pub bytes_up: Counter,
    /// Bytes from this target to clients.
    pub bytes_down: Counter,
    /// How long attempts took to win there of late.
    pub latency: Latency,
    /// How long things took there, and how much went through.
    pub histograms: Histograms,
}

/// What one worker counts for one listener.
#[derive(Debug, Default)]
pub struct ListenerCell {
    /// Sessions open at the moment (a gauge).
    pub active: Counter,
    /// Sessions accepted.
    pub accepted: Counter,
    /// Sessions ended, by [`CloseReason::index`].
    pub closed: [Counter; CloseReason::ALL.len()],
    /// Bytes from clients.
    pub bytes_up: Counter,
    /// Bytes to clients.
    pub bytes_down: Counter,
    /// Which way they went.
    pub ways: WayCell,
    /// How long things took there, and how much went through.
    pub histograms: Histograms,
}

/// What one worker counts for one user of a listener.
#[derive(Debug, Default)]
pub struct UserCell {
    /// Sessions open at the moment (a gauge).
    pub active: Counter,
    /// Sessions that made a request.
    pub sessions: Counter,
    /// Bytes from the user.
    pub bytes_up: Counter,
    /// Bytes to the user.
    pub bytes_down: Counter,
}

/// What one worker counts of pipes and buffers for one listener.
#[derive(Debug, Default)]
pub struct WayCell {
    /// Directions of sessions that began to stream through a pipe.
    pub to_pipe: Counter,
    /// Directions that went back to buffers because they calmed down.
    pub to_buffer: Counter,
    /// Receives that went to a buffer because no pipe was to be had, by [`Refusal::index`].
    pub refused: [Counter; Refusal::ALL.len()],
    /// Bytes from clients that went through a pipe.
    pub piped_up: Counter,
    /// Bytes to clients that went through a pipe.
    pub piped_down: Counter,
}

/// The counters of a target, kept across snapshots as long as its name lives.
pub type TargetCounters = PerWorker<TargetCell>;

/// The counters of a listener, kept across snapshots as long as its name lives.
pub type ListenerCounters = PerWorker<ListenerCell>;

/// The counters of a user of a listener, kept across snapshots as long as both names live.
pub type UserCounters = PerWorker<UserCell>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_two_workers_share_no_line_and_sum_up() {
        let counters = TargetCounters::new(2);
        counters.cell(WorkerIndex(0)).bytes_up.add(3);
        counters.cell(WorkerIndex(1)).bytes_up.add(4);
        assert_eq!(counters.sum(|cell| &cell.bytes_up), 7);
        let first = std::ptr::from_ref(counters.cell(WorkerIndex(0))).addr();
        let second = std::ptr::from_ref(counters.cell(WorkerIndex(1))).addr();
        assert!(second - first >= 128 && first.is_multiple_of(128));
    }
}
