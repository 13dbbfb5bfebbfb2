//! Options of TCP sockets, set as configured: those of connections to an upstream
//! ([`Outgoing`](ringweir_flow::outgoing::Outgoing)) and those of
//! listening sockets ([`Listening`]), which accepted sockets inherit on Linux. What a system lacks or refuses is an
//! error that names the option. Nobody comes here for a socket without options.

mod listening;
mod outgoing;
#[cfg_attr(target_os = "linux", path = "platform/linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "platform/other.rs")]
mod platform;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;

use ringweir_flow::outgoing::{Keepalive, StreamProtocol};
use socket2::{Protocol, SockRef, TcpKeepalive};

pub use listening::Listening;
pub use outgoing::{open, try_out};

/// Whether this system has the options of Linux: interface, mark, mptcp, fast_open, defer_accept.
pub const IS_LINUX: bool = cfg!(target_os = "linux");

/// An option, by its key in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketOption {
    /// The socket itself.
    Socket,
    /// TCP_NODELAY, which every socket gets.
    NoDelay,
    /// The address to come from.
    Source,
    /// SO_BINDTODEVICE.
    Interface,
    /// SO_MARK.
    Mark,
    /// IP_TRANSPARENT.
    Transparent,
    /// SO_KEEPALIVE and what belongs to it.
    Keepalive,
    /// IPPROTO_MPTCP.
    Mptcp,
    /// TCP_FASTOPEN.
    FastOpen,
    /// TCP_DEFER_ACCEPT.
    DeferAccept,
    /// The length of the accept queue.
    Backlog,
}

impl SocketOption {
    /// The key.
    pub const fn as_str(self) -> &'static str {
        match self {
            SocketOption::Socket => "socket",
            SocketOption::NoDelay => "TCP_NODELAY",
            SocketOption::Source => "source",
            SocketOption::Interface => "interface",
            SocketOption::Mark => "mark",
            SocketOption::Transparent => "transparent",
            SocketOption::Keepalive => "keepalive",
            SocketOption::Mptcp => "mptcp",
            SocketOption::FastOpen => "fast_open",
            SocketOption::DeferAccept => "defer_accept",
            SocketOption::Backlog => "backlog",
        }
    }

    /// What an operator can do about a refusal, where that is known.
    const fn hint(self) -> &'static str {
        match self {
            SocketOption::Mark => " (it takes CAP_NET_ADMIN or CAP_NET_RAW)",
            SocketOption::Transparent => " (it takes CAP_NET_ADMIN)",
            SocketOption::Mptcp => " (it takes Linux 5.6 with CONFIG_MPTCP, and net.mptcp.enabled = 1)",
            SocketOption::Socket
            | SocketOption::NoDelay
            | SocketOption::Source
            | SocketOption::Interface
            | SocketOption::Keepalive
            | SocketOption::FastOpen
            | SocketOption::DeferAccept
            | SocketOption::Backlog => "",
        }
    }
}

impl fmt::Display for SocketOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An option that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {error}{hint}", hint = option.hint())]
pub struct OptionError {
    /// Which.
    pub option: SocketOption,
    /// What the system said.
    pub error: io::Error,
}

impl OptionError {
    fn at(option: SocketOption) -> impl FnOnce(io::Error) -> OptionError {
        move |error| OptionError { option, error }
    }
}

/// Where a client was going whose connection the system has redirected to us (SO_ORIGINAL_DST and its like for IPv6,
/// Linux); `None` when it was coming here, or when the system does not say.
pub fn original_destination<'s, S>(socket: &'s S) -> Option<SocketAddr>
where
    SockRef<'s>: From<&'s S>,
{
    let socket = SockRef::from(socket);
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let found = canonical(platform::original_destination(&socket).ok()?.as_socket()?);
    let local = canonical(socket.local_addr().ok()?.as_socket()?);
    (found != local).then_some(found)
}

/// What to ask the system for.
fn protocol(protocol: StreamProtocol) -> Result<Protocol, OptionError> {
    match protocol {
        StreamProtocol::Tcp => Ok(Protocol::TCP),
        StreamProtocol::Mptcp => platform::mptcp().map_err(OptionError::at(SocketOption::Mptcp)),
    }
}

/// Which option an error of socket(2) is about: kernels without MPTCP say that they do not know the protocol.
fn culprit(protocol: StreamProtocol, error: &io::Error) -> SocketOption {
    match protocol {
        StreamProtocol::Mptcp if platform::is_unknown_protocol(error) => SocketOption::Mptcp,
        StreamProtocol::Mptcp | StreamProtocol::Tcp => SocketOption::Socket,
    }
}

/// Switches keepalive probes on for a TCP socket, or for those that a listening one will accept.
///
/// # Errors
/// [`OptionError`], of the system.
pub fn set_keepalive<'s, S>(socket: &'s S, keepalive: Keepalive) -> Result<(), OptionError>
where
    SockRef<'s>: From<&'s S>,
{
    let mut probes = TcpKeepalive::new().with_time(keepalive.idle);
    if let Some(interval) = keepalive.interval {
        probes = probes.with_interval(interval);
    }
    if let Some(count) = keepalive.count {
        probes = probes.with_retries(count);
    }
    SockRef::from(socket).set_tcp_keepalive(&probes).map_err(OptionError::at(SocketOption::Keepalive))
}
