//! What is configured of health beside checks: passive health, slow start, and how many members serve.

use std::time::Duration;

use ringweir_flow::health::Terms;
use ringweir_flow::retire::OnDown;
use ringweir_flow::snapshot::Policy;

use super::reader::{Node, Table};
use super::schema;
use crate::model::{Endpoint, HealthSettings, Target, TargetKind};

/// Passive health unless configured otherwise: a target that refuses five sessions in a row is left alone for a while.
const DEFAULT_TERMS: Terms =
    Terms { failures: 5, eject: Duration::from_secs(30), max_eject: Duration::from_secs(300) };

/// The share of a group's members that may be ejected unless configured otherwise.
pub(crate) const DEFAULT_MAX_EJECTED: f64 = 0.5;

/// Sessions that are to end may take this long: later it would not be for their member's sake.
const LONGEST_CLOSE: Duration = Duration::from_secs(24 * 3600);

/// What a difference in latency must exceed unless configured otherwise: less is not felt, and seldom lasts.
const DEFAULT_TOLERANCE: Duration = Duration::from_millis(50);

/// A greater one would never be exceeded.
const LONGEST_TOLERANCE: Duration = Duration::from_secs(60);

/// How many failures in a row may be asked for.
const MAX_FAILURES: u32 = 1000;

/// What a declaration says of health.
#[derive(Clone, Debug)]
pub(crate) struct DeclaredHealth {
    pub(crate) passive: Passive,
    pub(crate) max_ejected: f64,
    pub(crate) slow_start: Option<Duration>,
    pub(crate) active: Option<u32>,
    pub(crate) tolerance: Option<Duration>,
    pub(crate) disabled: bool,
}

/// What a declaration says of passive health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passive {
    /// Nothing: the group above decides, or the default.
    Unsaid,
    Off,
    On(Terms),
}

impl Default for DeclaredHealth {
    fn default() -> DeclaredHealth {
        DeclaredHealth {
            passive: Passive::Unsaid,
            max_ejected: DEFAULT_MAX_EJECTED,
            slow_start: None,
            active: None,
            tolerance: None,
            disabled: false,
        }
    }
}

pub(crate) fn of_upstream(table: &Table<'_>, endpoint: Option<&Endpoint>) -> DeclaredHealth {
    let disabled = table.get("disabled").and_then(|node| node.boolean()).unwrap_or(false);
    let mut health = DeclaredHealth { disabled, ..DeclaredHealth::default() };
    if let Some(node) = table.get("passive") {
        if matches!(endpoint, Some(Endpoint::Direct | Endpoint::Reject)) {
            node.report("has no meaning here: this kind leads to no fixed endpoint", None);
        }
        health.passive = passive(&node, schema::UPSTREAM_PASSIVE).0;
    }
    health
}

pub(crate) fn of_group(table: &Table<'_>, policy: Policy, members: usize) -> DeclaredHealth {
    let mut health = DeclaredHealth::default();
    if let Some(node) = table.get("passive") {
        let (passive, settings) = passive(&node, schema::GROUP_PASSIVE);
        health.passive = passive;
        let share = settings.and_then(|settings| settings.get("max_ejected"));
        health.max_ejected = share.and_then(|node| node.share()).unwrap_or(DEFAULT_MAX_EJECTED);
    }
    if let Some(node) = table.get("slow_start") {
        health.slow_start = node.duration();
        if !policy.is_weighted() {
            node.report("has no meaning here: this policy knows no weights", None);
        }
    }
    if let Some(node) = table.get("active") {
        health.active = node.integer(1..=u32::MAX);
        if health.active.is_some_and(|active| active as usize >= members) {
            let hint = Some("leave it out when all are to serve".to_owned());
            node.report(format!("leaves no reserve: the group has {members} members"), hint);
        }
    }
    health.tolerance = order(table, policy);
    health
}

/// In what order a failover goes.
fn order(table: &Table<'_>, policy: Policy) -> Option<Duration> {
    let by_latency = table.get("order").and_then(|node| {
        if policy != Policy::Failover {
            node.report("has a meaning for policy = \"failover\" alone", None);
        }
        node.choice(&[("written", false), ("latency", true)])
    });
    let tolerance = table.get("tolerance");
    if by_latency == Some(true) {
        let tolerance = tolerance.and_then(|node| node.duration_from(Duration::ZERO..=LONGEST_TOLERANCE));
        return Some(tolerance.unwrap_or(DEFAULT_TOLERANCE));
    }
    if let Some(node) = tolerance {
        node.report("has a meaning for order = \"latency\" alone", None);
    }
    None
}

/// A word, or a table that says over what time.
pub(crate) fn on_down(node: &Node<'_>) -> Option<OnDown> {
    if !node.is_table() {
        return node.choice(&[("keep", OnDown::Keep), ("close", OnDown::Close { over: Duration::ZERO })]);
    }
    let over =
        node.table(schema::ON_DOWN)?.required("close")?.duration_from(Duration::ZERO..=LONGEST_CLOSE)?;
    Some(OnDown::Close { over })
}

