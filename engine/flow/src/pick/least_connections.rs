//! Fewest active sessions per weight, summed over workers. The sums are read, never written, so two workers that
//! pick do not slow each other; a pick may be one session out of date, which no user can see.

use super::MANY;
use super::draw::draw_two;
use crate::snapshot::{Member, Snapshot};

/// The least loaded of the members for which `may` holds; ties are broken at random. Of many it is the less loaded of
/// two drawn ones, which is nearly as even (Mitzenmacher, 2001) and costs the same for any number.
pub(super) fn pick(
    snapshot: &Snapshot,
    members: &[Member],
    rng: &mut fastrand::Rng,
    may: impl Fn(usize) -> bool,
) -> Option<usize> {
    if members.len() > MANY {
        let (first, second) = draw_two(members.len(), rng, may)?;
        let load =
            |index: usize| snapshot.target(members[index].target).counters.sum(|cell| &cell.active) + 1;
        let weight = |index: usize| u64::from(members[index].weight);
        let less = |second: &usize| load(*second) * weight(first) < load(first) * weight(*second);
        return Some(second.filter(less).unwrap_or(first));
    }
    let mut best: Option<(usize, u64, u64)> = None;
    let mut ties = 1u32;
    for (index, member) in members.iter().enumerate() {
        if !may(index) {
            continue;
        }
        let active = snapshot.target(member.target).counters.sum(|cell| &cell.active);
        let weight = u64::from(member.weight);
        let Some((_, best_active, best_weight)) = best else {
            best = Some((index, active, weight));
            continue;
        };
        // (active + 1) / weight, compared without dividing: the load this session would make.
        let (load, best_load) = ((active + 1) * best_weight, (best_active + 1) * weight);
        if load < best_load {
            best = Some((index, active, weight));
            ties = 1;
        } else if load == best_load {
            // Reservoir sampling: the k-th of equals replaces the held one with chance 1/k.
            ties += 1;
            if rng.u32(0..ties) == 0 {
                best = Some((index, active, weight));
            }
        }
    }
    best.map(|(index, _, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pick::tests::world;
    use crate::snapshot::{Policy, TargetIndex, WorkerIndex};

    #[test]
    fn the_least_loaded_per_weight_is_taken_over_all_workers() {
        let (snapshot, group) = world(Policy::LeastConnections, &[1, 2, 1]);
        let mut rng = fastrand::Rng::with_seed(1);
        let load = |target, worker, sessions| {
            snapshot.target(TargetIndex(target)).counters.cell(WorkerIndex(worker)).active.add(sessions);
        };
        load(0, 0, 2);
        load(1, 0, 1);
        load(1, 1, 2);
        load(2, 1, 3);
        // Loads with one more session: 3/1, 4/2, 4/1.
        assert_eq!(pick(&snapshot, &group.members, &mut rng, |_| true), Some(1));
        assert_eq!(pick(&snapshot, &group.members, &mut rng, |index| index != 1), Some(0));
        assert_eq!(pick(&snapshot, &group.members, &mut rng, |_| false), None);
    }

    #[test]
    fn ties_are_broken_evenly() {
        let (snapshot, group) = world(Policy::LeastConnections, &[1, 1, 1, 1]);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut counts = [0u32; 4];
        for _ in 0..8_000 {
            counts[pick(&snapshot, &group.members, &mut rng, |_| true).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(2_000) < 200), "{counts:?}");
    }
}
