//! Waiting for a place at an upstream that bears no more sessions.

use super::setup::Setup;
use super::{Command, Session, Stage};
use crate::capacity::{Line, Place, Ticket};
use crate::close::{CloseReason, ConnectError};
use crate::dispatch::Dispatch;
use crate::snapshot::TargetIndex;
use crate::time::Instant;
use crate::wire::Failure;

/// Where a session stands with upstreams that are full.
#[derive(Debug, Default)]
pub(super) struct Queueing {
    /// The first that was met, in this round of tries, and has a line.
    full: Option<TargetIndex>,
    /// A place that has come, for the round that follows.
    place: Option<Place>,
    wait: Wait,
    /// How long it waits, in all.
    until: Option<Instant>,
}

#[derive(Debug, Default)]
enum Wait {
    #[default]
    No,
    /// The driver is to join the line.
    Joining,
    In {
        _ticket: Ticket,
    },
}

impl Queueing {
    /// Whether nothing is to be tried before a place comes.
    pub(super) fn is_waiting(&self) -> bool {
        match self.wait {
            Wait::No => false,
            Wait::Joining | Wait::In { .. } => true,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.until.filter(|_| self.is_waiting())
    }
}

impl Setup {
    /// Takes a place at the upstream of an attempt, if it has a bound; whether the attempt may go on.
    pub(super) fn take_place(
        &mut self,
        index: usize,
        upstream: TargetIndex,
        view: &crate::view::View,
    ) -> bool {
        let Some(capacity) = &view.snapshot().target(upstream).capacity else { return true };
        let waited_for = self.queueing.place.take_if(|place| place.is_of(capacity));
        let place = waited_for.or_else(|| capacity.take());
        if place.is_none() && self.queueing.full.is_none() && capacity.has_queue() {
            self.queueing.full = Some(upstream);
        }
        self.attempts[index].place = place;
        self.attempts[index].place.is_some()
    }
}

impl Session {
    /// Nobody is left to try: waits for a place, where somebody was full and it has not waited long enough. Whether it
    /// does.
    pub(super) fn wait_in_line(&mut self, now: Instant) -> bool {
        let Some(setup) = &mut self.setup else { return false };
        setup.queueing.place = None;
        let Some(full) = setup.queueing.full.take() else { return false };
        let Some(capacity) = &self.view.snapshot().target(full).capacity else { return false };
        let until = *setup.queueing.until.get_or_insert_with(|| now + capacity.patience());
        if now >= until {
            return false;
        }
        setup.queueing.wait = Wait::Joining;
        setup.commands.push_back(Command::JoinLine(Line(std::sync::Arc::clone(capacity))));
        true
    }

    /// The driver has joined the line of [`Command::JoinLine`], or as many wait there as may.
    pub fn handle_joined(&mut self, ticket: Option<Ticket>, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        match (&setup.stage, &setup.queueing.wait, ticket) {
            (Stage::Reaching, Wait::Joining, Some(ticket)) => {
                setup.queueing.wait = Wait::In { _ticket: ticket }
            }
            (Stage::Reaching, Wait::Joining, None) => self.leave_line(now),
            // It is over, and wants no ticket.
            _ => {}
        }
    }

    /// A place has come. It may be another member that serves: this one is the last to be free, not the best.
    pub fn handle_place(&mut self, place: Place, now: Instant) {
        let target = self.rule_target.unwrap_or(self.listener().target);
        let Some(setup) = &mut self.setup else { return };
        if !matches!(setup.stage, Stage::Reaching) || !setup.queueing.is_waiting() {
            return;
        }
        setup.queueing.wait = Wait::No;
        setup.dispatch = Dispatch::with_place(target, &place);
        setup.queueing.place = Some(place);
        self.last_error = None;
        self.advance(now);
    }

    /// It has waited long enough, if the time has come.
    pub(super) fn expire_wait(&mut self, now: Instant) {
        let due = self.setup.as_ref().and_then(|setup| setup.queueing.poll_timeout());
        if due.is_some_and(|due| now >= due) {
            self.leave_line(now);
        }
    }

    fn leave_line(&mut self, now: Instant) {
        if let Some(setup) = &mut self.setup {
            setup.queueing = Queueing::default();
        }
        self.last_error = Some(ConnectError::Full);
        self.tell_failure(Failure::NoTarget, CloseReason::UpstreamFull, now);
    }
}
