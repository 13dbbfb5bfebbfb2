//! One handshake for every protocol a listener may speak.

use super::{Progress, http, mixed, socks5};
use crate::snapshot::Protocol;
use crate::users::Users;

/// The server side of a handshake.
#[derive(Debug)]
pub enum Handshake {
    /// SOCKS version 5.
    Socks5(socks5::Handshake),
    /// HTTP proxy.
    Http(http::Handshake),
    /// SOCKS5 or HTTP; the first byte decides.
    Mixed(mixed::Handshake),
}

impl Handshake {
    /// The handshake of `protocol`; `None` for `tcp`, which has none.
    pub fn new(protocol: Protocol) -> Option<Handshake> {
        match protocol {
            Protocol::Tcp => None,
            Protocol::Socks5 => Some(Handshake::Socks5(socks5::Handshake::default())),
            Protocol::Http => Some(Handshake::Http(http::Handshake::default())),
            Protocol::Mixed => Some(Handshake::Mixed(mixed::Handshake::default())),
        }
    }

    /// Takes all bytes that the client has sent and that were not consumed yet. `users` are those who may pass;
    /// `None` lets everybody. Not to be called again after [`Step::Request`](super::Step::Request) or
    /// [`Step::Refuse`](super::Step::Refuse).
    pub fn advance(&mut self, input: &[u8], users: Option<&Users>) -> Progress {
        match self {
            Handshake::Socks5(handshake) => handshake.advance(input, users),
            Handshake::Http(handshake) => handshake.advance(input, users),
            Handshake::Mixed(handshake) => handshake.advance(input, users),
        }
    }
}
