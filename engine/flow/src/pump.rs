//! Moves the bytes of an open session, without touching one: decides for each direction what the driver does next.
//!
//! Each pump alternates between one receive and the sends that deliver it, so a slow sink stops the source by
//! itself: that is all the back-pressure there is, and a session never holds more than one receive's bytes a
//! direction. The [`Pumps`] of a session tie the two directions together: half-close, resets, timeouts.

use std::mem;
use std::time::Duration;

pub use crate::side::{Direction, Side};

use crate::close::CloseReason;
use crate::time::Instant;
use crate::way::{Chooser, Refusal, Splicing, Switch, Way};

/// What the driver is to start for a direction. Each step is handed out once and answered once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Receive from the source; answer with `handle_received`, `handle_ended` or `handle_receive_failed`, or, where
    /// no pipe is to be had, with `handle_pipe_refused`.
    Receive(Way),
    /// Send the first `usize` bytes of what was received and is unsent to the sink, from where it was received to;
    /// bytes behind them are not to be forwarded. Answer with `handle_sent` or `handle_send_failed`.
    Send(usize),
    /// Shut down the writing half of the sink. Needs no answer.
    ShutDown,
}

/// How one side's socket is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As close(2) does.
    Plain,
    /// By a reset (SO_LINGER 0), once everything sent before has been acknowledged.
    Reset,
}

/// The end of a session and how each side's socket is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Why.
    pub reason: CloseReason,
    /// How the client is to see it.
    pub client: Ending,
    /// How the upstream is to see it.
    pub upstream: Ending,
}

impl Closing {
    /// Closes both sides as close(2) does.
    pub const fn plain(reason: CloseReason) -> Closing {
        Closing { reason, client: Ending::Plain, upstream: Ending::Plain }
    }
}

/// One direction.
#[derive(Clone, Debug)]
struct Pump {
    state: State,
    chooser: Chooser,
    /// How many more bytes may be forwarded; what comes beyond is read and dropped.
    allowance: u64,
    /// Bytes that the sink took.
    delivered: u64,
    turn: Turn,
}

/// Whether the next receive may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Now,
    /// When the rate of its bytes allows it.
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A receive is due.
    Empty,
    /// A receive is under way.
    Receiving,
    /// A send of that many bytes is due.
    Full(usize),
    /// A send of that many bytes is under way.
    Sending(usize),
    /// The source has ended; the sink is to be told.
    Ended,
    /// The source broke while bytes commanded ahead of the pump may be unsent. Over when the next step is asked
    /// for: only then are they sent.
    Broken,
    /// Nothing more will be moved.
    Over,
}

impl Pump {
    fn poll_step(&mut self) -> Option<Step> {
        match self.state {
            State::Empty if self.turn == Turn::Later => None,
            State::Empty => {
                self.state = State::Receiving;
                Some(Step::Receive(self.chooser.way(self.allowance)))
            }
            State::Full(bytes) => {
                self.state = State::Sending(bytes);
                Some(Step::Send(bytes))
            }
            State::Ended => {
                self.state = State::Over;
                Some(Step::ShutDown)
            }
            State::Broken => {
                self.state = State::Over;
                None
            }
            State::Receiving | State::Sending(_) | State::Over => None,
        }
    }

    fn handle_received(&mut self, bytes: usize) -> Option<Switch> {
        if self.state == State::Over {
            // The sink failed while the receive was under way: there is nowhere to put the bytes.
            return None;
        }
        debug_assert_eq!(self.state, State::Receiving, "received without a receive");
        let forwarded = u64::try_from(bytes).unwrap_or(u64::MAX).min(self.allowance);
        if self.allowance != u64::MAX {
            self.allowance -= forwarded;
        }
        self.state = match usize::try_from(forwarded) {
            Ok(0) | Err(_) => State::Empty,
            Ok(forwarded) => State::Full(forwarded),
        };
        self.chooser.handle_received(bytes)
    }

