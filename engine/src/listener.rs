//! Accepts clients, for as long as there are descriptors to serve them with.
//!
//! A session needs two descriptors. The workers together take only as many sessions as the process's limit is enough for;
//! the others wait in the accept queue, where they lose nothing. With room to spare one multishot accept
//! brings in whoever comes; near the limit single accepts do, so that the limit is not overrun by a burst.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as Clock};

use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::Session;
use ringweir_flow::snapshot::{BindId, ListenerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;
use ringweir_ring::{Errno, Op, Token};
use rustix::net::{SocketFlags, accept_with, getpeername};
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket};

use crate::Opened;
use crate::live::{Live, Transport};
use crate::seats::Seats;
use crate::worker::{Timer, Tools, Worker};

/// With this much room for each worker a multishot accept is armed; it takes at most a completion queue's length of
/// clients before it can be stopped.
const MULTISHOT_ROOM: usize = 2048;

/// How long accepting pauses when the kernel has no descriptor or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// At most one warning in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Descriptors left for the configuration, name servers, checks and the admin endpoint.
const RESERVED_DESCRIPTORS: usize = 64;

const DESCRIPTORS_PER_SESSION: usize = 2;

const DESCRIPTORS_PER_PIPE: usize = 2;

/// Descriptors that a worker opens for itself: ring, eventfd, and one to spare.
const DESCRIPTORS_PER_WORKER: usize = 3;

/// The listeners of one worker.
pub(crate) struct Listeners {
    /// By the slot of their tokens.
    slots: Vec<Option<Listener>>,
    seats: Arc<Seats>,
    patience: Patience,
    /// Until when nobody is accepted, because there was no descriptor.
    paused_until: Option<Instant>,
    /// How often there was none since the last warning.
    failures: u64,
    warnings: Arc<WarningGate>,
}

/// When any worker warned last: a machine without descriptors is one piece of news, not one for each core.
#[derive(Debug, Default)]
pub(crate) struct WarningGate(Mutex<Option<Clock>>);

impl WarningGate {
    /// Whether a warning may be written now.
    fn pass(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL);
        if may {
            *last = Some(Clock::now());
        }
        may
    }
}

struct Listener {
    bind: BindId,
    socket: Socket,
    transport: Transport,
    /// The world its clients are served in.
    view: Rc<View>,
    index: ListenerIndex,
    accept: Accept,
    fate: Fate,
}

/// Whether a worker waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    Content,
    Waiting,
}

/// What is under way on the listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    Off,
    Single,
    Multishot,
    /// Cancelled, and not yet answered.
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    /// To be closed once its accept has ended and its queue is empty.
    Closing,
}

impl Listeners {
    pub(crate) fn new(seats: Arc<Seats>, warnings: Arc<WarningGate>) -> Listeners {
        Listeners {
            slots: Vec::new(),
            seats,
            patience: Patience::Content,
            paused_until: None,
            failures: 0,
            warnings,
        }
    }

    /// How many clients there is room for. Without any, the worker will be woken when there is.
    fn room(&mut self) -> usize {
        let is_waiting = match self.seats.free() {
            0 => Patience::Waiting,
            _ => Patience::Content,
        };
        if self.patience != is_waiting {
            self.seats.set_waiting(is_waiting == Patience::Waiting);
            self.patience = is_waiting;
        }
        self.seats.free()
    }

    /// Says at most once a second that accepting is paused, and how often it was.
    fn warn(&mut self, errno: Errno) {
        self.failures += 1;
        if self.warnings.pass() {
            tracing::warn!(
                failures = self.failures,
                error = %errno,
                "accepting is paused until descriptors or memory come back"
            );
            self.failures = 0;
        }
    }
}

impl Listeners {
    /// A session that was accepted here is over.
    pub(crate) fn free_seat(&self) {
        self.seats.give_back();
    }
}

