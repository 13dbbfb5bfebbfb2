//! What has happened to targets: in the log, counted for the metrics, and the latest of it to be asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringweir_flow::health::News;
use ringweir_flow::snapshot::Health;
use serde::{Deserialize, Serialize};

/// How much is remembered: a bad night of a thousand targets, in about 100 KiB.
const MAX_REMEMBERED: usize = 1024;

/// Whom something has happened to that concerns all targets.
const EVERYBODY: &str = "*";

/// What can happen to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Incident {
    /// New sessions may go there, and could not before for what checks had found.
    Up,
    /// They may not, for what checks have found; of a group, because no member is left.
    Down,
    /// They may not for a time, for what real sessions met there.
    Ejected,
    /// That time is over: one session is let through.
    Trial,
    /// It is back from having been ejected.
    Returned,
    /// The operator took it out of service.
    Drained,
    /// The operator put it back.
    Undrained,
    /// It is neither picked nor probed, at the operator's word or the configuration's.
    Disabled,
    /// It is again.
    Enabled,
    /// A spare of the group has taken the place of a member.
    Replaced,
    /// The group leads to another member, or to its backups, or back from them.
    Switched,
    /// Its plugin listens.
    PluginStarted,
    /// Its plugin has ended by itself.
    PluginEnded,
    /// (Nearly) all targets fell silent at once: it is our own network.
    OutageBegan,
    /// Something answers again.
    OutageEnded,
}

impl Incident {
    /// The word in logs, metrics and the history.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Incident::Up => "up",
            Incident::Down => "down",
            Incident::Ejected => "ejected",
            Incident::Trial => "trial",
            Incident::Returned => "returned",
            Incident::Drained => "drained",
            Incident::Undrained => "undrained",
            Incident::Disabled => "disabled",
            Incident::Enabled => "enabled",
            Incident::Replaced => "replaced",
            Incident::Switched => "switched",
            Incident::PluginStarted => "plugin-started",
            Incident::PluginEnded => "plugin-ended",
            Incident::OutageBegan => "outage-began",
            Incident::OutageEnded => "outage-ended",
        }
    }

    /// What has happened when a target's health was one and is another.
    pub(crate) fn of_change(before: Health, after: Health) -> Option<Incident> {
        if before == after {
            return None;
        }
        Some(match (before, after) {
            (_, Health::Down) => Incident::Down,
            (_, Health::Ejected) => Incident::Ejected,
            (_, Health::Trial) => Incident::Trial,
            (_, Health::Draining) => Incident::Drained,
            (_, Health::Disabled) => Incident::Disabled,
            (Health::Disabled, Health::Up | Health::Unknown) => Incident::Enabled,
            (Health::Ejected | Health::Trial, Health::Up | Health::Unknown) => Incident::Returned,
            (Health::Draining, Health::Up | Health::Unknown) => Incident::Undrained,
            (Health::Down | Health::Up | Health::Unknown, Health::Up) => Incident::Up,
            // A check that has only begun has found nothing.
            (Health::Down | Health::Up | Health::Unknown, Health::Unknown) => return None,
        })
    }
}

/// Something that has happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// To whom.
    pub(crate) target: String,
    /// What.
    pub(crate) event: Incident,
    /// Why, or by whom, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

/// The latest of what has happened, and how often each thing did.
#[derive(Debug, Default)]
pub(crate) struct History {
    entries: VecDeque<Entry>,
    counts: BTreeMap<(Arc<str>, Incident), u64>,
}

impl History {
    /// Remembers and logs something.
    pub(crate) fn record(&mut self, target: &Arc<str>, event: Incident, why: Option<String>) {
        tracing::info!(target_name = &**target, event = event.as_str(), why, "health changed");
        *self.counts.entry((Arc::clone(target), event)).or_default() += 1;
        self.remember(target, event, why);
    }

    fn remember(&mut self, target: &str, event: Incident, why: Option<String>) {
        if self.entries.len() == MAX_REMEMBERED {
            self.entries.pop_front();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.entries.push_back(Entry { at_ms, target: target.to_string(), event, why });
    }

    /// Remembers and logs what concerns our own network.
    pub(crate) fn record_outage(&mut self, news: News) {
        let (event, words) = match news {
            News::None => return,
            News::Began => (
                Incident::OutageBegan,
                "nobody answers any more: our own network is taken to be down, and targets keep their health",
            ),
            News::Ended => (Incident::OutageEnded, "somebody answers again: our own network is up"),
        };
        tracing::warn!(event = event.as_str(), "{words}");
        self.remember(EVERYBODY, event, None);
    }

    /// Forgets the counts of targets that are gone; what has happened to them stays told.
    pub(crate) fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        self.counts.retain(|(target, _), _| is_known(target));
    }

    /// The latest, oldest first.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    /// How often what happened to a target.
    pub(crate) fn counts(&self, target: &str) -> BTreeMap<String, u64> {
        let own = self.counts.iter().filter(|((name, _), _)| &**name == target);
        own.map(|((_, event), count)| (event.as_str().to_owned(), *count)).collect()
    }
}

/// For people: one line each, oldest first.
pub(crate) fn to_table(entries: &[Entry]) -> String {
    let mut rows = vec![crate::status::header(["WHEN", "TARGET", "EVENT", "WHY"])];
    rows.extend(entries.iter().map(|entry| {
        let when = UNIX_EPOCH + std::time::Duration::from_millis(entry.at_ms);
        vec![
            humantime::format_rfc3339_millis(when).to_string(),
            entry.target.clone(),
            entry.event.as_str().to_owned(),
            entry.why.clone().unwrap_or_default(),
        ]
    }));
    let mut text = String::new();
    crate::status::align(&rows, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded_and_the_counts_are_not_lost_by_it() {
        let mut history = History::default();
        let name: Arc<str> = "a".into();
        for number in 0..2 * MAX_REMEMBERED {
            history.record(&name, Incident::Down, Some(number.to_string()));
        }
        let entries = history.entries();
        assert_eq!(entries.len(), MAX_REMEMBERED);
        assert_eq!(entries[0].why.as_deref(), Some("1024"));
        assert_eq!(history.counts("a")["down"], 2048);
        history.retain(|_| false);
        assert!(history.counts("a").is_empty() && history.entries().len() == MAX_REMEMBERED);
    }

    #[test]
    fn a_return_is_told_from_a_recovery() {
        let of = Incident::of_change;
        assert_eq!(of(Health::Down, Health::Up), Some(Incident::Up));
        assert_eq!(of(Health::Trial, Health::Unknown), Some(Incident::Returned));
        assert_eq!(of(Health::Draining, Health::Up), Some(Incident::Undrained));
        assert_eq!(of(Health::Up, Health::Up), None);
        assert_eq!(of(Health::Up, Health::Unknown), None);
    }
}
