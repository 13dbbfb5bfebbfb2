//! A connection as the driver sees it, and the scripted peer at its far end.
//!
//! What a peer sends is known beforehand, so nothing is queued here: an offset tells how much of it was written, and
//! another how much the driver has taken. Bytes come from one long random table, so that no two pieces are alike.

use std::fmt;
use std::sync::LazyLock;

use ringweir_flow::time::Instant;

/// Random bytes; a stream is a stretch of them.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = fastrand::Rng::with_seed(0x7e1e);
    std::iter::repeat_with(|| rng.u8(..)).take(2 * MAX_PAYLOAD_BYTES).collect()
});

/// The longest payload: more than a refused client may send ahead of its end.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 512 * 1024;

/// A stretch of `len` bytes that is unlike any other.
pub(crate) fn pattern(start: usize, len: usize) -> &'static [u8] {
    &PATTERN[start..start + len]
}

/// What a peer writes.
pub(crate) enum Out {
    /// These bytes.
    Script(Vec<u8>),
    /// A stretch of the pattern.
    Pattern(&'static [u8]),
    /// What it has received.
    Echo,
}

/// How a peer behaves towards its end. Offsets count bytes that it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Ends its stream when it has written everything.
    Finish,
    /// Ends its stream there.
    FinishAt(usize),
    /// Resets there.
    ResetAt(usize),
    /// Resets after it has read that much.
    ResetOnceRead(usize),
    /// Closes its socket there, read or not.
    CloseAt(usize),
    /// Falls silent there for ever.
    StallAt(usize),
    /// Writes everything, and ends its stream after the other end has.
    Follow,
}

/// What the peer's end has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Far {
    Open,
    /// Its stream has ended; it still reads.
    Ended,
    /// Its socket is closed after its stream ended in order.
    Closed,
    /// It has reset the connection.
    Reset,
}

/// Whether the connection is broken, and whether the driver's kernel has said so yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    No,
    Pending,
    Told,
}

/// What a receive yields.
pub(crate) enum Received {
    Bytes(Vec<u8>),
    End,
    Failed,
}

pub(crate) struct Conn {
    out: Out,
    manner: Manner,
    far: Far,
    broken: Broken,
    /// Written by the peer, and taken by the driver.
    pub(crate) written: usize,
    pub(crate) taken: usize,
    /// Sent by the driver, and read by the peer.
    pub(crate) sent: usize,
    pub(crate) read: usize,
    /// Whether the driver has shut down its writing half.
    pub(crate) is_shut_down: bool,
    pub(crate) heard_end: bool,
    /// (offset, read): nothing is written beyond the offset before that much was read.
    gates: Vec<(usize, usize)>,
    read_limit: usize,
    window: usize,
    grain: usize,
    not_before: Instant,
    received: Vec<u8>,
}

/// A step that a peer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerStep {
    Write,
    Read,
    End,
}

impl PeerStep {
    pub(crate) const ALL: [PeerStep; 3] = [PeerStep::Write, PeerStep::Read, PeerStep::End];
}

impl Conn {
    /// `grain` bounds each piece that moves.
    pub(crate) fn new(out: Out, manner: Manner, gates: Vec<(usize, usize)>, grain: usize) -> Conn {
        Conn {
            out,
            manner,
            far: Far::Open,
            broken: Broken::No,
            written: 0,
            taken: 0,
            sent: 0,
            read: 0,
            is_shut_down: false,
            heard_end: false,
            gates,
            read_limit: usize::MAX,
            window: grain,
            grain,
            not_before: Instant::ZERO,
            received: Vec::new(),
        }
    }

    /// The peer reads no more than `read_limit` bytes, and `window` bytes may be on their way.
    pub(crate) fn limited(mut self, read_limit: usize, window: usize) -> Conn {
        self.read_limit = read_limit;
        self.window = window.max(1);
        self
    }

    /// Everything the peer has to write, as far as it is known.
    pub(crate) fn out(&self) -> &[u8] {
        match &self.out {
            Out::Script(bytes) => bytes,
            Out::Pattern(bytes) => bytes,
            Out::Echo => &self.received,
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken != Broken::No
    }

    /// Whether close(2) would tell the peer of an orderly end, or it has been told already: a socket that is closed
    /// with bytes unread resets.
    pub(crate) fn may_be_closed(&self) -> bool {
        self.is_shut_down || (self.heard_end && self.taken == self.written)
    }

    /// Whether the peer has ended its stream in order.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.far, Far::Ended | Far::Closed)
    }
}

// What the driver does with it.
impl Conn {
    pub(crate) fn can_receive(&self) -> bool {
        self.taken < self.written || self.has_ended() || self.is_broken()
    }

    /// Linux hands out what was received before it tells of a reset, and an end before a reset behind it.
    pub(crate) fn receive(&mut self, max: usize, rng: &mut fastrand::Rng) -> Received {
        if self.taken < self.written {
            let bytes = piece(rng, (self.written - self.taken).min(max));
            let range = self.taken..self.taken + bytes;
            self.taken += bytes;
            return Received::Bytes(self.out()[range].to_vec());
        }
        if !self.has_ended() && self.broken == Broken::Pending {
            self.broken = Broken::Told;
            return Received::Failed;
        }
        self.heard_end = true;
        Received::End
    }

