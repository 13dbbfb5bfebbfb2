//! Time as plain data. The driver owns the clock; flow is told what time it is.

use std::ops::Add;
use std::time::Duration;

/// A moment, in microseconds since an origin of the driver's choosing (usually its start).
///
/// `std::time::Instant` cannot be made from a number, so a simulation could not replay it; this can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The origin.
    pub const ZERO: Instant = Instant(0);

    /// The moment `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Instant {
        Instant(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates: a deadline of half a million years is as good as none.
    fn add(self, span: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_saturates_and_add_does_not_overflow() {
        let later = Instant::ZERO + Duration::from_millis(2);
        assert_eq!(later.since(Instant::ZERO), Duration::from_millis(2));
        assert_eq!(Instant::ZERO.since(later), Duration::ZERO);
        assert_eq!((later + Duration::MAX).as_micros(), u64::MAX);
    }
}
