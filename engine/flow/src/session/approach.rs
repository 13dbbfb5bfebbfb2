//! How a session gets from a request to an open upstream: dispatch, resolve, dial, listen, commit.

use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::attempt::{Approach, Attempt};
use super::setup::{self, Lookup, Replay};
use super::{Command, Session, Stage};
use crate::account::TargetCell;
use crate::close::{CloseReason, ConnectError};
use crate::dial::{self, AttemptId, Dial, UpstreamAddr};
use crate::dispatch::{self, Choice};
use crate::health::Outcome;
use crate::outgoing::{Origin, Outgoing};
use crate::record::ClientAddr;
use crate::resolve::{ResolveError, Resolved};
use crate::snapshot::{Commit, FirstHop, Route, TargetIndex, TargetKind, Towards, Upstream};
use crate::time::Instant;
use crate::view::View;
use crate::wire::{Destination, Failure, Request};

/// A member that refuses at once is not the fastest.
const FAILURE_COUNTS_AS: Duration = Duration::from_secs(1);

impl Session {
    pub(super) fn begin(&mut self, request: Request, now: Instant) {
        if self.view.snapshot().log_sessions {
            self.destination = Some(Box::new(request.destination.clone()));
            self.user = request.user.clone();
        }
        if let Some(user) = &request.user {
            self.account = self.listener().user_counters.get(user).cloned();
            self.count_user(|cell| {
                cell.active.add(1);
                cell.sessions.add(1);
            });
        }
        if let Some(setup) = &mut self.setup {
            setup.request = Some(request);
        }
        self.set_out(now);
    }

    /// Begins whatever is to be tried now; tells the client when there is nothing left.
    pub(super) fn advance(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        let connect = view.snapshot().listener(self.listener).timeouts.connect;
        while let Some(setup) = &mut self.setup
            && matches!(setup.stage, Stage::Reaching)
            && !setup.queueing.is_waiting()
        {
            let (request, peeked) = (setup.request.as_ref(), setup.peeked.as_deref());
            let subject = setup::subject(&self.client, request, peeked);
            match setup.dispatch.next(&view, subject, now, connect) {
                dispatch::Next::Try(choice) => self.begin_attempt(&choice, now),
                dispatch::Next::Wait => return,
                dispatch::Next::Exhausted => {
                    self.give_up(now);
                    return;
                }
            }
        }
    }

    fn begin_attempt(&mut self, choice: &Choice, now: Instant) {
        let view = Rc::clone(&self.view);
        let Some(setup) = &mut self.setup else { return };
        let TargetKind::Upstream(upstream) = &view.snapshot().target(choice.upstream).kind else {
            unreachable!("dispatch ends at upstreams")
        };
        let path = setup.dispatch.path_to(choice);
        let commit = commit_of(&view, &path, upstream);
        count(&view, &path, |cell| {
            cell.attempts.add(1);
            cell.active.add(1);
        });
        setup.attempts.push(Attempt::new(choice, path, commit, now));
        let index = setup.attempts.len() - 1;
        self.upstream = Some(choice.upstream);
        self.attempts = self.attempts.saturating_add(1);
        self.measure_pick(now);
        if let Some(setup) = &mut self.setup
            && !setup.take_place(index, choice.upstream, &view)
        {
            return self.fail_attempt(index, ConnectError::Full, now);
        }
        self.prepare_to_announce(choice.upstream);
        self.approach(index, upstream, now);
    }

