//! The client side of proxy handshakes: what is said to a proxy, and heard from it, before it passes bytes on.

mod http;
mod socks5;

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Destination, shadowsocks};
use crate::close::ConnectError;
use crate::snapshot::{Hop, Proxy};
use crate::users::MAX_CREDENTIAL_BYTES;

/// The longest answer of a proxy, up to the first byte of the destination's: what common servers take for a head.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// A user and a password for a proxy. Wiped when dropped; its `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Zeroizing<Vec<u8>>,
    password: Zeroizing<Vec<u8>>,
}

/// Why something is no [`Credentials`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("user and password have 1 to {MAX_CREDENTIAL_BYTES} bytes each")]
pub struct BadCredentials;

impl Credentials {
    /// Takes over a user and a password, of 1 to 255 bytes each (RFC 1929, section 2).
    ///
    /// # Errors
    /// [`BadCredentials`] when one is empty or longer.
    pub fn new(user: &str, password: &str) -> Result<Credentials, BadCredentials> {
        let is_sound = |text: &str| (1..=MAX_CREDENTIAL_BYTES).contains(&text.len());
        if !is_sound(user) || !is_sound(password) {
            return Err(BadCredentials);
        }
        let secret = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
        Ok(Credentials { user: secret(user), password: secret(password) })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why a proxy does not pass bytes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It wants a user and a password, or others.
    #[error("authentication refused")]
    Authentication,
    /// A SOCKS5 reply other than success (RFC 1928, section 6).
    #[error("SOCKS5 reply {0}")]
    Socks5(u8),
    /// An HTTP status that is no success (RFC 9110, section 15).
    #[error("HTTP status {0}")]
    Http(u16),
    /// No answer of its protocol.
    #[error("no answer of its protocol")]
    Malformed,
    /// An answer longer than [`MAX_ANSWER_BYTES`].
    #[error("an answer without end")]
    TooLong,
}

impl ProxyError {
    /// The same, as the failure of an attempt.
    pub const fn as_connect_error(self) -> ConnectError {
        match self {
            ProxyError::Authentication => ConnectError::ProxyAuthentication,
            ProxyError::Socks5(3) => ConnectError::NetworkUnreachable,
            ProxyError::Socks5(4) => ConnectError::HostUnreachable,
            ProxyError::Socks5(5) => ConnectError::Refused,
            // TTL expired.
            ProxyError::Socks5(6) | ProxyError::Http(504) => ConnectError::TimedOut,
            ProxyError::Socks5(_) | ProxyError::Http(_) => ConnectError::ProxyRefused,
            ProxyError::Malformed | ProxyError::TooLong => ConnectError::ProxyBroken,
        }
    }
}

/// What a handshake made of the bytes it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes of the input are done with. They must not be offered again.
    pub consumed: usize,
    /// What comes next.
    pub step: Step,
}

/// What a handshake wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes: the unconsumed rest is offered again, together with what follows.
    Incomplete,
    /// The proxy passes bytes on: what follows the consumed ones is the destination's.
    Done,
    /// It does not.
    Failed(ProxyError),
}

/// How one proxy is asked for one destination.
#[derive(Debug)]
pub enum Introduction {
    /// By talk, in the open.
    Handshake(Handshake),
    /// By the first bytes of a tunnel, in which everything that follows is said.
    Tunnel(Arc<shadowsocks::Client>, Destination),
}

impl Introduction {
    /// How the proxy of `hop` is asked; `asked` is what the client asked for. `None` when the hop leads where the client
    /// wants to go and the client has not said where that is.
    pub fn new(hop: &Hop, asked: Option<&Destination>) -> Option<Introduction> {
        let destination = hop.destination(asked)?.clone();
        Some(match &hop.proxy {
            Proxy::Socks5(credentials) => Introduction::Handshake(Handshake(Kind::Socks5(
                socks5::Handshake::new(destination, credentials.clone()),
            ))),
            Proxy::Http(credentials) => Introduction::Handshake(Handshake(Kind::Http(http::Handshake::new(
                destination,
                credentials.clone(),
            )))),
            Proxy::Shadowsocks(client) => Introduction::Tunnel(Arc::clone(client), destination),
        })
    }
}

