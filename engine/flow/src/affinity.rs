//! Which member served whom before: a table that all workers share, for the groups that ask for one. Nobody else pays
//! for it; who does holds a lock for one look, never during a dial.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;

use crate::pick::{HashKey, Subject};
use crate::time::Instant;
use crate::wire::peek::answer;

/// The most entries that may be configured: about 100 bytes each.
pub const MAX_ENTRIES: u32 = 1_000_000;

/// Workers that look at once seldom meet in one of so many.
const SHARDS: usize = 16;

/// What a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What an entry is known by.
    pub key: HashKey,
    /// How long an entry lasts after it was used last.
    pub ttl: Duration,
    /// How many entries there may be; then those go that were not used for longest.
    pub size: NonZeroUsize,
    /// When an entry is made.
    pub binding: Binding,
}

/// When an entry is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// When a member is picked, so that connections which come together go together.
    AtPick,
    /// When a member has won.
    AtCommit,
}

/// The key of an entry in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u64);

/// See the module's documentation.
pub struct Affinity {
    settings: Settings,
    /// Drawn at the start: clients cannot aim at each other's entries.
    hasher: RandomState,
    shards: [Mutex<LruCache<u64, Entry>>; SHARDS],
}

struct Entry {
    member: Arc<str>,
    until: Instant,
}

impl Affinity {
    /// An empty table.
    pub fn new(settings: Settings) -> Affinity {
        let share = settings.size.get().div_ceil(SHARDS);
        let size = NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN);
        // Room is taken as it is needed.
        let shards = std::array::from_fn(|_| {
            let mut cache = LruCache::unbounded();
            cache.resize(size);
            Mutex::new(cache)
        });
        Affinity { settings, hasher: RandomState::new(), shards }
    }

    /// What it is for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where a session's entry is; `None` when the session has not said what the table wants to know.
    pub fn slot(&self, subject: Subject<'_>) -> Option<Slot> {
        let mut hasher = self.hasher.build_hasher();
        match self.settings.key {
            HashKey::Source => subject.source().hash(&mut hasher),
            HashKey::Destination => subject.destination?.hash(&mut hasher),
            key @ (HashKey::Cookie(_) | HashKey::Query(_)) => subject.value(key)?.hash(&mut hasher),
        }
        Some(Slot(hasher.finish()))
    }

    /// Where the entry is of whoever comes back with what a server's first answer tells; `None` when it tells nothing
    /// that the table goes by.
    pub fn slot_of_answer(&self, answer: &[u8]) -> Option<Slot> {
        let value = match &self.settings.key {
            HashKey::Source | HashKey::Destination => None,
            HashKey::Cookie(name) => answer::set_cookie(answer, name.as_str()),
            HashKey::Query(name) => answer::opened_session(answer, name.as_str()),
        };
        // As the value itself is hashed when it comes back.
        value.filter(|value| !value.is_empty()).map(|value| Slot(self.hasher.hash_one(value)))
    }

    /// The name of the member in a slot; using it makes it last.
    pub fn find(&self, slot: Slot, now: Instant) -> Option<Arc<str>> {
        let mut shard = self.shard(slot);
        let entry = shard.get_mut(&slot.0)?;
        if now >= entry.until {
            shard.pop(&slot.0);
            return None;
        }
        entry.until = now + self.settings.ttl;
        Some(Arc::clone(&entry.member))
    }

    /// Puts a member into a slot, unless another worker has just put one there, which is returned then: whoever comes
    /// first decides. `instead_of` is what was found there and is of no use.
    pub fn bind(
        &self,
        slot: Slot,
        member: &Arc<str>,
        instead_of: Option<&Arc<str>>,
        now: Instant,
    ) -> Option<Arc<str>> {
        let mut shard = self.shard(slot);
        if let Some(entry) = shard.get(&slot.0)
            && now < entry.until
            && instead_of != Some(&entry.member)
        {
            return Some(Arc::clone(&entry.member));
        }
        shard.put(slot.0, self.entry(member, now));
        None
    }

    /// A member has served.
    pub fn set(&self, slot: Slot, member: &Arc<str>, now: Instant) {
        let entry = self.entry(member, now);
        self.shard(slot).put(slot.0, entry);
    }

    /// How many entries there are, those included whose time is up and that nobody has asked for since.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entry(&self, member: &Arc<str>, now: Instant) -> Entry {
        Entry { member: Arc::clone(member), until: now + self.settings.ttl }
    }

    fn shard(&self, slot: Slot) -> MutexGuard<'_, LruCache<u64, Entry>> {
        lock(&self.shards[slot.0 as usize % SHARDS])
    }
}

/// What a thread that panicked left is whole: every change is one call.
fn lock(shard: &Mutex<LruCache<u64, Entry>>) -> MutexGuard<'_, LruCache<u64, Entry>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Affinity").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ClientAddr;

    fn table(size: usize) -> Affinity {
        let size = NonZeroUsize::new(size).unwrap();
        let (key, binding) = (HashKey::Source, Binding::AtPick);
        Affinity::new(Settings { key, ttl: Duration::from_secs(10), size, binding })
    }

    fn slot_of(table: &Affinity, number: u32) -> Slot {
        let client = ClientAddr::Ip((std::net::Ipv4Addr::from_bits(number), 5).into());
        table.slot(Subject { client: &client, destination: None, peeked: None }).unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn an_entry_lasts_as_long_as_it_is_used() {
        let table = table(100);
        let (slot, a) = (slot_of(&table, 1), Arc::from("a"));
        assert_eq!(table.bind(slot, &a, None, at(0)), None);
        for now in [9, 18, 27] {
            assert_eq!(table.find(slot, at(now)), Some(Arc::clone(&a)));
        }
        assert_eq!(table.find(slot, at(37)), None);
        assert!(table.is_empty());
    }

    #[test]
    fn whoever_comes_first_decides_until_it_is_of_no_use() {
        let table = table(100);
        let (slot, a, b) = (slot_of(&table, 1), Arc::from("a"), Arc::from("b"));
        assert_eq!(table.bind(slot, &a, None, at(0)), None);
        assert_eq!(table.bind(slot, &b, None, at(1)), Some(Arc::clone(&a)));
        assert_eq!(table.bind(slot, &b, Some(&a), at(1)), None);
        assert_eq!(table.find(slot, at(1)), Some(b));
    }

    #[test]
    fn size_is_bounded_and_the_port_does_not_count() {
        let table = table(160);
        let a = Arc::from("a");
        for number in 0..10_000 {
            table.set(slot_of(&table, number), &a, at(0));
        }
        assert!(table.len() <= 160);
        let port = |port| ClientAddr::Ip(([10, 0, 0, 1], port).into());
        let slot = |client: &ClientAddr| table.slot(Subject { client, destination: None, peeked: None });
        assert_eq!(slot(&port(1)), slot(&port(2)));
        let by_destination = Affinity::new(Settings { key: HashKey::Destination, ..*table.settings() });
        assert_eq!(by_destination.slot(Subject { client: &port(1), destination: None, peeked: None }), None);
    }
}
