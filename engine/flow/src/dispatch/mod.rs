//! Walks a target down to upstreams: which one a session tries next, and until when.

mod frame;

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use self::frame::{Frame, FrameState, Tried};
use crate::capacity::{Capacity, Place};
use crate::pick::Subject;
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
    /// Which group asked for it; given back when the try has failed.
    pub branch: Branch,
    /// When its connection must be open.
    pub connect_by: Instant,
    /// When the attempt as a whole is to be given up.
    pub deadline: Instant,
}

/// The group that a choice was made for, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch(Option<FrameIndex>);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try this upstream, beside those that are being tried.
    Try(Choice),
    /// Wait for what is being tried, or for [`Dispatch::poll_timeout`].
    Wait,
    /// No member that is up is left or every budget is spent, and nothing is being tried.
    Exhausted,
}

/// One session's way through groups and their members. Every member is tried at most once. A group that races has
/// several under way at a time, and so may each group among its members.
#[derive(Debug)]
pub struct Dispatch {
    root: Root,
    frames: SmallVec<[Frame; 2]>,
    /// Where the session has a place, however full it is for others.
    held: Option<Arc<Capacity>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Fresh(TargetIndex),
    /// An upstream of its own is being tried.
    Alone,
    /// A group, whose frame is the first.
    Group,
    /// One attempt is the only one from now on.
    Decided,
    Spent,
}

/// A position in [`Dispatch::frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameIndex(u16);

impl Dispatch {
    /// Starts at `target`.
    pub fn new(target: TargetIndex) -> Dispatch {
        Dispatch { root: Root::Fresh(target), frames: SmallVec::new(), held: None }
    }

    /// Starts at `target` for a session that has a place at an upstream.
    pub fn with_place(target: TargetIndex, place: &Place) -> Dispatch {
        Dispatch { held: Some(Arc::clone(place.capacity())), ..Dispatch::new(target) }
    }

    /// What to do next: to be asked at the beginning, whenever a try has failed and at [`Dispatch::poll_timeout`],
    /// until it says other than [`Next::Try`]. `connect` bounds each connect.
    pub fn next(&mut self, view: &View, subject: Subject<'_>, now: Instant, connect: Duration) -> Next {
        if let Root::Fresh(target) = self.root {
            self.root = Root::Spent;
            let known = view.snapshot().target(target);
            if known.is_available() && known.admit() || known.is_last_resort() {
                let entered = self.enter(view, target, Branch(None), None);
                self.root = if entered.is_none() { Root::Group } else { Root::Alone };
                if let Some(upstream) = entered {
                    let deadline = now + connect;
                    return Next::Try(Choice {
                        upstream,
                        branch: Branch(None),
                        connect_by: deadline,
                        deadline,
                    });
                }
            }
        }
        // Inner groups stand behind the groups they are members of, unless they have taken a place that was free: a
        // look at all of them changes nothing in the end.
        while let Some(index) = self.frame_to_advance(view, now) {
            if let Some(choice) = self.advance(index, view, subject, now, connect) {
                return Next::Try(choice);
            }
        }
        match self.root {
            Root::Fresh(_) | Root::Spent => Next::Exhausted,
            Root::Alone | Root::Group | Root::Decided => Next::Wait,
        }
    }

    /// A try that a choice of `branch` began has failed.
    pub fn handle_failed(&mut self, branch: Branch, now: Instant) {
        match branch.0 {
            _ if self.root == Root::Decided => self.root = Root::Spent,
            None => self.root = Root::Spent,
            Some(index) => {
                let frame = self.frame_mut(index);
                frame.under_way -= 1;
                // Another takes its place at once.
                frame.next_at = now;
            }
        }
    }

    /// An attempt has won: nothing else is to be tried, whatever becomes of it.
    pub fn decide(&mut self) {
        self.root = Root::Decided;
        self.frames.clear();
    }

    /// When [`Dispatch::next`] may have another answer though nothing has failed.
    pub fn poll_timeout(&self, view: &View) -> Option<Instant> {
        let waits = self.frames.iter().filter(|frame| {
            frame.state == FrameState::Trying
                && frame.attempts_left > 0
                && frame.under_way > 0
                && frame.under_way < group_at(view, frame.group).parallel()
        });
        waits.map(|frame| frame.next_at).min()
    }

