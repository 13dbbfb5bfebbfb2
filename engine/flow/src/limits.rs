//! How many sessions a listener has at once, in all and of each source.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::record::ClientAddr;
use crate::time::Instant;

/// Workers that look at once seldom meet in one of so many.
const SHARDS: usize = 16;

/// How often a listener tells the log that it turns clients away.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// What a listener bears.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at once, over all workers. Two workers that accept in the same moment may both take the last place.
    pub sessions: Option<u64>,
    /// Sessions at once of one source.
    pub per_source: Option<u32>,
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
}

impl Limits {
    /// Lets a client in, where the listener has `active` sessions with it. [`Limits::leave`] is for its end, whatever
    /// is said here.
    ///
    /// # Errors
    /// [`Full`], when it is to be turned away.
    pub fn enter(&self, client: &ClientAddr, active: u64) -> Result<(), Full> {
        let of_source = match client {
            ClientAddr::Ip(address) if self.per_source.is_some() => self.sources.enter(address.ip()),
            ClientAddr::Ip(_) | ClientAddr::Unix => 0,
        };
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
        if let (ClientAddr::Ip(address), Some(_)) = (client, self.per_source) {
            self.sources.leave(address.ip());
        }
    }

    /// Whether the log is to be told that clients are turned away: not more often than once a second.
    pub fn is_worth_a_warning(&self, now: Instant) -> bool {
        let due = now.as_micros() + WARNING_INTERVAL.as_micros() as u64;
        let told = self.sources.warn_again_at.load(Ordering::Relaxed);
        let replace = |at: u64| {
            self.sources.warn_again_at.compare_exchange(told, at, Ordering::Relaxed, Ordering::Relaxed)
        };
        now.as_micros() >= told && replace(due).is_ok()
    }
}

/// How many sessions each source has: no more entries than there are sessions. IPv6 clients have whole networks to come
/// from: a /64 is one source.
#[derive(Debug, Default)]
pub struct Sources {
    /// Drawn at the start: clients cannot aim at each other's shard.
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
    warn_again_at: AtomicU64,
}

impl Sources {
    /// How many the source has with this one.
    fn enter(&self, address: IpAddr) -> u32 {
        let source = source_of(address);
        let mut shard = self.shard(source);
        let count = shard.entry(source).or_insert(0);
        *count = count.saturating_add(1);
        *count
    }

    fn leave(&self, address: IpAddr) {
        let source = source_of(address);
        let mut shard = self.shard(source);
        match shard.get_mut(&source) {
            Some(count) if *count > 1 => *count -= 1,
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

    fn shard(&self, source: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        lock(&self.shards[self.hasher.hash_one(source) as usize % SHARDS])
    }
}

/// What a panic elsewhere has left is sound: each entry stands for itself.
fn lock(shard: &Mutex<HashMap<IpAddr, u32>>) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
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
        Limits { sessions, per_source, sources: Arc::default() }
    }

    fn client(address: &str) -> ClientAddr {
        ClientAddr::Ip(address.parse().unwrap())
    }

    #[test]
    fn a_source_has_its_share_and_gets_it_back() {
        let limits = limits(None, Some(2));
        let (ann, bob) = (client("192.0.2.1:1"), client("192.0.2.2:1"));
        assert_eq!([1, 2].map(|active| limits.enter(&ann, active)), [Ok(()), Ok(())]);
        assert_eq!(limits.enter(&ann, 3), Err(Full::Source));
        assert_eq!(limits.enter(&bob, 4), Ok(()));
        limits.leave(&ann);
        assert_eq!(limits.enter(&ann, 4), Err(Full::Source), "two are there still");
        (0..3).for_each(|_| limits.leave(&ann));
        limits.leave(&bob);
        assert!(limits.sources.is_empty(), "nobody is remembered without a session");
        assert_eq!(limits.enter(&ClientAddr::Unix, 1), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_a_mapped_address_is_the_ipv4_one() {
        let limits = limits(None, Some(1));
        assert_eq!(limits.enter(&client("[2001:db8::1]:1"), 1), Ok(()));
        assert_eq!(limits.enter(&client("[2001:db8::ffff:2]:1"), 1), Err(Full::Source));
        assert_eq!(limits.enter(&client("[2001:db8:0:1::1]:1"), 1), Ok(()));
        assert_eq!(limits.enter(&client("192.0.2.1:1"), 1), Ok(()));
        assert_eq!(limits.enter(&client("[::ffff:192.0.2.1]:1"), 1), Err(Full::Source));
    }

    #[test]
    fn the_log_is_told_once_a_second() {
        let limits = limits(Some(1), None);
        assert_eq!(limits.enter(&client("192.0.2.1:1"), 2), Err(Full::Listener));
        let at = |millis| Instant::ZERO + Duration::from_millis(millis);
        let told: Vec<bool> =
            [0, 1, 999, 1_000, 1_500].map(|millis| limits.is_worth_a_warning(at(millis))).into();
        assert_eq!(told, [true, false, false, true, false]);
    }
}
