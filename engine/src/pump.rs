//! Moves the bytes of open sessions: one-shot receives into buffers of the shared pool, and sends that give them
//! back; for streams, the pipes of `splice.rs`. A session that waits holds neither.

use std::os::fd::BorrowedFd;

use ringweir_flow::pump::{Direction, Side, Step};
use ringweir_flow::way::Way;
use ringweir_ring::{Chunks, Errno, Op, Unsent};
use rustix::net::{Shutdown, getpeername, shutdown};

use crate::live::{Held, Live, Receiving, Sending, lane_of, token};
use crate::sessions::SessionId;
use crate::worker::Tools;
use crate::{sealed, splice};

/// What one receive of a streaming source takes at most, and so what a stalled reader costs at most. Measured with 4
/// streams against nginx in the same run: 128 KiB 0.71, 256 KiB 0.52, 1 MiB 0.27 of its CPU a byte.
const STREAM_BYTES: u32 = 256 * 1024;

/// What one receive of any other source takes at most: one buffer of the pool.
pub(crate) const CALM_BYTES: u32 = 16 * 1024;

/// How the next receive is to be asked for, as the last one tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The last receive filled less than a buffer and left nothing: the next will wait.
    Calm,
    /// More may be there already.
    Pressing,
    /// The last receive filled a buffer: several at a time.
    Streaming,
}

impl Pace {
    pub(crate) fn after(bytes: usize, pending: bool) -> Pace {
        if bytes >= CALM_BYTES as usize {
            Pace::Streaming
        } else if pending {
            Pace::Pressing
        } else {
            Pace::Calm
        }
    }
}

/// Starts whatever the pump wants in either direction.
pub(crate) fn drive(live: &mut Live, id: SessionId, tools: &mut Tools) {
    for direction in Direction::BOTH {
        while is_flushed(live, direction.sink())
            && let Some(step) = live.session.poll_step(direction)
        {
            match step {
                Step::Receive(Way::Buffer) => {
                    drop_held(live, direction.source(), tools);
                    receive(live, id, direction.source(), tools);
                }
                Step::Receive(Way::Pipe { max_bytes }) => {
                    let then = Receiving::Awaited { max_bytes };
                    splice::await_readable(live, id, direction.source(), then, tools);
                }
                Step::Send(bytes) => send(live, id, direction, bytes, tools),
                Step::ShutDown => {
                    if let Some(sink) = live.stream(direction.sink()) {
                        // It fails only when the connection is gone, which the next operation on it reports.
                        let _ = shutdown(sink.fd(), Shutdown::Write);
                    }
                }
            }
        }
    }
}

/// Starts a receive from one side.
pub(crate) fn receive(live: &mut Live, id: SessionId, side: Side, tools: &mut Tools) {
    let Some(stream) = live.stream(side) else { return };
    if stream.receiving == Receiving::Failed {
        stream.receiving = Receiving::Idle;
        return live.session.handle_receive_failed(Direction::from(side));
    }
    debug_assert_eq!(stream.receiving, Receiving::Idle);
    if stream.pace == Pace::Streaming && live.session.is_sealed() && !live.session.is_paced() {
        splice::await_readable(live, id, side, Receiving::AwaitedSealed, tools);
    } else if tools.starved.is_empty() {
        begin_receive(live, id, side, tools);
    } else if let Some(stream) = live.stream(side) {
        // Others came first.
        stream.receiving = Receiving::Starved;
        tools.starved.push_back((id, lane_of(side)));
    }
}

/// Starts a receive into buffers of the pool.
pub(crate) fn begin_receive(live: &mut Live, id: SessionId, side: Side, tools: &mut Tools) {
    let is_paced = live.session.is_paced();
    let Some(stream) = live.stream(side) else { return };
    stream.receiving = Receiving::InFlight;
    let token = token(Op::Receive, side, id);
    match stream.pace {
        Pace::Calm => tools.ring.receive_when_readable(token, stream.fd(), CALM_BYTES),
        Pace::Streaming if !is_paced => tools.ring.receive(token, stream.fd(), STREAM_BYTES),
        Pace::Pressing | Pace::Streaming => tools.ring.receive(token, stream.fd(), CALM_BYTES),
    }
    live.in_flight += 1;
}

/// A receive has ended.
pub(crate) fn handle_received(
    live: &mut Live,
    id: SessionId,
    side: Side,
    result: Result<Chunks, Errno>,
    pending: bool,
    tools: &mut Tools,
) {
    let (is_closing, is_pumping) = (live.closing.is_some(), live.session.is_pumping());
    let is_sealed = live.session.is_sealed();
    let Some(stream) = live.stream(side) else { return };
    stream.receiving = Receiving::Idle;
    if is_closing {
        if let Ok(chunks) = result {
            tools.ring.recycle(chunks);
        }
        return;
    }
    match result {
        // As of sends: a thread of the kernel's does not wait.
        Err(Errno::AGAIN) => {
            stream.pace = Pace::Calm;
            receive(live, id, side, tools);
        }
        Err(Errno::NOBUFS) => {
            if stream.pace == Pace::Calm {
                // One that waits until its source is readable is tried only after all others of its turn.
                stream.pace = Pace::Pressing;
            }
            stream.receiving = Receiving::Starved;
            tools.starved.push_back((id, lane_of(side)));
        }
        Ok(chunks) if is_pumping => {
            let direction = Direction::from(side);
            if chunks.is_empty() {
                tools.ring.recycle(chunks);
                handle_ended(live, direction, tools);
            } else {
                let bytes = chunks.len();
                stream.pace = Pace::after(bytes, pending);
                if is_sealed {
                    sealed::handle_received(live, direction, chunks, tools);
                } else {
                    stream.held = Held::Chunks(chunks);
                    live.session.handle_received(direction, bytes, tools.now);
                }
            }
        }
        Err(_) if is_pumping => live.session.handle_receive_failed(Direction::from(side)),
        Ok(chunks) => {
            if chunks.is_empty() {
                live.session.handle_client_ended();
            }
            for slice in chunks.slices(&tools.ring) {
                live.session.handle_bytes(slice, tools.now);
            }
            tools.ring.recycle(chunks);
        }
        Err(_) => live.session.handle_client_failed(),
    }
}

