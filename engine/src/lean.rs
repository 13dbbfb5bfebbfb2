//! Receives while the pool has no buffer left: readers that do not read hold them all, and may do so for hours. Whoever
//! else has something to say is read by read(2) then, once the ring says that there is something, a little at a time, and
//! what came lies in memory of the session's own. So nobody waits for those who stall.

use ringweir_flow::pump::{Direction, Side};
use ringweir_ring::Errno;
use rustix::io::read;

use crate::live::{Held, Live, Receiving};
use crate::pump::{self, CALM_BYTES, Pace};
use crate::sessions::SessionId;
use crate::worker::Tools;
use crate::{sealed, splice};

/// What one read takes at most: one buffer's worth, for that is what a reader that stalls costs then.
const LEAN_BYTES: usize = CALM_BYTES as usize;

/// A side has something.
pub(crate) fn receive(live: &mut Live, id: SessionId, side: Side, tools: &mut Tools) {
    let (direction, is_pumping) = (Direction::from(side), live.session.is_pumping());
    if is_pumping && live.session.is_sealed() {
        return sealed::receive(live, id, side, tools);
    }
    tools.land(LEAN_BYTES);
    let Some(source) = live.stream(side) else { return };
    match read(source.fd(), &mut tools.landing[..LEAN_BYTES]) {
        Err(Errno::AGAIN | Errno::INTR) => {
            splice::await_readable(live, id, side, Receiving::AwaitedLean, tools)
        }
        Ok(0) if is_pumping => pump::handle_ended(live, direction, tools),
        Ok(0) => live.session.handle_client_ended(),
        Ok(bytes) if is_pumping => {
            source.pace = Pace::after(bytes, false);
            let mut out = tools.ring.spare_bytes_for(bytes);
            out.extend_from_slice(&tools.landing[..bytes]);
            source.held = Held::Bytes(out);
            live.session.handle_received(direction, bytes, tools.now);
        }
        Ok(bytes) => live.session.handle_bytes(&tools.landing[..bytes], tools.now),
        Err(_) if is_pumping => live.session.handle_receive_failed(direction),
        Err(_) => live.session.handle_client_failed(),
    }
}
