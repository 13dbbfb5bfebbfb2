//! One client connection, from accept to the last byte: every decision of it, and none of its system calls.
//!
//! ```text
//! Handshake -> Reaching -> Pumping -> Closed
//!      \___________\-> Refusing -> Closed
//! ```
//!
//! A driver tells the session what happened (`handle_*`), then carries out its commands until there are none
//! ([`Session::poll_command`]), keeps one receive from the client under way whenever [`Session::wants_bytes`] says
//! so, and calls back at [`Session::poll_timeout`]. Once [`Command::Pump`] is out, it asks
//! [`Session::poll_step`] for each direction instead.

mod approach;
mod attempt;
mod commit;
mod decide;
mod end;
mod figures;
mod front;
mod introduce;
mod line;
mod login;
mod look;
mod pumping;
mod sealed;
mod setup;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use self::attempt::{Attempt, Losses};
use self::sealed::Ciphers;
pub(crate) use self::setup::Spares;
use self::setup::{Lookup, Setup};
use crate::account::UserCounters;
use crate::capacity::{Line, Place};
use crate::close::{CloseReason, ConnectError};
use crate::dial::{AttemptId, UpstreamAddr};
use crate::dispatch::Path;
use crate::outgoing::{Origin, Outgoing};
use crate::pace::Pacing;
use crate::pump::{Closing, Direction, Ending, Pumps, Side};
use crate::record::{ClientAddr, LostAttempt, Record};
use crate::resolve::Resolved;
use crate::retire::Retirement;
use crate::rules::RuleIndex;
use crate::snapshot::{Listener, ListenerIndex, TargetIndex};
use crate::time::Instant;
use crate::users::Asked;
use crate::verify::Question;
use crate::view::View;
use crate::wire::handshake::Handshake;
use crate::wire::peek::Peek;
use crate::wire::shadowsocks::Accept;
use crate::wire::{Destination, HostName};

/// How much of what a client sends early, before its upstream is open, is held for it.
pub const MAX_EARLY_BYTES: usize = 16 * 1024;

/// How long a refused client may take to read the refusal, and how much it may still send meanwhile. Closing at
/// once, with bytes unread, would turn the refusal into a reset (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 256 * 1024;

/// What was under way is cut off, and nobody is to take it for whole.
const RETIRED: Closing =
    Closing { reason: CloseReason::Retired, client: Ending::Reset, upstream: Ending::Reset };

