//! The io_uring driver of ringweir: thread per core, one ring each, the same sessions as everywhere.
//!
//! ```text
//! listener -> handshake -> connect -> pump -> account
//! ```
//!
//! are the files, in the order in which a byte meets them; `worker.rs` holds the only loop.
#![cfg(target_os = "linux")]

mod account;
mod ahead;
mod connect;
mod handshake;
mod lean;
mod listener;
mod live;
mod pump;
mod sealed;
mod seats;
mod sessions;
mod splice;
mod timers;
mod worker;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ringweir_flow::close::CloseReason;
use ringweir_flow::resolve::Resolver;
use ringweir_flow::retire::Retirement;
use ringweir_flow::snapshot::{BindId, Snapshot, WorkerIndex};
use ringweir_flow::verify::Verifier;
use ringweir_pipe::Budget;
use ringweir_ring::{Capabilities, Ring, SetupError, Waker};
use socket2::Socket;

use crate::seats::Seats;
use crate::worker::{Message, Worker, WorkerOptions};

/// The sockets of a new bind: one for each worker (`SO_REUSEPORT`), or one that all share.
pub type Opened = (BindId, Vec<Socket>);

/// What the engine is told at its start.
pub struct Options {
    /// How many workers, at least 1. They are pinned to cores when there are as many as cores.
    pub workers: usize,
    /// How many pipes there may be to splice streams through, each of two descriptors; `None` for what the system's
    /// limits are good for ([`Budget::of_this_system`]).
    pub pipes: Option<usize>,
    /// How long rings poll network devices before they sleep; `None` for not at all.
    pub busy_poll: Option<Duration>,
    /// Resolves the names that clients ask for.
    pub resolver: Arc<dyn Resolver>,
    /// Verifies passwords that are known by their hashes.
    pub verifier: Arc<dyn Verifier>,
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel refuses io_uring, or lacks a part that is needed.
    #[error("io_uring is not to be had: {0}")]
    Ring(#[from] SetupError),
    /// No thread could be started.
    #[error("a worker thread could not be started: {0}")]
    Thread(std::io::Error),
    /// A worker ended before it served.
    #[error("worker {0} ended while it started")]
    Lost(usize),
}

/// Whether io_uring can be had here, and what of it works; tried live, never read off a version number.
///
/// # Errors
/// [`SetupError`] says what is refused.
pub fn probe() -> Result<Capabilities, SetupError> {
    Ring::probe()
}

/// A running engine.
#[derive(Debug)]
pub struct Handle {
    workers: Vec<WorkerHandle>,
}

#[derive(Debug)]
struct WorkerHandle {
    inbox: Sender<Message>,
    waker: Waker,
    thread: JoinHandle<()>,
}

/// Starts the workers. They serve when this returns.
///
/// # Errors
/// [`StartError`]; no thread is left then.
pub fn start(options: Options, snapshot: Arc<Snapshot>, opened: Vec<Opened>) -> Result<Handle, StartError> {
    let capabilities = probe()?;
    let cores = worker::allowed_cores();
    let pipes = Arc::new(options.pipes.map_or_else(Budget::of_this_system, Budget::new));
    let session_limit = listener::session_limit(options.workers, pipes.pipes());
    let seats = Arc::new(Seats::new(session_limit, options.workers));
    let warnings = Arc::default();
    let mut workers = Vec::with_capacity(options.workers);
    for (index, sockets) in (0..options.workers).zip(listener::share(opened, options.workers)) {
        let (inbox, messages) = unbounded();
        let (ready, is_ready) = bounded(1);
        let worker = WorkerOptions {
            worker: WorkerIndex(index),
            core: (cores.len() == options.workers).then(|| cores[index]),
            capabilities,
            seats: Arc::clone(&seats),
            pipes: Arc::clone(&pipes),
            busy_poll: options.busy_poll,
            warnings: Arc::clone(&warnings),
            resolver: Arc::clone(&options.resolver),
            verifier: Arc::clone(&options.verifier),
            inbox: inbox.clone(),
        };
        let (snapshot, messages): (_, Receiver<Message>) = (Arc::clone(&snapshot), messages);
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || match Worker::new(worker, snapshot, sockets, messages) {
                Ok(mut worker) => {
                    let _ = ready.send(Ok(worker.waker()));
                    worker.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(StartError::Thread)?;
        let waker = is_ready.recv().map_err(|_| StartError::Lost(index))??;
        seats.introduce(index, waker.clone());
        workers.push(WorkerHandle { inbox, waker, thread });
    }
    Ok(Handle { workers })
}

impl Handle {
    /// Swaps the snapshot, opens the sockets of new binds and closes those of binds that are gone, after what waits
    /// in their accept queues has been served.
    pub fn publish(&self, snapshot: &Arc<Snapshot>, opened: Vec<Opened>) {
        for (worker, opened) in self.workers.iter().zip(listener::share(opened, self.workers.len())) {
            worker.tell(Message::Publish { snapshot: Arc::clone(snapshot), opened });
        }
    }

    /// Stops accepting, after what waits in the accept queues; sessions go on.
    pub fn drain(&self) {
        for worker in &self.workers {
            worker.tell(Message::Drain);
        }
    }

    /// Ends the sessions that the order is about.
    pub fn retire(&self, order: &Arc<Retirement>) {
        for worker in &self.workers {
            worker.tell(Message::Retire(Arc::clone(order)));
        }
    }

    /// Ends every session, for [`CloseReason::Drained`] or [`CloseReason::Stopped`], and the workers; returns when they
    /// are gone.
    pub fn stop(self, reason: CloseReason) {
        for worker in &self.workers {
            worker.tell(Message::Stop(reason));
        }
        for worker in self.workers {
            let name = worker.thread.thread().name().unwrap_or("worker").to_owned();
            if worker.thread.join().is_err() {
                tracing::error!(worker = name, "a worker had panicked");
            }
        }
    }
}

impl WorkerHandle {
    fn tell(&self, message: Message) {
        // A worker that is gone has nothing left to be told.
        if self.inbox.send(message).is_ok() {
            self.waker.wake();
        }
    }
}
