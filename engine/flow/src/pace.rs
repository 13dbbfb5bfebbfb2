//! Rates: how often something may happen, and how many bytes may pass.
//!
//! A [`Meter`] is a token bucket, kept as one number: the moment when everything that was taken is paid for (GCRA, the
//! generic cell rate algorithm of ITU-T I.371). Whoever takes from several cores takes by compare-and-swap.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::pump::Direction;
use crate::time::Instant;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// What may come at once of what may come in a second: all of it.
const BURST_OF_EVENTS: Duration = Duration::from_secs(1);

/// How far bytes may run ahead of their rate: a pause that is shorter would cost more than it evens out.
const BURST_OF_BYTES: Duration = Duration::from_millis(50);

/// How often, or how much, in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// `per_second` of them in a second; `None` for 0.
    pub fn new(per_second: u64) -> Option<Rate> {
        NonZeroU64::new(per_second).map(Rate)
    }

    /// How long `amount` of them take.
    fn time_of(self, amount: u64) -> u64 {
        let nanos = u128::from(amount) * NANOS_PER_SECOND / u128::from(self.0.get());
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// What was taken at a rate, as the moment in nanoseconds when it is paid for.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Takes one more event, if the rate allows it.
    pub fn admits(&self, rate: Rate, now: Instant) -> bool {
        let now = nanos(now);
        let take = |paid: u64| admitted(paid, rate, now);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Takes `bytes`; says when the next may be taken, if that is not now.
    pub fn charge(&self, rate: Rate, bytes: u64, now: Instant) -> Option<Instant> {
        let (now, cost) = (nanos(now), rate.time_of(bytes));
        let take = |paid: u64| Some(paid.max(now).saturating_add(cost));
        let before = match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(before) | Err(before) => before,
        };
        let paid = before.max(now).saturating_add(cost);
        let next = paid.saturating_sub(BURST_OF_BYTES.as_nanos() as u64);
        // No sooner than it is due: the next microsecond.
        (next > now).then(|| Instant::from_micros(next.div_ceil(1000)))
    }
}

/// When everything is paid for, with one more event; `None` when that is too many.
fn admitted(paid: u64, rate: Rate, now: u64) -> Option<u64> {
    let paid = paid.max(now).saturating_add(rate.time_of(1));
    // Of less than one in a second one may come all the same.
    let most = (BURST_OF_EVENTS.as_nanos() as u64).max(rate.time_of(1));
    (paid - now <= most).then_some(paid)
}

fn nanos(now: Instant) -> u64 {
    now.as_micros().saturating_mul(1000)
}

/// Workers that look at once seldom meet in one of so many.
const SHARDS: usize = 16;

/// How many sources a part knows. Each has come within the last second; beyond them nobody is known, and nobody refused.
const MAX_SOURCES: usize = 4096;

/// How often each source has come.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Drawn at the start: clients cannot aim at each other's part.
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, u64>>; SHARDS],
}

impl Arrivals {
    /// Takes note of one more from a source, if the rate allows it.
    pub fn admits(&self, source: IpAddr, rate: Rate, now: Instant) -> bool {
        let shard = &self.shards[self.hasher.hash_one(source) as usize % SHARDS];
        // What a panic elsewhere has left is sound: each entry stands for itself.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = nanos(now);
        if shard.len() >= MAX_SOURCES && !shard.contains_key(&source) {
            shard.retain(|_, paid| *paid > now);
            if shard.len() >= MAX_SOURCES {
                return true;
            }
        }
        let paid = shard.entry(source).or_insert(0);
        match admitted(*paid, rate, now) {
            Some(next) => {
                *paid = next;
                true
            }
            None => false,
        }
    }
}

/// Bytes a second each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// From clients.
    pub up: Option<Rate>,
    /// To clients.
    pub down: Option<Rate>,
}

impl Rates {
    /// Whether nothing is bounded.
    pub fn is_unlimited(self) -> bool {
        self.up.is_none() && self.down.is_none()
    }

    fn of(self, direction: Direction) -> Option<Rate> {
        match direction {
            Direction::Up => self.up,
            Direction::Down => self.down,
        }
    }
}

/// What has passed each way.
#[derive(Debug, Default)]
pub struct Meters([Meter; 2]);

impl Meters {
    /// Whether nothing has ever passed.
    pub(crate) fn are_untouched(&self) -> bool {
        !self.0.iter().any(|meter| meter.0.load(Ordering::Relaxed) > 0)
    }

    /// Whether something is not paid for yet.
    pub(crate) fn owe(&self, now: Instant) -> bool {
        self.0.iter().any(|meter| meter.0.load(Ordering::Relaxed) > nanos(now))
    }
}

/// The rates that hold for a session, and what they are measured by.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The rates.
    pub rates: Rates,
    /// Shared with all sessions that they hold for together.
    pub meters: Arc<Meters>,
}

/// The bounds of one session, and until when it waits for them.
#[derive(Debug, Default)]
pub(crate) struct Pacing {
    bounds: Vec<Bound>,
    /// By direction.
    resumes_at: [Option<Instant>; 2],
}

