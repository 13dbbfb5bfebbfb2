//! How a group picks a member. Every policy is a function of the members that may be picked, plus what the worker
//! remembers for the group; nothing here is shared between workers but the counters that `least-connections` sums.

mod least_connections;
mod random;
mod round_robin;

use crate::snapshot::{Group, Policy, Snapshot, WorkerIndex};
pub use round_robin::Cycle;

/// What one worker remembers for one group from pick to pick.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    cycle: Cycle,
}

impl Memory {
    /// The memory of a worker that has not picked yet.
    pub fn new(group: &Group, worker: WorkerIndex) -> Memory {
        Memory { cycle: Cycle::new(&group.members, worker.0) }
    }

    /// What remains true when the group's members change from `old` to `new`: members are the same when they have
    /// the same name.
    pub fn carried_over(&self, old: (&Snapshot, &Group), new: (&Snapshot, &Group)) -> Memory {
        Memory { cycle: self.cycle.carried_over(old, new) }
    }
}

/// Picks one of the members for which `may` holds, or none when there is none.
pub fn pick(
    snapshot: &Snapshot,
    group: &Group,
    memory: &mut Memory,
    rng: &mut fastrand::Rng,
    may: impl Fn(usize) -> bool,
) -> Option<usize> {
    match group.policy {
        Policy::RoundRobin => memory.cycle.pick(&group.members, may),
        Policy::Random => random::pick(&group.members, rng, may),
        Policy::LeastConnections => least_connections::pick(snapshot, &group.members, rng, may),
        Policy::Failover | Policy::Race { .. } => (0..group.members.len()).find(|&index| may(index)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::account::TargetCounters;
    use crate::snapshot::{Health, Member, Target, TargetIndex, TargetKind, Upstream};
    use crate::way::Splicing;

    /// A snapshot of upstreams with these weights and a group (the last target) over them.
    pub(crate) fn world(policy: Policy, weights: &[u32]) -> (Snapshot, Group) {
        let target = |name: String, kind| Target {
            name: name.into(),
            kind,
            health: Health::Up,
            outgoing: None,
            watch: None,
            trial: None,
            counters: Arc::new(TargetCounters::new(2)),
        };
        let members: Arc<[Member]> = (0u32..)
            .zip(weights)
            .map(|(index, &weight)| Member { target: TargetIndex(index), weight })
            .collect();
        let group =
            Group { policy, members, attempts: 8, attempt_timeout: Duration::from_secs(4), commit: None };
        let mut targets: Vec<Target> = (0..weights.len())
            .map(|index| target(format!("t{index}"), TargetKind::Upstream(Upstream::Tcp([].into()))))
            .collect();
        targets.push(target("group".into(), TargetKind::Group(group.clone())));
        let snapshot = Snapshot {
            generation: 1,
            binds: vec![],
            listeners: vec![],
            targets,
            log_sessions: false,
            splicing: Splicing::default(),
        };
        (snapshot, group)
    }

    #[test]
    fn failover_takes_the_first_that_may() {
        let (snapshot, group) = world(Policy::Failover, &[1, 1, 1]);
        let (mut memory, mut rng) = (Memory::default(), fastrand::Rng::with_seed(1));
        assert_eq!(pick(&snapshot, &group, &mut memory, &mut rng, |_| true), Some(0));
        assert_eq!(pick(&snapshot, &group, &mut memory, &mut rng, |index| index > 1), Some(2));
        assert_eq!(pick(&snapshot, &group, &mut memory, &mut rng, |_| false), None);
    }
}
