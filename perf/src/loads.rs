//! The closed and open loops made of exchanges: ping-pong, fixed rate, short sessions.

use crate::drive::{Context, Load};
use crate::error::LoadError;
use crate::exchange::{Broken, EDGES, Exchange, Message, Progress};
use rustix::event::epoll::EventFlags;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Stamps of two connections lie so far apart that no run's exchanges bridge the gap.
const STAMPS_PER_CONNECTION: u64 = 1 << 32;

/// Short sessions that fail without one success between them: the forwarder is gone.
const FAILURES_IN_A_ROW: u32 = 1_000;

/// Opens a connection for exchanges and registers it as `index`.
pub(crate) fn open(context: &mut Context, index: usize, now: Instant) -> Result<Exchange, LoadError> {
    let fd = context.dialer.dial()?;
    context.poller.add(&fd, index, EDGES)?;
    Ok(Exchange::new(fd, index as u64 * STAMPS_PER_CONNECTION, now))
}

/// Closed loop: each connection sends its next message when the last one is back.
pub(crate) struct PingPong {
    connections: usize,
    message: Message,
    exchanges: Vec<Exchange>,
}

impl PingPong {
    pub(crate) fn new(connections: usize, size_bytes: usize) -> PingPong {
        PingPong { connections, message: Message::new(size_bytes), exchanges: Vec::new() }
    }
}

impl Load for PingPong {
    fn start(&mut self, context: &mut Context, now: Instant) -> Result<(), LoadError> {
        for index in 0..self.connections {
            let mut exchange = open(context, index, now)?;
            exchange.begin(&mut self.message, Instant::now()).map_err(|broken| broken.of(index))?;
            self.exchanges.push(exchange);
        }
        Ok(())
    }

    fn handle_ready(
        &mut self,
        context: &mut Context,
        token: usize,
        flags: EventFlags,
    ) -> Result<(), LoadError> {
        let exchange = &mut self.exchanges[token];
        let progress = exchange.handle_ready(&mut self.message, flags).map_err(|broken| broken.of(token))?;
        match progress {
            Progress::Waiting => Ok(()),
            Progress::Complete => {
                let now = Instant::now();
                context.tally.record(exchange.since, now, self.message.len());
                exchange.begin(&mut self.message, now).map_err(|broken| broken.of(token))
            }
        }
    }
}

/// Open loop: messages are due at fixed times whether or not earlier ones are back, and each latency counts from when
/// it was due. A stall is therefore felt by every message that fell into it (no coordinated omission).
pub(crate) struct Rate {
    connections: usize,
    message: Message,
    lanes: Vec<Lane>,
    interval: Duration,
    next_due: Option<Instant>,
    next_lane: usize,
}

/// A connection, and the messages that became due while it was busy.
struct Lane {
    exchange: Exchange,
    state: LaneState,
    overdue: VecDeque<Instant>,
}

#[derive(Clone, Copy, PartialEq)]
enum LaneState {
    Idle,
    Busy,
}

impl Rate {
    pub(crate) fn new(connections: usize, size_bytes: usize, units_per_second: f64) -> Rate {
        Rate {
            connections,
            message: Message::new(size_bytes),
            lanes: Vec::new(),
            interval: Duration::from_secs_f64(1.0 / units_per_second),
            next_due: None,
            next_lane: 0,
        }
    }
}

impl Load for Rate {
    fn start(&mut self, context: &mut Context, now: Instant) -> Result<(), LoadError> {
        for index in 0..self.connections {
            let exchange = open(context, index, now)?;
            self.lanes.push(Lane { exchange, state: LaneState::Idle, overdue: VecDeque::new() });
        }
        self.next_due = Some(Instant::now());
        Ok(())
    }

