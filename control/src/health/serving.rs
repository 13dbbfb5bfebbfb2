//! Whom groups lead to: shown in the status, and told when it changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ringweir_flow::snapshot::{Group, Health, Policy, Role, Snapshot, TargetKind};

/// Whom each group led to when it last led to anybody.
#[derive(Debug, Default)]
pub(crate) struct Leads(HashMap<Arc<str>, Lead>);

/// Whom a group leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lead {
    /// The one whose turn it is, and the others after it.
    Member(Arc<str>),
    /// All members of a role, as the policy picks.
    Members(Role),
}

impl Leads {
    /// One snapshot follows another: which groups lead elsewhere from now on, and how to say it. A group that leads to
    /// nobody is down and not switched; when it is back, it is compared with what it was before.
    pub(crate) fn follow(&mut self, before: &Snapshot, after: &Snapshot) -> Vec<(Arc<str>, String)> {
        if self.0.is_empty() {
            let known = leads(before).map(|(name, lead)| (Arc::clone(name), lead));
            self.0.extend(known);
        }
        let mut switched = Vec::new();
        for (name, lead) in leads(after) {
            let Some(known) = self.0.get_mut(name) else {
                self.0.insert(Arc::clone(name), lead);
                continue;
            };
            if let Some(how) = change(known, &lead) {
                switched.push((Arc::clone(name), how));
            }
            *known = lead;
        }
        switched
    }

    /// Forgets groups that are gone.
    pub(crate) fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_known(name));
    }
}

/// The members of a group that new sessions go to as things stand.
pub(crate) fn serving(snapshot: &Snapshot, kind: &TargetKind) -> Vec<String> {
    let TargetKind::Group(group) = kind else { return Vec::new() };
    let Some(lead) = lead(snapshot, group) else { return Vec::new() };
    let serves = |name: &Arc<str>, role: Role| match &lead {
        Lead::Member(chosen) => name == chosen,
        Lead::Members(serving) => role == *serving,
    };
    let members = group.members.iter().map(|member| (snapshot.target(member.target), member.role));
    members
        .filter(|(target, role)| is_sound(target.health) && serves(&target.name, *role))
        .map(|(target, _)| target.name.to_string())
        .collect()
}

/// The members of a group that sessions cannot be given to, each with its health.
pub(crate) fn members_out(snapshot: &Snapshot, kind: &TargetKind) -> BTreeMap<String, Health> {
    let TargetKind::Group(group) = kind else { return BTreeMap::new() };
    let members = group.members.iter().map(|member| snapshot.target(member.target));
    members
        .filter(|target| !is_sound(target.health))
        .map(|target| (target.name.to_string(), target.health))
        .collect()
}

fn leads(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, Lead)> {
    snapshot.targets.iter().filter_map(|target| match &target.kind {
        TargetKind::Group(group) => Some((&target.name, lead(snapshot, group)?)),
        TargetKind::Upstream(_) => None,
    })
}

fn lead(snapshot: &Snapshot, group: &Group) -> Option<Lead> {
    let first = |role: Role| {
        let mut members = group.members.iter().filter(|member| member.role == role);
        members.find(|member| is_sound(snapshot.target(member.target).health))
    };
    let first = || first(Role::Primary).or_else(|| first(Role::Backup));
    let name = |member: &ringweir_flow::snapshot::Member| Arc::clone(&snapshot.target(member.target).name);
    match group.policy {
        // The operator's word stands whether or not the member can serve.
        Policy::Select => group.members.get(group.selected as usize).map(|member| Lead::Member(name(member))),
        Policy::Failover => first().map(|member| Lead::Member(name(member))),
        Policy::RoundRobin
        | Policy::Random
        | Policy::LeastConnections
        | Policy::LeastLatency
        | Policy::Hash(_)
        | Policy::Race { .. } => first().map(|member| Lead::Members(member.role)),
    }
}

/// How to say it when a group leads elsewhere; nothing when it does not, or when it is another kind of group now.
fn change(from: &Lead, to: &Lead) -> Option<String> {
    match (from, to) {
        (Lead::Member(from), Lead::Member(to)) => (from != to).then(|| format!("from {from} to {to}")),
        (Lead::Members(Role::Primary), Lead::Members(Role::Backup)) => Some("to its backups".to_owned()),
        (Lead::Members(Role::Backup), Lead::Members(Role::Primary)) => {
            Some("back from its backups".to_owned())
        }
        (Lead::Members(_), Lead::Members(_))
        | (Lead::Member(_), Lead::Members(_))
        | (Lead::Members(_), Lead::Member(_)) => None,
    }
}

/// Whether sessions are given to a target like to any other; one on trial gets a single one.
fn is_sound(health: Health) -> bool {
    match health {
        Health::Unknown | Health::Up => true,
        Health::Down | Health::Draining | Health::Disabled | Health::Ejected | Health::Trial => false,
    }
}
