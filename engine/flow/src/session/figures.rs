//! What a session measures of itself, for its listener and for the targets it went through.

use super::attempt::Attempt;
use super::{FirstByte, Session, approach};
use crate::health::Outcome;
use crate::histogram::Figure;
use crate::pump::Direction;
use crate::time::Instant;

impl Session {
    /// A target was picked.
    pub(super) fn measure_pick(&mut self, now: Instant) {
        let waited_us = micros(self.accepted_at, now);
        let Some(setup) = &mut self.setup else { return };
        let is_first = setup.picked_at.is_none();
        setup.picked_at.get_or_insert(now);
        if let Some(attempt) = setup.attempts.last() {
            approach::count(&self.view, &attempt.path, |cell| {
                cell.histograms.record(Figure::Dispatch, waited_us);
            });
        }
        if is_first {
            self.measure_listener(Figure::Dispatch, waited_us);
        }
    }

    /// The upstream is open.
    pub(super) fn measure_commit(&self, winner: &Attempt, now: Instant) {
        let picked_at = self.setup.as_ref().and_then(|setup| setup.picked_at).unwrap_or(winner.begun_at);
        self.measure_listener(Figure::Connect, micros(picked_at, winner.reached_at));
        let took_us = micros(winner.begun_at, winner.reached_at);
        let took_in_all = now.since(winner.begun_at);
        approach::count(&self.view, &winner.path, |cell| {
            cell.histograms.record(Figure::Connect, took_us);
            cell.latency.record(took_in_all, now);
        });
    }

    /// The upstream, which was open from `reached_at` on, has sent its first byte.
    #[cold]
    pub(super) fn measure_first_byte(&mut self, reached_at: Instant, now: Instant) {
        self.first_byte = FirstByte::Seen;
        self.observe(Outcome::FirstByte);
        self.measure(Figure::FirstByte, micros(reached_at, now));
    }

    /// The session is over. One that never had an upstream is counted by its reason alone: its length would only
    /// blur that of the others.
    pub(super) fn measure_end(&self, now: Instant) {
        if self.committed_at.is_some() {
            self.measure(Figure::Session, micros(self.accepted_at, now));
            self.measure(Figure::BytesUp, self.delivered(Direction::Up));
            self.measure(Figure::BytesDown, self.delivered(Direction::Down));
        }
    }

    fn measure(&self, figure: Figure, value: u64) {
        self.measure_listener(figure, value);
        self.measure_targets(figure, value);
    }

    fn measure_listener(&self, figure: Figure, value: u64) {
        self.listener().counters.cell(self.view.worker()).histograms.record(figure, value);
    }

