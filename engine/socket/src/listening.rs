//! Listening sockets.

use std::net::SocketAddr;
use std::time::Duration;

use ringweir_flow::outgoing::{Keepalive, StreamProtocol};
use socket2::{Domain, Socket, Type};

use crate::{OptionError, SocketOption, culprit, platform, protocol, set_keepalive};

/// What is special about the sockets of a listener. The default has nothing special.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// The network interface that clients must come by (SO_BINDTODEVICE, Linux).
    pub interface: Option<Box<str>>,
    /// How a client that has vanished is noticed.
    pub keepalive: Option<Keepalive>,
    /// TCP or its extension.
    pub protocol: StreamProtocol,
    /// How many clients may have sent data with their first packet and not be connected yet (TCP_FASTOPEN, Linux).
    pub fast_open: Option<u32>,
    /// How long a client that has sent nothing is not accepted (TCP_DEFER_ACCEPT, Linux). Whole seconds.
    pub defer_accept: Option<Duration>,
    /// Whether connections to other addresses are taken as well (IP_TRANSPARENT, Linux).
    pub transparent: bool,
    /// How many clients may wait to be accepted; `None` for as many as the system allows.
    pub backlog: Option<u32>,
}

/// What [`Listening::backlog`] is where nothing is said; systems clamp it to what they allow.
const MOST: u32 = 65_535;

impl Listening {
    /// A TCP socket with the options set that are there before it is bound. Those that accepted sockets have on Linux
    /// by inheritance are among them: keepalive, TCP_NODELAY.
    ///
    /// # Errors
    /// [`OptionError`] names what is refused.
    pub fn open(&self, address: SocketAddr) -> Result<Socket, OptionError> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol(self.protocol)?))
            .map_err(|error| OptionError { option: culprit(self.protocol, &error), error })?;
        socket.set_tcp_nodelay(true).map_err(OptionError::at(SocketOption::NoDelay))?;
        if let Some(interface) = &self.interface {
            platform::bind_to_interface(&socket, interface)
                .map_err(OptionError::at(SocketOption::Interface))?;
        }
        if self.transparent {
            platform::set_transparent(&socket).map_err(OptionError::at(SocketOption::Transparent))?;
        }
        if let Some(keepalive) = self.keepalive {
            set_keepalive(&socket, keepalive)?;
        }
        if let Some(queue) = self.fast_open {
            platform::set_fast_open(&socket, queue).map_err(OptionError::at(SocketOption::FastOpen))?;
        }
        if let Some(time) = self.defer_accept {
            platform::set_defer_accept(&socket, time).map_err(OptionError::at(SocketOption::DeferAccept))?;
        }
        Ok(socket)
    }

    /// Makes a bound socket, of TCP or not, listen.
    ///
    /// # Errors
    /// [`OptionError`] names what is refused.
    pub fn listen(&self, socket: &Socket) -> Result<(), OptionError> {
        if let Some(backlog) = self.backlog {
            platform::refuse_long_backlog(backlog).map_err(OptionError::at(SocketOption::Backlog))?;
        }
        let backlog = self.backlog.unwrap_or(MOST);
        socket
            .listen(i32::try_from(backlog).unwrap_or(i32::MAX))
            .map_err(OptionError::at(SocketOption::Socket))
    }
}
