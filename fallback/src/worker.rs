//! One thread with a runtime of its own, which owns its listeners, its sessions and its counters.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use ringweir_flow::close::CloseReason;
use ringweir_flow::record::ClientAddr;
use ringweir_flow::resolve::Resolver;
use ringweir_flow::retire::Retirement;
use ringweir_flow::session::Session;
use ringweir_flow::snapshot::{BindId, ListenerIndex, Snapshot, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::verify::Verifier;
use ringweir_flow::view::View;
use socket2::Socket;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::futures::Notified;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant as Clock;

use crate::buffers::Buffers;
use crate::listener::{Fate, Opening, Warning, accept_clients};
use crate::live;
use crate::platform::{self, Budget, Pool};
use crate::seats::{Seat, Seats};
use crate::stream::{Stream, Transport};

/// What a worker is told from outside.
pub(crate) enum Message {
    Publish {
        snapshot: Arc<Snapshot>,
        openings: Vec<Opening>,
    },
    /// A client that worker 0 accepted for this one.
    Client(Arrival),
    /// Worker 0 deals out no more clients of this bind.
    Forget(BindId),
    Drain,
    Stop(CloseReason),
    Retire(Arc<Retirement>),
}

/// A client on its way from one worker to another.
pub(crate) struct Arrival {
    pub(crate) bind: BindId,
    pub(crate) socket: Socket,
    pub(crate) transport: Transport,
    pub(crate) client: ClientAddr,
    pub(crate) seat: Seat,
}

/// What a worker starts with.
pub(crate) struct WorkerOptions {
    pub(crate) index: WorkerIndex,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) verifier: Arc<dyn Verifier>,
    /// Every worker's.
    pub(crate) inboxes: Arc<[UnboundedSender<Message>]>,
    pub(crate) seats: Arc<Seats>,
    /// Of the pipes of all workers.
    pub(crate) pipes: Arc<Budget>,
}

/// What the tasks of a worker share.
pub(crate) struct Worker {
    pub(crate) index: WorkerIndex,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) verifier: Arc<dyn Verifier>,
    pub(crate) inboxes: Arc<[UnboundedSender<Message>]>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) buffers: RefCell<Buffers>,
    pub(crate) pipes: RefCell<Pool>,
    pub(crate) warning: Warning,
    origin: Clock,
    view: RefCell<Rc<View>>,
    /// Where the clients of a bind are served; kept while one may still come.
    worlds: RefCell<HashMap<BindId, World>>,
    listeners: RefCell<HashMap<BindId, oneshot::Sender<Fate>>>,
    /// Why every session is to end, once it is.
    stopping: Cell<Option<CloseReason>>,
    /// Where the next order will stand.
    orders: RefCell<Rc<Orders>>,
    called: Notify,
}

/// What is told to every session after a moment: a list that grows at its end and is dropped as far as all have read it.
#[derive(Default)]
pub(crate) struct Orders(OnceCell<(Arc<Retirement>, Rc<Orders>)>);

impl Orders {
    /// The next order, and where to read on.
    pub(crate) fn next(&self) -> Option<(Arc<Retirement>, Rc<Orders>)> {
        self.0.get().cloned()
    }
}

#[derive(Clone)]
struct World {
    view: Rc<View>,
    listener: ListenerIndex,
}

/// How long a stopping worker waits for its sessions to close their sockets.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(1);

/// What is as good as never, but can still be added to a clock.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Serves until told to stop.
pub(crate) fn run(
    options: WorkerOptions,
    snapshot: Arc<Snapshot>,
    openings: Vec<Opening>,
    messages: UnboundedReceiver<Message>,
    ready: &Sender<io::Result<()>>,
) {
    let _alarm = AbortOnPanic;
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let worker = Rc::new(Worker::new(options, snapshot));
        worker.settle();
        worker.open_listeners(openings);
        // Nobody waits for it only when the start has failed elsewhere, and then a stop follows.
        let _ = ready.send(Ok(()));
        worker.serve(messages).await;
        worker.stop().await;
    });
}

