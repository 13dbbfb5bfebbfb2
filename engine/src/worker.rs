//! One pinned thread that owns its ring, its listeners, its sessions and its counters; and the only loop.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crossbeam_channel::{Receiver, Sender};
use ringweir_flow::capacity::Place;
use ringweir_flow::close::CloseReason;
use ringweir_flow::pump::Side;
use ringweir_flow::resolve::{Resolved, Resolver};
use ringweir_flow::retire::Retirement;
use ringweir_flow::snapshot::{BindId, Snapshot, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::verify::{Verdict, Verifier};
use ringweir_flow::view::View;
use ringweir_pipe::{Budget, Pool};
use ringweir_ring::{Capabilities, Completion, Errno, Op, Ring, RingConfig, SetupError, Waker};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::Socket;

use crate::account::Dying;
use crate::listener::{Listeners, WarningGate};
use crate::live::{Live, Receiving, Sending, token, token_in};
use crate::seats::Seats;
use crate::sessions::{SessionId, Sessions};
use crate::timers::{TimerId, Wheel};
use crate::{ahead, connect, handshake, pump, splice};

/// What a worker is told from outside.
pub(crate) enum Message {
    Publish { snapshot: Arc<Snapshot>, opened: Vec<(BindId, Socket)> },
    Drain,
    Stop(CloseReason),
    Retire(Arc<Retirement>),
    Resolved { id: SessionId, resolved: Resolved },
    Verified { id: SessionId, verdict: Verdict },
    Placed { id: SessionId, place: Place },
}

/// What a worker starts with.
pub(crate) struct WorkerOptions {
    pub(crate) worker: WorkerIndex,
    /// The core to be pinned to.
    pub(crate) core: Option<usize>,
    pub(crate) capabilities: Capabilities,
    pub(crate) seats: Arc<Seats>,
    pub(crate) pipes: Arc<Budget>,
    pub(crate) busy_poll: Option<Duration>,
    pub(crate) warnings: Arc<WarningGate>,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) verifier: Arc<dyn Verifier>,
    pub(crate) inbox: Sender<Message>,
}

pub(crate) struct Worker {
    pub(crate) tools: Tools,
    pub(crate) view: Rc<View>,
    pub(crate) sessions: Sessions<Live>,
    pub(crate) listeners: Listeners,
    pub(crate) dying: Sessions<Dying>,
    timers: Wheel<Timer>,
    messages: Receiver<Message>,
    phase: Phase,
}

/// What the stages of a session need of their worker.
pub(crate) struct Tools {
    pub(crate) ring: Ring,
    pub(crate) pipes: Pool,
    /// Where read(2) puts what it takes: of streams that are sealed, and of whoever found the pool empty.
    pub(crate) landing: Vec<u8>,
    /// The moment of this turn.
    pub(crate) now: Instant,
    /// Receives that found the pool empty, and those that came later, in the order in which they will get buffers.
    pub(crate) starved: VecDeque<(SessionId, u8)>,
    /// A dial found no descriptor or memory in this turn.
    pub(crate) exhausted: Option<Errno>,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) verifier: Arc<dyn Verifier>,
    pub(crate) inbox: Sender<Message>,
    pub(crate) waker: Waker,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    Session(SessionId),
    Dying(SessionId),
    Accept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Stopping { give_up_at: Instant },
}

/// How long a stopping worker waits for its operations to be cancelled.
const STOP_LIMIT: Duration = Duration::from_secs(1);

impl Worker {
    /// Must be called in the thread that runs it: the ring belongs to it.
    pub(crate) fn new(
        options: WorkerOptions,
        snapshot: Arc<Snapshot>,
        sockets: Vec<(BindId, Socket)>,
        messages: Receiver<Message>,
    ) -> Result<Worker, SetupError> {
        if let Some(core) = options.core {
            let mut set = CpuSet::new();
            set.set(core);
            if let Err(error) = sched_setaffinity(None, &set) {
                tracing::warn!(core, %error, "the worker is not pinned to its core");
            }
        }
        let config = RingConfig {
            receive_bundle: options.capabilities.receive_bundle,
            busy_poll: options.busy_poll,
            ..RingConfig::default()
        };
        let ring = Ring::new(&config)?;
        let waker = ring.waker();
        let now = Instant::ZERO;
        let view = View::new(snapshot, options.worker, options.worker.0 as u64 ^ seed());
        let mut worker = Worker {
            tools: Tools {
                ring,
                pipes: Pool::new(options.pipes),
                landing: Vec::new(),
                now,
                starved: VecDeque::new(),
                exhausted: None,
                resolver: options.resolver,
                verifier: options.verifier,
                inbox: options.inbox,
                waker,
            },
            view,
            sessions: Sessions::new(),
            listeners: Listeners::new(options.seats, options.warnings),
            dying: Sessions::new(),
            timers: Wheel::new(now),
            messages,
            phase: Phase::Serving,
        };
        worker.open_listeners(sockets);
        Ok(worker)
    }