/// How a connection was given to us that was going elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diversion {
    /// It was redirected: the system is asked for its original destination (SO_ORIGINAL_DST).
    Redirect,
    /// Its socket is bound to its destination (IP_TRANSPARENT).
    Tproxy,
}

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
        /// What is special about the socket; see [`Session::outgoing`].
        origin: Option<Origin>,
    },
    /// Send these bytes on the connected socket of an attempt, which may never become the session's upstream.
    SendAhead(AttemptId, Vec<u8>),
    /// Shut down the writing half of an attempt's socket when everything is sent there.
    EndAhead(AttemptId),
    /// Receive once from an attempt's socket; answer with `handle_received_ahead`, `handle_ended_ahead` or
    /// `handle_failed_ahead`. Still unanswered when the attempt is pumped, it is the pump's first receive: ask for the
    /// first step of [`Direction::Down`] when [`Command::Pump`] is carried out, and take that receive for it.
    ReceiveAhead(AttemptId),
    /// Give an attempt up and close its socket: by a reset where something was said there and its end was not, so that
    /// nobody takes that for whole. An answer that comes all the same is ignored.
    Abandon(AttemptId),
    /// Answer at once with `handle_local`: where the client connected.
    NameLocal,
    /// Answer at once with `handle_destination`: where the client was going, before the system gave its connection to us.
    NameDestination(Diversion),
    /// Resolve a name; answer with `handle_resolved`.
    Resolve(HostName),
    /// Have a password verified; answer with `handle_verified`.
    Verify(Question),
    /// Join the line for a place at an upstream, with a wake that leads to `handle_place`; answer at once with
    /// `handle_joined`.
    JoinLine(Line),
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
    /// The attempts that did not win, where the log wants to know.
    lost: Losses,
    /// What the client asked for, kept for the log alone.
    destination: Option<Box<Destination>>,
    /// The server that a client of a plain listener named, kept for the log alone.
    name: Option<HostName>,
    /// As whom the client authenticated, kept for the log alone.
    user: Option<Arc<str>>,
    /// What is counted for that user, where somebody counts it.
    account: Option<Arc<UserCounters>>,
    /// The rule that decided.
    rule: Option<RuleIndex>,
    /// The targets that the session has gone through, once an attempt has won.
    path: Path,
    /// The upstream that was tried last.
    upstream: Option<TargetIndex>,
    /// Whether the session has ended (and was counted so).
    ended: bool,
    closing: Option<Closing>,
    /// Everything that is needed only until the pump runs.
    setup: Option<Box<Setup>>,
    pumps: Option<Pumps>,
    /// What is sealed, where anything is.
    ciphers: Option<Box<Ciphers>>,
    /// Its place at the upstream that serves it, where places are counted.
    place: Option<Place>,
    /// Where a rule has sent it.
    rule_target: Option<TargetIndex>,
    /// What bounds its bytes, if anything does.
    pacing: Option<Box<Pacing>>,
    first_byte: FirstByte,
    /// Whether the limits of its listener know of it.
    is_limited: bool,
    /// The member that serves it has gone, and the session is to follow.
    retiring: Option<Box<Retiring>>,
}

/// That a session is to end because its member has gone, unless that one is back by then.
#[derive(Debug)]
struct Retiring {
    order: Arc<Retirement>,
    at: Instant,
}

/// Whether the upstream has sent anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstByte {
    Awaited,
    Seen,
}

#[derive(Debug)]
enum Stage {
    /// Reading what a proxy in front says of the client.
    Announcing { deadline: Instant },
    /// Looking at what the client says first, of which the upstream gets every byte.
    Peeking { peek: Peek, deadline: Instant },
    /// Reading the sealed request of a client.
    Accepting { accept: Box<Accept>, deadline: Instant },
    /// Reading what somebody says who is no client, without a word.
    Shunning { reason: CloseReason, deadline: Instant },
    /// Reading the client's request.
    Handshake { wire: Handshake, deadline: Instant },
    /// The password in it is being verified.
    Verifying { wire: Handshake, asked: Asked, deadline: Instant },
    /// The request is complete; upstreams are being tried.
    Reaching,
    /// The upstream is open.
    Pumping,
    /// A refusal was sent; reading away what the client still sends so that it gets to read it.
    Refusing { reason: CloseReason, deadline: Instant, bytes_left: usize, farewell: Farewell },
    /// The close command is out or due.
    Closed,
}

/// Whether a refusal has gone out in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    Sending,
    Sent,
}

impl Session {
    /// A session for a client that was just accepted. Counts it; the count ends with [`Command::Close`].
    pub fn new(view: Rc<View>, listener: ListenerIndex, client: ClientAddr, now: Instant) -> Session {
        let settings = view.snapshot().listener(listener);
        let cell = settings.counters.cell(view.worker());
        cell.accepted.add(1);
        cell.active.add(1);
        let setup = view.spares().take(Stage::Reaching, settings.target);
        let mut session = Session {
            view,
            listener,
            client,
            accepted_at: now,
            committed_at: None,
            attempts: 0,
            last_error: None,
            lost: Losses::default(),
            destination: None,
            name: None,
            user: None,
            account: None,
            rule: None,
            path: Path::new(),
            upstream: None,
            ended: false,
            closing: None,
            setup: Some(setup),
            pumps: None,
            ciphers: None,
            place: None,
            rule_target: None,
            pacing: None,
            first_byte: FirstByte::Awaited,
            is_limited: false,
            retiring: None,
        };
        session.receive_client(now);
        session
    }

