//! What stands behind the forwarder: one thread that echoes, swallows or produces, as the first byte asks.
//!
//! | first byte | service |
//! |---|---|
//! | `e` | echo: every byte comes back, this one included, until the client's end of stream |
//! | `u` | sink: reads to the end of stream, then answers the count of bytes (u64, little endian) and closes |
//! | `d` | source: eight more bytes give a count (u64, little endian, 0 for endless); so many follow, then the end |

use crate::error::LoadError;
use crate::net::{Poller, Transfer, raise_descriptor_limit, receive, send};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use std::io::Write;
use std::net::SocketAddr;

/// First byte of a connection that wants its bytes back.
pub(crate) const ECHO: u8 = b'e';
/// First byte of a connection whose bytes are swallowed and counted.
pub(crate) const SINK: u8 = b'u';
/// First byte of a connection that wants bytes.
pub(crate) const SOURCE: u8 = b'd';

/// More than the largest message of a scenario, so that one read empties the socket.
const BUFFER_BYTES: usize = 256 * 1024;
/// The kernel cuts this down to net.core.somaxconn.
const BACKLOG: i32 = 65_535;
/// Both directions by edges. An end of stream that came with the last bytes raises no edge of its own: RDHUP tells.
const EDGES: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);
/// Flags after which a short read does not mean that the socket is empty for good.
const ENDING: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);
/// Token of the listening socket; connections count from zero.
const LISTENER: usize = usize::MAX >> 1;

/// Serves until it is ended. The chosen port is printed first, alone on a line.
pub(crate) fn serve(listen: SocketAddr) -> Result<(), LoadError> {
    raise_descriptor_limit()?;
    let listener = open_listener(listen)?;
    announce_port(&listener)?;
    let mut backend = Backend {
        poller: Poller::new()?,
        connections: Vec::new(),
        free: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
        produce: vec![SOURCE; BUFFER_BYTES],
    };
    backend.poller.add(&listener, LISTENER, EventFlags::IN)?;
    loop {
        let count = backend.poller.wait(None)?;
        for index in 0..count {
            let (token, flags) = backend.poller.event(index);
            if token == LISTENER {
                backend.handle_accept(&listener)?;
            } else {
                backend.handle_ready(token, flags)?;
            }
        }
    }
}

fn open_listener(listen: SocketAddr) -> Result<OwnedFd, LoadError> {
    let family = if listen.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener =
        net::socket_with(family, SocketType::STREAM, flags, None).map_err(LoadError::system("socket"))?;
    sockopt::set_socket_reuseaddr(&listener, true).map_err(LoadError::system("SO_REUSEADDR"))?;
    // Accepted sockets inherit this: no system call for each.
    sockopt::set_tcp_nodelay(&listener, true).map_err(LoadError::system("TCP_NODELAY"))?;
    net::bind(&listener, &listen).map_err(LoadError::system("bind"))?;
    net::listen(&listener, BACKLOG).map_err(LoadError::system("listen"))?;
    Ok(listener)
}

fn announce_port(listener: &OwnedFd) -> Result<(), LoadError> {
    let name = net::getsockname(listener).map_err(LoadError::system("getsockname"))?;
    let address = SocketAddr::try_from(name).map_err(LoadError::system("getsockname"))?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", address.port()).map_err(LoadError::system("write to stdout"))?;
    out.flush().map_err(LoadError::system("write to stdout"))
}

/// What a connection has asked for.
enum Service {
    /// Nothing yet.
    Fresh,
    /// Its bytes back; `unsent` are those the socket did not take.
    Echo { unsent: Vec<u8>, input: Input },
    /// To be read to the end.
    Sink { received_bytes: u64 },
    /// To be fed, once the eight bytes of the count are there.
    SourceHead { head: [u8; 8], filled: usize },
    /// To be fed; `None` for ever.
    Source { left_bytes: Option<u64> },
}

/// Whether the client may still send.
#[derive(Clone, Copy, PartialEq)]
enum Input {
    Open,
    Ended,
}

/// What becomes of a connection after an event.
enum Verdict {
    Keep,
    Close,
}

struct Connection {
    fd: OwnedFd,
    service: Service,
}

struct Backend {
    poller: Poller,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    produce: Vec<u8>,
}

impl Backend {
    fn handle_accept(&mut self, listener: &OwnedFd) -> Result<(), LoadError> {
        loop {
            let fd = match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => return Err(LoadError::system("accept4")(errno)),
            };
            let token = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            // Edge-triggered for both directions: one registration, whatever the service turns out to be.
            self.poller.add(&fd, token, EDGES)?;
            self.connections[token] = Some(Connection { fd, service: Service::Fresh });
        }
    }

    fn handle_ready(&mut self, token: usize, flags: EventFlags) -> Result<(), LoadError> {
        let Some(mut connection) = self.connections[token].take() else { return Ok(()) };
        let before = std::mem::discriminant(&connection.service);
        // A reset by the client is its right: the connection is over, the backend is not.
        let verdict =
            connection.handle_ready(flags, &mut self.buffer, &self.produce).unwrap_or(Verdict::Close);
        match verdict {
            Verdict::Close => self.free.push(token),
            Verdict::Keep => {
                if std::mem::discriminant(&connection.service) != before {
                    self.watch_for_service(&connection, token)?;
                }
                self.connections[token] = Some(connection);
            }
        }
        Ok(())
    }

    /// Streams are level-triggered, one transfer a turn, so that one of them cannot starve the others.
    fn watch_for_service(&self, connection: &Connection, token: usize) -> Result<(), LoadError> {
        match connection.service {
            Service::Sink { .. } => self.poller.modify(&connection.fd, token, EventFlags::IN),
            Service::Source { .. } => self.poller.modify(&connection.fd, token, EventFlags::OUT),
            Service::Fresh | Service::Echo { .. } | Service::SourceHead { .. } => Ok(()),
        }
    }
}

