//! Bulk that is held to a rate, so that a small load beside it meets the same neighbour at every forwarder.

use std::time::{Duration, Instant};

/// A stream may run this far ahead before it rests: short beside a latency that is measured in milliseconds.
const AHEAD: Duration = Duration::from_millis(1);

/// A clock that bytes push forward.
pub(crate) struct Pace {
    bytes_per_second: f64,
    paid_until: Instant,
}

impl Pace {
    /// `now` is when the first byte may go.
    pub(crate) fn new(bytes_per_second: f64, now: Instant) -> Pace {
        Pace { bytes_per_second, paid_until: now }
    }

    /// Counts bytes that went through, and says until when to rest if that was too much.
    #[expect(clippy::cast_precision_loss, reason = "one transfer's bytes fit 53 bits")]
    pub(crate) fn handle_moved(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        // What was not used in time is lost: catching up would be the burst this is here to avoid.
        let from = self.paid_until.max(now.checked_sub(AHEAD).unwrap_or(now));
        self.paid_until = from + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        (self.paid_until > now + AHEAD).then_some(self.paid_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_bytes_rests_about_a_second() {
        let now = Instant::now();
        let mut pace = Pace::new(1_000.0, now);
        let until = pace.handle_moved(1_000, now).expect("a second's bytes at once are too many");
        assert_eq!(until - now, Duration::from_secs(1));
    }

    #[test]
    fn bytes_within_the_rate_never_rest() {
        let mut now = Instant::now();
        let mut pace = Pace::new(1_000_000.0, now);
        for _ in 0..1_000 {
            now += Duration::from_millis(1);
            assert_eq!(pace.handle_moved(1_000, now), None);
        }
    }

    #[test]
    fn a_pause_is_not_caught_up() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000.0, start);
        let late = start + Duration::from_secs(10);
        let until = pace.handle_moved(1_000, late).expect("the ten idle seconds are lost");
        assert!(until > late + Duration::from_millis(900));
    }
}
