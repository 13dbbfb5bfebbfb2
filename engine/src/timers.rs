//! One timer wheel per worker. Its next deadline is the timeout of the ring's wait.
//!
//! Four levels of 64 buckets with a tick of a millisecond reach 4.6 hours; what lies beyond waits in the last bucket and
//! is put back. Buckets are lists through one table of nodes, so that a timer is cancelled in constant time and leaves
//! nothing behind: a session of a millisecond must not cost memory until its timeout of an hour.

use std::time::Duration;

use ringweir_flow::time::Instant;

const LEVELS: usize = 4;
const BUCKET_BITS: u32 = 6;
const BUCKETS: usize = 1 << BUCKET_BITS;
const TICK_MICROS: u64 = 1_000;

/// The list of timers whose deadline had passed when they were set, behind those of all buckets.
const DUE: usize = LEVELS * BUCKETS;

/// No node.
const NONE: u32 = u32::MAX;

/// Names a timer until it fires or is cancelled; then the name may be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerId(u32);

/// A wheel of timers, each bearing a `K`.
#[derive(Debug)]
pub(crate) struct Wheel<K> {
    /// The tick up to which everything has fired.
    tick: u64,
    /// By level; bit n: bucket n is not empty.
    occupied: [u64; LEVELS],
    /// The first node of each list.
    heads: [u32; DUE + 1],
    nodes: Vec<Node<K>>,
    /// The first unused node.
    free: u32,
}

#[derive(Debug)]
struct Node<K> {
    deadline: Instant,
    key: K,
    /// The list it is in.
    list: usize,
    previous: u32,
    next: u32,
}

impl<K: Copy> Wheel<K> {
    pub(crate) fn new(now: Instant) -> Wheel<K> {
        Wheel {
            tick: now.as_micros() / TICK_MICROS,
            occupied: [0; LEVELS],
            heads: [NONE; DUE + 1],
            nodes: Vec::new(),
            free: NONE,
        }
    }

    /// Fires at `deadline` or up to a tick later, never before.
    pub(crate) fn set(&mut self, deadline: Instant, key: K) -> TimerId {
        let node = Node { deadline, key, list: DUE, previous: NONE, next: NONE };
        let index = if self.free == NONE {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = std::mem::replace(&mut self.nodes[index as usize], node).next;
            index
        };
        self.link(index);
        TimerId(index)
    }

    /// Takes a timer back that has neither fired nor been cancelled.
    pub(crate) fn cancel(&mut self, timer: TimerId) {
        self.unlink(timer.0);
        self.nodes[timer.0 as usize].next = std::mem::replace(&mut self.free, timer.0);
    }

    /// How long the worker may sleep; `None` when no timer is set.
    pub(crate) fn next_wait(&self, now: Instant) -> Option<Duration> {
        if self.heads[DUE] != NONE {
            return Some(Duration::ZERO);
        }
        let tick = (0..LEVELS).filter_map(|level| self.next_tick(level)).min()?;
        Some(Instant::from_micros(tick.saturating_mul(TICK_MICROS)).since(now))
    }

    /// Moves everything whose deadline has come into `fired`.
    pub(crate) fn expire(&mut self, now: Instant, fired: &mut Vec<K>) {
        let target = now.as_micros() / TICK_MICROS;
        self.fire(DUE, fired);
        while self.tick < target {
            // Empty stretches are jumped over: the next tick at which any bucket is to be looked at.
            let next = (0..LEVELS).filter_map(|level| self.next_tick(level)).min();
            let Some(next) = next.filter(|next| *next <= target) else {
                self.tick = target;
                return;
            };
            self.tick = next;
            for level in (1..LEVELS).rev() {
                if next.trailing_zeros() >= BUCKET_BITS * level as u32 {
                    self.cascade(list_of(next, level));
                }
            }
            self.fire(list_of(next, 0), fired);
            self.fire(DUE, fired);
        }
    }

    /// Puts the timers of a list where they belong by now.
    fn cascade(&mut self, list: usize) {
        let mut index = self.heads[list];
        while index != NONE {
            let next = self.nodes[index as usize].next;
            self.unlink(index);
            self.link(index);
            index = next;
        }
    }

    fn fire(&mut self, list: usize, fired: &mut Vec<K>) {
        while self.heads[list] != NONE {
            let index = self.heads[list];
            fired.push(self.nodes[index as usize].key);
            self.cancel(TimerId(index));
        }
    }

    fn link(&mut self, index: u32) {
        let tick = self.nodes[index as usize].deadline.as_micros().div_ceil(TICK_MICROS);
        let list = match tick.checked_sub(self.tick) {
            None | Some(0) => DUE,
            Some(distance) => {
                let level = (0..LEVELS).find(|&level| distance < 1 << (BUCKET_BITS * (level as u32 + 1)));
                let farthest = self.tick + (1 << (BUCKET_BITS * LEVELS as u32)) - 1;
                list_of(tick.min(farthest), level.unwrap_or(LEVELS - 1))
            }
        };
        let next = std::mem::replace(&mut self.heads[list], index);
        let node = &mut self.nodes[index as usize];
        (node.list, node.previous, node.next) = (list, NONE, next);
        if next != NONE {
            self.nodes[next as usize].previous = index;
        }
        if list != DUE {
            self.occupied[list / BUCKETS] |= 1 << (list % BUCKETS);
        }
    }

    fn unlink(&mut self, index: u32) {
        let Node { list, previous, next, .. } = self.nodes[index as usize];
        if previous == NONE {
            self.heads[list] = next;
        } else {
            self.nodes[previous as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if list != DUE && self.heads[list] == NONE {
            self.occupied[list / BUCKETS] &= !(1 << (list % BUCKETS));
        }
    }

    /// The first tick after the present at which a bucket of this level is to be looked at.
    fn next_tick(&self, level: usize) -> Option<u64> {
        let occupied = self.occupied[level];
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

fn list_of(tick: u64, level: usize) -> usize {
    level * BUCKETS + (tick >> (BUCKET_BITS * level as u32)) as usize % BUCKETS
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
                for deadline in fired.drain(..) {
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

    #[test]
    fn cancelled_timers_neither_fire_nor_stay() {
        let mut wheel = Wheel::new(at(0));
        let mut fired = Vec::new();
        for round in 0..1_000u64 {
            let timers: Vec<_> = (0..7).map(|n| wheel.set(at(round + n * n * 97), n)).collect();
            for timer in [3, 0, 6, 1, 5] {
                wheel.cancel(timers[timer]);
            }
            wheel.cancel(timers[2]);
            wheel.cancel(timers[4]);
            wheel.expire(at(round), &mut fired);
        }
        assert_eq!((fired.len(), wheel.nodes.len()), (0, 7));
        assert_eq!(wheel.next_wait(at(1_000)), None);
    }
}
