//! Who may use a listener: names and passwords, compared in constant time and wiped when dropped.

use std::collections::HashMap;
use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The longest user name or password on the wire (RFC 1929, section 2: one length octet).
pub const MAX_CREDENTIAL_BYTES: usize = 255;

/// Users by name. Its `Debug` shows how many there are, never who or with what password.
#[derive(Default)]
pub struct Users(HashMap<Box<[u8]>, Zeroizing<Vec<u8>>>);

impl Users {
    /// Adds or replaces a user.
    pub fn insert(&mut self, name: &[u8], password: &[u8]) {
        self.0.insert(name.into(), Zeroizing::new(password.to_vec()));
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `name` exists with this `password`. Takes as long for an unknown name as for a wrong password of
    /// equal length.
    pub fn verify(&self, name: &[u8], password: &[u8]) -> bool {
        match self.0.get(name) {
            Some(expected) => bool::from(expected.as_slice().ct_eq(password)),
            None => {
                let _ = bool::from(password.ct_eq(password));
                false
            }
        }
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({} of them)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_of_a_known_user_passes() {
        let mut users = Users::default();
        users.insert(b"ann", b"secret");
        assert!(users.verify(b"ann", b"secret"));
        assert!(!users.verify(b"ann", b"secreT"));
        assert!(!users.verify(b"ann", b""));
        assert!(!users.verify(b"bob", b"secret"));
        assert_eq!(format!("{users:?}"), "Users(1 of them)");
    }
}
