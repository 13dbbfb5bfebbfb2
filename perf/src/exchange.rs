//! One message out, the same message back: the unit that ping-pong, open loop, short and idle sessions share.

use crate::backend::ECHO;
use crate::error::LoadError;
use crate::net::{Transfer, receive, send};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::ops::Range;
use std::time::Instant;

/// The service byte and a 56-bit stamp, so that no echo can be taken for another's.
pub(crate) const SMALLEST_MESSAGE_BYTES: usize = 8;

/// Registered once for each connection, for both directions.
pub(crate) const EDGES: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ET);

/// Both ends of every chunk are compared, this many bytes of each: all of a small message, next to nothing of a big one.
const COMPARED_BYTES: usize = 64;

/// The message that all connections send, but for its stamp, and the buffer that they read into.
pub(crate) struct Message {
    bytes: Vec<u8>,
    buffer: Vec<u8>,
}

impl Message {
    /// Filled with a pattern that has no short period.
    pub(crate) fn new(size_bytes: usize) -> Message {
        let size_bytes = size_bytes.max(SMALLEST_MESSAGE_BYTES);
        let mut state = 0x9E37_79B9_u32;
        let bytes = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let mut bytes: Vec<u8> = bytes.take(size_bytes).collect();
        bytes[0] = ECHO;
        Message { buffer: vec![0; size_bytes], bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn stamp(&mut self, stamp: u64) {
        self.bytes[1..SMALLEST_MESSAGE_BYTES].copy_from_slice(&stamp.to_be_bytes()[1..]);
    }

    /// The offset of the first byte found wrong in what was received at `range`.
    fn find_difference(&self, range: Range<usize>) -> Option<usize> {
        let head = range.start..range.end.min(range.start + COMPARED_BYTES);
        let tail = range.end.saturating_sub(COMPARED_BYTES).max(range.start)..range.end;
        [head, tail]
            .into_iter()
            .filter(|part| self.bytes[part.clone()] != self.buffer[part.clone()])
            .find_map(|part| part.into_iter().find(|&at| self.bytes[at] != self.buffer[at]))
    }
}

/// Where an exchange stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Waiting,
    Complete,
}

/// Why an exchange cannot go on.
pub(crate) enum Broken {
    /// The other end is gone.
    Lost(std::io::Error),
    /// Other bytes came back, the first at this offset.
    Wrong(usize),
}

impl Broken {
    /// As an error of the connection with this index.
    pub(crate) fn of(self, index: usize) -> LoadError {
        match self {
            Broken::Lost(source) => LoadError::Lost { index, source },
            Broken::Wrong(offset) => LoadError::WrongEcho { index, offset },
        }
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Broken {
        Broken::Lost(errno.into())
    }
}

/// A connection and the message under way on it.
pub(crate) struct Exchange {
    pub(crate) fd: OwnedFd,
    /// When the message was due; its latency counts from here.
    pub(crate) since: Instant,
    stamp: u64,
    sent_bytes: usize,
    received_bytes: usize,
}

impl Exchange {
    /// A fresh connection, nothing sent. `stamp` differs from every other connection's by more than its exchanges.
    pub(crate) fn new(fd: OwnedFd, stamp: u64, since: Instant) -> Exchange {
        Exchange { fd, since, stamp, sent_bytes: 0, received_bytes: 0 }
    }

    /// Starts the next message, due at `since`.
    pub(crate) fn begin(&mut self, message: &mut Message, since: Instant) -> Result<(), Broken> {
        self.since = since;
        self.stamp += 1;
        self.sent_bytes = 0;
        self.received_bytes = 0;
        message.stamp(self.stamp);
        self.send_rest(message)
    }

    /// Sends and reads what it can.
    pub(crate) fn handle_ready(
        &mut self,
        message: &mut Message,
        flags: EventFlags,
    ) -> Result<Progress, Broken> {
        message.stamp(self.stamp);
        if self.sent_bytes < message.len() {
            self.send_rest(message)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.receive_rest(message)?;
        }
        let complete = self.sent_bytes == message.len() && self.received_bytes == message.len();
        Ok(if complete { Progress::Complete } else { Progress::Waiting })
    }

    fn send_rest(&mut self, message: &Message) -> Result<(), Broken> {
        while self.sent_bytes < message.len() {
            match send(&self.fd, &message.bytes[self.sent_bytes..])? {
                Transfer::Moved(count) => self.sent_bytes += count,
                Transfer::Ended | Transfer::Blocked => break,
            }
        }
        Ok(())
    }

    /// Stops at a short read: what comes later raises its own edge.
    fn receive_rest(&mut self, message: &mut Message) -> Result<(), Broken> {
        let range = self.received_bytes..message.len();
        if range.is_empty() {
            return Ok(());
        }
        match receive(&self.fd, &mut message.buffer[range.clone()])? {
            Transfer::Moved(count) => {
                let range = range.start..range.start + count;
                self.received_bytes = range.end;
                message.find_difference(range).map_or(Ok(()), |offset| Err(Broken::Wrong(offset)))
            }
            Transfer::Ended => Err(Broken::Lost(std::io::ErrorKind::UnexpectedEof.into())),
            Transfer::Blocked => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_at_either_end_of_a_chunk_is_found() {
        let mut message = Message::new(1_000);
        message.stamp(77);
        message.buffer.copy_from_slice(&message.bytes);
        assert_eq!(message.find_difference(0..1_000), None);
        for changed in [0, 5, 63, 940, 999] {
            message.buffer[changed] ^= 1;
            assert_eq!(message.find_difference(0..1_000), Some(changed));
            message.buffer[changed] ^= 1;
        }
    }

    #[test]
    fn another_stamp_is_a_difference() {
        let mut message = Message::new(64);
        message.stamp(1);
        message.buffer.copy_from_slice(&message.bytes);
        message.stamp(2);
        assert_eq!(message.find_difference(0..64), Some(7));
    }
}