    fn approach(&mut self, index: usize, upstream: &Upstream, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        match upstream {
            Upstream::Tcp(addresses) if addresses.is_empty() => {
                self.fail_attempt(index, ConnectError::NotResolved, now);
            }
            Upstream::Tcp(addresses) => {
                self.dial(index, addresses.iter().map(|address| UpstreamAddr::Tcp(*address)), now);
            }
            Upstream::Unix(path) => self.dial(index, [UpstreamAddr::Unix(path.clone())], now),
            Upstream::Proxied(route) => self.approach_proxy(index, route, now),
            Upstream::Direct => match setup.request.as_ref().map(|request| &request.destination) {
                Some(Destination::Address(address)) => {
                    let address = *address;
                    self.dial_permitted(index, [address], now);
                }
                Some(Destination::Name(name, _)) => match &setup.lookup {
                    Lookup::Idle => {
                        setup.lookup = Lookup::UnderWay;
                        setup.commands.push_back(Command::Resolve(name.clone()));
                    }
                    Lookup::UnderWay => {}
                    Lookup::Done(addresses) => {
                        let addresses = addresses.clone();
                        self.dial_permitted(index, addresses, now);
                    }
                },
                // Control refuses a configuration in which a plain tcp listener leads to `direct`.
                None => self.fail_attempt(index, ConnectError::NotAllowed, now),
            },
            Upstream::Reject => {
                self.abandon_attempts(Some(now));
                self.tell_failure(Failure::Rejected, CloseReason::Rejected, now);
            }
        }
    }

    fn approach_proxy(&mut self, index: usize, route: &Route, now: Instant) {
        let Some(setup) = &self.setup else { return };
        let asked = setup.request.as_ref().map(|request| &request.destination);
        let leads_anywhere = route.hops.iter().any(|hop| hop.towards == Towards::Client);
        let reach = &self.view.snapshot().listener(self.listener).reach;
        let is_allowed = match asked {
            // What a name stands for is the proxy's to know.
            Some(Destination::Name(..)) => true,
            Some(Destination::Address(address)) => reach.permits(address.ip()) || !leads_anywhere,
            // Control refuses a configuration in which a plain tcp listener leads to such a proxy.
            None => !leads_anywhere,
        };
        match &route.first {
            _ if !is_allowed => self.fail_attempt(index, ConnectError::NotAllowed, now),
            FirstHop::Tcp(addresses) if addresses.is_empty() => {
                self.fail_attempt(index, ConnectError::NotResolved, now);
            }
            FirstHop::Tcp(addresses) => {
                self.dial(index, addresses.iter().map(|address| UpstreamAddr::Tcp(*address)), now);
            }
            FirstHop::Unix(path) => self.dial(index, [UpstreamAddr::Unix(path.clone())], now),
        }
    }

    /// The addresses of the destination, or why there are none.
    pub(super) fn resolve_attempts(&mut self, resolved: Resolved, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let port = setup.request.as_ref().map_or(0, |request| request.destination.port());
        let found = match resolved {
            Ok(addresses) => Ok(dial::interleaved(addresses, port)),
            Err(ResolveError::TimedOut) => Err(ConnectError::TimedOut),
            Err(ResolveError::NotFound | ResolveError::Failed) => Err(ConnectError::NotResolved),
        };
        // The next attempt that wants them asks again where there are none.
        setup.lookup = found.as_ref().map_or(Lookup::Idle, |addresses| Lookup::Done(addresses.clone()));
        while let Some(index) = self.first_resolving() {
            match &found {
                Ok(addresses) => self.dial_permitted(index, addresses.iter().copied(), now),
                Err(error) => self.fail_attempt(index, *error, now),
            }
        }
        self.advance(now);
    }

    fn first_resolving(&self) -> Option<usize> {
        let attempts = &self.setup.as_ref()?.attempts;
        attempts.iter().position(|attempt| matches!(attempt.approach, Approach::Resolving))
    }

