//! Power of two choices on what a session would have to wait: the time to win, as the peak-sensitive average of this
//! worker knows it, times the sessions that are there already (Finagle's "peak EWMA"). A member that nobody has tried
//! yet, or for long, is tried.

use super::draw::draw_two;
use crate::snapshot::{Member, Snapshot, WorkerIndex};
use crate::time::Instant;

pub(super) fn pick(
    snapshot: &Snapshot,
    worker: WorkerIndex,
    members: &[Member],
    rng: &mut fastrand::Rng,
    now: Instant,
    may: impl Fn(usize) -> bool,
) -> Option<usize> {
    let (first, second) = draw_two(members.len(), rng, may)?;
    let Some(second) = second else { return Some(first) };
    let load = |index: usize| {
        let counters = &snapshot.target(members[index].target).counters;
        let active = counters.sum(|cell| &cell.active) + 1;
        // Waits of an hour times a million sessions are still below 2^64.
        (counters.cell(worker).latency.at(now) + 1).saturating_mul(active)
    };
    let weight = |index: usize| u128::from(members[index].weight);
    let is_second = u128::from(load(second)) * weight(first) < u128::from(load(first)) * weight(second);
    Some(if is_second { second } else { first })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pick::tests::world;
    use crate::snapshot::{Policy, TargetIndex};

    const HERE: WorkerIndex = WorkerIndex(0);

    fn shares(snapshot: &Snapshot, members: &[Member], now: Instant) -> Vec<u32> {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut shares = vec![0; members.len()];
        for _ in 0..1000 {
            shares[pick(snapshot, HERE, members, &mut rng, now, |_| true).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn the_faster_of_two_is_taken_until_it_is_busy() {
        let (snapshot, group) = world(Policy::LeastLatency, &[1, 1, 1]);
        let cell = |index| snapshot.target(TargetIndex(index)).counters.cell(HERE);
        for (index, took_ms) in [(0, 10), (1, 20), (2, 40)] {
            cell(index).latency.record(Duration::from_millis(took_ms), Instant::ZERO);
        }
        let even = shares(&snapshot, &group.members, Instant::ZERO);
        assert!(even[0] > 600 && even[1] > 250 && even[2] == 0, "{even:?}");
        cell(0).active.add(9);
        let busy = shares(&snapshot, &group.members, Instant::ZERO);
        assert!(busy[0] == 0 && busy[1] > 600, "{busy:?}");
    }

    #[test]
    fn a_slow_one_is_tried_again_in_time() {
        let (snapshot, group) = world(Policy::LeastLatency, &[1, 1]);
        let cell = |index| snapshot.target(TargetIndex(index)).counters.cell(HERE);
        cell(0).latency.record(Duration::from_secs(1), Instant::ZERO);
        let later = Instant::ZERO + Duration::from_secs(300);
        cell(1).latency.record(Duration::from_millis(1), later);
        assert_eq!(shares(&snapshot, &group.members, later)[1], 0);
    }
}
