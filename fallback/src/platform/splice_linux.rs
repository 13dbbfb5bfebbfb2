//! Linux: streams go through the pooled pipes of `ringweir-pipe`, by splice(2).

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

pub(crate) use ringweir_pipe::{Budget, Pipe, Pool};

/// Moves what a non-blocking source has into an empty pipe; 0 is the end of the stream.
pub(crate) fn fill(pipe: &mut Pipe, source: impl AsFd, max_bytes: u64) -> io::Result<usize> {
    Ok(pipe.fill(source, max_bytes)?)
}

/// Moves up to `bytes` of what a pipe holds into a non-blocking sink.
pub(crate) fn drain(pipe: &mut Pipe, sink: impl AsFd, bytes: usize) -> io::Result<usize> {
    Ok(pipe.drain(sink, bytes)?)
}

/// Whether a fill failed because the source cannot be spliced here.
pub(crate) fn is_unspliceable(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(ringweir_pipe::is_unspliceable)
}
