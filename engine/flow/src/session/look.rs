//! The look at what a client says first, before a target is picked.

use super::{Session, Stage};
use crate::time::Instant;
use crate::wire::peek::Sight;

impl Session {
    /// Looks at what the client has said so far; goes on when that is clear. The bytes stay where they are: they are
    /// the first that the upstream gets.
    pub(super) fn look(&mut self, now: Instant) {
        let Some(setup) = &mut self.setup else { return };
        let Stage::Peeking { peek, .. } = &mut setup.stage else { return };
        let peeked = match peek.look(&setup.early) {
            Sight::Incomplete => return,
            Sight::Seen(peeked) => Some(peeked),
            Sight::Other => None,
        };
        if self.view.snapshot().log_sessions {
            self.name = peeked.as_ref().and_then(|peeked| peeked.host().cloned());
        }
        setup.peeked = peeked.map(Box::new);
        self.set_out(now);
    }
}
