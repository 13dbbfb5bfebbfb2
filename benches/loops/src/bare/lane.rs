//! One direction of a session that is told when its sockets are ready.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a receive takes at most, and a pipe holds.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;
const PIPE_BYTES: usize = 1024 * 1024;

/// What a lane waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Source,
    Sink,
    /// The end of the stream has been passed on.
    Over,
}

pub(crate) enum Lane {
    /// What was received and did not fit into the sink.
    Copies(Vec<u8>),
    Splices {
        ends: [OwnedFd; 2],
        filled: usize,
    },
}

impl Lane {
    pub(crate) fn new(splices: bool) -> Result<Lane> {
        if !splices {
            return Ok(Lane::Copies(Vec::new()));
        }
        let (out, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&into, PIPE_BYTES)?;
        Ok(Lane::Splices { ends: [into, out], filled: 0 })
    }

    /// Forwards until it has to wait for the sink, or for the source: until that is empty where `to_the_last`, else
    /// until there is likely no more.
    pub(crate) fn pump(
        &mut self,
        from: impl AsFd,
        to: impl AsFd,
        buffer: &mut [u8],
        to_the_last: bool,
    ) -> Result<Wait> {
        let (from, to) = (from.as_fd(), to.as_fd());
        let wait = match self {
            Lane::Copies(held) => loop {
                while !held.is_empty() {
                    match send(to, held, SendFlags::NOSIGNAL) {
                        Ok(sent) => drop(held.drain(..sent)),
                        Err(Errno::AGAIN) => return Ok(Wait::Sink),
                        Err(error) => return Err(error),
                    }
                }
                let received = match recv(from, &mut *buffer, RecvFlags::empty()) {
                    Ok((0, _)) => break Wait::Over,
                    Ok((received, _)) => received,
                    Err(Errno::AGAIN) => return Ok(Wait::Source),
                    Err(error) => return Err(error),
                };
                let sent = match send(to, &buffer[..received], SendFlags::NOSIGNAL) {
                    Ok(sent) => sent,
                    Err(Errno::AGAIN) => 0,
                    Err(error) => return Err(error),
                };
                held.extend_from_slice(&buffer[sent..received]);
                if held.is_empty() && received < buffer.len() && !to_the_last {
                    // What comes from now on is told of.
                    return Ok(Wait::Source);
                }
            },
            Lane::Splices { ends: [into, out], filled } => loop {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                while *filled > 0 {
                    match splice(&*out, None, to, None, *filled, flags) {
                        Ok(sent) => *filled -= sent,
                        Err(Errno::AGAIN) => return Ok(Wait::Sink),
                        Err(error) => return Err(error),
                    }
                    if *filled == 0 && !to_the_last {
                        return Ok(Wait::Source);
                    }
                }
                match splice(from, None, &*into, None, PIPE_BYTES, flags) {
                    Ok(0) => break Wait::Over,
                    Ok(received) => *filled = received,
                    Err(Errno::AGAIN) => return Ok(Wait::Source),
                    Err(error) => return Err(error),
                }
            },
        };
        // A client that is gone needs no word of it.
        let _ = shutdown(to, Shutdown::Write);
        Ok(wait)
    }
}
