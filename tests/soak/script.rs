//! What a session does, drawn from a seed: the same number always gives the same script.

use fastrand::Rng;

use crate::stream::{MAX_WRITE_BYTES, mix};

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// Our two ends of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

/// Which listener a session goes through, and so what kind of sockets it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    TcpToTcp,
    TcpToUnix,
    UnixToTcp,
    UnixToUnix,
    Socks,
    Http,
}

impl Route {
    pub(crate) const ALL: [Route; 6] =
        [Route::TcpToTcp, Route::TcpToUnix, Route::UnixToTcp, Route::UnixToUnix, Route::Socks, Route::Http];

    /// Whether both sockets are TCP's, so that a reset arrives as one.
    pub(crate) const fn passes_resets(self) -> bool {
        match self {
            Route::TcpToTcp | Route::Socks | Route::Http => true,
            Route::TcpToUnix | Route::UnixToTcp | Route::UnixToUnix => false,
        }
    }
}

/// How the sessions of a listener end: two listeners for each route, so that the counts of the orderly are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Orderly,
    Rough,
}

/// What leads to a listener.
pub(crate) type Entrance = (Route, Ending);

/// One for each listener.
pub(crate) const ENTRANCES: [Entrance; 12] = {
    let mut all = [(Route::TcpToTcp, Ending::Orderly); 12];
    let mut at = 0;
    while at < Route::ALL.len() {
        all[2 * at] = (Route::ALL[at], Ending::Orderly);
        all[2 * at + 1] = (Route::ALL[at], Ending::Rough);
        at += 1;
    }
    all
};

/// How a session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    /// Both directions in order.
    Orderly,
    /// One side ends it before its time.
    Rough(Abort),
}

/// An end before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abort {
    pub(crate) by: Side,
    pub(crate) when: When,
    pub(crate) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Sent(u64),
    Received(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// SO_LINGER 0.
    Reset,
    /// close(2), whatever is unread.
    Close,
}

/// What a writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// So many bytes by writes of `least_bytes` to `most_bytes`, with a pause of up to `pause_ms` between them.
    Write {
        bytes: u64,
        least_bytes: usize,
        most_bytes: usize,
        pause_ms: u64,
    },
    Pause {
        pause_ms: u64,
    },
    /// Until so many bytes of the other direction have come.
    Await {
        bytes: u64,
    },
    /// Until the other direction has ended.
    AwaitEnd,
}

/// A stretch of a reader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Up to this position.
    pub(crate) until: u64,
    pub(crate) most_bytes: usize,
    /// Before each read.
    pub(crate) pause_ms: u64,
}

/// One end's part.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    pub(crate) moves: Vec<Move>,
    /// What the moves write.
    pub(crate) bytes: u64,
    pub(crate) readings: Vec<Reading>,
    pub(crate) send_buffer_bytes: Option<u32>,
    pub(crate) receive_buffer_bytes: Option<u32>,
}

/// How a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Both directions end first.
    Last,
    /// It closes right behind its last byte; nothing comes for it.
    AtOnce,
}

/// How a client speaks to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// It awaits every answer.
    Polite,
    /// Requests and first payload in one write.
    Hasty,
}

#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) route: Route,
    pub(crate) temper: Temper,
    pub(crate) handshake: Handshake,
    pub(crate) leave: Leave,
    pub(crate) client: Part,
    pub(crate) upstream: Part,
}

impl Script {
    pub(crate) fn draw(seed: u64, number: u64) -> Script {
        let mut rng = Rng::with_seed(mix(seed, number));
        let rng = &mut rng;
        let mut draft = Draft::default();
        if one_in(rng, 4) {
            draft.draw_changes(rng);
        } else {
            draft.draw_acts(rng);
        }
        let (mut client, mut upstream) = (draft.up, draft.down);
        client.draw_manners(rng, upstream.bytes);
        upstream.draw_manners(rng, client.bytes);
        let temper = if one_in(rng, 3) {
            Temper::Rough(Abort::draw(rng, &client, &upstream))
        } else {
            Temper::Orderly
        };
        let may_leave =
            temper == Temper::Orderly && upstream.bytes == 0 && !client.moves.contains(&Move::AwaitEnd);
        let leave = if may_leave && rng.bool() { Leave::AtOnce } else { Leave::Last };
        let handshake = if one_in(rng, 2) { Handshake::Hasty } else { Handshake::Polite };
        let route = Route::ALL[rng.usize(..Route::ALL.len())];
        Script { route, temper, handshake, leave, client, upstream }
    }

