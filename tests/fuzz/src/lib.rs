//! What is fuzzed, and what must hold of it. An input's first bytes say how it is cut; the rest is what a peer sends.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests")]

mod config;
mod lists;
mod session;
mod shadowsocks;
mod wire;

/// A target: panics when something does not hold of an input.
pub struct Target {
    /// The name of its corpus, too.
    pub name: &'static str,
    /// Tries an input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "socks5", run: wire::socks5 },
    Target { name: "socks", run: wire::socks },
    Target { name: "http", run: wire::http },
    Target { name: "mixed", run: wire::mixed },
    Target { name: "socks5_client", run: wire::socks5_client },
    Target { name: "http_client", run: wire::http_client },
    Target { name: "proxy_protocol", run: wire::proxy_protocol },
    Target { name: "peek", run: wire::peek },
    Target { name: "session", run: session::session },
    Target { name: "config", run: config::config },
    Target { name: "import", run: config::import },
    Target { name: "lists", run: lists::lists },
    Target { name: "shadowsocks", run: shadowsocks::noise },
    Target { name: "shadowsocks_damage", run: shadowsocks::damage },
    Target { name: "shadowsocks_requests", run: shadowsocks::requests },
    Target { name: "shadowsocks_answers", run: shadowsocks::answers },
];

/// Pieces of what a peer sends; their sizes are drawn from a seed.
pub(crate) fn cut(seed: u8, bytes: &[u8]) -> Vec<&[u8]> {
    let (mut pieces, mut rest, mut state) = (Vec::new(), bytes, u32::from(seed));
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (piece, next) = rest.split_at((1 + (state >> 24) as usize % 64).min(rest.len()));
        pieces.push(piece);
        rest = next;
    }
    pieces
}

/// An input that is read as what is to happen.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Script<'a> {
        Script(data)
    }

    /// `None` at the end.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    /// With zeros behind the end.
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte().unwrap_or(0), self.byte().unwrap_or(0)])
    }

    /// At most so many bytes: fewer at the end.
    pub(crate) fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
