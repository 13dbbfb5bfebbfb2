//! What is said and heard on connected attempts before one of them is the session's upstream: handshakes with proxies,
//! and what the client said to a destination whose first byte is awaited.

use std::mem;

use ringweir_flow::dial::AttemptId;
use ringweir_ring::{Chunks, Errno, Op, Unsent};
use rustix::net::{Shutdown, shutdown};

use crate::connect::{Dial, Said};
use crate::live::{AfterOutbox, Live, Receiving, Sending, token_in};
use crate::sessions::SessionId;
use crate::worker::Tools;

/// What one receive takes at most: answers of proxies and first bytes are short.
const AHEAD_BYTES: u32 = 16 * 1024;

/// Sends on an attempt's socket.
pub(crate) fn send(live: &mut Live, id: SessionId, attempt: AttemptId, bytes: &[u8], tools: &mut Tools) {
    let Some((lane, dial)) = live.dials.find(attempt) else { return };
    dial.stream.outbox.extend_from_slice(bytes);
    dial.said = Said::Some;
    live.in_flight += flush(dial, lane, id, tools);
}

/// Ends an attempt's stream once everything is sent.
pub(crate) fn end(live: &mut Live, id: SessionId, attempt: AttemptId, tools: &mut Tools) {
    let Some((lane, dial)) = live.dials.find(attempt) else { return };
    dial.stream.after_outbox = AfterOutbox::ShutDown;
    live.in_flight += flush(dial, lane, id, tools);
}

/// Receives once from an attempt's socket.
pub(crate) fn receive(live: &mut Live, id: SessionId, attempt: AttemptId, tools: &mut Tools) {
    let Some((lane, dial)) = live.dials.find(attempt) else { return };
    let stream = &mut dial.stream;
    debug_assert_eq!(stream.receiving, Receiving::Idle);
    stream.receiving = Receiving::InFlight;
    tools.ring.receive_when_readable(token_in(Op::Receive, lane, id), stream.fd(), AHEAD_BYTES);
    dial.in_flight += 1;
    live.in_flight += 1;
}

/// A receive has ended.
pub(crate) fn handle_received(
    live: &mut Live,
    id: SessionId,
    lane: u8,
    result: Result<Chunks, Errno>,
    tools: &mut Tools,
) {
    let Some(dial) = live.dials.handle_answered(lane) else {
        if let Ok(chunks) = result {
            tools.ring.recycle(chunks);
        }
        return;
    };
    let attempt = dial.attempt;
    dial.stream.receiving = Receiving::Idle;
    match result {
        Err(Errno::AGAIN) => receive(live, id, attempt, tools),
        Err(Errno::NOBUFS) => {
            dial.stream.receiving = Receiving::Starved;
            tools.starved.push_back((id, lane));
        }
        Err(_) => live.session.handle_failed_ahead(attempt, tools.now),
        Ok(chunks) => {
            if chunks.is_empty() {
                live.session.handle_ended_ahead(attempt, tools.now);
            } else {
                let mut bytes = tools.ring.spare_bytes();
                chunks.copy_to(&tools.ring, &mut bytes);
                live.session.handle_received_ahead(attempt, &bytes, tools.now);
            }
            tools.ring.recycle(chunks);
        }
    }
}

/// The pool has a buffer again: whether it was for this.
pub(crate) fn feed(live: &mut Live, id: SessionId, lane: u8, tools: &mut Tools) -> bool {
    let Some(dial) = live.dials.slot(lane) else { return false };
    let is_starved = dial.stream.receiving == Receiving::Starved;
    if is_starved {
        // Not once it is readable: those are tried only after all others of a turn.
        dial.stream.receiving = Receiving::InFlight;
        tools.ring.receive(token_in(Op::Receive, lane, id), dial.stream.fd(), AHEAD_BYTES);
        dial.in_flight += 1;
        live.in_flight += 1;
    }
    is_starved
}

/// A send has ended. When it has failed, so does the receive that is under way or comes next.
pub(crate) fn handle_sent(
    live: &mut Live,
    id: SessionId,
    lane: u8,
    result: Result<usize, Errno>,
    rest: Option<Unsent>,
    tools: &mut Tools,
) {
    let Some(dial) = live.dials.handle_answered(lane) else { return };
    let stream = &mut dial.stream;
    stream.sending = Sending::Nothing;
    if result.is_err_and(|errno| errno != Errno::AGAIN) {
        stream.outbox.clear();
        stream.after_outbox = AfterOutbox::Nothing;
        return;
    }
    if let Some(Unsent::Owned { mut bytes, offset }) = rest {
        bytes.drain(..offset);
        bytes.append(&mut stream.outbox);
        stream.outbox = bytes;
    }
    live.in_flight += flush(dial, lane, id, tools);
}

/// Gives up what is under way on an attempt.
pub(crate) fn cancel(dial: &Dial, lane: u8, id: SessionId, tools: &mut Tools) {
    let stream = &dial.stream;
    if stream.receiving == Receiving::InFlight {
        tools.ring.cancel(token_in(Op::Receive, lane, id));
    }
    if stream.sending == Sending::Outbox {
        tools.ring.cancel(token_in(Op::Send, lane, id));
    }
}

/// Starts a send if there is something to be sent; how many operations were started.
fn flush(dial: &mut Dial, lane: u8, id: SessionId, tools: &mut Tools) -> u32 {
    let stream = &mut dial.stream;
    if stream.sending != Sending::Nothing {
        return 0;
    }
    if !stream.outbox.is_empty() {
        let bytes = mem::take(&mut stream.outbox);
        stream.sending = Sending::Outbox;
        tools.ring.send_owned(token_in(Op::Send, lane, id), stream.fd(), bytes, 0);
        dial.in_flight += 1;
        return 1;
    }
    if mem::replace(&mut stream.after_outbox, AfterOutbox::Nothing) == AfterOutbox::ShutDown {
        // It fails only when the connection is gone, which the receive reports.
        let _ = shutdown(stream.fd(), Shutdown::Write);
        dial.said = Said::All;
    }
    0
}
