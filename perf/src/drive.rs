//! One run of one load: warm-up, measured window, tally.

use crate::error::LoadError;
use crate::net::{Dialer, Poller};
use crate::witness::{Sample, Spending};
use hdrhistogram::Histogram;
use rustix::event::epoll::EventFlags;
use std::time::{Duration, Instant, SystemTime};

/// Latencies are kept from 1 ns to a minute, to three digits.
const LONGEST_LATENCY_NS: u64 = 60_000_000_000;
const LATENCY_DIGITS: u8 = 3;

/// Slices of a window. A machine that stalls for a moment spoils one of them; a forwarder that stalls as a rule, all.
const SLICE: Duration = Duration::from_millis(100);

/// Too few latencies for a 99th percentile that is more than the maximum.
const LEAST_IN_SLICE: u64 = 100;

/// A kind of work. Every method may open sockets and count into the context.
pub(crate) trait Load {
    /// Opens the connections and sends the first bytes.
    fn start(&mut self, context: &mut Context, now: Instant) -> Result<(), LoadError>;
    /// A connection can be read or written.
    fn handle_ready(
        &mut self,
        context: &mut Context,
        token: usize,
        flags: EventFlags,
    ) -> Result<(), LoadError>;
    /// When the load wants to act by itself.
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    /// The time of [`Load::poll_timeout`] has come, perhaps.
    fn handle_timeout(&mut self, _context: &mut Context, _now: Instant) -> Result<(), LoadError> {
        Ok(())
    }
    /// The window is over: checks what can only be checked at the end.
    fn finish(&mut self, _context: &mut Context) -> Result<Acknowledged, LoadError> {
        Ok(Acknowledged::NotAsked)
    }
}

/// What the far end said about the bytes of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// This load has no such check.
    NotAsked,
    /// The forwarder did not let the answer through after the client's end of stream.
    NoAnswer,
    /// Bytes that left, and bytes that arrived, over all connections and from their first byte.
    Counted {
        /// What the client wrote.
        sent_bytes: u64,
        /// What the backend read.
        arrived_bytes: u64,
    },
}

/// What every load works with.
pub(crate) struct Context {
    pub(crate) poller: Poller,
    pub(crate) dialer: Dialer,
    pub(crate) tally: Tally,
}

impl Context {
    pub(crate) fn new(dialer: Dialer) -> Result<Context, LoadError> {
        Ok(Context { poller: Poller::new()?, dialer, tally: Tally::new() })
    }
}

/// What has been done since the window began.
pub(crate) struct Tally {
    /// Exchanges or sessions completed; nothing for streams.
    pub(crate) units: u64,
    /// Payload bytes, one way.
    pub(crate) bytes: u64,
    /// Sessions that ended otherwise than they should.
    pub(crate) failed: u64,
    /// From the moment a unit was due to its last byte, in nanoseconds.
    pub(crate) latency_ns: Histogram<u64>,
    slice_ns: Histogram<u64>,
    slice_p99_ns: Vec<u64>,
}

impl Tally {
    fn new() -> Tally {
        let latency_ns = Histogram::new_with_bounds(1, LONGEST_LATENCY_NS, LATENCY_DIGITS)
            .expect("the bounds are constants that a histogram takes");
        let slice_ns = latency_ns.clone();
        Tally { units: 0, bytes: 0, failed: 0, latency_ns, slice_ns, slice_p99_ns: Vec::new() }
    }

    /// The median over the slices of each slice's 99th percentile; `None` where no slice had enough latencies.
    pub(crate) fn typical_p99_ns(&self) -> Option<u64> {
        let mut sorted = self.slice_p99_ns.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    fn end_slice(&mut self) {
        if self.slice_ns.len() >= LEAST_IN_SLICE {
            self.slice_p99_ns.push(self.slice_ns.value_at_quantile(0.99));
        }
        self.slice_ns.reset();
    }

    /// Counts a unit of `bytes` that was due at `since` and is complete now.
    pub(crate) fn record(&mut self, since: Instant, now: Instant, bytes: usize) {
        self.units += 1;
        self.bytes += bytes as u64;
        let ns = u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX);
        self.latency_ns.saturating_record(ns);
        self.slice_ns.saturating_record(ns);
    }