impl Worker {
    /// Takes over the sockets of new binds.
    pub(crate) fn open_listeners(&mut self, opened: Vec<(BindId, Socket)>) {
        for (bind, socket) in opened {
            let Some(index) = listener_of(&self.view, bind) else { continue };
            let transport = match socket.domain() {
                Ok(Domain::UNIX) => Transport::Unix,
                Ok(_) | Err(_) => Transport::Tcp,
            };
            // The accept waits in the ring; O_NONBLOCK would make it fail instead. And accepted sockets inherit
            // TCP_NODELAY, which saves a system call for each.
            if let Err(error) = socket.set_nonblocking(false) {
                tracing::warn!(%error, "a listening socket cannot be made blocking");
            }
            if transport == Transport::Tcp
                && let Err(error) = socket.set_tcp_nodelay(true)
            {
                tracing::warn!(%error, "TCP_NODELAY cannot be set on a listening socket");
            }
            let view = Rc::clone(&self.view);
            let listener =
                Listener { bind, socket, transport, view, index, accept: Accept::Off, fate: Fate::Open };
            match self.listeners.slots.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = Some(listener),
                None => self.listeners.slots.push(Some(listener)),
            }
        }
        self.resume_accepting();
    }

    /// Brings the others into the world of the new snapshot.
    pub(crate) fn close_listeners_that_are_gone(&mut self) {
        for slot in 0..self.listeners.slots.len() {
            let Some(listener) = &mut self.listeners.slots[slot] else { continue };
            match listener_of(&self.view, listener.bind) {
                Some(index) => {
                    listener.view = Rc::clone(&self.view);
                    listener.index = index;
                }
                None => self.close_listener(slot),
            }
        }
    }

    pub(crate) fn close_all_listeners(&mut self) {
        for slot in 0..self.listeners.slots.len() {
            self.close_listener(slot);
        }
    }

    /// No descriptor or memory was left, for a client or for an upstream: accepting more would only take what running
    /// sessions need.
    pub(crate) fn pause_accepting(&mut self, errno: Errno) {
        let until = self.tools.now + PAUSE;
        self.listeners.paused_until = Some(until);
        self.set_timer(until, Timer::Accept);
        self.listeners.warn(errno);
    }

    /// Arms accepts wherever there is room again, and stops multishots where there is little.
    pub(crate) fn resume_accepting(&mut self) {
        if let Some(errno) = self.tools.exhausted.take() {
            self.pause_accepting(errno);
        }
        let room = match self.listeners.paused_until {
            Some(_) => 0,
            None => self.listeners.room(),
        };
        let multishot_room = MULTISHOT_ROOM * self.listeners.seats.workers();
        for (slot, listener) in (0u32..).zip(&mut self.listeners.slots) {
            let Some(listener) = listener else { continue };
            match (listener.accept, listener.fate) {
                (Accept::Off, Fate::Open) if room > 0 => {
                    arm(listener, slot, room > multishot_room, &mut self.tools);
                }
                (Accept::Multishot, Fate::Open) if room <= multishot_room => {
                    listener.accept = Accept::Ending;
                    self.tools.ring.cancel(accept_token(slot));
                }
                (
                    Accept::Off | Accept::Single | Accept::Multishot | Accept::Ending,
                    Fate::Open | Fate::Closing,
                ) => {}
            }
        }
    }

    /// A pause is over, unless another has begun meanwhile.
    pub(crate) fn retry_accepting(&mut self) {
        if self.listeners.paused_until.is_some_and(|until| self.tools.now >= until) {
            self.listeners.paused_until = None;
        }
    }

    /// An accept was answered.
    pub(crate) fn handle_accepted(&mut self, slot: u32, result: Result<OwnedFd, Errno>, more: bool) {
        let slot = slot as usize;
        let Some(Some(listener)) = self.listeners.slots.get_mut(slot) else {
            unreachable!("a listener is closed only when its accept has ended")
        };
        if !more {
            listener.accept = Accept::Off;
        }
        match result {
            Ok(socket) => self.start_session(slot, socket),
            // Nobody came, or whoever came is gone already.
            Err(Errno::CANCELED | Errno::CONNABORTED | Errno::INTR | Errno::AGAIN | Errno::PROTO) => {}
            Err(errno) => self.pause_accepting(errno),
        }
        if let Some(listener) = &self.listeners.slots[slot]
            && listener.fate == Fate::Closing
            && listener.accept == Accept::Off
        {
            self.drain_and_close(slot);
        }
    }

    fn close_listener(&mut self, slot: usize) {
        let Some(listener) = &mut self.listeners.slots[slot] else { return };
        listener.fate = Fate::Closing;
        match listener.accept {
            Accept::Off => self.drain_and_close(slot),
            Accept::Single | Accept::Multishot => {
                listener.accept = Accept::Ending;
                self.tools.ring.cancel(accept_token(u32::try_from(slot).unwrap_or(u32::MAX)));
            }
            Accept::Ending => {}
        }
    }

    /// Closing a listening socket resets whoever waits in its accept queue: they are served first.
    fn drain_and_close(&mut self, slot: usize) {
        let Some(listener) = &self.listeners.slots[slot] else { return };
        let is_nonblocking = listener.socket.set_nonblocking(true).is_ok();
        while is_nonblocking
            && let Some(listener) = &self.listeners.slots[slot]
            && let Ok(socket) = accept_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            self.start_session(slot, socket);
        }
        self.listeners.slots[slot] = None;
    }

    fn start_session(&mut self, slot: usize, socket: OwnedFd) {
        let Some(listener) = &self.listeners.slots[slot] else { return };
        let client = match listener.transport {
            Transport::Unix => ClientAddr::Unix,
            Transport::Tcp => match getpeername(&socket).ok().flatten().map(SocketAddr::try_from) {
                Some(Ok(address)) => ClientAddr::Ip(address),
                // Gone before it was greeted.
                Some(Err(_)) | None => return,
            },
        };
        let session = Session::new(Rc::clone(&listener.view), listener.index, client, self.tools.now);
        let live = Live::new(session, socket, listener.transport);
        self.listeners.seats.take();
        let id = self.sessions.insert(live);
        self.drive(id);
    }
}

