//! What comes back from the kernel.

use std::os::fd::OwnedFd;

use crate::pool::Chunks;
use crate::token::Token;
use crate::{Errno, PollEvents};

/// The end of an operation; of a multishot accept, one of its connections. `Errno::CANCELED` is what an operation ends
/// with that was cancelled in time.
#[derive(Debug)]
#[must_use = "it owns descriptors and buffers"]
pub enum Completion {
    /// A connection, or why there was none. `more` tells whether the accept is still armed; if not, it has ended.
    Accepted {
        /// The accept's.
        token: Token,
        /// The connection; close-on-exec, blocking.
        result: Result<OwnedFd, Errno>,
        /// Whether further completions of this accept will come.
        more: bool,
    },
    /// Bytes. No bytes mean the end of the stream. `Errno::NOBUFS` means that the kernel found no buffer: at once again
    /// if [`Ring::buffers_available`](crate::Ring::buffers_available), else after the next recycling.
    Received {
        /// The receive's.
        token: Token,
        /// The bytes, or the error.
        result: Result<Chunks, Errno>,
        /// Whether the kernel saw more waiting behind them. False may also mean that it did not look.
        pending: bool,
    },
    /// Bytes have been handed to the socket. When all were, `rest` is `None` and the buffers are back in the pool.
    /// When fewer were, by an error or a cancel in mid-send, or because the pieces were more than 1024, `rest` holds
    /// the others, trimmed, to be sent again or recycled.
    Sent {
        /// The send's.
        token: Token,
        /// Bytes sent.
        result: Result<usize, Errno>,
        /// What was not sent.
        rest: Option<Unsent>,
    },
    /// A connect has ended.
    Connected {
        /// The connect's.
        token: Token,
        /// Whether the socket is connected.
        result: Result<(), Errno>,
    },
    /// A poll has ended.
    Polled {
        /// The poll's.
        token: Token,
        /// What the descriptor is ready for.
        result: Result<PollEvents, Errno>,
    },
    /// A [`Waker`](crate::Waker) has woken this ring, once or more.
    Woken,
}

/// What of a send was not sent.
#[derive(Debug)]
#[must_use = "buffers are lost unless sent or recycled"]
pub enum Unsent {
    /// For [`Ring::send`](crate::Ring::send).
    Chunks(Chunks),
    /// For [`Ring::send_owned`](crate::Ring::send_owned).
    Owned {
        /// As given to the send.
        bytes: Vec<u8>,
        /// Where the unsent ones begin.
        offset: usize,
    },
}
