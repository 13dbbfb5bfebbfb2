//! What is fuzzed, and what must hold of it. An input's first bytes say how it is cut; the rest is what a peer sends.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests")]

mod lists;
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
    Target { name: "lists", run: lists::lists },
    Target { name: "shadowsocks", run: shadowsocks::noise },
    Target { name: "shadowsocks_damage", run: shadowsocks::damage },
];

/// The rest of an input behind its first byte, and pieces of it whose sizes that byte draws.
pub(crate) fn cut(data: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let Some((&seed, bytes)) = data.split_first() else { return (data, Vec::new()) };
    let (mut pieces, mut rest, mut state) = (Vec::new(), bytes, u32::from(seed));
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (piece, next) = rest.split_at((1 + (state >> 24) as usize % 64).min(rest.len()));
        pieces.push(piece);
        rest = next;
    }
    (bytes, pieces)
}