/// A handshake with a proxy.
#[derive(Debug)]
pub struct Handshake(Kind);

#[derive(Debug)]
enum Kind {
    Socks5(socks5::Handshake),
    Http(http::Handshake),
}

impl Handshake {
    /// Takes everything that the proxy has sent and that is not consumed, at first nothing; appends to `out` what is
    /// to be sent to it.
    pub fn advance(&mut self, received: &[u8], out: &mut Vec<u8>) -> Progress {
        let mut consumed = 0;
        loop {
            let rest = &received[consumed..];
            let progress = match &mut self.0 {
                Kind::Socks5(handshake) => handshake.advance(rest, out),
                Kind::Http(handshake) => handshake.advance(rest),
            };
            consumed += progress.consumed;
            let step = match progress.step {
                Step::Incomplete if progress.consumed > 0 => continue,
                Step::Incomplete if received.len() - consumed >= MAX_ANSWER_BYTES => {
                    Step::Failed(ProxyError::TooLong)
                }
                Step::Incomplete => {
                    if let Kind::Http(handshake) = &mut self.0 {
                        handshake.ask(out);
                    }
                    Step::Incomplete
                }
                done @ (Step::Done | Step::Failed(_)) => done,
            };
            return Progress { consumed, step };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::Towards;

    fn hop(proxy: impl Fn(Option<Arc<Credentials>>) -> Proxy, credentials: Option<(&str, &str)>) -> Hop {
        let credentials =
            credentials.map(|(user, password)| Arc::new(Credentials::new(user, password).unwrap()));
        Hop { proxy: proxy(credentials), towards: Towards::Client }
    }

    fn to(host: &str, port: u16) -> Destination {
        Destination::from_host(host.as_bytes(), port).unwrap()
    }

    /// Plays a handshake with a proxy that says these answers, one after each thing that is said to it, in pieces of
    /// `piece` bytes; returns what was said, how it ended, and what was left over.
    fn play(hop: &Hop, to: &Destination, answers: &[&[u8]], piece: usize) -> (Vec<Vec<u8>>, Step, Vec<u8>) {
        let Some(Introduction::Handshake(mut introduction)) = Introduction::new(hop, Some(to)) else {
            panic!("no handshake")
        };
        let (mut said, mut received) = (Vec::new(), Vec::new());
        let mut out = Vec::new();
        let mut step = introduction.advance(&received, &mut out).step;
        said.push(std::mem::take(&mut out));
        for answer in answers {
            for bytes in answer.chunks(piece) {
                received.extend_from_slice(bytes);
                if step == Step::Incomplete {
                    let progress = introduction.advance(&received, &mut out);
                    received.drain(..progress.consumed);
                    step = progress.step;
                }
            }
            if !out.is_empty() {
                said.push(std::mem::take(&mut out));
            }
        }
        (said, step, received)
    }

    #[test]
    fn socks5_asks_for_a_name_without_a_password() {
        let answers: &[&[u8]] = &[&[5, 0], &[5, 0, 0, 1, 10, 0, 0, 1, 0, 80, b'h', b'i']];
        for piece in [1, 2, 3, 64] {
            let (said, step, rest) = play(&hop(Proxy::Socks5, None), &to("a.example", 443), answers, piece);
            assert_eq!(said[0], [5, 1, 0]);
            assert_eq!(said[1], b"\x05\x01\x00\x03\x09a.example\x01\xbb");
            assert_eq!((step, &rest[..]), (Step::Done, &b"hi"[..]), "in pieces of {piece}");
        }
    }

    #[test]
    fn socks5_gives_user_and_password_when_they_are_asked_for() {
        let hop = hop(Proxy::Socks5, Some(("ann", "secret")));
        let name: &[u8] = &[5, 0, 0, 3, 1, b'x', 0, 80];
        let (said, step, _) = play(&hop, &to("::1", 80), &[&[5, 2], &[1, 0], name], 64);
        assert_eq!(said[0], [5, 2, 0, 2]);
        assert_eq!(said[1], b"\x01\x03ann\x06secret");
        assert_eq!(said[2], [5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80]);
        assert_eq!(step, Step::Done);
        let (said, step, _) = play(&hop, &to("192.0.2.1", 80), &[&[5, 0], &[5, 1]], 64);
        assert_eq!(said[1], [5, 1, 0, 1, 192, 0, 2, 1, 0, 80], "not asked for");
        assert_eq!(step, Step::Failed(ProxyError::Socks5(1)));
    }

    #[test]
    fn socks5_failures_keep_their_code() {
        let with = hop(Proxy::Socks5, Some(("ann", "secret")));
        let without = hop(Proxy::Socks5, None);
        let ends = |hop, answers: &[&[u8]]| play(hop, &to("a.example", 1), answers, 64).1;
        assert_eq!(ends(&with, &[&[5, 2], &[1, 9]]), Step::Failed(ProxyError::Authentication));
        assert_eq!(ends(&without, &[&[5, 255]]), Step::Failed(ProxyError::Authentication));
        assert_eq!(ends(&without, &[&[5, 2]]), Step::Failed(ProxyError::Malformed), "it was not offered");
        assert_eq!(ends(&without, &[b"HTTP/1.1 400 Bad\r\n"]), Step::Failed(ProxyError::Malformed));
        for code in 1..=255 {
            let step = ends(&without, &[&[5, 0], &[5, code, 0, 1]]);
            assert_eq!(step, Step::Failed(ProxyError::Socks5(code)));
        }
        assert_eq!(ends(&without, &[&[5, 0], &[5, 0, 0, 2, 0]]), Step::Failed(ProxyError::Malformed));
    }

    #[test]
    fn http_connects_and_leaves_what_follows_the_head() {
        let answers: &[&[u8]] = &[b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nbanner"];
        for piece in [1, 7, 512] {
            let (said, step, rest) = play(&hop(Proxy::Http, None), &to("2001:db8::1", 443), answers, piece);
            let head = b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n";
            assert_eq!(said, [head.to_vec()]);
            assert_eq!((step, &rest[..]), (Step::Done, &b"banner"[..]));
        }
    }

    #[test]
    fn http_sends_credentials_at_once_and_keeps_the_status() {
        let hop = hop(Proxy::Http, Some(("Aladdin", "open sesame")));
        let ends = |answer: &[u8]| play(&hop, &to("a.example", 80), &[answer], 64);
        let (said, step, _) = ends(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content\r\n\r\n");
        // RFC 7617, section 2.
        let expected = b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\
                         Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n";
        assert_eq!((&said[..], step), (&[expected.to_vec()][..], Step::Done));
        assert_eq!(ends(b"HTTP/1.1 407 No\r\n\r\n").1, Step::Failed(ProxyError::Authentication));
        assert_eq!(ends(b"HTTP/1.1 502 Bad\r\nA: b\r\n\r\n").1, Step::Failed(ProxyError::Http(502)));
        assert_eq!(ends(b"\x05\x00").1, Step::Failed(ProxyError::Malformed));
        let endless = [b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &[b'a'; MAX_ANSWER_BYTES]].concat();
        assert_eq!(ends(&endless).1, Step::Failed(ProxyError::TooLong));
    }

    #[test]
    fn nothing_is_asked_for_where_the_client_has_not_said_what() {
        assert!(Introduction::new(&hop(Proxy::Http, None), None).is_none());
    }

    #[test]
    fn credentials_are_not_shown_and_have_a_length() {
        let credentials = Credentials::new("ann", "secret").unwrap();
        assert_eq!(format!("{credentials:?}"), "Credentials(..)");
        assert!(Credentials::new("", "secret").is_err());
        assert!(Credentials::new("ann", &"x".repeat(256)).is_err());
    }

    proptest! {
        /// Whatever a proxy sends, in whatever pieces: no panic, and never more consumed than there is.
        #[test]
        fn any_bytes_are_borne(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            begins_well in any::<bool>(),
            is_http in any::<bool>(),
            piece in 1usize..40,
        ) {
            let protocol = if is_http { Proxy::Http } else { Proxy::Socks5 };
            let begin: &[u8] = if is_http { b"HTTP/1.1 " } else { &[5, 0, 5, 0, 0] };
            let bytes = [if begins_well { begin } else { b"" }, &bytes].concat();
            play(&hop(protocol, Some(("a", "b"))), &to("a.example", 1), &[&bytes], piece);
        }
    }
}