    fn dial_permitted(
        &mut self,
        index: usize,
        addresses: impl IntoIterator<Item = SocketAddr>,
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
            self.fail_attempt(index, ConnectError::NotAllowed, now);
        } else {
            self.dial(index, permitted, now);
        }
    }

    fn dial(&mut self, index: usize, addresses: impl IntoIterator<Item = UpstreamAddr>, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let attempt = &mut setup.attempts[index];
        let outgoing = self.view.snapshot().target(attempt.upstream).outgoing.as_deref();
        let dial = match outgoing {
            None => Dial::new(addresses),
            Some(outgoing) => {
                let client = &self.client;
                Dial::new(addresses.into_iter().filter(|to| may_reach(outgoing, client, to)))
            }
        };
        // Upstreams without an address do not come here.
        if dial.is_empty() {
            self.fail_attempt(index, ConnectError::OwnEnd, now);
        } else {
            attempt.approach = Approach::Dialing(dial);
            self.advance_dial(index, now);
        }
    }

    /// Opens the next connection of an attempt if it is time for one.
    pub(super) fn advance_dial(&mut self, index: usize, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let local = setup.answer().tells_local();
        let Some(attempt) = setup.attempts.get_mut(index) else { return };
        let Approach::Dialing(dial) = &mut attempt.approach else { return };
        match dial.next(now) {
            dial::Next::Connect(address) => {
                let connection = AttemptId(setup.next_connection);
                setup.next_connection = setup.next_connection.wrapping_add(1);
                dial.handle_started(connection, now);
                let origin = origin(&self.view, &self.client, attempt.upstream, &address);
                setup.commands.push_back(Command::Connect { attempt: connection, address, local, origin });
            }
            dial::Next::Wait => {}
            dial::Next::Exhausted(error) => self.fail_attempt(index, error, now),
        }
    }

    /// A connection of an attempt is open.
    pub(super) fn reach(
        &mut self,
        index: usize,
        connection: AttemptId,
        local: Option<SocketAddr>,
        now: Instant,
    ) {
        let Some(setup) = &mut self.setup else { return };
        let attempt = &mut setup.attempts[index];
        let others = attempt.connections();
        setup.commands.extend(others.into_iter().filter(|id| *id != connection).map(Command::Abandon));
        let (upstream, commit) = (attempt.upstream, attempt.commit);
        match &self.view.snapshot().target(upstream).kind {
            TargetKind::Upstream(Upstream::Proxied(route)) => {
                let route = Arc::clone(route);
                self.introduce(index, connection, local, route, now);
            }
            TargetKind::Upstream(
                Upstream::Tcp(_) | Upstream::Unix(_) | Upstream::Direct | Upstream::Reject,
            )
            | TargetKind::Group(_) => self.open(index, connection, local, &[], commit, now),
        }
    }

    /// The way of an attempt to its destination is open; `heard` is what came that way already.
    pub(super) fn open(
        &mut self,
        index: usize,
        connection: AttemptId,
        local: Option<SocketAddr>,
        heard: &[u8],
        commit: Commit,
        now: Instant,
    ) {
        let Some(setup) = &mut self.setup else { return };
        let attempt = &mut setup.attempts[index];
        attempt.approach = Approach::Listening(connection);
        attempt.reached_at = now;
        let upstream = attempt.upstream;
        self.view.handle_outcome(upstream, Outcome::Connected);
        self.announce(index, connection, upstream);
        match commit {
            _ if self.awaits_first_word(index) => self.wait_for_client(index, connection, local, now),
            Commit::FirstByte if heard.is_empty() => self.listen(index, connection, local, now),
            Commit::Connect | Commit::Handshake | Commit::FirstByte => {
                self.commit(index, connection, local, heard, now);
            }
        }
    }

    /// Tells an attempt's destination what the client has said, so that it may answer.
    pub(super) fn listen(
        &mut self,
        index: usize,
        connection: AttemptId,
        local: Option<SocketAddr>,
        now: Instant,
    ) {
        self.answer_success(local);
        let Some(setup) = &mut self.setup else { return };
        if setup.replay.is_none() {
            let (bytes, allowance) = setup.take_first_bytes();
            setup.replay = Some(Replay { bytes, allowance });
        }
        let attempt = &mut setup.attempts[index];
        attempt.is_told = true;
        if let Some(replay) = &setup.replay
            && (!replay.bytes.is_empty() || attempt.is_mute())
        {
            let told = attempt.sealed(replay.bytes.clone());
            setup.commands.push_back(Command::SendAhead(connection, told));
        }
        if setup.client_ended {
            setup.commands.push_back(Command::EndAhead(connection));
        }
        setup.commands.push_back(Command::ReceiveAhead(connection));
        self.bound_replay(now);
    }

    /// The client said more while attempts wait for the first byte: all of them are told.
    pub(super) fn extend_replay(&mut self, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Some(replay) = &mut setup.replay else { return };
        let fresh = replay.take_over(&mut setup.early);
        if !fresh.is_empty() {
            for attempt in &mut setup.attempts {
                if let Approach::Listening(connection) = attempt.approach {
                    let told = attempt.sealed(fresh.clone());
                    setup.commands.push_back(Command::SendAhead(connection, told));
                }
            }
        }
        self.bound_replay(now);
    }

    /// The client ended its stream while attempts wait for the first byte.
    pub(super) fn end_replay(&mut self) {
        let Some(setup) = &mut self.setup else { return };
        for attempt in &setup.attempts {
            if let Approach::Listening(connection) = attempt.approach {
                setup.commands.push_back(Command::EndAhead(connection));
            }
        }
    }

    /// What is not held cannot be said again: the attempt that was first to hear the client wins when there is more.
    fn bound_replay(&mut self, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        if !setup.replay.as_ref().is_some_and(Replay::is_full) {
            return;
        }
        let listening =
            setup.attempts.iter().enumerate().find_map(|(index, attempt)| match attempt.approach {
                Approach::Listening(connection) => Some((index, connection)),
                Approach::Resolving
                | Approach::Dialing(_)
                | Approach::Introducing(_)
                | Approach::Waiting { .. } => None,
            });
        if let Some((index, connection)) = listening {
            self.commit(index, connection, None, &[], now);
        }
    }

    /// An attempt's destination, or a proxy on the way to it, said something ahead of the pump.
    pub(super) fn hear(&mut self, index: usize, connection: AttemptId, bytes: &[u8], now: Instant) {
        let Some(bytes) = self.opened_ahead(index, bytes, now) else { return };
        let Some(setup) = &mut self.setup else { return };
        match &mut setup.attempts[index].approach {
            Approach::Introducing(introducing) => {
                introducing.received.extend_from_slice(&bytes);
                self.advance_introduction(index, now);
            }
            // Not a whole message yet.
            Approach::Listening(_) if bytes.is_empty() => {
                setup.commands.push_back(Command::ReceiveAhead(connection));
            }
            Approach::Listening(_) => self.commit(index, connection, None, &bytes, now),
            Approach::Resolving | Approach::Dialing(_) | Approach::Waiting { .. } => {}
        }
    }

    /// An attempt is lost after its connection was open.
    pub(super) fn lose(&mut self, connection: AttemptId, error: ConnectError, now: Instant) {
        if let Some(index) = self.attempt_of(connection) {
            self.fail_attempt(index, error, now);
            self.advance(now);
        }
    }

    /// One connection of an attempt was not to be had.
    pub(super) fn fail_connection(
        &mut self,
        index: usize,
        connection: AttemptId,
        error: ConnectError,
        now: Instant,
    ) {
        let Some(setup) = &mut self.setup else { return };
        if let Approach::Dialing(dial) = &mut setup.attempts[index].approach {
            dial.handle_failed(connection, error);
            self.advance_dial(index, now);
        }
    }

    /// Gives up what has taken too long, and goes on with the rest.
    pub(super) fn expire_attempts(&mut self, now: Instant) {
        self.greet_overdue(now);
        self.expire_wait(now);
        let mut index = 0;
        while let Some(attempt) = self.setup.as_ref().and_then(|setup| setup.attempts.get(index)) {
            let count = self.attempt_count();
            if attempt.is_overdue(now) {
                self.fail_attempt(index, ConnectError::TimedOut, now);
            } else {
                self.advance_dial(index, now);
            }
            // One that has failed has left its place to the next.
            index += usize::from(self.attempt_count() == count);
        }
        self.advance(now);
    }

    fn attempt_count(&self) -> usize {
        self.setup.as_ref().map_or(0, |setup| setup.attempts.len())
    }

    pub(super) fn attempt_of(&self, connection: AttemptId) -> Option<usize> {
        self.setup.as_ref()?.attempts.iter().position(|attempt| attempt.owns(connection))
    }

    /// The upstream that was tried cannot be had. [`Session::advance`] goes on to the next.
    pub(super) fn fail_attempt(&mut self, index: usize, error: ConnectError, now: Instant) {
        self.last_error = Some(error);
        let Some(setup) = &mut self.setup else { return };
        let attempt = setup.attempts.remove(index);
        setup.commands.extend(attempt.connections().into_iter().map(Command::Abandon));
        setup.dispatch.handle_failed(attempt.branch, now);
        self.view.handle_outcome(attempt.upstream, attempt.outcome_of(error));
        count(&self.view, &attempt.path, |cell| {
            cell.active.sub(1);
            cell.failed[error.index()].add(1);
            // That it is full says nothing of how quick it is.
            if error != ConnectError::Full {
                cell.latency.record(now.since(attempt.begun_at).max(FAILURE_COUNTS_AS), now);
            }
        });
        if self.view.snapshot().log_sessions {
            self.lost.push(attempt.lost(Some(now), Some(error)));
        }
    }

    /// Gives up everything that is being tried; `ended_at` is left out where nobody tells the time.
    pub(super) fn abandon_attempts(&mut self, ended_at: Option<Instant>) {
        let Some(setup) = &mut self.setup else { return };
        for attempt in mem::take(&mut setup.attempts) {
            setup.commands.extend(attempt.connections().into_iter().map(Command::Abandon));
            count(&self.view, &attempt.path, |cell| {
                cell.active.sub(1);
                cell.abandoned.add(1);
            });
            self.view.handle_outcome(attempt.upstream, Outcome::Abandoned);
            if self.view.snapshot().log_sessions {
                self.lost.push(attempt.lost(ended_at, None));
            }
        }
    }
}

