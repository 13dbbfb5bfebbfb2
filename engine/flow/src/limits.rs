//! What a listener bears: sessions at once, new ones, and bytes, in all and of each source.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::Gate;
use crate::pace::{Arrivals, Bound, Meter, Meters, Pacing, Rate, Rates};
use crate::record::ClientAddr;
use crate::time::Instant;

/// Workers that look at once seldom meet in one of so many.
const SHARDS: usize = 16;

/// What a listener bears.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at once, over all workers. Two workers that accept in the same moment may both take the last place.
    pub sessions: Option<u64>,
    /// Sessions at once of one source.
    pub per_source: Option<u32>,
    /// New sessions a second, over all workers.
    pub new: Option<Rate>,
    /// New sessions a second of one source.
    pub new_per_source: Option<Rate>,
    /// Bytes a second of all sessions together.
    pub rates: Rates,
    /// Bytes a second of all sessions of one source together.
    pub source_rates: Rates,
    /// Who has how many; of the listener's name, across snapshots.
    pub sources: Arc<Sources>,
}

/// Why a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The listener has as many sessions as it may.
    Listener,
    /// Its source has.
    Source,
    /// Too many sessions have begun within a second.
    ListenerRate,
    /// Too many of its source have.
    SourceRate,
}

impl Limits {
    /// No limits, for whoever is known as `sources`.
    pub fn none(sources: Arc<Sources>) -> Limits {
        Limits {
            sessions: None,
            per_source: None,
            new: None,
            new_per_source: None,
            rates: Rates::default(),
            source_rates: Rates::default(),
            sources,
        }
    }

    /// Whether there is anything to see to.
    pub fn is_unlimited(&self) -> bool {
        self.sessions.is_none()
            && self.per_source.is_none()
            && self.new.is_none()
            && self.new_per_source.is_none()
            && self.rates.is_unlimited()
            && self.source_rates.is_unlimited()
    }

    /// Lets a client in, where the listener has `active` sessions with it. [`Limits::leave`] is for its end, whatever
    /// is said here.
    ///
    /// # Errors
    /// [`Full`], when it is to be turned away.
    pub fn enter(&self, client: &ClientAddr, active: u64, now: Instant) -> Result<(), Full> {
        let of_source = match client {
            ClientAddr::Ip(address) if self.counts_sources() => self.sources.enter(address.ip()),
            ClientAddr::Ip(_) | ClientAddr::Unix => 0,
        };
        if let (ClientAddr::Ip(address), Some(rate)) = (client, self.new_per_source)
            && !self.sources.arrivals.admits(source_of(address.ip()), rate, now)
        {
            return Err(Full::SourceRate);
        }
        if self.new.is_some_and(|rate| !self.sources.new.admits(rate, now)) {
            return Err(Full::ListenerRate);
        }
        if self.sessions.is_some_and(|most| active > most) {
            return Err(Full::Listener);
        }
        if self.per_source.is_some_and(|most| of_source > most) {
            return Err(Full::Source);
        }
        Ok(())
    }

    /// A client that [`Limits::enter`] was asked about is gone.
    pub fn leave(&self, client: &ClientAddr) {
        if let (ClientAddr::Ip(address), true) = (client, self.counts_sources()) {
            self.sources.leave(address.ip());
        }
    }

    /// What bounds the bytes of a session that was let in.
    pub(crate) fn pacing(&self, client: &ClientAddr) -> Option<Box<Pacing>> {
        let of_listener = Bound { rates: self.rates, meters: Arc::clone(&self.sources.meters) };
        let of_source = match client {
            ClientAddr::Ip(address) if !self.source_rates.is_unlimited() => {
                let meters = self.sources.meters_of(address.ip());
                meters.map(|meters| Bound { rates: self.source_rates, meters })
            }
            ClientAddr::Ip(_) | ClientAddr::Unix => None,
        };
        Pacing::new([of_listener].into_iter().chain(of_source))
    }

