//! The end of a session: its line in the log, its sockets closed as the session says, its slot freed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ringweir_flow::pump::{Ending, Side};
use ringweir_flow::time::Instant;
use ringweir_ring::unacknowledged_bytes;
use rustix::net::sockopt::set_socket_linger;

use crate::live::{Stream, Transport};
use crate::pump;
use crate::sessions::SessionId;
use crate::worker::{Timer, Worker};

/// A socket that is to be reset once its peer has acknowledged everything. A reset discards what is unsent, and the
/// kernel has no event for "all acknowledged", so it is asked, first soon and then less and less often.
#[derive(Debug)]
pub(crate) struct Dying {
    socket: OwnedFd,
    pause: Duration,
    give_up_at: Instant,
}

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A peer that acknowledges nothing for so long will not miss the end.
const RESET_LIMIT: Duration = Duration::from_secs(5);

impl Worker {
    /// Ends a closing session of which nothing is in flight any more.
    pub(crate) fn finish(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(id) else { return };
        pump::drop_held(live, Side::Client, &mut self.tools);
        pump::drop_held(live, Side::Upstream, &mut self.tools);
        let Some(mut live) = self.sessions.remove(id) else { return };
        if let Some((_, timer)) = live.armed {
            self.cancel_timer(timer);
        }
        let Some(closing) = live.closing else { unreachable!("only closing sessions are finished") };
        live.session.handle_closed(self.tools.now);
        if let Some(record) = live.session.record(closing.reason, self.tools.now) {
            record.log();
        }
        self.close_socket(live.client, closing.client);
        if let Some(upstream) = live.upstream {
            self.close_socket(upstream, closing.upstream);
        }
        self.listeners.free_seat();
    }

    fn close_socket(&mut self, stream: Stream, ending: Ending) {
        match (ending, stream.transport) {
            // A Unix socket has no reset of its own; closing it with bytes unread is seen as one.
            (Ending::Plain, Transport::Tcp | Transport::Unix) | (Ending::Reset, Transport::Unix) => {
                // Nothing of it is queued or in flight: whoever waits for a descriptor may have it at once.
                drop(stream.socket);
            }
            (Ending::Reset, Transport::Tcp) => {
                let give_up_at = self.tools.now + RESET_LIMIT;
                self.reset(Dying { socket: stream.socket, pause: FIRST_PAUSE, give_up_at });
            }
        }
    }

    pub(crate) fn handle_dying(&mut self, id: SessionId) {
        if let Some(dying) = self.dying.remove(id) {
            self.reset(dying);
        }
    }

    fn reset(&mut self, mut dying: Dying) {
        let is_delivered = unacknowledged_bytes(&dying.socket).is_none_or(|bytes| bytes == 0);
        if is_delivered || self.tools.now >= dying.give_up_at {
            // Zero linger makes close(2) send a reset (tcp(7), SO_LINGER in socket(7)).
            let _ = set_socket_linger(&dying.socket, Some(Duration::ZERO));
            return;
        }
        let again = self.tools.now + dying.pause;
        dying.pause = (dying.pause * 2).min(LONGEST_PAUSE);
        let id = self.dying.insert(dying);
        self.set_timer(again, Timer::Dying(id));
    }
}
