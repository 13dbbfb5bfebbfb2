//! How a session reads its client's request, and has passwords verified that take their time.

use std::mem;
use std::rc::Rc;

use zeroize::Zeroize;

use super::{Command, Session, Stage};
use crate::close::CloseReason;
use crate::pump::{Closing, Side};
use crate::time::Instant;
use crate::users::Users;
use crate::verify::{Login, Verdict};
use crate::wire;

impl Session {
    /// Reads on in what the client has sent.
    pub(super) fn advance_handshake(&mut self, now: Instant) {
        let view = Rc::clone(&self.view);
        let users = view.snapshot().listener(self.listener).users.as_deref();
        loop {
            let Some(setup) = &mut self.setup else { return };
            let Stage::Handshake { wire, .. } = &mut setup.stage else { return };
            let progress = wire.advance(&setup.early, users);
            if users.is_some() {
                // A password may be among it.
                setup.early[..progress.consumed].zeroize();
            }
            setup.early.drain(..progress.consumed);
            match progress.step {
                // One that has ended its stream meanwhile has nothing more to say.
                wire::Step::Incomplete if setup.client_ended => {
                    self.close(Closing::plain(CloseReason::ClientLeft));
                    return;
                }
                wire::Step::Incomplete => return,
                wire::Step::Reply(reply) => {
                    setup.commands.push_back(Command::Send(Side::Client, reply));
                }
                wire::Step::Verify(login) => self.ask(users, login, now),
                wire::Step::Request(request) => {
                    self.begin(request, now);
                    return;
                }
                wire::Step::Refuse { reply, reason } => {
                    self.refuse(reply, reason, now);
                    return;
                }
            }
        }
    }

    /// Has a password verified, unless it is known to be wrong.
    fn ask(&mut self, users: Option<&Users>, login: Login, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let asked = users.map_or(Err(Verdict::Wrong), |users| users.ask(login, self.client, now));
        setup.stage = match (mem::replace(&mut setup.stage, Stage::Closed), asked) {
            (Stage::Handshake { wire, deadline }, Ok((question, asked))) => {
                setup.commands.push_back(Command::Verify(question));
                Stage::Verifying { wire, asked, deadline }
            }
            (Stage::Handshake { mut wire, deadline }, Err(verdict)) => {
                wire.handle_verdict(verdict);
                Stage::Handshake { wire, deadline }
            }
            (stage, Ok(_) | Err(_)) => stage,
        };
    }

    /// What is to be thought of the password that [`Command::Verify`] asked about.
    pub fn handle_verified(&mut self, verdict: Verdict, now: Instant) {
        let view = Rc::clone(&self.view);
        let listener = view.snapshot().listener(self.listener);
        let Some(setup) = &mut self.setup else { return };
        let (Stage::Verifying { .. }, Some(users)) = (&setup.stage, &listener.users) else { return };
        setup.stage = match mem::replace(&mut setup.stage, Stage::Closed) {
            Stage::Verifying { mut wire, asked, deadline } => {
                let verdict = users.learn(&asked, verdict, now);
                if verdict == Verdict::Overloaded
                    && let Some(others) = listener.gate.pass(now)
                {
                    let name = &*listener.name;
                    tracing::warn!(listener = name, client = %self.client, others, "too many passwords wait");
                }
                wire.handle_verdict(verdict);
                Stage::Handshake { wire, deadline }
            }
            stage @ (Stage::Announcing { .. }
            | Stage::Peeking { .. }
            | Stage::Handshake { .. }
            | Stage::Accepting { .. }
            | Stage::Shunning { .. }
            | Stage::Reaching
            | Stage::Pumping
            | Stage::Refusing { .. }
            | Stage::Closed) => stage,
        };
        self.advance_handshake(now);
    }
}
