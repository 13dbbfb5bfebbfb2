//! Who may use a listener: names and passwords, as they are or as hashes.
//!
//! A password that is written as it is is compared at once, in constant time. One that is known by its hash takes tens
//! of milliseconds to verify, which no worker has: it is asked for with a [`Question`] and answered by a
//! [`Verifier`](crate::verify::Verifier). Once a password has proven right its user passes at once from then on; what was
//! wrong stays wrong for [`REFUSED_FOR`]. Both are remembered by a keyed hash of the password, never by itself, and as
//! long as these very users are.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use lru::LruCache;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::record::ClientAddr;
use crate::time::Instant;
use crate::verify::{Fingerprint, Login, Question, Verdict};

/// The longest user name or password on the wire (RFC 1929, section 2: one length octet).
pub const MAX_CREDENTIAL_BYTES: usize = 255;

/// How long a wrong password is refused without being verified again: a client that keeps trying the same costs little,
/// and a mistake that is put right elsewhere is not remembered for long.
pub const REFUSED_FOR: Duration = Duration::from_secs(10);

/// How many wrong passwords are remembered, of whoever tried them.
const MAX_REFUSED: usize = 1024;

/// Users by name. Its `Debug` shows how many there are, never who or with what password.
pub struct Users {
    users: HashMap<Box<[u8]>, Secret>,
    /// The hashes that users are known by. Who is no user is verified against one of them, so that it takes as long.
    hashes: Vec<Arc<str>>,
    /// Makes fingerprints of passwords worth nothing elsewhere.
    key: [u8; 32],
    /// Logins that were wrong, and until when they are.
    refused: Mutex<LruCache<Fingerprint, Instant>>,
}

enum Secret {
    Plain(Zeroizing<Vec<u8>>),
    Hashed {
        hash: Arc<str>,
        /// Of the password that has proven right.
        proven: OnceLock<Fingerprint>,
    },
}

/// What is kept of a question until it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    name: Box<[u8]>,
    fingerprint: Fingerprint,
    kind: AskedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AskedKind {
    /// The answer counts.
    OfUser,
    /// It is only to take as long.
    Decoy,
}

impl Default for Users {
    fn default() -> Users {
        // The standard library's hashers are keyed by the system's random numbers.
        let mut seed = blake3::Hasher::new();
        for _ in 0..4 {
            seed.update(&RandomState::new().build_hasher().finish().to_ne_bytes());
        }
        Users {
            users: HashMap::new(),
            hashes: Vec::new(),
            key: *seed.finalize().as_bytes(),
            refused: Mutex::new(LruCache::unbounded()),
        }
    }
}

impl Users {
    /// Adds or replaces a user.
    pub fn insert(&mut self, name: &[u8], password: &[u8]) {
        self.users.insert(name.into(), Secret::Plain(Zeroizing::new(password.to_vec())));
    }

