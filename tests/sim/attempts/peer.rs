//! A destination, perhaps behind a proxy, that makes up its mind once.

use std::collections::VecDeque;
use std::time::Duration;

use ringweir_flow::dial::AttemptId;
use ringweir_flow::time::Instant;

use super::world::span;

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyProtocol {
    Socks5,
    Http,
}

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

/// What a proxy does with who asks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Leads,
    Refuses,
    /// Says so many bytes of what it was going to say, and then does something else.
    BreaksOff(usize, Breach),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breach {
    Hangs,
    Ends,
    Resets,
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
    /// When its connection was open.
    pub(super) opened_at: Option<Instant>,
    pub(super) is_awaited: bool,
    /// The client's stream has ended here.
    pub(super) has_ended: bool,
    /// Its own has.
    pub(super) has_finished: bool,
    pub(super) has_reset: bool,
    /// Amid the handshake of its proxy.
    pub(super) has_broken_off: bool,
    pub(super) begun_at: Instant,
    /// When it was given up, or had failed.
    pub(super) ended_at: Option<Instant>,
    /// What it says, and nobody has taken yet.
    pub(super) outgoing: VecDeque<u8>,
    proxy: Proxy,
    is_proxied: bool,
    manner: Manner,
    unread: Vec<u8>,
    payload: Vec<u8>,
    answer: Vec<u8>,
    fate: Fate,
    /// How much it wants to hear.
    enough: usize,
    has_decided: bool,
    /// It speaks first: what it says comes with the yes of its proxy.
    is_eager: bool,
}

impl Conn {
    pub(super) fn new(
        attempt: AttemptId,
        upstream: usize,
        proxy: Option<ProxyProtocol>,
        fate: Fate,
        payload_bytes: usize,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Conn {
        let enough = if rng.bool() { 0 } else { rng.usize(..=payload_bytes) };
        let len = if fate == Fate::Answer { rng.usize(1..2_000) } else { 0 };
        let is_eager = fate == Fate::Answer && proxy.is_some() && rng.u8(..4) > 0;
        Conn {
            attempt,
            upstream,
            opened_at: None,
            is_awaited: false,
            has_ended: false,
            has_finished: false,
            has_reset: false,
            has_broken_off: false,
            begun_at: now,
            ended_at: None,
            outgoing: VecDeque::new(),
            is_proxied: proxy.is_some(),
            proxy: proxy.map_or(Proxy::Passed, Proxy::Greeting),
            manner: manner(rng),
            unread: Vec::new(),
            payload: Vec::new(),
            answer: (0..len).map(|at| (at * 7 + upstream) as u8).collect(),
            fate,
            enough,
            has_decided: false,
            is_eager,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.ended_at.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        self.opened_at.is_some()
    }

    pub(super) fn is_proxied(&self) -> bool {
        self.is_proxied
    }

    /// What it said came with the yes of its proxy.
    pub(super) fn has_spoken_first(&self) -> bool {
        self.is_eager && self.has_decided
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
                    self.say(&[5, 0], Proxy::Request(ProxyProtocol::Socks5));
                }
                // The destination is always an IPv4 address.
                Proxy::Request(ProxyProtocol::Socks5) if self.unread.len() >= 10 => {
                    self.unread.drain(..10);
                    let (code, then) = self.verdict((0, 5));
                    self.say(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0], then);
                }
                Proxy::Greeting(ProxyProtocol::Http) | Proxy::Request(ProxyProtocol::Http) => {
                    let Some(end) = self.unread.windows(4).position(|part| part == b"\r\n\r\n") else {
                        return;
                    };
                    self.unread.drain(..end + 4);
                    let (status, then) = self.verdict(("200 OK", "502 Bad Gateway"));
                    self.say(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes(), then);
                }
                Proxy::Greeting(ProxyProtocol::Socks5) | Proxy::Request(ProxyProtocol::Socks5) => return,
            }
        }
    }

    /// What it answers a request with, of a yes and a no, and what it is then.
    fn verdict<T>(&self, (yes, no): (T, T)) -> (T, Proxy) {
        match self.manner {
            Manner::Leads | Manner::BreaksOff(..) => (yes, Proxy::Passed),
            Manner::Refuses => (no, Proxy::Closed),
        }
    }

    /// As far as it gets.
    fn say(&mut self, reply: &[u8], then: Proxy) {
        self.proxy = then;
        let Manner::BreaksOff(left, breach) = &mut self.manner else {
            self.outgoing.extend(reply);
            return self.speak_first();
        };
        let said = reply.len().min(*left);
        self.outgoing.extend(&reply[..said]);
        *left -= said;
        if said < reply.len() {
            self.proxy = Proxy::Closed;
            self.has_broken_off = true;
            match breach {
                Breach::Hangs => {}
                Breach::Ends => self.has_finished = true,
                Breach::Resets => self.has_reset = true,
            }
        } else {
            self.speak_first();
        }
    }

    fn speak_first(&mut self) {
        if self.is_eager && self.proxy == Proxy::Passed {
            self.has_decided = true;
            self.act();
        }
    }

    /// When it acts, once it has heard enough. Replies of a proxy are there at once, and need to be fetched.
    pub(super) fn decide(&mut self, rng: &mut fastrand::Rng) -> Option<Duration> {
        let has_heard = self.payload.len() >= self.enough || self.has_ended;
        let is_due = self.is_open() && !self.has_decided && self.proxy == Proxy::Passed && has_heard;
        if is_due {
            self.has_decided = true;
            return Some(if rng.bool() { span(rng, 0, 30) } else { span(rng, 0, 5_000) });
        }
        let has_words = self.is_open() && (!self.outgoing.is_empty() || self.has_broken_off);
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

fn manner(rng: &mut fastrand::Rng) -> Manner {
    match rng.u8(..10) {
        0 => Manner::Refuses,
        1 | 2 => {
            // The shortest handshake is that of SOCKS: 12 bytes.
            let breach = [Breach::Hangs, Breach::Ends, Breach::Resets][rng.usize(..3)];
            Manner::BreaksOff(rng.usize(..12), breach)
        }
        _ => Manner::Leads,
    }
}
