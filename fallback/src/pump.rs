//! Moves the bytes of open sessions: a receive into a buffer of the worker's, and the sends that empty it; for streams,
//! the pipes of `splice.rs`. A session that waits for bytes holds neither.

use std::task::{Context, Poll};

use ringweir_flow::pump::{Direction, Step};
use ringweir_flow::way::Way;

use crate::buffers::{Buffer, Size};
use crate::live::{Live, Turn};
use crate::platform::Pipe;
use crate::splice;

/// How many bytes a direction may move before the other sessions get their turn.
const TURN_BYTES: usize = 256 * 1024;

/// What a receive or send counts at least, for it costs that even if it moves less.
const STEP_BYTES: usize = 32 * 1024;

/// How many full receives of a source that is sealed are translated before they are sent: larger sends are cheaper by
/// what each costs whoever is woken by it.
const SEALED_RECEIVES: usize = 4;

/// One direction of a session.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) job: Job,
    pub(crate) held: Option<Held>,
    /// What the next receive takes.
    size: Size,
    /// The last receive failed, behind bytes that are to be delivered first.
    has_failed: bool,
}

/// The step that the session gave out last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Nothing,
    Receiving,
    /// So much may go into a pipe.
    Filling(u64),
    /// So many of the held bytes are to be sent.
    Sending(usize),
}

/// Received and not sent.
#[derive(Debug)]
pub(crate) enum Held {
    Buffer {
        buffer: Buffer,
        sent: usize,
        end: usize,
    },
    /// Translated: one side is sealed.
    Bytes {
        bytes: Vec<u8>,
        sent: usize,
    },
    Pipe(Pipe),
}

impl Default for Lane {
    fn default() -> Lane {
        Lane { job: Job::Nothing, held: None, size: Size::Small, has_failed: false }
    }
}

/// Goes on in a direction until it is blocked or over, or has had its share of the worker's time.
pub(crate) fn run(live: &mut Live, direction: Direction, cx: &mut Context<'_>) -> Turn {
    let mut left = TURN_BYTES;
    while left > 0 {
        let sink = live.end(direction.sink());
        if sink.is_some_and(|sink| !sink.outbox.is_empty()) {
            return Turn::Blocked;
        }
        let pass = match live.lane(direction).job {
            Job::Nothing => begin(live, direction),
            Job::Receiving => receive(live, direction, cx),
            Job::Filling(max_bytes) => splice::fill(live, direction, max_bytes, cx),
            Job::Sending(bytes) => send(live, direction, bytes, cx),
        };
        match pass {
            Pass::Blocked => return Turn::Blocked,
            Pass::Over => return Turn::Moved,
            Pass::Begun => {}
            Pass::Moved(bytes) => left = left.saturating_sub(bytes.max(STEP_BYTES)),
        }
    }
    Turn::Spent
}

/// How far a direction came.
pub(crate) enum Pass {
    /// The next step is known.
    Begun,
    /// A receive or send of so many bytes is done.
    Moved(usize),
    /// Waits for a socket, or has nothing to do any more.
    Blocked,
    /// The direction is over, and with it perhaps the session.
    Over,
}

fn begin(live: &mut Live, direction: Direction) -> Pass {
    match live.session.poll_step(direction) {
        None => Pass::Blocked,
        Some(Step::Receive(Way::Pipe { max_bytes })) => {
            live.lane(direction).job = Job::Filling(max_bytes);
            Pass::Begun
        }
        Some(Step::Receive(Way::Buffer)) => {
            // What is left is not to be forwarded.
            live.drop_held(direction);
            live.lane(direction).job = Job::Receiving;
            Pass::Begun
        }
        Some(Step::Send(bytes)) => {
            live.lane(direction).job = Job::Sending(bytes);
            Pass::Begun
        }
        Some(Step::ShutDown) => {
            if let Some(sink) = live.end(direction.sink()) {
                sink.stream.shut_down();
            }
            Pass::Over
        }
    }
}

fn receive(live: &mut Live, direction: Direction, cx: &mut Context<'_>) -> Pass {
    if live.lane(direction).has_failed {
        live.lane(direction).job = Job::Nothing;
        live.session.handle_receive_failed(direction);
        return Pass::Over;
    }
    let size = live.lane(direction).size;
    let mut buffer = live.worker.buffers.borrow_mut().take(size);
    let Some(source) = live.end(direction.source()) else { unreachable!("both sides are open") };
    let polled = source.stream.poll_read(cx, buffer.bytes_mut());
    let Poll::Ready(received) = polled else {
        live.worker.buffers.borrow_mut().give_back(buffer);
        return Pass::Blocked;
    };
    live.lane(direction).job = Job::Nothing;
    let now = live.now;
    match received {
        Ok(bytes @ 1..) => {
            let (is_sealed, is_paced) = (live.session.is_sealed(), live.session.is_paced());
            let lane = live.lane(direction);
            lane.size = if is_paced { Size::Small } else { Size::after(bytes) };
            if is_sealed {
                let most = if is_paced { 1 } else { SEALED_RECEIVES };
                return Pass::Moved(translate(live, direction, buffer, bytes, most, cx));
            }
            lane.held = Some(Held::Buffer { buffer, sent: 0, end: bytes });
            live.session.handle_received(direction, bytes, now);
            return Pass::Moved(bytes);
        }
        Ok(0) => live.session.handle_ended(direction, now),
        Err(_) => live.session.handle_receive_failed(direction),
    }
    live.worker.buffers.borrow_mut().give_back(buffer);
    Pass::Over
}

