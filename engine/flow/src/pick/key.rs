//! What of a session decides which member it gets, or which entry of a table is its own.

use std::fmt;
use std::net::IpAddr;

use super::maglev;
use crate::record::ClientAddr;
use crate::wire::Destination;
use crate::wire::peek::Peeked;

/// What a session is known by when a member is picked for it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Who connected.
    pub client: &'a ClientAddr,
    /// What the client asked for, where its protocol says so.
    pub destination: Option<&'a Destination>,
    /// What the client said first, where that was looked at and is known.
    pub peeked: Option<&'a Peeked>,
}

/// What of a session decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// The client's address without its port.
    Source,
    /// What the client asked for, host and port.
    Destination,
    /// The value of this cookie of an HTTP request.
    Cookie(FieldName),
    /// The value of this key in the query of an HTTP request.
    Query(FieldName),
}

impl HashKey {
    /// Whether it is found in what the client says first.
    pub const fn is_peeked(self) -> bool {
        match self {
            HashKey::Source | HashKey::Destination => false,
            HashKey::Cookie(_) | HashKey::Query(_) => true,
        }
    }
}

/// The longest name of a cookie or a key: well above what frameworks use.
pub const MAX_FIELD_NAME_BYTES: usize = 63;

/// The name of a cookie or of a key in a query: 1 to [`MAX_FIELD_NAME_BYTES`] bytes of visible ASCII without what ends
/// or parts such names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FieldName {
    bytes: [u8; MAX_FIELD_NAME_BYTES],
    length: u8,
}

/// Why a text is no [`FieldName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no name of a cookie or key: 1 to {MAX_FIELD_NAME_BYTES} visible ASCII characters but ;, =, &, ?, # and ,"
)]
pub struct BadFieldName;

impl FieldName {
    /// Takes over a name.
    ///
    /// # Errors
    /// [`BadFieldName`] when it is empty, too long or has other characters.
    pub fn new(name: &str) -> Result<FieldName, BadFieldName> {
        let is_sound = name.bytes().all(|byte| byte.is_ascii_graphic() && !b";=&?#,\"".contains(&byte));
        let mut bytes = [0; MAX_FIELD_NAME_BYTES];
        match bytes.get_mut(..name.len()) {
            Some(place) if is_sound && !name.is_empty() => place.copy_from_slice(name.as_bytes()),
            Some(_) | None => return Err(BadFieldName),
        }
        // It has fitted.
        Ok(FieldName { bytes, length: name.len() as u8 })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // It is ASCII.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Subject<'_> {
    /// The client's address; none for those on Unix sockets, who are all alike.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        match self.client {
            ClientAddr::Ip(address) => Some(address.ip().to_canonical()),
            ClientAddr::Unix => None,
        }
    }

    /// The value of a cookie or key, where the client has sent one.
    pub(crate) fn value(&self, key: HashKey) -> Option<&[u8]> {
        let value = match key {
            HashKey::Source | HashKey::Destination => None,
            HashKey::Cookie(name) => self.peeked?.cookie(name.as_str()),
            HashKey::Query(name) => self.peeked?.query(name.as_str()),
        };
        value.filter(|value| !value.is_empty())
    }

    /// The same on every machine.
    pub(super) fn hash(&self, key: HashKey) -> u64 {
        match key {
            HashKey::Source => match self.source() {
                Some(IpAddr::V4(ip)) => maglev::hash(&ip.octets()),
                Some(IpAddr::V6(ip)) => maglev::hash(&ip.octets()),
                None => maglev::hash(b"unix"),
            },
            // Control refuses such a group behind listeners whose clients name no destination.
            HashKey::Destination => self.destination.map_or(0, |destination| {
                maglev::hash(destination.to_string().to_ascii_lowercase().as_bytes())
            }),
            // Who has none yet is known by its address.
            HashKey::Cookie(_) | HashKey::Query(_) => match self.value(key) {
                Some(value) => maglev::hash(value),
                None => self.hash(HashKey::Source),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::peek::{Peek, Sight};

    #[test]
    fn names_are_visible_and_end_somewhere() {
        assert_eq!(FieldName::new("connect.sid").unwrap().as_str(), "connect.sid");
        assert_eq!(FieldName::new(&"x".repeat(MAX_FIELD_NAME_BYTES)).unwrap().as_str().len(), 63);
        for bad in ["", "a b", "a=b", "a;b", "a&b", "\u{e9}", &"x".repeat(MAX_FIELD_NAME_BYTES + 1)] {
            assert_eq!(FieldName::new(bad), Err(BadFieldName), "{bad:?}");
        }
    }

    #[test]
    fn clients_with_the_same_value_are_alike_and_those_without_go_by_their_address() {
        let client = |last| ClientAddr::Ip(([192, 0, 2, last], 1).into());
        let peeked = |cookie: &str| {
            let head = format!("GET / HTTP/1.1\r\nCookie: id={cookie}\r\n\r\n");
            let Sight::Seen(peeked) = Peek::default().look(head.as_bytes()) else { panic!("no head") };
            peeked
        };
        let key = HashKey::Cookie(FieldName::new("id").unwrap());
        let hash = |last, cookie: &str| {
            Subject { client: &client(last), destination: None, peeked: Some(&peeked(cookie)) }.hash(key)
        };
        assert_eq!(hash(1, "a"), hash(2, "a"));
        assert_ne!(hash(1, "a"), hash(1, "b"));
        assert_ne!(hash(1, ""), hash(2, ""));
        let unseen = Subject { client: &client(1), destination: None, peeked: None };
        assert_eq!(unseen.hash(key), hash(1, ""));
    }
}
