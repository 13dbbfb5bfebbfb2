//! The one session that is let through to an ejected target when its time is over.

use std::sync::atomic::{AtomicU8, Ordering};

use super::outcome::{Cause, Outcome};

/// How far a trial has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialPhase {
    /// The next session takes it.
    Open,
    /// A session is on it.
    Taken,
    /// The target is sound.
    Passed,
    /// It is not.
    Failed,
}

/// One session over all workers: the only thing that two of them write, and only while a target is on trial.
#[derive(Debug)]
pub struct Trial {
    phase: AtomicU8,
    /// What the target was ejected for, and must now do right.
    cause: Cause,
}

impl Trial {
    /// An open trial of a target that was ejected for `cause`.
    pub fn new(cause: Cause) -> Trial {
        Trial { phase: AtomicU8::new(TrialPhase::Open as u8), cause }
    }

    /// How far it is.
    pub fn phase(&self) -> TrialPhase {
        match self.phase.load(Ordering::Acquire) {
            0 => TrialPhase::Open,
            1 => TrialPhase::Taken,
            2 => TrialPhase::Passed,
            _ => TrialPhase::Failed,
        }
    }

    /// Whether it could be taken; [`Trial::take`] tells for sure.
    pub fn is_open(&self) -> bool {
        self.phase() == TrialPhase::Open
    }

    /// Takes it, for one caller only.
    pub fn take(&self) -> bool {
        self.change(TrialPhase::Open, TrialPhase::Taken)
    }

    /// Opens it again when whoever took it does not say what came of it.
    pub fn reopen(&self) {
        self.change(TrialPhase::Taken, TrialPhase::Open);
    }

    /// What the session met. Returns whether the trial is decided by it.
    pub fn handle(&self, outcome: Outcome) -> bool {
        let decided = match outcome {
            Outcome::Connected => match self.cause {
                Cause::Connect => TrialPhase::Passed,
                // It has always connected; what comes of it is the question.
                Cause::Answer => return false,
            },
            Outcome::FirstByte => TrialPhase::Passed,
            Outcome::ConnectFailed | Outcome::ResetBeforeFirstByte | Outcome::FirstByteTimeout => {
                TrialPhase::Failed
            }
            Outcome::Abandoned => {
                self.reopen();
                return false;
            }
        };
        self.change(TrialPhase::Taken, decided) || self.change(TrialPhase::Open, decided)
    }

    fn change(&self, from: TrialPhase, to: TrialPhase) -> bool {
        self.phase.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_workers_takes_it() {
        let trial = Trial::new(Cause::Connect);
        let taken: usize = std::iter::repeat_with(|| usize::from(trial.take())).take(10).sum();
        assert_eq!(taken, 1);
        trial.handle(Outcome::Abandoned);
        assert!(trial.take(), "a client that left proves nothing");
    }

    #[test]
    fn a_target_must_do_right_what_it_did_wrong() {
        let (connect, answer) = (Trial::new(Cause::Connect), Trial::new(Cause::Answer));
        assert!(connect.take() && answer.take());
        assert!(connect.handle(Outcome::Connected) && !answer.handle(Outcome::Connected));
        assert_eq!((connect.phase(), answer.phase()), (TrialPhase::Passed, TrialPhase::Taken));
        assert!(answer.handle(Outcome::ResetBeforeFirstByte));
        assert_eq!(answer.phase(), TrialPhase::Failed);
        assert!(!connect.handle(Outcome::ConnectFailed), "it is decided");
    }
}
