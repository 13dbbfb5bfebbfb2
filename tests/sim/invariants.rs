//! What must hold of one session whatever happens: kept beside it, from what the world knows and never from what the
//! session claims alone.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::dial::UpstreamAddr;
use ringweir_flow::pump::{Closing, Ending, Side};
use ringweir_flow::record::Record;
use ringweir_flow::resolve::{ResolveError, Resolved};
use ringweir_flow::retire::Retirement;
use ringweir_flow::rules::Action;
use ringweir_flow::session::MAX_EARLY_BYTES;
use ringweir_flow::snapshot::{TargetIndex, TargetKind, Upstream};
use ringweir_flow::time::Instant;
use ringweir_flow::verify::Verdict as Verified;
use ringweir_flow::view::View;

use crate::client::{Answer, Script, Verdict, Why, Wish};
use crate::peer::Conn;
use crate::rules::{self, Origin};
use crate::schedule::Tools;
use crate::world::{self, World};

/// The most that a driver receives at once from a client.
pub(crate) const RECEIVE_BYTES: usize = 16 * 1024;

/// How long a refused client is waited for, and how much it may still send (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 * 1024;

/// How long a due timer may wait while other things happen.
const STEPS: Duration = Duration::from_millis(50);

pub(crate) type Verdicts = Result<(), String>;

/// Fails with a message when something does not hold.
macro_rules! hold {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}
pub(crate) use hold;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Setup,
    /// The last word is out; what failed, when the request itself was sound.
    Refusing {
        since: Instant,
        why: Option<Why>,
        fed: usize,
    },
    Pumping,
    Closed,
}

/// What is known of the client's password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Unasked,
    Asked,
    Told(Verified),
}

pub(crate) struct Witness {
    world: Rc<World>,
    view: Rc<View>,
    pub(crate) script: Script,
    pub(crate) phase: Phase,
    pub(crate) accepted_at: Instant,
    is_allowed: bool,
    /// What the rules say of it, if they say anything.
    ruling: Option<Action>,
    /// Bytes that the session, or the pump, was given from the client.
    pub(crate) fed: usize,
    /// Everything that was commanded to be said to the client.
    pub(crate) said: Vec<u8>,
    head: Vec<u8>,
    /// Payload delivered.
    up: usize,
    /// The attempt at an upstream that is under way: how many there were, and what the world answered.
    epoch: u16,
    epoch_since: Instant,
    target: Option<TargetIndex>,
    errors: Vec<ConnectError>,
    connects: usize,
    resolved: Option<Resolved>,
    awaits_names: bool,
    /// Whether the event that is being handled is a timeout with an attempt under way.
    pub(crate) is_overdue: bool,
    pub(crate) login: Login,
    pub(crate) stop: Option<CloseReason>,
    /// The member that it was told to follow.
    pub(crate) retired: Option<(TargetIndex, Arc<Retirement>)>,
    pub(crate) last_activity: Instant,
}

/// Both ends at the moment of judgement.
pub(crate) struct Ends<'a> {
    pub(crate) client: &'a Conn,
    pub(crate) upstream: Option<&'a Conn>,
    pub(crate) now: Instant,
}

