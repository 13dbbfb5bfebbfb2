//! How a group picks a member. Every policy is a function of the members that may be picked, plus what the worker
//! remembers for the group; nothing here is shared between workers but the counters that `least-connections` sums.

mod draw;
mod key;
mod least_connections;
mod least_latency;
mod maglev;
mod random;
mod round_robin;

use crate::snapshot::{Group, Policy, Role, Snapshot, WorkerIndex};
use crate::time::Instant;
pub use key::{BadFieldName, FieldName, HashKey, MAX_FIELD_NAME_BYTES, Subject};
pub use maglev::Maglev;
pub use round_robin::Cycle;

/// From how many members on a pick does not look at all of them where it need not.
const MANY: usize = 64;

/// What one worker remembers for one group from pick to pick.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    cycle: Cycle,
}

impl Memory {
    /// The memory of a worker that has not picked yet.
    pub fn new(group: &Group, worker: WorkerIndex) -> Memory {
        Memory { cycle: Cycle::new(group, worker.0) }
    }

    /// What remains true when the group's members change from `old` to `new`: members are the same when they have
    /// the same name.
    pub fn carried_over(&self, old: (&Snapshot, &Group), new: (&Snapshot, &Group)) -> Memory {
        Memory { cycle: self.cycle.carried_over(old, new) }
    }
}

/// What a pick may look at.
#[derive(Debug)]
pub struct Picker<'a> {
    /// The world of the session.
    pub snapshot: &'a Snapshot,
    /// Who picks.
    pub worker: WorkerIndex,
    /// Draws.
    pub rng: &'a mut fastrand::Rng,
    /// What the worker remembers for the group.
    pub memory: &'a mut Memory,
}

impl Picker<'_> {
    /// Picks one of the members for which `may` holds, or none when there is none: a backup only where no primary may
    /// be picked.
    pub fn pick(
        &mut self,
        group: &Group,
        subject: Subject<'_>,
        now: Instant,
        may: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let of = |role: Role| {
            let may = &may;
            move |index: usize| group.members[index].role == role && may(index)
        };
        let primary = self.pick_among(group, subject, now, of(Role::Primary));
        primary.or_else(|| {
            let has_backups = group.members.iter().any(|member| member.role == Role::Backup);
            has_backups.then(|| self.pick_among(group, subject, now, of(Role::Backup))).flatten()
        })
    }

    fn pick_among(
        &mut self,
        group: &Group,
        subject: Subject<'_>,
        now: Instant,
        may: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let members = &group.members;
        match group.policy {
            Policy::RoundRobin => self.memory.cycle.pick(group, may),
            Policy::Random => random::pick(group, self.rng, may),
            Policy::LeastConnections => least_connections::pick(self.snapshot, members, self.rng, may),
            Policy::LeastLatency => {
                least_latency::pick(self.snapshot, self.worker, members, self.rng, now, may)
            }
            Policy::Hash(key) => match &group.maglev {
                Some(table) => table.pick(subject.hash(key), members, may),
                None => (0..members.len()).find(|&index| may(index)),
            },
            Policy::Select => {
                Some(group.selected as usize).filter(|&index| index < members.len() && may(index))
            }
            Policy::Failover | Policy::Race { .. } => (0..members.len()).find(|&index| may(index)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::account::TargetCounters;
    use crate::record::ClientAddr;
    use crate::snapshot::{Member, Target, TargetIndex, TargetKind, Upstream};

    /// A snapshot of upstreams with these weights and a group (the last target) over them.
    pub(crate) fn world(policy: Policy, weights: &[u32]) -> (Snapshot, Group) {
        let target = |name: String, kind| Target::new(name, kind, Arc::new(TargetCounters::new(2)));
        let members: Arc<[Member]> = (0u32..)
            .zip(weights)
            .map(|(index, &weight)| Member::primary(TargetIndex(index), weight))
            .collect();
        let group = Group::new(policy, members, 8, Duration::from_secs(4));
        let mut targets: Vec<Target> = (0..weights.len())
            .map(|index| target(format!("t{index}"), TargetKind::Upstream(Upstream::Tcp([].into()))))
            .collect();
        targets.push(target("group".into(), TargetKind::Group(group.clone())));
        (Snapshot::new(vec![], targets), group)
    }

    pub(crate) fn picks(
        policy: Policy,
        may: impl Fn(usize) -> bool + Copy,
        count: usize,
    ) -> Vec<Option<usize>> {
        let (snapshot, mut group) = world(policy, &[1, 1, 1, 1]);
        let mut members = group.members.to_vec();
        for member in &mut members[2..] {
            member.role = Role::Backup;
        }
        group.members = members.into();
        group.maglev = Some(Arc::new(Maglev::new([("t0", 1), ("t1", 1), ("t2", 1), ("t3", 1)])));
        let (mut memory, mut rng) = (Memory::default(), fastrand::Rng::with_seed(1));
        let (worker, memory, rng) = (WorkerIndex(0), &mut memory, &mut rng);
        let mut picker = Picker { snapshot: &snapshot, worker, memory, rng };
        let subject = Subject { client: &ClientAddr::Unix, destination: None, peeked: None };
        (0..count).map(|_| picker.pick(&group, subject, Instant::ZERO, may)).collect()
    }

    #[test]
    fn failover_takes_the_first_that_may() {
        assert_eq!(picks(Policy::Failover, |_| true, 2), [Some(0), Some(0)]);
        assert_eq!(picks(Policy::Failover, |index| index > 0, 1), [Some(1)]);
        assert_eq!(picks(Policy::Failover, |_| false, 1), [None]);
    }

    #[test]
    fn backups_serve_when_no_primary_may_and_only_then() {
        for policy in [
            Policy::RoundRobin,
            Policy::Random,
            Policy::LeastConnections,
            Policy::LeastLatency,
            Policy::Hash(HashKey::Source),
            Policy::Failover,
        ] {
            assert!(picks(policy, |_| true, 50).iter().all(|pick| pick.unwrap() < 2), "{policy:?}");
            assert!(picks(policy, |index| index > 1, 50).iter().all(|pick| pick.unwrap() > 1), "{policy:?}");
            assert_eq!(picks(policy, |index| index == 1, 1), [Some(1)], "{policy:?}");
        }
    }
}
