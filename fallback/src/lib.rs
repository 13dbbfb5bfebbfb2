//! The tokio driver of ringweir, for macOS, Windows and any Linux that refuses io_uring: the same sessions, a
//! thread per worker, one task per session.
//!
//! ```text
//! listener -> handshake -> connect -> pump -> account
//! ```
//!
//! are the files, in the order in which a byte meets them; `live.rs` holds the loop of a session and `worker.rs` that
//! of a thread. What differs between systems stands in `platform/`. On Linux streams are spliced (`splice.rs`), as the
//! io_uring engine does it.

mod account;
mod buffers;
mod connect;
mod handshake;
mod listener;
mod live;
mod platform;
mod pump;
mod seats;
mod splice;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringweir_flow::close::CloseReason;
use ringweir_flow::resolve::Resolver;
use ringweir_flow::retire::Retirement;
use ringweir_flow::snapshot::{BindId, Snapshot, WorkerIndex};
use ringweir_flow::verify::Verifier;
use socket2::Socket;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::listener::Opening;
use crate::platform::Budget;
use crate::seats::Seats;
use crate::worker::{Message, WorkerOptions};

/// The listening sockets of a new bind: one for each worker (`SO_REUSEPORT`), or a single one, whose clients are
/// dealt out to the workers in turn.
pub type Opened = (BindId, Vec<Socket>);

/// What the driver is told at its start.
pub struct Options {
    /// How many workers, at least 1.
    pub workers: usize,
    /// How many pipes there may be to splice streams through, each of two descriptors (Linux only); `None` for what the
    /// system's limits are good for.
    pub pipes: Option<usize>,
    /// Resolves the names that clients ask for.
    pub resolver: Arc<dyn Resolver>,
    /// Verifies passwords that are known by their hashes.
    pub verifier: Arc<dyn Verifier>,
}

/// Why the driver did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refuses what waiting for sockets needs.
    #[error("the event queue of a worker could not be opened: {0}")]
    Runtime(io::Error),
    /// No thread could be started.
    #[error("a worker thread could not be started: {0}")]
    Thread(io::Error),
    /// A worker ended before it served.
    #[error("worker {0} ended while it started")]
    Lost(usize),
}

/// How long [`Handle::stop`] waits for the threads: longer than a worker waits for its sessions.
const JOIN_LIMIT: Duration = Duration::from_secs(2);
const _: () = assert!(JOIN_LIMIT.as_millis() > worker::STOP_LIMIT.as_millis());

/// A running driver.
#[derive(Debug)]
pub struct Handle {
    inboxes: Arc<[UnboundedSender<Message>]>,
    threads: Vec<JoinHandle<()>>,
    /// Every worker holds the other end until it ends.
    all_ended: Receiver<Infallible>,
}

/// Starts the workers. They serve when this returns.
///
/// # Errors
/// [`StartError`]; the workers that had started are stopped then.
pub fn start(options: Options, snapshot: Arc<Snapshot>, opened: Vec<Opened>) -> Result<Handle, StartError> {
    let workers = options.workers.max(1);
    let (inboxes, messages): (Vec<_>, Vec<_>) = (0..workers).map(|_| unbounded_channel()).unzip();
    let inboxes: Arc<[UnboundedSender<Message>]> = inboxes.into();
    let pipes = Arc::new(options.pipes.map_or_else(Budget::of_this_system, Budget::new));
    let seats = Arc::new(Seats::new(workers, platform::session_limit(workers, pipes.pipes())));
    let (presence, all_ended) = channel();
    let mut handle = Handle { inboxes: Arc::clone(&inboxes), threads: Vec::new(), all_ended };
    let shares = listener::share(opened, workers);
    for (index, (messages, openings)) in messages.into_iter().zip(shares).enumerate() {
        let worker = WorkerOptions {
            index: WorkerIndex(index),
            resolver: Arc::clone(&options.resolver),
            verifier: Arc::clone(&options.verifier),
            inboxes: Arc::clone(&inboxes),
            seats: Arc::clone(&seats),
            pipes: Arc::clone(&pipes),
        };
        match start_worker(worker, Arc::clone(&snapshot), openings, messages, presence.clone()) {
            Ok(thread) => handle.threads.push(thread),
            Err(error) => {
                drop(presence);
                handle.stop(CloseReason::Stopped);
                return Err(error);
            }
        }
    }
    Ok(handle)
}

fn start_worker(
    options: WorkerOptions,
    snapshot: Arc<Snapshot>,
    openings: Vec<Opening>,
    messages: UnboundedReceiver<Message>,
    presence: Sender<Infallible>,
) -> Result<JoinHandle<()>, StartError> {
    let index = options.index.0;
    let (ready, is_ready) = channel();
    let thread = thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let _presence = presence;
            worker::run(options, snapshot, openings, messages, &ready);
        })
        .map_err(StartError::Thread)?;
    match is_ready.recv() {
        Ok(started) => started.map(|()| thread).map_err(StartError::Runtime),
        Err(_) => Err(StartError::Lost(index)),
    }
}

impl Handle {
    /// Swaps the snapshot, opens the sockets of new binds and closes those of binds that are gone, after what waits
    /// in their accept queues has been served.
    pub fn publish(&self, snapshot: &Arc<Snapshot>, opened: Vec<Opened>) {
        // Worker 0 comes last: it deals clients out to the others, who must know the new binds by then.
        for (inbox, openings) in self.inboxes.iter().zip(listener::share(opened, self.inboxes.len())).rev() {
            tell(inbox, Message::Publish { snapshot: Arc::clone(snapshot), openings });
        }
    }

    /// Stops accepting, after what waits in the accept queues; sessions go on.
    pub fn drain(&self) {
        self.tell_all(|| Message::Drain);
    }

    /// Ends the sessions that the order is about.
    pub fn retire(&self, order: &Arc<Retirement>) {
        self.tell_all(|| Message::Retire(Arc::clone(order)));
    }

    /// Ends every session, for [`CloseReason::Drained`] or [`CloseReason::Stopped`], and the workers; returns when they
    /// are gone, or after two seconds.
    pub fn stop(self, reason: CloseReason) {
        self.tell_all(|| Message::Stop(reason));
        match self.all_ended.recv_timeout(JOIN_LIMIT) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("a worker does not end; it is left behind");
                return;
            }
        }
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or("worker").to_owned();
            if thread.join().is_err() {
                tracing::error!(worker = name, "a worker had panicked");
            }
        }
    }

    fn tell_all(&self, message: impl Fn() -> Message) {
        for inbox in &*self.inboxes {
            tell(inbox, message());
        }
    }
}

fn tell(inbox: &UnboundedSender<Message>, message: Message) {
    // A worker that is gone has nothing left to be told.
    let _ = inbox.send(message);
}
