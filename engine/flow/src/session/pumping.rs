//! The session while its bytes are moved: what its driver asks and tells then.

use super::{FirstByte, Session};
use crate::pump::{Direction, Step};
use crate::time::Instant;
use crate::way::Refusal;

impl Session {
    /// What is to be started in a direction now. Only once nothing that was commanded to be sent to the direction's
    /// sink is unsent, with one exception: a driver that has a receive from the client under way when it carries
    /// out [`Command::Pump`](super::Command::Pump) asks for the first step of [`Direction::Up`] before the next command, sent or not, and
    /// takes that receive for it. Such a driver polls the commands after every step, also after none; for any other
    /// only [`Step::ShutDown`] may bring one.
    pub fn poll_step(&mut self, direction: Direction) -> Option<Step> {
        let is_carrying_out = self.setup.is_some();
        let pumps = self.pumps.as_mut()?;
        if is_carrying_out {
            return pumps.adopt_receive(direction);
        }
        let step = pumps.poll_step(direction);
        match step {
            // Either may have been the last of its direction.
            Some(Step::ShutDown) | None => self.check_end(),
            Some(Step::Receive(_) | Step::Send(_)) => {}
        }
        step
    }

    /// The source of a direction gave `bytes` bytes, at least 1.
    pub fn handle_received(&mut self, direction: Direction, bytes: usize, now: Instant) {
        if direction == Direction::Down && self.first_byte == FirstByte::Awaited {
            self.measure_first_byte(self.committed_at.unwrap_or(now), now);
        }
        if let Some(pumps) = &mut self.pumps {
            let is_piped = pumps.is_piping(direction);
            let switch = pumps.handle_received(direction, bytes, now);
            if is_piped || switch.is_some() {
                self.count_way(direction, if is_piped { bytes as u64 } else { 0 }, switch);
            }
        }
        if self.pacing.is_some() {
            self.charge(direction, bytes as u64, now);
        }
    }

    /// Whether its bytes are bounded: whoever receives takes little at a time then.
    pub fn is_paced(&self) -> bool {
        self.pacing.is_some()
    }

    /// Whether nothing is received in a direction until its rate allows it, at [`Session::poll_timeout`].
    pub fn is_paused(&self, direction: Direction) -> bool {
        self.pumps.as_ref().is_some_and(|pumps| pumps.is_paused(direction))
    }

    /// Counts bytes against their rates; the direction waits when that is too much.
    pub(super) fn charge(&mut self, direction: Direction, bytes: u64, now: Instant) {
        let (Some(pacing), Some(pumps)) = (&mut self.pacing, &mut self.pumps) else { return };
        if pacing.charge(direction, bytes, now) {
            pumps.pause(direction);
        } else if pumps.is_paused(direction) {
            // A receive that was under way when the wait began.
            pumps.resume(direction, now);
        }
    }

    /// Goes on in the directions that have waited long enough.
    pub(super) fn resume(&mut self, now: Instant) {
        if let (Some(pacing), Some(pumps)) = (&mut self.pacing, &mut self.pumps) {
            for direction in pacing.resume(now) {
                pumps.resume(direction, now);
            }
        }
    }

    /// No pipe is to be had for the receive that [`Step::Receive`] asked for: it was not begun, the next step is
    /// another.
    pub fn handle_pipe_refused(&mut self, direction: Direction, refusal: Refusal) {
        if let Some(pumps) = &mut self.pumps {
            pumps.handle_pipe_refused(direction, refusal);
            self.ways().refused[refusal.index()].add(1);
        }
    }

    /// The source of a direction ended its stream.
    pub fn handle_ended(&mut self, direction: Direction, now: Instant) {
        let is_cut_off = self.is_cut_off(direction.source());
        if let Some(pumps) = &mut self.pumps {
            if is_cut_off {
                pumps.handle_receive_failed(direction);
            } else {
                pumps.handle_ended(direction, now);
            }
            self.check_end();
        }
    }

    /// Receiving from the source of a direction failed.
    pub fn handle_receive_failed(&mut self, direction: Direction) {
        if let Some(pumps) = &mut self.pumps {
            pumps.handle_receive_failed(direction);
            self.check_end();
        }
    }

    /// The sink of a direction took the first `bytes` bytes of what was being sent.
    pub fn handle_sent(&mut self, direction: Direction, bytes: usize, now: Instant) {
        if let Some(pumps) = &mut self.pumps {
            let arrived = match &mut self.ciphers {
                None => bytes as u64,
                Some(ciphers) => ciphers.handle_sent(direction, bytes),
            };
            pumps.handle_sent(direction, bytes, arrived, now);
            self.count_bytes(direction, arrived);
        }
    }

    /// Sending to the sink of a direction failed.
    pub fn handle_send_failed(&mut self, direction: Direction) {
        if let Some(pumps) = &mut self.pumps {
            pumps.handle_send_failed(direction);
            self.check_end();
        }
    }

    /// Whether both sides are open and the pump runs.
    pub fn is_pumping(&self) -> bool {
        self.pumps.is_some()
    }
}
