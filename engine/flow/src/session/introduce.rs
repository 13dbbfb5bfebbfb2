//! How an attempt gets past the proxies on its way.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use super::attempt::{Approach, Introducing};
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
        let Some(setup) = &mut self.setup else { return };
        let asked = setup.request.as_ref().map(|request| &request.destination);
        let Some(introduction) = route.hops.first().and_then(|hop| Introduction::new(hop, asked)) else {
            return self.fail_attempt(index, ConnectError::NotAllowed, now);
        };
        let received = Vec::new();
        let introducing = Introducing { connection, local, route, hop: 0, introduction, received };
        setup.attempts[index].approach = Approach::Introducing(Box::new(introducing));
        self.advance_introduction(index, now);
    }

    /// Answers what a proxy has said, and goes on to the next when it has said yes.
    pub(super) fn advance_introduction(&mut self, index: usize, now: Instant) {
        loop {
            let Some(setup) = &mut self.setup else { return };
            let Some(attempt) = setup.attempts.get_mut(index) else { return };
            let Approach::Introducing(introducing) = &mut attempt.approach else { return };
            let mut out = Vec::new();
            let progress = introducing.introduction.advance(&introducing.received, &mut out);
            introducing.received.drain(..progress.consumed);
            let connection = introducing.connection;
            if !out.is_empty() {
                setup.commands.push_back(Command::SendAhead(connection, out));
            }
            match progress.step {
                Step::Incomplete => {
                    setup.commands.push_back(Command::ReceiveAhead(connection));
                    return;
                }
                Step::Failed(error) => {
                    self.fail_attempt(index, error.as_connect_error(), now);
                    self.advance(now);
                    return;
                }
                Step::Done => {
                    introducing.hop += 1;
                    let asked = setup.request.as_ref().map(|request| &request.destination);
                    let next = introducing.route.hops.get(introducing.hop);
                    if let Some(introduction) = next.and_then(|hop| Introduction::new(hop, asked)) {
                        introducing.introduction = introduction;
                        continue;
                    }
                    let (local, heard) = (introducing.local, mem::take(&mut introducing.received));
                    let commit = attempt.commit;
                    self.open(index, connection, local, &heard, commit, now);
                    return;
                }
            }
        }
    }

    /// An attempt is the only one from now on; returns where it stands.
    fn stop_others(&mut self, index: usize, now: Instant) -> usize {
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
