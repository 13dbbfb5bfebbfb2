//! What becomes of plugins.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::Daemon;
use crate::assemble::Knowledge;
use crate::health::history::Incident;
use crate::plugins::{FIRST_PATIENCE, News, Told};

/// Waits a moment for plugins that are being started.
pub(super) async fn await_plugins(knowledge: &mut Knowledge, inbox: &mut UnboundedReceiver<News>) {
    let until = Instant::now() + FIRST_PATIENCE;
    while knowledge.plugins.are_starting() {
        match timeout_at(until, inbox.recv()).await {
            Ok(Some(news)) => take_note(knowledge, news),
            Ok(None) | Err(_) => return,
        };
    }
}

/// True when sessions of an upstream go elsewhere from now on.
fn take_note(knowledge: &mut Knowledge, news: News) -> bool {
    let (is_changed, told) = knowledge.plugins.handle_news(news);
    let (upstream, event, what): (Arc<str>, _, _) = match told {
        Some(Told::Started { upstream, what }) => (upstream, Incident::PluginStarted, what),
        Some(Told::Ended { upstream, what }) => (upstream, Incident::PluginEnded, what),
        None => return false,
    };
    knowledge.care.history.record(&upstream, event, Some(what));
    is_changed
}

impl Daemon {
    /// A plugin has started, listens, or has ended.
    pub(super) fn handle_plugin(&mut self, news: News) {
        if take_note(&mut self.knowledge, news) {
            self.watch_targets();
            self.publish(Vec::new());
        }
    }
}
