//! The rules of the configuration as snapshots have them, with counters that live on by name.

pub(crate) mod files;
pub(crate) mod pac;

use std::collections::HashMap;
use std::sync::Arc;

use ringweir_flow::rules::list::List;
use ringweir_flow::rules::{Action, Condition, Countries, NamedList, Origins, Rule, RuleCounters, Rules};
use ringweir_flow::snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use self::files::{Content, Kind, Watched};
use crate::model::Config;
use crate::status::{align, header};

/// The rules that are in force.
#[derive(Debug, Default)]
pub(crate) struct RuleBook {
    current: Option<Arc<Rules>>,
    counters: HashMap<Arc<str>, Arc<RuleCounters>>,
    lists: HashMap<Arc<str>, Arc<List>>,
    countries: Option<Arc<Countries>>,
}

impl RuleBook {
    /// Takes over the rules of a configuration.
    pub(crate) fn configure(&mut self, config: &Config, workers: usize) {
        let lists = config.lists.iter();
        self.lists = lists.map(|list| (Arc::clone(&list.name), Arc::clone(&list.content))).collect();
        self.countries = config.countries.as_ref().map(|file| Arc::clone(&file.content));
        let known = std::mem::take(&mut self.counters);
        for rule in &config.rules {
            let hits = known.get(&rule.name).cloned();
            let hits = hits.unwrap_or_else(|| Arc::new(RuleCounters::new(workers)));
            self.counters.insert(Arc::clone(&rule.name), hits);
        }
        self.build(config);
    }

    /// Takes over what a file says now; `false` when the configuration no longer names it.
    pub(crate) fn replace(&mut self, config: &Config, kind: &Kind, content: Content) -> bool {
        match (kind, content) {
            (Kind::List(name, _), Content::List(content)) => match self.lists.get_mut(name) {
                Some(list) => *list = content,
                None => return false,
            },
            (Kind::Countries, Content::Countries(content)) if self.countries.is_some() => {
                self.countries = Some(content);
            }
            (Kind::List(..) | Kind::Countries, Content::List(_) | Content::Countries(_)) => return false,
        }
        self.build(config);
        true
    }

    /// The files that a configuration goes by.
    pub(crate) fn watched(config: &Config) -> Vec<Watched> {
        let lists = config.lists.iter().map(|list| Watched {
            path: list.path.clone(),
            kind: Kind::List(Arc::clone(&list.name), list.format),
            stamp: list.stamp,
        });
        let countries = config.countries.iter().map(|file| Watched {
            path: file.path.clone(),
            kind: Kind::Countries,
            stamp: file.stamp,
        });
        lists.chain(countries).collect()
    }

    fn build(&mut self, config: &Config) {
        let rules: Vec<Rule> = config
            .rules
            .iter()
            .filter_map(|rule| {
                let conditions = rule.conditions.iter().map(|condition| self.renewed(condition));
                Some(Rule {
                    name: Arc::clone(&rule.name),
                    conditions: conditions.collect(),
                    action: rule.action,
                    hits: Arc::clone(self.counters.get(&rule.name)?),
                })
            })
            .collect();
        self.current = (!rules.is_empty()).then(|| Arc::new(Rules::new(rules)));
    }

    /// A condition with what its lists say now.
    fn renewed(&self, condition: &Condition) -> Condition {
        let known = |origins: &Origins| Origins {
            countries: Arc::clone(self.countries.as_ref().unwrap_or(&origins.countries)),
            codes: Arc::clone(&origins.codes),
        };
        match condition {
            Condition::List(lists) => Condition::List(
                lists
                    .iter()
                    .map(|list| {
                        let content = self.lists.get(&list.name).unwrap_or(&list.content);
                        NamedList { name: Arc::clone(&list.name), content: Arc::clone(content) }
                    })
                    .collect(),
            ),
            Condition::Country(origins) => Condition::Country(known(origins)),
            Condition::SourceCountry(origins) => Condition::SourceCountry(known(origins)),
            Condition::Listener(_)
            | Condition::User(_)
            | Condition::Source(_)
            | Condition::Destination(_)
            | Condition::Port(_)
            | Condition::Domain(_)
            | Condition::Sni(_)
            | Condition::Alpn(_)
            | Condition::Host(_)
            | Condition::Path(_) => condition.clone(),
        }
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
