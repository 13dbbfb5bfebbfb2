//! Opens sockets towards upstreams and connects them; several at once where the session asks for it. What is said and
//! heard on them before one is the session's upstream is in `ahead.rs`.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ringweir_flow::close::ConnectError;
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::outgoing::Origin;
use ringweir_ring::{Errno, MAX_LANES, Op, SocketAddrAny, SocketAddrUnix};
use ringweir_socket::{OptionError, SocketOption};
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};
use rustix::net::{AddressFamily, SocketFlags, SocketType, getsockname, socket_with};
use smallvec::SmallVec;

use crate::ahead;
use crate::live::{Live, Stream, Transport, token_in};
use crate::sessions::SessionId;
use crate::worker::Tools;

/// The connects of a session.
#[derive(Default)]
pub(crate) struct Dials {
    slots: SmallVec<[Option<Dial>; 1]>,
    /// What the upstream gets first, whichever it will be.
    pub(crate) early: Vec<u8>,
    /// The lane of the attempt that has become the upstream, where something of it was under way.
    pub(crate) adopted: Option<u8>,
}

pub(crate) struct Dial {
    pub(crate) attempt: AttemptId,
    pub(crate) stream: Stream,
    local: bool,
    pub(crate) state: State,
    pub(crate) said: Said,
    /// Operations on it that the ring has not answered yet. Its lane is not given to another before.
    pub(crate) in_flight: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Connecting,
    /// Nobody waits for it any more, but the ring has not answered yet.
    Abandoned,
    /// May become the upstream.
    Connected,
}

/// How much the other end of an attempt has been told, ahead of the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    /// Closing the socket would look like the end of it.
    Some,
    /// The end of the stream, too.
    All,
}

/// The lanes before are those of the client and the upstream.
const FIRST_LANE: u8 = 2;

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
            let stream = Stream::new(socket, transport);
            let dial =
                Dial { attempt, stream, local, state: State::Connecting, said: Said::Nothing, in_flight: 1 };
            *live.dials.slot(lane) = Some(dial);
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

/// Gives an attempt up. Nobody is to take for whole what was said there in part.
pub(crate) fn abandon(live: &mut Live, id: SessionId, attempt: AttemptId, tools: &mut Tools) {
    let Some((lane, dial)) = live.dials.find(attempt) else { return };
    match dial.state {
        State::Connecting => tools.ring.cancel(token_in(Op::Connect, lane, id)),
        State::Connected => ahead::cancel(dial, lane, id, tools),
        State::Abandoned => {}
    }
    dial.state = State::Abandoned;
    if dial.said == Said::Some && dial.stream.transport == Transport::Tcp {
        // Zero linger makes close(2) send a reset. It fails only when there is no connection.
        let _ = set_socket_linger(dial.stream.fd(), Some(Duration::ZERO));
    }
    if dial.in_flight == 0 {
        *live.dials.slot(lane) = None;
    }
}

/// Gives every attempt up: the session closes.
pub(crate) fn cancel_all(live: &mut Live, id: SessionId, tools: &mut Tools) {
    let attempts: SmallVec<[AttemptId; 4]> =
        live.dials.slots.iter().flatten().map(|dial| dial.attempt).collect();
    for attempt in attempts {
        abandon(live, id, attempt, tools);
    }
}

/// The ring has answered.
pub(crate) fn handle_connected(live: &mut Live, lane: u8, result: Result<(), Errno>, tools: &mut Tools) {
    let Some(dial) = live.dials.handle_answered(lane) else { return };
    let attempt = dial.attempt;
    match result {
        Ok(()) => {
            dial.state = State::Connected;
            let local = if dial.local { local_address(dial.stream.fd()) } else { None };
            live.session.handle_connected(attempt, local, tools.now);
        }
        Err(errno) => {
            *live.dials.slot(lane) = None;
            live.session.handle_connect_failed(attempt, connect_error(errno), tools.now);
        }
    }
}

/// The socket of a connected attempt, as the session's upstream. What is under way on it stays in the attempt's lane,
/// which is the upstream's from now on.
pub(crate) fn take(live: &mut Live, attempt: AttemptId) -> Option<Stream> {
    let (lane, dial) = live.dials.find(attempt)?;
    let is_busy = dial.in_flight > 0;
    let dial = live.dials.slot(lane).take()?;
    if is_busy {
        live.dials.adopted = Some(lane);
    }
    let mut stream = dial.stream;
    stream.outbox.append(&mut std::mem::take(&mut live.dials.early));
    Some(stream)
}

impl Dials {
    /// The lane of an attempt that has not been given up.
    pub(crate) fn find(&mut self, attempt: AttemptId) -> Option<(u8, &mut Dial)> {
        let numbered = (FIRST_LANE..).zip(&mut self.slots);
        numbered
            .filter_map(|(lane, slot)| Some((lane, slot.as_mut()?)))
            .find(|(_, dial)| dial.attempt == attempt && dial.state != State::Abandoned)
    }

    /// An operation of a lane was answered: its dial, unless nobody waits for it any more.
    pub(crate) fn handle_answered(&mut self, lane: u8) -> Option<&mut Dial> {
        let slot = self.slot(lane);
        let Some(dial) = slot else { unreachable!("a lane is freed only when all of it was answered") };
        dial.in_flight -= 1;
        if dial.state == State::Abandoned && dial.in_flight == 0 {
            *slot = None;
        }
        slot.as_mut().filter(|dial| dial.state != State::Abandoned)
    }

    pub(crate) fn slot(&mut self, lane: u8) -> &mut Option<Dial> {
        &mut self.slots[usize::from(lane - FIRST_LANE)]
    }

    fn free_lane(&mut self) -> Option<u8> {
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None if self.slots.len() < usize::from(MAX_LANES - FIRST_LANE) => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        u8::try_from(slot).ok().map(|slot| FIRST_LANE + slot)
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

/// The address of a socket's own end, where it is one of TCP.
pub(crate) fn local_address(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
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
