//! What changes in the files that rules go by.

use super::Daemon;
use crate::rules::RuleBook;
use crate::rules::files::{Change, Content, Watcher};

impl Daemon {
    /// Looks at the files of the configuration that is in force, and no longer at those of the one before.
    pub(super) fn watch_files(&mut self) {
        self.watcher = Watcher::start(RuleBook::watched(&self.config), self.changes.clone());
    }

    /// A file is read again; one that is broken changes nothing.
    pub(super) fn handle_change(&mut self, change: Change) {
        let file = change.path.display();
        match change.content {
            Ok(content) => {
                let (entries, passed_over) = match &content {
                    Content::List(list) => (list.len(), list.passed_over()),
                    Content::Countries(countries) => (countries.len(), 0),
                };
                if self.knowledge.rules.replace(&self.config, &change.kind, content) {
                    tracing::info!(%file, entries, passed_over, "a list has changed");
                    self.publish(Vec::new());
                }
            }
            Err(error) => {
                tracing::error!(%file, "a list has changed and is broken, what it said before stays: {error}");
            }
        }
    }
}
