//! Moves the bytes of streams without copying them: from the socket into a pipe and from the pipe into the socket, by
//! splice(2), as soon as the ring says that the source has something.
//!
//! `IORING_OP_SPLICE` is of no use here: the kernel hands each to a thread of its own (`REQ_F_FORCE_ASYNC`). So the ring
//! waits, and the worker splices. The pipe is borrowed for as long as bytes are in it.

use ringweir_flow::pump::{Direction, Side};
use ringweir_flow::way::Refusal;
use ringweir_pipe::is_unspliceable;
use ringweir_ring::{Errno, Op, PollEvents, Token};

use crate::live::{Held, Live, Receiving, Sending, lane_of, token_in};
use crate::sessions::SessionId;
use crate::worker::Tools;
use crate::{lean, pump, sealed};

/// The lanes of polls for room are those of polls for bytes, moved up by this much.
const WRITABLE: u8 = 2;

/// Waits until a side has something; `then` says where it goes.
pub(crate) fn await_readable(live: &mut Live, id: SessionId, side: Side, then: Receiving, tools: &mut Tools) {
    let Some(source) = live.stream(side) else { return };
    source.receiving = then;
    tools.ring.poll(readable(side, id), source.fd(), PollEvents::IN);
    live.in_flight += 1;
}

/// Sends what is in the pipe: all that the sink takes now, and the rest when it takes more.
pub(crate) fn drain(live: &mut Live, id: SessionId, direction: Direction, bytes: usize, tools: &mut Tools) {
    let (source, sink) = match direction {
        Direction::Up => (&mut live.client, live.upstream.as_mut()),
        Direction::Down => match live.upstream.as_mut() {
            Some(upstream) => (upstream, Some(&mut live.client)),
            None => return,
        },
    };
    let (Some(sink), Held::Pipe(pipe)) = (sink, &mut source.held) else {
        unreachable!("what was spliced in is spliced out, and both sides are open")
    };
    match pipe.drain(sink.fd(), bytes) {
        Ok(sent @ 1..) => {
            if pipe.is_empty() {
                source.drop_held(tools);
            }
            live.session.handle_sent(direction, sent, tools.now);
        }
        Err(Errno::AGAIN) => await_sink(live, id, direction.sink(), Sending::PumpedLater, tools),
        Ok(0) | Err(_) => {
            source.drop_held(tools);
            live.session.handle_send_failed(direction);
        }
    }
}

/// Waits until a side has room for `what`.
pub(crate) fn await_sink(live: &mut Live, id: SessionId, side: Side, what: Sending, tools: &mut Tools) {
    let Some(sink) = live.stream(side) else { return };
    sink.sending = what;
    tools.ring.poll(writable(side, id), sink.fd(), PollEvents::OUT);
    live.in_flight += 1;
}

/// A poll has ended: there is something to be moved, or an error to be met, or the session closes.
pub(crate) fn handle_polled(live: &mut Live, id: SessionId, lane: u8, tools: &mut Tools) {
    let side = if lane % WRITABLE == lane_of(Side::Client) { Side::Client } else { Side::Upstream };
    let is_closing = live.closing.is_some();
    let Some(stream) = live.stream(side) else { return };
    if lane >= WRITABLE {
        // Bytes of the session's own are sent by whoever drives it.
        let was = std::mem::replace(&mut stream.sending, Sending::Nothing);
        if !is_closing && was == Sending::PumpedLater {
            resume(live, id, Direction::from(side.other()), tools);
        }
        return;
    }
    let was = std::mem::replace(&mut stream.receiving, Receiving::Idle);
    if is_closing {
        return;
    }
    match was {
        Receiving::Awaited { max_bytes } => fill(live, id, Direction::from(side), max_bytes, tools),
        Receiving::AwaitedSealed => sealed::receive(live, id, side, tools),
        Receiving::AwaitedLean => lean::receive(live, id, side, tools),
        Receiving::Idle | Receiving::InFlight | Receiving::Starved | Receiving::Failed => {
            unreachable!("a poll for bytes follows the wish for them")
        }
    }
}

/// Gives up what is polled for; each poll is then answered once more.
pub(crate) fn cancel(live: &mut Live, id: SessionId, side: Side, tools: &mut Tools) {
    let Some(stream) = live.stream(side) else { return };
    match stream.receiving {
        Receiving::Awaited { .. } | Receiving::AwaitedSealed | Receiving::AwaitedLean => {
            tools.ring.cancel(readable(side, id));
        }
        Receiving::Idle | Receiving::InFlight | Receiving::Starved | Receiving::Failed => {}
    }
    match stream.sending {
        Sending::PumpedLater | Sending::OutboxLater => tools.ring.cancel(writable(side, id)),
        Sending::Nothing | Sending::Outbox | Sending::Pumped => {}
    }
}

fn fill(live: &mut Live, id: SessionId, direction: Direction, max_bytes: u64, tools: &mut Tools) {
    let Some(source) = live.stream(direction.source()) else { return };
    let mut pipe = match tools.pipes.take() {
        Ok(pipe) => pipe,
        Err(refusal) => {
            live.session.handle_pipe_refused(direction, refusal);
            return;
        }
    };
    let filled = pipe.fill(source.fd(), max_bytes);
    if let Ok(bytes @ 1..) = filled {
        source.held = Held::Pipe(pipe);
        live.session.handle_received(direction, bytes, tools.now);
        return;
    }
    tools.pipes.give_back(pipe);
    match filled {
        Ok(_) => pump::handle_ended(live, direction, tools),
        Err(Errno::AGAIN) => {
            await_readable(live, id, direction.source(), Receiving::Awaited { max_bytes }, tools)
        }
        Err(error) if is_unspliceable(error) => {
            live.session.handle_pipe_refused(direction, Refusal::Unsupported);
        }
        Err(_) => live.session.handle_receive_failed(direction),
    }
}

/// The sink has room again.
fn resume(live: &mut Live, id: SessionId, direction: Direction, tools: &mut Tools) {
    let held = match live.stream(direction.source()).map(|source| &source.held) {
        Some(Held::Pipe(pipe)) => pipe.len(),
        Some(Held::Chunks(chunks)) => chunks.len(),
        Some(Held::Bytes(bytes)) => bytes.len(),
        Some(Held::Nothing) | None => 0,
    };
    if held > 0 {
        pump::send(live, id, direction, held, tools);
    }
}

fn readable(side: Side, id: SessionId) -> Token {
    token_in(Op::Poll, lane_of(side), id)
}

fn writable(side: Side, id: SessionId) -> Token {
    token_in(Op::Poll, WRITABLE + lane_of(side), id)
}
