//! Moves the bytes of streams without copying them (Linux): from the socket into a pipe and from the pipe into the
//! socket, by splice(2). The pipe is the worker's, and borrowed for as long as bytes are in it. Elsewhere every pipe is
//! refused, and the buffers of `pump.rs` do it all.

use std::task::{Context, Poll};

use ringweir_flow::pump::Direction;
use ringweir_flow::way::Refusal;

use crate::live::Live;
use crate::platform::is_unspliceable;
use crate::pump::{Held, Job, Pass};

/// Fills a pipe once the source has something: until then none is taken from the others.
pub(crate) fn fill(live: &mut Live, direction: Direction, max_bytes: u64, cx: &mut Context<'_>) -> Pass {
    let Some(source) = live.end(direction.source()) else { unreachable!("both sides are open") };
    // What went wrong with a socket, the fill meets as well.
    if source.stream.poll_readable(cx).is_pending() {
        return Pass::Blocked;
    }
    let taken = live.worker.pipes.borrow_mut().take();
    let mut pipe = match taken {
        Ok(pipe) => pipe,
        Err(refusal) => {
            live.lane(direction).job = Job::Nothing;
            live.session.handle_pipe_refused(direction, refusal);
            return Pass::Begun;
        }
    };
    let Some(source) = live.end(direction.source()) else { unreachable!("both sides are open") };
    let filled = source.stream.poll_fill(cx, &mut pipe, max_bytes);
    let now = live.now;
    if let Poll::Ready(Ok(bytes @ 1..)) = filled {
        let lane = live.lane(direction);
        lane.job = Job::Nothing;
        lane.held = Some(Held::Pipe(pipe));
        live.session.handle_received(direction, bytes, now);
        return Pass::Moved(bytes);
    }
    live.worker.pipes.borrow_mut().give_back(pipe);
    let Poll::Ready(filled) = filled else { return Pass::Blocked };
    live.lane(direction).job = Job::Nothing;
    match filled {
        Ok(_) => live.session.handle_ended(direction, now),
        Err(error) if is_unspliceable(&error) => {
            live.session.handle_pipe_refused(direction, Refusal::Unsupported);
            return Pass::Begun;
        }
        Err(_) => live.session.handle_receive_failed(direction),
    }
    Pass::Over
}
