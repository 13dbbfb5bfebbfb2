//! Moves the bytes of sessions of which a side is sealed: what comes is translated, and what is to be sent for it lies
//! in memory of its own.
//!
//! Small messages come by the ring, as everywhere. A stream is received by read(2), once the ring says that there is
//! something, into one piece of memory that all such streams of a worker share: it is the same piece each time, so it
//! stays in the cache, where the pool's buffers have come round through megabytes of others.

use std::iter;

use ringweir_flow::pump::{Direction, Side};
use ringweir_ring::{Chunks, Errno};
use rustix::io::read;

use crate::live::{Held, Live, Receiving};
use crate::pump::{self, CALM_BYTES, Pace};
use crate::sessions::SessionId;
use crate::splice;
use crate::worker::Tools;

/// What one read takes at most: with what it becomes, it stays in a cache of the second level.
const LANDING_BYTES: usize = 64 * 1024;

/// How many reads are sent at once at most. Larger sends are cheaper by what each costs whoever is woken by it; this is
/// also what a stalled reader costs.
const READS: usize = 4;

/// A source has something. Of a session whose rate is limited a little is taken, as everywhere.
pub(crate) fn receive(live: &mut Live, id: SessionId, side: Side, tools: &mut Tools) {
    let direction = Direction::from(side);
    let (most, reads) =
        if live.session.is_paced() { (CALM_BYTES as usize, 1) } else { (LANDING_BYTES, READS) };
    tools.land(most);
    let mut out = tools.ring.spare_bytes_for(most);
    let mut received = 0;
    for _ in 0..reads {
        let Some(source) = live.stream(side) else { break };
        match read(source.fd(), &mut tools.landing[..most]) {
            Ok(0) if received == 0 => pump::handle_ended(live, direction, tools),
            Ok(bytes @ 1..) => {
                received += bytes;
                source.pace = Pace::after(received, bytes == most);
                let pieces = iter::once(&tools.landing[..bytes]);
                live.session.handle_received_sealed(direction, pieces, &mut out, tools.now);
                if bytes == most {
                    continue;
                }
            }
            Err(Errno::AGAIN | Errno::INTR) if received == 0 => {
                splice::await_readable(live, id, side, Receiving::AwaitedSealed, tools)
            }
            Err(_) if received == 0 => live.session.handle_receive_failed(direction),
            // An end is read again.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => source.receiving = Receiving::Failed,
        }
        break;
    }
    hold(live, direction, out, tools);
}

/// The ring has received from a source.
pub(crate) fn handle_received(live: &mut Live, direction: Direction, chunks: Chunks, tools: &mut Tools) {
    let mut out = tools.ring.spare_bytes_for(chunks.len());
    live.session.handle_received_sealed(direction, chunks.slices(&tools.ring), &mut out, tools.now);
    tools.ring.recycle(chunks);
    hold(live, direction, out, tools);
}

/// Keeps what is to be sent.
fn hold(live: &mut Live, direction: Direction, out: Vec<u8>, tools: &mut Tools) {
    match live.stream(direction.source()) {
        Some(source) if !out.is_empty() => source.held = Held::Bytes(out),
        Some(_) | None => tools.ring.reuse_bytes(out),
    }
}