    fn handle_translated(&mut self, payload_bytes: u64, bytes: usize) {
        if self.state == State::Over {
            return;
        }
        let is_receiving = matches!(self.state, State::Receiving | State::Empty | State::Full(_));
        debug_assert!(is_receiving, "received without a receive");
        if self.allowance != u64::MAX {
            self.allowance = self.allowance.saturating_sub(payload_bytes);
        }
        self.state = if bytes == 0 { State::Empty } else { State::Full(bytes) };
    }

    fn handle_pipe_refused(&mut self, refusal: Refusal) {
        self.chooser.handle_refused(refusal);
        if self.state == State::Receiving {
            self.state = State::Empty;
        }
    }

    fn handle_sent(&mut self, bytes: usize, arrived: u64) {
        let State::Sending(due) = self.state else {
            debug_assert!(false, "sent {bytes} bytes without a send in {:?}", self.state);
            return;
        };
        debug_assert!(bytes <= due, "sent {bytes} of {due} bytes");
        self.delivered += arrived;
        self.state = match due.saturating_sub(bytes) {
            0 => State::Empty,
            rest => State::Full(rest),
        };
    }
}

/// The limits of an open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Without a byte in either direction.
    pub idle: Duration,
    /// Without a byte after one direction is over.
    pub half_close: Duration,
}

/// What was commanded to be sent to the upstream ahead of the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    Sent,
    /// Some of it may still be on its way.
    Unsent,
}

/// Both directions of an open session.
#[derive(Clone, Debug)]
pub struct Pumps {
    up: Pump,
    down: Pump,
    ahead: Ahead,
    /// The side whose connection broke, once one has.
    broken: Option<Side>,
    last_activity: Instant,
    patience: Patience,
}

impl Pumps {
    /// Pumps that have moved nothing. `up_allowance` bounds what is forwarded from the client (`u64::MAX` for no
    /// bound); `client_ended` says that its end of stream was seen before.
    pub fn new(
        now: Instant,
        patience: Patience,
        splicing: Splicing,
        up_allowance: u64,
        client_ended: bool,
    ) -> Pumps {
        let chooser = Chooser::new(splicing);
        let pump = |state, allowance| Pump { state, chooser, allowance, delivered: 0, turn: Turn::Now };
        Pumps {
            up: pump(if client_ended { State::Ended } else { State::Empty }, up_allowance),
            down: pump(State::Empty, u64::MAX),
            ahead: Ahead::Sent,
            broken: None,
            last_activity: now,
            patience,
        }
    }

    /// Counts bytes that the driver was told to send in a direction ahead of the pump.
    pub fn count_early(&mut self, direction: Direction, bytes: u64) {
        self.pump_mut(direction).delivered += bytes;
    }

    /// What is to be started for a direction now; `None` while something is under way, or when it is over.
    pub fn poll_step(&mut self, direction: Direction) -> Option<Step> {
        match direction {
            Direction::Up => self.ahead = Ahead::Sent,
            Direction::Down => {}
        }
        self.pump_mut(direction).poll_step()
    }

    /// The first step of a direction, for a receive that was under way when the pump began: unlike
    /// [`Pumps::poll_step`] it says nothing about what was commanded ahead of the pump, and does not wait for its turn.
    pub fn adopt_receive(&mut self, direction: Direction) -> Option<Step> {
        match direction {
            Direction::Up => self.ahead = Ahead::Unsent,
            Direction::Down => {}
        }
        let pump = self.pump_mut(direction);
        let turn = mem::replace(&mut pump.turn, Turn::Now);
        let step = pump.poll_step();
        pump.turn = turn;
        step
    }

    /// The source gave `bytes` bytes, at least 1. Whether they will go another way from now on.
    pub fn handle_received(&mut self, direction: Direction, bytes: usize, now: Instant) -> Option<Switch> {
        self.last_activity = now;
        self.pump_mut(direction).handle_received(bytes)
    }

    /// What the source gave was translated: `payload_bytes` bytes more of it may go on, and all that is unsent is
    /// `bytes` bytes. May be told several times of one receive, until its send is asked for.
    pub fn handle_translated(
        &mut self,
        direction: Direction,
        payload_bytes: u64,
        bytes: usize,
        now: Instant,
    ) {
        self.last_activity = now;
        self.pump_mut(direction).handle_translated(payload_bytes, bytes);
    }

