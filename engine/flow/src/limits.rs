//! What a listener bears: sessions at once, new ones, and bytes, in all and of each source.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::Gate;
use crate::pace::{Arrivals, Bound, Meter, Meters, Pacing, Rate, Rates};
use crate::record::ClientAddr;
use crate::time::Instant;

/// Workers that look at once seldom meet in one of so many.
const SHARDS: usize = 16;

/// How many sources without a session a shard remembers for what their bytes owe, at most. Where half of them still owe
/// something when there are so many, all are forgotten.
const MAX_DEBTORS: usize = 4096;

/// How many there are before it is looked who owes nothing any longer.
const FEW_DEBTORS: usize = 64;

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
            ClientAddr::Ip(address) if self.counts_sources() => self.sources.enter(address.ip(), now),
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

/// How many sessions each source has: no more entries than there are sessions, and a bounded number of sources that have
/// left with their bytes ahead of their rate. IPv6 clients have whole networks to come from: a /64 is one source.
#[derive(Debug, Default)]
pub struct Sources {
    /// Drawn at the start: clients cannot aim at each other's shard.
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    new: Meter,
    arrivals: Arrivals,
    meters: Arc<Meters>,
    /// Through which the log is told of clients that are turned away.
    pub(crate) gate: Gate,
}

#[derive(Debug, Default)]
struct Shard {
    known: HashMap<IpAddr, Source>,
    /// How many of them have no session.
    debtors: usize,
    /// How many of these there were when it was last looked who owes nothing any longer.
    debtors_left: usize,
}

#[derive(Debug, Default)]
struct Source {
    /// None where only what its bytes owe is remembered.
    sessions: u32,
    meters: Arc<Meters>,
}

impl Sources {
    /// How many the source has with this one.
    fn enter(&self, address: IpAddr, now: Instant) -> u32 {
        let source = source_of(address);
        let mut shard = self.shard(source);
        shard.forget_debtors(now);
        let Shard { known, debtors, .. } = &mut *shard;
        let known = match known.entry(source) {
            Entry::Occupied(known) => {
                *debtors -= usize::from(known.get().sessions == 0);
                known.into_mut()
            }
            Entry::Vacant(place) => place.insert(Source::default()),
        };
        known.sessions = known.sessions.saturating_add(1);
        known.sessions
    }

    /// What the bytes of a source that has sessions are measured by.
    fn meters_of(&self, address: IpAddr) -> Option<Arc<Meters>> {
        let source = source_of(address);
        self.shard(source).known.get(&source).map(|known| Arc::clone(&known.meters))
    }

    fn leave(&self, address: IpAddr) {
        let source = source_of(address);
        let mut shard = self.shard(source);
        let Some(known) = shard.known.get_mut(&source) else { return };
        known.sessions = known.sessions.saturating_sub(1);
        match (known.sessions, known.meters.are_untouched()) {
            (0, true) => drop(shard.known.remove(&source)),
            // Who leaves and comes again at once has no more bytes a second than who stays.
            (0, false) => shard.debtors += 1,
            (1.., _) => {}
        }
    }

    /// How many sources have sessions.
    pub fn len(&self) -> usize {
        let with_sessions = |shard: &Shard| shard.known.len() - shard.debtors;
        self.shards.iter().map(|shard| with_sessions(&lock(shard))).sum()
    }

    /// Whether no source has a session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, source: IpAddr) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.hasher.hash_one(source) as usize % SHARDS])
    }
}

impl Shard {
    /// Forgets those without a session that owe nothing, when there are twice as many of them as were left the last time.
    fn forget_debtors(&mut self, now: Instant) {
        if self.debtors < FEW_DEBTORS.max(2 * self.debtors_left).min(MAX_DEBTORS) {
            return;
        }
        self.known.retain(|_, source| source.sessions > 0 || source.meters.owe(now));
        self.debtors = self.known.values().filter(|source| source.sessions == 0).count();
        if self.debtors > MAX_DEBTORS / 2 {
            self.known.retain(|_, source| source.sessions > 0);
            self.debtors = 0;
        }
        self.debtors_left = self.debtors;
    }
}

/// What a panic elsewhere has left is sound: each entry stands for itself.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
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
    use std::time::Duration;

    use super::*;
    use crate::pump::Direction;

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
    fn who_leaves_and_comes_again_owes_what_it_owed() {
        let rates = Rates { up: Rate::new(1_000), down: None };
        let limits = Limits { source_rates: rates, ..limits(None, None) };
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let waits = |who: &ClientAddr, bytes, seconds| {
            assert_eq!(limits.enter(who, 1, at(seconds)), Ok(()));
            let waits = limits.pacing(who).unwrap().charge(Direction::Up, bytes, at(seconds));
            limits.leave(who);
            waits
        };
        let ann = client("192.0.2.1:1");
        assert!(waits(&ann, 10_000, 0));
        assert!(waits(&ann, 0, 9), "ten seconds' worth");
        assert!(!waits(&client("192.0.2.2:1"), 0, 9), "is nobody else's");
        assert!(!waits(&ann, 0, 10));
        assert!(limits.sources.is_empty(), "nobody has a session");
    }

    #[test]
    fn who_owes_nothing_is_forgotten_and_who_owes_is_remembered_within_bounds() {
        let rates = Rates { up: Rate::new(1_000), down: None };
        let limits = Limits { source_rates: rates, ..limits(None, None) };
        let known = || limits.sources.shards.iter().map(|shard| lock(shard).known.len()).sum::<usize>();
        let come = |number: u32, bytes, now| {
            let ann = ClientAddr::Ip((std::net::Ipv4Addr::from(number), 1).into());
            assert_eq!(limits.enter(&ann, 1, now), Ok(()));
            limits.pacing(&ann).unwrap().charge(Direction::Up, bytes, now);
            limits.leave(&ann);
        };
        for number in 0..200_000 {
            come(number, 1_000_000, Instant::ZERO);
        }
        assert!(known() <= SHARDS * MAX_DEBTORS, "{}", known());
        // By then all is paid for.
        for number in 300_000..400_000 {
            come(number, 1, Instant::ZERO + Duration::from_secs(2_000 + u64::from(number)));
        }
        assert!(known() <= SHARDS * MAX_DEBTORS / 2, "{}", known());
        for number in 500_000..600_000 {
            come(number, 1, Instant::ZERO + Duration::from_secs(u64::from(number)));
        }
        assert!(known() <= 2 * SHARDS * FEW_DEBTORS, "{}", known());
        assert!(limits.sources.is_empty());
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
