//! Opens sockets towards upstreams and connects them; several at once where the session asks for it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use ringweir_flow::close::ConnectError;
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::outgoing::Origin;
use ringweir_ring::{Errno, MAX_LANES, Op, SocketAddrAny, SocketAddrUnix};
use ringweir_socket::{OptionError, SocketOption};
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{AddressFamily, SocketFlags, SocketType, getsockname, socket_with};
use smallvec::SmallVec;

use crate::live::{Live, Stream, Transport, token_in};
use crate::sessions::SessionId;
use crate::worker::Tools;

/// The connects of a session.
#[derive(Default)]
pub(crate) struct Dials {
    /// By lane.
    lanes: SmallVec<[Option<Dial>; 1]>,
    /// What the upstream gets first, whichever it will be.
    pub(crate) early: Vec<u8>,
}

struct Dial {
    attempt: AttemptId,
    socket: OwnedFd,
    transport: Transport,
    local: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    /// Nobody waits for it any more, but the ring has not answered yet.
    Abandoned,
    /// Connected, and about to become the upstream.
    Connected,
}

/// What the session wants connected.
pub(crate) struct Wish {
    pub(crate) attempt: AttemptId,
    pub(crate) address: UpstreamAddr,
    pub(crate) local: bool,
    pub(crate) origin: Option<Origin>,
}

/// Starts an attempt.
pub(crate) fn start(live: &mut Live, id: SessionId, wish: Wish, tools: &mut Tools) {
    let Wish { attempt, address, local, origin } = wish;
    let opened = match (&address, origin) {
        (UpstreamAddr::Tcp(address), Some(origin)) => open_special(live, *address, origin),
        (UpstreamAddr::Tcp(_) | UpstreamAddr::Unix(_), _) => open(&address).map_err(Unopened::Plain),
    };
    match opened {
        Ok((socket, address, transport)) => {
            let Some(lane) = live.dials.free_lane() else {
                live.session.handle_connect_failed(attempt, ConnectError::OutOfResources, tools.now);
                return;
            };
            tools.ring.connect(token_in(Op::Connect, lane, id), socket.as_fd(), address);
            live.in_flight += 1;
            live.dials.lanes[usize::from(lane)] =
                Some(Dial { attempt, socket, transport, local, state: State::Connecting });
        }
        Err(Unopened::Special) => {
            live.session.handle_connect_failed(attempt, ConnectError::OwnEnd, tools.now);
        }
        Err(Unopened::Plain(errno)) => {
            let error = connect_error(errno);
            if error == ConnectError::OutOfResources {
                tools.exhausted = Some(errno);
            }
            live.session.handle_connect_failed(attempt, error, tools.now);
        }
    }
}

/// Gives an attempt up.
pub(crate) fn abandon(live: &mut Live, id: SessionId, attempt: AttemptId, tools: &mut Tools) {
    for (lane, slot) in (0u8..).zip(&mut live.dials.lanes) {
        if let Some(dial) = slot
            && dial.attempt == attempt
        {
            match dial.state {
                State::Connecting => {
                    dial.state = State::Abandoned;
                    tools.ring.cancel(token_in(Op::Connect, lane, id));
                }
                State::Abandoned => {}
                State::Connected => *slot = None,
            }
        }
    }
}

/// Gives every attempt up: the session closes.
pub(crate) fn cancel_all(live: &mut Live, id: SessionId, tools: &mut Tools) {
    let attempts: SmallVec<[AttemptId; 4]> =
        live.dials.lanes.iter().flatten().map(|dial| dial.attempt).collect();
    for attempt in attempts {
        abandon(live, id, attempt, tools);
    }
}