/// Runs a task of this worker. A panic is a broken invariant of ours: a release build ends the process at once, and
/// so does any other here, for tokio would keep it to itself.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(async move {
        let _alarm = AbortOnPanic;
        task.await;
    });
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Worker {
    fn new(options: WorkerOptions, snapshot: Arc<Snapshot>) -> Worker {
        let seed = options.index.0 as u64 ^ seed();
        Worker {
            index: options.index,
            resolver: options.resolver,
            verifier: options.verifier,
            inboxes: options.inboxes,
            seats: options.seats,
            buffers: RefCell::default(),
            pipes: RefCell::new(Pool::new(options.pipes)),
            warning: Warning::default(),
            origin: Clock::now(),
            view: RefCell::new(View::new(snapshot, options.index, seed)),
            worlds: RefCell::default(),
            listeners: RefCell::default(),
            stopping: Cell::new(None),
            orders: RefCell::default(),
            called: Notify::new(),
        }
    }

    /// The time.
    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The clock's reading at `instant`.
    pub(crate) fn moment(&self, instant: Instant) -> Clock {
        self.origin + Duration::from_micros(instant.as_micros()).min(self.origin.elapsed() + FAR)
    }

    /// Why every session is to end, once it is.
    pub(crate) fn stopping(&self) -> Option<CloseReason> {
        self.stopping.get()
    }

    /// The orders that are given from now on.
    pub(crate) fn orders(&self) -> Rc<Orders> {
        Rc::clone(&self.orders.borrow())
    }

    /// Wakes whoever has polled it when the worker begins to stop, or gives an order.
    pub(crate) fn called(&self) -> Notified<'_> {
        self.called.notified()
    }

    /// Starts the session of a client that has come by a bind.
    pub(crate) fn welcome(self: &Rc<Self>, bind: BindId, stream: Stream, client: ClientAddr, seat: Seat) {
        // A bind that is not known any more has been closed, and its last client was served.
        let Some(World { view, listener }) = self.worlds.borrow().get(&bind).cloned() else { return };
        platform::keep_alive(&stream, view.snapshot().listener(listener).keepalive);
        let session = Session::new(view, listener, client, self.now());
        spawn(live::serve(Rc::clone(self), stream, session, seat));
    }

    /// No client will come by this bind any more.
    pub(crate) fn forget(&self, bind: BindId) {
        self.worlds.borrow_mut().remove(&bind);
        self.listeners.borrow_mut().remove(&bind);
    }

    async fn serve(self: &Rc<Self>, mut messages: UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            match message {
                Message::Publish { snapshot, openings } => {
                    let view = self.view.borrow().succeeded_by(snapshot);
                    self.view.replace(view);
                    self.settle();
                    self.open_listeners(openings);
                    self.close_listeners_that_are_gone();
                }
                Message::Client(Arrival { bind, socket, transport, client, seat }) => {
                    // It fails only when the system has no memory for one more: the client sees its end.
                    if let Ok(stream) = Stream::adopt(socket, transport) {
                        self.welcome(bind, stream, client, seat);
                    }
                }
                Message::Forget(bind) => self.forget(bind),
                Message::Drain => self.close_listeners(|_| true),
                Message::Retire(order) => self.give(order),
                Message::Stop(reason) => {
                    self.stopping.set(Some(reason));
                    return;
                }
            }
        }
    }

    async fn stop(&self) {
        self.called.notify_waiters();
        // Without their senders the listeners close.
        self.listeners.borrow_mut().clear();
        let is_empty = |seats: &Seats| seats.taken(self.index.0) == 0;
        if tokio::time::timeout(STOP_LIMIT, self.seats.wait_until(is_empty)).await.is_err() {
            tracing::warn!(worker = self.index.0, "sessions were still running when the worker ended");
        }
    }

    fn give(&self, order: Arc<Retirement>) {
        let next = Rc::default();
        let last = self.orders.replace(Rc::clone(&next));
        // Only what stands at the end is written to, once.
        let _ = last.0.set((order, next));
        self.called.notify_waiters();
    }

    /// Serves the clients of every bind of the snapshot in its world from now on.
    fn settle(&self) {
        let view = self.view.borrow();
        let mut worlds = self.worlds.borrow_mut();
        for bind in &view.snapshot().binds {
            worlds.insert(bind.id, World { view: Rc::clone(&view), listener: bind.listener });
        }
    }

    fn open_listeners(self: &Rc<Self>, openings: Vec<Opening>) {
        for opening in openings {
            let bind = opening.bind;
            match opening.open() {
                Ok(listener) => {
                    let (sender, fate) = oneshot::channel();
                    self.listeners.borrow_mut().insert(bind, sender);
                    spawn(accept_clients(Rc::clone(self), listener, fate));
                }
                Err(error) => tracing::error!(%error, "a listening socket cannot be waited for"),
            }
        }
    }

    fn close_listeners_that_are_gone(&self) {
        let view = Rc::clone(&self.view.borrow());
        self.close_listeners(|bind| view.snapshot().binds.iter().all(|known| known.id != bind));
    }

    fn close_listeners(&self, is_gone: impl Fn(BindId) -> bool) {
        for (_, sender) in self.listeners.borrow_mut().extract_if(|bind, _| is_gone(*bind)) {
            // A listener that is not there any more is closed.
            let _ = sender.send(Fate::Drain);
        }
    }
}

/// Differs from start to start, so that a fleet that is restarted at once does not draw alike.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
