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
}

impl Tally {
    fn new() -> Tally {
        let latency_ns = Histogram::new_with_bounds(1, LONGEST_LATENCY_NS, LATENCY_DIGITS)
            .expect("the bounds are constants that a histogram takes");
        Tally { units: 0, bytes: 0, failed: 0, latency_ns }
    }

    /// Counts a unit of `bytes` that was due at `since` and is complete now.
    pub(crate) fn record(&mut self, since: Instant, now: Instant, bytes: usize) {
        self.units += 1;
        self.bytes += bytes as u64;
        let ns = u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX);
        self.latency_ns.saturating_record(ns);
    }

    fn reset(&mut self) {
        self.units = 0;
        self.bytes = 0;
        self.failed = 0;
        self.latency_ns.reset();
    }
}

/// How long, and whose CPU.
pub(crate) struct Plan {
    pub(crate) warmup: Duration,
    pub(crate) window: Duration,
    pub(crate) watched_pids: Vec<u32>,
}

/// The measured window.
pub(crate) struct Outcome {
    pub(crate) began: SystemTime,
    pub(crate) wall: Duration,
    pub(crate) tally: Tally,
    pub(crate) spending: Spending,
    pub(crate) acknowledged: Acknowledged,
}

enum Phase {
    WarmingUp,
    Measuring { from: Instant, began: SystemTime, before: Sample },
}

/// Runs `load` through warm-up and window.
pub(crate) fn drive(load: &mut dyn Load, mut context: Context, plan: &Plan) -> Result<Outcome, LoadError> {
    let mut now = Instant::now();
    let mut phase = Phase::WarmingUp;
    let mut phase_end = now + plan.warmup;
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
        if now < phase_end {
            continue;
        }
        match phase {
            Phase::WarmingUp => {
                let before = Sample::take(&plan.watched_pids)?;
                context.tally.reset();
                let from = Instant::now();
                phase_end = from + plan.window;
                phase = Phase::Measuring { from, began: SystemTime::now(), before };
            }
            Phase::Measuring { from, began, before } => {
                let wall = from.elapsed();
                let spending = before.until(&Sample::take(&plan.watched_pids)?);
                let tally = std::mem::replace(&mut context.tally, Tally::new());
                let acknowledged = load.finish(&mut context)?;
                return Ok(Outcome { began, wall, tally, spending, acknowledged });
            }
        }
    }
}
