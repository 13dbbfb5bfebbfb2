//! Who is ejected for what real sessions met, and for how long; never more than may be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::outcome::Cause;
use super::trial::{Trial, TrialPhase};
use crate::time::Instant;

/// When a target is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// After how many failures in a row.
    pub failures: u32,
    /// For how long the first time; twice as long each time it happens again.
    pub eject: Duration,
    /// For how long at most.
    pub max_eject: Duration,
}

/// The members of a group, of which only so many may be out at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The names of its members that can be ejected.
    pub members: Vec<Arc<str>>,
    /// How many of them may be out.
    pub most: usize,
}

/// How a target stands.
#[derive(Clone, Debug)]
pub enum Standing {
    /// In service.
    Serving,
    /// Out until then.
    Ejected {
        /// What for.
        cause: Cause,
        /// The end of its time.
        until: Instant,
    },
    /// One session is let through.
    OnTrial(Arc<Trial>),
}

/// Everybody whose real traffic is watched.
///
/// A target is ejected for `eject`, and each time it happens again for twice as long, up to `max_eject`; whenever it has
/// served for as long as it was out, one doubling is forgotten. After its time one session is tried on it.
#[derive(Debug, Default)]
pub struct Ward {
    patients: BTreeMap<Arc<str>, Patient>,
    pools: Vec<Pool>,
}

#[derive(Debug)]
struct Patient {
    terms: Terms,
    stage: Stage,
    /// How often the time was doubled.
    doublings: u32,
    ejections: u64,
}

#[derive(Debug)]
enum Stage {
    Serving { since: Instant },
    Ejected { cause: Cause, until: Instant, absence: Absence },
    OnTrial { cause: Cause, trial: Arc<Trial>, look_at: Instant, absence: Absence },
}

/// How it was when a target left service.
#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    doublings: u32,
}

