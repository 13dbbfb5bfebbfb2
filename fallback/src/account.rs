//! The end of a session: its line in the log, and its sockets closed as the session says.

use std::rc::Rc;
use std::time::Duration;

use ringweir_flow::pump::{Closing, Direction, Ending};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::live::Live;
use crate::platform::{self, Watch};
use crate::stream::Stream;
use crate::worker::{self, Worker};

/// How soon a peer is first asked whether it has everything, and at most how seldom later.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Ends a session that is closing.
pub(crate) fn finish(mut live: Live, closing: Closing) {
    for direction in Direction::BOTH {
        live.drop_held(direction);
    }
    live.session.handle_closed(live.now);
    if let Some(record) = live.session.record(closing.reason, live.now) {
        record.log();
    }
    close(&live.worker, live.client.stream, closing.client);
    if let Some(upstream) = live.upstream {
        close(&live.worker, upstream.stream, closing.upstream);
    }
}

fn close(worker: &Rc<Worker>, stream: Stream, ending: Ending) {
    match (ending, stream) {
        // A Unix socket has no reset of its own; closing it with bytes unread is seen as one.
        (Ending::Plain, stream) | (Ending::Reset, stream @ Stream::Local(_)) => drop(stream),
        (Ending::Reset, Stream::Tcp(stream)) => worker::spawn(reset(Rc::clone(worker), stream)),
    }
}

/// Resets a connection once its peer has everything. A reset discards what is unsent, and systems have no event for
/// "all delivered", so it is asked, first soon and then less and less often.
async fn reset(worker: Rc<Worker>, stream: TcpStream) {
    let watch = platform::watch(&stream);
    let give_up_at = Instant::now() + Watch::LIMIT;
    let mut pause = FIRST_PAUSE;
    while worker.stopping().is_none() {
        sleep(pause).await;
        if watch.is_delivered(&stream) || Instant::now() >= give_up_at {
            break;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    // Zero linger makes close(2) send a reset (SO_LINGER in socket(7)). It fails only when there is no connection.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
