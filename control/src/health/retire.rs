//! Ends the sessions of members that have gone, where their group says so.

use std::collections::HashMap;
use std::sync::Arc;

use ringweir_flow::retire::{OnDown, Retirement};
use ringweir_flow::snapshot::{Group, Health, Snapshot, Target, TargetKind};
use tokio::time::Instant;

/// What is being carried out.
#[derive(Debug, Default)]
pub(crate) struct Retirements(Vec<UnderWay>);

#[derive(Debug)]
struct UnderWay {
    group: Arc<str>,
    member: Arc<str>,
    order: Arc<Retirement>,
    until: Instant,
}

impl Retirements {
    /// One snapshot follows another: what is to be told to workers. Orders about members that are back are revoked.
    pub(crate) fn follow(&mut self, before: &Snapshot, after: &Snapshot) -> Vec<Arc<Retirement>> {
        let now = Instant::now();
        self.0.retain(|under_way| now < under_way.until);
        if self.0.is_empty() && closing_groups(before).next().is_none() {
            return Vec::new();
        }
        let remaining: HashMap<&str, &Target> =
            after.targets.iter().map(|target| (&*target.name, target)).collect();
        self.0.retain(|under_way| {
            let is_back = serves(after, &remaining, &under_way.group, &under_way.member);
            if is_back {
                under_way.order.revoke();
            }
            !is_back
        });
        let mut orders = Vec::new();
        for (target, group) in closing_groups(before) {
            // The newest word counts; that of a group that is gone is its last.
            let still = remaining.get(&*target.name).and_then(|target| as_group(target));
            let OnDown::Close { over } = still.map_or(group.on_down, |group| group.on_down) else { continue };
            for member in group.members.iter().map(|member| before.target(member.target)) {
                if is_out(member.health) || serves(after, &remaining, &target.name, &member.name) {
                    continue;
                }
                let counters = (Arc::clone(&target.counters), Arc::clone(&member.counters));
                let order = Arc::new(Retirement::new(counters.0, counters.1, over));
                tracing::info!(
                    group = &*target.name,
                    member = &*member.name,
                    over = ?over,
                    "the sessions of a member that is gone are ended"
                );
                orders.push(Arc::clone(&order));
                let names = (Arc::clone(&target.name), Arc::clone(&member.name));
                self.0.push(UnderWay { group: names.0, member: names.1, order, until: now + over });
            }
        }
        orders
    }

    /// How long the longest that is under way may last yet.
    #[cfg(test)]
    fn longest(&self) -> Option<std::time::Duration> {
        self.0.iter().map(|under_way| under_way.until.saturating_duration_since(Instant::now())).max()
    }
}

fn as_group(target: &Target) -> Option<&Group> {
    match &target.kind {
        TargetKind::Group(group) => Some(group),
        TargetKind::Upstream(_) => None,
    }
}

fn closing_groups(snapshot: &Snapshot) -> impl Iterator<Item = (&Target, &Group)> {
    let groups = snapshot.targets.iter().filter_map(|target| Some((target, as_group(target)?)));
    groups.filter(|(_, group)| group.on_down != OnDown::Keep)
}

/// Whether a member is in its group, and sound enough for the sessions that it has.
fn serves(snapshot: &Snapshot, targets: &HashMap<&str, &Target>, group: &str, member: &str) -> bool {
    let Some(group) = targets.get(group).and_then(|target| as_group(target)) else { return false };
    let mut members = group.members.iter().map(|member| snapshot.target(member.target));
    members.any(|target| &*target.name == member && !is_out(target.health))
}

fn is_out(health: Health) -> bool {
    match health {
        Health::Unknown | Health::Up | Health::Trial => false,
        Health::Down | Health::Draining | Health::Disabled | Health::Ejected => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::assemble::tests::config;
    use crate::assemble::{Knowledge, assemble};

    const POOL: &str = r#"
        [group.pool]
        members = ["a", "b"]
        on_down = { close = "1m" }
    "#;

    fn snapshot(groups: &str, knowledge: &mut Knowledge) -> Snapshot {
        assemble(&config(groups), knowledge, &[], 1, 1, false)
    }

    #[test]
    fn members_that_go_are_followed_and_those_that_return_are_not() {
        let mut knowledge = Knowledge::default();
        let mut retirements = Retirements::default();
        let before = snapshot(POOL, &mut knowledge);
        assert!(retirements.follow(&before, &before).is_empty());
        knowledge.health.insert("a".into(), Health::Down);
        let down = snapshot(POOL, &mut knowledge);
        let orders = retirements.follow(&before, &down);
        let [order] = &orders[..] else { panic!("{orders:?}") };
        assert!(!order.is_revoked() && retirements.longest() > Some(Duration::from_secs(50)));
        assert!(retirements.follow(&down, &down).is_empty(), "told once");
        knowledge.health.insert("a".into(), Health::Up);
        let up = snapshot(POOL, &mut knowledge);
        assert!(retirements.follow(&down, &up).is_empty() && order.is_revoked());
        assert_eq!(retirements.longest(), None);
    }

    #[test]
    fn removed_and_drained_members_are_gone_as_well() {
        let mut knowledge = Knowledge::default();
        let mut retirements = Retirements::default();
        let before = snapshot(POOL, &mut knowledge);
        let without = POOL.replace(r#"["a", "b"]"#, r#"["a"]"#);
        assert_eq!(retirements.follow(&before, &snapshot(&without, &mut knowledge)).len(), 1);
        knowledge.drained.insert("a".into());
        assert_eq!(retirements.follow(&before, &snapshot(POOL, &mut knowledge)).len(), 1);
        let keeping = POOL.replace(r#"{ close = "1m" }"#, r#""keep""#);
        let mut others = Retirements::default();
        assert!(others.follow(&before, &snapshot(&keeping, &mut knowledge)).is_empty(), "the newest word");
    }
}
