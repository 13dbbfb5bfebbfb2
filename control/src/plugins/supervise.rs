//! Keeps a plugin running.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::process::{Ended, run};
use super::{Happening, News, Owner, Spec};

/// How long is waited before it is started again: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whoever has lived so long was well: the waits begin anew.
const STEADY: Duration = Duration::from_secs(60);

/// Where what happens to a plugin is told.
#[derive(Debug)]
pub(super) struct Teller {
    pub(super) owner: Owner,
    pub(super) id: u64,
    pub(super) news: mpsc::UnboundedSender<News>,
}

impl Teller {
    pub(super) fn tell(&self, what: Happening) {
        // Nobody listens when the daemon ends.
        let _ = self.news.send(News { owner: self.owner.clone(), id: self.id, what });
    }
}

/// Runs a plugin, again and again, once `after` is over and until the other end of `stop` is dropped.
pub(super) async fn supervise(
    spec: Spec,
    teller: Teller,
    mut stop: oneshot::Receiver<()>,
    after: Option<JoinHandle<()>>,
) {
    if let Some(after) = after {
        // One that panicked is gone as well.
        let _ = after.await;
    }
    let mut wait = FIRST_WAIT;
    loop {
        let begun = Instant::now();
        let why = match run(&spec, &teller, &mut stop).await {
            Ended::Stopped => return,
            Ended::Exited(why) => why,
        };
        if begun.elapsed() >= STEADY {
            wait = FIRST_WAIT;
        }
        tracing::warn!(plugin = %spec.program, of = teller.owner.as_str(), why, again_in = ?wait, "a plugin has ended");
        teller.tell(Happening::Ended { why, wait });
        tokio::select! {
            () = sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            _ = &mut stop => return,
        }
    }
}
