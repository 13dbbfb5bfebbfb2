//! A worker's own hold on a snapshot: the shared, immutable part, and what only this worker remembers beside it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::affinity::Binding;
use crate::health::{Outcome, Outcomes};
use crate::pick::{Memory, Picker, Subject};
use crate::session::Spares;
use crate::snapshot::{Group, Snapshot, TargetIndex, TargetKind, WorkerIndex};
use crate::time::Instant;
use crate::wire::shadowsocks::Serial;

/// A snapshot as one worker sees it. Sessions hold it by `Rc`: no counter is shared between cores, and a session
/// keeps the world it was dispatched in until it ends.
#[derive(Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
    worker: WorkerIndex,
    private: RefCell<Private>,
    spares: Spares,
}

/// What only this worker writes.
#[derive(Debug)]
struct Private {
    rng: fastrand::Rng,
    /// By [`TargetIndex`]; `None` for upstreams.
    memories: Vec<Option<Memory>>,
    /// The turns of source addresses by [`TargetIndex`], of either family; as long as they are asked for.
    turns: Vec<[u32; 2]>,
    /// How many were given.
    serials: u64,
}

impl View {
    /// The first view of a worker; `seed` makes its random draws repeatable.
    pub fn new(snapshot: Arc<Snapshot>, worker: WorkerIndex, seed: u64) -> Rc<View> {
        let memories = groups(&snapshot).map(|group| group.map(|group| Memory::new(group, worker))).collect();
        let rng = fastrand::Rng::with_seed(seed);
        let private = RefCell::new(Private { rng, memories, turns: Vec::new(), serials: 0 });
        Rc::new(View { snapshot, worker, private, spares: Spares::default() })
    }

