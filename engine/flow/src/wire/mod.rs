//! The wire protocols, as state machines over bytes: fed slices in any split, they never read past them, never
//! panic on what a peer sends, and hold no more than their named bound.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The longest domain name that is passed on (RFC 1035, section 2.3.4 allows 255 octets on the wire).
pub const MAX_HOST_BYTES: usize = 255;

/// A host name as a client wrote it: 1 to 255 bytes of printable ASCII without spaces, and not an IP literal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostName(Arc<str>);

/// Why some bytes are no [`HostName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a host name: empty, longer than 255 bytes, or with characters that no name has")]
pub struct BadHostName;

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A literal address.
    Address(SocketAddr),
    /// A name, to be resolved on our side.
    Name(HostName, u16),
}

impl Destination {
    /// Reads a host as clients write it: a name, an IPv4 literal, or an IPv6 literal with or without brackets.
    ///
    /// # Errors
    /// [`BadHostName`] when it is none of these.
    pub fn from_host(host: &[u8], port: u16) -> Result<Destination, BadHostName> {
        if host.is_empty() || host.len() > MAX_HOST_BYTES || !host.iter().all(u8::is_ascii_graphic) {
            return Err(BadHostName);
        }
        let text = std::str::from_utf8(host).map_err(|_| BadHostName)?;
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(address) => Ok(Destination::Address(SocketAddr::new(address, port))),
            Err(_) if text.contains(['[', ']', '/', '@', ':', '?', '#', '\\']) => Err(BadHostName),
            Err(_) => Ok(Destination::Name(HostName(text.into()), port)),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Destination::Address(address) => address.port(),
            Destination::Name(_, port) => *port,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Address(address) => address.fmt(f),
            Destination::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_literals_or_refused() {
        let address = |text: &str| Destination::Address(text.parse().unwrap());
        assert_eq!(Destination::from_host(b"127.0.0.1", 80), Ok(address("127.0.0.1:80")));
        assert_eq!(Destination::from_host(b"[::1]", 80), Ok(address("[::1]:80")));
        assert_eq!(Destination::from_host(b"::1", 80), Ok(address("[::1]:80")));
        assert_eq!(Destination::from_host(b"a.example", 443).unwrap().to_string(), "a.example:443");
        for bad in [&b""[..], b"a b", b"a\0b", b"[x]", b"a/b", b"a@b", b"a:80", &[b'a'; 256]] {
            assert_eq!(Destination::from_host(bad, 1), Err(BadHostName), "{bad:?}");
        }
    }
}
