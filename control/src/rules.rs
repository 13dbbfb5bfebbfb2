//! The rules of the configuration as snapshots have them, with counters that live on by name.

use std::collections::HashMap;
use std::sync::Arc;

use ringweir_flow::rules::{Action, Rule, RuleCounters, Rules};
use ringweir_flow::snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use crate::model::Config;
use crate::status::{align, header};

/// The rules that are in force.
#[derive(Debug, Default)]
pub(crate) struct RuleBook {
    current: Option<Arc<Rules>>,
    counters: HashMap<Arc<str>, Arc<RuleCounters>>,
}

impl RuleBook {
    /// Takes over the rules of a configuration.
    pub(crate) fn configure(&mut self, config: &Config, workers: usize) {
        let known = std::mem::take(&mut self.counters);
        let rules: Vec<Rule> = config
            .rules
            .iter()
            .map(|rule| {
                let hits = known.get(&rule.name).cloned();
                let hits = hits.unwrap_or_else(|| Arc::new(RuleCounters::new(workers)));
                self.counters.insert(Arc::clone(&rule.name), Arc::clone(&hits));
                let (name, conditions) = (Arc::clone(&rule.name), rule.conditions.clone().into());
                Rule { name, conditions, action: rule.action, hits }
            })
            .collect();
        self.current = (!rules.is_empty()).then(|| Arc::new(Rules::new(rules)));
    }

    /// What snapshots get; nothing where there are no rules.
    pub(crate) fn current(&self) -> Option<Arc<Rules>> {
        self.current.clone()
    }
}

/// A rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RuleStatus {
    /// Its name.
    pub(crate) name: String,
    /// The target that it leads to, or `reject` or `drop`.
    pub(crate) leads_to: String,
    /// The sessions that it has decided.
    pub(crate) hits: u64,
}

/// The rules of a snapshot with the sums of their counters.
pub(crate) fn statuses(snapshot: &Snapshot) -> Vec<RuleStatus> {
    let rules = snapshot.rules.as_deref().map(Rules::list).unwrap_or_default();
    rules
        .iter()
        .map(|rule| RuleStatus {
            name: rule.name.to_string(),
            leads_to: match rule.action {
                Action::Target(target) => snapshot.target(target).name.to_string(),
                Action::Reject | Action::Drop => rule.action.to_string(),
            },
            hits: rule.hits.sum(|cell| &cell.hits),
        })
        .collect()
}

impl RuleStatus {
    /// A table for people; nothing where there are no rules.
    pub(crate) fn to_table(rules: &[RuleStatus], text: &mut String) {
        if rules.is_empty() {
            return;
        }
        text.push('\n');
        let mut rows = vec![header(["RULE", "LEADS TO", "HITS"])];
        rows.extend(
            rules.iter().map(|rule| vec![rule.name.clone(), rule.leads_to.clone(), rule.hits.to_string()]),
        );
        align(&rows, text);
    }
}