/// Nothing more comes from a source, or so it reads: a send that was cut short by a reset has taken the error with it,
/// and its result does not tell.
pub(crate) fn handle_ended(live: &mut Live, direction: Direction, tools: &Tools) {
    let Some(source) = live.stream(direction.source()) else { return };
    if source.sending != Sending::Nothing && has_no_peer(source.fd()) {
        live.session.handle_receive_failed(direction);
    } else {
        live.session.handle_ended(direction, tools.now);
    }
}

/// Whether a TCP connection is over in both directions: reset, where this side has not ended its own.
fn has_no_peer(socket: BorrowedFd<'_>) -> bool {
    getpeername(socket).is_err_and(|errno| errno == Errno::NOTCONN)
}

/// A send has ended.
///
/// It waits until all is taken, and yet may end early: cut short by an error, which the next send meets, or because the
/// kernel handed it to a thread of its own, which does not wait for room on a non-blocking socket.
pub(crate) fn handle_sent(
    live: &mut Live,
    id: SessionId,
    side: Side,
    result: Result<usize, Errno>,
    rest: Option<Unsent>,
    tools: &mut Tools,
) {
    let is_closing = live.closing.is_some();
    let Some(stream) = live.stream(side) else { return };
    let was = std::mem::replace(&mut stream.sending, Sending::Nothing);
    let is_broken = result.is_err_and(|errno| errno != Errno::AGAIN);
    if is_closing || is_broken {
        if let Some(Unsent::Chunks(chunks)) = rest {
            tools.ring.recycle(chunks);
        }
        if !is_closing {
            handle_broken(live, side);
        }
        return;
    }
    match rest {
        None => {}
        Some(Unsent::Owned { mut bytes, offset }) => {
            bytes.drain(..offset);
            if was == Sending::Pumped {
                if let Some(source) = live.stream(side.other()) {
                    source.held = Held::Bytes(bytes);
                }
            } else {
                bytes.append(&mut stream.outbox);
                stream.outbox = bytes;
            }
        }
        Some(Unsent::Chunks(chunks)) => {
            if let Some(source) = live.stream(side.other()) {
                source.held = Held::Chunks(chunks);
            }
        }
    }
    match result {
        Ok(bytes) if was == Sending::Pumped => {
            live.session.handle_sent(Direction::from(side.other()), bytes, tools.now);
        }
        Ok(_) => {}
        Err(_) if was == Sending::Pumped => splice::await_sink(live, id, side, Sending::PumpedLater, tools),
        Err(_) => splice::await_sink(live, id, side, Sending::OutboxLater, tools),
    }
}

fn handle_broken(live: &mut Live, side: Side) {
    if live.session.is_pumping() {
        live.session.handle_send_failed(Direction::from(side.other()));
    } else {
        live.session.handle_client_failed();
    }
}

/// Sends what was received.
pub(crate) fn send(live: &mut Live, id: SessionId, direction: Direction, bytes: usize, tools: &mut Tools) {
    let Some(source) = live.stream(direction.source()) else { return };
    let chunks = match std::mem::replace(&mut source.held, Held::Nothing) {
        Held::Chunks(chunks) => chunks,
        Held::Pipe(pipe) => {
            source.held = Held::Pipe(pipe);
            return splice::drain(live, id, direction, bytes, tools);
        }
        Held::Bytes(mut owned) => {
            // What is behind is not to be forwarded.
            owned.truncate(bytes);
            return send_owned(live, id, direction, owned, tools);
        }
        Held::Nothing => unreachable!("a send follows what was received"),
    };
    let Some(sink) = live.stream(direction.sink()) else { return };
    if chunks.len() > bytes {
        // The rest is not to be forwarded: the end of a request whose length is known. Too rare for a path of its
        // own, it goes by the outbox.
        let before = sink.outbox.len();
        chunks.copy_to(&tools.ring, &mut sink.outbox);
        sink.outbox.truncate(before + bytes);
        tools.ring.recycle(chunks);
        live.session.handle_sent(direction, bytes, tools.now);
        return;
    }
    sink.sending = Sending::Pumped;
    tools.ring.send(token(Op::Send, direction.sink(), id), sink.fd(), chunks);
    live.in_flight += 1;
}

/// Sends what lies in memory of the session's own.
fn send_owned(live: &mut Live, id: SessionId, direction: Direction, bytes: Vec<u8>, tools: &mut Tools) {
    let Some(sink) = live.stream(direction.sink()) else { return };
    sink.sending = Sending::Pumped;
    tools.ring.send_owned(token(Op::Send, direction.sink(), id), sink.fd(), bytes, 0);
    live.in_flight += 1;
}

fn is_flushed(live: &mut Live, side: Side) -> bool {
    live.stream(side).is_none_or(|stream| stream.is_flushed())
}

/// What was received and is not to be forwarded goes back to the pool.
pub(crate) fn drop_held(live: &mut Live, side: Side, tools: &mut Tools) {
    if let Some(stream) = live.stream(side) {
        stream.drop_held(tools);
    }
}