    fn counts_sources(&self) -> bool {
        self.per_source.is_some() || !self.source_rates.is_unlimited()
    }
}

/// How many sessions each source has: no more entries than there are sessions. IPv6 clients have whole networks to come
/// from: a /64 is one source.
#[derive(Debug, Default)]
pub struct Sources {
    /// Drawn at the start: clients cannot aim at each other's shard.
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, Source>>; SHARDS],
    new: Meter,
    arrivals: Arrivals,
    meters: Arc<Meters>,
    /// Through which the log is told of clients that are turned away.
    pub(crate) gate: Gate,
}

#[derive(Debug, Default)]
struct Source {
    sessions: u32,
    meters: Arc<Meters>,
}

impl Sources {
    /// How many the source has with this one.
    fn enter(&self, address: IpAddr) -> u32 {
        let source = source_of(address);
        let mut shard = self.shard(source);
        let known = shard.entry(source).or_default();
        known.sessions = known.sessions.saturating_add(1);
        known.sessions
    }

    /// What the bytes of a source that has sessions are measured by.
    fn meters_of(&self, address: IpAddr) -> Option<Arc<Meters>> {
        let source = source_of(address);
        self.shard(source).get(&source).map(|known| Arc::clone(&known.meters))
    }

    fn leave(&self, address: IpAddr) {
        let source = source_of(address);
        let mut shard = self.shard(source);
        match shard.get_mut(&source) {
            Some(known) if known.sessions > 1 => known.sessions -= 1,
            Some(_) | None => drop(shard.remove(&source)),
        }
    }

    /// How many sources have sessions.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether no source has a session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, source: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        lock(&self.shards[self.hasher.hash_one(source) as usize % SHARDS])
    }
}

/// What a panic elsewhere has left is sound: each entry stands for itself.
fn lock(shard: &Mutex<HashMap<IpAddr, Source>>) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(sessions: Option<u64>, per_source: Option<u32>) -> Limits {
        Limits { sessions, per_source, ..Limits::none(Arc::default()) }
    }

    fn client(address: &str) -> ClientAddr {
        ClientAddr::Ip(address.parse().unwrap())
    }

    #[test]
    fn a_source_has_its_share_and_gets_it_back() {
        let limits = limits(None, Some(2));
        let (ann, bob) = (client("192.0.2.1:1"), client("192.0.2.2:1"));
        assert_eq!([1, 2].map(|active| limits.enter(&ann, active, Instant::ZERO)), [Ok(()), Ok(())]);
        assert_eq!(limits.enter(&ann, 3, Instant::ZERO), Err(Full::Source));
        assert_eq!(limits.enter(&bob, 4, Instant::ZERO), Ok(()));
        limits.leave(&ann);
        assert_eq!(limits.enter(&ann, 4, Instant::ZERO), Err(Full::Source), "two are there still");
        (0..3).for_each(|_| limits.leave(&ann));
        limits.leave(&bob);
        assert!(limits.sources.is_empty(), "nobody is remembered without a session");
        assert_eq!(limits.enter(&ClientAddr::Unix, 1, Instant::ZERO), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_a_mapped_address_is_the_ipv4_one() {
        let limits = limits(None, Some(1));
        assert_eq!(limits.enter(&client("[2001:db8::1]:1"), 1, Instant::ZERO), Ok(()));
        assert_eq!(limits.enter(&client("[2001:db8::ffff:2]:1"), 1, Instant::ZERO), Err(Full::Source));
        assert_eq!(limits.enter(&client("[2001:db8:0:1::1]:1"), 1, Instant::ZERO), Ok(()));
        assert_eq!(limits.enter(&client("192.0.2.1:1"), 1, Instant::ZERO), Ok(()));
        assert_eq!(limits.enter(&client("[::ffff:192.0.2.1]:1"), 1, Instant::ZERO), Err(Full::Source));
    }
}
