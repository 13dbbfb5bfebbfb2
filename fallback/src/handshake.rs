//! Carries out a session's commands, and receives from the client while it makes its request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ringweir_flow::pump::{Closing, Direction, Side};
use ringweir_flow::session::{Command, Diversion};
use ringweir_flow::verify::{Question, Verdict};
use tokio::sync::oneshot;

use crate::buffers::Size;
use crate::connect;
use crate::live::{AfterOutbox, End, Live, Turn};

/// Carries out one command; returns how the session closes when that is it.
pub(crate) fn carry_out(command: Command, live: &mut Live) -> Option<Closing> {
    match command {
        Command::Send(side, bytes) => match live.end(side) {
            Some(end) => end.outbox.push(&bytes),
            // Bytes for the upstream come just ahead of the pump command that names its socket.
            None => live.dials.early.extend_from_slice(&bytes),
        },
        Command::ShutDownClient => live.client.after_outbox = AfterOutbox::ShutDown,
        Command::Connect { attempt, address, local, origin } => {
            connect::start(live, attempt, &address, local, origin);
        }
        Command::SendAhead(attempt, bytes) => connect::send_ahead(live, attempt, &bytes),
        Command::EndAhead(attempt) => connect::end_ahead(live, attempt),
        Command::ReceiveAhead(attempt) => connect::receive_ahead(live, attempt),
        Command::Abandon(attempt) => connect::abandon(live, attempt),
        Command::NameLocal => {
            let local = live.client.stream.local_addr();
            live.session.handle_local(local);
        }
        Command::NameDestination(diversion) => {
            let stream = &live.client.stream;
            let destination = match diversion {
                Diversion::Redirect => stream.original_destination(),
                Diversion::Tproxy => stream.local_addr(),
            };
            live.session.handle_destination(destination, live.now);
        }
        Command::Resolve(name) => connect::resolve(live, name),
        Command::Verify(question) => verify(live, question),
        Command::JoinLine(line) => {
            let (give, place) = oneshot::channel();
            live.place = Some(place);
            // A session that is over drops the place, and with that gives it back.
            let ticket = line.join(Box::new(move |place| drop(give.send(place))));
            live.session.handle_joined(ticket, live.now);
        }
        Command::Pump(attempt) => {
            let Some((stream, first)) = connect::take(live, attempt) else {
                unreachable!("an attempt is pumped once it is connected")
            };
            live.upstream = Some(End::new(stream, first));
        }
        Command::Close(closing) => return Some(closing),
    }
    None
}

/// Asks what is to be thought of a password.
fn verify(live: &mut Live, question: Question) {
    let (give, verdict) = oneshot::channel();
    live.verdict = Some(verdict);
    live.worker.verifier.verify(
        question,
        Box::new(move |verdict| {
            // A session that is over has no use for the answer.
            let _ = give.send(verdict);
        }),
    );
}

/// Tells the session what is to be thought of its client's password, when that is known.
pub(crate) fn await_verdict(live: &mut Live, cx: &mut Context<'_>) -> Turn {
    let Some(answer) = &mut live.verdict else { return Turn::Blocked };
    let Poll::Ready(verdict) = Pin::new(answer).poll(cx) else { return Turn::Blocked };
    live.verdict = None;
    // A verifier that answers nothing has not looked.
    live.session.handle_verified(verdict.unwrap_or(Verdict::Overloaded), live.now);
    Turn::Moved
}

/// Tells the session of the place it waits for, when that has come.
pub(crate) fn await_place(live: &mut Live, cx: &mut Context<'_>) -> Turn {
    let Some(place) = &mut live.place else { return Turn::Blocked };
    let Poll::Ready(place) = Pin::new(place).poll(cx) else { return Turn::Blocked };
    live.place = None;
    if let Ok(place) = place {
        live.session.handle_place(place, live.now);
    }
    Turn::Moved
}

/// Sends what the session commanded to be sent, and does what is due after it.
pub(crate) fn flush(live: &mut Live, side: Side, cx: &mut Context<'_>) -> Turn {
    let Some(end) = live.end(side) else { return Turn::Blocked };
    while !end.outbox.is_empty() {
        match end.stream.poll_write(cx, end.outbox.unsent()) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Ok(bytes)) => end.outbox.handle_sent(bytes),
            Poll::Ready(Err(_)) => {
                end.outbox.clear();
                end.after_outbox = AfterOutbox::Nothing;
                if live.session.is_pumping() {
                    live.fail_send(Direction::from(side.other()));
                } else {
                    live.session.handle_client_failed();
                }
                return Turn::Moved;
            }
        }
    }
    match std::mem::replace(&mut end.after_outbox, AfterOutbox::Nothing) {
        AfterOutbox::Nothing => Turn::Blocked,
        AfterOutbox::ShutDown => {
            end.stream.shut_down();
            live.session.handle_shut_down();
            Turn::Moved
        }
    }
}

/// Receives once from the client, if the session wants its bytes.
pub(crate) fn receive(live: &mut Live, cx: &mut Context<'_>) -> Turn {
    if !live.session.wants_bytes() {
        return Turn::Blocked;
    }
    let mut buffer = live.worker.buffers.borrow_mut().take(Size::Small);
    let polled = live.client.stream.poll_read(cx, buffer.bytes_mut());
    let turn = match polled {
        Poll::Pending => Turn::Blocked,
        Poll::Ready(received) => {
            match received {
                Ok(0) => live.session.handle_client_ended(),
                Ok(bytes) => live.session.handle_bytes(&buffer.bytes()[..bytes], live.now),
                Err(_) => live.session.handle_client_failed(),
            }
            Turn::Moved
        }
    };
    live.worker.buffers.borrow_mut().give_back(buffer);
    turn
}
