//! A look at what a client says first, without being its server: the TLS ClientHello or the head of an HTTP/1 request.
//! What is looked at is not consumed; it goes on to the upstream as it came.

pub mod answer;
pub mod client_hello;
pub mod http_head;

use client_hello::ClientHello;
use http_head::RequestHead;

use super::HostName;

/// The most that is looked at: as much as is held for a client, and as the longest heads that servers take.
pub const MAX_PEEK_BYTES: usize = 16 * 1024;

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// It begins TLS.
    Tls(ClientHello),
    /// It makes an HTTP/1 request.
    Http(RequestHead),
}

/// What a look at the bytes so far has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// More bytes are needed.
    Incomplete,
    /// It is clear what it is.
    Seen(Peeked),
    /// It is neither, not sound, or too long.
    Other,
}

/// Looks at the beginning of a stream as it grows.
#[derive(Debug, Default)]
pub struct Peek {
    head: http_head::Search,
}

impl Peek {
    /// Takes all bytes that the client has sent. Not to be called again once it has said other than incomplete.
    pub fn look(&mut self, input: &[u8]) -> Sight {
        let window = &input[..input.len().min(MAX_PEEK_BYTES)];
        let sight = match window.first() {
            None => return Sight::Incomplete,
            Some(&client_hello::CONTENT_HANDSHAKE) => match client_hello::read(window) {
                Ok(hello) => hello.map(Peeked::Tls),
                Err(client_hello::NotAHello) => return Sight::Other,
            },
            Some(_) => match self.head.read(window) {
                Ok(head) => head.map(Peeked::Http),
                Err(http_head::NotAHead) => return Sight::Other,
            },
        };
        match sight {
            Some(peeked) => Sight::Seen(peeked),
            None if window.len() == MAX_PEEK_BYTES => Sight::Other,
            None => Sight::Incomplete,
        }
    }
}

impl Peeked {
    /// The name that the client asks for: that of SNI or Host.
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Peeked::Tls(hello) => hello.server_name.as_ref(),
            Peeked::Http(head) => head.host.as_ref(),
        }
    }

    /// The path of a request.
    pub fn path(&self) -> Option<&str> {
        match self {
            Peeked::Tls(_) => None,
            Peeked::Http(head) => Some(head.path()),
        }
    }

    /// The value of a cookie of a request.
    pub fn cookie(&self, name: &str) -> Option<&[u8]> {
        match self {
            Peeked::Tls(_) => None,
            Peeked::Http(head) => head.cookie(name),
        }
    }

    /// The value of a key in the query of a request, as it is written.
    pub fn query(&self, key: &str) -> Option<&[u8]> {
        match self {
            Peeked::Tls(_) => None,
            Peeked::Http(head) => head.query(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    const BEGINNINGS: &[&[u8]] =
        &[b"G", b"GET /", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05\x01", b"\x16\x03\x01\x40\0\x01\0\x3f\0"];

    fn looked<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Sight {
        let (mut peek, mut kept) = (Peek::default(), Vec::new());
        for piece in pieces {
            kept.extend_from_slice(piece);
            match peek.look(&kept) {
                Sight::Incomplete => assert!(kept.len() < MAX_PEEK_BYTES, "{} bytes are kept", kept.len()),
                sight @ (Sight::Seen(_) | Sight::Other) => return sight,
            }
        }
        Sight::Incomplete
    }

    /// A hello over records of these sizes, or a request.
    fn sound() -> impl Strategy<Value = (Vec<u8>, String)> {
        let name = "[a-z]{1,20}\\.example";
        let tls = (name, prop::collection::vec(1usize..200, 0..6)).prop_map(|(name, cuts)| {
            let message = client_hello::tests::message(&[client_hello::tests::sni(&name)]);
            (client_hello::tests::records(&message, &cuts), name)
        });
        let request = (name, "[a-z/]{0,30}").prop_map(|(name, path)| {
            (format!("GET /{path}?a=b HTTP/1.1\r\nA: b\r\nHost: {name}\r\n\r\n").into_bytes(), name)
        });
        prop_oneof![tls, request]
    }

    proptest! {
        #[test]
        fn any_split_shows_the_same(
            (bytes, name) in sound(),
            rest in prop::collection::vec(any::<u8>(), 0..40),
            piece in 1usize..100,
        ) {
            let all = [&bytes[..], &rest].concat();
            let whole = looked([&all[..]]);
            let Sight::Seen(peeked) = &whole else { panic!("{whole:?}") };
            prop_assert_eq!(peeked.host().unwrap().as_str(), name);
            prop_assert_eq!(&looked(all.chunks(piece)), &whole);
            prop_assert_eq!(&looked(all.chunks(1)), &whole);
        }

        #[test]
        fn no_prefix_shows_anything((bytes, _) in sound(), end in any::<Index>()) {
            prop_assert_eq!(looked([&bytes[..end.index(bytes.len())]]), Sight::Incomplete);
        }

        #[test]
        fn damage_and_noise_never_panic_nor_grow(
            (mut bytes, _) in sound(),
            damage in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
            noise in prop::collection::vec(any::<u8>(), 0..2000),
            begin in select(BEGINNINGS),
            piece in 1usize..100,
        ) {
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.extend_from_slice(&noise);
            looked(bytes.chunks(piece));
            looked([begin, &noise].concat().chunks(piece));
        }

        #[test]
        fn what_does_not_end_is_let_go(filler in any::<u8>(), begin in select(BEGINNINGS)) {
            let all = [begin, &vec![filler; MAX_PEEK_BYTES]].concat();
            prop_assert_ne!(looked(all.chunks(1000)), Sight::Incomplete);
        }
    }

    #[test]
    fn other_protocols_are_known_by_their_first_bytes() {
        for bytes in
            [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"EHLO a.example\r\n", b"\x05\x01\0", b"\0\0\0\x08", b"{"]
        {
            assert_eq!(looked([bytes]), Sight::Other, "{bytes:?}");
        }
        assert_eq!(looked([&b""[..]]), Sight::Incomplete);
    }
}
