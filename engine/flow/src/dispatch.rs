//! Walks a target down to upstreams: which one a session tries next, and until when.

use std::time::Duration;

use smallvec::SmallVec;

use crate::snapshot::{Group, TargetIndex, TargetKind};
use crate::time::Instant;
use crate::view::View;

/// The targets that an attempt goes through, from the listener's target to the upstream (last).
pub type Path = SmallVec<[TargetIndex; 4]>;

/// An upstream to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The upstream.
    pub upstream: TargetIndex,
    /// When the attempt is to be given up.
    pub deadline: Instant,
}

/// One session's way through groups and their members. Every member is tried at most once.
#[derive(Debug)]
pub struct Dispatch {
    root: Root,
    frames: SmallVec<[Frame; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Fresh(TargetIndex),
    Begun,
}

/// A group that is being tried.
#[derive(Debug)]
struct Frame {
    group: TargetIndex,
    tried: Tried,
    attempts_left: u32,
    /// When the group as a whole is given up, if an enclosing group says so.
    deadline: Option<Instant>,
}

impl Dispatch {
    /// Starts at `target`.
    pub fn new(target: TargetIndex) -> Dispatch {
        Dispatch { root: Root::Fresh(target), frames: SmallVec::new() }
    }

    /// The next upstream to try, or `None` when no member that is up is left or every budget is spent. `connect`
    /// bounds each attempt.
    pub fn next(&mut self, view: &View, now: Instant, connect: Duration) -> Option<Choice> {
        if let Root::Fresh(target) = std::mem::replace(&mut self.root, Root::Begun)
            && view.snapshot().target(target).health.is_available()
            && let Some(choice) = self.enter(view, target, now + connect, None)
        {
            return Some(choice);
        }
        while let Some(frame) = self.frames.last_mut() {
            let group = group_at(view, frame.group);
            match frame.pick(view, group, now) {
                None => {
                    self.frames.pop();
                }
                Some(member) => {
                    let until = now + group.attempt_timeout;
                    let limit = frame.deadline.map_or(until, |deadline| deadline.min(until));
                    let target = group.members[member].target;
                    if let Some(choice) = self.enter(view, target, (now + connect).min(limit), Some(limit)) {
                        return Some(choice);
                    }
                }
            }
        }
        None
    }

    /// The groups that the last choice was made through, followed by `upstream`.
    pub fn path_to(&self, upstream: TargetIndex) -> Path {
        self.frames.iter().map(|frame| frame.group).chain([upstream]).collect()
    }

    /// Returns an upstream as the choice; opens a frame for a group.
    fn enter(
        &mut self,
        view: &View,
        target: TargetIndex,
        deadline: Instant,
        limit: Option<Instant>,
    ) -> Option<Choice> {
        match &view.snapshot().target(target).kind {
            TargetKind::Upstream(_) => Some(Choice { upstream: target, deadline }),
            TargetKind::Group(group) => {
                self.frames.push(Frame {
                    group: target,
                    tried: Tried::default(),
                    attempts_left: group.attempts,
                    deadline: limit,
                });
                None
            }
        }
    }
}

impl Frame {
    fn pick(&mut self, view: &View, group: &Group, now: Instant) -> Option<usize> {
        if self.attempts_left == 0 || self.deadline.is_some_and(|deadline| now >= deadline) {
            return None;
        }
        let member = view.pick(self.group, group, |index| {
            let target = view.snapshot().target(group.members[index].target);
            target.health.is_available() && !self.tried.contains(index)
        })?;
        self.attempts_left -= 1;
        self.tried.insert(member);
        Some(member)
    }
}

fn group_at(view: &View, index: TargetIndex) -> &Group {
    match &view.snapshot().target(index).kind {
        TargetKind::Group(group) => group,
        TargetKind::Upstream(_) => unreachable!("a frame is opened for groups alone"),
    }
}

/// Which members were tried. A session tries few of them, so a short list beats a set.
#[derive(Debug, Default)]
struct Tried(SmallVec<[u32; 8]>);

impl Tried {
    fn contains(&self, index: usize) -> bool {
        self.0.iter().any(|&tried| tried as usize == index)
    }

    fn insert(&mut self, index: usize) {
        self.0.push(u32::try_from(index).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::account::TargetCounters;
    use crate::snapshot::{Health, Member, Policy, Snapshot, Target, Upstream, WorkerIndex};
    use crate::way::Splicing;

    const CONNECT: Duration = Duration::from_secs(10);

    fn upstream(health: Health) -> Target {
        target(TargetKind::Upstream(Upstream::Tcp([].into())), health)
    }

    fn target(kind: TargetKind, health: Health) -> Target {
        let counters = Arc::new(TargetCounters::new(1));
        Target { name: "x".into(), kind, health, outgoing: None, counters }
    }

    fn group(members: &[u32], attempts: u32, seconds: u64) -> Target {
        let members = members.iter().map(|&index| Member { target: TargetIndex(index), weight: 1 }).collect();
        let attempt_timeout = Duration::from_secs(seconds);
        let group = Group { policy: Policy::Failover, members, attempts, attempt_timeout };
        target(TargetKind::Group(group), Health::Up)
    }

    fn view(targets: Vec<Target>) -> std::rc::Rc<View> {
        let snapshot = Snapshot {
            generation: 1,
            binds: vec![],
            listeners: vec![],
            targets,
            log_sessions: false,
            splicing: Splicing::default(),
        };
        View::new(Arc::new(snapshot), WorkerIndex(0), 1)
    }

    fn all(view: &View, root: u32) -> Vec<u32> {
        let mut dispatch = Dispatch::new(TargetIndex(root));
        std::iter::from_fn(|| dispatch.next(view, Instant::ZERO, CONNECT))
            .map(|choice| choice.upstream.0)
            .collect()
    }

    #[test]
    fn nested_groups_are_tried_to_their_end_before_the_next_member() {
        let up = || upstream(Health::Up);
        let view = view(vec![up(), up(), up(), group(&[0, 1], 8, 4), group(&[3, 2], 8, 4)]);
        assert_eq!(all(&view, 4), [0, 1, 2]);
        assert_eq!(all(&view, 2), [2], "an upstream is tried once");
    }

    #[test]
    fn attempts_and_health_bound_the_tries() {
        let up = || upstream(Health::Up);
        let view = view(vec![
            up(),
            upstream(Health::Down),
            upstream(Health::Draining),
            up(),
            up(),
            group(&[0, 1, 2, 3, 4], 2, 4),
            upstream(Health::Down),
        ]);
        assert_eq!(all(&view, 5), [0, 3]);
        assert!(all(&view, 6).is_empty(), "a target that is down is not tried even alone");
    }

    #[test]
    fn a_nested_group_shares_the_time_of_one_attempt() {
        let up = || upstream(Health::Up);
        let view = view(vec![up(), up(), up(), group(&[0, 1], 8, 4), group(&[3, 2], 8, 3)]);
        let mut dispatch = Dispatch::new(TargetIndex(4));
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let first = dispatch.next(&view, at(0), CONNECT).unwrap();
        assert_eq!((first.upstream, first.deadline), (TargetIndex(0), at(3)));
        assert_eq!(dispatch.path_to(first.upstream)[..], [TargetIndex(4), TargetIndex(3), TargetIndex(0)]);
        let second = dispatch.next(&view, at(3), CONNECT).unwrap();
        assert_eq!(
            (second.upstream, second.deadline),
            (TargetIndex(2), at(6)),
            "the inner group's time is up"
        );
        assert_eq!(dispatch.path_to(second.upstream)[..], [TargetIndex(4), TargetIndex(2)]);
    }
}
