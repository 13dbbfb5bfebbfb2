//! What is special about the connections to an upstream, as plain data: the session picks the source address, the
//! driver sets the rest on the socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::snapshot::TargetIndex;

/// What is special about the connections to an upstream. An upstream without any has none of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Where connections come from, by turns; empty for what the system chooses.
    pub sources: Vec<IpAddr>,
    /// They come from the client's own address (IP_TRANSPARENT, Linux).
    pub transparent: bool,
    /// The network interface they go through (SO_BINDTODEVICE, Linux).
    pub interface: Option<Box<str>>,
    /// The mark of their packets (SO_MARK, Linux).
    pub mark: Option<u32>,
    /// How a peer that has vanished is noticed.
    pub keepalive: Option<Keepalive>,
    /// TCP or its extension.
    pub protocol: StreamProtocol,
}

impl Outgoing {
    /// Whether there is a source address of the family of `address`, or none is asked for.
    pub fn reaches(&self, address: SocketAddr) -> bool {
        self.sources.is_empty() || self.sources_towards(address).next().is_some()
    }

    /// The source for the connect of this turn to `address`; turns go round the sources of its family.
    pub fn source(&self, address: SocketAddr, turn: u32) -> Option<IpAddr> {
        let count = self.sources_towards(address).count();
        // A target has fewer sources than turns can count.
        self.sources_towards(address).nth(turn as usize % count.max(1))
    }

    fn sources_towards(&self, address: SocketAddr) -> impl Iterator<Item = IpAddr> {
        self.sources.iter().copied().filter(move |source| source.is_ipv4() == address.is_ipv4())
    }
}

/// Probes on a silent connection (tcp(7), TCP_KEEPIDLE and those beside it). Whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long nothing must have come before the first probe.
    pub idle: Duration,
    /// The time between probes; `None` for the system's.
    pub interval: Option<Duration>,
    /// How many probes without an answer end the connection; `None` for the system's.
    pub count: Option<u32>,
}

/// What carries a stream of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// Multipath TCP (RFC 8684, Linux), which falls back to TCP where the peer knows none.
    Mptcp,
}

/// What is special about one connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The upstream whose [`Outgoing`] holds.
    pub target: TargetIndex,
    /// The address to come from.
    pub source: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(sources: &[&str]) -> Outgoing {
        let sources = sources.iter().map(|text| text.parse().unwrap()).collect();
        Outgoing { sources, ..Outgoing::default() }
    }

    #[test]
    fn sources_take_turns_within_their_family() {
        let outgoing = from(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
        let picked = |to: &str, turn| outgoing.source(to.parse().unwrap(), turn).unwrap().to_string();
        assert_eq!(picked("198.51.100.1:80", 0), "192.0.2.1");
        assert_eq!(picked("198.51.100.1:80", 1), "192.0.2.2");
        assert_eq!(picked("198.51.100.1:80", 2), "192.0.2.1");
        assert_eq!(picked("[2001:db8::2]:80", 1), "2001:db8::1");
    }

    #[test]
    fn a_family_without_a_source_is_not_reached_unless_there_are_none_at_all() {
        let to = "[2001:db8::2]:80".parse().unwrap();
        assert!(!from(&["192.0.2.1"]).reaches(to));
        assert_eq!(from(&["192.0.2.1"]).source(to, 3), None);
        assert!(from(&[]).reaches(to));
    }
}
