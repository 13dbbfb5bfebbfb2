//! Tells our own outage from that of others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::time::Instant;

/// Fewer say nothing about the network: one target that is silent is a silent target.
const FEWEST: usize = 2;

/// Of so many targets one may still seem to answer, because it is asked last.
const STRAGGLERS: usize = 10;

/// What a probe, or a session, showed of the way to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Something came back from there, be it a refusal.
    Answer,
    /// Nothing did.
    Silence,
    /// It never left this machine, and says nothing of the network.
    Neither,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing new.
    None,
    /// (Nearly) all that answered have fallen silent within one window: it is us.
    Began,
    /// Something answers again.
    Ended,
}

/// Watches who answers.
///
/// Our own outage begins when of those that had answered, two at least, no more than one in ten still seem to, and the
/// silence of all the others is no older than the window. It ends with the first answer.
#[derive(Debug)]
pub struct Outage {
    window: Duration,
    witnesses: BTreeMap<Arc<str>, Witness>,
    since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Witness {
    Answering,
    /// Had answered before.
    Silent {
        since: Instant,
    },
}

impl Outage {
    /// Nothing is known. `window` should be as long as it takes until everybody has been asked.
    pub fn new(window: Duration) -> Outage {
        Outage { window, witnesses: BTreeMap::new(), since: None }
    }

    /// Another window.
    pub fn reconfigure(&mut self, window: Duration) {
        self.window = window;
    }

    /// Forgets those who are not asked any more: they would count as answering, or keep an outage from its end, for ever.
    pub fn retain(&mut self, is_asked: impl Fn(&str) -> bool) -> News {
        self.witnesses.retain(|name, _| is_asked(name));
        let is_silent = self.witnesses.values().any(|witness| *witness != Witness::Answering);
        if !is_silent && self.since.take().is_some() { News::Ended } else { News::None }
    }

    /// How far apart silences may begin that belong together.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Since when, while it lasts.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether the silence of a target belongs to the outage.
    pub fn concerns(&self, target: &str) -> bool {
        match (self.since, self.witnesses.get(target)) {
            (Some(began), Some(Witness::Silent { since })) => *since + self.window >= began,
            (Some(_), Some(Witness::Answering)) => true,
            (Some(_) | None, None) | (None, Some(_)) => false,
        }
    }

    /// Takes what was seen of a target.
    pub fn handle(&mut self, target: &Arc<str>, evidence: Evidence, now: Instant) -> News {
        match evidence {
            Evidence::Neither => News::None,
            Evidence::Answer => {
                self.witnesses.insert(Arc::clone(target), Witness::Answering);
                if self.since.take().is_some() { News::Ended } else { News::None }
            }
            Evidence::Silence => {
                let Some(witness) = self.witnesses.get_mut(target) else { return News::None };
                if *witness == Witness::Answering {
                    *witness = Witness::Silent { since: now };
                }
                self.judge(now)
            }
        }
    }

    fn judge(&mut self, now: Instant) -> News {
        let fresh = self.witnesses.values().filter(|witness| match witness {
            Witness::Answering => false,
            Witness::Silent { since } => now.since(*since) <= self.window,
        });
        let fresh = fresh.count();
        let answering = self.witnesses.values().filter(|witness| **witness == Witness::Answering).count();
        if self.since.is_some() || fresh < FEWEST || answering * STRAGGLERS > fresh + answering {
            return News::None;
        }
        self.since = Some(now);
        News::Began
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn answering(count: usize) -> (Outage, Vec<Arc<str>>) {
        let mut outage = Outage::new(WINDOW);
        let names: Vec<Arc<str>> = (0..count).map(|index| format!("t{index}").into()).collect();
        for name in &names {
            assert_eq!(outage.handle(name, Evidence::Answer, at(0)), News::None);
        }
        (outage, names)
    }

    #[test]
    fn all_silent_within_a_window_is_our_own_outage_until_anything_answers() {
        let (mut outage, names) = answering(3);
        assert_eq!(outage.handle(&names[0], Evidence::Silence, at(10)), News::None);
        assert_eq!(outage.handle(&names[1], Evidence::Silence, at(20)), News::None);
        assert_eq!(outage.handle(&names[2], Evidence::Silence, at(30)), News::Began);
        assert!(names.iter().all(|name| outage.concerns(name)));
        assert_eq!(outage.handle(&names[2], Evidence::Silence, at(40)), News::None);
        assert_eq!(outage.handle(&names[1], Evidence::Answer, at(50)), News::Ended);
        assert!(!outage.concerns(&names[0]));
    }

    #[test]
    fn one_after_another_is_the_fault_of_each() {
        let (mut outage, names) = answering(3);
        for (index, name) in (0..).zip(&names) {
            assert_eq!(outage.handle(name, Evidence::Silence, at(100 * (index + 1))), News::None);
        }
    }

    #[test]
    fn a_refusal_is_an_answer_and_the_long_dead_do_not_count() {
        let (mut outage, names) = answering(3);
        outage.handle(&names[0], Evidence::Silence, at(10));
        assert_eq!(outage.handle(&names[1], Evidence::Silence, at(300)), News::None);
        assert_eq!(outage.handle(&names[2], Evidence::Answer, at(301)), News::None);
        assert_eq!(outage.handle(&names[2], Evidence::Silence, at(310)), News::Began);
        assert!(!outage.concerns(&names[0]), "it was dead before");
    }

    #[test]
    fn who_is_not_asked_any_more_says_nothing() {
        let (mut outage, names) = answering(3);
        assert_eq!(outage.retain(|name| name != "t2"), News::None);
        assert_eq!(outage.handle(&names[0], Evidence::Silence, at(10)), News::None);
        assert_eq!(outage.handle(&names[1], Evidence::Silence, at(20)), News::Began, "t2 is not among them");
        assert_eq!(outage.retain(|name| name == "t0"), News::None, "t0 is silent still");
        assert_eq!(outage.retain(|_| false), News::Ended, "nobody is left who could end it");
    }

    #[test]
    fn a_single_target_is_no_witness() {
        let (mut outage, names) = answering(1);
        assert_eq!(outage.handle(&names[0], Evidence::Silence, at(10)), News::None);
    }

    proptest! {
        #[test]
        fn no_outage_while_more_than_one_in_ten_answer(
            count in 2usize..40, events in prop::collection::vec((0usize..40, any::<bool>(), 0u64..20), 1..200)
        ) {
            let (mut outage, names) = answering(count);
            let mut silent = vec![false; count];
            let mut now = 0;
            for (target, answers, pause) in events {
                now += pause;
                let target = target % count;
                silent[target] = !answers;
                let evidence = if answers { Evidence::Answer } else { Evidence::Silence };
                let news = outage.handle(&names[target], evidence, at(now));
                let answering = silent.iter().filter(|silent| !**silent).count();
                if news == News::Began {
                    prop_assert!(answering * 10 <= count);
                }
                prop_assert!(!answers || outage.since().is_none());
            }
        }
    }
}