    pub(crate) fn waker(&self) -> Waker {
        self.tools.waker.clone()
    }

    /// Serves until told to stop.
    pub(crate) fn run(&mut self) {
        let origin = Clock::now();
        let mut fired = Vec::new();
        loop {
            let timeout = if self.can_feed() {
                // They are fed in the next turn, ahead of what it completes.
                Some(Duration::ZERO)
            } else {
                self.timers.next_wait(self.tools.now)
            };
            if let Err(error) = self.tools.ring.wait(timeout) {
                // Nothing that is asked of the kernel here can fail but by a fault of ours.
                panic!("io_uring_enter failed: {error}");
            }
            let elapsed = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.tools.now = Instant::from_micros(elapsed);
            self.feed_starved();
            while let Some(completion) = self.tools.ring.next_completion() {
                self.handle_completion(completion);
            }
            self.timers.expire(self.tools.now, &mut fired);
            for timer in fired.drain(..) {
                self.handle_timer(timer);
            }
            if self.tools.ring.buffers_available() == 0 {
                self.feed_lean();
            }
            self.resume_accepting();
            if self.is_done() {
                return;
            }
        }
    }

    pub(crate) fn set_timer(&mut self, deadline: Instant, timer: Timer) {
        let _ = self.timers.set(deadline, timer);
    }

    pub(crate) fn cancel_timer(&mut self, timer: TimerId) {
        self.timers.cancel(timer);
    }

    /// Carries out whatever the session wants now; to be called after everything that is told to it.
    pub(crate) fn drive(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(id) else { return };
        handshake::drive(live, id, &mut self.tools);
        if live.closing.is_some() {
            if live.in_flight == 0 {
                self.finish(id);
            }
            return;
        }
        // A deadline that moves away, as it does with every byte, is looked at again when the timer fires.
        if let Some(deadline) = live.session.poll_timeout()
            && live.armed.is_none_or(|(armed, _)| deadline < armed)
        {
            if let Some((_, timer)) = live.armed {
                self.timers.cancel(timer);
            }
            live.armed = Some((deadline, self.timers.set(deadline, Timer::Session(id))));
        }
    }

    fn handle_completion(&mut self, completion: Completion) {
        let (slot, lane) = match &completion {
            Completion::Woken => {
                self.handle_messages();
                return;
            }
            Completion::Accepted { token, .. } => (token.slot(), 0),
            Completion::Received { token, .. }
            | Completion::Sent { token, .. }
            | Completion::Connected { token, .. }
            | Completion::Polled { token, .. } => (token.slot(), token.lane()),
        };
        if let Completion::Accepted { result, more, .. } = completion {
            self.handle_accepted(slot, result, more);
            return;
        }
        let Some(id) = self.sessions.tenant_of(slot) else {
            unreachable!("a slot is freed only when nothing of it is in flight")
        };
        let Some(live) = self.sessions.get_mut(id) else { return };
        live.in_flight -= 1;
        match completion {
            Completion::Received { result, pending, .. } => match live.side_of(lane) {
                Some(side) => pump::handle_received(live, id, side, result, pending, &mut self.tools),
                None => ahead::handle_received(live, id, lane, result, &mut self.tools),
            },
            Completion::Sent { result, rest, .. } => match live.side_of(lane) {
                Some(side) => pump::handle_sent(live, id, side, result, rest, &mut self.tools),
                None => ahead::handle_sent(live, id, lane, result, rest, &mut self.tools),
            },
            Completion::Connected { result, .. } => {
                connect::handle_connected(live, lane, result, &mut self.tools);
            }
            Completion::Polled { .. } => splice::handle_polled(live, id, lane, &mut self.tools),
            Completion::Accepted { .. } | Completion::Woken => {
                unreachable!("not an operation of a session")
            }
        }
        self.drive(id);
    }

