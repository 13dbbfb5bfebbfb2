//! What the results of active probes make of a target.

use std::time::Duration;

use crate::snapshot::Health;
use crate::time::Instant;

/// A target that falls again within this time after it had come back is flapping.
const FLAP_WINDOW: Duration = Duration::from_secs(300);

/// A flapping target needs up to this many times `rise` to come back.
pub const MAX_DAMPING: u32 = 8;

/// How many results are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictTerms {
    /// After how many failures in a row a target is down, at least 1.
    pub fall: u32,
    /// After how many successes in a row it is up again, at least 1.
    pub rise: u32,
    /// Whether a failure counts only when the probe is repeated at once and fails again.
    pub double_check: bool,
}

/// What follows from a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The health is what it was.
    Same,
    /// The health has changed.
    Changed,
    /// Probe again at once; the failure does not count yet.
    Doubted,
}

/// Counts results in a row. Of a target that keeps falling soon after it came back, each time twice as many successes
/// are asked for, up to [`MAX_DAMPING`] times `rise`; five minutes of health end that.
#[derive(Clone, Debug)]
pub struct Verdict {
    terms: VerdictTerms,
    health: Health,
    /// Results against the present health, in a row.
    against: u32,
    doubt: Doubt,
    /// What `rise` is multiplied by.
    damping: u32,
    /// When it came back from being down, if it ever did.
    returned_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    None,
    /// The last probe failed and is being repeated.
    Repeating,
}

impl Verdict {
    /// Nothing is known yet.
    pub fn new(terms: VerdictTerms) -> Verdict {
        Verdict {
            terms,
            health: Health::Unknown,
            against: 0,
            doubt: Doubt::None,
            damping: 1,
            returned_at: None,
        }
    }

    /// `Unknown`, `Up` or `Down`.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes the result of a probe.
    pub fn handle(&mut self, is_success: bool, now: Instant) -> Judgement {
        let doubt = std::mem::replace(&mut self.doubt, Doubt::None);
        match (self.health, is_success) {
            (Health::Up, true) | (Health::Down, false) => {
                self.against = 0;
                Judgement::Same
            }
            (Health::Down, true) => self.turn(Health::Up, self.terms.rise.saturating_mul(self.damping), now),
            // Nothing is known: a first success is believed, failures must be as many as ever.
            (
                Health::Unknown | Health::Draining | Health::Disabled | Health::Ejected | Health::Trial,
                true,
            ) => self.turn(Health::Up, 1, now),
            (
                Health::Up
                | Health::Unknown
                | Health::Draining
                | Health::Disabled
                | Health::Ejected
                | Health::Trial,
                false,
            ) => {
                if self.terms.double_check && doubt == Doubt::None {
                    self.doubt = Doubt::Repeating;
                    return Judgement::Doubted;
                }
                self.turn(Health::Down, self.terms.fall, now)
            }
        }
    }

    fn turn(&mut self, to: Health, needed: u32, now: Instant) -> Judgement {
        self.against += 1;
        if self.against < needed {
            return Judgement::Same;
        }
        if to == Health::Down {
            let is_flap = self.returned_at.is_some_and(|returned| now.since(returned) < FLAP_WINDOW);
            self.damping = if is_flap { (self.damping * 2).min(MAX_DAMPING) } else { 1 };
        } else if self.health == Health::Down {
            self.returned_at = Some(now);
        }
        self.health = to;
        self.against = 0;
        Judgement::Changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: VerdictTerms = VerdictTerms { fall: 2, rise: 3, double_check: false };

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn health_changes_after_as_many_results_in_a_row() {
        let mut verdict = Verdict::new(TERMS);
        assert_eq!(verdict.handle(true, at(0)), Judgement::Changed, "a first success is believed");
        for (is_success, expected) in [(false, Health::Up), (true, Health::Up), (false, Health::Up)] {
            verdict.handle(is_success, at(1));
            assert_eq!(verdict.health(), expected, "not in a row");
        }
        assert_eq!(verdict.handle(false, at(2)), Judgement::Changed);
        assert_eq!(verdict.health(), Health::Down);
        let back: Vec<_> = (0..3).map(|_| verdict.handle(true, at(3))).collect();
        assert_eq!(back, [Judgement::Same, Judgement::Same, Judgement::Changed]);
    }

    #[test]
    fn what_never_answered_goes_down_after_fall_failures() {
        let mut verdict = Verdict::new(TERMS);
        assert_eq!(verdict.handle(false, at(0)), Judgement::Same);
        assert_eq!(verdict.health(), Health::Unknown);
        assert_eq!(verdict.handle(false, at(1)), Judgement::Changed);
        assert_eq!(verdict.health(), Health::Down);
    }

    #[test]
    fn a_doubted_failure_counts_only_when_it_is_repeated() {
        let mut verdict = Verdict::new(VerdictTerms { fall: 1, rise: 1, double_check: true });
        verdict.handle(true, at(0));
        assert_eq!(verdict.handle(false, at(1)), Judgement::Doubted);
        assert_eq!(verdict.handle(true, at(1)), Judgement::Same);
        assert_eq!(verdict.handle(false, at(2)), Judgement::Doubted);
        assert_eq!(verdict.handle(false, at(2)), Judgement::Changed);
        assert_eq!(verdict.handle(false, at(3)), Judgement::Same, "what is down is not doubted");
    }

    #[test]
    fn a_flapping_target_takes_ever_longer_to_come_back_and_calm_forgives() {
        let mut verdict = Verdict::new(VerdictTerms { fall: 1, rise: 1, double_check: false });
        let mut now = 0;
        let mut needed = Vec::new();
        verdict.handle(true, at(now));
        for _ in 0..6 {
            verdict.handle(false, at(now));
            let mut successes = 0;
            while verdict.health() == Health::Down {
                now += 1;
                verdict.handle(true, at(now));
                successes += 1;
            }
            needed.push(successes);
        }
        assert_eq!(needed, [1, 2, 4, 8, 8, 8]);
        verdict.handle(false, at(now + 301));
        verdict.handle(true, at(now + 302));
        assert_eq!(verdict.health(), Health::Up);
    }

    proptest! {
        #[test]
        fn no_change_without_as_many_results_in_a_row(
            results in prop::collection::vec(any::<bool>(), 1..200), fall in 1u32..5, rise in 1u32..5
        ) {
            let mut verdict = Verdict::new(VerdictTerms { fall, rise, double_check: false });
            let (mut run, mut last) = (0u32, None);
            for (second, result) in (0u64..).zip(results) {
                run = if last == Some(result) { run + 1 } else { 1 };
                last = Some(result);
                let before = verdict.health();
                if verdict.handle(result, at(second)) == Judgement::Changed {
                    let needed = match (before, result) {
                        (Health::Down, true) => rise,
                        (_, true) => 1,
                        (_, false) => fall,
                    };
                    prop_assert!(run >= needed);
                    prop_assert_eq!(verdict.health() == Health::Up, result);
                } else {
                    prop_assert_eq!(verdict.health(), before);
                }
            }
        }
    }
}
