//! A session as its task holds it: flow's part, the sockets, and the loop that drives them.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ringweir_flow::capacity::Place;
use ringweir_flow::pump::{Closing, Direction, Side};
use ringweir_flow::session::Session;
use ringweir_flow::time::Instant;
use ringweir_flow::verify::Verdict;
use tokio::sync::oneshot;
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;

use crate::connect::{self, Dials};
use crate::pump::{self, Lane};
use crate::seats::Seat;
use crate::stream::Stream;
use crate::worker::{Orders, Worker};
use crate::{account, handshake};

/// A session and its sockets.
pub(crate) struct Live {
    pub(crate) worker: Rc<Worker>,
    pub(crate) session: Session,
    pub(crate) client: End,
    pub(crate) upstream: Option<End>,
    pub(crate) dials: Dials,
    /// What is to be thought of the client's password, where that is asked for.
    pub(crate) verdict: Option<oneshot::Receiver<Verdict>>,
    /// A place at an upstream, when one has come.
    pub(crate) place: Option<oneshot::Receiver<Place>>,
    pub(crate) up: Lane,
    pub(crate) down: Lane,
    /// What the worker has to say next.
    orders: Rc<Orders>,
    /// The moment of this turn.
    pub(crate) now: Instant,
}

/// One socket of a session, and what the session itself has to say there.
pub(crate) struct End {
    pub(crate) stream: Stream,
    pub(crate) outbox: Outbox,
    pub(crate) after_outbox: AfterOutbox,
}

/// Bytes that the session commanded to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

/// What is to be done once the outbox is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterOutbox {
    Nothing,
    ShutDown,
}

/// How a look at the sockets ended; of two, the greater counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// Whatever is waited for will wake the task.
    Blocked,
    /// Something happened that the session may have an answer to.
    Moved,
    /// There is more to do, but it is the others' turn.
    Spent,
}

/// Runs a session to its end.
pub(crate) async fn serve(worker: Rc<Worker>, client: Stream, session: Session, seat: Seat) {
    let mut live = Live {
        now: worker.now(),
        orders: worker.orders(),
        worker: Rc::clone(&worker),
        session,
        client: End::new(client, Vec::new()),
        upstream: None,
        dials: Dials::default(),
        verdict: None,
        place: None,
        up: Lane::default(),
        down: Lane::default(),
    };
    let mut called = pin!(worker.called());
    let mut alarm = Alarm { sleep: pin!(tokio::time::sleep(Duration::ZERO)), set_for: None };
    let mut is_listening = false;
    // The session shares out its turns itself. Were the runtime to do so, a poll could be put off behind its back.
    let closing = unconstrained(poll_fn(|cx| {
        if !std::mem::replace(&mut is_listening, true) {
            // Leaves the waker there: what the call is about is asked of the worker.
            let _ = called.as_mut().poll(cx);
        }
        if live.obey() {
            called.set(worker.called());
            let _ = called.as_mut().poll(cx);
        }
        live.poll(&mut alarm, cx)
    }))
    .await;
    account::finish(live, closing);
    drop(seat);
}

impl Live {
    /// Whether the worker has given orders; the session knows now. A task that was woken for an order about others looks
    /// at its sockets all the same, which asks nothing of the system while they are not ready.
    fn obey(&mut self) -> bool {
        let mut has_called = false;
        while let Some((order, next)) = self.orders.next() {
            self.session.handle_retirement(&order, self.worker.now());
            self.orders = next;
            has_called = true;
        }
        has_called
    }

    fn poll(&mut self, alarm: &mut Alarm<'_>, cx: &mut Context<'_>) -> Poll<Closing> {
        self.now = self.worker.now();
        if let Some(reason) = self.worker.stopping() {
            self.session.handle_stop(reason);
        }
        if alarm.take_due(self.now) {
            self.session.handle_timeout(self.now);
        }
        loop {
            while let Some(command) = self.session.poll_command() {
                if let Some(closing) = handshake::carry_out(command, self) {
                    return Poll::Ready(closing);
                }
            }
            let turn = self.poll_sockets(cx);
            // Even a session that waits for its sockets may have come to its end by being asked for a step.
            match (self.session.poll_command(), turn) {
                (Some(command), _) => {
                    if let Some(closing) = handshake::carry_out(command, self) {
                        return Poll::Ready(closing);
                    }
                }
                (None, Turn::Moved) => {}
                (None, Turn::Blocked) => break,
                (None, Turn::Spent) => {
                    cx.waker().wake_by_ref();
                    break;
                }
            }
        }
        if let Some(deadline) = self.session.poll_timeout() {
            alarm.set(deadline, &self.worker, cx);
        }
        Poll::Pending
    }

    fn poll_sockets(&mut self, cx: &mut Context<'_>) -> Turn {
        let client = handshake::flush(self, Side::Client, cx);
        if self.session.is_pumping() {
            let upstream = handshake::flush(self, Side::Upstream, cx);
            let [up, down] = Direction::BOTH.map(|direction| pump::run(self, direction, cx));
            client.max(upstream).max(up).max(down)
        } else {
            let verdict = handshake::await_verdict(self, cx).max(handshake::await_place(self, cx));
            let dials = connect::poll(self, cx);
            client.max(verdict).max(dials).max(handshake::receive(self, cx))
        }
    }

    pub(crate) fn end(&mut self, side: Side) -> Option<&mut End> {
        match side {
            Side::Client => Some(&mut self.client),
            Side::Upstream => self.upstream.as_mut(),
        }
    }

    pub(crate) fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

impl End {
    pub(crate) fn new(stream: Stream, first: Vec<u8>) -> End {
        End { stream, outbox: Outbox { bytes: first, sent: 0 }, after_outbox: AfterOutbox::Nothing }
    }
}

impl Outbox {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    pub(crate) fn handle_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.is_empty() {
            self.clear();
        }
    }

    /// What is unsent.
    pub(crate) fn into_unsent(mut self) -> Vec<u8> {
        self.bytes.drain(..self.sent);
        self.bytes
    }

    /// Forgets what is unsent, and gives the memory back: few sessions have anything to say twice.
    pub(crate) fn clear(&mut self) {
        *self = Outbox::default();
    }
}

/// The timer of a session. A deadline moves with every byte; the timer is set anew only when the deadline came
/// nearer, or when it went off too early.
struct Alarm<'a> {
    sleep: Pin<&'a mut Sleep>,
    set_for: Option<Instant>,
}

impl Alarm<'_> {
    /// Whether it went off; it is unset then.
    fn take_due(&mut self, now: Instant) -> bool {
        self.set_for.take_if(|set_for| now >= *set_for).is_some()
    }

    fn set(&mut self, deadline: Instant, worker: &Worker, cx: &mut Context<'_>) {
        if self.set_for.is_some_and(|set_for| set_for <= deadline) {
            return;
        }
        self.set_for = Some(deadline);
        self.sleep.as_mut().reset(worker.moment(deadline));
        if self.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}
