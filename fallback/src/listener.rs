//! Accepts clients, for as long as there are descriptors to serve them with, and deals out those of a socket that the
//! workers share.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringweir_flow::record::ClientAddr;
use ringweir_flow::snapshot::BindId;
use socket2::Socket;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::Opened;
use crate::platform::{self, LocalListener, adopt_local_listener, is_clients_doing, release_local_listener};
use crate::seats::Seats;
use crate::stream::{Stream, Transport};
use crate::worker::{Arrival, Message, Worker};

/// How many clients a listener accepts before the sessions get their turn.
const BATCH: u32 = 16;

/// How long accepting pauses when the system has no descriptor or memory, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// At most one warning in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// What becomes of a listener that is told anything. One that is told nothing more is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Serves what waits in the accept queue, then closes: closing alone would reset them.
    Drain,
}

/// Whose clients a socket brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dealing {
    /// This worker's; the others have sockets of their own.
    Own,
    /// Everybody's, in turn.
    InTurn,
}

/// A listening socket as a worker gets it.
pub(crate) struct Opening {
    pub(crate) bind: BindId,
    socket: Socket,
    dealing: Dealing,
}

/// A listening socket that is waited for.
pub(crate) struct Listener {
    acceptor: Acceptor,
    dealer: Dealer,
}

/// Gives clients to workers.
struct Dealer {
    bind: BindId,
    dealing: Dealing,
    /// Which worker gets the next client.
    next: Cell<usize>,
}

enum Acceptor {
    Tcp(TcpListener),
    Local(LocalListener),
}

/// Each worker's share of new sockets.
pub(crate) fn share(opened: Vec<Opened>, workers: usize) -> Vec<Vec<Opening>> {
    let mut shares: Vec<Vec<Opening>> = (0..workers).map(|_| Vec::new()).collect();
    for (bind, sockets) in opened {
        let dealing = if sockets.len() == 1 { Dealing::InTurn } else { Dealing::Own };
        for (share, socket) in shares.iter_mut().zip(sockets) {
            share.push(Opening { bind, socket, dealing });
        }
    }
    shares
}

impl Opening {
    /// Must be called in the runtime of its worker.
    pub(crate) fn open(self) -> io::Result<Listener> {
        self.socket.set_nonblocking(true)?;
        let acceptor = match self.socket.local_addr()?.as_socket() {
            Some(_) => {
                platform::prepare_listener(&self.socket);
                Acceptor::Tcp(TcpListener::from_std(self.socket.into())?)
            }
            None => Acceptor::Local(adopt_local_listener(self.socket)?),
        };
        let dealer = Dealer { bind: self.bind, dealing: self.dealing, next: Cell::new(0) };
        Ok(Listener { acceptor, dealer })
    }
}

/// Serves a listener until its fate is told.
pub(crate) async fn accept_clients(worker: Rc<Worker>, listener: Listener, fate: oneshot::Receiver<Fate>) {
    let told = tokio::select! {
        biased;
        told = fate => told,
        never = listener.accept_forever(&worker) => match never {},
    };
    let Listener { acceptor, dealer } = listener;
    match told {
        Ok(Fate::Drain) => drain(acceptor, &dealer, &worker),
        Err(_) => drop(acceptor),
    }
    match dealer.dealing {
        Dealing::Own => worker.forget(dealer.bind),
        Dealing::InTurn => {
            for inbox in &*worker.inboxes {
                // A worker that is gone has nothing to forget.
                let _ = inbox.send(Message::Forget(dealer.bind));
            }
        }
    }
}

impl Listener {
    async fn accept_forever(&self, worker: &Rc<Worker>) -> Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            for _ in 0..BATCH {
                worker.seats.wait_until(Seats::has_room).await;
                match self.acceptor.accept().await {
                    Ok((stream, client)) => {
                        pause = FIRST_PAUSE;
                        self.dealer.deal(worker, stream, client);
                    }
                    Err(error) if is_clients_doing(&error) => {}
                    Err(error) => {
                        worker.warning.give(&error);
                        sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Dealer {
    /// Gives a client to the worker whose turn it is.
    fn deal(&self, worker: &Rc<Worker>, stream: Stream, client: ClientAddr) {
        let index = match self.dealing {
            Dealing::Own => worker.index.0,
            Dealing::InTurn => self.next.replace((self.next.get() + 1) % worker.inboxes.len()),
        };
        let seat = worker.seats.take(index);
        if index == worker.index.0 {
            worker.welcome(self.bind, stream, client, seat);
        } else if let Ok((socket, transport)) = stream.into_socket() {
            let arrival = Arrival { bind: self.bind, socket, transport, client, seat };
            // A worker that is gone serves nobody: the daemon is stopping.
            let _ = worker.inboxes[index].send(Message::Client(arrival));
        }
    }
}

/// Serves everybody who waits in the accept queue. What the runtime knows of the socket may be older than the queue,
/// so the system is asked directly.
fn drain(acceptor: Acceptor, dealer: &Dealer, worker: &Rc<Worker>) {
    let (socket, transport) = match acceptor {
        Acceptor::Tcp(listener) => (listener.into_std().map(Socket::from), Transport::Tcp),
        Acceptor::Local(listener) => (release_local_listener(listener), Transport::Local),
    };
    let Ok(socket) = socket else { return };
    loop {
        match accept_waiting(&socket, transport) {
            Ok(Some((stream, client))) => dealer.deal(worker, stream, client),
            Ok(None) => {}
            Err(error) if is_clients_doing(&error) => {}
            // Nobody waits any more; or nobody can be served any more.
            Err(_) => return,
        }
    }
}

/// `None` for a client that is gone already.
fn accept_waiting(socket: &Socket, transport: Transport) -> io::Result<Option<(Stream, ClientAddr)>> {
    let (socket, address) = socket.accept()?;
    socket.set_nonblocking(true)?;
    let client = match (transport, address.as_socket()) {
        (Transport::Local, _) => ClientAddr::Unix,
        (Transport::Tcp, Some(address)) => ClientAddr::Ip(address),
        (Transport::Tcp, None) => return Ok(None),
    };
    let stream = Stream::adopt(socket, transport)?;
    if let Stream::Tcp(stream) = &stream {
        platform::prepare_accepted(stream);
    }
    Ok(Some((stream, client)))
}

impl Acceptor {
    async fn accept(&self) -> io::Result<(Stream, ClientAddr)> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                platform::prepare_accepted(&stream);
                Ok((Stream::Tcp(stream), ClientAddr::Ip(address)))
            }
            Acceptor::Local(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Local(stream), ClientAddr::Unix))
            }
        }
    }
}

/// Says that accepting is paused, at most once a second in the whole process: a machine without descriptors is one
/// piece of news, not one for each worker.
#[derive(Default)]
pub(crate) struct Warning {
    /// Of this worker, since its last one.
    failures: Cell<u64>,
}

/// When any worker warned last.
static GIVEN_AT: Mutex<Option<Instant>> = Mutex::new(None);

impl Warning {
    fn give(&self, error: &io::Error) {
        self.failures.set(self.failures.get() + 1);
        let mut given_at = GIVEN_AT.lock().unwrap_or_else(PoisonError::into_inner);
        if given_at.is_none_or(|given_at| given_at.elapsed() >= WARNING_INTERVAL) {
            *given_at = Some(Instant::now());
            tracing::warn!(
                failures = self.failures.replace(0),
                %error,
                "accepting is paused until descriptors or memory come back"
            );
        }
    }
}
