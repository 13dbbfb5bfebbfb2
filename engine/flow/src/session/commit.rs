//! How the search for an upstream ends: an attempt has won, or nobody is left to try.

use std::net::SocketAddr;

use super::sealed::Ciphers;
use super::setup::{self, Answered};
use super::{Command, Session, Stage};
use crate::close::{CloseReason, ConnectError};
use crate::dial::AttemptId;
use crate::pump::{Direction, Patience, Pumps, Side};
use crate::time::Instant;
use crate::way::Splicing;
use crate::wire::Failure;

impl Session {
    /// Nobody is left to try.
    pub(super) fn give_up(&mut self, now: Instant) {
        if self.wait_in_line(now) {
            return;
        }
        let (failure, reason) = match self.last_error {
            None => (Failure::NoTarget, CloseReason::NoTarget),
            Some(error) => match error {
                ConnectError::Refused => (Failure::Refused, CloseReason::ConnectFailed),
                ConnectError::TimedOut => (Failure::TimedOut, CloseReason::ConnectTimeout),
                ConnectError::NetworkUnreachable => (Failure::NetworkUnreachable, CloseReason::ConnectFailed),
                ConnectError::HostUnreachable => (Failure::HostUnreachable, CloseReason::ConnectFailed),
                ConnectError::NotAllowed => (Failure::NotAllowed, CloseReason::DestinationNotAllowed),
                ConnectError::NotResolved => (Failure::NotResolved, CloseReason::ResolveFailed),
                ConnectError::Full => (Failure::NoTarget, CloseReason::UpstreamFull),
                ConnectError::OutOfResources => (Failure::OutOfResources, CloseReason::OutOfResources),
                ConnectError::Reset
                | ConnectError::Unanswered
                | ConnectError::ProxyAuthentication
                | ConnectError::ProxyRefused
                | ConnectError::ProxyBroken
                | ConnectError::OwnEnd
                | ConnectError::Other(_) => (Failure::General, CloseReason::ConnectFailed),
            },
        };
        self.tell_failure(failure, reason, now);
    }

    /// Tells the client that its request is fulfilled, once.
    pub(super) fn answer_success(&mut self, local: Option<SocketAddr>) {
        let Some(setup) = &mut self.setup else { return };
        if setup.answered == Answered::Yes {
            return;
        }
        let reply = setup.answer().success(local, &mut setup.words);
        if !reply.is_empty() {
            setup.answered = Answered::Yes;
            setup.commands.push_back(Command::Send(Side::Client, reply));
        }
    }

    /// An attempt has won; `heard` is what its destination said ahead of the pump.
    pub(super) fn commit(
        &mut self,
        index: usize,
        connection: AttemptId,
        local: Option<SocketAddr>,
        heard: &[u8],
        now: Instant,
    ) {
        let Some(setup) = &mut self.setup else { return };
        let mut winner = setup.attempts.swap_remove(index);
        let mut tunnel = winner.tunnel.take();
        self.place = winner.place.take();
        setup.dispatch.decide();
        self.abandon_attempts(Some(now));
        self.answer_success(local);
        let timeouts = self.view.snapshot().listener(self.listener).timeouts;
        let Some(setup) = &mut self.setup else { return };
        let (request, peeked) = (setup.request.as_ref(), setup.peeked.as_deref());
        self.view.handle_committed(&winner.path, setup::subject(&self.client, request, peeked), heard, now);
        let (bytes, allowance) = match setup.replay.take() {
            // It has been told all that is known.
            Some(replay) if winner.is_told => (replay.bytes.len() as u64, replay.allowance),
            Some(replay) => setup.send_first(replay.bytes, replay.allowance, tunnel.as_deref_mut()),
            None => {
                let (first, allowance) = setup.take_first_bytes();
                setup.send_first(first, allowance, tunnel.as_deref_mut())
            }
        };
        if let Some(tunnel) = tunnel {
            self.ciphers.get_or_insert_default().upstream = Some(*tunnel);
        }
        if !heard.is_empty() {
            let heard = Ciphers::sealed_for_client(self.ciphers.as_deref_mut(), heard);
            setup.commands.push_back(Command::Send(Side::Client, heard.into()));
        }
        setup.commands.push_back(Command::Pump(connection));
        setup.stage = Stage::Pumping;
        let patience = Patience { idle: timeouts.idle, half_close: timeouts.half_close };
        let splicing = match (&self.ciphers, &self.pacing) {
            (None, None) => self.view.snapshot().splicing,
            // What goes through a pipe cannot be translated; what is bounded goes by little pieces.
            (Some(_), _) | (None, Some(_)) => Splicing::Off,
        };
        let mut pumps = Pumps::new(now, patience, splicing, allowance, setup.client_ended);
        pumps.count_early(Direction::Up, bytes);
        pumps.count_early(Direction::Down, heard.len() as u64);
        self.pumps = Some(pumps);
        self.upstream = Some(winner.upstream);
        self.measure_commit(&winner, now);
        self.path = winner.path;
        self.committed_at = Some(now);
        self.count(|cell| cell.committed.add(1));
        self.count_bytes(Direction::Up, bytes);
        // What was said ahead of the pump counts too; and where others have run ahead of a rate that is shared, whoever
        // comes waits with them.
        self.charge(Direction::Up, bytes, now);
        self.charge(Direction::Down, heard.len() as u64, now);
        if !heard.is_empty() {
            self.measure_first_byte(winner.reached_at, now);
            self.count_bytes(Direction::Down, heard.len() as u64);
        }
        // The member may have gone while it was being reached.
        self.retire(now);
    }
}
