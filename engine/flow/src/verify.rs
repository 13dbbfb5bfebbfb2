//! What a driver asks of whoever verifies passwords against hashes (threads of control's): a port, so that neither
//! knows the other.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::record::ClientAddr;
use crate::users::Users;

/// A keyed hash of a user's name and password: tells whether they are the same, and nothing else of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub(crate) [u8; 32]);

impl Fingerprint {
    /// Whether both are the same, in constant time.
    pub fn is(&self, other: &Fingerprint) -> bool {
        bool::from(self.0.ct_eq(&other.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(..)")
    }
}

/// A user's name and a password that may be right. Its `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub(crate) name: Box<[u8]>,
    pub(crate) password: Zeroizing<Vec<u8>>,
    pub(crate) fingerprint: Fingerprint,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

/// Whether a password is the one that a hash was made of. Its `Debug` shows who asks, and nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Question {
    /// At most [`MAX_CREDENTIAL_BYTES`](crate::users::MAX_CREDENTIAL_BYTES) long.
    pub password: Zeroizing<Vec<u8>>,
    /// As it was configured.
    pub hash: Arc<str>,
    /// Questions with the same have the same answer.
    pub fingerprint: Fingerprint,
    /// Who wants to know.
    pub client: ClientAddr,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Question(of {})", self.client)
    }
}

/// What is known of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the user's password.
    Right,
    /// It is not.
    Wrong,
    /// Nobody has looked: too many others wait.
    Overloaded,
}

/// Verifies passwords off the workers. Implementations answer exactly once, from any thread, and never block the caller.
pub trait Verifier: Send + Sync {
    /// Compares the password of a question with its hash and hands the verdict to `answer`.
    fn verify(&self, question: Question, answer: Box<dyn FnOnce(Verdict) + Send>);
}

/// What a handshake knows of the login that it has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet.
    #[default]
    Unknown,
    /// What came of asking.
    Judged(Verdict),
}

impl Standing {
    /// Whether the login passes.
    ///
    /// # Errors
    /// The login, where it has to be asked for.
    pub(crate) fn judge(self, users: &Users, name: &[u8], password: &[u8]) -> Result<Verdict, Login> {
        match self {
            Standing::Judged(verdict) => Ok(verdict),
            Standing::Unknown => users
                .verify(name, password)
                .map(|passes| if passes { Verdict::Right } else { Verdict::Wrong }),
        }
    }
}