    pub(crate) fn entrance(&self) -> Entrance {
        match self.temper {
            Temper::Orderly => (self.route, Ending::Orderly),
            Temper::Rough(_) => (self.route, Ending::Rough),
        }
    }

    pub(crate) fn part(&self, side: Side) -> &Part {
        match side {
            Side::Client => &self.client,
            Side::Upstream => &self.upstream,
        }
    }

    /// The end before its time that is this side's to make.
    pub(crate) fn abort_of(&self, side: Side) -> Option<Abort> {
        match self.temper {
            Temper::Rough(abort) if abort.by == side => Some(abort),
            Temper::Rough(_) | Temper::Orderly => None,
        }
    }
}

impl Abort {
    fn draw(rng: &mut Rng, client: &Part, upstream: &Part) -> Abort {
        let by = if rng.bool() { Side::Client } else { Side::Upstream };
        let (own, others) = match by {
            Side::Client => (client.bytes, upstream.bytes),
            Side::Upstream => (upstream.bytes, client.bytes),
        };
        let within = |rng: &mut Rng, bytes| match rng.u8(..10) {
            0 => 0,
            1 => bytes,
            2..=4 => log_uniform(rng, 1, bytes + 1) - 1,
            5.. => rng.u64(0..=bytes),
        };
        let when =
            if rng.bool() { When::Sent(within(rng, own)) } else { When::Received(within(rng, others)) };
        let how = if one_in(rng, 3) { How::Close } else { How::Reset };
        Abort { by, when, how }
    }
}

impl Part {
    fn write(&mut self, rng: &mut Rng, bytes: u64, pause_ms: u64) {
        let most_bytes = log_uniform(rng, 1 << 10, MAX_WRITE_BYTES as u64) as usize;
        let least_bytes = if rng.bool() { most_bytes } else { most_bytes.div_ceil(100) };
        self.bytes += bytes;
        self.moves.push(Move::Write { bytes, least_bytes, most_bytes, pause_ms });
    }

    fn say(&mut self, bytes: u64) {
        self.bytes += bytes;
        let most_bytes = bytes as usize;
        self.moves.push(Move::Write { bytes, least_bytes: most_bytes, most_bytes, pause_ms: 0 });
    }

    fn draw_manners(&mut self, rng: &mut Rng, incoming_bytes: u64) {
        self.send_buffer_bytes = if one_in(rng, 4) { small_buffer(rng, self.bytes) } else { None };
        self.receive_buffer_bytes = if one_in(rng, 4) { small_buffer(rng, incoming_bytes) } else { None };
        if !one_in(rng, 4) {
            return;
        }
        let mut until = 0;
        for _ in 0..rng.u8(1..4) {
            until = rng.u64(until..=incoming_bytes.max(until));
            self.readings.push(Reading { until, most_bytes: 256 << 10, pause_ms: 0 });
            let (bytes, most_bytes, pause_ms) = match rng.u8(..4) {
                // A few bytes at a time.
                0 => (rng.u64(1..8_000), rng.usize(1..8), 0),
                // A dribble.
                1 => (rng.u64(1..400_000), 4096, rng.u64(1..4)),
                // A stall.
                2 => (1, 1, rng.u64(50..500)),
                _ => (rng.u64(1..200_000), rng.usize(100..2000), 0),
            };
            until += bytes;
            self.readings.push(Reading { until, most_bytes, pause_ms });
        }
    }
}

/// Both directions while acts are added to them.
#[derive(Default)]
struct Draft {
    up: Part,
    down: Part,
    up_ended: bool,
    down_ended: bool,
}