    pub(crate) fn can_send(&self) -> bool {
        self.is_broken() || self.far == Far::Closed || self.sent - self.read < self.window
    }

    /// How many bytes the kernel takes; `None` when the connection is broken.
    pub(crate) fn send(&mut self, bytes: usize, rng: &mut fastrand::Rng) -> Option<usize> {
        if self.is_broken() {
            self.broken = Broken::Told;
            return None;
        }
        if self.far == Far::Closed {
            // Nobody is there any more, which its kernel will say.
            self.broken = Broken::Pending;
            return Some(piece(rng, bytes));
        }
        Some(piece(rng, bytes.min(self.window - (self.sent - self.read))))
    }

    /// The bytes that [`Conn::send`] took.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) {
        self.sent += bytes.len();
        match self.out {
            Out::Echo => self.received.extend_from_slice(bytes),
            Out::Script(_) | Out::Pattern(_) => {}
        }
    }
}

// What the peer does.
impl Conn {
    /// Whether the peer would take this step now, were it not resting.
    fn wants(&self, step: PeerStep) -> bool {
        let is_here = matches!(self.far, Far::Open | Far::Ended);
        match step {
            PeerStep::Write => {
                self.far == Far::Open
                    && !self.is_broken()
                    && self.written < self.write_limit()
                    && self.written - self.taken < self.window
            }
            PeerStep::Read => is_here && self.read < self.sent.min(self.read_limit),
            PeerStep::End => self.is_due(),
        }
    }

    pub(crate) fn may(&self, step: PeerStep, now: Instant) -> bool {
        now >= self.not_before && self.wants(step)
    }

    /// When a peer that rests goes on.
    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        let is_resting = self.not_before > now && PeerStep::ALL.iter().any(|step| self.wants(*step));
        is_resting.then_some(self.not_before)
    }

    pub(crate) fn take(&mut self, step: PeerStep, rng: &mut fastrand::Rng) {
        match step {
            PeerStep::Write => {
                let room = (self.write_limit() - self.written).min(self.window - (self.written - self.taken));
                self.written += piece(rng, room.min(self.grain));
            }
            PeerStep::Read => {
                let there = self.sent.min(self.read_limit) - self.read;
                self.read += piece(rng, there.min(self.grain));
            }
            PeerStep::End => self.end(),
        }
    }

    pub(crate) fn rest_until(&mut self, moment: Instant) {
        self.not_before = moment;
    }

    fn write_limit(&self) -> usize {
        let goal = self.out().len();
        let limit = match self.manner {
            Manner::Finish | Manner::Follow | Manner::ResetOnceRead(_) => goal,
            Manner::FinishAt(at) | Manner::ResetAt(at) | Manner::CloseAt(at) | Manner::StallAt(at) => {
                at.min(goal)
            }
        };
        match self.gates.iter().find(|(_, read)| self.read < *read) {
            Some((offset, _)) => limit.min(*offset),
            None => limit,
        }
    }

    fn is_due(&self) -> bool {
        if self.is_broken() || matches!(self.far, Far::Closed | Far::Reset) {
            return false;
        }
        let is_open = self.far == Far::Open;
        match self.manner {
            Manner::Finish => is_open && self.written == self.out().len(),
            Manner::FinishAt(at) => is_open && self.written >= at.min(self.out().len()),
            Manner::ResetAt(at) | Manner::CloseAt(at) => self.written >= at,
            Manner::ResetOnceRead(bytes) => self.read >= bytes,
            Manner::StallAt(_) => false,
            Manner::Follow => {
                is_open && self.is_shut_down && self.read == self.sent && self.written == self.write_limit()
            }
        }
    }

    fn end(&mut self) {
        match self.manner {
            Manner::Finish | Manner::FinishAt(_) | Manner::Follow => self.far = Far::Ended,
            Manner::CloseAt(_) if self.read == self.sent => self.far = Far::Closed,
            // A socket that is closed with bytes unread resets its connection.
            Manner::CloseAt(_) | Manner::ResetAt(_) | Manner::ResetOnceRead(_) => {
                self.far = Far::Reset;
                self.broken = Broken::Pending;
            }
            Manner::StallAt(_) => {}
        }
    }
}

impl fmt::Debug for Conn {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conn { manner, far, broken, written, taken, sent, read, is_shut_down, .. } = self;
        write!(
            f,
            "{manner:?} {far:?} broken {broken:?}, {taken} of {written} taken, {read} of {sent} read, "
        )?;
        write!(f, "has {}, shut down {is_shut_down}", self.out().len())
    }
}

/// Mostly everything, else any part.
fn piece(rng: &mut fastrand::Rng, most: usize) -> usize {
    match rng.u8(..4) {
        0 => rng.usize(1..=most),
        1 => rng.usize(1..=most.min(16)),
        _ => most,
    }
}
