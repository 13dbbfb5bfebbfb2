//! What real sessions meet at a target, counted where they run, and who is called when it is too much.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::trial::Trial;
use crate::account::{Counter, PerWorker, TargetCell};
use crate::close::ConnectError;
use crate::snapshot::WorkerIndex;

/// What a session met at an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It connected.
    Connected,
    /// It could not be connected to, through a fault that may be its own.
    ConnectFailed,
    /// It reset the connection before it had sent anything.
    ResetBeforeFirstByte,
    /// It sent nothing within the time that was given to it.
    FirstByteTimeout,
    /// It sent something.
    FirstByte,
    /// The session gave it up, or ended, without learning any of this.
    Abandoned,
}

impl Outcome {
    /// What a failed attempt says of the target: nothing where it never left this machine.
    pub const fn of_failure(error: ConnectError) -> Outcome {
        match error {
            ConnectError::Refused
            | ConnectError::TimedOut
            | ConnectError::NetworkUnreachable
            | ConnectError::HostUnreachable
            | ConnectError::Reset
            | ConnectError::Unanswered
            | ConnectError::ProxyAuthentication
            | ConnectError::ProxyBroken
            | ConnectError::Other(_) => Outcome::ConnectFailed,
            ConnectError::NotAllowed
            | ConnectError::Full
            | ConnectError::NotResolved
            | ConnectError::OutOfResources
            // It has answered; what it could not do is the destination's.
            | ConnectError::ProxyRefused
            | ConnectError::OwnEnd => Outcome::Abandoned,
        }
    }
}

/// What a target fails at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Being connected to.
    Connect,
    /// Sending anything once it is.
    Answer,
}

impl Cause {
    /// The words used in logs and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Connect => "connects failed",
            Cause::Answer => "reset or silent before the first byte",
        }
    }
}

/// What one worker counts of outcomes at one target.
#[derive(Debug, Default)]
pub struct OutcomeCell {
    connects: Streak,
    answers: Streak,
    /// Sessions that the target reset before its first byte.
    pub early_resets: Counter,
    /// Sessions whose first byte was awaited in vain.
    pub first_byte_timeouts: Counter,
}

/// Failures of one kind since the last success of any worker.
///
/// A worker cannot set the counts of others back when a session of its own succeeds. So it only counts successes, and
/// each run of failures remembers how many there had been in all: runs that remember less than there are by now are over.
#[derive(Debug, Default)]
struct Streak {
    successes: Counter,
    failures: Counter,
    /// Successes of all workers when the run began.
    since: Counter,
}

/// The outcomes of all workers at one target.
#[derive(Clone, Copy, Debug)]
pub struct Outcomes<'a>(&'a PerWorker<TargetCell>);

impl<'a> Outcomes<'a> {
    /// Of a target with these counters.
    pub fn of(counters: &'a PerWorker<TargetCell>) -> Outcomes<'a> {
        Outcomes(counters)
    }

    /// How many failures in a row there were.
    pub fn in_a_row(self, cause: Cause) -> u64 {
        let successes = self.successes(cause);
        let runs = self.0.cells().map(|cell| cell.outcomes.streak(cause));
        runs.filter(|run| run.since.get() == successes).map(|run| run.failures.get()).sum()
    }

    /// Counts what a session of `worker` met, which must be the caller's. For a failure, how many in a row there are
    /// with it. A success costs one store; a failure looks at all workers' cells.
    pub fn record(self, worker: WorkerIndex, outcome: Outcome) -> Option<(Cause, u64)> {
        let cell = &self.0.cell(worker).outcomes;
        match outcome {
            Outcome::Connected => cell.connects.successes.add(1),
            Outcome::FirstByte => cell.answers.successes.add(1),
            Outcome::Abandoned => {}
            Outcome::ConnectFailed => return Some(self.fail(cell, Cause::Connect)),
            Outcome::ResetBeforeFirstByte => {
                cell.early_resets.add(1);
                return Some(self.fail(cell, Cause::Answer));
            }
            Outcome::FirstByteTimeout => {
                cell.first_byte_timeouts.add(1);
                return Some(self.fail(cell, Cause::Answer));
            }
        }
        None
    }

    fn fail(self, cell: &OutcomeCell, cause: Cause) -> (Cause, u64) {
        let successes = self.successes(cause);
        let run = cell.streak(cause);
        if run.since.get() != successes {
            run.failures.sub(run.failures.get());
            run.since.sub(run.since.get());
            run.since.add(successes);
        }
        run.failures.add(1);
        (cause, self.in_a_row(cause))
    }

    fn successes(self, cause: Cause) -> u64 {
        self.0.sum(|cell| &cell.outcomes.streak(cause).successes)
    }
}

impl OutcomeCell {
    fn streak(&self, cause: Cause) -> &Streak {
        match cause {
            Cause::Connect => &self.connects,
            Cause::Answer => &self.answers,
        }
    }
}

/// Whom a worker calls. Must neither wait nor fail.
pub trait Alarm: fmt::Debug + Send + Sync {
    /// The target of that name wants looking at: failures in a row, or a trial that is decided.
    fn raise(&self, target: &Arc<str>);
}

/// How the outcomes at one target are watched.
#[derive(Debug)]
pub struct Watch {
    target: Arc<str>,
    /// How many failures in a row are too many.
    failures: u32,
    alarm: Arc<dyn Alarm>,
    is_raised: AtomicBool,
}

impl Watch {
    /// Calls `alarm` for `target` when there are `failures` in a row.
    pub fn new(target: Arc<str>, failures: u32, alarm: Arc<dyn Alarm>) -> Watch {
        Watch { target, failures, alarm, is_raised: AtomicBool::new(false) }
    }

