//! Systems of which it is not known what a TCP socket can have from the start.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

/// A non-blocking socket.
pub(crate) fn open_tcp(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Nothing is inherited for certain.
pub(crate) fn prepare_listener(_: &Socket) {}

/// Sends at once what is given to it.
pub(crate) fn prepare_accepted(stream: &TcpStream) {
    // It fails only when the client is gone already, which its first receive reports.
    let _ = stream.set_nodelay(true);
}