    /// The next receive of a direction is to wait for [`Pumps::resume`].
    pub fn pause(&mut self, direction: Direction) {
        self.pump_mut(direction).turn = Turn::Later;
    }

    /// Whether the next receive of a direction is to wait.
    pub fn is_paused(&self, direction: Direction) -> bool {
        self.pump(direction).turn == Turn::Later
    }

    /// A direction need not wait any longer.
    pub fn resume(&mut self, direction: Direction, now: Instant) {
        self.last_activity = now;
        self.pump_mut(direction).turn = Turn::Now;
    }

    /// How many more bytes of payload may be forwarded in a direction.
    pub fn allowance(&self, direction: Direction) -> u64 {
        self.pump(direction).allowance
    }

    /// Whether the receive that was asked for last goes through a pipe.
    pub fn is_piping(&self, direction: Direction) -> bool {
        let pump = self.pump(direction);
        pump.chooser.way(pump.allowance) != Way::Buffer
    }

    /// The receive that was to go through a pipe was not begun: ask for the next step.
    pub fn handle_pipe_refused(&mut self, direction: Direction, refusal: Refusal) {
        self.pump_mut(direction).handle_pipe_refused(refusal);
    }

    /// The source ended its stream.
    pub fn handle_ended(&mut self, direction: Direction, now: Instant) {
        self.last_activity = now;
        if self.is_over(direction) {
            return;
        }
        // A broken connection reads as ended once its error was reported elsewhere: that is no orderly end.
        if self.broken == Some(direction.source()) {
            self.break_off(direction);
            return;
        }
        let state = if self.is_last(direction) { State::Over } else { State::Ended };
        self.pump_mut(direction).state = state;
    }

    /// Receiving from the source failed: it is broken.
    pub fn handle_receive_failed(&mut self, direction: Direction) {
        self.broken.get_or_insert(direction.source());
        if !self.is_over(direction) {
            self.break_off(direction);
        }
    }

    /// The sink took the first `bytes` bytes of what was being sent, and with them `arrived` bytes of payload.
    pub fn handle_sent(&mut self, direction: Direction, bytes: usize, arrived: u64, now: Instant) {
        self.last_activity = now;
        self.pump_mut(direction).handle_sent(bytes, arrived);
    }

    /// Sending to the sink failed: it is broken. What it sent before is still read and delivered.
    pub fn handle_send_failed(&mut self, direction: Direction) {
        self.broken.get_or_insert(direction.sink());
        self.pump_mut(direction).state = State::Over;
    }

    /// How the session ends, once it does.
    pub fn poll_closing(&self) -> Option<Closing> {
        match self.broken {
            None if self.is_over(Direction::Up) && self.is_over(Direction::Down) => {
                Some(Closing::plain(CloseReason::Finished))
            }
            None => None,
            // Whatever the broken side sent before it broke is delivered first; the other way nothing can be.
            Some(side) if self.is_over(Direction::from(side)) => Some(match side {
                Side::Client => Closing {
                    reason: CloseReason::ClientReset,
                    client: Ending::Plain,
                    upstream: Ending::Reset,
                },
                Side::Upstream => Closing {
                    reason: CloseReason::UpstreamReset,
                    client: Ending::Reset,
                    upstream: Ending::Plain,
                },
            }),
            Some(_) => None,
        }
    }

    /// When `handle_timeout` is due, if nothing happens before.
    pub fn poll_timeout(&self) -> Instant {
        self.last_activity + self.limit().0
    }

    /// The end of the session when its limit has passed; `None` when it came too early.
    pub fn handle_timeout(&self, now: Instant) -> Option<Closing> {
        if Direction::BOTH.into_iter().any(|direction| self.is_paused(direction)) {
            // It is we who keep them silent.
            return None;
        }
        let (limit, reason) = self.limit();
        (now >= self.last_activity + limit).then_some(Closing::plain(reason))
    }

    /// Bytes that the sink of a direction took.
    pub fn delivered(&self, direction: Direction) -> u64 {
        self.pump(direction).delivered
    }

