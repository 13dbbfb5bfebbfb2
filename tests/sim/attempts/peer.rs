//! A destination, perhaps behind a proxy, that makes up its mind once.

use std::collections::VecDeque;
use std::time::Duration;

use ringweir_flow::dial::AttemptId;
use ringweir_flow::snapshot::ProxyProtocol;

use super::world::span;

/// What a destination does once it has heard enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Says something, and ends its stream.
    Answer,
    Reset,
    /// Ends its stream without a word.
    End,
    Silence,
}

/// How far a proxy has got with who asks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    Greeting(ProxyProtocol),
    Request(ProxyProtocol),
    /// It says nothing, or has said no.
    Closed,
    /// There is none, or it has said yes.
    Passed,
}

pub(super) struct Conn {
    pub(super) attempt: AttemptId,
    pub(super) upstream: usize,
    pub(super) is_open: bool,
    pub(super) is_gone: bool,
    pub(super) is_awaited: bool,
    /// The client's stream has ended here.
    pub(super) has_ended: bool,
    /// Its own has.
    pub(super) has_finished: bool,
    pub(super) has_reset: bool,
    /// What it says, and nobody has taken yet.
    pub(super) outgoing: VecDeque<u8>,
    proxy: Proxy,
    is_proxied: bool,
    is_willing: bool,
    unread: Vec<u8>,
    payload: Vec<u8>,
    answer: Vec<u8>,
    fate: Fate,
    /// How much it wants to hear.
    enough: usize,
    has_decided: bool,
}

impl Conn {
    pub(super) fn new(
        attempt: AttemptId,
        upstream: usize,
        proxy: Option<ProxyProtocol>,
        fate: Fate,
        payload_bytes: usize,
        rng: &mut fastrand::Rng,
    ) -> Conn {
        let enough = if rng.bool() { 0 } else { rng.usize(..=payload_bytes) };
        let len = if fate == Fate::Answer { rng.usize(1..2_000) } else { 0 };
        Conn {
            attempt,
            upstream,
            is_open: false,
            is_gone: false,
            is_awaited: false,
            has_ended: false,
            has_finished: false,
            has_reset: false,
            outgoing: VecDeque::new(),
            is_proxied: proxy.is_some(),
            proxy: proxy.map_or(Proxy::Passed, Proxy::Greeting),
            is_willing: rng.u8(..5) != 0,
            unread: Vec::new(),
            payload: Vec::new(),
            answer: (0..len).map(|at| (at * 7 + upstream) as u8).collect(),
            fate,
            enough,
            has_decided: false,
        }
    }

    pub(super) fn is_proxied(&self) -> bool {
        self.is_proxied
    }

    /// What it was told behind the proxy.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What it says if it answers.
    pub(super) fn answer(&self) -> &[u8] {
        &self.answer
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        loop {
            match self.proxy {
                Proxy::Passed => {
                    self.payload.append(&mut self.unread);
                    return;
                }
                Proxy::Closed => return,
                Proxy::Greeting(ProxyProtocol::Socks5) if self.unread.len() >= 3 => {
                    self.unread.drain(..3);
                    self.outgoing.extend([5, 0]);
                    self.proxy = Proxy::Request(ProxyProtocol::Socks5);
                }
                // The destination is always an IPv4 address.
                Proxy::Request(ProxyProtocol::Socks5) if self.unread.len() >= 10 => {
                    self.unread.drain(..10);
                    let code = if self.is_willing { 0 } else { 5 };
                    self.outgoing.extend([5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
                    self.proxy = if self.is_willing { Proxy::Passed } else { Proxy::Closed };
                }
                Proxy::Greeting(ProxyProtocol::Http) | Proxy::Request(ProxyProtocol::Http) => {
                    let Some(end) = self.unread.windows(4).position(|part| part == b"\r\n\r\n") else {
                        return;
                    };
                    self.unread.drain(..end + 4);
                    let reply: &[u8] = match self.is_willing {
                        true => b"HTTP/1.1 200 OK\r\n\r\n",
                        false => b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
                    };
                    self.outgoing.extend(reply);
                    self.proxy = if self.is_willing { Proxy::Passed } else { Proxy::Closed };
                }
                Proxy::Greeting(ProxyProtocol::Socks5) | Proxy::Request(ProxyProtocol::Socks5) => return,
            }
        }
    }

    /// When it acts, once it has heard enough. Replies of a proxy are there at once, and need to be fetched.
    pub(super) fn decide(&mut self, rng: &mut fastrand::Rng) -> Option<Duration> {
        let has_heard = self.payload.len() >= self.enough || self.has_ended;
        let is_due = self.is_open && !self.has_decided && self.proxy == Proxy::Passed && has_heard;
        if is_due {
            self.has_decided = true;
            return Some(if rng.bool() { span(rng, 0, 30) } else { span(rng, 0, 5_000) });
        }
        let has_words = self.is_open && !self.outgoing.is_empty();
        has_words.then(|| span(rng, 0, 20))
    }

    pub(super) fn act(&mut self) {
        if !self.has_decided || self.has_finished || self.has_reset {
            return;
        }
        match self.fate {
            Fate::Answer => {
                let answer = std::mem::take(&mut self.answer);
                self.outgoing.extend(&answer);
                self.answer = answer;
                self.has_finished = true;
            }
            Fate::Reset => self.has_reset = true,
            Fate::End => self.has_finished = true,
            Fate::Silence => {}
        }
    }
}