impl Pacing {
    /// `None` when nothing is bounded.
    pub(crate) fn new(bounds: impl IntoIterator<Item = Bound>) -> Option<Box<Pacing>> {
        let bounds: Vec<_> = bounds.into_iter().filter(|bound| !bound.rates.is_unlimited()).collect();
        (!bounds.is_empty()).then(|| Box::new(Pacing { bounds, resumes_at: [None; 2] }))
    }

    /// So many bytes came; whether the next must wait.
    pub(crate) fn charge(&mut self, direction: Direction, bytes: u64, now: Instant) -> bool {
        let waits = self.bounds.iter().filter_map(|bound| {
            bound.meters.0[direction as usize].charge(bound.rates.of(direction)?, bytes, now)
        });
        let until = waits.max();
        self.resumes_at[direction as usize] = until;
        until.is_some()
    }

    /// The directions that need not wait any longer.
    pub(crate) fn resume(&mut self, now: Instant) -> impl Iterator<Item = Direction> {
        let [up, down] = &mut self.resumes_at;
        let up = up.take_if(|at| *at <= now).map(|_| Direction::Up);
        let down = down.take_if(|at| *at <= now).map(|_| Direction::Down);
        [up, down].into_iter().flatten()
    }

    /// When the next wait is over.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.resumes_at.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    fn rate(per_second: u64) -> Rate {
        Rate::new(per_second).unwrap()
    }

    #[test]
    fn a_second_s_worth_may_come_at_once_and_then_one_at_a_time() {
        let meter = Meter::default();
        let admitted = |now| (0..100).filter(|_| meter.admits(rate(10), at(now))).count();
        assert_eq!(admitted(5_000), 10);
        assert_eq!(admitted(5_099), 0);
        assert_eq!(admitted(5_100), 1);
        assert_eq!(admitted(5_400), 3);
        assert_eq!(admitted(60_000), 10, "what was not taken is not saved");
    }

    #[test]
    fn bytes_wait_for_what_ran_ahead() {
        let meter = Meter::default();
        assert_eq!(meter.charge(rate(1_000_000), 50_000, at(0)), None, "50 ms are nobody's loss");
        assert_eq!(meter.charge(rate(1_000_000), 100_000, at(0)), Some(at(100)));
        assert_eq!(meter.charge(rate(1_000_000), 1_000, at(150)), None, "everything is paid for");
        assert_eq!(meter.charge(rate(1), u64::MAX, at(0)).map(|at| at > Instant::ZERO), Some(true));
    }

    #[test]
    fn sources_are_told_apart_and_their_number_is_bounded() {
        let arrivals = Arrivals::default();
        let source = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(number));
        assert!(arrivals.admits(source(1), rate(1), at(0)));
        assert!(!arrivals.admits(source(1), rate(1), at(999)));
        assert!(arrivals.admits(source(2), rate(1), at(999)));
        for number in 0..200_000 {
            arrivals.admits(source(number), rate(1), at(1_000));
        }
        let known = |arrivals: &Arrivals| -> usize {
            arrivals.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
        };
        assert!(known(&arrivals) <= SHARDS * MAX_SOURCES);
        assert!(!arrivals.admits(source(0), rate(1), at(1_500)), "who is known stays so");
        for number in 300_000..300_100 {
            arrivals.admits(source(number), rate(1), at(3_000));
        }
        assert!(known(&arrivals) < SHARDS * MAX_SOURCES, "and is forgotten when it no longer matters");
    }

    proptest! {
        /// However sessions take, and wait as they are told, no more passes than the rate and one turn of each allow.
        #[test]
        fn sessions_share_a_rate_evenly(sessions in 1usize..6, per_second in 1_000u64..10_000_000) {
            let meters = Arc::new(Meters::default());
            let rates = Rates { up: Rate::new(per_second), down: None };
            let bound = || Bound { rates, meters: Arc::clone(&meters) };
            let mut pacings: Vec<_> = (0..sessions).map(|_| Pacing::new([bound()]).unwrap()).collect();
            let (chunk, seconds) = ((per_second / 100).max(1), 10u64);
            let mut passed = vec![0u64; sessions];
            for now in (0..seconds * 1000).map(at) {
                for (pacing, passed) in pacings.iter_mut().zip(&mut passed) {
                    let _ = pacing.resume(now).count();
                    if pacing.poll_timeout().is_none() {
                        pacing.charge(Direction::Up, chunk, now);
                        *passed += chunk;
                    }
                }
            }
            let all: u64 = passed.iter().sum();
            let most = per_second * seconds + per_second / 10 + chunk * sessions as u64;
            prop_assert!(all <= most, "{all} of {most}");
            prop_assert!(all * 100 >= per_second * seconds * 80, "{all} of {}", per_second * seconds);
            let (least, greatest) = (passed.iter().min().unwrap(), passed.iter().max().unwrap());
            prop_assert!(greatest - least <= greatest / 5 + 2 * chunk, "{passed:?}");
        }
    }
}
