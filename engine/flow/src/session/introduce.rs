//! How an attempt gets past the proxies on its way.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use super::attempt::{Approach, Introducing, Way};
use super::{Command, Session};
use crate::close::ConnectError;
use crate::dial::AttemptId;
use crate::snapshot::{Commit, Route};
use crate::time::Instant;
use crate::wire::client::{Introduction, Step};

impl Session {
    /// The first proxy is connected to.
    pub(super) fn introduce(
        &mut self,
        index: usize,
        connection: AttemptId,
        local: Option<SocketAddr>,
        route: Arc<Route>,
        now: Instant,
    ) {
        let index = match self.setup.as_ref().map(|setup| setup.attempts[index].commit) {
            // It has won with that: whatever becomes of it, nothing else is tried.
            Some(Commit::Connect) => self.stop_others(index, now),
            Some(Commit::Handshake | Commit::FirstByte) => index,
            None => return,
        };
        self.enter(index, Way { connection, local, route, hop: 0 }, Vec::new(), now);
    }

    /// Asks the proxies from `way.hop` on, as far as that needs no answer; `received` is what came that is not used.
    fn enter(&mut self, index: usize, mut way: Way, received: Vec<u8>, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let asked = setup.request.as_ref().map(|request| &request.destination);
        let attempt = &mut setup.attempts[index];
        while let Some(hop) = way.route.hops.get(way.hop) {
            match Introduction::new(hop, asked) {
                // Control refuses a configuration in which it is not known where such a way leads.
                None => return self.fail_attempt(index, ConnectError::NotAllowed, now),
                Some(Introduction::Tunnel(client, destination)) => {
                    // Nothing can have come of it yet: it has not been opened.
                    if !received.is_empty() || attempt.tunnel.is_some() {
                        self.fail_attempt(index, ConnectError::ProxyBroken, now);
                        return self.advance(now);
                    }
                    let (serial, draw) = (self.view.next_serial(), self.view.draw_u16());
                    attempt.tunnel = Some(Box::new(client.tunnel(destination, serial, draw)));
                    way.hop += 1;
                }
                Some(Introduction::Handshake(handshake)) => {
                    let introducing = Introducing { way, handshake, received };
                    attempt.approach = Approach::Introducing(Box::new(introducing));
                    return self.advance_introduction(index, now);
                }
            }
        }
        let commit = attempt.commit;
        self.open(index, way.connection, way.local, &received, commit, now);
    }

    /// Answers what a proxy has said, and goes on to the next when it has said yes.
    pub(super) fn advance_introduction(&mut self, index: usize, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Some(attempt) = setup.attempts.get_mut(index) else { return };
        let Approach::Introducing(introducing) = &mut attempt.approach else { return };
        let mut out = Vec::new();
        let progress = introducing.handshake.advance(&introducing.received, &mut out);
        introducing.received.drain(..progress.consumed);
        let connection = introducing.way.connection;
        if !out.is_empty() {
            let out = attempt.sealed(out);
            setup.commands.push_back(Command::SendAhead(connection, out));
        }
        match progress.step {
            Step::Incomplete => {
                setup.commands.push_back(Command::ReceiveAhead(connection));
            }
            Step::Failed(error) => {
                self.fail_attempt(index, error.as_connect_error(), now);
                self.advance(now);
            }
            Step::Done => {
                let introduced = mem::replace(&mut attempt.approach, Approach::Resolving);
                let Approach::Introducing(introduced) = introduced else { return };
                let Introducing { way, received, .. } = *introduced;
                self.enter(index, Way { hop: way.hop + 1, ..way }, received, now);
            }
        }
    }

    /// An attempt is the only one from now on; returns where it stands.
    pub(super) fn stop_others(&mut self, index: usize, now: Instant) -> usize {
        let Some(setup) = &mut self.setup else { return index };
        let winner = setup.attempts.swap_remove(index);
        setup.dispatch.decide();
        self.abandon_attempts(Some(now));
        if let Some(setup) = &mut self.setup {
            setup.attempts.push(winner);
        }
        0
    }
}
