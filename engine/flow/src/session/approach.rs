//! How a session gets from a request to an open upstream: dispatch, resolve, dial, commit.

use std::net::SocketAddr;
use std::rc::Rc;

use smallvec::SmallVec;

use super::{Command, Session, Stage};
use crate::close::{CloseReason, ConnectError};
use crate::dial::{AttemptId, Dial, Next, UpstreamAddr};
use crate::dispatch::Choice;
use crate::outgoing::{Origin, Outgoing};
use crate::pump::{Direction, Patience, Pumps, Side};
use crate::snapshot::{TargetIndex, TargetKind, Upstream};
use crate::time::Instant;
use crate::view::View;
use crate::wire::{self, Answer, Destination, Failure, Request};

impl Session {
    pub(super) fn advance_handshake(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        let users = view.snapshot().listener(self.listener).users.as_deref();
        loop {
            let Some(setup) = &mut self.setup else { return };
            let Stage::Handshake { wire, .. } = &mut setup.stage else { return };
            let progress = wire.advance(&setup.early, users);
            setup.early.drain(..progress.consumed);
            match progress.step {
                wire::Step::Incomplete => return,
                wire::Step::Reply(reply) => {
                    setup.commands.push_back(Command::Send(Side::Client, reply));
                }
                wire::Step::Request(request) => {
                    self.begin(request, now);
                    return;
                }
                wire::Step::Refuse { reply, reason } => {
                    self.refuse(reply, reason, now);
                    return;
                }
            }
        }
    }

    pub(super) fn begin(&mut self, request: Request, now: Instant) {
        if self.view.snapshot().log_sessions {
            self.destination = Some(Box::new(request.destination.clone()));
        }
        if let Some(setup) = &mut self.setup {
            setup.request = Some(request);
            setup.stage = Stage::Choosing;
        }
        self.try_next_upstream(now);
    }

    pub(super) fn try_next_upstream(&mut self, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        setup.stage = Stage::Choosing;
        let connect = self.view.snapshot().listener(self.listener).timeouts.connect;
        let Some(Choice { upstream, deadline }) = setup.dispatch.next(&self.view, now, connect) else {
            self.give_up(now);
            return;
        };
        self.path = setup.dispatch.path_to(upstream);
        self.upstream = Some(upstream);
        self.attempts = self.attempts.saturating_add(1);
        self.count(|cell| {
            cell.attempts.add(1);
            cell.active.add(1);
        });
        self.measure_pick(now);
        self.approach(upstream, deadline, now);
    }

    pub(super) fn approach(&mut self, upstream: TargetIndex, deadline: Instant, now: Instant) {
        let view = Rc::clone(&self.view);
        let Some(setup) = &mut self.setup else { return };
        let TargetKind::Upstream(upstream) = &view.snapshot().target(upstream).kind else {
            unreachable!("dispatch ends at upstreams")
        };
        match upstream {
            Upstream::Tcp(addresses) if addresses.is_empty() => {
                self.fail_upstream(ConnectError::NotResolved, now);
            }
            Upstream::Tcp(addresses) => {
                self.dial(addresses.iter().map(|address| UpstreamAddr::Tcp(*address)), deadline, now);
            }
            Upstream::Unix(path) => self.dial([UpstreamAddr::Unix(path.clone())], deadline, now),
            Upstream::Direct => match setup.request.as_ref().map(|request| request.destination.clone()) {
                Some(Destination::Address(address)) => self.dial_permitted([address], deadline, now),
                Some(Destination::Name(name, _)) => {
                    setup.stage = Stage::Resolving { deadline };
                    setup.commands.push_back(Command::Resolve(name));
                }
                // Control refuses a configuration in which a plain tcp listener leads to `direct`.
                None => self.fail_upstream(ConnectError::NotAllowed, now),
            },
            Upstream::Reject => {
                self.release_path(|cell| cell.abandoned.add(1));
                self.tell_failure(Failure::Rejected, CloseReason::Rejected, now);
            }
        }
    }

    pub(super) fn dial_permitted(
        &mut self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        deadline: Instant,
        now: Instant,
    ) {
        let view = Rc::clone(&self.view);
        let reach = &view.snapshot().listener(self.listener).reach;
        let permitted: SmallVec<[UpstreamAddr; 2]> = addresses
            .into_iter()
            .filter(|address| reach.permits(address.ip()))
            .map(UpstreamAddr::Tcp)
            .collect();
        if permitted.is_empty() {
            self.fail_upstream(ConnectError::NotAllowed, now);
        } else {
            self.dial(permitted, deadline, now);
        }
    }