    /// The groups that a choice was made through, followed by its upstream.
    pub fn path_to(&self, choice: &Choice) -> Path {
        let mut path = Path::from_slice(&[choice.upstream]);
        let mut branch = choice.branch;
        while let Some(index) = branch.0 {
            let frame = &self.frames[usize::from(index.0)];
            path.push(frame.group);
            branch = frame.parent;
        }
        path.reverse();
        path
    }

    /// A group that may begin another member, or that is over.
    fn frame_to_advance(&self, view: &View, now: Instant) -> Option<FrameIndex> {
        let due = |frame: &Frame| {
            frame.state == FrameState::Trying
                && (frame.under_way == 0
                    || frame.attempts_left > 0
                        && now >= frame.next_at
                        && frame.under_way < group_at(view, frame.group).parallel())
        };
        self.frames.iter().position(due).map(|index| FrameIndex(index as u16))
    }

    /// Begins a member of a group: returns an upstream as the choice, opens a frame for a group. Ends the group when
    /// it has none left.
    fn advance(
        &mut self,
        index: FrameIndex,
        view: &View,
        subject: Subject<'_>,
        now: Instant,
        connect: Duration,
    ) -> Option<Choice> {
        let frame = &mut self.frames[usize::from(index.0)];
        let group = group_at(view, frame.group);
        let Some(member) = frame.pick(view, group, self.held.as_ref(), subject, now) else {
            frame.attempts_left = 0;
            if frame.under_way == 0 {
                self.end(index, now);
            }
            return None;
        };
        frame.under_way += 1;
        frame.next_at = now + group.stagger();
        let until = now + group.attempt_timeout;
        let deadline = frame.deadline.map_or(until, |deadline| deadline.min(until));
        let branch = Branch(Some(index));
        let upstream = self.enter(view, group.members[member].target, branch, Some(deadline))?;
        Some(Choice { upstream, branch, connect_by: (now + connect).min(deadline), deadline })
    }

    /// Returns an upstream; opens a frame for a group.
    fn enter(
        &mut self,
        view: &View,
        target: TargetIndex,
        parent: Branch,
        deadline: Option<Instant>,
    ) -> Option<TargetIndex> {
        let group = match &view.snapshot().target(target).kind {
            TargetKind::Upstream(_) => return Some(target),
            TargetKind::Group(group) => group,
        };
        let frame = Frame {
            state: FrameState::Trying,
            group: target,
            parent,
            tried: Tried::default(),
            attempts_left: group.attempts,
            under_way: 0,
            next_at: Instant::ZERO,
            deadline,
        };
        match self.frames.iter_mut().find(|frame| frame.state == FrameState::Over) {
            Some(place) => *place = frame,
            None => self.frames.push(frame),
        }
        None
    }

    /// A group has failed, and with it the try of the group around it.
    fn end(&mut self, index: FrameIndex, now: Instant) {
        let frame = self.frame_mut(index);
        frame.state = FrameState::Over;
        let parent = frame.parent;
        self.handle_failed(parent, now);
    }

    fn frame_mut(&mut self, index: FrameIndex) -> &mut Frame {
        &mut self.frames[usize::from(index.0)]
    }
}