    /// Whether nothing more will be moved in a direction.
    pub fn is_over(&self, direction: Direction) -> bool {
        self.pump(direction).state == State::Over
    }

    /// Nothing more comes in this direction, and its sink is not to be told of an orderly end.
    fn break_off(&mut self, direction: Direction) {
        let state = match (direction, self.ahead) {
            (Direction::Up, Ahead::Unsent) => State::Broken,
            (Direction::Up, Ahead::Sent) | (Direction::Down, _) => State::Over,
        };
        self.pump_mut(direction).state = state;
    }

    /// Whether the end of a direction is the end of the session. Its sink need not be told then: it is closed at once,
    /// which tells the same, for nothing of what the sink sent is unread.
    fn is_last(&self, direction: Direction) -> bool {
        let is_flushed = match direction {
            Direction::Up => self.ahead == Ahead::Sent,
            // What the session says to the client is sent before it asks for bytes from the upstream.
            Direction::Down => true,
        };
        is_flushed && self.broken.is_none() && self.is_over(direction.other())
    }

    fn limit(&self) -> (Duration, CloseReason) {
        if self.is_over(Direction::Up) || self.is_over(Direction::Down) {
            (self.patience.half_close, CloseReason::HalfCloseTimeout)
        } else {
            (self.patience.idle, CloseReason::IdleTimeout)
        }
    }

