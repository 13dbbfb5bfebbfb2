//! What completes, and what the session is told of it.

use std::net::SocketAddr;

use ringweir_flow::pump::{Direction, Side};
use ringweir_flow::resolve::Resolved;
use ringweir_flow::verify::Verdict;
use ringweir_flow::way::Way;

use super::{Course, DialState, Driver, Receiving, Sending};
use crate::faults::Fault;
use crate::invariants::{Login, RECEIVE_BYTES, Verdicts, index};
use crate::peer::Received;
use crate::schedule::Tools;

/// What a driver receives at once when the pump runs.
const PUMP_BYTES: usize = 128 * 1024;

impl Driver {
    pub(super) fn complete_receive(&mut self, side: Side, tools: &mut Tools) -> Verdicts {
        self.receiving[index(side)] = Receiving::Idle;
        let is_pumping = self.session.is_pumping();
        let way = self.ways[index(side)];
        if let Some(refusal) = super::draw_refusal(way, tools) {
            // The source has something, but every pipe is taken by now.
            self.session.handle_pipe_refused(Direction::from(side), refusal);
            return Ok(());
        }
        let max = match way {
            Way::Pipe { max_bytes }
                if max_bytes < PUMP_BYTES as u64 && !tools.strikes(Fault::OverfillPipe) =>
            {
                max_bytes as usize
            }
            Way::Pipe { .. } => PUMP_BYTES,
            Way::Buffer if is_pumping => PUMP_BYTES,
            Way::Buffer => RECEIVE_BYTES,
        };
        let Some(conn) = self.conn_mut(side) else { return Ok(()) };
        let received = conn.receive(max, &mut tools.rng);
        let (direction, now) = (Direction::from(side), tools.now);
        match received {
            Received::Bytes(bytes) => {
                if side == Side::Client {
                    self.witness.fed += bytes.len();
                    self.witness.check_fed()?;
                }
                if is_pumping {
                    let bytes = tools.spoil(bytes);
                    self.witness.last_activity = now;
                    self.session.handle_received(direction, bytes.len(), now);
                    self.held[index(side.other())] = bytes;
                } else {
                    // A receive may fill several buffers.
                    let (head, tail) = bytes.split_at(tools.rng.usize(1..=bytes.len()));
                    for slice in [head, tail].into_iter().filter(|slice| !slice.is_empty()) {
                        self.session.handle_bytes(slice, now);
                    }
                }
            }
            Received::End if !is_pumping => {
                self.course[index(side.other())] = Course::Over;
                self.session.handle_client_ended();
            }
            Received::Failed if !is_pumping => self.session.handle_client_failed(),
            Received::End if tools.strikes(Fault::LoseHalfClose) => {}
            Received::Failed if !tools.strikes(Fault::ResetAsEnd) => {
                self.course[index(side.other())] = Course::Over;
                self.session.handle_receive_failed(direction);
            }
            Received::End | Received::Failed => {
                self.course[index(side.other())] = Course::Over;
                self.witness.last_activity = now;
                self.session.handle_ended(direction, now);
            }
        }
        Ok(())
    }

    pub(super) fn complete_send(&mut self, side: Side, tools: &mut Tools) -> Verdicts {
        let sending = std::mem::replace(&mut self.sending[index(side)], Sending::Nothing);
        let (bytes, due) = match sending {
            Sending::Nothing => return Ok(()),
            Sending::Outbox => (&self.outbox[index(side)], self.outbox[index(side)].len()),
            Sending::Held(due) => (&self.held[index(side)], due),
        };
        let conn = match side {
            Side::Client => Some(&mut self.client),
            Side::Upstream => self.upstream.as_mut(),
        };
        let Some(conn) = conn else { return Ok(()) };
        let direction = Direction::from(side.other());
        let Some(taken) = conn.send(due, &mut tools.rng) else {
            self.outbox[index(side)].clear();
            self.course[index(side)] = Course::Over;
            if self.session.is_pumping() {
                self.session.handle_send_failed(direction);
            } else {
                self.session.handle_client_failed();
            }
            return Ok(());
        };
        let bytes = &bytes[..taken];
        conn.deliver(bytes);
        match side {
            Side::Client => {
                let before = self.client.sent - taken;
                self.witness.check_down(before, bytes, self.upstream.as_ref())?;
            }
            Side::Upstream => self.witness.check_up(bytes)?,
        }
        match sending {
            Sending::Nothing => {}
            Sending::Outbox => {
                self.outbox[index(side)].drain(..taken);
            }
            Sending::Held(_) => {
                self.held[index(side)].drain(..taken);
                self.witness.last_activity = tools.now;
                self.session.handle_sent(direction, taken, tools.now);
            }
        }
        Ok(())
    }

    pub(super) fn complete_dial(&mut self, number: usize, tools: &mut Tools) {
        let dial = &mut self.dials[number];
        let Some((_, result)) = dial.answer.take() else { return };
        let (attempt, state) = (dial.attempt, dial.state);
        match result {
            Ok(()) => {
                let local: SocketAddr = "198.18.0.1:50000".parse().unwrap();
                let local = (dial.wants_local && tools.rng.u8(..4) != 0).then_some(local);
                if state == DialState::Pending {
                    dial.state = DialState::Connected(local);
                }
                self.session.handle_connected(attempt, local, tools.now);
            }
            Err(error) => {
                if state == DialState::Pending {
                    dial.state = DialState::Done;
                    self.witness.handle_connect_failed(error);
                }
                if !tools.strikes(Fault::SkipConnectFailed) {
                    self.session.handle_connect_failed(attempt, error, tools.now);
                }
            }
        }
    }

    pub(super) fn tell_verified(&mut self, verdict: Verdict, tools: &mut Tools) {
        self.witness.login = Login::Told(verdict);
        self.session.handle_verified(verdict, tools.now);
    }

    pub(super) fn tell_resolved(&mut self, resolved: Resolved, tools: &mut Tools) {
        self.witness.handle_resolved(&resolved);
        self.session.handle_resolved(resolved, tools.now);
    }
}