impl Ward {
    /// Watches these targets from now on. Those that were watched before keep how they stand, unless more of a pool
    /// are out than may be by now: then those whose time ends first are back.
    pub fn reconfigure(
        &mut self,
        targets: impl IntoIterator<Item = (Arc<str>, Terms)>,
        pools: Vec<Pool>,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.patients);
        for (name, terms) in targets {
            let stage = Stage::Serving { since: now };
            let fresh = Patient { terms, stage, doublings: 0, ejections: 0 };
            let patient = before.remove(&name).map_or(fresh, |old| Patient { terms, ..old });
            self.patients.insert(name, patient);
        }
        self.pools = pools;
        for pool in 0..self.pools.len() {
            while self.out(pool) > self.pools[pool].most {
                let members = &self.pools[pool].members;
                let first =
                    members.iter().filter(|name| self.is_out(name)).min_by_key(|name| self.until(name));
                let Some(first) = first.cloned() else { break };
                self.release(&first, now);
            }
        }
    }

    /// How a target stands; one that is not watched serves.
    pub fn standing(&self, target: &str) -> Standing {
        match self.patients.get(target).map(|patient| &patient.stage) {
            None | Some(Stage::Serving { .. }) => Standing::Serving,
            Some(Stage::Ejected { cause, until, .. }) => Standing::Ejected { cause: *cause, until: *until },
            Some(Stage::OnTrial { trial, .. }) => Standing::OnTrial(Arc::clone(trial)),
        }
    }

    /// How often a target was ejected.
    pub fn ejections(&self, target: &str) -> u64 {
        self.patients.get(target).map_or(0, |patient| patient.ejections)
    }

    /// There were too many failures in a row at a target. Ejects it, unless it is out already, too many of a pool are,
    /// or nobody else of a pool would be left: `is_available` says who may be picked at the moment. True when it is
    /// out from now on.
    pub fn handle_failures(
        &mut self,
        target: &str,
        cause: Cause,
        is_available: impl Fn(&str) -> bool,
        now: Instant,
    ) -> bool {
        let may = (0..self.pools.len()).filter(|&pool| self.holds(pool, target)).all(|pool| {
            let others = self.pools[pool].members.iter().filter(|name| &***name != target);
            self.out(pool) < self.pools[pool].most
                && others.into_iter().any(|name| !self.is_out(name) && is_available(name))
        });
        // Who is in no pool is somebody's only choice.
        let is_in_a_pool = (0..self.pools.len()).any(|pool| self.holds(pool, target));
        match self.patients.get_mut(target) {
            Some(patient) if may && is_in_a_pool && matches!(patient.stage, Stage::Serving { .. }) => {
                patient.eject(cause, now);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Looks at the trial of a target: `Some(true)` when it has returned by it, `Some(false)` when it is out again.
    pub fn handle_trial(&mut self, target: &str, now: Instant) -> Option<bool> {
        let patient = self.patients.get_mut(target)?;
        let Stage::OnTrial { cause, trial, .. } = &patient.stage else { return None };
        match (trial.phase(), *cause) {
            (TrialPhase::Open | TrialPhase::Taken, _) => None,
            (TrialPhase::Passed, _) => {
                patient.stage = Stage::Serving { since: now };
                Some(true)
            }
            (TrialPhase::Failed, cause) => {
                patient.eject(cause, now);
                Some(false)
            }
        }
    }

    /// Ends an ejection before its time: somebody is needed. True when there was one.
    pub fn release(&mut self, target: &str, now: Instant) -> bool {
        match self.patients.get_mut(target) {
            Some(patient) if !matches!(patient.stage, Stage::Serving { .. }) => {
                patient.stage = Stage::Serving { since: now };
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes an ejection back, as if it had not been, of a target that left service no longer ago than `within`: it was not its fault. True when there was one.
    pub fn pardon(&mut self, target: &str, within: Duration, now: Instant) -> bool {
        let Some(patient) = self.patients.get_mut(target) else { return false };
        match patient.stage {
            Stage::Ejected { absence, .. } | Stage::OnTrial { absence, .. }
                if now.since(absence.since) <= within =>
            {
                patient.stage = Stage::Serving { since: now };
                patient.doublings = absence.doublings;
                true
            }
            Stage::Serving { .. } | Stage::Ejected { .. } | Stage::OnTrial { .. } => false,
        }
    }

    /// When [`Ward::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.patients.values().filter_map(Patient::timeout).min()
    }

    /// Whose time is over, and who is on trial from now on. A trial of which nothing is heard for as long as an
    /// ejection takes is open to another session.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut on_trial = Vec::new();
        for (name, patient) in &mut self.patients {
            match &mut patient.stage {
                Stage::Ejected { cause, until, absence } if now >= *until => {
                    let (cause, absence) = (*cause, *absence);
                    let (trial, look_at) = (Arc::new(Trial::new(cause)), now + patient.terms.eject);
                    patient.stage = Stage::OnTrial { cause, trial, look_at, absence };
                    on_trial.push(Arc::clone(name));
                }
                Stage::OnTrial { trial, look_at, .. } if now >= *look_at => {
                    trial.reopen();
                    *look_at = now + patient.terms.eject;
                }
                Stage::Serving { .. } | Stage::Ejected { .. } | Stage::OnTrial { .. } => {}
            }
        }
        on_trial
    }

    fn holds(&self, pool: usize, target: &str) -> bool {
        self.pools[pool].members.iter().any(|name| &**name == target)
    }

    fn out(&self, pool: usize) -> usize {
        self.pools[pool].members.iter().filter(|name| self.is_out(name)).count()
    }

    fn is_out(&self, target: &str) -> bool {
        self.patients.get(target).is_some_and(|patient| !matches!(patient.stage, Stage::Serving { .. }))
    }

    fn until(&self, target: &str) -> Instant {
        match self.patients.get(target).map(|patient| &patient.stage) {
            Some(Stage::Ejected { until, .. }) => *until,
            Some(Stage::OnTrial { .. } | Stage::Serving { .. }) | None => Instant::ZERO,
        }
    }
}

impl Patient {
    fn eject(&mut self, cause: Cause, now: Instant) {
        if let Stage::Serving { since } = self.stage {
            let mut served = now.since(since);
            while self.doublings > 0 {
                let Some(rest) = served.checked_sub(self.span(self.doublings - 1)) else { break };
                served = rest;
                self.doublings -= 1;
            }
        }
        let absence = match self.stage {
            Stage::Serving { .. } => Absence { since: now, doublings: self.doublings },
            Stage::Ejected { absence, .. } | Stage::OnTrial { absence, .. } => absence,
        };
        let span = self.span(self.doublings);
        self.stage = Stage::Ejected { cause, until: now + span, absence };
        self.doublings = if span < self.terms.max_eject { self.doublings + 1 } else { self.doublings };
        self.ejections += 1;
    }

    fn span(&self, doublings: u32) -> Duration {
        self.terms
            .eject
            .saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(self.terms.max_eject)
    }

    fn timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Serving { .. } => None,
            Stage::Ejected { until, .. } => Some(*until),
            Stage::OnTrial { look_at, .. } => Some(*look_at),
        }
    }
}

impl Pool {
    /// A pool of which at most this share may be out, rounded down.
    pub fn new(members: Vec<Arc<str>>, max_ejected: f64) -> Pool {
        let most = (members.len() as f64 * max_ejected).floor() as usize;
        Pool { members, most }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::Outcome;

    const TERMS: Terms =
        Terms { failures: 5, eject: Duration::from_secs(30), max_eject: Duration::from_secs(300) };

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn names(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|index| format!("t{index}").into()).collect()
    }

    fn ward(count: usize, share: f64) -> Ward {
        let mut ward = Ward::default();
        let pools = vec![Pool::new(names(count), share)];
        ward.reconfigure(names(count).into_iter().map(|name| (name, TERMS)), pools, at(0));
        ward
    }

    fn decide(ward: &mut Ward, target: &str, outcome: Outcome, now: Instant) -> Option<bool> {
        let Standing::OnTrial(trial) = ward.standing(target) else { panic!("{target} is not on trial") };
        assert!(trial.take());
        trial.handle(outcome);
        ward.handle_trial(target, now)
    }

    #[test]
    fn each_time_is_twice_as_long_up_to_the_most_and_service_forgives() {
        let mut ward = ward(2, 0.5);
        assert!(ward.handle_failures("t0", Cause::Connect, |_| true, at(0)));
        let mut now = Instant::ZERO;
        let mut spans = Vec::new();
        for _ in 0..6 {
            let until = ward.poll_timeout().unwrap();
            spans.push(until.since(now).as_secs());
            now = until;
            assert_eq!(ward.handle_timeout(now), [Arc::<str>::from("t0")]);
            assert_eq!(decide(&mut ward, "t0", Outcome::ConnectFailed, now), Some(false));
        }
        assert_eq!(spans, [30, 60, 120, 240, 300, 300]);
        now = ward.poll_timeout().unwrap();
        ward.handle_timeout(now);
        assert_eq!(decide(&mut ward, "t0", Outcome::Connected, now), Some(true));
        let later = now + Duration::from_secs(3600);
        assert!(ward.handle_failures("t0", Cause::Connect, |_| true, later));
        assert_eq!(ward.poll_timeout().unwrap().since(later).as_secs(), 30, "an hour of service is enough");
    }

    #[test]
    fn nobody_is_ejected_who_is_the_last_or_alone() {
        let mut two = ward(2, 1.0);
        assert!(!two.handle_failures("t0", Cause::Connect, |name| name == "t0", at(0)), "the other is down");
        assert!(two.handle_failures("t0", Cause::Connect, |_| true, at(0)));
        assert!(!two.handle_failures("t1", Cause::Connect, |_| true, at(0)));
        assert!(!ward(1, 0.5).handle_failures("t0", Cause::Connect, |_| true, at(0)));
        assert!(!two.handle_failures("stranger", Cause::Connect, |_| true, at(0)));
    }

    #[test]
    fn a_trial_without_an_answer_is_open_to_another() {
        let mut ward = ward(2, 0.5);
        ward.handle_failures("t0", Cause::Answer, |_| true, at(0));
        ward.handle_timeout(at(30));
        let Standing::OnTrial(trial) = ward.standing("t0") else { panic!("not on trial") };
        assert!(trial.take() && !trial.take());
        ward.handle_timeout(at(60));
        assert!(trial.take());
    }

    #[test]
    fn a_pardon_is_as_if_nothing_had_been_and_for_the_recent_alone() {
        let mut ward = ward(3, 1.0);
        assert!(ward.handle_failures("t0", Cause::Connect, |_| true, at(0)));
        assert!(ward.handle_failures("t1", Cause::Answer, |_| true, at(0)));
        assert!(ward.pardon("t1", Duration::from_secs(60), at(1)), "an answer does not get through either");
        ward.handle_timeout(at(30));
        assert_eq!(decide(&mut ward, "t0", Outcome::ConnectFailed, at(30)), Some(false));
        assert!(!ward.pardon("t0", Duration::from_secs(29), at(31)), "it has been out for longer");
        assert!(ward.pardon("t0", Duration::from_secs(60), at(31)));
        assert!(matches!(ward.standing("t0"), Standing::Serving));
        assert!(!ward.pardon("t0", Duration::from_secs(60), at(31)), "it serves");
        assert!(ward.handle_failures("t0", Cause::Connect, |_| true, at(32)));
        let Standing::Ejected { until, .. } = ward.standing("t0") else { panic!("not ejected") };
        assert_eq!(until.since(at(32)).as_secs(), 30, "the first time again");
    }

    #[test]
    fn a_smaller_pool_lets_back_whose_time_ends_first() {
        let mut ward = ward(4, 0.5);
        assert!(ward.handle_failures("t0", Cause::Connect, |_| true, at(0)));
        assert!(ward.handle_failures("t1", Cause::Connect, |_| true, at(10)));
        let pools = vec![Pool::new(names(3), 0.5)];
        ward.reconfigure(names(3).into_iter().map(|name| (name, TERMS)), pools, at(20));
        assert!(matches!(ward.standing("t0"), Standing::Serving));
        assert!(matches!(ward.standing("t1"), Standing::Ejected { .. }));
    }

    proptest! {
        #[test]
        fn never_more_are_out_than_may_be(
            count in 1usize..12, share in 0.0f64..1.0,
            events in prop::collection::vec((0usize..12, 0u8..4, 1u64..100), 1..300)
        ) {
            let mut ward = ward(count, share);
            let most = (count as f64 * share).floor() as usize;
            let mut now = Instant::ZERO;
            for (target, kind, pause) in events {
                now = now + Duration::from_secs(pause);
                let name = format!("t{}", target % count);
                match kind {
                    0 | 1 => { ward.handle_failures(&name, Cause::Connect, |_| true, now); }
                    2 => { ward.handle_timeout(now); }
                    _ => if let Standing::OnTrial(trial) = ward.standing(&name) {
                        trial.take();
                        trial.handle(if pause % 2 == 0 { Outcome::Connected } else { Outcome::ConnectFailed });
                        ward.handle_trial(&name, now);
                    }
                }
                let out = names(count).iter().filter(|name| ward.is_out(name)).count();
                prop_assert!(out <= most && (out < count || count == 0), "{} of {} out", out, count);
            }
        }
    }
}