/// What makes an attempt win: what the strictest of its groups asks for, or else what its kind of upstream can tell.
fn commit_of(view: &View, path: &[TargetIndex], upstream: &Upstream) -> Commit {
    let asked = path.iter().filter_map(|target| match &view.snapshot().target(*target).kind {
        TargetKind::Group(group) => group.commit,
        TargetKind::Upstream(_) => None,
    });
    asked.max().unwrap_or(match upstream {
        Upstream::Tcp(_) | Upstream::Unix(_) | Upstream::Direct | Upstream::Reject => Commit::Connect,
        Upstream::Proxied(_) => Commit::Handshake,
    })
}

pub(super) fn count(view: &View, path: &[TargetIndex], update: impl Fn(&TargetCell)) {
    for target in path {
        update(view.snapshot().target(*target).counters.cell(view.worker()));
    }
}

/// Whether an address can be come to from where the upstream's connections are to come from.
fn may_reach(outgoing: &Outgoing, client: &ClientAddr, to: &UpstreamAddr) -> bool {
    match to {
        UpstreamAddr::Tcp(address) if outgoing.transparent => client_source(client, *address).is_some(),
        UpstreamAddr::Tcp(address) => outgoing.reaches(*address),
        UpstreamAddr::Unix(_) => true,
    }
}

/// What is special about the next connect to an upstream; it takes the turn of its source address.
/// The client's own address, where it is of the family of the upstream's.
fn client_source(client: &ClientAddr, to: SocketAddr) -> Option<IpAddr> {
    match client {
        ClientAddr::Ip(address) => {
            Some(address.ip().to_canonical()).filter(|source| source.is_ipv4() == to.is_ipv4())
        }
        ClientAddr::Unix => None,
    }
}

fn origin(view: &View, client: &ClientAddr, target: TargetIndex, to: &UpstreamAddr) -> Option<Origin> {
    let outgoing = view.snapshot().target(target).outgoing.as_deref()?;
    let source = match to {
        UpstreamAddr::Tcp(address) if outgoing.transparent => client_source(client, *address),
        UpstreamAddr::Tcp(address) if !outgoing.sources.is_empty() => {
            outgoing.source(*address, view.next_turn(target, address.is_ipv4()))
        }
        UpstreamAddr::Tcp(_) | UpstreamAddr::Unix(_) => None,
    };
    Some(Origin { target, source })
}
