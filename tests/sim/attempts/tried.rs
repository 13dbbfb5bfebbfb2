//! Whom a session has tried when nobody served it: every group on the way is judged, however deep.

use ringweir_flow::snapshot::{
    Commit, Group, Health, Member, Policy, Role, TargetIndex, TargetKind, Upstream,
};
use ringweir_flow::time::Instant;

use super::world::World;
use crate::invariants::{Verdicts, hold};

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    pub(super) upstream: usize,
    pub(super) begun_at: Instant,
    pub(super) ended_at: Instant,
    /// When its connection was open.
    pub(super) opened_at: Option<Instant>,
}

/// What the judgement had to do with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judged {
    /// A group stood in a group.
    pub(super) nested: u64,
    /// A group was given up because its time was up.
    pub(super) late: u64,
    /// A proxy had won by its connection.
    pub(super) decided: u64,
}

/// Why nobody else was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nobody was left.
    Exhausted,
    /// An attempt had won, and failed then.
    Decided,
}

impl World {
    /// Everybody failed: each member that may be picked was tried, as far as the budgets of its groups and their time
    /// allow, and in the order of their roles; where an attempt had won by its connection, until then, and it alone
    /// after that.
    pub(super) fn check_tried(&self, tried: &[Tried]) -> Result<Judged, String> {
        for (at, one) in tried.iter().enumerate() {
            let is_new = tried[..at].iter().all(|other| other.upstream != one.upstream);
            hold!(is_new, "{} was tried twice", one.upstream);
        }
        let mut judged = Judged::default();
        // A proxy that is connected to may have won by that, and what it says is the last word.
        let wins = |one: &Tried| self.wins_by_connection(self.root, one.upstream, None);
        let won =
            tried.iter().find_map(|one| one.opened_at.filter(|_| wins(one)).map(|at| (one.upstream, at)));
        if let Some((winner, at)) = won {
            let beside = tried.iter().filter(|one| one.upstream != winner);
            let mut late = beside.filter(|one| one.begun_at > at || one.ended_at > at);
            hold!(late.next().is_none(), "{winner} had won at {at:?}, and others were tried: {tried:?}");
            judged.decided = 1;
        }
        let end = if won.is_some() { End::Decided } else { End::Exhausted };
        self.check_member(self.root, None, tried, end, &mut judged)?;
        Ok(judged)
    }

    fn check_member(
        &self,
        target: TargetIndex,
        until: Option<Instant>,
        tried: &[Tried],
        end: End,
        judged: &mut Judged,
    ) -> Verdicts {
        let TargetKind::Group(group) = &self.kinds[target.0 as usize] else { return Ok(()) };
        let due: Vec<&Member> = self.due(group).collect();
        // As they were begun; who has led nowhere is not seen.
        let mut begun: Vec<(&Member, Vec<Tried>)> = Vec::new();
        for one in tried {
            let of = |member: &&Member| self.leads_to(member.target, one.upstream);
            let member = group.members.iter().find(of).ok_or("somebody else's member was tried")?;
            hold!(due.contains(&member), "{} was tried, which is not to be picked", member.target.0);
            match begun.iter_mut().find(|(known, _)| *known == member) {
                Some((_, tries)) => tries.push(*one),
                None => begun.push((member, vec![*one])),
            }
        }
        let most = due.len().min(group.attempts as usize);
        let is_begun = |member: &Member| begun.iter().any(|(known, _)| *known == member);
        let unseen = due.iter().filter(|member| !is_begun(member) && self.may_be_fruitless(member.target));
        let ended_at = tried.iter().map(|one| one.ended_at).max();
        let is_late = until.is_some_and(|until| ended_at.is_some_and(|ended_at| ended_at >= until));
        let names = || begun.iter().map(|(member, _)| member.target.0).collect::<Vec<_>>();
        hold!(begun.len() <= most, "{:?} of group {} were tried, {most} at most", names(), target.0);
        let is_whole = begun.len() + unseen.count() >= most;
        let due_names = || due.iter().map(|member| member.target.0).collect::<Vec<_>>();
        hold!(
            is_whole || is_late || end == End::Decided,
            "of group {} {:?} were tried, and {most} of {:?} were to be, until {until:?}, ended at {ended_at:?}",
            target.0,
            names(),
            due_names()
        );
        let rank = |member: &Member| (self.health(member) == Health::Ejected, member.role == Role::Backup);
        // Of those that were begun at one moment, a group may have come first and had its own members begun last.
        let mut order: Vec<_> =
            begun.iter().map(|(member, tries)| (tries[0].begun_at, rank(member))).collect();
        order.sort_unstable();
        let is_in_order = order.iter().is_sorted_by_key(|(_, rank)| rank);
        hold!(is_in_order, "group {} went on out of order: {:?}", target.0, names());
        judged.nested = judged.nested.max(u64::from(until.is_some() && !begun.is_empty()));
        judged.late = judged.late.max(u64::from(!is_whole && end == End::Exhausted));
        for (member, tries) in &begun {
            let own = tries[0].begun_at + group.attempt_timeout;
            let until = until.map_or(own, |until| until.min(own));
            let over = tries.iter().find(|one| one.ended_at > until);
            hold!(over.is_none(), "{over:?} went on after {until:?}");
            self.check_member(member.target, Some(until), tries, end, judged)?;
        }
        Ok(())
    }

    /// The members that may be picked.
    fn due<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Member> {
        let is_selected = |at: usize| group.policy != Policy::Select || at == group.selected as usize;
        let members = group.members.iter().enumerate().filter(move |(at, _)| is_selected(*at));
        members.map(|(_, member)| member).filter(|member| match self.health(member) {
            Health::Up | Health::Ejected => true,
            Health::Down | Health::Unknown | Health::Draining | Health::Disabled | Health::Trial => false,
        })
    }

    fn health(&self, member: &Member) -> Health {
        self.healths[member.target.0 as usize]
    }

    fn leads_to(&self, target: TargetIndex, upstream: usize) -> bool {
        match &self.kinds[target.0 as usize] {
            TargetKind::Upstream(_) => target.0 as usize == upstream,
            TargetKind::Group(group) => {
                group.members.iter().any(|member| self.leads_to(member.target, upstream))
            }
        }
    }

    /// Whether picking it may end without a try: the operator selected one that is down, there or further below.
    fn may_be_fruitless(&self, target: TargetIndex) -> bool {
        let TargetKind::Group(group) = &self.kinds[target.0 as usize] else { return false };
        let due: Vec<&Member> = self.due(group).collect();
        let fruitless = due.iter().filter(|member| self.may_be_fruitless(member.target)).count();
        fruitless >= due.len().min(group.attempts as usize)
    }

    /// Whether an upstream is a proxy whose attempts win when they are connected: the strictest group says so.
    fn wins_by_connection(&self, target: TargetIndex, upstream: usize, strictest: Option<Commit>) -> bool {
        match &self.kinds[target.0 as usize] {
            TargetKind::Upstream(Upstream::Proxied(_)) => {
                target.0 as usize == upstream && strictest == Some(Commit::Connect)
            }
            TargetKind::Upstream(_) => false,
            TargetKind::Group(group) => {
                let strictest = strictest.max(group.commit);
                group.members.iter().any(|member| self.wins_by_connection(member.target, upstream, strictest))
            }
        }
    }
}