fn arm(listener: &mut Listener, slot: u32, has_room: bool, tools: &mut Tools) {
    if has_room {
        listener.accept = Accept::Multishot;
        tools.ring.accept_multishot(accept_token(slot), listener.socket.as_fd());
    } else {
        listener.accept = Accept::Single;
        tools.ring.accept(accept_token(slot), listener.socket.as_fd());
    }
}

fn accept_token(slot: u32) -> Token {
    Token::new(Op::Accept, 0, slot, 0)
}

fn listener_of(view: &View, bind: BindId) -> Option<ListenerIndex> {
    view.snapshot().binds.iter().find(|known| known.id == bind).map(|known| known.listener)
}

/// Each worker's share of new sockets: its own where there is one for each, else a duplicate of the one.
pub(crate) fn share(opened: Vec<Opened>, workers: usize) -> Vec<Vec<(BindId, Socket)>> {
    let mut shares: Vec<Vec<(BindId, Socket)>> = (0..workers).map(|_| Vec::new()).collect();
    for (bind, sockets) in opened {
        if sockets.len() == workers {
            for (share, socket) in shares.iter_mut().zip(sockets) {
                share.push((bind, socket));
            }
        } else if let Some(socket) = sockets.first() {
            for share in &mut shares {
                match socket.try_clone() {
                    Ok(duplicate) => share.push((bind, duplicate)),
                    Err(error) => tracing::warn!(%error, "a worker does without a listening socket"),
                }
            }
        }
    }
    shares
}

/// How many sessions the limit on descriptors is enough for.
pub(crate) fn session_limit(workers: usize, pipes: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let open = std::fs::read_dir("/proc/self/fd").map_or(RESERVED_DESCRIPTORS, Iterator::count);
    let free = limit.saturating_sub(open + workers * DESCRIPTORS_PER_WORKER);
    // Where little is to be had, pipes come second: a stream without one is copied.
    let free = free - (pipes * DESCRIPTORS_PER_PIPE).min(free / 8);
    // Where little is to be had, little is reserved.
    let reserved = RESERVED_DESCRIPTORS.min(free / 8);
    ((free - reserved) / DESCRIPTORS_PER_SESSION).max(1)
}
