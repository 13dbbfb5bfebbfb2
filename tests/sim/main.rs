//! Seeded simulation of `flow`: clients, upstreams, a resolver and an adversarial driver, in virtual time.
//!
//! Every schedule follows from its seed. `SIM_SEED=n cargo test -p ringweir-flow --test sim` takes one of them again
//! and prints each step; `SIM_SCHEDULES=n` runs more than usual.

// All of this crate is tests, helpers included; a replay prints.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod attempts;
mod client;
mod driver;
mod faults;
mod full;
mod invariants;
mod peer;
mod rules;
mod schedule;
mod sealed;
mod sticky;
mod world;

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ringweir_flow::close::CloseReason;

use crate::faults::Fault;
use crate::schedule::{Report, Trace};

/// Enough that each of the rare meetings of rare events is seen many times.
const SCHEDULES: u64 = 100_000;

/// In how many schedules each fault is made.
const STRUCK: u32 = 100;

/// How many of the last steps a failure shows.
const TAIL: usize = 60;

#[test]
fn invariants_hold_in_every_schedule() {
    quiet_panics();
    if let Some(seed) = number_from("SIM_SEED") {
        let verdict = schedule::run(seed, None, Trace::Printed).verdict;
        assert_eq!(verdict, Ok(()), "seed {seed}");
        return;
    }
    let schedules = number_from("SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let Counts { closed: counts, ways } = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| run_until_one_fails(&next, schedules, &failed))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).reduce(add).unwrap()
    });
    let seed = failed.into_inner();
    assert!(seed == u64::MAX, "{}", explain(seed));
    for (reason, count) in CloseReason::ALL.into_iter().zip(counts) {
        if matches!(
            reason,
            CloseReason::ClientReplayed | CloseReason::UpstreamProtocol | CloseReason::UpstreamFull
        ) {
            // Of what is sealed, or full; sealed.rs and full.rs see to them.
            continue;
        }
        println!("{reason:>24}: {count}");
        assert!(count > 0 || schedules < SCHEDULES, "no session ended as {reason}: the simulation is blind");
    }
    for (what, count) in ["to pipe", "to buffer", "pipe refused"].into_iter().zip(ways) {
        println!("{what:>24}: {count}");
        assert!(count > 0 || schedules < SCHEDULES, "{what}: never, the simulation is blind");
    }
}

#[test]
fn every_fault_of_a_driver_is_noticed() {
    quiet_panics();
    for fault in Fault::ALL {
        let (mut struck, mut noticed) = (0, 0);
        for seed in 0..SCHEDULES {
            let report = run(seed, Some(fault));
            struck += u32::from(report.as_ref().map_or(true, |report| report.strikes > 0));
            noticed += u32::from(report.map_or(true, |report| report.verdict.is_err()));
            if struck == STRUCK {
                break;
            }
        }
        println!("{fault:?}: noticed in {noticed} of {struck} schedules");
        // Not always: a session may end before a mistake shows, or in a way that hides it.
        assert!(struck == STRUCK && noticed * 4 >= struck, "{fault:?}: noticed {noticed} times of {struck}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..200 {
        let traces = [(); 2].map(|()| schedule::run(seed, None, Trace::Kept(Vec::new())).trace);
        assert!(traces[0] == traces[1] && !traces[0].is_empty(), "seed {seed}");
    }
}

#[derive(Default)]
struct Counts {
    closed: [u64; CloseReason::ALL.len()],
    /// As [`Report::ways`].
    ways: [u64; 3],
}

fn add(mut a: Counts, b: Counts) -> Counts {
    a.closed.iter_mut().zip(b.closed).for_each(|(a, b)| *a += b);
    a.ways.iter_mut().zip(b.ways).for_each(|(a, b)| *a += b);
    a
}

fn run_until_one_fails(next: &AtomicU64, schedules: u64, failed: &AtomicU64) -> Counts {
    quiet_panics();
    let mut counts = Counts::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= schedules || failed.load(Ordering::Relaxed) != u64::MAX {
            return counts;
        }
        match run(seed, None) {
            Ok(Report { verdict: Ok(()), closed, ways, .. }) => {
                closed.iter().for_each(|reason| counts.closed[reason.index()] += 1);
                counts.ways.iter_mut().zip(ways).for_each(|(sum, count)| *sum += count);
            }
            Ok(_) | Err(_) => {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    }
}

/// A schedule, or what flow panicked with.
fn run(seed: u64, fault: Option<Fault>) -> thread::Result<Report> {
    IS_QUIET.with(|quiet| quiet.set(true));
    let report = panic::catch_unwind(AssertUnwindSafe(|| schedule::run(seed, fault, Trace::Off)));
    IS_QUIET.with(|quiet| quiet.set(false));
    report
}

fn explain(seed: u64) -> String {
    let replay = format!("replay it with SIM_SEED={seed} cargo test -p ringweir-flow --test sim");
    match panic::catch_unwind(AssertUnwindSafe(|| schedule::run(seed, None, Trace::Kept(Vec::new())))) {
        Ok(report) => {
            let tail = report.trace[report.trace.len().saturating_sub(TAIL)..].join("\n");
            let violation = report.verdict.err().unwrap_or_default();
            format!("seed {seed}: {violation}\n{tail}\nseed {seed}: {violation}\n{replay}")
        }
        Err(_panic) => format!("seed {seed}: flow panicked, as told above; {replay}"),
    }
}

thread_local! {
    /// Whether a panic is expected to be caught and judged.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that are caught from filling the screen.
fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.with(Cell::get) {
                usual(info);
            }
        }));
    });
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
