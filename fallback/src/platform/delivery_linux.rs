//! Linux: whether a peer has what it was sent, as far as poll(2) tells.
//!
//! SIOCOUTQ would tell it exactly, but takes an unsafe ioctl(2). A send buffer of the smallest size that has nothing
//! unsent (`TCP_NOTSENT_LOWAT`, tcp(7)) is writable only when at most two short segments await their acknowledgement:
//! the kernel asks for a third of the buffer's 4.5 KiB to be free, and counts what is in flight at its true size.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::net::TcpStream;

/// Watches a socket to which nothing more will be written.
pub(crate) struct Watch;

/// Begins to watch.
pub(crate) fn watch(stream: &TcpStream) -> Watch {
    let socket = SockRef::from(stream);
    // Where an option is refused, the watch tells less, and its limit bounds the wait all the same.
    let _ = socket.set_tcp_notsent_lowat(1);
    let _ = socket.set_send_buffer_size(1);
    Watch
}

impl Watch {
    /// A peer that acknowledges nothing for so long will not miss the end.
    pub(crate) const LIMIT: Duration = Duration::from_secs(5);

    pub(crate) fn is_delivered(&self, stream: &TcpStream) -> bool {
        let mut polled = [PollFd::new(stream, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An error or hang-up is told as well: nothing can be delivered any more then.
        !matches!(poll(&mut polled, Some(&at_once)), Ok(0))
    }
}
