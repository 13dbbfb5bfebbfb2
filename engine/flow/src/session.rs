//! One client connection, from accept to the last byte: every decision of it, and none of its system calls.
//!
//! ```text
//! Handshake -> (Resolving ->) Dialing -> Pumping -> Closed
//!      \____________\___________\-> Refusing -> Closed
//! ```
//!
//! A driver tells the session what happened (`handle_*`), then carries out its commands until there are none
//! ([`Session::poll_command`]), keeps one receive from the client under way whenever [`Session::wants_bytes`] says
//! so, and calls back at [`Session::poll_timeout`]. Once [`Command::Pump`] is out, it asks
//! [`Session::poll_step`] for each direction instead.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::account::TargetCell;
use crate::close::{CloseReason, ConnectError};
use crate::dial::{self, AttemptId, Dial, Next, UpstreamAddr};
use crate::dispatch::{Choice, Dispatch, Path};
use crate::pump::{Closing, Direction, Ending, Patience, Pumps, Side, Step};
use crate::record::{ClientAddr, Record};
use crate::resolve::{ResolveError, Resolved};
use crate::snapshot::{Listener, ListenerIndex, Protocol, TargetIndex, TargetKind, Upstream};
use crate::time::Instant;
use crate::view::View;
use crate::wire::handshake::Handshake;
use crate::wire::{Answer, Body, Destination, Failure, HostName, Request};

/// How much of what a client sends early, before its upstream is open, is held for it.
pub const MAX_EARLY_BYTES: usize = 16 * 1024;

/// How long a refused client may take to read the refusal, and how much it may still send meanwhile. Closing at
/// once, with bytes unread, would turn the refusal into a reset (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 256 * 1024;

