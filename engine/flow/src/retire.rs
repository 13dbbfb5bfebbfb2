//! What becomes of the sessions that a member of a group serves when it goes down, is drained or is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::account::TargetCounters;

/// What a group does with the sessions of a member that goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// They go on.
    #[default]
    Keep,
    /// They are ended, each at a moment drawn from this time.
    Close {
        /// Zero ends all at once.
        over: Duration,
    },
}

/// The order to end the sessions that a group has given to one of its members. Targets are known by their counters,
/// which they keep across snapshots.
#[derive(Debug)]
pub struct Retirement {
    pub(crate) group: Arc<TargetCounters>,
    pub(crate) member: Arc<TargetCounters>,
    pub(crate) over: Duration,
    revoked: AtomicBool,
}

impl Retirement {
    /// The sessions of `member` in `group` are to end within `over`.
    pub fn new(group: Arc<TargetCounters>, member: Arc<TargetCounters>, over: Duration) -> Retirement {
        Retirement { group, member, over, revoked: AtomicBool::new(false) }
    }

    /// The member is back: sessions that still run go on.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    /// Whether it is not to be carried out any further.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }
}
