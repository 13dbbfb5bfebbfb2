//! The salts that were seen, so that no stream is taken twice.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::cipher::{Edition, Salt};

/// How long salts of SIP022 are kept, in seconds (section 3.1.4): what is older is refused for its time.
pub(super) const KEPT_S: u64 = 60;

/// Workers seldom meet in one of so many parts.
const SHARDS: usize = 16;

/// How many salts a part keeps. Only streams that were sealed with the right key get here. Of SIP004, which tells no
/// time, the oldest makes room; of SIP022 a part that is full refuses: at 17,000 streams a second.
const MAX_SALTS: usize = 65_536;

/// Salts that were seen. Shared by the workers of a listener: whoever repeats a stream reaches any of them. A lock is
/// held for the time of one look-up, once a session.
pub(super) struct Salts {
    edition: Edition,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    known: HashSet<Salt>,
    /// By when they came, in seconds of the wall clock.
    order: VecDeque<(u64, Salt)>,
}

impl Salts {
    pub(super) fn new(edition: Edition) -> Salts {
        Salts { edition, shards: Default::default() }
    }

    /// Takes note of a salt; says whether it is new.
    pub(super) fn admit(&self, salt: &Salt, unix_s: u64) -> bool {
        let shard = &self.shards[usize::from(salt.bytes()[0]) % SHARDS];
        // A set that another thread left in a panic is still a set.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if self.edition == Edition::Aead2022 {
            while shard.order.front().is_some_and(|(came_s, _)| came_s + KEPT_S < unix_s) {
                shard.forget_oldest();
            }
        }
        if shard.known.contains(salt) {
            return false;
        }
        match self.edition {
            Edition::Aead if shard.order.len() == MAX_SALTS => shard.forget_oldest(),
            Edition::Aead2022 if shard.order.len() == MAX_SALTS => return false,
            Edition::Aead | Edition::Aead2022 => {}
        }
        shard.known.insert(*salt);
        shard.order.push_back((unix_s, *salt));
        true
    }
}

impl Shard {
    fn forget_oldest(&mut self) {
        if let Some((_, salt)) = self.order.pop_front() {
            self.known.remove(&salt);
        }
    }
}

impl fmt::Debug for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Salts").field("edition", &self.edition).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::shadowsocks::Method;

    fn salt(number: u32) -> Salt {
        let mut bytes = [0; 32];
        bytes[1..5].copy_from_slice(&number.to_be_bytes());
        Salt::new(Method::Blake3Aes256Gcm, &bytes)
    }

    #[test]
    fn a_salt_passes_once_within_its_time() {
        let salts = Salts::new(Edition::Aead2022);
        assert!(salts.admit(&salt(1), 100));
        assert!(!salts.admit(&salt(1), 100));
        assert!(salts.admit(&salt(2), 130));
        assert!(!salts.admit(&salt(1), 100 + KEPT_S));
        assert!(!salts.admit(&salt(1), 40), "a clock that is set back forgets nothing");
        assert!(salts.admit(&salt(1), 101 + KEPT_S));
        assert!(!salts.admit(&salt(2), 101 + KEPT_S));
    }

    #[test]
    fn memory_is_bounded_and_the_edition_says_who_yields() {
        let old = Salts::new(Edition::Aead);
        let new = Salts::new(Edition::Aead2022);
        for number in 0..MAX_SALTS as u32 {
            assert!(old.admit(&salt(number), 1) && new.admit(&salt(number), 1));
        }
        let another = salt(u32::MAX);
        assert!(!new.admit(&another, 1), "full, and nothing may be forgotten yet");
        assert!(old.admit(&another, 1));
        assert!(!old.admit(&salt(1), 1));
        assert!(old.admit(&salt(0), 1), "the oldest was forgotten");
    }
}