/// What a driver is to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Send these bytes, all of them, before anything else that is sent to that side.
    Send(Side, Cow<'static, [u8]>),
    /// Shut down the writing half of the client's socket when everything is sent, then call
    /// [`Session::handle_shut_down`].
    ShutDownClient,
    /// Open a socket and connect it; answer with `handle_connected` or `handle_connect_failed`. `local` says
    /// whether the session wants to know the socket's own address.
    Connect {
        /// Names the attempt in the answer.
        attempt: AttemptId,
        /// Where to.
        address: UpstreamAddr,
        /// Whether `handle_connected` is to bring the socket's own address.
        local: bool,
    },
    /// Give an attempt up and close its socket. An answer that comes all the same is ignored.
    Abandon(AttemptId),
    /// Resolve a name; answer with `handle_resolved`.
    Resolve(HostName),
    /// The connected socket of this attempt is the session's upstream from now on: ask for steps.
    Pump(AttemptId),
    /// The session is over: cancel and close everything.
    Close(Closing),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Session {
    view: Rc<View>,
    listener: ListenerIndex,
    client: ClientAddr,
    accepted_at: Instant,
    committed_at: Option<Instant>,
    attempts: u16,
    last_error: Option<ConnectError>,
    /// What the client asked for, kept for the log alone.
    destination: Option<Box<Destination>>,
    /// The targets that count this session as active at the moment.
    path: Path,
    /// The upstream that was tried last.
    upstream: Option<TargetIndex>,
    /// Whether the session has ended (and was counted so).
    ended: bool,
    closing: Option<Closing>,
    /// Everything that is needed only until the pump runs.
    setup: Option<Box<Setup>>,
    pumps: Option<Pumps>,
}

#[derive(Debug)]
struct Setup {
    stage: Stage,
    commands: VecDeque<Command>,
    /// From the client: what the handshake has not consumed, later what awaits the upstream.
    early: Vec<u8>,
    client_ended: bool,
    /// None before it is complete, and for ever on a plain `tcp` listener.
    request: Option<Request>,
    dispatch: Dispatch,
    next_attempt: u16,
}

#[derive(Debug)]
enum Stage {
    /// Reading the client's request.
    Handshake { wire: Handshake, deadline: Instant },
    /// The request is complete; an upstream is being chosen (never seen between two events).
    Choosing,
    /// Waiting for the addresses of the destination.
    Resolving { deadline: Instant },
    /// Connecting to an upstream.
    Dialing(Dial),
    /// The upstream is open.
    Pumping,
    /// A refusal was sent; reading away what the client still sends so that it gets to read it.
    Refusing { reason: CloseReason, deadline: Instant, bytes_left: usize },
    /// The close command is out or due.
    Closed,
}

impl Session {
    /// A session for a client that was just accepted. Counts it; the count ends with [`Command::Close`].
    pub fn new(view: Rc<View>, listener: ListenerIndex, client: ClientAddr, now: Instant) -> Session {
        let settings = view.snapshot().listener(listener);
        let cell = settings.counters.cell(view.worker());
        cell.accepted.add(1);
        cell.active.add(1);
        let stage = match Handshake::new(settings.protocol) {
            Some(wire) => Stage::Handshake { wire, deadline: now + settings.timeouts.handshake },
            None => Stage::Choosing,
        };
        let setup = Setup {
            stage,
            commands: VecDeque::new(),
            early: Vec::new(),
            client_ended: false,
            request: None,
            dispatch: Dispatch::new(settings.target),
            next_attempt: 0,
        };
        let allowed = client.is_allowed(settings.allow.as_deref());
        let is_tcp = settings.protocol == Protocol::Tcp;
        let mut session = Session {
            view,
            listener,
            client,
            accepted_at: now,
            committed_at: None,
            attempts: 0,
            last_error: None,
            destination: None,
            path: Path::new(),
            upstream: None,
            ended: false,
            closing: None,
            setup: Some(Box::new(setup)),
            pumps: None,
        };
        if !allowed {
            session.close(Closing {
                reason: CloseReason::ClientNotAllowed,
                client: Ending::Reset,
                upstream: Ending::Plain,
            });
        } else if is_tcp {
            session.try_next_upstream(now);
        }
        session
    }

    /// Whether the driver is to receive from the client on the session's behalf (before [`Command::Pump`]).
    pub fn wants_bytes(&self) -> bool {
        let Some(setup) = &self.setup else { return false };
        match setup.stage {
            Stage::Handshake { .. } => true,
            Stage::Choosing | Stage::Resolving { .. } | Stage::Dialing(_) => {
                !setup.client_ended && setup.early.len() < MAX_EARLY_BYTES
            }
            Stage::Refusing { .. } => !setup.client_ended,
            Stage::Pumping | Stage::Closed => false,
        }
    }

    /// The client sent these bytes.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        match &mut setup.stage {
            Stage::Handshake { .. } => {
                setup.early.extend_from_slice(bytes);
                self.advance_handshake(now);
            }
            Stage::Choosing | Stage::Resolving { .. } | Stage::Dialing(_) => {
                setup.early.extend_from_slice(bytes);
            }
            Stage::Refusing { bytes_left, reason, .. } => match bytes_left.checked_sub(bytes.len()) {
                Some(left) => *bytes_left = left,
                None => {
                    let reason = *reason;
                    self.close(Closing::plain(reason));
                }
            },
            Stage::Pumping | Stage::Closed => {}
        }
    }

    /// The client ended its stream before the pump ran.
    pub fn handle_client_ended(&mut self) {
        let Some(setup) = &mut self.setup else { return };
        setup.client_ended = true;
        match setup.stage {
            Stage::Handshake { .. } => self.close(Closing::plain(CloseReason::ClientLeft)),
            Stage::Refusing { reason, .. } => self.close(Closing::plain(reason)),
            // A client that only ended its own stream still wants the answer.
            Stage::Choosing | Stage::Resolving { .. } | Stage::Dialing(_) => {}
            Stage::Pumping | Stage::Closed => {}
        }
    }

    /// The client's connection broke before the pump ran.
    pub fn handle_client_failed(&mut self) {
        let Some(setup) = &self.setup else { return };
        let reason = match setup.stage {
            Stage::Refusing { reason, .. } => reason,
            Stage::Handshake { .. } | Stage::Choosing | Stage::Resolving { .. } | Stage::Dialing(_) => {
                CloseReason::ClientReset
            }
            Stage::Pumping | Stage::Closed => return,
        };
        self.close(Closing::plain(reason));
    }

    /// Everything was sent to the client and its stream was ended, as [`Command::ShutDownClient`] asked.
    pub fn handle_shut_down(&mut self) {
        let Some(setup) = &self.setup else { return };
        if let Stage::Refusing { reason, .. } = setup.stage
            && setup.client_ended
        {
            self.close(Closing::plain(reason));
        }
    }

    /// The addresses of the destination, or why there are none.
    pub fn handle_resolved(&mut self, resolved: Resolved, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Resolving { deadline } = setup.stage else { return };
        let port = setup.request.as_ref().map_or(0, |request| request.destination.port());
        match resolved {
            Ok(addresses) => self.dial_permitted(dial::interleaved(addresses, port), deadline, now),
            Err(ResolveError::TimedOut) => self.fail_upstream(ConnectError::TimedOut, now),
            Err(ResolveError::NotFound | ResolveError::Failed) => {
                self.fail_upstream(ConnectError::NotResolved, now);
            }
        }
    }

    /// An attempt is connected; `local` is its socket's own address where that was asked for.
    pub fn handle_connected(&mut self, attempt: AttemptId, local: Option<SocketAddr>, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Dialing(dial) = &mut setup.stage else { return };
        if dial.handle_ended(attempt) {
            self.commit(attempt, local, now);
        }
    }

    /// An attempt failed.
    pub fn handle_connect_failed(&mut self, attempt: AttemptId, error: ConnectError, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Dialing(dial) = &mut setup.stage else { return };
        if dial.handle_failed(attempt, error) {
            self.advance_dial(now);
        }
    }

    /// The moment of [`Session::poll_timeout`] has come. Harmless when it has not.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(pumps) = &self.pumps {
            if let Some(closing) = pumps.handle_timeout(now) {
                self.close(closing);
            }
            return;
        }
        let Some(setup) = &mut self.setup else { return };
        match &mut setup.stage {
            Stage::Handshake { deadline, .. } if now >= *deadline => {
                self.close(Closing::plain(CloseReason::HandshakeTimeout));
            }
            Stage::Resolving { deadline } if now >= *deadline => {
                self.fail_upstream(ConnectError::TimedOut, now);
            }
            Stage::Dialing(dial) if dial.is_overdue(now) => self.fail_upstream(ConnectError::TimedOut, now),
            Stage::Dialing(_) => self.advance_dial(now),
            Stage::Refusing { reason, deadline, .. } if now >= *deadline => {
                let reason = *reason;
                self.close(Closing::plain(reason));
            }
            Stage::Handshake { .. } | Stage::Resolving { .. } | Stage::Refusing { .. } => {}
            Stage::Choosing | Stage::Pumping | Stage::Closed => {}
        }
    }

    /// The operator ends the session, for [`CloseReason::Drained`] or [`CloseReason::Stopped`].
    pub fn handle_stop(&mut self, reason: CloseReason) {
        self.close(Closing::plain(reason));
    }

    /// When [`Session::handle_timeout`] is due, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(pumps) = &self.pumps {
            return Some(pumps.poll_timeout());
        }
        match &self.setup.as_ref()?.stage {
            Stage::Handshake { deadline, .. }
            | Stage::Resolving { deadline }
            | Stage::Refusing { deadline, .. } => Some(*deadline),
            Stage::Dialing(dial) => Some(dial.poll_timeout()),
            Stage::Choosing | Stage::Pumping | Stage::Closed => None,
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll_command(&mut self) -> Option<Command> {
        if let Some(setup) = &mut self.setup {
            let command = setup.commands.pop_front();
            if command.is_some() {
                return command;
            }
            if matches!(setup.stage, Stage::Pumping | Stage::Closed) {
                self.setup = None;
            }
        }
        self.closing.take().map(Command::Close)
    }

    /// What is to be started in a direction now. Only once nothing that was commanded to be sent to the direction's
    /// sink is unsent.
    pub fn poll_step(&mut self, direction: Direction) -> Option<Step> {
        let step = self.pumps.as_mut()?.poll_step(direction);
        if step == Some(Step::ShutDown) {
            self.check_end();
        }
        step
    }

    /// The source of a direction gave `bytes` bytes, at least 1.
    pub fn handle_received(&mut self, direction: Direction, bytes: usize, now: Instant) {
        if let Some(pumps) = &mut self.pumps {
            pumps.handle_received(direction, bytes, now);
        }
    }

    /// The source of a direction ended its stream.
    pub fn handle_ended(&mut self, direction: Direction, now: Instant) {
        if let Some(pumps) = &mut self.pumps {
            pumps.handle_ended(direction, now);
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
            pumps.handle_sent(direction, bytes, now);
            self.count_bytes(direction, bytes as u64);
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

    /// The listener's settings in the snapshot that this session lives in.
    pub fn listener(&self) -> &Listener {
        self.view.snapshot().listener(self.listener)
    }

    /// The line for the log, where the snapshot asks for one. For use when the session has closed.
    pub fn record(&self, reason: CloseReason, now: Instant) -> Option<Record<'_>> {
        let snapshot = self.view.snapshot();
        snapshot.log_sessions.then(|| Record {
            client: &self.client,
            listener: &snapshot.listener(self.listener).name,
            target: self.upstream.map(|target| &*snapshot.target(target).name),
            destination: self.destination.as_deref(),
            attempts: self.attempts,
            last_error: self.last_error,
            bytes_up: self.delivered(Direction::Up),
            bytes_down: self.delivered(Direction::Down),
            setup: self.committed_at.map(|committed| committed.since(self.accepted_at)),
            duration: now.since(self.accepted_at),
            reason,
        })
    }

    fn delivered(&self, direction: Direction) -> u64 {
        self.pumps.as_ref().map_or(0, |pumps| pumps.delivered(direction))
    }
}

impl Setup {
    fn answer(&self) -> Answer {
        self.request.as_ref().map_or(Answer::None, |request| request.answer)
    }

    /// What the upstream gets first, and how much may follow it.
    fn take_first_bytes(&mut self) -> (Vec<u8>, u64) {
        let Some(request) = &mut self.request else { return (std::mem::take(&mut self.early), u64::MAX) };
        let mut first = std::mem::take(&mut request.preface);
        let mut allowance = u64::MAX;
        if let Body::Limited(bytes) = request.body {
            self.early.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
            allowance = bytes - self.early.len() as u64;
        }
        first.append(&mut self.early);
        (first, allowance)
    }
}

// How it gets from a request to an open upstream.
impl Session {
    fn advance_handshake(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        let users = view.snapshot().listener(self.listener).users.as_deref();
        loop {
            let Some(setup) = &mut self.setup else { return };
            let Stage::Handshake { wire, .. } = &mut setup.stage else { return };
            let progress = wire.advance(&setup.early, users);
            setup.early.drain(..progress.consumed);
            match progress.step {
                crate::wire::Step::Incomplete => return,
                crate::wire::Step::Reply(reply) => {
                    setup.commands.push_back(Command::Send(Side::Client, reply));
                }
                crate::wire::Step::Request(request) => {
                    self.begin(request, now);
                    return;
                }
                crate::wire::Step::Refuse { reply, reason } => {
                    self.refuse(reply, reason, now);
                    return;
                }
            }
        }
    }

    fn begin(&mut self, request: Request, now: Instant) {
        if self.view.snapshot().log_sessions {
            self.destination = Some(Box::new(request.destination.clone()));
        }
        if let Some(setup) = &mut self.setup {
            setup.request = Some(request);
            setup.stage = Stage::Choosing;
        }
        self.try_next_upstream(now);
    }

    fn try_next_upstream(&mut self, now: Instant) {
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
        self.approach(upstream, deadline, now);
    }

    fn approach(&mut self, upstream: TargetIndex, deadline: Instant, now: Instant) {
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
                Some(Destination::Address(address)) => self.dial_permitted(vec![address], deadline, now),
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

    fn dial_permitted(&mut self, addresses: Vec<SocketAddr>, deadline: Instant, now: Instant) {
        let view = Rc::clone(&self.view);
        let reach = &view.snapshot().listener(self.listener).reach;
        let permitted: Vec<_> = addresses
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

    fn dial(&mut self, addresses: impl IntoIterator<Item = UpstreamAddr>, deadline: Instant, now: Instant) {
        if let Some(setup) = &mut self.setup {
            setup.stage = Stage::Dialing(Dial::new(addresses, deadline));
            self.advance_dial(now);
        }
    }

    fn advance_dial(&mut self, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Dialing(dial) = &mut setup.stage else { return };
        match dial.next(now) {
            Next::Connect(address) => {
                let attempt = AttemptId(setup.next_attempt);
                setup.next_attempt = setup.next_attempt.wrapping_add(1);
                dial.handle_started(attempt, now);
                let local = setup.answer() == Answer::Socks5;
                setup.commands.push_back(Command::Connect { attempt, address, local });
            }
            Next::Wait => {}
            Next::Exhausted(error) => self.fail_upstream(error, now),
        }
    }

    /// The upstream that was tried cannot be had: on to the next.
    fn fail_upstream(&mut self, error: ConnectError, now: Instant) {
        self.last_error = Some(error);
        self.abandon_dial();
        self.release_path(|cell| cell.failed[error.index()].add(1));
        self.try_next_upstream(now);
    }

    /// Nobody is left to try.
    fn give_up(&mut self, now: Instant) {
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
                ConnectError::Reset | ConnectError::Other(_) => {
                    (Failure::General, CloseReason::ConnectFailed)
                }
            },
        };
        self.tell_failure(failure, reason, now);
    }

    fn commit(&mut self, attempt: AttemptId, local: Option<SocketAddr>, now: Instant) {
        self.abandon_dial();
        let timeouts = self.view.snapshot().listener(self.listener).timeouts;
        let Some(setup) = &mut self.setup else { return };
        let reply = setup.answer().success(local);
        if !reply.is_empty() {
            setup.commands.push_back(Command::Send(Side::Client, reply));
        }
        let (first, allowance) = setup.take_first_bytes();
        let bytes = first.len() as u64;
        if bytes > 0 {
            setup.commands.push_back(Command::Send(Side::Upstream, first.into()));
        }
        setup.commands.push_back(Command::Pump(attempt));
        setup.stage = Stage::Pumping;
        let patience = Patience { idle: timeouts.idle, half_close: timeouts.half_close };
        let mut pumps = Pumps::new(now, patience, allowance, setup.client_ended);
        pumps.count_early(bytes);
        self.pumps = Some(pumps);
        self.committed_at = Some(now);
        self.count(|cell| cell.committed.add(1));
        self.count_bytes(Direction::Up, bytes);
    }
}

// How it ends.
impl Session {
    /// Tells the client in its protocol's way that nothing could be reached.
    fn tell_failure(&mut self, failure: Failure, reason: CloseReason, now: Instant) {
        let Some(setup) = &self.setup else { return };
        match setup.answer() {
            Answer::None => {
                self.close(Closing { reason, client: Ending::Reset, upstream: Ending::Plain });
            }
            Answer::Socks5 | Answer::HttpConnect | Answer::HttpPlain => {
                let reply = setup.answer().failure(failure);
                self.refuse(reply, reason, now);
            }
        }
    }

    /// Sends a last word to the client and waits until it had time to read it.
    fn refuse(&mut self, reply: Cow<'static, [u8]>, reason: CloseReason, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        setup.early = Vec::new();
        if reply.is_empty() {
            self.close(Closing::plain(reason));
            return;
        }
        setup.commands.push_back(Command::Send(Side::Client, reply));
        setup.commands.push_back(Command::ShutDownClient);
        setup.stage = Stage::Refusing { reason, deadline: now + LINGER, bytes_left: MAX_LINGER_BYTES };
    }

    fn check_end(&mut self) {
        if self.closing.is_none()
            && let Some(closing) = self.pumps.as_ref().and_then(Pumps::poll_closing)
        {
            if closing.reason == CloseReason::UpstreamReset {
                self.count(|cell| cell.resets.add(1));
            }
            self.close(closing);
        }
    }

    fn close(&mut self, closing: Closing) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.abandon_dial();
        if let Some(setup) = &mut self.setup {
            setup.stage = Stage::Closed;
        }
        let committed = self.committed_at.is_some();
        self.release_path(|cell| {
            if !committed {
                cell.abandoned.add(1);
            }
        });
        let cell = self.listener().counters.cell(self.view.worker());
        cell.active.sub(1);
        cell.closed[closing.reason.index()].add(1);
        self.closing = Some(closing);
    }

    fn abandon_dial(&mut self) {
        let Some(setup) = &mut self.setup else { return };
        if let Stage::Dialing(dial) = &setup.stage {
            setup.commands.extend(dial.in_flight().iter().map(|attempt| Command::Abandon(*attempt)));
            setup.stage = Stage::Choosing;
        }
    }
}

// What it counts.
impl Session {
    fn count(&self, update: impl Fn(&TargetCell)) {
        for target in &self.path {
            update(self.view.snapshot().target(*target).counters.cell(self.view.worker()));
        }
    }

    /// What went through `path` is over: its targets count this session no longer.
    fn release_path(&mut self, update: impl Fn(&TargetCell)) {
        self.count(|cell| {
            cell.active.sub(1);
            update(cell);
        });
        self.path.clear();
    }

    fn count_bytes(&self, direction: Direction, bytes: u64) {
        let cell = self.listener().counters.cell(self.view.worker());
        match direction {
            Direction::Up => {
                cell.bytes_up.add(bytes);
                self.count(|cell| cell.bytes_up.add(bytes));
            }
            Direction::Down => {
                cell.bytes_down.add(bytes);
                self.count(|cell| cell.bytes_down.add(bytes));
            }
        }
    }
}
