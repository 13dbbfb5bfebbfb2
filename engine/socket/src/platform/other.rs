//! Systems that have none of the options of Linux. The configuration refuses them, so that nobody comes here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Protocol, SockAddr, SockRef, Socket};

pub(crate) fn mptcp() -> io::Result<Protocol> {
    unsupported()
}

pub(crate) fn is_unknown_protocol(_: &io::Error) -> bool {
    false
}

pub(crate) fn bind_to_interface(_: &Socket, _: &str) -> io::Result<()> {
    unsupported()
}

pub(crate) fn set_transparent(_: &Socket) -> io::Result<()> {
    unsupported()
}

pub(crate) fn original_destination(_: &SockRef<'_>) -> io::Result<SockAddr> {
    unsupported()
}

pub(crate) fn set_mark(_: &Socket, _: u32) -> io::Result<()> {
    unsupported()
}

/// The port is chosen here, and no other connection has it then.
pub(crate) fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    socket.bind(&SocketAddr::new(source, 0).into())
}

pub(crate) fn set_fast_open(_: &Socket, _: u32) -> io::Result<()> {
    unsupported()
}

pub(crate) fn set_defer_accept(_: &Socket, _: Duration) -> io::Result<()> {
    unsupported()
}

/// How long the queue may be is not told.
pub(crate) fn refuse_long_backlog(_: u32) -> io::Result<()> {
    Ok(())
}

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "is of Linux alone"))
}