impl Witness {
    pub(crate) fn new(
        world: &Rc<World>,
        view: &Rc<View>,
        script: Script,
        (is_allowed, origin): (bool, Origin),
        now: Instant,
    ) -> Witness {
        let ruling = rules::read(&world.rules, origin, script.destination.map(Wish::port));
        Witness {
            ruling,
            world: Rc::clone(world),
            view: Rc::clone(view),
            script,
            phase: Phase::Setup,
            accepted_at: now,
            is_allowed,
            fed: 0,
            said: Vec::new(),
            head: Vec::new(),
            up: 0,
            epoch: 0,
            epoch_since: now,
            target: None,
            errors: Vec::new(),
            connects: 0,
            resolved: None,
            awaits_names: false,
            is_overdue: false,
            login: Login::Unasked,
            stop: None,
            retired: None,
            last_activity: now,
        }
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// To be called after everything that was told to the session.
    pub(crate) fn observe(&mut self, record: &Record<'_>, now: Instant) -> Verdicts {
        if record.attempts == self.epoch {
            return Ok(());
        }
        hold!(self.phase == Phase::Setup, "an attempt was begun in {:?}", self.phase);
        hold!(self.script.is_complete(self.fed), "an attempt was begun before the request was complete");
        let budget = self.world.budget(self.root()?);
        hold!(
            u32::from(record.attempts) <= budget,
            "attempt {} is beyond the budget of {budget}",
            record.attempts
        );
        self.epoch = record.attempts;
        self.epoch_since = now;
        self.target = record.target.and_then(|name| name.parse().ok()).map(TargetIndex);
        let target = self.target.ok_or("an attempt without a target")?;
        let ways = self.world.ways(self.view.snapshot(), self.root()?, target);
        hold!(ways > 0, "{target:?} was tried, to which no way leads over targets that are up");
        self.errors.clear();
        self.connects = 0;
        // Addresses that were found serve every later attempt, and so does a search that goes on.
        self.resolved = self.resolved.take().filter(Result::is_ok);
        Ok(())
    }

    /// Whether the attempt that is under way waits for addresses.
    pub(crate) fn is_resolving(&self) -> bool {
        self.awaits_names && matches!(self.upstream(), Some(Upstream::Direct))
    }

    pub(crate) fn handle_connect_failed(&mut self, error: ConnectError) {
        self.errors.push(error);
    }

    pub(crate) fn handle_resolve(&mut self) -> Verdicts {
        hold!(matches!(self.upstream(), Some(Upstream::Direct)), "a name is resolved for no `direct`");
        self.awaits_names = true;
        Ok(())
    }

    pub(crate) fn handle_resolved(&mut self, resolved: &Resolved) {
        if std::mem::take(&mut self.awaits_names) {
            self.resolved = Some(resolved.clone());
        }
    }

    pub(crate) fn check_connect(&mut self, address: &UpstreamAddr, local: bool) -> Verdicts {
        self.connects += 1;
        let is_socks =
            matches!(self.script.verdict, Verdict::Request { answer: Answer::Socks4 | Answer::Socks5, .. });
        hold!(local == is_socks, "the local address is asked for when it is not needed, or not when it is");
        match self.upstream() {
            Some(Upstream::Direct) => {
                let UpstreamAddr::Tcp(address) = address else {
                    return Err("a client made us dial a Unix socket".to_owned());
                };
                hold!(!self.world.is_forbidden(address.ip()), "{address} is forbidden and was dialled");
                let port = self.wish().map_or(0, Wish::port);
                let is_known = self.candidates().contains(&address.ip()) && address.port() == port;
                hold!(is_known, "{address} was dialled, which nobody asked for");
                Ok(())
            }
            Some(upstream @ (Upstream::Tcp(_) | Upstream::Unix(_))) => {
                hold!(
                    world::has_address(upstream, address),
                    "{address:?} is no address of {:?}",
                    self.target
                );
                Ok(())
            }
            Some(Upstream::Reject | Upstream::Proxied(_)) | None => {
                Err(format!("{address:?} was dialled for no upstream"))
            }
        }
    }

    /// The client is being told its last word.
    pub(crate) fn check_refusal(&mut self, record: &Record<'_>, now: Instant) -> Verdicts {
        hold!(self.phase == Phase::Setup, "a refusal in {:?}", self.phase);
        let why = match self.script.verdict {
            Verdict::Refusal { .. } => None,
            Verdict::Request { .. } if self.is_overloaded() => None,
            Verdict::Request { .. } => {
                let why = self.check_why(record)?;
                hold!(self.script.tells_failure(&self.said, why), "{why:?} is told as {:?}", self.said);
                Some(why)
            }
        };
        self.phase = Phase::Refusing { since: now, why, fed: self.fed };
        Ok(())
    }

    pub(crate) fn check_pump(&mut self, local: Option<SocketAddr>, now: Instant) -> Verdicts {
        hold!(self.phase == Phase::Setup, "the pump starts in {:?}", self.phase);
        hold!(self.script.tells_success(&self.said, local), "success is told as {:?}", self.said);
        self.phase = Phase::Pumping;
        self.last_activity = now;
        Ok(())
    }

    /// What a session holds of a client's early bytes is bounded.
    pub(crate) fn check_fed(&self) -> Verdicts {
        let bound = match self.phase {
            Phase::Setup => self.script.handshake_bytes + MAX_EARLY_BYTES + RECEIVE_BYTES,
            Phase::Refusing { fed, .. } => fed + LINGER_BYTES + RECEIVE_BYTES,
            Phase::Pumping | Phase::Closed => return Ok(()),
        };
        hold!(self.fed <= bound, "{} bytes were taken from the client in {:?}", self.fed, self.phase);
        Ok(())
    }

    /// These bytes reach the client, behind the first `sent`.
    pub(crate) fn check_down(&self, sent: usize, bytes: &[u8], source: Option<&Conn>) -> Verdicts {
        let (said, payload) = bytes.split_at(self.said.len().saturating_sub(sent).min(bytes.len()));
        let expected = self.said.get(sent..sent + said.len()).unwrap_or_default();
        hold!(expected == said, "the client got {said:?} at {sent} instead of {expected:?}");
        if payload.is_empty() {
            return Ok(());
        }
        let from = (sent + said.len()) - self.said.len();
        let source = source.ok_or("the client got payload without an upstream")?;
        let is_right = source.out().get(from..from + payload.len()) == Some(payload);
        hold!(is_right, "the client got {} wrong bytes at payload offset {from}", payload.len());
        Ok(())
    }

    /// These bytes reach the upstream.
    pub(crate) fn check_up(&mut self, mut bytes: &[u8]) -> Verdicts {
        if let Verdict::Request { answer: Answer::HttpPlain(head), .. } = &self.script.verdict {
            while !self.head.ends_with(b"\r\n\r\n")
                && let Some((first, rest)) = bytes.split_first()
            {
                self.head.push(*first);
                bytes = rest;
                if self.head.ends_with(b"\r\n\r\n") {
                    head.check(&self.head)?;
                }
            }
        }
        let is_right = self.script.payload().get(self.up..self.up + bytes.len()) == Some(bytes);
        hold!(is_right, "the upstream got {} wrong bytes at payload offset {}", bytes.len(), self.up);
        self.up += bytes.len();
        Ok(())
    }

    /// A session that has not closed has something to wait for, and not for ever.
    pub(crate) fn check_waiting(&self, timeout: Option<Instant>, pending: usize, tools: &Tools) -> Verdicts {
        let now = tools.now;
        let Some(timeout) = timeout else { return Err("an open session without a timeout".to_owned()) };
        if self.world.is_paced() {
            // Who is kept silent waits for as long as others have run ahead.
            return Ok(());
        }
        let times = self.world.timeouts;
        let longest = times.handshake.max(times.connect).max(times.idle).max(times.half_close);
        let latest = now + longest.max(LINGER);
        hold!(timeout <= latest, "the next timeout is at {timeout:?}, beyond every limit");
        let silent_until = self.last_activity + times.idle.max(times.half_close);
        let is_pumping = self.phase == Phase::Pumping;
        hold!(!is_pumping || timeout <= silent_until, "silence is borne until {timeout:?}");
        if self.phase == Phase::Setup && self.script.is_complete(self.fed) {
            hold!(pending > 0, "the request is complete, and nothing is under way for it");
        }
        if self.phase == Phase::Setup && self.login != Login::Asked && self.script.is_complete(self.fed) {
            let late = tools.late + STEPS;
            let most = times.connect + late;
            let spent = now.since(self.epoch_since);
            hold!(spent <= most, "an upstream is tried for {spent:?}; {most:?} are allowed");
            let most = times.handshake + times.connect * self.world.budget(self.root()?) + late;
            let spent = now.since(self.accepted_at);
            hold!(spent <= most, "no upstream after {spent:?}; {most:?} are allowed");
        }
        Ok(())
    }

    pub(crate) fn check_close(&mut self, closing: Closing, ends: &Ends<'_>, record: &Record<'_>) -> Verdicts {
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        let reason = closing.reason;
        if matches!(reason, CloseReason::Stopped | CloseReason::Drained) {
            hold!(self.stop == Some(reason), "{reason} though nobody asked for it");
            return Ok(());
        }
        if reason == CloseReason::Retired {
            return self.check_retirement(phase, closing, record);
        }
        match phase {
            Phase::Setup => self.check_close_in_setup(closing, ends, record),
            Phase::Refusing { since, why, fed } => {
                hold!(
                    why.map_or_else(|| self.tells_refusal(reason), |why| reason == why.reason()),
                    "{reason} after the refusal {:?} for {why:?}",
                    self.said
                );
                let excused = ends.client.is_broken()
                    || ends.now.since(since) >= LINGER
                    || self.fed - fed > LINGER_BYTES;
                let is_told = ends.client.sent == self.said.len() && ends.client.is_shut_down;
                hold!(is_told || excused, "closed before the refused client was told so");
                Ok(())
            }
            Phase::Pumping => self.check_close_of_pump(closing, ends, record),
            Phase::Closed => Err("closed twice".to_owned()),
        }
    }

    fn is_overloaded(&self) -> bool {
        self.login == Login::Told(Verified::Overloaded)
    }

    /// Whether the client was told why it is refused.
    fn tells_refusal(&self, reason: CloseReason) -> bool {
        match self.is_overloaded() {
            true => reason == CloseReason::TooManyLogins && self.script.tells_overload(&self.said),
            false => self.script.tells_refusal(&self.said, reason),
        }
    }

    /// Only a session that is served by way of a member that has gone follows it, and nobody takes it for whole.
    fn check_retirement(&self, phase: Phase, closing: Closing, record: &Record<'_>) -> Verdicts {
        let Some((member, order)) = &self.retired else { return Err("retired by nobody".to_owned()) };
        let upstream = record.target.and_then(|name| Some(TargetIndex(name.parse().ok()?)));
        let is_served = upstream.is_some_and(|upstream| self.world.leads_to(*member, upstream));
        hold!(phase == Phase::Pumping && is_served, "retired in {phase:?}, served by {upstream:?}");
        hold!(!order.is_revoked(), "retired though the member is back");
        hold!([closing.client, closing.upstream] == [Ending::Reset; 2], "{closing:?} of what is cut off");
        Ok(())
    }

    fn check_close_in_setup(&self, closing: Closing, ends: &Ends<'_>, record: &Record<'_>) -> Verdicts {
        let reason = closing.reason;
        let is_complete = self.script.is_complete(self.fed);
        let is_honest = match reason {
            CloseReason::ClientLeft => ends.client.heard_end && !is_complete,
            CloseReason::ClientReset => ends.client.is_broken(),
            CloseReason::HandshakeTimeout => {
                (!is_complete || self.login == Login::Asked)
                    && ends.now >= self.accepted_at + self.world.timeouts.handshake
            }
            CloseReason::TooManySessions | CloseReason::TooManyNew => self.world.limits.is_some() && closing.client == Ending::Reset,
            CloseReason::ClientNotAllowed => !self.is_allowed && closing.client == Ending::Reset,
            CloseReason::ClientProtocol
            | CloseReason::ClientAuthentication
            | CloseReason::ClientUnsupported => self.script.tells_refusal(&self.said, reason),
            CloseReason::DestinationNotAllowed
            | CloseReason::ConnectFailed
            | CloseReason::ConnectTimeout
            | CloseReason::ResolveFailed
            | CloseReason::NoTarget
            | CloseReason::Rejected
            | CloseReason::RuleRejected
            | CloseReason::OutOfResources => {
                // Only `tcp` has no words for it; a reset says that it was no answer.
                let why = self.check_why(record)?;
                why.reason() == reason
                    && self.script.tells_failure(&self.said, why)
                    && closing.client == Ending::Reset
            }
            CloseReason::RuleDropped => {
                let is_unanswered = self.said == self.script.talk && record.attempts == 0;
                is_complete && self.ruling == Some(Action::Drop) && is_unanswered
            }
            CloseReason::Finished
            | CloseReason::TooManyLogins
            | CloseReason::UpstreamReset
            | CloseReason::IdleTimeout
            | CloseReason::HalfCloseTimeout
            // Nothing is sealed in this world, and nobody full.
            | CloseReason::ClientReplayed
            | CloseReason::UpstreamProtocol
            | CloseReason::UpstreamFull
            | CloseReason::Retired
            | CloseReason::Drained
            | CloseReason::Stopped => false,
        };
        hold!(is_honest, "{closing:?} before the pump ran, having said {:?}", self.said);
        Ok(())
    }

    fn check_close_of_pump(&self, closing: Closing, ends: &Ends<'_>, record: &Record<'_>) -> Verdicts {
        let Some(upstream) = ends.upstream else { return Err("pumped without an upstream".to_owned()) };
        let client = ends.client;
        // Everything that one side sent was delivered to the other.
        let is_up_whole = self.up == self.script.payload().len().min(self.written_payload(client))
            && client.taken == client.written;
        let is_down_whole = client.sent == self.said.len() + upstream.written;
        let is_counted = record.bytes_up == (self.head.len() + self.up) as u64
            && record.bytes_down == upstream.taken as u64;
        let silence = ends.now.since(self.last_activity);
        let is_half_closed = upstream.is_shut_down || client.is_shut_down;
        let (is_honest, endings) = match closing.reason {
            CloseReason::Finished => (
                is_counted
                    && is_up_whole
                    && is_down_whole
                    && client.has_ended()
                    && upstream.has_ended()
                    && is_half_closed
                    && [client, upstream].iter().all(|conn| conn.may_be_closed()),
                [Ending::Plain, Ending::Plain],
            ),
            CloseReason::ClientReset => {
                (client.is_broken() && (is_up_whole || upstream.is_broken()), [Ending::Plain, Ending::Reset])
            }
            CloseReason::UpstreamReset => (
                upstream.is_broken() && (is_down_whole || client.is_broken()),
                [Ending::Reset, Ending::Plain],
            ),
            CloseReason::IdleTimeout => {
                (silence >= self.world.timeouts.idle && !is_half_closed, [Ending::Plain, Ending::Plain])
            }
            CloseReason::HalfCloseTimeout => (
                silence >= self.world.timeouts.half_close
                    && (is_half_closed || client.is_broken() || upstream.is_broken()),
                [Ending::Plain, Ending::Plain],
            ),
            CloseReason::ClientLeft
            | CloseReason::ClientProtocol
            | CloseReason::ClientNotAllowed
            | CloseReason::ClientAuthentication
            | CloseReason::ClientReplayed
            | CloseReason::UpstreamProtocol
            | CloseReason::ClientUnsupported
            | CloseReason::DestinationNotAllowed
            | CloseReason::ConnectFailed
            | CloseReason::ConnectTimeout
            | CloseReason::ResolveFailed
            | CloseReason::NoTarget
            | CloseReason::Rejected
            | CloseReason::RuleRejected
            | CloseReason::RuleDropped
            | CloseReason::HandshakeTimeout
            | CloseReason::OutOfResources
            | CloseReason::TooManySessions
            | CloseReason::TooManyLogins
            | CloseReason::TooManyNew
            | CloseReason::UpstreamFull
            | CloseReason::Retired
            | CloseReason::Drained
            | CloseReason::Stopped => (false, [Ending::Plain, Ending::Plain]),
        };
        hold!(
            is_honest && [closing.client, closing.upstream] == endings,
            "{closing:?} with up whole {is_up_whole}, down whole {is_down_whole}, silent for {silence:?}, \
             client {client:?}, upstream {upstream:?}"
        );
        Ok(())
    }

    /// Why the request failed, as the record says, if that is what happened.
    fn check_why(&self, record: &Record<'_>) -> Result<Why, String> {
        if self.ruling == Some(Action::Reject) {
            hold!(record.attempts == 0, "an upstream was tried for a session that a rule rejects");
            return Ok(Why::RuleRejected);
        }
        let Some(upstream) = self.upstream() else {
            let root = self.view.snapshot().target(self.root()?);
            hold!(!root.health.is_available(), "nobody was tried though the target is up");
            return Ok(Why::NoTarget);
        };
        if matches!(upstream, Upstream::Reject) {
            return Ok(Why::Rejected);
        }
        let Some(error) = record.last_error else { return Err("failed without an error".to_owned()) };
        let truth = self.true_errors(upstream);
        hold!(truth.contains(&error), "{error:?} is told; the truth is one of {truth:?}");
        Ok(Why::Error(error))
    }

    /// What may be said of the attempt that failed last.
    fn true_errors(&self, upstream: &Upstream) -> Vec<ConnectError> {
        let mut truth = Vec::new();
        if self.is_overdue {
            truth.push(ConnectError::TimedOut);
        }
        // A refusal tells more than anything else; otherwise the latest counts.
        let refused = self.errors.iter().find(|error| **error == ConnectError::Refused);
        truth.extend(refused.or(self.errors.last()));
        if self.connects > 0 {
            return truth;
        }
        match (upstream, &self.resolved) {
            (Upstream::Tcp(addresses), _) if addresses.is_empty() => truth.push(ConnectError::NotResolved),
            (Upstream::Direct, Some(Err(ResolveError::TimedOut))) => truth.push(ConnectError::TimedOut),
            (Upstream::Direct, Some(Err(ResolveError::NotFound | ResolveError::Failed))) => {
                truth.push(ConnectError::NotResolved);
            }
            (Upstream::Direct, _) if !self.candidates().is_empty() => truth.push(ConnectError::NotAllowed),
            (
                Upstream::Direct
                | Upstream::Tcp(_)
                | Upstream::Unix(_)
                | Upstream::Reject
                | Upstream::Proxied(_),
                _,
            ) => {}
        }
        truth
    }

    /// The addresses that `direct` may be about.
    fn candidates(&self) -> Vec<IpAddr> {
        match (self.wish(), &self.resolved) {
            (Some(Wish::Address(address)), _) => vec![address.ip()],
            (Some(Wish::Name(_)), Some(Ok(addresses))) => addresses.clone(),
            (Some(Wish::Name(_)) | None, _) => Vec::new(),
        }
    }

    /// Where the session is dispatched.
    pub(crate) fn root(&self) -> Result<TargetIndex, String> {
        match self.ruling {
            Some(Action::Target(target)) => Ok(target),
            None => Ok(self.world.root),
            Some(Action::Reject | Action::Drop) => Err("a session goes on that a rule ends".to_owned()),
        }
    }

    fn wish(&self) -> Option<Wish> {
        self.script.destination
    }

    fn upstream(&self) -> Option<&Upstream> {
        match &self.world.kinds[self.target?.0 as usize] {
            TargetKind::Upstream(upstream) => Some(upstream),
            TargetKind::Group(_) => None,
        }
    }

    fn written_payload(&self, client: &Conn) -> usize {
        client.written - self.script.handshake_bytes.min(client.written)
    }
}

impl Wish {
    fn port(self) -> u16 {
        match self {
            Wish::Address(address) => address.port(),
            Wish::Name(port) => port,
        }
    }
}

/// For indexing what is kept for each side.
pub(crate) const fn index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Upstream => 1,
    }
}