    /// Whether the driver is to receive from the client on the session's behalf (before [`Command::Pump`]).
    pub fn wants_bytes(&self) -> bool {
        let Some(setup) = &self.setup else { return false };
        match setup.stage {
            Stage::Announcing { .. }
            | Stage::Handshake { .. }
            | Stage::Accepting { .. }
            | Stage::Shunning { .. } => true,
            Stage::Peeking { .. } | Stage::Verifying { .. } | Stage::Reaching => {
                !setup.client_ended && setup.has_room()
            }
            Stage::Refusing { .. } => !setup.client_ended,
            Stage::Pumping | Stage::Closed => false,
        }
    }

    /// The client sent these bytes.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        match &mut setup.stage {
            Stage::Announcing { .. } => {
                setup.early.extend_from_slice(bytes);
                self.read_announcement(now);
            }
            Stage::Peeking { .. } => {
                setup.early.extend_from_slice(bytes);
                self.look(now);
            }
            Stage::Handshake { .. } => {
                setup.early.extend_from_slice(bytes);
                self.advance_handshake(now);
            }
            Stage::Verifying { .. } => setup.early.extend_from_slice(bytes),
            Stage::Accepting { .. } => self.advance_accept(bytes, now),
            Stage::Reaching => self.keep(bytes, now),
            Stage::Refusing { bytes_left, reason, .. } => match bytes_left.checked_sub(bytes.len()) {
                Some(left) => *bytes_left = left,
                None => {
                    let reason = *reason;
                    self.close(Closing::plain(reason));
                }
            },
            Stage::Shunning { .. } | Stage::Pumping | Stage::Closed => {}
        }
    }

    /// The client ended its stream before the pump ran.
    pub fn handle_client_ended(&mut self) {
        if self.is_cut_off(Side::Client) {
            return self.handle_client_failed();
        }
        let Some(setup) = &mut self.setup else { return };
        setup.client_ended = true;
        match &mut setup.stage {
            Stage::Announcing { .. } | Stage::Handshake { .. } | Stage::Accepting { .. } => {
                self.close(Closing::plain(CloseReason::ClientLeft));
            }
            Stage::Refusing { reason, farewell: Farewell::Sent, .. } => {
                let reason = *reason;
                self.close(Closing::plain(reason));
            }
            // Nothing more is to be seen: the timeout is due.
            Stage::Peeking { deadline, .. } => *deadline = Instant::ZERO,
            // A client that only ended its own stream still wants the answer.
            Stage::Reaching => {
                self.end_replay();
                self.stop_waiting();
            }
            Stage::Shunning { reason, .. } => {
                let reason = *reason;
                self.close(Closing::plain(reason));
            }
            Stage::Verifying { .. }
            | Stage::Refusing { farewell: Farewell::Sending, .. }
            | Stage::Pumping
            | Stage::Closed => {}
        }
    }

    /// The client's connection broke before the pump ran.
    pub fn handle_client_failed(&mut self) {
        let Some(setup) = &self.setup else { return };
        let reason = match setup.stage {
            Stage::Refusing { reason, .. } | Stage::Shunning { reason, .. } => reason,
            Stage::Announcing { .. }
            | Stage::Peeking { .. }
            | Stage::Handshake { .. }
            | Stage::Accepting { .. }
            | Stage::Verifying { .. }
            | Stage::Reaching => CloseReason::ClientReset,
            Stage::Pumping | Stage::Closed => return,
        };
        self.close(Closing::plain(reason));
    }

    /// Everything was sent to the client and its stream was ended, as [`Command::ShutDownClient`] asked.
    pub fn handle_shut_down(&mut self) {
        let Some(setup) = &mut self.setup else { return };
        if let Stage::Refusing { reason, farewell, .. } = &mut setup.stage {
            *farewell = Farewell::Sent;
            if setup.client_ended {
                let reason = *reason;
                self.close(Closing::plain(reason));
            }
        }
    }

    /// The addresses of the destination, or why there are none.
    pub fn handle_resolved(&mut self, resolved: Resolved, now: Instant) {
        let Some(setup) = &self.setup else { return };
        match (&setup.stage, &setup.lookup) {
            (Stage::Reaching, Lookup::UnderWay) => self.resolve_attempts(resolved, now),
            (
                Stage::Announcing { .. }
                | Stage::Peeking { .. }
                | Stage::Handshake { .. }
                | Stage::Accepting { .. }
                | Stage::Shunning { .. }
                | Stage::Verifying { .. }
                | Stage::Reaching
                | Stage::Pumping
                | Stage::Refusing { .. }
                | Stage::Closed,
                Lookup::Idle | Lookup::UnderWay | Lookup::Done(_),
            ) => {}
        }
    }

    /// An attempt is connected; `local` is its socket's own address where that was asked for.
    pub fn handle_connected(&mut self, attempt: AttemptId, local: Option<SocketAddr>, now: Instant) {
        if let Some(index) = self.attempt_of(attempt) {
            self.reach(index, attempt, local, now);
            self.advance(now);
        }
    }

    /// An attempt failed.
    pub fn handle_connect_failed(&mut self, attempt: AttemptId, error: ConnectError, now: Instant) {
        if let Some(index) = self.attempt_of(attempt) {
            self.fail_connection(index, attempt, error, now);
            self.advance(now);
        }
    }

    /// An attempt's destination sent these bytes ahead of the pump, as [`Command::ReceiveAhead`] asked.
    pub fn handle_received_ahead(&mut self, attempt: AttemptId, bytes: &[u8], now: Instant) {
        if let Some(index) = self.attempt_of(attempt) {
            self.hear(index, attempt, bytes, now);
        }
    }

    /// An attempt's destination ended its stream ahead of the pump, instead of what [`Command::ReceiveAhead`] asked
    /// for.
    pub fn handle_ended_ahead(&mut self, attempt: AttemptId, now: Instant) {
        self.lose(attempt, ConnectError::Unanswered, now);
    }

    /// Receiving from an attempt's destination failed ahead of the pump. That a send ahead of it failed is not told:
    /// the receive that is under way then fails as well.
    pub fn handle_failed_ahead(&mut self, attempt: AttemptId, now: Instant) {
        self.lose(attempt, ConnectError::Reset, now);
    }

    /// The moment of [`Session::poll_timeout`] has come. Harmless when it has not.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.retire(now);
        self.resume(now);
        if let Some(pumps) = &self.pumps {
            if let Some(closing) = pumps.handle_timeout(now) {
                self.close(closing);
            }
            return;
        }
        let Some(setup) = &mut self.setup else { return };
        match &mut setup.stage {
            Stage::Announcing { deadline }
            | Stage::Handshake { deadline, .. }
            | Stage::Accepting { deadline, .. }
            | Stage::Verifying { deadline, .. }
                if now >= *deadline =>
            {
                self.close(Closing::plain(CloseReason::HandshakeTimeout));
            }
            Stage::Peeking { deadline, .. } if now >= *deadline => self.set_out(now),
            Stage::Reaching => self.expire_attempts(now),
            Stage::Refusing { reason, deadline, .. } | Stage::Shunning { reason, deadline }
                if now >= *deadline =>
            {
                let reason = *reason;
                self.close(Closing::plain(reason));
            }
            Stage::Announcing { .. }
            | Stage::Peeking { .. }
            | Stage::Handshake { .. }
            | Stage::Accepting { .. }
            | Stage::Shunning { .. }
            | Stage::Verifying { .. }
            | Stage::Refusing { .. }
            | Stage::Pumping
            | Stage::Closed => {}
        }
    }

    /// The operator ends the session, for [`CloseReason::Drained`] or [`CloseReason::Stopped`].
    pub fn handle_stop(&mut self, reason: CloseReason) {
        self.close(Closing::plain(reason));
    }

    /// The sessions of a member of a group are to end. Says whether this may be one of them: for all others nothing
    /// has changed, and there is nothing to carry out.
    pub fn handle_retirement(&mut self, order: &Arc<Retirement>, now: Instant) -> bool {
        if self.ended || !self.concerns(order) {
            return false;
        }
        let at = now + self.view.draw(order.over);
        let is_sooner = |known: &Retiring| at < known.at || known.order.is_revoked();
        if self.retiring.as_deref().is_none_or(is_sooner) {
            self.retiring = Some(Box::new(Retiring { order: Arc::clone(order), at }));
        }
        self.retire(now);
        true
    }

    /// Everything that [`Command::Close`] asked for is done. Called once: what is known at the end is counted.
    pub fn handle_closed(&mut self, now: Instant) {
        self.measure_end(now);
        self.path.clear();
    }

    /// When [`Session::handle_timeout`] is due, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(pumps) = &self.pumps {
            let wait = self.pacing.as_ref().and_then(|pacing| pacing.poll_timeout());
            // Whoever is kept silent has no other time to keep.
            let timeout = wait.unwrap_or_else(|| pumps.poll_timeout());
            return Some(self.retiring.as_ref().map_or(timeout, |retiring| retiring.at.min(timeout)));
        }
        let setup = self.setup.as_ref()?;
        match &setup.stage {
            Stage::Announcing { deadline }
            | Stage::Peeking { deadline, .. }
            | Stage::Handshake { deadline, .. }
            | Stage::Accepting { deadline, .. }
            | Stage::Shunning { deadline, .. }
            | Stage::Verifying { deadline, .. }
            | Stage::Refusing { deadline, .. } => Some(*deadline),
            Stage::Reaching => {
                let attempts = setup.attempts.iter().map(Attempt::poll_timeout);
                let others = [setup.dispatch.poll_timeout(&self.view), setup.queueing.poll_timeout()];
                attempts.chain(others.into_iter().flatten()).min()
            }
            Stage::Pumping | Stage::Closed => None,
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll_command(&mut self) -> Option<Command> {
        if let Some(setup) = &mut self.setup {
            let command = setup.commands.pop_front();
            if command.is_some() {
                return command;
            }
        }
        if let Some(setup) = self.setup.take_if(|setup| matches!(setup.stage, Stage::Pumping | Stage::Closed))
        {
            self.view.spares().give_back(setup);
        }
        self.closing.take().map(Command::Close)
    }

    /// The listener's settings in the snapshot that this session lives in.
    pub fn listener(&self) -> &Listener {
        self.view.snapshot().listener(self.listener)
    }

    /// What is special about the sockets towards the upstream of an [`Origin`].
    pub fn outgoing(&self, target: TargetIndex) -> Option<&Outgoing> {
        self.view.snapshot().target(target).outgoing.as_deref()
    }

    /// The line for the log, where the snapshot asks for one. For use when the session has closed.
    pub fn record(&self, reason: CloseReason, now: Instant) -> Option<Record<'_>> {
        let snapshot = self.view.snapshot();
        snapshot.log_sessions.then(|| Record {
            client: &self.client,
            listener: &snapshot.listener(self.listener).name,
            target: self.upstream.map(|target| &*snapshot.target(target).name),
            destination: self.destination.as_deref(),
            name: self.name.as_ref(),
            user: self.user.as_deref(),
            rule: self.rule.zip(snapshot.rules.as_deref()).map(|(index, rules)| &*rules.rule(index).name),
            attempts: self.attempts,
            last_error: self.last_error,
            lost: self
                .lost
                .list()
                .iter()
                .map(move |lost| LostAttempt {
                    target: &snapshot.target(lost.upstream).name,
                    took: lost.ended_at.unwrap_or(now).since(lost.begun_at),
                    error: lost.error,
                })
                .collect(),
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