fn group_at(view: &View, index: TargetIndex) -> &Group {
    match &view.snapshot().target(index).kind {
        TargetKind::Group(group) => group,
        TargetKind::Upstream(_) => unreachable!("a frame is opened for groups alone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::TargetCounters;
    use crate::capacity::Room;
    use crate::record::ClientAddr;
    use crate::snapshot::{Health, Member, Policy, Snapshot, Target, Upstream, WorkerIndex};

    const CONNECT: Duration = Duration::from_secs(10);

    fn upstream(health: Health) -> Target {
        target(TargetKind::Upstream(Upstream::Tcp([].into())), health)
    }

    fn target(kind: TargetKind, health: Health) -> Target {
        Target { health, ..Target::new("x", kind, Arc::new(TargetCounters::new(1))) }
    }

    fn group(members: &[u32], attempts: u32, seconds: u64) -> Target {
        group_by(Policy::Failover, members, attempts, seconds)
    }

    fn group_by(policy: Policy, members: &[u32], attempts: u32, seconds: u64) -> Target {
        let members = members.iter().map(|&index| Member::primary(TargetIndex(index), 1)).collect();
        let attempt_timeout = Duration::from_secs(seconds);
        let group = Group::new(policy, members, attempts, attempt_timeout);
        target(TargetKind::Group(group), Health::Up)
    }

    fn race(members: &[u32], stagger_ms: u64, parallel: u32) -> Target {
        let stagger = Duration::from_millis(stagger_ms);
        group_by(Policy::Race { stagger, parallel }, members, 64, 3)
    }

    fn view(targets: Vec<Target>) -> std::rc::Rc<View> {
        View::new(Arc::new(Snapshot::new(vec![], targets)), WorkerIndex(0), 1)
    }

    fn up() -> Target {
        upstream(Health::Up)
    }

    fn next(dispatch: &mut Dispatch, view: &View, now: Instant) -> Next {
        dispatch.next(
            view,
            Subject { client: &ClientAddr::Unix, destination: None, peeked: None },
            now,
            CONNECT,
        )
    }

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    /// Whatever is to be begun at once.
    fn begun(dispatch: &mut Dispatch, view: &View, now: Instant) -> Vec<Choice> {
        std::iter::from_fn(|| match next(dispatch, view, now) {
            Next::Try(choice) => Some(choice),
            Next::Wait | Next::Exhausted => None,
        })
        .collect()
    }

    fn upstreams(choices: &[Choice]) -> Vec<u32> {
        choices.iter().map(|choice| choice.upstream.0).collect()
    }

    /// Every upstream that is tried when each fails at once.
    fn all(view: &View, root: u32) -> Vec<u32> {
        tried(view, Dispatch::new(TargetIndex(root)))
    }

    fn tried(view: &View, mut dispatch: Dispatch) -> Vec<u32> {
        let mut tried = Vec::new();
        while let Next::Try(choice) = next(&mut dispatch, view, Instant::ZERO) {
            tried.push(choice.upstream.0);
            dispatch.handle_failed(choice.branch, Instant::ZERO);
        }
        assert_eq!(next(&mut dispatch, view, Instant::ZERO), Next::Exhausted);
        tried
    }

    #[test]
    fn nested_groups_are_tried_to_their_end_before_the_next_member() {
        let view = view(vec![up(), up(), up(), group(&[0, 1], 8, 4), group(&[3, 2], 8, 4)]);
        assert_eq!(all(&view, 4), [0, 1, 2]);
        assert_eq!(all(&view, 2), [2], "an upstream is tried once");
    }

    #[test]
    fn attempts_and_health_bound_the_tries() {
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
    fn whoever_is_full_takes_no_attempt_from_the_others() {
        let room = |queue| Room { sessions: 0, queue, patience: Duration::ZERO };
        let full = |queue| Target { capacity: Some(Arc::new(Capacity::new(room(queue)))), ..up() };
        let members = [0, 1, 2, 3];
        let view = view(vec![full(0), full(1), up(), up(), group(&members, 2, 4), group(&[0, 1], 1, 4)]);
        assert_eq!(all(&view, 4), [2, 3]);
        assert_eq!(all(&view, 5), [1], "nobody else is left, and that one may be waited for");
    }

    #[test]
    fn a_place_that_was_waited_for_is_not_passed_over() {
        let room = Room { sessions: 1, queue: 1, patience: Duration::ZERO };
        let limited = || Target { capacity: Some(Arc::new(Capacity::new(room))), ..up() };
        let view = view(vec![limited(), limited(), group(&[0, 1], 1, 4)]);
        let take = |index| view.snapshot().target(TargetIndex(index)).capacity.as_ref().unwrap().take();
        let (_other, mine) = (take(0), take(1).unwrap());
        let target = TargetIndex(2);
        assert_eq!(tried(&view, Dispatch::new(target)), [0], "both are full for whoever comes");
        assert_eq!(tried(&view, Dispatch::with_place(target, &mine)), [1]);
    }

    #[test]
    fn a_nested_group_shares_the_time_of_one_attempt() {
        let view = view(vec![up(), up(), up(), group(&[0, 1], 8, 4), group(&[3, 2], 8, 3)]);
        let mut dispatch = Dispatch::new(TargetIndex(4));
        let [first] = &begun(&mut dispatch, &view, at(0))[..] else { panic!("one at a time") };
        assert_eq!((first.upstream, first.deadline), (TargetIndex(0), at(3_000)));
        assert_eq!(dispatch.path_to(first)[..], [TargetIndex(4), TargetIndex(3), TargetIndex(0)]);
        dispatch.handle_failed(first.branch, at(3_000));
        let [second] = &begun(&mut dispatch, &view, at(3_000))[..] else { panic!("one at a time") };
        let expected = (TargetIndex(2), at(6_000));
        assert_eq!((second.upstream, second.deadline), expected, "the inner group's time is up");
        assert_eq!(dispatch.path_to(second)[..], [TargetIndex(4), TargetIndex(2)]);
    }

    #[test]
    fn a_race_begins_its_members_one_after_the_other() {
        let view = view(vec![up(), up(), up(), race(&[0, 1, 2], 100, 2)]);
        let mut dispatch = Dispatch::new(TargetIndex(3));
        let first = begun(&mut dispatch, &view, at(0));
        assert_eq!(upstreams(&first), [0]);
        assert_eq!(dispatch.poll_timeout(&view), Some(at(100)));
        assert!(begun(&mut dispatch, &view, at(99)).is_empty());
        assert_eq!(upstreams(&begun(&mut dispatch, &view, at(100))), [1]);
        assert_eq!(dispatch.poll_timeout(&view), None, "two are under way");
        assert!(begun(&mut dispatch, &view, at(1_000)).is_empty());
        dispatch.handle_failed(first[0].branch, at(1_000));
        assert_eq!(upstreams(&begun(&mut dispatch, &view, at(1_000))), [2], "its place is taken at once");
        assert_eq!(next(&mut dispatch, &view, at(1_000)), Next::Wait);
    }

    #[test]
    fn a_race_without_stagger_begins_all_at_once_and_is_over_with_the_last() {
        let view = view(vec![up(), up(), up(), race(&[0, 1, 2], 0, 8)]);
        let mut dispatch = Dispatch::new(TargetIndex(3));
        let choices = begun(&mut dispatch, &view, at(0));
        assert_eq!(upstreams(&choices), [0, 1, 2]);
        for choice in &choices {
            assert_eq!(next(&mut dispatch, &view, at(1)), Next::Wait);
            dispatch.handle_failed(choice.branch, at(1));
        }
        assert_eq!(next(&mut dispatch, &view, at(1)), Next::Exhausted);
    }

    /// The first example of leaf's article: three cheap ones race within three seconds, then the good one.
    #[test]
    fn a_race_inside_a_failover_is_one_of_its_attempts() {
        let view = view(vec![up(), up(), up(), up(), race(&[0, 1, 2], 0, 8), group(&[4, 3], 8, 3)]);
        let mut dispatch = Dispatch::new(TargetIndex(5));
        let cheap = begun(&mut dispatch, &view, at(0));
        assert_eq!(upstreams(&cheap), [0, 1, 2]);
        assert!(cheap.iter().all(|choice| choice.deadline == at(3_000)));
        assert_eq!(dispatch.path_to(&cheap[1])[..], [5, 4, 1].map(TargetIndex));
        for choice in &cheap {
            dispatch.handle_failed(choice.branch, at(3_000));
        }
        let good = begun(&mut dispatch, &view, at(3_000));
        assert_eq!(upstreams(&good), [3]);
        assert_eq!(dispatch.path_to(&good[0])[..], [5, 3].map(TargetIndex));
    }

    #[test]
    fn groups_race_with_their_own_members_behind_them() {
        let view = view(vec![
            up(),
            up(),
            up(),
            up(),
            group(&[0, 1], 8, 4),
            group(&[2, 3], 8, 4),
            race(&[4, 5], 0, 8),
        ]);
        let mut dispatch = Dispatch::new(TargetIndex(6));
        let heads = begun(&mut dispatch, &view, at(0));
        assert_eq!(upstreams(&heads), [0, 2]);
        dispatch.handle_failed(heads[1].branch, at(5));
        let next_one = begun(&mut dispatch, &view, at(5));
        assert_eq!(upstreams(&next_one), [3]);
        assert_eq!(dispatch.path_to(&next_one[0])[..], [6, 5, 3].map(TargetIndex));
        dispatch.handle_failed(next_one[0].branch, at(6));
        assert!(begun(&mut dispatch, &view, at(6)).is_empty(), "the other group is under way");
        dispatch.handle_failed(heads[0].branch, at(7));
        assert_eq!(upstreams(&begun(&mut dispatch, &view, at(7))), [1]);
    }

    #[test]
    fn nothing_is_begun_once_an_attempt_has_won() {
        let view = view(vec![up(), up(), race(&[0, 1], 100, 2)]);
        let mut dispatch = Dispatch::new(TargetIndex(2));
        let [first] = &begun(&mut dispatch, &view, at(0))[..] else { panic!("one at a time") };
        dispatch.decide();
        assert_eq!(dispatch.poll_timeout(&view), None);
        assert_eq!(next(&mut dispatch, &view, at(100)), Next::Wait);
        dispatch.handle_failed(first.branch, at(100));
        assert_eq!(next(&mut dispatch, &view, at(100)), Next::Exhausted, "it was the only one");
    }

    /// Groups of this policy over leaves that may be picked or not, in any shape; the root is the last. No budget runs out.
    fn tree(shape: &[(u8, u8)], policy: Policy) -> Vec<Target> {
        let (mut targets, mut loose): (Vec<Target>, Vec<u32>) = (Vec::new(), Vec::new());
        for &(kind, health) in shape {
            let index = targets.len() as u32;
            let count = usize::from(kind % 4).min(loose.len());
            if count < 2 {
                targets.push(upstream([Health::Up, Health::Up, Health::Down][usize::from(health % 3)]));
            } else {
                let members = loose.split_off(loose.len() - count);
                let mut group = group_by(policy, &members, 64, 3600);
                let is_up = |member: &u32| targets[*member as usize].health.is_available();
                group.health = if members.iter().any(is_up) { Health::Up } else { Health::Down };
                targets.push(group);
            }
            loose.push(index);
        }
        targets.push(group_by(policy, &loose, 64, 3600));
        targets
    }

    /// The leaves that may be picked, as written.
    fn leaves(view: &View, from: u32) -> Vec<u32> {
        match &view.snapshot().target(TargetIndex(from)).kind {
            _ if !view.snapshot().target(TargetIndex(from)).is_available() => Vec::new(),
            TargetKind::Upstream(_) => vec![from],
            TargetKind::Group(group) => {
                group.members.iter().flat_map(|member| leaves(view, member.target.0)).collect()
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn failover_never_skips_an_untried_member(shape in proptest::collection::vec((0u8..8, 0u8..3), 1..24)) {
            let view = view(tree(&shape, Policy::Failover));
            let root = view.snapshot().targets.len() as u32 - 1;
            proptest::prop_assert_eq!(all(&view, root), leaves(&view, root));
        }

        #[test]
        fn a_race_tries_everybody_once_and_gives_up_only_when_all_have_failed(
            shape in proptest::collection::vec((0u8..8, 0u8..3), 1..24),
            (stagger, parallel) in (0u64..200, 1u32..5),
            failures in proptest::collection::vec(0usize..64, 64),
        ) {
            let stagger = Duration::from_millis(stagger);
            let view = view(tree(&shape, Policy::Race { stagger, parallel }));
            let root = view.snapshot().targets.len() as u32 - 1;
            let mut dispatch = Dispatch::new(TargetIndex(root));
            let (mut open, mut tried): (Vec<Choice>, Vec<u32>) = (Vec::new(), Vec::new());
            for (step, failure) in (0u64..).zip(failures) {
                let now = at(50 * step);
                let fresh = begun(&mut dispatch, &view, now);
                tried.extend(upstreams(&fresh));
                open.extend(fresh);
                let is_over = next(&mut dispatch, &view, now) == Next::Exhausted;
                proptest::prop_assert_eq!(is_over, open.is_empty(), "open: {:?}", open);
                if is_over {
                    break;
                }
                dispatch.handle_failed(open.swap_remove(failure % open.len()).branch, now);
            }
            tried.sort_unstable();
            let mut expected = leaves(&view, root);
            expected.sort_unstable();
            proptest::prop_assert_eq!(tried, expected);
        }
    }
}
