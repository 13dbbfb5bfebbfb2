//! The wire protocols, as state machines over bytes: fed slices in any split, they never read past them, never
//! panic on what a peer sends, and hold no more than their named bound.

mod address;
pub mod client;
pub mod handshake;
pub mod http;
pub mod mixed;
pub mod peek;
pub mod proxy_protocol;
mod reader;
pub mod shadowsocks;
pub mod socks4;
pub mod socks5;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::close::CloseReason;
use crate::verify::Login;

/// What a server-side handshake made of the bytes it was offered.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes of the input are done with. They must not be offered again.
    pub consumed: usize,
    /// What comes next.
    pub step: Step,
}

/// What a server-side handshake wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes: the unconsumed rest is offered again, together with what follows.
    Incomplete,
    /// This goes to the client; then the rest is offered at once.
    Reply(Cow<'static, [u8]>),
    /// The request is complete. What follows the consumed bytes is payload for the upstream.
    Request(Request),
    /// A login is to be asked for, which the handshake is told with `handle_verdict`; then the rest is offered again.
    Verify(Login),
    /// This, if it is not empty, goes to the client, and then the session ends.
    Refuse {
        /// The last word to the client.
        reply: Cow<'static, [u8]>,
        /// Why the session ends.
        reason: CloseReason,
    },
}

impl Progress {
    pub(crate) fn incomplete() -> Progress {
        Progress { consumed: 0, step: Step::Incomplete }
    }

    pub(crate) fn reply(consumed: usize, reply: &'static [u8]) -> Progress {
        Progress { consumed, step: Step::Reply(Cow::Borrowed(reply)) }
    }

    pub(crate) fn request(consumed: usize, request: Request) -> Progress {
        Progress { consumed, step: Step::Request(request) }
    }

    pub(crate) fn verify(login: Login) -> Progress {
        Progress { consumed: 0, step: Step::Verify(login) }
    }

    pub(crate) fn refuse(reply: impl Into<Cow<'static, [u8]>>, reason: CloseReason) -> Progress {
        Progress { consumed: 0, step: Step::Refuse { reply: reply.into(), reason } }
    }
}

/// What a client asked for. Its `Debug` shows the length of the preface, never its bytes: cookies and passwords
/// stand in there.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Where it wants to go.
    pub destination: Destination,
    /// As whom it authenticated, where the listener asks for users.
    pub user: Option<Arc<str>>,
    /// What the upstream gets before the client's payload: the rewritten head of a plain HTTP request, else
    /// nothing.
    pub preface: Vec<u8>,
    /// How much of the payload that follows belongs to this request.
    pub body: Body,
    /// How the client is told what became of it.
    pub answer: Answer,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("destination", &self.destination)
            .field("user", &self.user)
            .field("preface_bytes", &self.preface.len())
            .field("body", &self.body)
            .field("answer", &self.answer)
            .finish()
    }
}

/// How much of what a client sends after its request may be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// All of it.
    Unlimited,
    /// This many bytes; what follows is meant for somebody else and is dropped.
    Limited(u64),
}

/// How a client is told of success or failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not at all: `tcp` has no words for it.
    None,
    /// By a SOCKS 4 reply.
    Socks4,
    /// By a SOCKS5 reply (RFC 1928, section 6).
    Socks5,
    /// By an HTTP response, also on success (RFC 9110, section 9.3.6).
    HttpConnect,
    /// By an HTTP response, on failure alone: success is for the upstream to tell.
    HttpPlain,
}

/// Why a request could not be fulfilled, as far as a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens at the destination.
    Refused,
    /// The destination did not answer in time.
    TimedOut,
    /// There is no route to the destination's network.
    NetworkUnreachable,
    /// The destination's host does not answer.
    HostUnreachable,
    /// The destination may not be reached from this listener.
    NotAllowed,
    /// The destination's name has no address.
    NotResolved,
    /// No member of the target is up.
    NoTarget,
    /// The operator rejects such requests.
    Rejected,
    /// No descriptor, port or memory is left.
    OutOfResources,
    /// Anything else.
    General,
}

impl Answer {
    /// Whether success is told with the address we dialled from.
    pub const fn tells_local(self) -> bool {
        match self {
            Answer::Socks4 | Answer::Socks5 => true,
            Answer::None | Answer::HttpConnect | Answer::HttpPlain => false,
        }
    }

    /// What a client is sent when its upstream is open; `local` is the address we dialled from. May be empty.
    /// Takes `memory`, which is empty, where it has something to write.
    pub fn success(self, local: Option<SocketAddr>, memory: &mut Vec<u8>) -> Cow<'static, [u8]> {
        match self {
            Answer::None | Answer::HttpPlain => Cow::Borrowed(b""),
            Answer::Socks4 => socks4::success(local, std::mem::take(memory)),
            Answer::Socks5 => socks5::success(local, std::mem::take(memory)),
            Answer::HttpConnect => http::CONNECTED.into(),
        }
    }

    /// What a client is sent when its request failed. Empty for [`Answer::None`].
    pub fn failure(self, failure: Failure) -> Cow<'static, [u8]> {
        match self {
            Answer::None => Cow::Borrowed(b""),
            Answer::Socks4 => socks4::failure(),
            Answer::Socks5 => socks5::failure(failure),
            Answer::HttpConnect | Answer::HttpPlain => http::failure(failure),
        }
    }
}

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
