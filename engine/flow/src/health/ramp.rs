//! Slow start: a target that returns gets its share of the sessions little by little.

use std::time::Duration;

use crate::time::Instant;

/// In how many steps a weight grows; in a group of which a member grows, all weights are multiplied by it.
pub const RAMP_STEPS: u32 = 10;

/// A weight that grows linearly from a tenth to the whole over a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    began_at: Instant,
    span: Duration,
}

impl Ramp {
    /// Grows from now on, over `span`.
    pub fn new(span: Duration, now: Instant) -> Ramp {
        Ramp { began_at: now, span }
    }

    /// How many [`RAMP_STEPS`] of the whole weight are given, at least 1.
    pub fn steps(&self, now: Instant) -> u32 {
        let passed = now.since(self.began_at);
        if passed >= self.span {
            return RAMP_STEPS;
        }
        let steps = passed.as_micros() * u128::from(RAMP_STEPS) / self.span.as_micros().max(1);
        // Below RAMP_STEPS, as passed is below span.
        1.max(steps as u32)
    }

    /// Whether the weight is whole.
    pub fn is_over(&self, now: Instant) -> bool {
        self.steps(now) == RAMP_STEPS
    }

    /// When the next step is due, unless it is over.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let next = self.steps(now) + 1;
        // Rounded up, so that the step is there when the timer says so.
        let after =
            (self.span * next.min(RAMP_STEPS)).div_f64(f64::from(RAMP_STEPS)) + Duration::from_micros(1);
        (next <= RAMP_STEPS).then(|| self.began_at + after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_weight_grows_linearly() {
        let ramp = Ramp::new(Duration::from_secs(100), Instant::ZERO);
        let steps = |seconds| ramp.steps(Instant::ZERO + Duration::from_secs(seconds));
        assert_eq!([steps(0), steps(19), steps(20), steps(55), steps(99), steps(100)], [1, 1, 2, 5, 9, 10]);
    }

    proptest! {
        #[test]
        fn the_timer_leads_through_every_step_to_the_end(span_ms in 1u64..1_000_000, start in 0u64..1_000_000) {
            let mut now = Instant::from_micros(start);
            let ramp = Ramp::new(Duration::from_millis(span_ms), now);
            let mut seen = vec![ramp.steps(now)];
            while let Some(next) = ramp.poll_timeout(now) {
                prop_assert!(next > now && seen.len() < 20);
                now = next;
                seen.push(ramp.steps(now));
            }
            prop_assert_eq!(seen, (1..=RAMP_STEPS).collect::<Vec<_>>());
            prop_assert!(ramp.is_over(now));
        }
    }
}
