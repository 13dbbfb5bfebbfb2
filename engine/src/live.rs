//! A session as the worker holds it: flow's part, the sockets, and what is under way on them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringweir_flow::pump::{Closing, Side};
use ringweir_flow::session::Session;
use ringweir_flow::time::Instant;
use ringweir_pipe::Pipe;
use ringweir_ring::{Chunks, Op, Token};

use crate::connect::Dials;
use crate::pump::Pace;
use crate::sessions::SessionId;
use crate::timers::TimerId;
use crate::worker::Tools;

/// A session and its sockets.
pub(crate) struct Live {
    pub(crate) session: Session,
    pub(crate) client: Stream,
    pub(crate) upstream: Option<Stream>,
    pub(crate) dials: Dials,
    /// Operations of this session that the ring has not answered yet. Its slot is not given to another before.
    pub(crate) in_flight: u32,
    /// The timer that is set for it, and for when.
    pub(crate) armed: Option<(Instant, TimerId)>,
    pub(crate) closing: Option<Closing>,
}

/// One socket of a session.
pub(crate) struct Stream {
    pub(crate) socket: OwnedFd,
    pub(crate) transport: Transport,
    pub(crate) receiving: Receiving,
    pub(crate) pace: Pace,
    /// Received from here and not yet sent to the other side.
    pub(crate) held: Held,
    pub(crate) sending: Sending,
    /// What the session commanded to be sent here and is not yet under way.
    pub(crate) outbox: Vec<u8>,
    pub(crate) after_outbox: AfterOutbox,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiving {
    Idle,
    InFlight,
    /// Polled for; then up to `max_bytes` go into a pipe.
    Awaited {
        max_bytes: u64,
    },
    /// Polled for; then it is received into memory of the worker's, and translated.
    AwaitedSealed,
    /// Polled for, because the pool is empty; then it is received into memory of the session's own.
    AwaitedLean,
    /// The last receive failed, behind bytes that are to be delivered first.
    Failed,
    /// The pool had no buffer; waits in the worker's queue for one.
    Starved,
}

/// What was received and is not sent yet.
pub(crate) enum Held {
    Nothing,
    Chunks(Chunks),
    /// Translated: one side is sealed.
    Bytes(Vec<u8>),
    Pipe(Pipe),
}

/// What is being sent to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    Nothing,
    /// Bytes of the session's own.
    Outbox,
    /// Bytes of the other side.
    Pumped,
    /// Bytes of the other side wait until the socket is polled to have room.
    PumpedLater,
    /// Bytes of the session's own wait so.
    OutboxLater,
}

/// What is to be done once the outbox is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterOutbox {
    Nothing,
    ShutDown,
}

impl Live {
    pub(crate) fn new(session: Session, socket: OwnedFd, transport: Transport) -> Live {
        Live {
            session,
            client: Stream::new(socket, transport),
            upstream: None,
            dials: Dials::default(),
            in_flight: 0,
            armed: None,
            closing: None,
        }
    }

    /// The side that an operation in a lane is of; none for that of an attempt.
    pub(crate) fn side_of(&self, lane: u8) -> Option<Side> {
        match lane {
            0 => Some(Side::Client),
            1 => Some(Side::Upstream),
            lane => (self.dials.adopted == Some(lane)).then_some(Side::Upstream),
        }
    }

    pub(crate) fn stream(&mut self, side: Side) -> Option<&mut Stream> {
        match side {
            Side::Client => Some(&mut self.client),
            Side::Upstream => self.upstream.as_mut(),
        }
    }
}

impl Stream {
    pub(crate) fn new(socket: OwnedFd, transport: Transport) -> Stream {
        Stream {
            socket,
            transport,
            receiving: Receiving::Idle,
            // Whoever connects is about to speak, or so is whoever was connected to.
            pace: Pace::Pressing,
            held: Held::Nothing,
            sending: Sending::Nothing,
            outbox: Vec::new(),
            after_outbox: AfterOutbox::Nothing,
        }
    }

    /// Whether nothing that the session commanded to be sent is unsent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && self.sending != Sending::Outbox
    }

    /// What was received and is not to be forwarded, or is forwarded in full, goes back to where it came from.
    pub(crate) fn drop_held(&mut self, tools: &mut Tools) {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => {}
            Held::Chunks(chunks) => tools.ring.recycle(chunks),
            Held::Bytes(bytes) => tools.ring.reuse_bytes(bytes),
            Held::Pipe(pipe) => tools.pipes.give_back(pipe),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The token of an operation on one side of a session.
pub(crate) fn token(op: Op, side: Side, id: SessionId) -> Token {
    token_in(op, lane_of(side), id)
}

/// The lane of a side. Lanes from 2 on are those of attempts.
pub(crate) const fn lane_of(side: Side) -> u8 {
    match side {
        Side::Client => 0,
        Side::Upstream => 1,
    }
}

/// The token of an operation in a lane of a session.
pub(crate) fn token_in(op: Op, lane: u8, id: SessionId) -> Token {
    // The low bits of the generation are enough: a slot's tenant changes only when nothing of it is in flight.
    Token::new(op, lane, id.slot, (id.generation % u32::from(ringweir_ring::MAX_GENERATIONS)) as u16)
}
