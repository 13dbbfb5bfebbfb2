//! One timer wheel per worker. Its next deadline is the timeout of the ring's wait.
//!
//! Four levels of 64 buckets with a tick of a millisecond reach 4.6 hours; what lies beyond waits in the last
//! bucket and is put back. Nothing is ever removed: a session that no longer needs a timer lets it fire and looks
//! at its own deadline, which costs one comparison, where keeping places in buckets would cost every session.

use std::time::Duration;

use ringweir_flow::time::Instant;

const LEVELS: usize = 4;
const BUCKET_BITS: u32 = 6;
const BUCKETS: usize = 1 << BUCKET_BITS;
const TICK_MICROS: u64 = 1_000;

/// A wheel of timers, each bearing a `K`.
#[derive(Debug)]
pub(crate) struct Wheel<K> {
    /// The tick up to which everything has fired.
    tick: u64,
    levels: [Level<K>; LEVELS],
    /// Timers whose deadline had passed when they were set.
    due: Vec<(Instant, K)>,
}

#[derive(Debug)]
struct Level<K> {
    /// Bit n: bucket n is not empty.
    occupied: u64,
    buckets: [Vec<(Instant, K)>; BUCKETS],
}

impl<K: Copy> Wheel<K> {
    pub(crate) fn new(now: Instant) -> Wheel<K> {
        let level = || Level { occupied: 0, buckets: std::array::from_fn(|_| Vec::new()) };
        Wheel {
            tick: now.as_micros() / TICK_MICROS,
            levels: std::array::from_fn(|_| level()),
            due: Vec::new(),
        }
    }

    /// Fires at `deadline` or up to a tick later, never before.
    pub(crate) fn set(&mut self, deadline: Instant, key: K) {
        let tick = deadline.as_micros().div_ceil(TICK_MICROS);
        if tick <= self.tick {
            self.due.push((deadline, key));
            return;
        }
        let distance = tick - self.tick;
        let level = (0..LEVELS).find(|&level| distance < 1 << (BUCKET_BITS * (level as u32 + 1)));
        let (level, tick) = match level {
            Some(level) => (level, tick),
            None => (LEVELS - 1, self.tick + (1 << (BUCKET_BITS * LEVELS as u32)) - 1),
        };
        let bucket = bucket_of(tick, level);
        self.levels[level].buckets[bucket].push((deadline, key));
        self.levels[level].occupied |= 1 << bucket;
    }

    /// How long the worker may sleep; `None` when no timer is set.
    pub(crate) fn next_wait(&self, now: Instant) -> Option<Duration> {
        if !self.due.is_empty() {
            return Some(Duration::ZERO);
        }
        let tick = (0..LEVELS).filter_map(|level| self.next_tick(level)).min()?;
        Some(Instant::from_micros(tick.saturating_mul(TICK_MICROS)).since(now))
    }

    /// Moves everything whose deadline has come into `fired`.
    pub(crate) fn expire(&mut self, now: Instant, fired: &mut Vec<(Instant, K)>) {
        let target = now.as_micros() / TICK_MICROS;
        fired.append(&mut self.due);
        while self.tick < target {
            // Empty stretches are jumped over: the next tick at which any bucket is to be looked at.
            let next = (0..LEVELS).filter_map(|level| self.next_tick(level)).min();
            let Some(next) = next.filter(|next| *next <= target) else {
                self.tick = target;
                break;
            };
            self.tick = next;
            for level in (1..LEVELS).rev() {
                if next.trailing_zeros() >= BUCKET_BITS * level as u32 {
                    self.cascade(level, next, fired);
                }
            }
            self.take_bucket(0, bucket_of(next, 0), |deadline, key| fired.push((deadline, key)));
        }
        fired.append(&mut self.due);
    }

    fn cascade(&mut self, level: usize, tick: u64, fired: &mut Vec<(Instant, K)>) {
        let mut moved = Vec::new();
        self.take_bucket(level, bucket_of(tick, level), |deadline, key| moved.push((deadline, key)));
        for (deadline, key) in moved {
            self.set(deadline, key);
        }
        fired.append(&mut self.due);
    }

    fn take_bucket(&mut self, level: usize, bucket: usize, mut each: impl FnMut(Instant, K)) {
        let level = &mut self.levels[level];
        if level.occupied & (1 << bucket) != 0 {
            level.occupied &= !(1 << bucket);
            for (deadline, key) in level.buckets[bucket].drain(..) {
                each(deadline, key);
            }
        }
    }

    /// The first tick after the present at which a bucket of this level is to be looked at.
    fn next_tick(&self, level: usize) -> Option<u64> {
        let occupied = self.levels[level].occupied;
        if occupied == 0 {
            return None;
        }
        let shift = BUCKET_BITS * level as u32;
        let here = self.tick >> shift;
        // Buckets ahead of the present one, the present one last: what stands there is a whole turn away.
        let ahead = occupied.rotate_right((here as u32 + 1) % BUCKETS as u32).trailing_zeros();
        Some((here + 1 + u64::from(ahead)) << shift)
    }
}

fn bucket_of(tick: u64, level: usize) -> usize {
    (tick >> (BUCKET_BITS * level as u32)) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    #[test]
    fn every_timer_fires_once_in_its_tick_whatever_the_steps() {
        let deadlines: Vec<u64> = vec![
            0, 1, 2, 63, 64, 65, 100, 4_095, 4_096, 4_097, 70_000, 262_144, 300_000, 16_777_216, 40_000_000,
        ];
        for step in [1u64, 7, 64, 1_000, 4_096, 100_000] {
            let start = 12_345;
            let mut wheel = Wheel::new(at(start));
            for &deadline in &deadlines {
                wheel.set(at(start + deadline), deadline);
            }
            let (mut now, mut fired, mut seen) = (start, Vec::new(), Vec::new());
            while seen.len() < deadlines.len() {
                // Sleep as told, in steps as a busy worker would wake.
                let wait = wheel.next_wait(at(now)).expect("timers are left").as_millis() as u64;
                now += wait.min(step).max(u64::from(wait > 0));
                wheel.expire(at(now), &mut fired);
                for (_, deadline) in fired.drain(..) {
                    assert!(now >= start + deadline, "{deadline} fired early at {}", now - start);
                    assert!(now - start - deadline <= step, "{deadline} fired late at {}", now - start);
                    seen.push(deadline);
                }
                if step == 1 && now - start > 300_000 {
                    break;
                }
            }
            seen.sort_unstable();
            seen.dedup();
            let expected = if step == 1 { 13 } else { deadlines.len() };
            assert_eq!(seen.len(), expected, "step {step}");
        }
    }

    #[test]
    fn an_empty_wheel_lets_the_worker_sleep() {
        let mut wheel: Wheel<u8> = Wheel::new(at(0));
        assert_eq!(wheel.next_wait(at(0)), None);
        wheel.set(at(250), 1);
        assert!(wheel.next_wait(at(0)).expect("set") <= Duration::from_millis(250));
        wheel.expire(at(251), &mut Vec::new());
        assert_eq!(wheel.next_wait(at(251)), None);
    }
}
