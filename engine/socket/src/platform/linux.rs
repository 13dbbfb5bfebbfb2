//! Linux has all of them.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::{Protocol, SockAddr, SockRef, Socket};

sockopt_impl!(
    /// TCP_FASTOPEN (tcp(7)): the length of the queue.
    FastOpen, Both, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, usize
);
sockopt_impl!(
    /// TCP_DEFER_ACCEPT (tcp(7)): seconds.
    DeferAccept, Both, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, usize
);

/// The bit of `net.ipv4.tcp_fastopen` that lets servers accept data with the first packet (ip-sysctl.rst).
const FAST_OPEN_SERVERS: u32 = 2;

pub(crate) fn mptcp() -> io::Result<Protocol> {
    Ok(Protocol::MPTCP)
}

/// What socket(2) says of MPTCP that is not built in, or is switched off.
pub(crate) fn is_unknown_protocol(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT | libc::EINVAL))
}

pub(crate) fn bind_to_interface(socket: &Socket, interface: &str) -> io::Result<()> {
    socket.bind_device(Some(interface.as_bytes()))
}

/// On sockets of either family: for those of IPv6 the kernel passes what is of IPv4 on (ipv6_setsockopt).
pub(crate) fn set_transparent(socket: &Socket) -> io::Result<()> {
    socket.set_ip_transparent_v4(true)
}

pub(crate) fn original_destination(socket: &SockRef<'_>) -> io::Result<SockAddr> {
    let is_v4 = socket.local_addr()?.as_socket().is_some_and(|local| local.ip().to_canonical().is_ipv4());
    if is_v4 { socket.original_dst_v4() } else { socket.original_dst_v6() }
}

pub(crate) fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_mark(mark)
}

/// Without a port: that is chosen by connect(2), so that connections to different peers may share one.
pub(crate) fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// The kernel shortens the queue, or ignores the option, without a word.
pub(crate) fn set_fast_open(socket: &Socket, queue: u32) -> io::Result<()> {
    let setting = read_setting("/proc/sys/net/ipv4/tcp_fastopen")?;
    if setting & FAST_OPEN_SERVERS == 0 {
        return Err(io::Error::other(format!(
            "net.ipv4.tcp_fastopen is {setting}, and only with {} would servers accept data in a first packet",
            setting | FAST_OPEN_SERVERS
        )));
    }
    let queue = queue as usize;
    setsockopt(socket, FastOpen, &queue)?;
    let got = getsockopt(socket, FastOpen)?;
    if got < queue {
        return Err(io::Error::other(format!("the queue is {got} long at most, by net.core.somaxconn")));
    }
    Ok(())
}

pub(crate) fn set_defer_accept(socket: &Socket, time: Duration) -> io::Result<()> {
    let seconds = usize::try_from(time.as_secs()).unwrap_or(usize::MAX);
    Ok(setsockopt(socket, DeferAccept, &seconds)?)
}

/// The kernel shortens the queue without a word.
pub(crate) fn refuse_long_backlog(backlog: u32) -> io::Result<()> {
    let longest = read_setting("/proc/sys/net/core/somaxconn")?;
    if backlog > longest {
        return Err(io::Error::other(format!("the queue is {longest} long at most, by net.core.somaxconn")));
    }
    Ok(())
}

fn read_setting(path: &str) -> io::Result<u32> {
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path} cannot be read: {error}")))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path} is no number: {text:?}")))
}