    fn handle_messages(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Publish { snapshot, opened } => {
                    self.view = self.view.succeeded_by(snapshot);
                    self.open_listeners(opened);
                    self.close_listeners_that_are_gone();
                }
                Message::Drain => self.close_all_listeners(),
                Message::Stop(reason) => self.stop(reason),
                Message::Retire(order) => self.retire(&order),
                Message::Resolved { id, resolved } => {
                    if let Some(live) = self.sessions.get_mut(id) {
                        live.session.handle_resolved(resolved, self.tools.now);
                        self.drive(id);
                    }
                }
                Message::Placed { id, place } => {
                    if let Some(live) = self.sessions.get_mut(id) {
                        live.session.handle_place(place, self.tools.now);
                        self.drive(id);
                    }
                }
                Message::Verified { id, verdict } => {
                    if let Some(live) = self.sessions.get_mut(id) {
                        live.session.handle_verified(verdict, self.tools.now);
                        self.drive(id);
                    }
                }
            }
        }
    }

    fn handle_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Session(id) => {
                if let Some(live) = self.sessions.get_mut(id) {
                    live.armed = None;
                    live.session.handle_timeout(self.tools.now);
                    self.drive(id);
                }
            }
            Timer::Dying(id) => self.handle_dying(id),
            Timer::Accept => self.retry_accepting(),
        }
    }

    /// Whether somebody waits for a buffer, and there is one.
    fn can_feed(&self) -> bool {
        !self.tools.starved.is_empty() && self.tools.ring.buffers_available() > 0
    }

    /// Gives buffers that came back to those who wait for one, in order. Ahead of all other receives of a turn: those
    /// whose sends end in each would else empty the kernel's ring of buffers in each, and who waits would wait for ever.
    fn feed_starved(&mut self) {
        let mut buffers = self.tools.ring.buffers_available();
        while buffers > 0
            && let Some((id, lane)) = self.tools.starved.pop_front()
        {
            let Some(live) = self.sessions.get_mut(id) else { continue };
            let Some(side) = live.side_of(lane) else {
                buffers -= usize::from(ahead::feed(live, id, lane, &mut self.tools));
                continue;
            };
            let Some(stream) = live.stream(side) else { continue };
            if stream.receiving == Receiving::Starved {
                stream.receiving = Receiving::Idle;
                pump::begin_receive(live, id, side, &mut self.tools);
                buffers -= 1;
            }
        }
    }

    /// Lets those who wait do without a buffer. Attempts go on waiting.
    fn feed_lean(&mut self) {
        for _ in 0..self.tools.starved.len() {
            let Some((id, lane)) = self.tools.starved.pop_front() else { return };
            let Some(live) = self.sessions.get_mut(id) else { continue };
            let Some(side) = live.side_of(lane) else {
                self.tools.starved.push_back((id, lane));
                continue;
            };
            if live.stream(side).is_some_and(|stream| stream.receiving == Receiving::Starved) {
                splice::await_readable(live, id, side, Receiving::AwaitedLean, &mut self.tools);
            }
        }
    }

    fn retire(&mut self, order: &Arc<Retirement>) {
        for id in self.sessions.ids() {
            let Some(live) = self.sessions.get_mut(id) else { continue };
            if live.session.handle_retirement(order, self.tools.now) {
                self.drive(id);
            }
        }
    }

    fn stop(&mut self, reason: CloseReason) {
        self.close_all_listeners();
        for id in self.sessions.ids() {
            if let Some(live) = self.sessions.get_mut(id) {
                live.session.handle_stop(reason);
                self.drive(id);
            }
        }
        let give_up_at = self.tools.now + STOP_LIMIT;
        self.phase = Phase::Stopping { give_up_at };
        self.set_timer(give_up_at, Timer::Accept);
    }

    fn is_done(&self) -> bool {
        match self.phase {
            Phase::Serving => false,
            Phase::Stopping { give_up_at } => self.sessions.len() == 0 || self.tools.now >= give_up_at,
        }
    }
}

impl Tools {
    /// Makes the landing so large at least. A worker that needs none takes no memory for it.
    pub(crate) fn land(&mut self, bytes: usize) {
        if self.landing.len() < bytes {
            self.landing.resize(bytes, 0);
        }
    }
}

/// Gives up what a closing session still has under way; each operation is then answered once more.
pub(crate) fn cancel_all(live: &mut Live, id: SessionId, tools: &mut Tools) {
    // Whoever comes and goes while nobody gets a buffer leaves nothing in the queue.
    tools.starved.retain(|(starved, _)| *starved != id);
    for side in [Side::Client, Side::Upstream] {
        let Some(stream) = live.stream(side) else { continue };
        if stream.receiving == Receiving::InFlight {
            tools.ring.cancel(token(Op::Receive, side, id));
        }
        if stream.receiving == Receiving::Starved {
            stream.receiving = Receiving::Idle;
        }
        match stream.sending {
            Sending::Outbox | Sending::Pumped => tools.ring.cancel(token(Op::Send, side, id)),
            Sending::Nothing | Sending::PumpedLater | Sending::OutboxLater => {}
        }
        splice::cancel(live, id, side, tools);
    }
    if let Some(lane) = live.dials.adopted {
        tools.ring.cancel(token_in(Op::Receive, lane, id));
        tools.ring.cancel(token_in(Op::Send, lane, id));
    }
    connect::cancel_all(live, id, tools);
}

/// The cores that this process may use, in order.
pub(crate) fn allowed_cores() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        Err(_) => Vec::new(),
    }
}

/// Differs from start to start, so that a fleet that is restarted at once does not draw alike.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