    /// The view of the next snapshot. Groups that keep their name keep what the worker remembers for them.
    pub fn succeeded_by(&self, snapshot: Arc<Snapshot>) -> Rc<View> {
        let rng = self.private.borrow_mut().rng.fork();
        let old = self.private.borrow();
        let before: HashMap<&str, (&Memory, &Group)> = groups(&self.snapshot)
            .zip(&old.memories)
            .zip(&self.snapshot.targets)
            .filter_map(|((group, memory), target)| Some((&*target.name, (memory.as_ref()?, group?))))
            .collect();
        let memories = groups(&snapshot)
            .zip(&snapshot.targets)
            .map(|(group, target)| {
                let group = group?;
                Some(match before.get(&*target.name) {
                    Some((memory, old)) => memory.carried_over((&self.snapshot, old), (&snapshot, group)),
                    None => Memory::new(group, self.worker),
                })
            })
            .collect();
        let private = RefCell::new(Private { rng, memories, turns: Vec::new(), serials: 0 });
        Rc::new(View { snapshot, worker: self.worker, private, spares: self.spares.inherit() })
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whose view this is.
    pub fn worker(&self) -> WorkerIndex {
        self.worker
    }

    pub(crate) fn spares(&self) -> &Spares {
        &self.spares
    }

    /// Whose turn it is among the source addresses of an upstream towards one family. The first turn of a view is
    /// drawn: snapshots that follow each other closely would favour the first address otherwise.
    pub(crate) fn next_turn(&self, target: TargetIndex, is_v4: bool) -> u32 {
        let Private { rng, turns, .. } = &mut *self.private.borrow_mut();
        let index = target.0 as usize;
        if turns.len() <= index {
            turns.resize_with(index + 1, || [rng.u32(..), rng.u32(..)]);
        }
        let turn = &mut turns[index][usize::from(is_v4)];
        *turn = turn.wrapping_add(1);
        *turn
    }

    /// A moment drawn from a time.
    pub(crate) fn draw(&self, from: Duration) -> Duration {
        from.mul_f64(self.private.borrow_mut().rng.f64())
    }

    /// A number that nothing else in this process has.
    pub(crate) fn next_serial(&self) -> Serial {
        let Private { serials, .. } = &mut *self.private.borrow_mut();
        *serials += 1;
        Serial { generation: self.snapshot.generation, worker: self.worker.0 as u64, count: *serials }
    }

    /// Any number.
    pub(crate) fn draw_u16(&self) -> u16 {
        self.private.borrow_mut().rng.u16(..)
    }

    /// A name for a connection that no other has, in printable characters.
    pub(crate) fn draw_name(&self) -> Box<[u8]> {
        format!("{:032x}", self.private.borrow_mut().rng.u128(..)).into_bytes().into()
    }

    /// A session of this worker met this at an upstream: counted, and told to control when it is too much.
    pub fn handle_outcome(&self, target: TargetIndex, outcome: Outcome) {
        let target = self.snapshot.target(target);
        let Some(watch) = &target.watch else { return };
        let in_a_row = Outcomes::of(&target.counters).record(self.worker, outcome);
        watch.handle(in_a_row, target.trial.as_deref(), outcome);
    }

    /// Picks a member of the group at `index` among those for which `may` holds: whoever served the like of this
    /// session before, where the group remembers that, or else whom the policy says.
    pub fn pick(
        &self,
        index: TargetIndex,
        group: &Group,
        subject: Subject<'_>,
        now: Instant,
        may: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let pick_afresh = || {
            let Private { rng, memories, .. } = &mut *self.private.borrow_mut();
            let memory = memories[index.0 as usize].get_or_insert_with(Memory::default);
            let mut picker = Picker { snapshot: &self.snapshot, worker: self.worker, rng, memory };
            picker.pick(group, subject, now, &may)
        };
        let table = group.affinity.as_deref();
        let Some((table, slot)) = table.and_then(|table| Some((table, table.slot(subject)?))) else {
            return pick_afresh();
        };
        let known = table.find(slot, now);
        let of_known = known.as_deref().and_then(|name| self.member_named(group, name));
        if let Some(member) = of_known.filter(|member| may(*member)) {
            return Some(member);
        }
        let picked = pick_afresh()?;
        match table.settings().binding {
            Binding::AtCommit => Some(picked),
            Binding::AtPick => {
                let name = &self.snapshot.target(group.members[picked].target).name;
                let other = table.bind(slot, name, known.as_ref(), now);
                let of_other = other.as_deref().and_then(|name| self.member_named(group, name));
                Some(of_other.filter(|member| may(*member)).unwrap_or(picked))
            }
        }
    }

    /// An attempt that went through `path` has won; `heard` is what its destination said ahead of that.
    pub fn handle_committed(&self, path: &[TargetIndex], subject: Subject<'_>, heard: &[u8], now: Instant) {
        for pair in path.windows(2) {
            let TargetKind::Group(group) = &self.snapshot.target(pair[0]).kind else { continue };
            let Some(table) = group.affinity.as_deref() else { continue };
            for slot in [table.slot(subject), table.slot_of_answer(heard)].into_iter().flatten() {
                table.set(slot, &self.snapshot.target(pair[1]).name, now);
            }
        }
    }

    fn member_named(&self, group: &Group, name: &str) -> Option<usize> {
        group.members.iter().position(|member| *self.snapshot.target(member.target).name == *name)
    }
}

fn groups(snapshot: &Snapshot) -> impl Iterator<Item = Option<&Group>> {
    snapshot.targets.iter().map(|target| match &target.kind {
        TargetKind::Group(group) => Some(group),
        TargetKind::Upstream(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pick::tests::world;
    use crate::record::ClientAddr;
    use crate::snapshot::Policy;

    const NOBODY: Subject<'_> = Subject { client: &ClientAddr::Unix, destination: None, peeked: None };

    #[test]
    fn a_new_snapshot_goes_on_where_the_cycle_stood() {
        let (first, group) = world(Policy::RoundRobin, &[1, 1, 1]);
        let (second, _) = world(Policy::RoundRobin, &[1, 1, 1]);
        let index = TargetIndex(3);
        let view = View::new(Arc::new(first), WorkerIndex(0), 1);
        assert_eq!(view.pick(index, &group, NOBODY, Instant::ZERO, |_| true), Some(0));
        let view = view.succeeded_by(Arc::new(second));
        assert_eq!(view.pick(index, &group, NOBODY, Instant::ZERO, |_| true), Some(1));
        assert_eq!(view.pick(index, &group, NOBODY, Instant::ZERO, |_| true), Some(2));
    }
}
