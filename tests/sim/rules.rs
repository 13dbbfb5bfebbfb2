//! The rules of a world, and a reading of them without flow's help.

use std::sync::Arc;

use ringweir_flow::rules::{Action, Condition, Rule, RuleCounters, Rules};
use ringweir_flow::snapshot::TargetIndex;

/// Where clients come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Unix,
    /// From 10.0.0.0/8.
    Inside,
    /// From 192.0.2.0/24.
    Outside,
}

/// A rule: what it is about, and what it says. What is left out holds always.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    origin: Option<Origin>,
    /// Ports from this one on.
    port_from: Option<u16>,
    pub(crate) action: Action,
}

/// Some rules, or none.
pub(crate) fn draw(targets: usize, rng: &mut fastrand::Rng) -> Vec<Said> {
    let count = if rng.bool() { 0 } else { rng.usize(1..=3) };
    (0..count)
        .map(|_| Said {
            origin: [None, Some(Origin::Inside), Some(Origin::Outside)][rng.usize(..3)],
            port_from: rng.bool().then(|| rng.u16(1..)),
            action: match rng.u8(..4) {
                0 => Action::Reject,
                1 => Action::Drop,
                _ => Action::Target(TargetIndex(rng.u32(..targets as u32))),
            },
        })
        .collect()
}

/// What the first rule says that is about a session; `None` where none is.
pub(crate) fn read(rules: &[Said], origin: Origin, port: Option<u16>) -> Option<Action> {
    let is_about = |rule: &&Said| {
        rule.origin.is_none_or(|wanted| wanted == origin)
            && rule.port_from.is_none_or(|from| port.is_some_and(|port| port >= from))
    };
    rules.iter().find(is_about).map(|rule| rule.action)
}

/// The same for a snapshot.
pub(crate) fn build(rules: &[Said], counters: &Arc<RuleCounters>) -> Option<Arc<Rules>> {
    let rule = |said: &Said| {
        let network = said.origin.map(|origin| match origin {
            Origin::Inside => "10.0.0.0/8",
            Origin::Outside | Origin::Unix => "192.0.2.0/24",
        });
        let networks = network.into_iter().map(|text| text.parse::<ipnet::IpNet>().unwrap());
        let mut conditions = Vec::new();
        if said.origin.is_some() {
            conditions.push(Condition::Source(Arc::new(networks.collect())));
        }
        conditions.extend(said.port_from.map(|from| Condition::Port([from..=u16::MAX].into())));
        let hits = Arc::clone(counters);
        Rule { name: "rule".into(), conditions: conditions.into(), action: said.action, hits }
    };
    (!rules.is_empty()).then(|| Arc::new(Rules::new(rules.iter().map(rule).collect())))
}
