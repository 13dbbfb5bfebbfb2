//! What a reload leaves for the next start.

use super::Daemon;
use crate::model::Config;

impl Daemon {
    /// What of a new configuration cannot be changed while sessions run.
    pub(super) fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        let old = &self.config;
        let mut later = Vec::new();
        if new.engine.kind != old.engine.kind {
            later.push("engine.kind");
        }
        if new.engine.workers.count() != self.workers {
            later.push("engine.workers");
        }
        if new.engine.pipes != old.engine.pipes {
            later.push("engine.pipes");
        }
        if new.engine.busy_poll != old.engine.busy_poll {
            later.push("engine.busy_poll");
        }
        if new.admin.listen != old.admin.listen
            || new.admin.metrics != old.admin.metrics
            || new.admin.token != old.admin.token
        {
            later.push("[admin]");
        }
        if (new.log.level, new.log.format) != (old.log.level, old.log.format) {
            later.push("log.level and log.format");
        }
        if new.resolver != old.resolver {
            later.push("[resolver]");
        }
        later
    }
}