    fn handle_ready(
        &mut self,
        context: &mut Context,
        token: usize,
        flags: EventFlags,
    ) -> Result<(), LoadError> {
        let lane = &mut self.lanes[token];
        match lane.state {
            LaneState::Idle if flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                Err(Broken::Lost(std::io::ErrorKind::ConnectionReset.into()).of(token))
            }
            LaneState::Idle => Ok(()),
            LaneState::Busy => {
                let progress = lane
                    .exchange
                    .handle_ready(&mut self.message, flags)
                    .map_err(|broken| broken.of(token))?;
                if progress == Progress::Complete {
                    context.tally.record(lane.exchange.since, Instant::now(), self.message.len());
                    lane.state = LaneState::Idle;
                    lane.begin_next(&mut self.message).map_err(|broken| broken.of(token))?;
                }
                Ok(())
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.next_due
    }

    fn handle_timeout(&mut self, _context: &mut Context, now: Instant) -> Result<(), LoadError> {
        while let Some(due) = self.next_due.filter(|&due| due <= now) {
            let index = self.next_lane;
            self.next_lane = (index + 1) % self.lanes.len();
            self.next_due = Some(due + self.interval);
            let lane = &mut self.lanes[index];
            lane.overdue.push_back(due);
            lane.begin_next(&mut self.message).map_err(|broken| broken.of(index))?;
        }
        Ok(())
    }
}

impl Lane {
    fn begin_next(&mut self, message: &mut Message) -> Result<(), Broken> {
        match self.state {
            LaneState::Busy => Ok(()),
            LaneState::Idle => match self.overdue.pop_front() {
                None => Ok(()),
                Some(due) => {
                    self.state = LaneState::Busy;
                    self.exchange.begin(message, due)
                }
            },
        }
    }
}

/// Connect, echo one message, close: so many at once. The client closes first, having read the echo, without reset.
pub(crate) struct ShortSessions {
    connections: usize,
    message: Message,
    exchanges: Vec<Option<Exchange>>,
    sessions: u64,
    failures_in_a_row: u32,
}

impl ShortSessions {
    pub(crate) fn new(connections: usize, size_bytes: usize) -> ShortSessions {
        ShortSessions {
            connections,
            message: Message::new(size_bytes),
            exchanges: Vec::new(),
            sessions: 0,
            failures_in_a_row: 0,
        }
    }

    /// The next session of slot `index`; its latency includes the connect.
    fn open_next(&mut self, context: &mut Context, index: usize) -> Result<Exchange, LoadError> {
        loop {
            let now = Instant::now();
            let fd = context.dialer.dial()?;
            self.sessions += 1;
            let mut exchange = Exchange::new(fd, self.sessions, now);
            match exchange.begin(&mut self.message, now) {
                Ok(()) => {
                    context.poller.add(&exchange.fd, index, EDGES)?;
                    return Ok(exchange);
                }
                Err(broken) => self.handle_failure(context, index, broken)?,
            }
        }
    }

    fn handle_failure(
        &mut self,
        context: &mut Context,
        index: usize,
        broken: Broken,
    ) -> Result<(), LoadError> {
        let error = broken.of(index);
        context.tally.failed += 1;
        self.failures_in_a_row += 1;
        match &error {
            LoadError::WrongEcho { .. } => Err(error),
            LoadError::System { .. }
            | LoadError::Lost { .. }
            | LoadError::KeepsFailing { .. }
            | LoadError::NoSourcePort { .. }
            | LoadError::Unwatchable { .. }
            | LoadError::Unwritable { .. } => {
                if self.failures_in_a_row < FAILURES_IN_A_ROW {
                    return Ok(());
                }
                let to = context.dialer.to();
                Err(LoadError::KeepsFailing { count: self.failures_in_a_row, to, last: error.to_string() })
            }
        }
    }
}

impl Load for ShortSessions {
    fn start(&mut self, context: &mut Context, _now: Instant) -> Result<(), LoadError> {
        for index in 0..self.connections {
            let exchange = self.open_next(context, index)?;
            self.exchanges.push(Some(exchange));
        }
        Ok(())
    }

    fn handle_ready(
        &mut self,
        context: &mut Context,
        token: usize,
        flags: EventFlags,
    ) -> Result<(), LoadError> {
        let Some(mut exchange) = self.exchanges[token].take() else { return Ok(()) };
        match exchange.handle_ready(&mut self.message, flags) {
            Ok(Progress::Waiting) => {
                self.exchanges[token] = Some(exchange);
                return Ok(());
            }
            Ok(Progress::Complete) => {
                self.failures_in_a_row = 0;
                context.tally.record(exchange.since, Instant::now(), self.message.len());
            }
            Err(broken) => self.handle_failure(context, token, broken)?,
        }
        drop(exchange);
        self.exchanges[token] = Some(self.open_next(context, token)?);
        Ok(())
    }
}
