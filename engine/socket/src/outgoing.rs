//! Sockets towards upstreams.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ringweir_flow::outgoing::Outgoing;
use socket2::{Domain, Socket, Type};

use crate::{OptionError, SocketOption, culprit, platform, protocol, set_keepalive};

/// A non-blocking socket for a connect to `address` from `source`.
///
/// # Errors
/// [`OptionError`] names what is refused.
pub fn open(address: SocketAddr, outgoing: &Outgoing, source: Option<IpAddr>) -> Result<Socket, OptionError> {
    let socket = prepare(address, outgoing)?;
    if let Some(interface) = &outgoing.interface {
        platform::bind_to_interface(&socket, interface).map_err(OptionError::at(SocketOption::Interface))?;
    }
    if let Some(source) = source {
        platform::bind_source(&socket, source).map_err(OptionError::at(SocketOption::Source))?;
    }
    Ok(socket)
}

/// Whether this system and the rights of this process are enough for these options. Whether interface and addresses
/// are there is not asked: they may come and go.
///
/// # Errors
/// [`OptionError`] names what is refused.
pub fn try_out(outgoing: &Outgoing) -> Result<(), OptionError> {
    prepare(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), outgoing).map(drop)
}

fn prepare(address: SocketAddr, outgoing: &Outgoing) -> Result<Socket, OptionError> {
    let protocol = protocol(outgoing.protocol)?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))
        .map_err(|error| OptionError { option: culprit(outgoing.protocol, &error), error })?;
    socket.set_nonblocking(true).map_err(OptionError::at(SocketOption::Socket))?;
    socket.set_tcp_nodelay(true).map_err(OptionError::at(SocketOption::NoDelay))?;
    if let Some(mark) = outgoing.mark {
        platform::set_mark(&socket, mark).map_err(OptionError::at(SocketOption::Mark))?;
    }
    if outgoing.transparent {
        platform::set_transparent(&socket).map_err(OptionError::at(SocketOption::Transparent))?;
    }
    if let Some(keepalive) = outgoing.keepalive {
        set_keepalive(&socket, keepalive)?;
    }
    Ok(socket)
}
