//! Opens sockets towards upstreams and connects them, several at once where the session asks for it; and waits for
//! the addresses of names.

use std::cell::RefCell;
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
use socket2::{Domain, SockRef, Socket};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use crate::buffers::{Buffer, Buffers, Size};
use crate::live::{AfterOutbox, Live, Outbox, Turn};
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
    /// What is to be said there before it is the upstream, if it ever will be.
    outbox: Outbox,
    after_outbox: AfterOutbox,
    hearing: Hearing,
    said: Said,
}

/// How much the other end of an attempt has been told, ahead of the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// Closing the socket would look like the end of it.
    Some,
    /// The end of the stream, too.
    All,
}

/// Whether the session wants to hear from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    No,
    Once,
}

/// What has become of a dial.
enum Event {
    Connected(Option<SocketAddr>),
    NotConnected(io::Error),
    Heard(Buffer, usize),
    Ended,
    Failed,
}

enum State {
    Open(Stream, Phase),
    /// The accept queue of this local socket was full.
    Waiting(Arc<Path>, Pin<Box<Sleep>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// May become the upstream.
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
        Ok(state) => live.dials.dials.push(Dial::new(attempt, local, state)),
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

/// Gives an attempt up. Nobody is to take for whole what was said there in part.
pub(crate) fn abandon(live: &mut Live, attempt: AttemptId) {
    if let Some(dial) = live.dials.find(attempt)
        && dial.said == Said::Some
        && let State::Open(Stream::Tcp(stream), _) = &dial.state
    {
        // Zero linger makes close(2) send a reset. It fails only when there is no connection.
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    live.dials.dials.retain(|dial| dial.attempt != attempt);
}

/// Sends on an attempt's socket.
pub(crate) fn send_ahead(live: &mut Live, attempt: AttemptId, bytes: &[u8]) {
    if let Some(dial) = live.dials.find(attempt) {
        dial.outbox.push(bytes);
        dial.said = Said::Some;
    }
}

/// Ends an attempt's stream once everything is sent.
pub(crate) fn end_ahead(live: &mut Live, attempt: AttemptId) {
    if let Some(dial) = live.dials.find(attempt) {
        dial.after_outbox = AfterOutbox::ShutDown;
    }
}

/// Receives once from an attempt's socket.
pub(crate) fn receive_ahead(live: &mut Live, attempt: AttemptId) {
    if let Some(dial) = live.dials.find(attempt) {
        dial.hearing = Hearing::Once;
    }
}

/// The socket of a connected attempt, as the session's upstream, and what it gets first.
pub(crate) fn take(live: &mut Live, attempt: AttemptId) -> Option<(Stream, Vec<u8>)> {
    let dials = &mut live.dials;
    let index = dials.dials.iter().position(|dial| dial.attempt == attempt)?;
    let dial = dials.dials.swap_remove(index);
    let mut first = dial.outbox.into_unsent();
    match dial.state {
        State::Open(stream, Phase::Connected) => {
            first.append(&mut dials.early);
            Some((stream, first))
        }
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
        let Poll::Ready(event) = dial.poll(&live.worker.buffers, cx) else { continue };
        match event {
            Event::Connected(local) => live.session.handle_connected(attempt, local, live.now),
            Event::NotConnected(error) => {
                live.dials.dials.swap_remove(index);
                live.session.handle_connect_failed(attempt, connect_error(&error), live.now);
            }
            Event::Heard(buffer, bytes) => {
                live.session.handle_received_ahead(attempt, &buffer.bytes()[..bytes], live.now);
                live.worker.buffers.borrow_mut().give_back(buffer);
            }
            Event::Ended => live.session.handle_ended_ahead(attempt, live.now),
            Event::Failed => live.session.handle_failed_ahead(attempt, live.now),
        }
        return Turn::Moved;
    }
    Turn::Blocked
}

impl Dials {
    fn find(&mut self, attempt: AttemptId) -> Option<&mut Dial> {
        self.dials.iter_mut().find(|dial| dial.attempt == attempt)
    }
}

impl Dial {
    fn new(attempt: AttemptId, local: bool, state: State) -> Dial {
        let (outbox, after_outbox) = (Outbox::default(), AfterOutbox::Nothing);
        Dial { attempt, local, state, outbox, after_outbox, hearing: Hearing::No, said: Said::Nothing }
    }

    fn poll(&mut self, buffers: &RefCell<Buffers>, cx: &mut Context<'_>) -> Poll<Event> {
        if matches!(self.state, State::Open(_, Phase::Connected)) {
            return self.poll_ahead(buffers, cx);
        }
        let connected = ready!(self.poll_connected(cx));
        Poll::Ready(connected.map_or_else(Event::NotConnected, Event::Connected))
    }

    /// Ready once, with the socket's own address where that is wanted.
    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<SocketAddr>>> {
        loop {
            match &mut self.state {
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

    /// Sends what is to be said ahead of the pump, and receives once if that is wanted.
    fn poll_ahead(&mut self, buffers: &RefCell<Buffers>, cx: &mut Context<'_>) -> Poll<Event> {
        let State::Open(stream, _) = &mut self.state else { return Poll::Pending };
        while !self.outbox.is_empty() {
            match stream.poll_write(cx, self.outbox.unsent()) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => self.outbox.handle_sent(bytes),
                // The receive fails as well, and is told.
                Poll::Ready(Err(_)) => {
                    self.outbox.clear();
                    self.after_outbox = AfterOutbox::Nothing;
                }
            }
        }
        if self.outbox.is_empty()
            && std::mem::replace(&mut self.after_outbox, AfterOutbox::Nothing) == AfterOutbox::ShutDown
        {
            stream.shut_down();
            self.said = Said::All;
        }
        if self.hearing == Hearing::No {
            return Poll::Pending;
        }
        let mut buffer = buffers.borrow_mut().take(Size::Small);
        let event = match stream.poll_read(cx, buffer.bytes_mut()) {
            Poll::Ready(Ok(bytes @ 1..)) => {
                self.hearing = Hearing::No;
                return Poll::Ready(Event::Heard(buffer, bytes));
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Event::Ended),
            Poll::Ready(Err(_)) => Poll::Ready(Event::Failed),
            Poll::Pending => Poll::Pending,
        };
        buffers.borrow_mut().give_back(buffer);
        event
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
