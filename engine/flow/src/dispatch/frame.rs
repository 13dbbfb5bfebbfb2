//! A group on a session's way, and which of its members were tried.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Branch;
use crate::capacity::Capacity;
use crate::pick::Subject;
use crate::snapshot::{Group, Prospect, TargetIndex};
use crate::time::Instant;
use crate::view::View;

/// A group that is being tried.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) state: FrameState,
    pub(super) group: TargetIndex,
    pub(super) parent: Branch,
    pub(super) tried: Tried,
    pub(super) attempts_left: u32,
    /// How many members are under way.
    pub(super) under_way: u32,
    /// When the next may be begun beside them.
    pub(super) next_at: Instant,
    /// When the group as a whole is given up, if an enclosing group says so.
    pub(super) deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameState {
    Trying,
    /// Of no use any more: its place is free.
    Over,
}

impl Frame {
    /// A member that is worth the next attempt, of a session with a place at `held`.
    pub(super) fn pick(
        &mut self,
        view: &View,
        group: &Group,
        held: Option<&Arc<Capacity>>,
        subject: Subject<'_>,
        now: Instant,
    ) -> Option<usize> {
        if self.attempts_left == 0 || self.deadline.is_some_and(|deadline| now >= deadline) {
            return None;
        }
        let target = |index: usize| view.snapshot().target(group.members[index].target);
        // Whoever is full is not worth an attempt while there are others; once nobody else is left, it may be waited for.
        for least in [Prospect::Place, Prospect::Line, Prospect::Refusal] {
            loop {
                let may = |index| {
                    let target = target(index);
                    target.is_available()
                        && !self.tried.contains(index)
                        && (least == Prospect::Refusal || target.prospect(held) == least)
                };
                let Some(member) = view.pick(self.group, group, subject, now, may) else { break };
                // Of two workers that pick a target on trial, one gets it.
                if target(member).admit() {
                    self.tried.insert(member);
                    self.attempts_left -= 1;
                    return Some(member);
                }
            }
        }
        let may = |index| target(index).is_last_resort() && !self.tried.contains(index);
        let member = view.pick(self.group, group, subject, now, may)?;
        self.tried.insert(member);
        self.attempts_left -= 1;
        Some(member)
    }
}

/// Which members were tried. A session tries few of them, so a short list beats a set.
#[derive(Debug, Default)]
pub(super) struct Tried(SmallVec<[u32; 8]>);

impl Tried {
    fn contains(&self, index: usize) -> bool {
        self.0.iter().any(|&tried| tried as usize == index)
    }

    fn insert(&mut self, index: usize) {
        self.0.push(u32::try_from(index).unwrap_or(u32::MAX));
    }
}