    fn measure_targets(&self, figure: Figure, value: u64) {
        self.count(|cell| cell.histograms.record(figure, value));
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    to.as_micros().saturating_sub(from.as_micros())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::{Command, Session};
    use super::*;
    use crate::account::{ListenerCounters, TargetCounters};
    use crate::close::{CloseReason, ConnectError};
    use crate::dial::AttemptId;
    use crate::histogram::Histograms;
    use crate::record::ClientAddr;
    use crate::snapshot::{
        Group, Listener, ListenerIndex, Member, Policy, Protocol, Snapshot, Target, TargetIndex, TargetKind,
        Upstream, WorkerIndex,
    };
    use crate::view::View;
    use crate::way::Splicing;

    /// A plain listener over a group (0) of two upstreams (1 and 2), the first of which is tried first.
    fn world() -> Arc<Snapshot> {
        let target = |kind| Target::new("x", kind, Arc::new(TargetCounters::new(1)));
        let upstream = || {
            let address = "192.0.2.1:80".parse().unwrap();
            target(TargetKind::Upstream(Upstream::Tcp([address].into())))
        };
        let members = [1, 2].map(|index| Member::primary(TargetIndex(index), 1));
        let group = Group::new(Policy::Failover, members.into(), 2, Duration::from_secs(4));
        let counters = Arc::new(ListenerCounters::new(1));
        let listener = Listener::new("in", Protocol::Tcp, TargetIndex(0), counters);
        let targets = vec![target(TargetKind::Group(group)), upstream(), upstream()];
        Arc::new(Snapshot { splicing: Splicing::Off, ..Snapshot::new(vec![listener], targets) })
    }

    fn begin(snapshot: &Arc<Snapshot>, now: Instant) -> Session {
        let view = View::new(Arc::clone(snapshot), WorkerIndex(0), 1);
        Session::new(view, ListenerIndex(0), ClientAddr::Ip("192.0.2.9:9".parse().unwrap()), now)
    }

    fn next_attempt(session: &mut Session) -> AttemptId {
        loop {
            match session.poll_command() {
                Some(Command::Connect { attempt, .. }) => return attempt,
                Some(_) => {}
                None => panic!("no connect"),
            }
        }
    }

    /// The only value of each figure, or nothing; each is small enough to be exact.
    fn values(histograms: &Histograms) -> [Option<u64>; 6] {
        Figure::ALL.map(|figure| {
            let counts: Vec<_> = histograms.of(figure)?.counts().collect();
            assert!(counts.len() <= 1, "{figure:?}: {counts:?}");
            counts.first().map(|(_, count)| assert_eq!(*count, 1, "{figure:?}"))?;
            histograms.of(figure).map(|recorder| recorder.sum())
        })
    }

    #[test]
    fn every_figure_is_measured_once_where_it_belongs() {
        let snapshot = world();
        let at = Instant::from_micros;
        let mut session = begin(&snapshot, at(100));
        let first = next_attempt(&mut session);
        session.handle_connect_failed(first, ConnectError::Refused, at(103));
        let second = next_attempt(&mut session);
        session.handle_connected(second, None, at(110));
        while session.poll_command().is_some() {}
        for direction in Direction::BOTH {
            session.poll_step(direction);
        }
        for (bytes, now) in [(70, at(131)), (30, at(150))] {
            session.handle_received(Direction::Down, bytes, now);
            session.poll_step(Direction::Down);
            session.handle_sent(Direction::Down, bytes, now);
            session.poll_step(Direction::Down);
        }
        session.handle_stop(CloseReason::Stopped);
        session.handle_closed(at(200));
        let target = |index: u32| {
            values(&snapshot.target(TargetIndex(index)).counters.cell(WorkerIndex(0)).histograms)
        };
        let listener = &snapshot.listener(ListenerIndex(0)).counters.cell(WorkerIndex(0)).histograms;
        assert_eq!(values(listener), [0, 10, 21, 100, 0, 100].map(Some));
        assert_eq!(target(1), [Some(0), None, None, None, None, None], "tried in vain");
        assert_eq!(target(2), [3, 7, 21, 100, 0, 100].map(Some));
        let group = &snapshot.target(TargetIndex(0)).counters.cell(WorkerIndex(0)).histograms;
        let picks: Vec<_> = group.of(Figure::Dispatch).unwrap().counts().collect();
        assert_eq!(picks, [(0, 1), (3, 1)], "a group was picked for each of its members");
        let connects: Vec<_> = group.of(Figure::Connect).unwrap().counts().collect();
        assert_eq!(connects, [(7, 1)]);
    }

    #[test]
    fn a_session_without_an_upstream_has_no_length() {
        let snapshot = world();
        let mut session = begin(&snapshot, Instant::ZERO);
        for _ in 0..2 {
            let attempt = next_attempt(&mut session);
            session.handle_connect_failed(attempt, ConnectError::Refused, Instant::from_micros(9));
        }
        session.handle_closed(Instant::from_micros(10));
        let listener = &snapshot.listener(ListenerIndex(0)).counters.cell(WorkerIndex(0)).histograms;
        assert_eq!(values(listener), [Some(0), None, None, None, None, None]);
    }
}
