//! Smooth weighted round-robin, the algorithm of nginx (commit 52327e0627f4): each pick raises every candidate by
//! its weight and takes the highest, which then pays the sum. With weights 5, 1, 1 the picks are a a b a c a a.

use super::MANY;
use crate::snapshot::{Evenness, Group, Snapshot};

/// Where one worker stands in the cycle of one group.
#[derive(Clone, Debug, Default)]
pub struct Cycle {
    credits: Vec<i64>,
    /// Of many members with even weights, whose turn it is: the order is the same, and nothing need be added up.
    next: usize,
}

impl Cycle {
    /// A cycle that starts `ahead` picks into its course, so that workers do not all begin with the same member.
    pub fn new(group: &Group, ahead: usize) -> Cycle {
        let mut cycle = Cycle { credits: vec![0; group.members.len()], next: 0 };
        for _ in 0..ahead % group.members.len().max(1) {
            cycle.pick(group, |_| true);
        }
        cycle
    }

    /// The next member for which `may` holds.
    pub fn pick(&mut self, group: &Group, may: impl Fn(usize) -> bool) -> Option<usize> {
        let members = &group.members;
        if members.len() > MANY && group.evenness == Evenness::Even {
            let start = self.next % members.len();
            let picked = (start..members.len()).chain(0..start).find(|index| may(*index))?;
            self.next = picked + 1;
            return Some(picked);
        }
        self.credits.resize(members.len(), 0);
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (index, member) in members.iter().enumerate() {
            if !may(index) {
                continue;
            }
            let weight = i64::from(member.weight);
            self.credits[index] += weight;
            total += weight;
            if best.is_none_or(|best| self.credits[index] > self.credits[best]) {
                best = Some(index);
            }
        }
        if let Some(best) = best {
            self.credits[best] -= total;
        }
        best
    }

    /// The same standing over another list of members; newcomers start at nothing.
    pub fn carried_over(&self, old: (&Snapshot, &Group), new: (&Snapshot, &Group)) -> Cycle {
        let name = |(snapshot, group): (&Snapshot, &Group), index: usize| {
            group.members.get(index).map(|member| snapshot.target(member.target).name.clone())
        };
        let old_names: Vec<_> = (0..old.1.members.len()).map(|index| name(old, index)).collect();
        let unchanged = old_names.len() == new.1.members.len()
            && (0..old_names.len()).all(|index| old_names[index] == name(new, index));
        if unchanged {
            return self.clone();
        }
        let standing: std::collections::HashMap<_, _> = old_names.into_iter().zip(&self.credits).collect();
        let credits = (0..new.1.members.len())
            .map(|index| standing.get(&name(new, index)).map_or(0, |credits| **credits))
            .collect();
        Cycle { credits, next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pick::tests::world;
    use crate::snapshot::Policy;

    #[test]
    fn picks_are_spread_smoothly() {
        let (_, group) = world(Policy::RoundRobin, &[5, 1, 1]);
        let mut cycle = Cycle::new(&group, 0);
        let picks: Vec<_> = (0..7).filter_map(|_| cycle.pick(&group, |_| true)).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn workers_start_elsewhere() {
        let (_, group) = world(Policy::RoundRobin, &[1, 1, 1]);
        let first = |ahead| Cycle::new(&group, ahead).pick(&group, |_| true);
        assert_eq!([first(0), first(1), first(2)], [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn standing_follows_the_name() {
        let (old_snapshot, old) = world(Policy::RoundRobin, &[1, 1]);
        let (new_snapshot, new) = world(Policy::RoundRobin, &[1, 1, 1]);
        let mut cycle = Cycle::new(&old, 0);
        cycle.pick(&old, |_| true);
        let carried = cycle.carried_over((&old_snapshot, &old), (&new_snapshot, &new));
        assert_eq!(carried.credits, [-1, 1, 0]);
    }

    proptest! {
        #[test]
        fn a_full_cycle_honours_every_weight(weights in prop::collection::vec(1u32..20, 1..8)) {
            let (_, group) = world(Policy::RoundRobin, &weights);
            let mut cycle = Cycle::new(&group, 0);
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..weights.iter().sum::<u32>() {
                counts[cycle.pick(&group, |_| true).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }
    }
}