impl Connection {
    fn handle_ready(
        &mut self,
        flags: EventFlags,
        buffer: &mut [u8],
        produce: &[u8],
    ) -> Result<Verdict, Errno> {
        match &mut self.service {
            Service::Fresh => {
                if !flags.intersects(EventFlags::IN.union(ENDING)) {
                    return Ok(Verdict::Keep);
                }
                match receive(&self.fd, buffer)? {
                    Transfer::Moved(count) => self.begin(flags, buffer, count),
                    Transfer::Ended => Ok(Verdict::Close),
                    Transfer::Blocked => Ok(Verdict::Keep),
                }
            }
            Service::Echo { unsent, input } => echo(&self.fd, flags, (unsent, input), buffer),
            Service::Sink { received_bytes } => sink(&self.fd, received_bytes, buffer),
            Service::SourceHead { head, filled } => match receive(&self.fd, &mut head[*filled..])? {
                Transfer::Moved(count) => {
                    *filled += count;
                    self.begin_source_when_known();
                    Ok(Verdict::Keep)
                }
                Transfer::Ended => Ok(Verdict::Close),
                Transfer::Blocked => Ok(Verdict::Keep),
            },
            Service::Source { left_bytes } => produce_some(&self.fd, left_bytes, produce),
        }
    }

    /// The first bytes of the connection are in `buffer`: the very first names the service.
    fn begin(&mut self, flags: EventFlags, buffer: &mut [u8], count: usize) -> Result<Verdict, Errno> {
        match buffer[0] {
            ECHO => {
                let mut unsent = Vec::new();
                echo_chunk(&self.fd, &mut unsent, &buffer[..count])?;
                self.service = Service::Echo { unsent, input: Input::Open };
                // After a short read the next byte raises a new edge.
                let more = count == buffer.len() || flags.intersects(ENDING);
                if more { self.handle_ready(flags, buffer, &[]) } else { Ok(Verdict::Keep) }
            }
            SINK => {
                self.service = Service::Sink { received_bytes: count as u64 };
                Ok(Verdict::Keep)
            }
            SOURCE => {
                let mut head = [0; 8];
                let filled = (count - 1).min(head.len());
                head[..filled].copy_from_slice(&buffer[1..=filled]);
                self.service = Service::SourceHead { head, filled };
                self.begin_source_when_known();
                Ok(Verdict::Keep)
            }
            _ => Ok(Verdict::Close),
        }
    }

    fn begin_source_when_known(&mut self) {
        if let Service::SourceHead { head, filled } = self.service
            && filled == head.len()
        {
            let count = u64::from_le_bytes(head);
            self.service = Service::Source { left_bytes: (count > 0).then_some(count) };
        }
    }
}

fn echo(
    fd: &OwnedFd,
    flags: EventFlags,
    (unsent, input): (&mut Vec<u8>, &mut Input),
    buffer: &mut [u8],
) -> Result<Verdict, Errno> {
    if !unsent.is_empty() {
        let rest = std::mem::take(unsent);
        echo_chunk(fd, unsent, &rest)?;
    }
    while unsent.is_empty() && *input == Input::Open {
        match receive(fd, buffer)? {
            Transfer::Moved(count) => {
                echo_chunk(fd, unsent, &buffer[..count])?;
                if count < buffer.len() && !flags.intersects(ENDING) {
                    break;
                }
            }
            Transfer::Ended => *input = Input::Ended,
            Transfer::Blocked => break,
        }
    }
    Ok(if unsent.is_empty() && *input == Input::Ended { Verdict::Close } else { Verdict::Keep })
}

/// Sends back what it can and keeps the rest; at most one buffer, because nothing is read while some is left.
fn echo_chunk(fd: &OwnedFd, unsent: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Errno> {
    let sent = match send(fd, bytes)? {
        Transfer::Moved(count) => count,
        Transfer::Ended | Transfer::Blocked => 0,
    };
    unsent.extend_from_slice(&bytes[sent..]);
    Ok(())
}

fn sink(fd: &OwnedFd, received_bytes: &mut u64, buffer: &mut [u8]) -> Result<Verdict, Errno> {
    match receive(fd, buffer)? {
        Transfer::Moved(count) => {
            *received_bytes += count as u64;
            Ok(Verdict::Keep)
        }
        Transfer::Ended => {
            // Eight bytes into an empty send buffer: they fit.
            send(fd, &received_bytes.to_le_bytes())?;
            Ok(Verdict::Close)
        }
        Transfer::Blocked => Ok(Verdict::Keep),
    }
}

fn produce_some(fd: &OwnedFd, left_bytes: &mut Option<u64>, produce: &[u8]) -> Result<Verdict, Errno> {
    let wanted = match *left_bytes {
        Some(left) => usize::try_from(left).unwrap_or(usize::MAX).min(produce.len()),
        None => produce.len(),
    };
    if let Transfer::Moved(count) = send(fd, &produce[..wanted])?
        && let Some(left) = left_bytes
    {
        *left -= count as u64;
    }
    Ok(if *left_bytes == Some(0) { Verdict::Close } else { Verdict::Keep })
}
