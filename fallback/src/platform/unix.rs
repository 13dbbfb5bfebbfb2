//! Unix: local sockets, errno, RLIMIT_NOFILE.

use std::io;
use std::net::Shutdown;
use std::path::Path;

use ringweir_flow::close::ConnectError;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

pub(crate) use tokio::net::UnixListener as LocalListener;
pub(crate) use tokio::net::UnixStream as LocalStream;

/// Descriptors left for the configuration, name servers, checks and the admin endpoint.
const RESERVED_DESCRIPTORS: usize = 64;

const DESCRIPTORS_PER_SESSION: usize = 2;

const DESCRIPTORS_PER_PIPE: usize = 2;

/// Descriptors that a worker opens for itself: the event queue, its duplicate, what wakes it, and two to spare for
/// clients that were accepted a moment before their predecessors were closed.
const DESCRIPTORS_PER_WORKER: usize = 5;

pub(crate) fn adopt_local(socket: Socket) -> io::Result<LocalStream> {
    LocalStream::from_std(socket.into())
}

pub(crate) fn release_local(stream: LocalStream) -> io::Result<Socket> {
    Ok(stream.into_std()?.into())
}

pub(crate) fn adopt_local_listener(socket: Socket) -> io::Result<LocalListener> {
    LocalListener::from_std(socket.into())
}

pub(crate) fn release_local_listener(listener: LocalListener) -> io::Result<Socket> {
    Ok(listener.into_std()?.into())
}

pub(crate) fn shut_down_local(stream: &LocalStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)
}

/// Connects at once, or fails.
pub(crate) fn connect_local(path: &Path) -> io::Result<LocalStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    adopt_local(socket)
}

/// Whether a connect goes on in the background.
pub(crate) fn is_in_progress(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INPROGRESS)
}

/// Whether the accept queue of a local socket is full for now (Linux; others refuse).
pub(crate) fn is_full(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::AGAIN)
}

/// Whether an accept failed for the one client alone, so that the next may be served at once (accept(2)).
pub(crate) fn is_clients_doing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PROTO
                | Errno::PERM
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::TIMEDOUT
        )
    )
}

pub(crate) fn connect_error(error: &io::Error) -> ConnectError {
    match Errno::from_io_error(error) {
        // A Unix socket that is not there is a service that does not run.
        Some(Errno::CONNREFUSED | Errno::NOENT) => ConnectError::Refused,
        Some(Errno::TIMEDOUT) => ConnectError::TimedOut,
        Some(Errno::NETUNREACH) => ConnectError::NetworkUnreachable,
        Some(Errno::HOSTUNREACH) => ConnectError::HostUnreachable,
        Some(Errno::CONNRESET) => ConnectError::Reset,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
            ConnectError::OutOfResources
        }
        Some(other) => ConnectError::Other(other.raw_os_error()),
        None => ConnectError::Other(0),
    }
}

/// How many sessions there may be by the limit on descriptors.
pub(crate) fn session_limit(workers: usize, pipes: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let open = std::fs::read_dir("/dev/fd").map_or(RESERVED_DESCRIPTORS, Iterator::count);
    let free = limit.saturating_sub(open + workers * DESCRIPTORS_PER_WORKER);
    // Where little is to be had, pipes come second: a stream without one is copied.
    let free = free - (pipes * DESCRIPTORS_PER_PIPE).min(free / 8);
    // Where little is to be had, little is reserved.
    let reserved = RESERVED_DESCRIPTORS.min(free / 4);
    ((free - reserved) / DESCRIPTORS_PER_SESSION).max(1)
}
