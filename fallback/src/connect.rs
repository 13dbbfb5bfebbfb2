//! Opens sockets towards upstreams and connects them, several at once where the session asks for it; and waits for
//! the addresses of names.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ringweir_flow::close::ConnectError;
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::outgoing::Origin;
use ringweir_flow::resolve::{ResolveError, Resolved};
use ringweir_flow::wire::HostName;
use ringweir_socket::{OptionError, SocketOption};
use smallvec::SmallVec;
use socket2::{Domain, Socket};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use crate::live::{Live, Turn};
use crate::platform::{self, connect_error, connect_local, is_full, is_in_progress};
use crate::stream::{Stream, Transport};

/// How long a dial waits for room in the accept queue of a local socket. The kernel has no event for it.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// The connects of a session, and the name it asked for.
#[derive(Default)]
pub(crate) struct Dials {
    dials: SmallVec<[Dial; 1]>,
    answer: Option<oneshot::Receiver<Resolved>>,
    /// What the upstream gets first, whichever it will be.
    pub(crate) early: Vec<u8>,
}

struct Dial {
    attempt: AttemptId,
    local: bool,
    state: State,
}

enum State {
    Open(Stream, Phase),
    /// The accept queue of this local socket was full.
    Waiting(Arc<Path>, Pin<Box<Sleep>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// About to become the upstream.
    Connected,
}

/// Starts an attempt.
pub(crate) fn start(
    live: &mut Live,
    attempt: AttemptId,
    address: &UpstreamAddr,
    local: bool,
    origin: Option<Origin>,
) {
    let opened = match (address, origin) {
        (UpstreamAddr::Tcp(address), Some(origin)) => open_special(live, *address, origin),
        (UpstreamAddr::Tcp(address), None) => open_tcp(*address).map_err(|error| connect_error(&error)),
        (UpstreamAddr::Unix(path), _) => open_local(path).map_err(|error| connect_error(&error)),
    };
    match opened {
        Ok(state) => live.dials.dials.push(Dial { attempt, local, state }),
        Err(error) => live.session.handle_connect_failed(attempt, error, live.now),
    }
}

/// Asks for the addresses of a name.
pub(crate) fn resolve(live: &mut Live, name: HostName) {
    let (give, answer) = oneshot::channel();
    live.dials.answer = Some(answer);
    live.worker.resolver.resolve(
        name,
        Box::new(move |resolved| {
            // A session that is over has no use for the answer.
            let _ = give.send(resolved);
        }),
    );
}

/// Gives an attempt up.
pub(crate) fn abandon(live: &mut Live, attempt: AttemptId) {
    live.dials.dials.retain(|dial| dial.attempt != attempt);
}

/// The socket of a connected attempt, as the session's upstream, and what it gets first.
pub(crate) fn take(live: &mut Live, attempt: AttemptId) -> Option<(Stream, Vec<u8>)> {
    let dials = &mut live.dials;
    let index = dials.dials.iter().position(|dial| dial.attempt == attempt)?;
    match dials.dials.swap_remove(index).state {
        State::Open(stream, Phase::Connected) => Some((stream, std::mem::take(&mut dials.early))),
        State::Open(_, Phase::Connecting) | State::Waiting(..) => None,
    }
}

/// Tells the session of the first answer that has come.
pub(crate) fn poll(live: &mut Live, cx: &mut Context<'_>) -> Turn {
    if let Some(answer) = &mut live.dials.answer
        && let Poll::Ready(resolved) = Pin::new(answer).poll(cx)
    {
        live.dials.answer = None;
        // A resolver that answers nothing has failed.
        let resolved = resolved.unwrap_or(Err(ResolveError::Failed));
        live.session.handle_resolved(resolved, live.now);
        return Turn::Moved;
    }
    for index in 0..live.dials.dials.len() {
        let dial = &mut live.dials.dials[index];
        let attempt = dial.attempt;
        match dial.poll(cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(local)) => {
                live.session.handle_connected(attempt, local, live.now);
                return Turn::Moved;
            }
            Poll::Ready(Err(error)) => {
                live.dials.dials.swap_remove(index);
                live.session.handle_connect_failed(attempt, connect_error(&error), live.now);
                return Turn::Moved;
            }
        }
    }
    Turn::Blocked
}

impl Dial {
    /// Ready once, with the socket's own address where that is wanted.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<SocketAddr>>> {
        loop {
            match &mut self.state {
                State::Open(_, Phase::Connected) => return Poll::Pending,
                State::Open(stream, phase) => {
                    ready!(stream.poll_connected(cx))?;
                    *phase = Phase::Connected;
                    return Poll::Ready(Ok(if self.local { stream.local_addr() } else { None }));
                }
                State::Waiting(path, pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.state = open_local(path)?;
                }
            }
        }
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<State> {
    let socket = platform::open_tcp(Domain::for_address(address))?;
    socket.set_tcp_nodelay(true)?;
    connect_tcp(socket, address)
}

/// A connect of an upstream that has options.
fn open_special(live: &Live, address: SocketAddr, origin: Origin) -> Result<State, ConnectError> {
    let Some(outgoing) = live.session.outgoing(origin.target) else {
        unreachable!("an origin is of an upstream that has options")
    };
    match ringweir_socket::open(address, outgoing, origin.source) {
        Ok(socket) => connect_tcp(socket, address).map_err(|error| connect_error(&error)),
        Err(OptionError { option: SocketOption::Socket, error }) => Err(connect_error(&error)),
        Err(error) => {
            tracing::debug!(%address, %error, "nothing is dialled");
            Err(ConnectError::OwnEnd)
        }
    }
}

fn connect_tcp(socket: Socket, address: SocketAddr) -> io::Result<State> {
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if is_in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(State::Open(Stream::adopt(socket, Transport::Tcp)?, Phase::Connecting))
}

fn open_local(path: &Arc<Path>) -> io::Result<State> {
    match connect_local(path) {
        Ok(stream) => Ok(State::Open(Stream::Local(stream), Phase::Connecting)),
        Err(error) if is_full(&error) => Ok(State::Waiting(Arc::clone(path), Box::pin(sleep(FULL_PAUSE)))),
        Err(error) => Err(error),
    }
}