/// `false`, or a table.
fn passive<'a>(node: &Node<'a>, keys: &'static [&'static str]) -> (Passive, Option<Table<'a>>) {
    if !node.is_table() {
        match node.boolean() {
            Some(true) => return (Passive::On(DEFAULT_TERMS), None),
            Some(false) | None => return (Passive::Off, None),
        }
    }
    let Some(table) = node.table(keys) else { return (Passive::Off, None) };
    let failures = table.get("failures").and_then(|node| node.integer(1..=MAX_FAILURES));
    let eject = table.get("eject").and_then(|node| node.duration()).unwrap_or(DEFAULT_TERMS.eject);
    let most = table.get("max_eject").and_then(|node| {
        let most = node.duration()?;
        if most < eject {
            node.report("is shorter than eject", None);
        }
        Some(most)
    });
    let terms = Terms {
        failures: failures.unwrap_or(DEFAULT_TERMS.failures),
        eject,
        max_eject: most.unwrap_or(DEFAULT_TERMS.max_eject.max(eject)),
    };
    (Passive::On(terms), Some(table))
}

/// Joins what is declared: an upstream has its own passive health, or that of the first group that says any and holds
/// it, or the default.
pub(crate) fn join(targets: &mut [Target], declared: &[DeclaredHealth]) {
    let holder = |index: usize| {
        targets.iter().zip(declared).find_map(|(target, said)| match &target.kind {
            TargetKind::Group(group) if said.passive != Passive::Unsaid => {
                group.members.iter().any(|member| member.target.0 as usize == index).then_some(said.passive)
            }
            TargetKind::Group(_) | TargetKind::Upstream(_) => None,
        })
    };
    let settings: Vec<_> = (0..targets.len())
        .map(|index| {
            let said = declared.get(index).cloned().unwrap_or_default();
            let passive = match (&targets[index].kind, said.passive) {
                (TargetKind::Group(_), _) => None,
                (TargetKind::Upstream(upstream), passive) => match &upstream.endpoint {
                    Endpoint::Direct | Endpoint::Reject => None,
                    Endpoint::Address(_) | Endpoint::Name(..) | Endpoint::Unix(_) => {
                        let inherited = || holder(index).unwrap_or(Passive::Unsaid);
                        let said = if passive == Passive::Unsaid { inherited() } else { passive };
                        match said {
                            Passive::Off => None,
                            Passive::On(terms) => Some(terms),
                            Passive::Unsaid => Some(DEFAULT_TERMS),
                        }
                    }
                },
            };
            HealthSettings {
                passive,
                max_ejected: said.max_ejected,
                slow_start: said.slow_start,
                active: said.active.map(|active| active as usize),
                tolerance: said.tolerance,
                disabled: said.disabled,
            }
        })
        .collect();
    for (target, settings) in targets.iter_mut().zip(settings) {
        target.health = settings;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;
    use crate::model::Config;

    fn read(more: &str) -> Result<Config, String> {
        let text = format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n\
             [upstream.a]\naddress = \"10.0.0.1:1\"\n[upstream.b]\naddress = \"10.0.0.2:1\"\npassive = false\n\
             [group.pool]\nmembers = [\"a\", \"b\"]\n{more}"
        );
        parse(&text, "f", Path::new("")).map_err(|errors| errors.to_string())
    }

    fn terms(config: &Config, name: &str) -> Option<Terms> {
        config.targets.iter().find(|target| &*target.name == name).unwrap().health.passive
    }

    #[test]
    fn passive_health_is_on_unless_it_is_switched_off() {
        let config = read("").unwrap();
        assert_eq!((terms(&config, "a"), terms(&config, "b")), (Some(DEFAULT_TERMS), None));
        assert_eq!(terms(&read("passive = false\n").unwrap(), "a"), None);
    }

    #[test]
    fn a_group_decides_for_members_that_say_nothing() {
        let config = read("passive = { failures = 2, eject = \"1s\", max_ejected = 1.0 }\n").unwrap();
        let eject = Duration::from_secs(1);
        assert_eq!(terms(&config, "a"), Some(Terms { failures: 2, eject, ..DEFAULT_TERMS }));
        assert_eq!(terms(&config, "b"), None);
        assert_eq!(config.targets[2].health.max_ejected, 1.0);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let refused = |more: &str, key: &str| {
            let errors = read(more).unwrap_err();
            assert!(errors.contains(key), "{errors}");
        };
        refused("passive = { max_ejected = 1.5 }\n", "group.pool.passive.max_ejected");
        refused("passive = { max_ejected = \"half\" }\n", "group.pool.passive.max_ejected");
        refused("passive = { eject = \"1h\", max_eject = \"1m\" }\n", "group.pool.passive.max_eject");
        refused("passive = \"off\"\n", "group.pool.passive");
        refused("policy = \"failover\"\nslow_start = \"10s\"\n", "group.pool.slow_start");
        refused("order = \"latency\"\n", "group.pool.order");
        refused("policy = \"failover\"\ntolerance = \"1s\"\n", "group.pool.tolerance");
        refused("policy = \"failover\"\norder = \"latency\"\n", "has no check");
        refused("on_down = \"shut\"\n", "group.pool.on_down");
        refused("on_down = { close = \"2d\" }\n", "group.pool.on_down.close");
        refused("active = 2\n", "group.pool.active");
        refused("active = 0\n", "group.pool.active");
    }
}
