//! Sockets, the epoll instance, and source addresses for many short connections.

use crate::error::LoadError;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Events taken from the kernel in one turn: more than the connections of any closed-loop scenario.
const EVENTS_PER_TURN: usize = 512;

/// Loopback source addresses 127.0.0.2 to 127.0.0.9: one address has too few ports for a long run of short sessions.
const SOURCE_HOSTS: u32 = 8;
const FIRST_SOURCE_HOST: u8 = 2;

/// Source ports lie below the kernel's usual ephemeral range (32768 and up), which the forwarder's own connects use.
const FIRST_SOURCE_PORT: u32 = 10_240;
const SOURCE_PORTS: u32 = 22_528;
const _: () = assert!(FIRST_SOURCE_PORT + SOURCE_PORTS == 32_768);

/// An epoll instance with its event buffer.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub(crate) fn new() -> Result<Poller, LoadError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(LoadError::system("epoll_create1"))?;
        let nothing = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        Ok(Poller { epoll, events: vec![nothing; EVENTS_PER_TURN] })
    }

    /// Registers a socket; its events will bear `token`.
    pub(crate) fn add(&self, fd: &OwnedFd, token: usize, flags: EventFlags) -> Result<(), LoadError> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token as u64), flags)
            .map_err(LoadError::system("epoll_ctl add"))
    }

    /// Changes what a registered socket is watched for.
    pub(crate) fn modify(&self, fd: &OwnedFd, token: usize, flags: EventFlags) -> Result<(), LoadError> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(token as u64), flags)
            .map_err(LoadError::system("epoll_ctl mod"))
    }

    /// Waits for events, for ever without a timeout, and says how many came.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<usize, LoadError> {
        let timespec = timeout.map(|duration| Timespec {
            tv_sec: duration.as_secs().cast_signed(),
            tv_nsec: i64::from(duration.subsec_nanos()),
        });
        match epoll::wait(&self.epoll, self.events.as_mut_slice(), timespec.as_ref()) {
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(errno) => Err(LoadError::system("epoll_wait")(errno)),
        }
    }

    /// The token and flags of one of the events that [`Poller::wait`] counted.
    pub(crate) fn event(&self, index: usize) -> (usize, EventFlags) {
        let event = self.events[index];
        let token = event.data.u64();
        (usize::try_from(token).unwrap_or(usize::MAX), event.flags)
    }
}

/// Opens client sockets to one address, each from a source port that nobody else uses.
pub(crate) struct Dialer {
    to: SocketAddr,
    next_source: u32,
}

impl Dialer {
    pub(crate) fn new(to: SocketAddr) -> Dialer {
        // Two generators at once start at different ports; a clash costs one more bind, no error.
        let next_source = std::process::id().wrapping_mul(7_919) % (SOURCE_PORTS * SOURCE_HOSTS);
        Dialer { to, next_source }
    }

    pub(crate) fn to(&self) -> SocketAddr {
        self.to
    }

    /// A non-blocking socket whose connect has begun; on loopback it is open by the time this returns.
    pub(crate) fn dial(&mut self) -> Result<OwnedFd, LoadError> {
        let family = if self.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        for _ in 0..SOURCE_PORTS {
            let fd = net::socket_with(
                family,
                SocketType::STREAM,
                SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
                None,
            )
            .map_err(LoadError::system("socket"))?;
            sockopt::set_tcp_nodelay(&fd, true).map_err(LoadError::system("TCP_NODELAY"))?;
            if !self.bind_source(&fd)? {
                continue;
            }
            match net::connect(&fd, &self.to) {
                Ok(()) | Err(Errno::INPROGRESS) => return Ok(fd),
                Err(Errno::ADDRNOTAVAIL) => {}
                Err(errno) => return Err(LoadError::system("connect")(errno)),
            }
        }
        Err(LoadError::NoSourcePort { to: self.to, tried: SOURCE_PORTS })
    }

    /// False when this source is taken and the next should be tried. Away from 127/8 the kernel chooses.
    fn bind_source(&mut self, fd: &OwnedFd) -> Result<bool, LoadError> {
        let loopback = matches!(self.to.ip(), IpAddr::V4(host) if host.is_loopback());
        if !loopback {
            return Ok(true);
        }
        let turn = self.next_source;
        self.next_source = (turn + 1) % (SOURCE_PORTS * SOURCE_HOSTS);
        let host = FIRST_SOURCE_HOST + u8::try_from(turn % SOURCE_HOSTS).unwrap_or(0);
        let port = FIRST_SOURCE_PORT + turn / SOURCE_HOSTS;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), u16::try_from(port).unwrap_or(0)));
        // Ports in TIME-WAIT may be used again: the same four numbers never recur against a fresh forwarder.
        sockopt::set_socket_reuseaddr(fd, true).map_err(LoadError::system("SO_REUSEADDR"))?;
        match net::bind(fd, &source) {
            Ok(()) => Ok(true),
            Err(Errno::ADDRINUSE) => Ok(false),
            Err(errno) => Err(LoadError::system("bind")(errno)),
        }
    }
}

/// Raises the soft limit of descriptors to the hard one, and returns it.
pub(crate) fn raise_descriptor_limit() -> Result<Option<u64>, LoadError> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(LoadError::system("setrlimit"))?;
    Ok(limit.maximum)
}

/// A read or write that cannot go on now, as opposed to one that failed.
pub(crate) enum Transfer {
    /// So many bytes went through.
    Moved(usize),
    /// The peer sent its end of stream (reads only).
    Ended,
    /// Not now; epoll will tell.
    Blocked,
}

/// Reads what is there, at most `buffer`.
pub(crate) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Transfer, Errno> {
    loop {
        match net::recv(fd, &mut *buffer, net::RecvFlags::empty()) {
            Ok((_, 0)) => return Ok(Transfer::Ended),
            Ok((_, count)) => return Ok(Transfer::Moved(count)),
            Err(Errno::AGAIN) => return Ok(Transfer::Blocked),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Writes as much of `bytes` as the socket takes.
pub(crate) fn send(fd: &OwnedFd, bytes: &[u8]) -> Result<Transfer, Errno> {
    loop {
        match net::send(fd, bytes, net::SendFlags::NOSIGNAL) {
            Ok(count) => return Ok(Transfer::Moved(count)),
            Err(Errno::AGAIN) => return Ok(Transfer::Blocked),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