    fn pump(&self, direction: Direction) -> &Pump {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn pump_mut(&mut self, direction: Direction) -> &mut Pump {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Down, Up};
    use super::*;
    use crate::way::STREAMING_BYTES;

    const RECEIVE: Step = Step::Receive(Way::Buffer);
    const NOW: Instant = Instant::ZERO;
    const PATIENCE: Patience = Patience { idle: Duration::from_secs(60), half_close: Duration::from_secs(5) };

    fn pumps() -> Pumps {
        Pumps::new(NOW, PATIENCE, Splicing::default(), u64::MAX, false)
    }

    #[test]
    fn a_direction_alternates_between_receive_and_send() {
        let mut pumps = pumps();
        assert_eq!(pumps.poll_step(Up), Some(RECEIVE));
        assert_eq!(pumps.poll_step(Up), None);
        pumps.handle_received(Up, 10, NOW);
        assert_eq!(pumps.poll_step(Up), Some(Step::Send(10)));
        pumps.handle_sent(Up, 4, 4, NOW);
        assert_eq!(pumps.poll_step(Up), Some(Step::Send(6)));
        assert_eq!(pumps.poll_step(Up), None);
        pumps.handle_sent(Up, 6, 6, NOW);
        assert_eq!(pumps.poll_step(Up), Some(RECEIVE));
        assert_eq!(pumps.delivered(Up), 10);
    }

    #[test]
    fn half_close_drains_the_other_direction() {
        let mut pumps = pumps();
        for direction in Direction::BOTH {
            pumps.poll_step(direction);
        }
        pumps.handle_ended(Up, NOW);
        assert_eq!(pumps.poll_step(Up), Some(Step::ShutDown));
        assert_eq!(pumps.poll_closing(), None);
        assert_eq!(pumps.poll_timeout(), NOW + PATIENCE.half_close);
        pumps.handle_received(Down, 1, NOW);
        assert_eq!(pumps.poll_step(Down), Some(Step::Send(1)));
        pumps.handle_sent(Down, 1, 1, NOW);
        assert_eq!(pumps.poll_step(Down), Some(RECEIVE));
        pumps.handle_ended(Down, NOW);
        let closing = Some(Closing::plain(CloseReason::Finished));
        assert_eq!(pumps.poll_closing(), closing, "the close tells the client");
        assert_eq!(pumps.poll_step(Down), None);
    }

    #[test]
    fn the_last_end_waits_for_what_was_commanded_ahead_of_the_pump() {
        let mut pumps = pumps();
        assert_eq!(pumps.adopt_receive(Up), Some(RECEIVE));
        pumps.poll_step(Down);
        pumps.handle_ended(Down, NOW);
        assert_eq!(pumps.poll_step(Down), Some(Step::ShutDown));
        pumps.handle_ended(Up, NOW);
        assert_eq!(pumps.poll_closing(), None, "early bytes are still to be sent");
        assert_eq!(pumps.poll_step(Up), Some(Step::ShutDown), "they are sent");
        assert_eq!(pumps.poll_closing(), Some(Closing::plain(CloseReason::Finished)));
    }

    #[test]
    fn a_reset_is_passed_on_after_what_came_before_it() {
        let mut pumps = pumps();
        pumps.poll_step(Down);
        pumps.poll_step(Up);
        pumps.handle_received(Up, 3, NOW);
        pumps.poll_step(Up);
        pumps.handle_send_failed(Up);
        assert_eq!(pumps.poll_closing(), None, "the upstream's last words are still to be read");
        pumps.handle_received(Down, 7, NOW);
        assert_eq!(pumps.poll_step(Down), Some(Step::Send(7)));
        pumps.handle_sent(Down, 7, 7, NOW);
        assert_eq!(pumps.poll_step(Down), Some(RECEIVE));
        pumps.handle_ended(Down, NOW);
        let closing = pumps.poll_closing().unwrap();
        assert_eq!((closing.reason, closing.client), (CloseReason::UpstreamReset, Ending::Reset));
        assert_eq!(pumps.poll_step(Down), None, "a reset is not announced as an orderly end");
    }

    #[test]
    fn a_reset_waits_for_what_was_commanded_ahead_of_the_pump() {
        // The receive that was under way when the pump began fails; the driver still sends early bytes.
        let mut pumps = pumps();
        assert_eq!(pumps.adopt_receive(Up), Some(RECEIVE));
        pumps.handle_receive_failed(Up);
        assert_eq!(pumps.poll_closing(), None, "early bytes are still to be sent");
        assert_eq!(pumps.poll_step(Up), None, "they are sent");
        let closing = pumps.poll_closing().unwrap();
        assert_eq!((closing.reason, closing.upstream), (CloseReason::ClientReset, Ending::Reset));
    }

    #[test]
    fn bytes_beyond_the_allowance_are_dropped() {
        let mut pumps = Pumps::new(NOW, PATIENCE, Splicing::default(), 5, false);
        pumps.poll_step(Up);
        pumps.handle_received(Up, 8, NOW);
        assert_eq!(pumps.poll_step(Up), Some(Step::Send(5)));
        pumps.handle_sent(Up, 5, 5, NOW);
        assert_eq!(pumps.poll_step(Up), Some(RECEIVE));
        pumps.handle_received(Up, 100, NOW);
        assert_eq!(pumps.poll_step(Up), Some(RECEIVE));
        assert_eq!(pumps.delivered(Up), 5);
    }

    #[test]
    fn a_stream_goes_through_a_pipe_and_back_to_buffers_when_that_is_refused() {
        let mut pumps = pumps();
        for _ in 0..2 {
            assert_eq!(pumps.poll_step(Up), Some(RECEIVE));
            pumps.handle_received(Up, STREAMING_BYTES, NOW);
            assert_eq!(pumps.poll_step(Up), Some(Step::Send(STREAMING_BYTES)));
            pumps.handle_sent(Up, STREAMING_BYTES, STREAMING_BYTES as u64, NOW);
        }
        assert_eq!(pumps.poll_step(Up), Some(Step::Receive(Way::Pipe { max_bytes: u64::MAX })));
        assert_eq!(pumps.poll_step(Down), Some(RECEIVE), "the other direction does not stream");
        pumps.handle_pipe_refused(Up, Refusal::Budget);
        assert_eq!(pumps.poll_step(Up), Some(RECEIVE));
        assert_eq!(pumps.poll_step(Up), None);
    }

    #[test]
    fn an_early_timeout_is_no_timeout() {
        let mut pumps = pumps();
        pumps.poll_step(Up);
        let later = NOW + Duration::from_secs(30);
        pumps.handle_received(Up, 1, later);
        assert_eq!(pumps.handle_timeout(NOW + Duration::from_secs(61)), None);
        let closing = pumps.handle_timeout(later + PATIENCE.idle).unwrap();
        assert_eq!(closing.reason, CloseReason::IdleTimeout);
    }
}
