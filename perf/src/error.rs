//! What can end a run early, and who is to blame.

use std::io;
use std::net::SocketAddr;

/// Why a run or a backend gave up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// A system call of our own failed.
    #[error("{call}: {source}")]
    System {
        /// The call that failed.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The forwarder (or backend) ended a connection that was to stay.
    #[error("connection {index} was lost: {source}")]
    Lost {
        /// Which of the run's connections.
        index: usize,
        /// What was seen.
        source: io::Error,
    },
    /// Bytes came back that were not sent.
    #[error("connection {index}: the bytes at offset {offset} of the echo are not those that were sent")]
    WrongEcho {
        /// Which of the run's connections.
        index: usize,
        /// Offset into the message, in bytes.
        offset: usize,
    },
    /// Nothing works any more; going on would only spin.
    #[error("{count} sessions in a row failed against {to}; the last one: {last}")]
    KeepsFailing {
        /// How many.
        count: u32,
        /// The address dialled.
        to: SocketAddr,
        /// The last failure.
        last: String,
    },
    /// No port of ours is free any more.
    #[error("no free source port for {to} among {tried} candidates")]
    NoSourcePort {
        /// The address dialled.
        to: SocketAddr,
        /// How many ports were tried.
        tried: u32,
    },
    /// A watched process is gone or unreadable.
    #[error("process {pid} cannot be watched: {source}")]
    Unwatchable {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The result could not be written.
    #[error("cannot write {what}: {reason}")]
    Unwritable {
        /// What was to be written.
        what: String,
        /// Why not.
        reason: String,
    },
}

impl LoadError {
    /// For `map_err`: names the call beside the kernel's error.
    pub(crate) fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> LoadError {
        move |error| LoadError::System { call, source: error.into() }
    }
}