    pub(super) fn dial(
        &mut self,
        addresses: impl IntoIterator<Item = UpstreamAddr>,
        deadline: Instant,
        now: Instant,
    ) {
        let Some(setup) = &mut self.setup else { return };
        let outgoing =
            self.upstream.and_then(|upstream| self.view.snapshot().target(upstream).outgoing.as_deref());
        let dial = match outgoing {
            None => Dial::new(addresses, deadline),
            Some(outgoing) => Dial::new(addresses.into_iter().filter(|to| may_reach(outgoing, to)), deadline),
        };
        // Upstreams without an address do not come here.
        if dial.is_empty() {
            self.fail_upstream(ConnectError::OwnEnd, now);
        } else {
            setup.stage = Stage::Dialing(dial);
            self.advance_dial(now);
        }
    }

    pub(super) fn advance_dial(&mut self, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Dialing(dial) = &mut setup.stage else { return };
        match dial.next(now) {
            Next::Connect(address) => {
                let attempt = AttemptId(setup.next_attempt);
                setup.next_attempt = setup.next_attempt.wrapping_add(1);
                dial.handle_started(attempt, now);
                let local = setup.answer() == Answer::Socks5;
                let origin = self.upstream.and_then(|target| origin(&self.view, target, &address));
                setup.commands.push_back(Command::Connect { attempt, address, local, origin });
            }
            Next::Wait => {}
            Next::Exhausted(error) => self.fail_upstream(error, now),
        }
    }

    /// The upstream that was tried cannot be had: on to the next.
    pub(super) fn fail_upstream(&mut self, error: ConnectError, now: Instant) {
        self.last_error = Some(error);
        self.abandon_dial();
        self.release_path(|cell| cell.failed[error.index()].add(1));
        self.try_next_upstream(now);
    }

    /// Nobody is left to try.
    pub(super) fn give_up(&mut self, now: Instant) {
        let (failure, reason) = match self.last_error {
            None => (Failure::NoTarget, CloseReason::NoTarget),
            Some(error) => match error {
                ConnectError::Refused => (Failure::Refused, CloseReason::ConnectFailed),
                ConnectError::TimedOut => (Failure::TimedOut, CloseReason::ConnectTimeout),
                ConnectError::NetworkUnreachable => (Failure::NetworkUnreachable, CloseReason::ConnectFailed),
                ConnectError::HostUnreachable => (Failure::HostUnreachable, CloseReason::ConnectFailed),
                ConnectError::NotAllowed => (Failure::NotAllowed, CloseReason::DestinationNotAllowed),
                ConnectError::NotResolved => (Failure::NotResolved, CloseReason::ResolveFailed),
                ConnectError::OutOfResources => (Failure::OutOfResources, CloseReason::OutOfResources),
                ConnectError::Reset | ConnectError::OwnEnd | ConnectError::Other(_) => {
                    (Failure::General, CloseReason::ConnectFailed)
                }
            },
        };
        self.tell_failure(failure, reason, now);
    }

    pub(super) fn commit(&mut self, attempt: AttemptId, local: Option<SocketAddr>, now: Instant) {
        self.abandon_dial();
        let timeouts = self.view.snapshot().listener(self.listener).timeouts;
        let splicing = self.view.snapshot().splicing;
        let Some(setup) = &mut self.setup else { return };
        let reply = setup.answer().success(local, &mut setup.words);
        if !reply.is_empty() {
            setup.commands.push_back(Command::Send(Side::Client, reply));
        }
        let (first, allowance) = setup.take_first_bytes();
        let bytes = first.len() as u64;
        if bytes > 0 {
            setup.commands.push_back(Command::Send(Side::Upstream, first.into()));
        } else {
            setup.reuse(first);
        }
        setup.commands.push_back(Command::Pump(attempt));
        setup.stage = Stage::Pumping;
        let patience = Patience { idle: timeouts.idle, half_close: timeouts.half_close };
        let mut pumps = Pumps::new(now, patience, splicing, allowance, setup.client_ended);
        pumps.count_early(bytes);
        self.pumps = Some(pumps);
        self.measure_commit(now);
        self.committed_at = Some(now);
        self.count(|cell| cell.committed.add(1));
        self.count_bytes(Direction::Up, bytes);
    }
}

/// Whether an address can be come to from where the upstream's connections are to come from.
fn may_reach(outgoing: &Outgoing, to: &UpstreamAddr) -> bool {
    match to {
        UpstreamAddr::Tcp(address) => outgoing.reaches(*address),
        UpstreamAddr::Unix(_) => true,
    }
}

/// What is special about the next connect to an upstream; it takes the turn of its source address.
fn origin(view: &View, target: TargetIndex, to: &UpstreamAddr) -> Option<Origin> {
    let outgoing = view.snapshot().target(target).outgoing.as_deref()?;
    let source = match to {
        UpstreamAddr::Tcp(address) if !outgoing.sources.is_empty() => {
            outgoing.source(*address, view.next_turn(target, address.is_ipv4()))
        }
        UpstreamAddr::Tcp(_) | UpstreamAddr::Unix(_) => None,
    };
    Some(Origin { target, source })
}
