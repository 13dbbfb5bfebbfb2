//! The sessions of a fleet: `flow`'s own, with a driver that needs no sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::pump::{Direction, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::ListenerIndex;
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

use super::Mood;

/// How long a client waits for the first byte of somebody who is mute.
const PATIENCE: Duration = Duration::from_secs(3);

/// Something that happens to a session, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    Connected(usize, u16),
    Refused(usize, u16),
    /// The first byte of an attempt, or of the upstream.
    Speaks(usize, u16),
    /// The client goes.
    Leaves(usize),
}

/// What is to happen after a while; whom an attempt was begun at, for a client of when; and which sessions have ended:
/// when each had come, and whether it was served.
type Driven = (Vec<(Duration, Happening)>, Vec<(usize, Instant)>, Vec<(Instant, bool)>);

#[derive(Default)]
pub(super) struct Sessions {
    open: Vec<Live>,
    next: usize,
}

struct Live {
    number: usize,
    session: Session,
    accepted_at: Instant,
    attempts: Vec<(AttemptId, usize)>,
    pumped: Option<AttemptId>,
    is_over: bool,
}

impl Sessions {
    pub(super) fn accept(&mut self, view: &Rc<View>, client: u8, now: Instant) {
        let client = ClientAddr::Ip(SocketAddr::from((Ipv4Addr::new(192, 0, 2, client), 40_000)));
        let session = Session::new(Rc::clone(view), ListenerIndex(0), client, now);
        let number = self.next;
        self.next += 1;
        let attempts = Vec::new();
        self.open.push(Live { number, session, accepted_at: now, attempts, pumped: None, is_over: false });
    }

    /// In microseconds.
    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.open.iter().filter_map(|live| live.session.poll_timeout()).map(Instant::as_micros).min()
    }

    pub(super) fn handle_timeouts(&mut self, now: Instant) {
        for live in &mut self.open {
            if live.session.poll_timeout().is_some_and(|at| at <= now) {
                live.session.handle_timeout(now);
            }
        }
    }

    pub(super) fn happen(&mut self, happening: Happening, now: Instant) {
        let (number, attempt) = match happening {
            Happening::Connected(number, attempt)
            | Happening::Refused(number, attempt)
            | Happening::Speaks(number, attempt) => (number, AttemptId(attempt)),
            Happening::Leaves(number) => (number, AttemptId(0)),
        };
        let Some(live) = self.open.iter_mut().find(|live| live.number == number) else { return };
        let is_open = live.attempts.iter().any(|(known, _)| *known == attempt);
        match happening {
            Happening::Connected(..) if is_open => live.session.handle_connected(attempt, None, now),
            Happening::Refused(..) if is_open => {
                live.session.handle_connect_failed(attempt, ConnectError::Refused, now);
            }
            Happening::Speaks(..) if live.pumped == Some(attempt) => live.finish(now),
            Happening::Speaks(..) if is_open => live.session.handle_received_ahead(attempt, b"!", now),
            Happening::Leaves(_) => live.session.handle_stop(CloseReason::Stopped),
            Happening::Connected(..) | Happening::Refused(..) | Happening::Speaks(..) => {}
        }
    }

    pub(super) fn drive(&mut self, moods: &[Mood], now: Instant) -> Driven {
        let mut driven: Driven = Default::default();
        for live in &mut self.open {
            while let Some(command) = live.session.poll_command() {
                live.carry_out(command, moods, &mut driven, now);
            }
        }
        self.open.retain(|live| !live.is_over);
        driven
    }
}

impl Live {
    fn carry_out(&mut self, command: Command, moods: &[Mood], driven: &mut Driven, now: Instant) {
        let (happenings, begun, ended) = driven;
        match command {
            Command::Connect { attempt, address: UpstreamAddr::Tcp(SocketAddr::V4(address)), .. } => {
                let target = usize::from(address.ip().octets()[3]);
                self.attempts.push((attempt, target));
                begun.push((target, self.accepted_at));
                let (number, id) = (self.number, attempt.0);
                match moods[target] {
                    Mood::Well(ms) => {
                        happenings.push((Duration::from_millis(ms), Happening::Connected(number, id)));
                    }
                    Mood::Mute => {
                        happenings.push((Duration::from_millis(2), Happening::Connected(number, id)))
                    }
                    Mood::Refuses => {
                        happenings.push((Duration::from_millis(1), Happening::Refused(number, id)))
                    }
                    Mood::Hangs => {}
                }
            }
            Command::ReceiveAhead(attempt) => {
                if let Some(after) = self.word_of(attempt, moods) {
                    happenings.push((after, Happening::Speaks(self.number, attempt.0)));
                }
            }
            Command::Abandon(attempt) => self.attempts.retain(|(known, _)| *known != attempt),
            Command::Pump(attempt) => {
                self.pumped = Some(attempt);
                let after = self.word_of(attempt, moods);
                // What was heard ahead of the pump was the first byte already: the session is not waited for.
                match after {
                    Some(after) => happenings.push((after, Happening::Speaks(self.number, attempt.0))),
                    None => happenings.push((PATIENCE, Happening::Leaves(self.number))),
                }
            }
            Command::Close(_) => {
                self.session.handle_closed(now);
                self.is_over = true;
                ended.push((self.accepted_at, self.pumped.is_some()));
            }
            Command::Send(..) | Command::SendAhead(..) | Command::EndAhead(_) | Command::ShutDownClient => {}
            Command::Connect { .. }
            | Command::Resolve(_)
            | Command::Verify(_)
            | Command::JoinLine(_)
            | Command::NameLocal
            | Command::NameDestination(_) => {
                unreachable!("{command:?} in a world of addresses")
            }
        }
    }

    /// After how long the destination of an attempt says something, if it does.
    fn word_of(&self, attempt: AttemptId, moods: &[Mood]) -> Option<Duration> {
        let target = self.attempts.iter().find(|(known, _)| *known == attempt)?.1;
        match moods[target] {
            Mood::Well(ms) => Some(Duration::from_millis(ms)),
            Mood::Refuses | Mood::Hangs | Mood::Mute => None,
        }
    }

    /// The upstream says something, and the client is content.
    fn finish(&mut self, now: Instant) {
        if let Some(Step::Receive(_)) = self.session.poll_step(Direction::Down) {
            self.session.handle_received(Direction::Down, 1, now);
            if let Some(Step::Send(bytes)) = self.session.poll_step(Direction::Down) {
                self.session.handle_sent(Direction::Down, bytes, now);
            }
        }
        self.session.handle_stop(CloseReason::Stopped);
    }
}