    /// Adds or replaces a user who is known by the hash of a password, in whatever form the
    /// [`Verifier`](crate::verify::Verifier) understands.
    pub fn insert_hashed(&mut self, name: &[u8], hash: &str) {
        let hash: Arc<str> = hash.into();
        self.hashes.push(Arc::clone(&hash));
        self.users.insert(name.into(), Secret::Hashed { hash, proven: OnceLock::new() });
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Their names; configured ones are text.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// Whether both are the same users with the same passwords, written the same way.
    pub fn is_same(&self, other: &Users) -> bool {
        self.len() == other.len()
            && self.users.iter().all(|(name, secret)| {
                other.users.get(name).is_some_and(|other| match (secret, other) {
                    (Secret::Plain(one), Secret::Plain(other)) => bool::from(one.ct_eq(other)),
                    (Secret::Hashed { hash, .. }, Secret::Hashed { hash: other, .. }) => hash == other,
                    (Secret::Plain(_), Secret::Hashed { .. }) | (Secret::Hashed { .. }, Secret::Plain(_)) => {
                        false
                    }
                })
            })
    }

    /// Whether `name` exists with this `password`, where that is known at once.
    ///
    /// Takes as long for an unknown name as for a wrong password of equal length; and where any user is known by a hash,
    /// whatever is not right has to be asked for, whoever it is.
    ///
    /// # Errors
    /// The login, where it has to be asked for: see [`Users::ask`].
    pub fn verify(&self, name: &[u8], password: &[u8]) -> Result<bool, Login> {
        if password.len() > MAX_CREDENTIAL_BYTES || name.len() > MAX_CREDENTIAL_BYTES {
            return Ok(false);
        }
        let secret = self.users.get(name);
        let is_right = match secret {
            Some(Secret::Plain(expected)) => bool::from(expected.as_slice().ct_eq(password)),
            Some(Secret::Hashed { .. }) => false,
            None => {
                let _ = bool::from(password.ct_eq(password));
                false
            }
        };
        if is_right || self.hashes.is_empty() {
            return Ok(is_right);
        }
        let fingerprint = self.fingerprint(name, password);
        if let Some(Secret::Hashed { proven, .. }) = secret
            && proven.get().is_some_and(|proven| proven.is(&fingerprint))
        {
            return Ok(true);
        }
        Err(Login { name: name.into(), password: Zeroizing::new(password.into()), fingerprint })
    }

    /// What is to be asked of the verifier about a login, and what to keep until it has answered.
    ///
    /// # Errors
    /// [`Verdict::Wrong`], where the same was wrong a short while ago.
    pub fn ask(&self, login: Login, client: ClientAddr, now: Instant) -> Result<(Question, Asked), Verdict> {
        let Login { name, password, fingerprint } = login;
        if self.lock().get(&fingerprint).is_some_and(|until| now < *until) {
            return Err(Verdict::Wrong);
        }
        let (hash, kind) = match self.users.get(&name) {
            Some(Secret::Hashed { hash, .. }) => (hash, AskedKind::OfUser),
            Some(Secret::Plain(_)) | None => (self.decoy(&name).ok_or(Verdict::Wrong)?, AskedKind::Decoy),
        };
        let question = Question { password, hash: Arc::clone(hash), fingerprint, client };
        Ok((question, Asked { name, fingerprint, kind }))
    }

    /// The verifier has answered: what that means for the client, which is remembered.
    pub fn learn(&self, asked: &Asked, verdict: Verdict, now: Instant) -> Verdict {
        match (verdict, asked.kind) {
            (Verdict::Overloaded, AskedKind::OfUser | AskedKind::Decoy) => Verdict::Overloaded,
            (Verdict::Right, AskedKind::OfUser) => {
                if let Some(Secret::Hashed { proven, .. }) = self.users.get(&asked.name) {
                    // Another session may have proven the same in the meantime.
                    let _ = proven.set(asked.fingerprint);
                }
                Verdict::Right
            }
            (Verdict::Right, AskedKind::Decoy) | (Verdict::Wrong, AskedKind::OfUser | AskedKind::Decoy) => {
                let mut refused = self.lock();
                refused.put(asked.fingerprint, now + REFUSED_FOR);
                if refused.len() > MAX_REFUSED {
                    refused.pop_lru();
                }
                Verdict::Wrong
            }
        }
    }

    /// The hash that a name which is no user's is verified against: always the same, as a user's own would be.
    fn decoy(&self, name: &[u8]) -> Option<&Arc<str>> {
        let place = self.users.hasher().hash_one(name) as usize;
        self.hashes.get(place.checked_rem(self.hashes.len())?)
    }

    fn fingerprint(&self, name: &[u8], password: &[u8]) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(password);
        Fingerprint(*hasher.finalize().as_bytes())
    }

    /// What a panic elsewhere has left is sound: each entry stands for itself.
    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<Fingerprint, Instant>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({} of them)", self.users.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ann` is known by a hash, `bob` by his password.
    fn users() -> Users {
        let mut users = Users::default();
        users.insert_hashed(b"ann", "#secret");
        users.insert(b"bob", b"other");
        users
    }

    fn ask(users: &Users, name: &str, password: &str, now: Instant) -> Result<(Question, Asked), Verdict> {
        let login = users.verify(name.as_bytes(), password.as_bytes()).unwrap_err();
        users.ask(login, ClientAddr::Unix, now)
    }