/// Has what was received translated, where a side is sealed, and what is received thereafter, as long as the buffer is
/// filled, `most` times in all. Returns how much was received.
fn translate(
    live: &mut Live,
    direction: Direction,
    mut buffer: Buffer,
    first: usize,
    most: usize,
    cx: &mut Context<'_>,
) -> usize {
    let mut out = live.worker.buffers.borrow_mut().take_empty();
    let (mut bytes, mut total) = (first, 0);
    for receives in 1..=most {
        let pieces = std::iter::once(&buffer.bytes()[..bytes]);
        live.session.handle_received_sealed(direction, pieces, &mut out, live.now);
        total += bytes;
        if bytes < buffer.bytes().len() || receives == most {
            break;
        }
        let Some(source) = live.end(direction.source()) else { break };
        match source.stream.poll_read(cx, buffer.bytes_mut()) {
            Poll::Ready(Ok(more @ 1..)) => bytes = more,
            Poll::Ready(Err(_)) => {
                live.lane(direction).has_failed = true;
                break;
            }
            // An end is read again.
            Poll::Ready(Ok(_)) | Poll::Pending => break,
        }
    }
    let mut buffers = live.worker.buffers.borrow_mut();
    buffers.give_back(buffer);
    if out.is_empty() {
        buffers.give_back_emptied(out);
    } else {
        drop(buffers);
        live.lane(direction).held = Some(Held::Bytes { bytes: out, sent: 0 });
    }
    total
}

fn send(live: &mut Live, direction: Direction, bytes: usize, cx: &mut Context<'_>) -> Pass {
    let (lane, sink) = match direction {
        Direction::Up => (&mut live.up, live.upstream.as_mut()),
        Direction::Down => (&mut live.down, Some(&mut live.client)),
    };
    let (Some(held), Some(sink)) = (&mut lane.held, sink) else {
        unreachable!("a send follows what was received, and both sides are open")
    };
    let polled = match held {
        Held::Buffer { buffer, sent, .. } => {
            sink.stream.poll_write(cx, &buffer.bytes()[*sent..*sent + bytes])
        }
        Held::Bytes { bytes: all, sent } => sink.stream.poll_write(cx, &all[*sent..*sent + bytes]),
        Held::Pipe(pipe) => sink.stream.poll_drain(cx, pipe, bytes),
    };
    let Poll::Ready(result) = polled else { return Pass::Blocked };
    lane.job = Job::Nothing;
    match result {
        Ok(sent @ 1..) => {
            if held.handle_sent(sent) {
                live.drop_held(direction);
            }
            live.session.handle_sent(direction, sent, live.now);
            Pass::Moved(sent)
        }
        // A socket that takes nothing, and does not say that it is full, is broken.
        Ok(_) | Err(_) => {
            live.fail_send(direction);
            Pass::Over
        }
    }
}

impl Held {
    /// Notes that so much was sent, and says whether it was all.
    fn handle_sent(&mut self, bytes: usize) -> bool {
        match self {
            Held::Buffer { sent, end, .. } => {
                *sent += bytes;
                sent == end
            }
            Held::Bytes { bytes: all, sent } => {
                *sent += bytes;
                *sent == all.len()
            }
            Held::Pipe(pipe) => pipe.is_empty(),
        }
    }
}

impl Live {
    /// The sink of a direction is broken: nothing more goes there.
    pub(crate) fn fail_send(&mut self, direction: Direction) {
        self.drop_held(direction);
        self.lane(direction).job = Job::Nothing;
        self.session.handle_send_failed(direction);
    }

    /// What was received and is not to be forwarded, or is forwarded in full, goes back to the worker.
    pub(crate) fn drop_held(&mut self, direction: Direction) {
        match self.lane(direction).held.take() {
            None => {}
            Some(Held::Buffer { buffer, .. }) => self.worker.buffers.borrow_mut().give_back(buffer),
            Some(Held::Bytes { bytes, .. }) => self.worker.buffers.borrow_mut().give_back_emptied(bytes),
            Some(Held::Pipe(pipe)) => self.worker.pipes.borrow_mut().give_back(pipe),
        }
    }
}
