//! The PROXY protocol, versions 1 and 2 (HAProxy's `doc/proxy-protocol.txt`): a header ahead of everything else on a
//! connection that says whose connection it stands for. Pure: read from bytes that are offered anew, from their
//! beginning, whenever more has arrived; written to a buffer.

mod v1;
mod v2;

use std::net::{IpAddr, SocketAddr};

use super::reader;

pub use v1::MAX_V1_BYTES;
pub use v2::{MAX_UNIQUE_ID_BYTES, MAX_V2_BYTES};

/// How a header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary, with more than addresses.
    V2,
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Whose connection it is; `None` where the sender speaks for itself or does not say it in TCP addresses: then the
    /// connection's own count.
    pub ends: Option<Ends>,
    /// What the sender calls the connection, 1 to [`MAX_UNIQUE_ID_BYTES`] bytes; version 2 alone.
    pub unique_id: Option<Box<[u8]>>,
}

/// The ends of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client's.
    pub source: SocketAddr,
    /// Where it connected.
    pub destination: SocketAddr,
}

/// Why some bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// They begin otherwise.
    #[error("no PROXY header where one is required")]
    Missing,
    /// Longer than [`MAX_V1_BYTES`] or [`MAX_V2_BYTES`].
    #[error("a PROXY header that is too long")]
    TooLong,
    /// A version, command, family or transport that does not exist.
    #[error("a PROXY header of a kind that does not exist")]
    Unknown,
    /// Addresses that are none, or not of the family that is said.
    #[error("a PROXY header with bad addresses")]
    BadAddress,
    /// A field (TLV) that is longer than the header, or that is not as its type must be.
    #[error("a PROXY header with a broken field")]
    BadField,
    /// The checksum does not fit.
    #[error("a PROXY header with a wrong checksum")]
    BadChecksum,
}

/// Reads a header at the beginning of `input`, and how long it is. `None` while it is incomplete.
///
/// # Errors
/// [`HeaderError`] as soon as it is known that no header stands there.
pub fn read(input: &[u8]) -> Result<Option<(usize, Header)>, HeaderError> {
    match input.first() {
        None => Ok(None),
        Some(b'P') => v1::read(input),
        Some(_) => v2::read(input),
    }
}

/// Writes a header. Where the ends are not known it says so. Only version 2 bears a `unique_id`, of at most
/// [`MAX_UNIQUE_ID_BYTES`] bytes; a longer one is left out.
pub fn write(version: Version, header: &Header, out: &mut Vec<u8>) {
    let ends = header.ends.map(Ends::of_one_family);
    match version {
        Version::V1 => v1::write(ends, out),
        Version::V2 => v2::write(ends, header.unique_id.as_deref(), out),
    }
}

/// Writes a header for a connection of our own, as of a health check: nobody else's address is told.
pub fn write_local(version: Version, out: &mut Vec<u8>) {
    match version {
        Version::V1 => v1::write(None, out),
        Version::V2 => v2::write_local(out),
    }
}

impl Ends {
    /// Both as IPv4 where both are, else both as IPv6: a header has room for one family.
    fn of_one_family(self) -> Ends {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (source, destination) = (canonical(self.source), canonical(self.destination));
        if source.is_ipv4() == destination.is_ipv4() {
            return Ends { source, destination };
        }
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        Ends { source: mapped(source), destination: mapped(destination) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const VERSIONS: [Version; 2] = [Version::V1, Version::V2];

    fn ends() -> impl Strategy<Value = Ends> {
        let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        let v6 = (any::<[u16; 8]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        let pair = |(source, destination)| Ends { source, destination };
        prop_oneof![(v4.clone(), v4).prop_map(pair), (v6.clone(), v6).prop_map(pair)]
    }

    fn headers() -> impl Strategy<Value = Header> {
        let id = prop::collection::vec(any::<u8>(), 1..=MAX_UNIQUE_ID_BYTES).prop_map(Vec::into_boxed_slice);
        (prop::option::of(ends()), prop::option::of(id))
            .prop_map(|(ends, unique_id)| Header { ends, unique_id })
    }

    /// What becomes of bytes that arrive in pieces.
    fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<(usize, Header)>, HeaderError> {
        let mut kept = Vec::new();
        for piece in pieces {
            kept.extend_from_slice(piece);
            let read = read(&kept)?;
            if read.is_some() {
                return Ok(read);
            }
            assert!(kept.len() < MAX_V2_BYTES, "{} bytes are kept", kept.len());
        }
        Ok(None)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_in_any_split_and_the_payload_is_left(
            header in headers(),
            payload in prop::collection::vec(any::<u8>(), 0..40),
            piece in 1usize..300,
        ) {
            for version in VERSIONS {
                let mut bytes = Vec::new();
                write(version, &header, &mut bytes);
                let length = bytes.len();
                bytes.extend_from_slice(&payload);
                let ends = header.ends.map(Ends::of_one_family);
                let told = |ends: Option<Ends>| ends.map(|ends| [ends.source, ends.destination]);
                for read in [fed([&bytes[..]]), fed(bytes.chunks(piece)), fed(bytes.chunks(1))] {
                    let (consumed, read) = read.unwrap().unwrap();
                    prop_assert_eq!((consumed, told(read.ends)), (length, told(ends)));
                    if version == Version::V2 && ends.is_some() {
                        prop_assert_eq!(&read.unique_id, &header.unique_id);
                    }
                }
            }
        }

        #[test]
        fn no_prefix_is_a_header(header in headers(), end in any::<Index>()) {
            for version in VERSIONS {
                let mut bytes = Vec::new();
                write(version, &header, &mut bytes);
                prop_assert_eq!(read(&bytes[..end.index(bytes.len())]), Ok(None));
            }
        }

        #[test]
        fn damage_ends_alike_in_any_split_and_never_panics(
            header in headers(),
            damage in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
            noise in prop::collection::vec(any::<u8>(), 0..5000),
            piece in 1usize..300,
        ) {
            for version in VERSIONS {
                let mut bytes = Vec::new();
                write(version, &header, &mut bytes);
                for (at, byte) in &damage {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                bytes.extend_from_slice(&noise);
                let whole = fed([&bytes[..]]);
                // Of several faults, the one that is seen first is told.
                let told = |read: Result<_, HeaderError>| read.map_err(|_| ());
                if whole != Ok(None) {
                    prop_assert_eq!(told(fed(bytes.chunks(piece))), told(whole));
                }
            }
            let _ = fed(noise.chunks(piece));
        }
    }

    #[test]
    fn what_is_no_header_is_known_by_its_first_bytes() {
        for other in [&b"GET / HTTP/1.1"[..], b"\x16\x03\x01", b"\x05\x01\0", b"\r\n\r\nX", b"POST", b"\0"] {
            assert_eq!(read(other), Err(HeaderError::Missing), "{other:?}");
        }
    }

    #[test]
    fn ends_of_two_families_are_told_in_ipv6() {
        let ends = Ends {
            source: "[::ffff:192.0.2.1]:1".parse().unwrap(),
            destination: "[2001:db8::1]:2".parse().unwrap(),
        };
        let mut line = Vec::new();
        write(Version::V1, &Header { ends: Some(ends), unique_id: None }, &mut line);
        assert_eq!(line, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n");
        let ends = Ends { destination: "192.0.2.2:2".parse().unwrap(), ..ends };
        line.clear();
        write(Version::V1, &Header { ends: Some(ends), unique_id: None }, &mut line);
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    }
}
