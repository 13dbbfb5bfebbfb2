//! The order of a failover that goes by latency: the quickest first, and no change for the sake of a little.

use std::sync::Arc;
use std::time::Duration;

/// Members of a group, best first. One overtakes another only when it is quicker by more than the tolerance, so that
/// two of nearly the same latency do not change places at every probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking(Vec<Arc<str>>);

impl Ranking {
    /// As written: nothing is known yet.
    pub fn new(members: Vec<Arc<str>>) -> Ranking {
        Ranking(members)
    }

    /// The ranking of other members. Those that stay keep their order; new ones come last, as written.
    #[must_use]
    pub fn succeeded_by(&self, members: Vec<Arc<str>>) -> Ranking {
        let mut order: Vec<Arc<str>> = self.0.iter().filter(|name| members.contains(name)).cloned().collect();
        order.extend(members.into_iter().filter(|name| !self.0.contains(name)));
        Ranking(order)
    }

    /// The members, best first.
    pub fn order(&self) -> &[Arc<str>] {
        &self.0
    }

    /// Takes the latencies of this moment, `None` for a member of which none is known: it does not stand in the way of
    /// those that are known. True when the order has changed.
    pub fn handle_latencies(
        &mut self,
        latency: impl Fn(&str) -> Option<Duration>,
        tolerance: Duration,
    ) -> bool {
        let mut known: Vec<(Arc<str>, Option<Duration>)> =
            self.0.drain(..).map(|name| (Arc::clone(&name), latency(&name))).collect();
        let mut has_changed = false;
        // Each exchange takes one away from the pairs that stand in the wrong order, so that it ends.
        let mut is_settled = false;
        while !is_settled {
            is_settled = true;
            for at in 1..known.len() {
                if overtakes(known[at].1, known[at - 1].1, tolerance) {
                    known.swap(at - 1, at);
                    (is_settled, has_changed) = (false, true);
                }
            }
        }
        self.0.extend(known.into_iter().map(|(name, _)| name));
        has_changed
    }
}

fn overtakes(behind: Option<Duration>, ahead: Option<Duration>, tolerance: Duration) -> bool {
    match (behind, ahead) {
        (Some(behind), Some(ahead)) => behind + tolerance < ahead,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(ranking: &Ranking) -> String {
        ranking.order().iter().map(|name| &**name).collect()
    }

    fn ranking(members: &str) -> Ranking {
        Ranking::new(members.chars().map(|name| name.to_string().into()).collect())
    }

    fn tell(ranking: &mut Ranking, latencies: &[(&str, u64)]) -> bool {
        let latency = |name: &str| {
            let known = latencies.iter().find(|(known, _)| *known == name);
            known.map(|(_, millis)| Duration::from_millis(*millis))
        };
        ranking.handle_latencies(latency, Duration::from_millis(10))
    }

    #[test]
    fn the_quickest_comes_first_and_a_little_changes_nothing() {
        let mut ranking = ranking("abc");
        assert!(tell(&mut ranking, &[("a", 50), ("b", 30), ("c", 5)]));
        assert_eq!(names(&ranking), "cba");
        assert!(!tell(&mut ranking, &[("a", 50), ("b", 30), ("c", 40)]), "within the tolerance");
        assert!(tell(&mut ranking, &[("a", 50), ("b", 30), ("c", 41)]));
        assert_eq!(names(&ranking), "bca");
    }

    #[test]
    fn who_is_not_known_gives_way_and_keeps_behind() {
        let mut ranking = ranking("abc");
        assert!(tell(&mut ranking, &[("c", 500)]));
        assert_eq!(names(&ranking), "cab");
        assert!(!tell(&mut ranking, &[("c", 500)]));
    }

    #[test]
    fn members_that_stay_keep_their_order() {
        let mut ranking = ranking("abc");
        tell(&mut ranking, &[("a", 50), ("b", 30), ("c", 5)]);
        let members = "axc".chars().map(|name| name.to_string().into()).collect();
        assert_eq!(names(&ranking.succeeded_by(members)), "cax");
    }

    proptest! {
        #[test]
        fn a_settled_order_stays_and_nobody_is_lost(latencies in prop::collection::vec(prop::option::of(0u64..100), 1..12)) {
            let members: Vec<Arc<str>> = (0..latencies.len()).map(|at| at.to_string().into()).collect();
            let mut ranking = Ranking::new(members.clone());
            let latency = |name: &str| latencies[name.parse::<usize>().unwrap()].map(Duration::from_millis);
            let tolerance = Duration::from_millis(10);
            ranking.handle_latencies(latency, tolerance);
            prop_assert!(!ranking.handle_latencies(latency, tolerance));
            let mut sorted = ranking.order().to_vec();
            sorted.sort_by_key(|name| name.parse::<usize>().unwrap());
            prop_assert_eq!(sorted, members);
            for pair in ranking.order().windows(2) {
                prop_assert!(!overtakes(latency(&pair[1]), latency(&pair[0]), tolerance));
            }
        }
    }
}
