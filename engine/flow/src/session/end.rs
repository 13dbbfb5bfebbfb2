//! How a session ends, and what it counts on the way.

use std::borrow::Cow;
use std::sync::Arc;

use super::approach;
use super::setup::Answered;
use super::{Command, Farewell, FirstByte, LINGER, MAX_LINGER_BYTES, RETIRED, Session, Stage};
use crate::account::{TargetCell, TargetCounters, UserCell, WayCell};
use crate::close::CloseReason;
use crate::dispatch::Path;
use crate::health::Outcome;
use crate::pump::{Closing, Direction, Ending, Pumps, Side};
use crate::retire::Retirement;
use crate::snapshot::TargetIndex;
use crate::time::Instant;
use crate::way::Switch;
use crate::wire::{Answer, Failure};

impl Session {
    /// Tells the client in its protocol's way that nothing could be reached.
    pub(super) fn tell_failure(&mut self, failure: Failure, reason: CloseReason, now: Instant) {
        let Some(setup) = &self.setup else { return };
        match (setup.answered, setup.answer()) {
            // It was told of success, and waits for what it asked for.
            (Answered::Yes, _) | (Answered::NotYet, Answer::None) => {
                self.close(Closing { reason, client: Ending::Reset, upstream: Ending::Plain });
            }
            (Answered::NotYet, Answer::Socks4 | Answer::Socks5 | Answer::HttpConnect | Answer::HttpPlain) => {
                let reply = setup.answer().failure(failure);
                self.refuse(reply, reason, now);
            }
        }
    }

    /// Sends a last word to the client and waits until it had time to read it.
    pub(super) fn refuse(&mut self, reply: Cow<'static, [u8]>, reason: CloseReason, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        setup.early = Vec::new();
        setup.replay = None;
        if reply.is_empty() {
            self.close(Closing::plain(reason));
            return;
        }
        setup.commands.push_back(Command::Send(Side::Client, reply));
        setup.commands.push_back(Command::ShutDownClient);
        setup.stage = Stage::Refusing {
            reason,
            deadline: now + LINGER,
            bytes_left: MAX_LINGER_BYTES,
            farewell: Farewell::Sending,
        };
    }

    pub(super) fn check_end(&mut self) {
        if !self.ended
            && let Some(closing) = self.pumps.as_ref().and_then(Pumps::poll_closing)
        {
            if closing.reason == CloseReason::UpstreamReset {
                self.count(|cell| cell.resets.add(1));
                if self.first_byte == FirstByte::Awaited {
                    self.observe(Outcome::ResetBeforeFirstByte);
                }
            }
            self.close(closing);
        }
    }

    pub(super) fn close(&mut self, closing: Closing) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.abandon_attempts(None);
        if let Some(setup) = &mut self.setup {
            setup.stage = Stage::Closed;
        }
        self.place = None;
        // Nothing more will be learned of its upstream.
        self.observe(Outcome::Abandoned);
        self.count(|cell| cell.active.sub(1));
        self.count_user(|cell| cell.active.sub(1));
        let cell = self.listener().counters.cell(self.view.worker());
        cell.active.sub(1);
        cell.closed[closing.reason.index()].add(1);
        if self.is_limited
            && let Some(limits) = &self.listener().limits
        {
            limits.leave(&self.client);
        }
        self.closing = Some(closing);
    }
}

impl Session {
    /// Whether it is served through the group by the member of an order, or may be yet.
    pub(super) fn concerns(&self, order: &Retirement) -> bool {
        let attempts = self.setup.iter().flat_map(|setup| &setup.attempts);
        attempts.map(|attempt| &attempt.path).chain([&self.path]).any(|path| self.leads_through(path, order))
    }

    fn leads_through(&self, path: &Path, order: &Retirement) -> bool {
        let is = |target: TargetIndex, counters: &Arc<TargetCounters>| {
            Arc::ptr_eq(&self.view.snapshot().target(target).counters, counters)
        };
        path.windows(2).any(|step| is(step[0], &order.group) && is(step[1], &order.member))
    }

    /// Follows the member that has gone, if the time has come. One that is back is not followed; nor is one that has
    /// lost to another.
    pub(super) fn retire(&mut self, now: Instant) {
        if self.pumps.is_none() {
            return;
        }
        let due = self.retiring.take_if(|retiring| retiring.order.is_revoked() || now >= retiring.at);
        if due.is_some_and(|due| !due.order.is_revoked() && self.leads_through(&self.path, &due.order)) {
            self.close(RETIRED);
        }
    }

    pub(super) fn count(&self, update: impl Fn(&TargetCell)) {
        approach::count(&self.view, &self.path, update);
    }

    /// Tells what was met at the upstream that has won.
    pub(super) fn observe(&self, outcome: Outcome) {
        if let Some(upstream) = self.path.last() {
            self.view.handle_outcome(*upstream, outcome);
        }
    }

    pub(super) fn ways(&self) -> &WayCell {
        &self.listener().counters.cell(self.view.worker()).ways
    }

    pub(super) fn count_way(&self, direction: Direction, piped_bytes: u64, switch: Option<Switch>) {
        let ways = self.ways();
        ways.count_piped(direction, piped_bytes);
        if let Some(switch) = switch {
            ways.count_switch(switch);
        }
    }

    /// Counts for the user that the client is, if it is one.
    pub(super) fn count_user(&self, update: impl FnOnce(&UserCell)) {
        if let Some(account) = &self.account {
            update(account.cell(self.view.worker()));
        }
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: u64) {
        let cell = self.listener().counters.cell(self.view.worker());
        match direction {
            Direction::Up => {
                cell.bytes_up.add(bytes);
                self.count(|cell| cell.bytes_up.add(bytes));
                self.count_user(|cell| cell.bytes_up.add(bytes));
            }
            Direction::Down => {
                cell.bytes_down.add(bytes);
                self.count(|cell| cell.bytes_down.add(bytes));
                self.count_user(|cell| cell.bytes_down.add(bytes));
            }
        }
    }
}
