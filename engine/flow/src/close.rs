//! Why a session ended, and why an attempt failed: one value each, naming the culprit.

use std::fmt;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides ended their streams and everything was delivered.
    Finished,
    /// The client ended its stream before it had made a request.
    ClientLeft,
    /// The client reset its connection.
    ClientReset,
    /// The client broke the protocol of the listener.
    ClientProtocol,
    /// The client's address is not in the listener's `allow` list.
    ClientNotAllowed,
    /// The client offered no acceptable authentication, or a wrong user or password.
    ClientAuthentication,
    /// The client's stream is one that came before: somebody repeats what was overheard.
    ClientReplayed,
    /// The client asked for a command or address type that is not offered.
    ClientUnsupported,
    /// The client asked for a destination that it may not reach from this listener.
    DestinationNotAllowed,
    /// The upstream reset its connection.
    UpstreamReset,
    /// The upstream's stream was tampered with, or sealed with another key.
    UpstreamProtocol,
    /// Every attempt to reach an upstream failed, the last one by a refusal or an error.
    ConnectFailed,
    /// Every attempt to reach an upstream failed, the last one by its deadline.
    ConnectTimeout,
    /// The destination's name could not be resolved.
    ResolveFailed,
    /// No member of the target is up.
    NoTarget,
    /// The target is a `reject`.
    Rejected,
    /// A rule says that such sessions are rejected.
    RuleRejected,
    /// A rule says that such sessions are closed without a word.
    RuleDropped,
    /// The member that served it went down, was drained or was removed, and its group says `on_down = "close"`.
    Retired,
    /// No request was complete within the handshake timeout.
    HandshakeTimeout,
    /// Neither side sent anything within the idle timeout.
    IdleTimeout,
    /// One side had ended and the other was silent for the half-close timeout.
    HalfCloseTimeout,
    /// The listener, or the client's source, has as many sessions as it may.
    TooManySessions,
    /// More passwords wait to be verified than may.
    TooManyLogins,
    /// More sessions begin at the listener, or from the client's source, than may in a second.
    TooManyNew,
    /// Every upstream that could serve it has as many sessions as it may, and waiting for a place took too long, or as
    /// many wait as may.
    UpstreamFull,
    /// No descriptor or memory was left to serve the session.
    OutOfResources,
    /// The drain deadline passed while the session was still running.
    Drained,
    /// The daemon stopped at once.
    Stopped,
}

/// Whose doing a [`CloseReason`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// Nobody's: an ordinary end.
    Nobody,
    /// The client's.
    Client,
    /// The upstream's (or the lack of one).
    Upstream,
    /// A limit of this machine.
    Limit,
    /// A timeout of ours.
    Timeout,
    /// The operator's: a rule, a drain or a stop.
    Us,
}

impl CloseReason {
    /// Every reason, in the order of [`CloseReason::index`].
    pub const ALL: [CloseReason; 29] = [
        CloseReason::Finished,
        CloseReason::ClientLeft,
        CloseReason::ClientReset,
        CloseReason::ClientProtocol,
        CloseReason::ClientNotAllowed,
        CloseReason::ClientAuthentication,
        CloseReason::ClientReplayed,
        CloseReason::ClientUnsupported,
        CloseReason::DestinationNotAllowed,
        CloseReason::UpstreamReset,
        CloseReason::UpstreamProtocol,
        CloseReason::ConnectFailed,
        CloseReason::ConnectTimeout,
        CloseReason::ResolveFailed,
        CloseReason::NoTarget,
        CloseReason::Rejected,
        CloseReason::RuleRejected,
        CloseReason::RuleDropped,
        CloseReason::Retired,
        CloseReason::HandshakeTimeout,
        CloseReason::IdleTimeout,
        CloseReason::HalfCloseTimeout,
        CloseReason::TooManySessions,
        CloseReason::TooManyLogins,
        CloseReason::TooManyNew,
        CloseReason::UpstreamFull,
        CloseReason::OutOfResources,
        CloseReason::Drained,
        CloseReason::Stopped,
    ];

