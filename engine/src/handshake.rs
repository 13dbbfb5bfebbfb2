//! Carries out a session's commands, and keeps a receive from the client under way while it reads a request.

use ringweir_flow::capacity::Line;
use ringweir_flow::pump::{Direction, Side, Step};
use ringweir_flow::session::{Command, Diversion};
use ringweir_flow::way::Way;
use rustix::net::{Shutdown, shutdown};

use crate::ahead;
use crate::connect::{self, Wish};
use crate::live::{AfterOutbox, Live, Receiving, Sending, token};
use crate::pump;
use crate::sessions::SessionId;
use crate::worker::{Message, Tools, cancel_all};

/// Carries out everything that the session wants at the moment.
pub(crate) fn drive(live: &mut Live, id: SessionId, tools: &mut Tools) {
    loop {
        while let Some(command) = live.session.poll_command() {
            carry_out(command, live, id, tools);
        }
        if live.closing.is_some() {
            return;
        }
        if live.session.is_pumping() {
            pump::drive(live, id, tools);
        } else if live.session.wants_bytes() && live.client.receiving == Receiving::Idle {
            pump::receive(live, id, Side::Client, tools);
        }
        flush(live, id, Side::Client, tools);
        flush(live, id, Side::Upstream, tools);
        match live.session.poll_command() {
            Some(command) => carry_out(command, live, id, tools),
            None => return,
        }
    }
}

fn carry_out(command: Command, live: &mut Live, id: SessionId, tools: &mut Tools) {
    match command {
        Command::Send(side, bytes) => {
            let outbox = match live.stream(side) {
                Some(stream) => &mut stream.outbox,
                // Bytes for the upstream come just ahead of the pump command that names its socket.
                None => &mut live.dials.early,
            };
            if outbox.capacity() == 0 {
                *outbox = tools.ring.spare_bytes();
            }
            outbox.extend_from_slice(&bytes);
            live.session.recycle(bytes);
        }
        Command::ShutDownClient => live.client.after_outbox = AfterOutbox::ShutDown,
        Command::Connect { attempt, address, local, origin } => {
            connect::start(live, id, Wish { attempt, address, local, origin }, tools);
        }
        Command::SendAhead(attempt, bytes) => ahead::send(live, id, attempt, &bytes, tools),
        Command::EndAhead(attempt) => ahead::end(live, id, attempt, tools),
        Command::ReceiveAhead(attempt) => ahead::receive(live, id, attempt, tools),
        Command::Abandon(attempt) => connect::abandon(live, id, attempt, tools),
        Command::NameLocal => {
            let local = connect::local_address(live.client.fd());
            live.session.handle_local(local);
        }
        Command::NameDestination(diversion) => {
            let destination = match diversion {
                Diversion::Redirect => ringweir_socket::original_destination(&live.client.fd()),
                Diversion::Tproxy => connect::local_address(live.client.fd()),
            };
            live.session.handle_destination(destination, tools.now);
        }
        Command::Resolve(name) => {
            let (inbox, waker) = (tools.inbox.clone(), tools.waker.clone());
            tools.resolver.resolve(
                name,
                Box::new(move |resolved| {
                    // A worker that is gone has no use for the answer.
                    if inbox.send(Message::Resolved { id, resolved }).is_ok() {
                        waker.wake();
                    }
                }),
            );
        }
        Command::Verify(question) => {
            let (inbox, waker) = (tools.inbox.clone(), tools.waker.clone());
            tools.verifier.verify(
                question,
                Box::new(move |verdict| {
                    // A worker that is gone has no use for the answer.
                    if inbox.send(Message::Verified { id, verdict }).is_ok() {
                        waker.wake();
                    }
                }),
            );
        }
        Command::JoinLine(line) => join(&line, live, id, tools),
        Command::Pump(attempt) => {
            live.upstream = connect::take(live, attempt);
            // A receive that is under way becomes the pump's first.
            for direction in Direction::BOTH {
                let source = live.stream(direction.source());
                if source.is_some_and(|source| source.receiving != Receiving::Idle) {
                    let step = live.session.poll_step(direction);
                    debug_assert_eq!(step, Some(Step::Receive(Way::Buffer)));
                }
            }
        }
        Command::Close(closing) => {
            live.closing = Some(closing);
            cancel_all(live, id, tools);
        }
    }
}

/// Joins the line for a place at an upstream.
fn join(line: &Line, live: &mut Live, id: SessionId, tools: &Tools) {
    let (inbox, waker) = (tools.inbox.clone(), tools.waker.clone());
    let ticket = line.join(Box::new(move |place| {
        // A worker that is gone has dropped the place, and with that given it back.
        if inbox.send(Message::Placed { id, place }).is_ok() {
            waker.wake();
        }
    }));
    live.session.handle_joined(ticket, tools.now);
}

/// Sends what the session commanded to be sent, one operation at a time.
pub(crate) fn flush(live: &mut Live, id: SessionId, side: Side, tools: &mut Tools) {
    let Some(stream) = live.stream(side) else { return };
    if stream.sending != Sending::Nothing {
        return;
    }
    if !stream.outbox.is_empty() {
        let bytes = std::mem::take(&mut stream.outbox);
        stream.sending = Sending::Outbox;
        tools.ring.send_owned(token(ringweir_ring::Op::Send, side, id), stream.fd(), bytes, 0);
        live.in_flight += 1;
        return;
    }
    if stream.after_outbox == AfterOutbox::ShutDown {
        stream.after_outbox = AfterOutbox::Nothing;
        // It fails only when the connection is gone, which the receive reports.
        let _ = shutdown(stream.fd(), Shutdown::Write);
        live.session.handle_shut_down();
    }
}