    fn reset(&mut self) {
        self.units = 0;
        self.bytes = 0;
        self.failed = 0;
        self.latency_ns.reset();
        self.slice_ns.reset();
        self.slice_p99_ns.clear();
    }
}

/// How long, and whose CPU.
pub(crate) struct Plan {
    pub(crate) warmup: Duration,
    pub(crate) window: Duration,
    pub(crate) watched_pids: Vec<u32>,
    /// This process and others that make the load.
    pub(crate) load_pids: Vec<u32>,
}

/// The measured window.
pub(crate) struct Outcome {
    pub(crate) began: SystemTime,
    pub(crate) wall: Duration,
    pub(crate) tally: Tally,
    pub(crate) spending: Spending,
    pub(crate) load_cpu_seconds: f64,
    pub(crate) acknowledged: Acknowledged,
}

enum Phase {
    WarmingUp,
    Measuring { from: Instant, began: SystemTime, before: Sample, load_before: Sample },
}

/// Runs `load` through warm-up and window.
pub(crate) fn drive(load: &mut dyn Load, mut context: Context, plan: &Plan) -> Result<Outcome, LoadError> {
    let mut now = Instant::now();
    let mut phase = Phase::WarmingUp;
    let mut phase_end = now + plan.warmup;
    let mut slice_end = phase_end + SLICE;
    load.start(&mut context, now)?;
    loop {
        let wake = load.poll_timeout().map_or(phase_end, |timeout| timeout.min(phase_end));
        let count = context.poller.wait(Some(wake.saturating_duration_since(Instant::now())))?;
        for index in 0..count {
            let (token, flags) = context.poller.event(index);
            load.handle_ready(&mut context, token, flags)?;
        }
        now = Instant::now();
        load.handle_timeout(&mut context, now)?;
        if now >= slice_end {
            context.tally.end_slice();
            slice_end = now + SLICE;
        }
        if now < phase_end {
            continue;
        }
        match phase {
            Phase::WarmingUp => {
                let load_before = Sample::take(&plan.load_pids)?;
                let before = Sample::take(&plan.watched_pids)?;
                context.tally.reset();
                let from = Instant::now();
                phase_end = from + plan.window;
                phase = Phase::Measuring { from, began: SystemTime::now(), before, load_before };
            }
            Phase::Measuring { from, began, before, load_before } => {
                let wall = from.elapsed();
                let spending = before.until(&Sample::take(&plan.watched_pids)?);
                let load_cpu_seconds = load_before.until(&Sample::take(&plan.load_pids)?).cpu_seconds;
                let tally = std::mem::replace(&mut context.tally, Tally::new());
                let acknowledged = load.finish(&mut context)?;
                return Ok(Outcome { began, wall, tally, spending, load_cpu_seconds, acknowledged });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stall_does_not_move_the_typical_p99() {
        let mut tally = Tally::new();
        let due = Instant::now();
        for slice in 0..9 {
            let latency = if slice == 4 { Duration::from_secs(1) } else { Duration::from_micros(100) };
            for _ in 0..LEAST_IN_SLICE {
                tally.record(due, due + latency, 64);
            }
            tally.end_slice();
        }
        let typical_ns = tally.typical_p99_ns().expect("nine slices were full");
        assert!((99_000..101_000).contains(&typical_ns), "{typical_ns}");
        assert!(tally.latency_ns.value_at_quantile(0.99) > 900_000_000);
    }

    #[test]
    fn slices_with_few_latencies_do_not_count() {
        let mut tally = Tally::new();
        let due = Instant::now();
        tally.record(due, due + Duration::from_secs(1), 64);
        tally.end_slice();
        assert_eq!(tally.typical_p99_ns(), None);
    }
}