/// The ring has answered.
pub(crate) fn handle_connected(live: &mut Live, lane: u8, result: Result<(), Errno>, tools: &mut Tools) {
    let slot = &mut live.dials.lanes[usize::from(lane)];
    let Some(dial) = slot else { unreachable!("a lane is freed only when its connect was answered") };
    let attempt = dial.attempt;
    match (dial.state, result) {
        (State::Abandoned, _) => {
            // Connected late or cancelled: nobody waits for it.
            *slot = None;
        }
        (State::Connecting | State::Connected, Ok(())) => {
            dial.state = State::Connected;
            let local = if dial.local { local_address(&dial.socket) } else { None };
            live.session.handle_connected(attempt, local, tools.now);
        }
        (State::Connecting | State::Connected, Err(errno)) => {
            *slot = None;
            live.session.handle_connect_failed(attempt, connect_error(errno), tools.now);
        }
    }
}

/// The socket of a connected attempt, as the session's upstream.
pub(crate) fn take(live: &mut Live, attempt: AttemptId) -> Option<Stream> {
    let slot =
        live.dials.lanes.iter_mut().find(|slot| slot.as_ref().is_some_and(|dial| dial.attempt == attempt));
    let dial = slot.and_then(Option::take)?;
    let mut stream = Stream::new(dial.socket, dial.transport);
    stream.outbox = std::mem::take(&mut live.dials.early);
    Some(stream)
}

impl Dials {
    fn free_lane(&mut self) -> Option<u8> {
        let lane = match self.lanes.iter().position(Option::is_none) {
            Some(lane) => lane,
            None => {
                self.lanes.push(None);
                self.lanes.len() - 1
            }
        };
        u8::try_from(lane).ok().filter(|lane| *lane < MAX_LANES)
    }
}

/// Splicing needs O_NONBLOCK; the ring waits all the same.
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Why there is no socket.
enum Unopened {
    /// The system has none to give.
    Plain(Errno),
    /// An option of the upstream was refused.
    Special,
}

/// A socket of an upstream that has options.
fn open_special(
    live: &Live,
    address: SocketAddr,
    origin: Origin,
) -> Result<(OwnedFd, SocketAddrAny, Transport), Unopened> {
    let Some(outgoing) = live.session.outgoing(origin.target) else {
        unreachable!("an origin is of an upstream that has options")
    };
    match ringweir_socket::open(address, outgoing, origin.source) {
        Ok(socket) => Ok((socket.into(), SocketAddrAny::from(address), Transport::Tcp)),
        Err(OptionError { option: SocketOption::Socket, error }) => {
            Err(Unopened::Plain(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
        }
        Err(error) => {
            tracing::debug!(%address, %error, "nothing is dialled");
            Err(Unopened::Special)
        }
    }
}

fn open(address: &UpstreamAddr) -> Result<(OwnedFd, SocketAddrAny, Transport), Errno> {
    let stream = |family| socket_with(family, SocketType::STREAM, FLAGS, None);
    match address {
        UpstreamAddr::Tcp(address) => {
            let family = match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let socket = stream(family)?;
            set_tcp_nodelay(&socket, true)?;
            Ok((socket, SocketAddrAny::from(*address), Transport::Tcp))
        }
        UpstreamAddr::Unix(path) => {
            let address = SocketAddrUnix::new(&**path)?;
            Ok((stream(AddressFamily::UNIX)?, SocketAddrAny::from(address), Transport::Unix))
        }
    }
}

fn local_address(socket: &OwnedFd) -> Option<SocketAddr> {
    getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok())
}

fn connect_error(errno: Errno) -> ConnectError {
    match errno {
        // A Unix socket that is not there is a service that does not run.
        Errno::CONNREFUSED | Errno::NOENT => ConnectError::Refused,
        Errno::TIMEDOUT => ConnectError::TimedOut,
        Errno::NETUNREACH => ConnectError::NetworkUnreachable,
        Errno::HOSTUNREACH => ConnectError::HostUnreachable,
        Errno::CONNRESET => ConnectError::Reset,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL => {
            ConnectError::OutOfResources
        }
        other => ConnectError::Other(other.raw_os_error()),
    }
}
