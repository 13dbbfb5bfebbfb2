//! Reaches one upstream that may have several addresses, as RFC 8305 ("Happy Eyeballs") tells: families
//! interleaved, the next address tried when one has failed or has not answered for a while, the first that
//! connects wins.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::close::ConnectError;
use crate::time::Instant;

/// How long one address has to itself before the next is tried beside it (RFC 8305, section 5).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How many addresses of one name are tried. A name with hundreds must not hold hundreds of descriptors.
pub const MAX_ADDRESSES: usize = 8;

/// Names one connect of a session; never given twice in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptId(pub u16);

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddr {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(Arc<Path>),
}

/// The connects towards one upstream.
#[derive(Debug)]
pub(crate) struct Dial {
    waiting: smallvec::IntoIter<[UpstreamAddr; 2]>,
    in_flight: SmallVec<[AttemptId; 2]>,
    next_at: Instant,
    error: Option<ConnectError>,
}

/// What is to be done next for a [`Dial`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Connect there, beside what is in flight.
    Connect(UpstreamAddr),
    /// Wait for an answer or the timeout.
    Wait,
    /// Nothing is left: the upstream was not reached, for this reason.
    Exhausted(ConnectError),
}

impl Dial {
    pub(crate) fn new(addresses: impl IntoIterator<Item = UpstreamAddr>) -> Dial {
        Dial {
            waiting: addresses.into_iter().take(MAX_ADDRESSES).collect::<SmallVec<_>>().into_iter(),
            in_flight: SmallVec::new(),
            next_at: Instant::ZERO,
            error: None,
        }
    }

    /// Whether there is nothing to be tried.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.len() == 0
    }

    /// Asked after every event, and again until it says other than connect.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if (self.in_flight.is_empty() || now >= self.next_at)
            && let Some(address) = self.waiting.next()
        {
            return Next::Connect(address);
        }
        if self.in_flight.is_empty() {
            Next::Exhausted(self.error.unwrap_or(ConnectError::NotResolved))
        } else {
            Next::Wait
        }
    }

    pub(crate) fn handle_started(&mut self, attempt: AttemptId, now: Instant) {
        self.in_flight.push(attempt);
        self.next_at = now + ATTEMPT_DELAY;
    }

    /// An attempt failed; false when it was none of ours (a late event).
    pub(crate) fn handle_failed(&mut self, attempt: AttemptId, error: ConnectError) -> bool {
        let is_ours = self.handle_ended(attempt);
        if is_ours {
            self.error = Some(telling_most(self.error, error));
        }
        is_ours
    }

    /// Takes an attempt that has ended out; false when it was none of ours (a late event).
    pub(crate) fn handle_ended(&mut self, attempt: AttemptId) -> bool {
        let before = self.in_flight.len();
        self.in_flight.retain(|in_flight| *in_flight != attempt);
        before != self.in_flight.len()
    }

    /// What is still in flight.
    pub(crate) fn in_flight(&self) -> &[AttemptId] {
        &self.in_flight
    }

    /// When the next address is to be tried beside those in flight, if there is one.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        (self.waiting.len() > 0).then_some(self.next_at)
    }
}

/// Alternates between families, the family of the first address first (RFC 8305, section 4).
pub(crate) fn interleaved(addresses: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (mut leading, mut following): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::with_capacity(leading.len() + following.len());
    while !leading.is_empty() || !following.is_empty() {
        ordered.extend(leading.pop_front());
        ordered.extend(following.pop_front());
    }
    ordered.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

/// The failure to report when several addresses failed: the one that tells the client most.
fn telling_most(known: Option<ConnectError>, new: ConnectError) -> ConnectError {
    match known {
        // A refusal is an answer of the destination itself; keep it over what our network says.
        Some(ConnectError::Refused) => ConnectError::Refused,
        Some(
            ConnectError::TimedOut
            | ConnectError::NetworkUnreachable
            | ConnectError::HostUnreachable
            | ConnectError::Reset
            | ConnectError::NotAllowed
            | ConnectError::Full
            | ConnectError::NotResolved
            | ConnectError::OutOfResources
            | ConnectError::OwnEnd
            | ConnectError::Unanswered
            | ConnectError::ProxyAuthentication
            | ConnectError::ProxyRefused
            | ConnectError::ProxyBroken
            | ConnectError::Other(_),
        )
        | None => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> UpstreamAddr {
        UpstreamAddr::Tcp(text.parse().unwrap())
    }

    #[test]
    fn families_alternate_from_the_first() {
        let addresses = ["::1", "::2", "::3", "1.1.1.1"].map(|text| text.parse().unwrap()).to_vec();
        let texts: Vec<_> = interleaved(addresses, 9).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["[::1]:9", "1.1.1.1:9", "[::2]:9", "[::3]:9"]);
    }

    #[test]
    fn the_next_address_comes_after_the_delay_or_a_failure() {
        let at = |millis| Instant::ZERO + Duration::from_millis(millis);
        let mut dial = Dial::new([tcp("1.1.1.1:1"), tcp("1.1.1.2:1"), tcp("1.1.1.3:1")]);
        assert_eq!(dial.next(at(0)), Next::Connect(tcp("1.1.1.1:1")));
        dial.handle_started(AttemptId(0), at(0));
        assert_eq!(dial.next(at(249)), Next::Wait);
        assert_eq!(dial.poll_timeout(), Some(at(250)));
        assert_eq!(dial.next(at(250)), Next::Connect(tcp("1.1.1.2:1")));
        dial.handle_started(AttemptId(1), at(250));
        assert!(dial.handle_ended(AttemptId(0)));
        assert!(dial.handle_ended(AttemptId(1)));
        assert!(!dial.handle_ended(AttemptId(1)), "late");
        assert_eq!(dial.next(at(251)), Next::Connect(tcp("1.1.1.3:1")));
        dial.handle_started(AttemptId(2), at(251));
        assert_eq!(dial.poll_timeout(), None);
        assert!(dial.handle_failed(AttemptId(2), ConnectError::Refused));
        assert_eq!(dial.next(at(252)), Next::Exhausted(ConnectError::Refused));
    }

    #[test]
    fn a_late_failure_of_another_upstream_says_nothing_about_this_one() {
        let mut dial = Dial::new([tcp("1.1.1.1:1")]);
        assert_eq!(dial.next(Instant::ZERO), Next::Connect(tcp("1.1.1.1:1")));
        dial.handle_started(AttemptId(7), Instant::ZERO);
        assert!(!dial.handle_failed(AttemptId(6), ConnectError::Refused), "late");
        assert!(dial.handle_failed(AttemptId(7), ConnectError::HostUnreachable));
        assert_eq!(dial.next(Instant::ZERO), Next::Exhausted(ConnectError::HostUnreachable));
    }
}