    /// How many failures in a row are too many.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whoever was called is about to look; what happens from now on is worth another call.
    pub fn acknowledge(&self) {
        self.is_raised.store(false, Ordering::Release);
    }

    /// A failure was counted, with which there are so many in a row, or a trial was decided.
    pub(crate) fn handle(&self, in_a_row: Option<(Cause, u64)>, trial: Option<&Trial>, outcome: Outcome) {
        let is_decided = trial.is_some_and(|trial| trial.handle(outcome));
        let is_too_much = in_a_row.is_some_and(|(_, count)| count >= u64::from(self.failures));
        // Read first: a target that fails a thousand times while control is on its way is called for once.
        if (is_decided || is_too_much)
            && !self.is_raised.load(Ordering::Relaxed)
            && !self.is_raised.swap(true, Ordering::AcqRel)
        {
            self.alarm.raise(&self.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::account::TargetCounters;

    #[derive(Debug, Default)]
    struct Calls(Mutex<u32>);

    impl Alarm for Calls {
        fn raise(&self, _target: &Arc<str>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn an_alarm_is_raised_once_until_it_is_acknowledged() {
        let calls = Arc::new(Calls::default());
        let watch = Watch::new("a".into(), 2, Arc::clone(&calls) as Arc<dyn Alarm>);
        let counters = TargetCounters::new(1);
        let fail = || {
            let row = Outcomes::of(&counters).record(WorkerIndex(0), Outcome::ConnectFailed);
            watch.handle(row, None, Outcome::ConnectFailed);
            *calls.0.lock().unwrap()
        };
        assert_eq!([fail(), fail(), fail()], [0, 1, 1]);
        watch.acknowledge();
        assert_eq!(fail(), 2);
    }

    #[test]
    fn connecting_does_not_excuse_a_target_that_resets_at_once() {
        let counters = TargetCounters::new(2);
        let outcomes = Outcomes::of(&counters);
        for worker in [0, 1, 0] {
            outcomes.record(WorkerIndex(worker), Outcome::Connected);
            outcomes.record(WorkerIndex(worker), Outcome::ResetBeforeFirstByte);
        }
        assert_eq!((outcomes.in_a_row(Cause::Answer), outcomes.in_a_row(Cause::Connect)), (3, 0));
    }

    proptest! {
        #[test]
        fn a_row_is_what_followed_the_last_success_of_any_worker(
            events in prop::collection::vec((0usize..3, any::<bool>()), 0..60)
        ) {
            let counters = TargetCounters::new(3);
            let outcomes = Outcomes::of(&counters);
            let mut expected = 0;
            for (worker, is_success) in events {
                let outcome = if is_success { Outcome::Connected } else { Outcome::ConnectFailed };
                let counted = outcomes.record(WorkerIndex(worker), outcome);
                expected = if is_success { 0 } else { expected + 1 };
                prop_assert_eq!(outcomes.in_a_row(Cause::Connect), expected);
                prop_assert_eq!(counted, (!is_success).then_some((Cause::Connect, expected)));
            }
        }
    }
}
