//! One try to reach one upstream on behalf of a session, from the pick until it has won or failed.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::capacity::Place;
use crate::close::ConnectError;
use crate::dial::{AttemptId, Dial};
use crate::dispatch::{Branch, Choice, Path};
use crate::health::Outcome;
use crate::snapshot::{Commit, Route, TargetIndex};
use crate::time::Instant;
use crate::wire::client::Handshake;
use crate::wire::shadowsocks::Tunnel;

/// One try.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Where in the groups it belongs.
    pub(super) branch: Branch,
    pub(super) upstream: TargetIndex,
    /// The targets that count it as active.
    pub(super) path: Path,
    pub(super) begun_at: Instant,
    /// When its connection was open; the beginning until then.
    pub(super) reached_at: Instant,
    /// When its connection must be open.
    pub(super) connect_by: Instant,
    /// When it must have won.
    pub(super) deadline: Instant,
    /// What makes it win.
    pub(super) commit: Commit,
    /// What its connection leads through, once that is known.
    pub(super) tunnel: Option<Box<Tunnel>>,
    /// Its place at the upstream, where places are counted.
    pub(super) place: Option<Place>,
    /// Whether its destination has been told what the client said.
    pub(super) is_told: bool,
    pub(super) approach: Approach,
}

/// How far it has come.
#[derive(Debug)]
pub(super) enum Approach {
    /// Waits for the addresses of the destination.
    Resolving,
    /// Connects.
    Dialing(Dial),
    /// Speaks to proxies.
    Introducing(Box<Introducing>),
    /// Waits for the client's first word, to say it together with what opens the tunnel.
    Waiting {
        connection: AttemptId,
        /// When the tunnel is opened without it.
        until: Instant,
    },
    /// Has been told what the client said, and waits for the destination's first byte.
    Listening(AttemptId),
}

/// A connection to a proxy that does not pass bytes on yet.
#[derive(Debug)]
pub(super) struct Introducing {
    pub(super) way: Way,
    /// With the proxy that is asked.
    pub(super) handshake: Handshake,
    /// What the proxy has sent and is not done with.
    pub(super) received: Vec<u8>,
}

/// How far a connection has come on its way over proxies.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) connection: AttemptId,
    /// The connection's own address, where it is wanted.
    pub(super) local: Option<SocketAddr>,
    pub(super) route: Arc<Route>,
    /// Which of its hops is being asked.
    pub(super) hop: usize,
}

impl Attempt {
    pub(super) fn new(choice: &Choice, path: Path, commit: Commit, now: Instant) -> Attempt {
        Attempt {
            branch: choice.branch,
            upstream: choice.upstream,
            path,
            begun_at: now,
            reached_at: now,
            connect_by: choice.connect_by,
            deadline: choice.deadline,
            commit,
            tunnel: None,
            place: None,
            is_told: false,
            approach: Approach::Resolving,
        }
    }

    /// Whether a connection is this attempt's.
    pub(super) fn owns(&self, connection: AttemptId) -> bool {
        match &self.approach {
            Approach::Resolving => false,
            Approach::Dialing(dial) => dial.in_flight().contains(&connection),
            Approach::Introducing(introducing) => introducing.way.connection == connection,
            Approach::Waiting { connection: own, .. } | Approach::Listening(own) => *own == connection,
        }
    }

    /// Everything that is open or being opened for it.
    pub(super) fn connections(&self) -> SmallVec<[AttemptId; 2]> {
        match &self.approach {
            Approach::Resolving => SmallVec::new(),
            Approach::Dialing(dial) => SmallVec::from_slice(dial.in_flight()),
            Approach::Introducing(introducing) => SmallVec::from_slice(&[introducing.way.connection]),
            Approach::Waiting { connection, .. } | Approach::Listening(connection) => {
                SmallVec::from_slice(&[*connection])
            }
        }
    }

    /// Whether its time is up.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.limit()
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let next_address = match &self.approach {
            Approach::Dialing(dial) => dial.poll_timeout(),
            Approach::Waiting { until, .. } => Some(*until),
            Approach::Resolving | Approach::Introducing(_) | Approach::Listening(_) => None,
        };
        next_address.map_or(self.limit(), |next| next.min(self.limit()))
    }

    /// What a failure says of the upstream.
    pub(super) fn outcome_of(&self, error: ConnectError) -> Outcome {
        match (&self.approach, error) {
            (Approach::Listening(_), ConnectError::TimedOut) => Outcome::FirstByteTimeout,
            (Approach::Listening(_), ConnectError::Reset | ConnectError::Unanswered) => {
                Outcome::ResetBeforeFirstByte
            }
            // The proxy's word on the destination, which the client has chosen.
            (
                Approach::Introducing(_),
                ConnectError::Refused | ConnectError::HostUnreachable | ConnectError::NetworkUnreachable,
            ) => Outcome::Abandoned,
            (
                Approach::Listening(_)
                | Approach::Waiting { .. }
                | Approach::Introducing(_)
                | Approach::Dialing(_)
                | Approach::Resolving,
                error,
            ) => Outcome::of_failure(error),
        }
    }

    /// What the log is to say of it.
    pub(super) fn lost(&self, ended_at: Option<Instant>, error: Option<ConnectError>) -> Lost {
        Lost { upstream: self.upstream, begun_at: self.begun_at, ended_at, error }
    }

    fn limit(&self) -> Instant {
        match &self.approach {
            Approach::Resolving | Approach::Dialing(_) => self.connect_by,
            Approach::Introducing(_) | Approach::Waiting { .. } | Approach::Listening(_) => self.deadline,
        }
    }
}

/// How many failed attempts a session remembers for its line in the log: a list that nobody reads to its end is cut.
const MAX_TOLD: usize = 16;

/// An attempt that did not win, for the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) upstream: TargetIndex,
    pub(super) begun_at: Instant,
    /// The end of the session where it is not said.
    pub(super) ended_at: Option<Instant>,
    /// What was wrong; `None` when it was given up because another won or the session ended.
    pub(super) error: Option<ConnectError>,
}

/// The attempts of a session that did not win, in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Losses(Vec<Lost>);

impl Losses {
    pub(super) fn push(&mut self, lost: Lost) {
        if self.0.len() < MAX_TOLD {
            self.0.push(lost);
        }
    }

    pub(super) fn list(&self) -> &[Lost] {
        &self.0
    }
}