    #[test]
    fn only_the_right_password_of_a_known_user_passes() {
        let mut users = Users::default();
        users.insert(b"ann", b"secret");
        assert_eq!(users.verify(b"ann", b"secret"), Ok(true));
        for (name, password) in [(&b"ann"[..], &b"secreT"[..]), (b"ann", b""), (b"bob", b"secret")] {
            assert_eq!(users.verify(name, password), Ok(false));
        }
        assert_eq!(format!("{users:?}"), "Users(1 of them)");
    }

    #[test]
    fn a_password_that_has_proven_right_is_not_asked_for_again() {
        let users = users();
        let (question, asked) = ask(&users, "ann", "secret", Instant::ZERO).unwrap();
        assert_eq!((&*question.hash, question.password.as_slice()), ("#secret", &b"secret"[..]));
        assert_eq!(users.learn(&asked, Verdict::Right, Instant::ZERO), Verdict::Right);
        assert_eq!(users.verify(b"ann", b"secret"), Ok(true));
        assert!(users.verify(b"ann", b"Secret").is_err(), "another one is asked for");
        assert!(users.verify(b"bob", b"secret").is_err(), "and that of another user");
    }

    #[test]
    fn whoever_is_not_right_is_asked_for_alike_and_only_the_user_can_be_right() {
        let users = users();
        assert_eq!(users.verify(b"bob", b"other"), Ok(true));
        for (name, password) in [("ann", "wrong"), ("bob", "wrong"), ("eve", "secret")] {
            let (question, _) = ask(&users, name, password, Instant::ZERO).unwrap();
            assert_eq!(&*question.hash, "#secret", "{name}");
        }
        let (_, asked) = ask(&users, "eve", "secret", Instant::ZERO).unwrap();
        assert_eq!(users.learn(&asked, Verdict::Right, Instant::ZERO), Verdict::Wrong, "ann's password");
        assert!(users.verify(b"eve", b"secret").is_err());
    }

    #[test]
    fn a_wrong_password_stays_wrong_for_a_short_while() {
        let users = users();
        let (_, asked) = ask(&users, "ann", "wrong", Instant::ZERO).unwrap();
        assert_eq!(users.learn(&asked, Verdict::Overloaded, Instant::ZERO), Verdict::Overloaded);
        assert!(ask(&users, "ann", "wrong", Instant::ZERO).is_ok(), "nothing was learned of it");
        assert_eq!(users.learn(&asked, Verdict::Wrong, Instant::ZERO), Verdict::Wrong);
        let last = Instant::from_micros(REFUSED_FOR.as_micros() as u64 - 1);
        assert_eq!(ask(&users, "ann", "wrong", last).err(), Some(Verdict::Wrong));
        assert!(ask(&users, "ann", "wrong", Instant::ZERO + REFUSED_FOR).is_ok());
        assert!(ask(&users, "ann", "secret", last).is_ok(), "the right one is none the worse for it");
    }

    #[test]
    fn what_is_remembered_of_wrong_passwords_is_bounded() {
        let users = users();
        for number in 0..2 * MAX_REFUSED {
            let (_, asked) = ask(&users, "eve", &number.to_string(), Instant::ZERO).unwrap();
            users.learn(&asked, Verdict::Wrong, Instant::ZERO);
        }
        assert_eq!(users.lock().len(), MAX_REFUSED);
    }

    #[test]
    fn the_same_users_are_known_as_the_same() {
        let same = users();
        assert!(users().is_same(&same));
        let mut other = users();
        other.insert_hashed(b"ann", "#other");
        assert!(!other.is_same(&same) && !same.is_same(&other));
        other = users();
        other.insert(b"eve", b"x");
        assert!(!other.is_same(&same) && !same.is_same(&other));
    }

    #[test]
    fn passwords_beyond_every_bound_are_wrong_at_once() {
        let users = users();
        assert_eq!(users.verify(b"ann", &[b'x'; MAX_CREDENTIAL_BYTES + 1]), Ok(false));
        assert_eq!(users.verify(&[b'x'; MAX_CREDENTIAL_BYTES + 1], b"x"), Ok(false));
    }
}
