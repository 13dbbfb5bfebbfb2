//! What changes in the files that rules go by.

use super::Daemon;
use crate::rules::RuleBook;
use crate::rules::files::{Change, Watcher};

impl Daemon {
    /// Looks at the files of the configuration that is in force, and no longer at those of the one before.
    pub(super) fn watch_files(&mut self) {
        self.watcher = Watcher::start(RuleBook::watched(&self.config), self.changes.clone());
    }

    /// A file is read again; one that is broken changes nothing.
    pub(super) fn handle_change(&mut self, change: Change) {
        let (list, path) = (&*change.name, change.path.display());
        match change.content {
            Ok(content) => {
                let (entries, passed_over) = (content.len(), content.passed_over());
                if self.knowledge.rules.replace(&self.config, &change.name, content) {
                    tracing::info!(list, %path, entries, passed_over, "a list has changed");
                    self.publish(Vec::new());
                }
            }
            Err(error) => {
                tracing::error!(list, %path, "a list has changed and is broken, what it said before stays: {error}");
            }
        }
    }
}