    /// A dense number, for counters kept by reason.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word used in logs, status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            CloseReason::Finished => "finished",
            CloseReason::ClientLeft => "client-left",
            CloseReason::ClientReset => "client-reset",
            CloseReason::ClientProtocol => "client-protocol",
            CloseReason::ClientNotAllowed => "client-not-allowed",
            CloseReason::ClientAuthentication => "client-authentication",
            CloseReason::ClientReplayed => "client-replayed",
            CloseReason::ClientUnsupported => "client-unsupported",
            CloseReason::DestinationNotAllowed => "destination-not-allowed",
            CloseReason::UpstreamReset => "upstream-reset",
            CloseReason::UpstreamProtocol => "upstream-protocol",
            CloseReason::ConnectFailed => "connect-failed",
            CloseReason::ConnectTimeout => "connect-timeout",
            CloseReason::ResolveFailed => "resolve-failed",
            CloseReason::NoTarget => "no-target",
            CloseReason::Rejected => "rejected",
            CloseReason::RuleRejected => "rule-rejected",
            CloseReason::RuleDropped => "rule-dropped",
            CloseReason::Retired => "retired",
            CloseReason::HandshakeTimeout => "handshake-timeout",
            CloseReason::IdleTimeout => "idle-timeout",
            CloseReason::HalfCloseTimeout => "half-close-timeout",
            CloseReason::TooManySessions => "too-many-sessions",
            CloseReason::TooManyLogins => "too-many-logins",
            CloseReason::TooManyNew => "too-many-new",
            CloseReason::UpstreamFull => "upstream-full",
            CloseReason::OutOfResources => "out-of-resources",
            CloseReason::Drained => "drained",
            CloseReason::Stopped => "stopped",
        }
    }

    /// Whose doing it is.
    pub const fn culprit(self) -> Culprit {
        match self {
            CloseReason::Finished => Culprit::Nobody,
            CloseReason::ClientLeft
            | CloseReason::ClientReset
            | CloseReason::ClientProtocol
            | CloseReason::ClientNotAllowed
            | CloseReason::ClientAuthentication
            | CloseReason::ClientReplayed
            | CloseReason::ClientUnsupported
            | CloseReason::DestinationNotAllowed => Culprit::Client,
            CloseReason::UpstreamReset
            | CloseReason::UpstreamProtocol
            | CloseReason::ConnectFailed
            | CloseReason::ConnectTimeout
            | CloseReason::ResolveFailed
            | CloseReason::NoTarget
            | CloseReason::Rejected
            | CloseReason::Retired => Culprit::Upstream,
            CloseReason::HandshakeTimeout | CloseReason::IdleTimeout | CloseReason::HalfCloseTimeout => {
                Culprit::Timeout
            }
            CloseReason::TooManySessions
            | CloseReason::TooManyLogins
            | CloseReason::TooManyNew
            | CloseReason::UpstreamFull
            | CloseReason::OutOfResources => Culprit::Limit,
            CloseReason::RuleRejected
            | CloseReason::RuleDropped
            | CloseReason::Drained
            | CloseReason::Stopped => Culprit::Us,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why one attempt to reach an upstream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ConnectError {
    /// ECONNREFUSED: nobody listens there (for a Unix socket also ENOENT).
    #[error("connection refused")]
    Refused,
    /// The attempt's deadline passed, or the kernel gave up (ETIMEDOUT).
    #[error("timed out")]
    TimedOut,
    /// ENETUNREACH: no route to that network.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// EHOSTUNREACH: the host does not answer.
    #[error("host unreachable")]
    HostUnreachable,
    /// The peer reset the connection while it was being set up.
    #[error("connection reset")]
    Reset,
    /// The address may not be reached from this listener; nothing was dialled.
    #[error("destination not allowed")]
    NotAllowed,
    /// The upstream's name has no address at the moment.
    #[error("name not resolved")]
    NotResolved,
    /// No descriptor, port or memory was left on this machine.
    #[error("out of descriptors, ports or memory")]
    OutOfResources,
    /// The upstream has as many sessions as it may; nothing was dialled.
    #[error("full")]
    Full,
    /// Our own end cannot be as configured: no source address of the destination's family, or the address, the
    /// interface or an option of the socket is refused. Nothing was dialled.
    #[error("source address, interface or socket option refused")]
    OwnEnd,
    /// The destination ended its stream before it had sent a byte, where its first byte was awaited, or a proxy did
    /// before it had answered.
    #[error("ended without an answer")]
    Unanswered,
    /// The proxy wants a user and a password, or others.
    #[error("authentication refused by the proxy")]
    ProxyAuthentication,
    /// The proxy will not or cannot reach the destination, for no reason that has a word of its own here.
    #[error("refused by the proxy")]
    ProxyRefused,
    /// What the proxy sent is no answer of its protocol.
    #[error("protocol broken by the proxy")]
    ProxyBroken,
    /// Any other error of the operating system, by its number.
    #[error("os error {0}")]
    Other(i32),
}

impl ConnectError {
    /// How many kinds there are; [`ConnectError::index`] is below it.
    pub const KINDS: usize = 15;

    /// A dense number, for counters kept by kind.
    pub const fn index(self) -> usize {
        match self {
            ConnectError::Refused => 0,
            ConnectError::TimedOut => 1,
            ConnectError::NetworkUnreachable => 2,
            ConnectError::HostUnreachable => 3,
            ConnectError::Reset => 4,
            ConnectError::NotAllowed => 5,
            ConnectError::NotResolved => 6,
            ConnectError::OutOfResources => 7,
            ConnectError::OwnEnd => 8,
            ConnectError::Unanswered => 9,
            ConnectError::ProxyAuthentication => 10,
            ConnectError::ProxyRefused => 11,
            ConnectError::ProxyBroken => 12,
            ConnectError::Full => 13,
            ConnectError::Other(_) => 14,
        }
    }

    /// The words used in status and metrics, by [`ConnectError::index`].
    pub const LABELS: [&'static str; Self::KINDS] = [
        "refused",
        "timed-out",
        "network-unreachable",
        "host-unreachable",
        "reset",
        "not-allowed",
        "not-resolved",
        "out-of-resources",
        "own-end",
        "unanswered",
        "proxy-authentication",
        "proxy-refused",
        "proxy-broken",
        "full",
        "other",
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_index() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index, "{reason}");
        }
    }
}
