//! The wall clock of this process, as Shadowsocks wants it: one for all, set once a second.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use ringweir_flow::wire::shadowsocks::Clock;

/// The clock.
pub(crate) fn wall() -> Arc<Clock> {
    static CLOCK: OnceLock<Arc<Clock>> = OnceLock::new();
    Arc::clone(CLOCK.get_or_init(|| Arc::new(Clock::new(unix_s()))))
}

/// Sets it to what the system says now.
pub(crate) fn set() {
    wall().set(unix_s());
}

fn unix_s() -> u64 {
    // A system that stands before 1970 knows no time.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
