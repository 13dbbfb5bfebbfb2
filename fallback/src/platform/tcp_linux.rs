//! Linux: TCP sockets with as few system calls as can be.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

/// A socket that is non-blocking from the start.
pub(crate) fn open_tcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Whoever is accepted there inherits TCP_NODELAY, which spares a call for each.
pub(crate) fn prepare_listener(socket: &Socket) {
    if let Err(error) = socket.set_tcp_nodelay(true) {
        tracing::warn!(%error, "TCP_NODELAY cannot be set on a listening socket");
    }
}

/// Has it all from its listener.
pub(crate) fn prepare_accepted(_: &TcpStream) {}
