//! Instructions of the hot functions, counted by callgrind: the same on every run, unlike time, so that a step back of
//! one per cent shows.
//!
//!     cargo install --version 0.20.0 gungraun-runner    # once; and valgrind, from the system
//!     cargo bench --bench instructions
//!
//! Says so and does nothing where either is missing.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on is to stop")]
#![allow(missing_docs, unused_qualifications, reason = "what gungraun's macros make")]
#![allow(clippy::print_stdout, reason = "a bench prints what it found")]

#[path = "support/acting.rs"]
mod acting;
#[allow(dead_code, reason = "its own tests have helpers")]
#[path = "../engine/src/timers.rs"]
mod timers;
#[path = "support/world.rs"]
mod world;

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use gungraun::{library_benchmark, library_benchmark_group};
use ringweir_flow::account::TargetCounters;
use ringweir_flow::session::Session;
use ringweir_flow::snapshot::{Group, Policy, Protocol, TargetIndex, TargetKind, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

use crate::timers::Wheel;

/// A view of a group, the group, and its index; one pick was made.
type Pool = (Rc<View>, Group, TargetIndex);

fn pool(policy: Policy, members: u32) -> Pool {
    let group = world::group(policy, members);
    let mut targets: Vec<_> = (0..members)
        .map(|index| world::endpoint(format!("member-{index}"), ([192, 0, 2, 1], index as u16).into()))
        .collect();
    targets.push(world::target("pool", TargetKind::Group(group.clone())));
    let index = TargetIndex(members);
    let snapshot = Arc::new(world::snapshot(world::listener(Protocol::Tcp, index), targets));
    let pool = (View::new(snapshot, WorkerIndex(0), 1), group, index);
    pick_one(&pool);
    pool
}

fn pick_one((view, group, index): &Pool) -> usize {
    let may = |member: usize| view.snapshot().target(group.members[member].target).health.is_available();
    view.pick(*index, group, acting::SUBJECT, Instant::ZERO, may).unwrap()
}

#[library_benchmark]
#[bench::round_robin_10(pool(Policy::RoundRobin, 10))]
#[bench::round_robin_100(pool(Policy::RoundRobin, 100))]
#[bench::random_10(pool(Policy::Random, 10))]
#[bench::random_100(pool(Policy::Random, 100))]
#[bench::least_connections_10(pool(Policy::LeastConnections, 10))]
#[bench::least_connections_100(pool(Policy::LeastConnections, 100))]
#[bench::failover_10(pool(Policy::Failover, 10))]
fn pick(pool: Pool) -> Pool {
    black_box(pick_one(black_box(&pool)));
    pool
}

/// A view, and what clients say there. One session was served.
type Served = (Rc<View>, &'static [&'static [u8]]);

fn served(protocol: Protocol, said: &'static [&'static [u8]]) -> Served {
    let view = acting::view(protocol);
    drop(acting::accept_to_pump(Rc::clone(&view), said));
    (view, said)
}

#[library_benchmark]
#[bench::tcp(served(Protocol::Tcp, &[]))]
#[bench::socks5(served(Protocol::Socks5, acting::SOCKS5))]
#[bench::http_connect(served(Protocol::Http, acting::HTTP_CONNECT))]
fn accept_to_pump((view, said): Served) -> Session {
    acting::accept_to_pump(black_box(view), said)
}

/// An open session that has moved a message each way.
fn pumping() -> Session {
    let mut session = acting::accept_to_pump(acting::view(Protocol::Tcp), &[]);
    acting::begin(&mut session);
    acting::ping_pong(&mut session, Instant::ZERO);
    session
}

#[library_benchmark]
#[bench::tcp(pumping())]
fn ping_pong(mut session: Session) -> Session {
    acting::ping_pong(black_box(&mut session), Instant::from_micros(7));
    session
}

#[library_benchmark]
#[bench::tcp(pumping())]
fn end(mut session: Session) -> Session {
    acting::end(black_box(&mut session));
    session
}

/// A wheel with a thousand idle timeouts of an hour, and a node to spare.
fn wheel() -> Wheel<u64> {
    let mut wheel = Wheel::new(Instant::ZERO);
    for index in 0..1_000 {
        let _ = wheel.set(Instant::from_micros(3_600_000_000 + index * 997), index);
    }
    let timer = wheel.set(Instant::from_micros(1), 0);
    wheel.cancel(timer);
    wheel
}

#[library_benchmark]
#[bench::among_1000(wheel())]
fn timer_set_and_cancel(mut wheel: Wheel<u64>) -> Wheel<u64> {
    let timer = black_box(&mut wheel).set(Instant::ZERO + Duration::from_secs(10), 0);
    wheel.cancel(timer);
    wheel
}

#[library_benchmark]
#[bench::among_1000(wheel())]
fn timer_next_wait(wheel: Wheel<u64>) -> Wheel<u64> {
    black_box(black_box(&wheel).next_wait(Instant::ZERO));
    wheel
}

// A turn of the worker in which no timer is due.
#[library_benchmark]
#[bench::among_1000(wheel())]
fn timer_expire_none(mut wheel: Wheel<u64>) -> Wheel<u64> {
    let mut fired = Vec::new();
    black_box(&mut wheel).expire(Instant::from_micros(50), &mut fired);
    assert!(fired.is_empty());
    wheel
}

#[library_benchmark]
#[bench::own_cell(TargetCounters::new(2))]
fn count(counters: TargetCounters) -> TargetCounters {
    black_box(&counters).cell(WorkerIndex(1)).bytes_up.add(64);
    counters
}

library_benchmark_group!(
    name = hot;
    benchmarks = pick, accept_to_pump, ping_pong, end, timer_set_and_cancel, timer_next_wait, timer_expire_none, count
);

/// Where gungraun's own `main` can be called from.
mod counted {
    use super::hot;

    gungraun::main!(library_benchmark_groups = hot);

    pub(super) fn run() {
        main();
    }
}

/// What has to be there, with an argument upon which it does nothing, and how to get it.
const NEEDED: [(&str, &str); 2] = [
    ("valgrind", "apt-get install valgrind"),
    ("gungraun-runner", "cargo install --version 0.20.0 gungraun-runner"),
];

fn main() {
    // The runner starts this program again, under callgrind.
    let is_counted = std::env::args().any(|argument| argument == "--gungraun-run");
    let missing = NEEDED.iter().find(|(program, _)| !is_counted && !can_run(program));
    if let Some((program, remedy)) = missing {
        println!("SKIPPED: no instructions are counted without {program} ({remedy})");
        return;
    }
    counted::run();
}

fn can_run(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