impl Draft {
    /// Bulk and ping-pong by turns: every turn is a change of the way.
    fn draw_changes(&mut self, rng: &mut Rng) {
        for _ in 0..rng.u8(2..5) {
            let bytes = log_uniform(rng, 128 << 10, 4 << 20);
            self.bulk(rng, bytes);
            let (rounds, size) = (rng.u8(9..30), rng.u64(1..2000));
            self.ping_pong(rounds, size);
        }
        let bytes = log_uniform(rng, 128 << 10, 4 << 20);
        self.bulk(rng, bytes);
    }

    fn draw_acts(&mut self, rng: &mut Rng) {
        let is_large = one_in(rng, 3);
        let acts = rng.u8(1..8);
        let half_close_at = if one_in(rng, 2) { rng.u8(..acts) } else { acts };
        for act in 0..acts {
            if act == half_close_at {
                if rng.bool() { self.up_ended = true } else { self.down_ended = true }
            }
            match rng.u8(..8) {
                0..=2 => {
                    let bytes = log_uniform(rng, 4 << 10, if is_large { 16 << 20 } else { 512 << 10 });
                    self.bulk(rng, bytes);
                }
                3 | 4 => {
                    let most = if one_in(rng, 5) { 64 << 10 } else { 4 << 10 };
                    let (rounds, size) = (rng.u8(1..40), log_uniform(rng, 1, most));
                    self.ping_pong(rounds, size);
                }
                5 => self.trickle(rng),
                _ => self.pause(rng),
            }
        }
        if one_in(rng, 6) {
            self.answer_to_an_end(rng);
        }
    }

    fn open(&mut self, rng: &mut Rng) -> &mut Part {
        if self.down_ended || !self.up_ended && rng.bool() { &mut self.up } else { &mut self.down }
    }

    fn bulk(&mut self, rng: &mut Rng, bytes: u64) {
        let pause_ms = if one_in(rng, 8) { rng.u64(1..4) } else { 0 };
        if one_in(rng, 4) && !self.up_ended && !self.down_ended {
            self.up.write(rng, bytes, pause_ms);
            self.down.write(rng, bytes, pause_ms);
        } else {
            self.open(rng).write(rng, bytes, pause_ms);
        }
    }

    fn ping_pong(&mut self, rounds: u8, bytes: u64) {
        for _ in 0..rounds {
            if !self.up_ended {
                self.up.say(bytes);
            }
            if !self.down_ended {
                if !self.up_ended {
                    self.down.moves.push(Move::Await { bytes: self.up.bytes });
                }
                self.down.say(bytes);
                if !self.up_ended {
                    self.up.moves.push(Move::Await { bytes: self.down.bytes });
                }
            }
        }
    }

    fn trickle(&mut self, rng: &mut Rng) {
        for _ in 0..rng.u8(1..30) {
            let (bytes, pause_ms) = (rng.u64(1..1000), rng.u64(0..10));
            let part = self.open(rng);
            part.say(bytes);
            part.moves.push(Move::Pause { pause_ms });
        }
    }

    fn pause(&mut self, rng: &mut Rng) {
        let pause_ms = if one_in(rng, 20) { rng.u64(..1500) } else { rng.u64(..=50) };
        self.open(rng).moves.push(Move::Pause { pause_ms });
    }

    /// One direction ends, and only then the last of the other comes.
    fn answer_to_an_end(&mut self, rng: &mut Rng) {
        let bytes = log_uniform(rng, 1, 2 << 20);
        let part =
            if self.up_ended || !self.down_ended && rng.bool() { &mut self.down } else { &mut self.up };
        part.moves.push(Move::AwaitEnd);
        part.write(rng, bytes, 0);
    }
}

/// The less has to pass, the smaller: a window of few segments waits for a timer of TCP's now and then.
fn small_buffer(rng: &mut Rng, bytes: u64) -> Option<u32> {
    const LITTLE: u64 = 128 << 10;
    const MUCH: u64 = 1 << 20;
    match bytes {
        ..LITTLE => Some(rng.u32(1_000..16_000)),
        LITTLE..MUCH => Some(rng.u32(32_000..128_000)),
        MUCH.. => None,
    }
}

/// Of the same likelihood in every order of magnitude.
fn log_uniform(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let (low_f, high_f) = (low as f64, high as f64);
    let drawn = (low_f.ln() + rng.f64() * (high_f / low_f).ln()).exp() as u64;
    drawn.clamp(low, high)
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}
