//! Time of the small things that every session or byte pays for: a pick, a view, a handshake, the steps of a pump, a
//! timer, a counter.
//!
//!     cargo bench --bench micro                    # everything, about two minutes
//!     cargo bench --bench micro -- pick/random     # those whose name has the words

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on is to stop")]

#[path = "support/acting.rs"]
mod acting;
// The wheel is the io_uring engine's own and nobody else's to use: the file is taken, not the crate opened up for it.
#[allow(dead_code, reason = "its own tests have helpers")]
#[path = "../engine/src/timers.rs"]
mod timers;
#[path = "support/world.rs"]
mod world;

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use ringweir_flow::account::TargetCounters;
use ringweir_flow::pick::HashKey;
use ringweir_flow::record::ClientAddr;
use ringweir_flow::rules::list::{Format, List};
use ringweir_flow::rules::names::{Builder, Reach};
use ringweir_flow::rules::{Action, Condition, Domains, Facts, NamedList, Rule, RuleCounters, Rules};
use ringweir_flow::snapshot::{
    Group, ListenerIndex, Policy, Protocol, Snapshot, TargetIndex, TargetKind, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;
use ringweir_flow::wire::Destination;

use crate::timers::Wheel;

/// How many targets a group has, from the common to the absurd.
const SIZES: [u32; 5] = [2, 10, 16, 256, 10_000];

const POLICIES: [(&str, Policy); 6] = [
    ("least-latency", Policy::LeastLatency),
    ("hash", Policy::Hash(HashKey::Source)),
    ("round-robin", Policy::RoundRobin),
    ("random", Policy::Random),
    ("least-connections", Policy::LeastConnections),
    ("failover", Policy::Failover),
];

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(30);
    targets = pick, pick_beside_another, views, sessions, rules, timers_of_a_worker, counters
}
criterion_main!(benches);

/// A group over `members` endpoints, and its index.
fn pool(policy: Policy, members: u32) -> (Arc<Snapshot>, TargetIndex, Group) {
    let group = world::group(policy, members);
    let mut targets: Vec<_> = (0..members)
        .map(|index| world::endpoint(format!("member-{index}"), ([192, 0, 2, 1], index as u16).into()))
        .collect();
    targets.push(world::target("pool", TargetKind::Group(group.clone())));
    let index = TargetIndex(members);
    (Arc::new(world::snapshot(world::listener(Protocol::Tcp, index), targets)), index, group)
}

/// One pick as dispatch makes it: among the members that are up.
fn pick_one(view: &View, index: TargetIndex, group: &Group) -> usize {
    let may = |member: usize| view.snapshot().target(group.members[member].target).health.is_available();
    view.pick(index, group, acting::SUBJECT, Instant::ZERO, may).unwrap()
}

fn pick(criterion: &mut Criterion) {
    for (name, policy) in POLICIES {
        let mut benches = criterion.benchmark_group(format!("pick/{name}"));
        for members in SIZES {
            let (snapshot, index, group) = pool(policy, members);
            let view = View::new(snapshot, WorkerIndex(0), 1);
            benches.bench_function(BenchmarkId::from_parameter(members), |bencher| {
                bencher.iter(|| pick_one(black_box(&view), index, &group));
            });
        }
        benches.finish();
    }
}

/// One worker's picks while another picks from the same snapshot, each counting what it picked. What they share is
/// read alone, but for the sums of `least-connections`, whose cells the other writes.
fn pick_beside_another(criterion: &mut Criterion) {
    for (name, policy) in POLICIES {
        let mut benches = criterion.benchmark_group(format!("two-pickers/{name}"));
        let (snapshot, index, group) = pool(policy, 16);
        let dispatch = |view: &View| {
            let member = pick_one(view, index, &group);
            let target = view.snapshot().target(group.members[member].target);
            let cell = target.counters.cell(view.worker());
            cell.active.add(1);
            cell.attempts.add(1);
            cell.active.sub(1);
        };
        let view = View::new(Arc::clone(&snapshot), WorkerIndex(0), 1);
        benches.bench_function("alone", |bencher| bencher.iter(|| dispatch(black_box(&view))));
        beside(
            || {
                let view = View::new(Arc::clone(&snapshot), WorkerIndex(1), 2);
                move || dispatch(black_box(&view))
            },
            || {
                benches.bench_function("beside", |bencher| bencher.iter(|| dispatch(black_box(&view))));
            },
        );
        benches.finish();
    }
}

/// Runs `measured` while another thread repeats what `prepare` gives it there.
fn beside<W: FnMut()>(prepare: impl Fn() -> W + Send, measured: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let is_over = &is_over;
        scope.spawn(move || {
            let mut work = prepare();
            ready.send(()).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                work();
            }
        });
        is_ready.recv().unwrap();
        measured();
        is_over.store(true, Ordering::Relaxed);
    });
}

fn views(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("view");
    let (snapshot, ..) = pool(Policy::RoundRobin, 16);
    let view = View::new(snapshot, WorkerIndex(0), 1);
    benches.bench_function("load", |bencher| bencher.iter(|| Rc::clone(black_box(&view))));
    for members in [10, 100, 10_000] {
        let (snapshot, ..) = pool(Policy::RoundRobin, members);
        benches.bench_function(BenchmarkId::new("new", members), |bencher| {
            bencher.iter(|| View::new(Arc::clone(black_box(&snapshot)), WorkerIndex(0), 1));
        });
        let view = View::new(Arc::clone(&snapshot), WorkerIndex(0), 1);
        benches.bench_function(BenchmarkId::new("succeed-unchanged", members), |bencher| {
            bencher.iter(|| view.succeeded_by(Arc::clone(black_box(&snapshot))));
        });
        let (larger, ..) = pool(Policy::RoundRobin, members + 1);
        benches.bench_function(BenchmarkId::new("succeed-with-a-newcomer", members), |bencher| {
            bencher.iter(|| view.succeeded_by(Arc::clone(black_box(&larger))));
        });
    }
    benches.finish();
}

fn sessions(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("session");
    let protocols: [(&str, Protocol, &[&[u8]]); 3] = [
        ("tcp", Protocol::Tcp, &[]),
        ("socks5", Protocol::Socks5, acting::SOCKS5),
        ("http-connect", Protocol::Http, acting::HTTP_CONNECT),
    ];
    for (name, protocol, said) in protocols {
        let view = acting::view(protocol);
        benches.bench_function(BenchmarkId::new("accept-to-pump", name), |bencher| {
            let accept = |view| acting::accept_to_pump(view, black_box(said));
            bencher.iter_batched(|| Rc::clone(&view), accept, BatchSize::SmallInput);
        });
    }
    let view = acting::view(Protocol::Tcp);
    benches.bench_function("whole-life/tcp", |bencher| {
        bencher.iter(|| {
            let mut session = acting::accept_to_pump(Rc::clone(&view), &[]);
            acting::begin(&mut session);
            acting::ping_pong(&mut session, Instant::ZERO);
            acting::end(&mut session);
        });
    });
    let mut session = acting::accept_to_pump(view, &[]);
    acting::begin(&mut session);
    let mut micros = 0;
    benches.bench_function("ping-pong", |bencher| {
        bencher.iter(|| {
            micros += 1;
            acting::ping_pong(black_box(&mut session), Instant::from_micros(micros));
        });
    });
    benches.finish();
}

/// A rule with these conditions, which rejects.
fn rule(conditions: Vec<Condition>) -> Rule {
    let hits = Arc::new(RuleCounters::new(world::WORKERS));
    Rule { name: "rule".into(), conditions: conditions.into(), action: Action::Reject, hits }
}

/// What a session that no rule is about pays for them, which is the most; and what a large list costs.
fn rules(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("rules");
    let client = ClientAddr::Ip(([10, 1, 2, 3], 40_000).into());
    let destination = Destination::from_host(b"www.some-name.elsewhere.example", 443).unwrap();
    let (listener, otherwise) = (ListenerIndex(0), TargetIndex(0));
    let facts = Facts {
        listener,
        user: Some("ann"),
        client: &client,
        destination: Some(&destination),
        sni: None,
        alpn: &[],
        host: None,
        path: None,
    };
    for count in [10, 1_000] {
        let rules = (0..count).map(|index: u32| {
            let mut names = Builder::default();
            names.add(&format!("name-{index}.example"), Reach::Whole).unwrap();
            rule(match index % 4 {
                0 | 1 => vec![Condition::Domain(Arc::new(Domains::new(names, &[], &[]).unwrap()))],
                2 => vec![Condition::User([format!("user-{index}").into()].into())],
                _ => vec![
                    Condition::Port([443..=443].into()),
                    Condition::Source(Arc::new(
                        [IpNet::new([192, 0, 2, 0].into(), 24).unwrap()].into_iter().collect(),
                    )),
                ],
            })
        });
        let rules = Rules::new(rules.collect());
        benches.bench_function(BenchmarkId::new("none-matches", count), |bencher| {
            bencher.iter(|| rules.decide(black_box(&facts), otherwise));
        });
    }
    let names: String =
        (0..300_000u64).map(|index| format!(".{:x}.example\n", index * 0x9e37_79b9)).collect();
    let content = Arc::new(List::read(names.as_bytes(), Format::Plain).unwrap());
    let named = NamedList { name: "large".into(), content };
    let rules = Rules::new(vec![rule(vec![Condition::List([named].into())])]);
    for (what, name) in
        [("list-300000-miss", "www.some-name.elsewhere.example"), ("list-300000-hit", "www.9e3779b9.example")]
    {
        // Many names, so that not one of them alone is in the caches.
        let destinations: Vec<Destination> = (0..4096)
            .map(|index: u64| {
                let known = format!("www.{:x}.example", (index * 73 + 1) * 0x9e37_79b9);
                let name = if what.ends_with("hit") { known } else { format!("{index}.{name}") };
                Destination::from_host(name.as_bytes(), 443).unwrap()
            })
            .collect();
        let mut turn = 0;
        benches.bench_function(what, |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % destinations.len();
                rules.decide(&Facts { destination: Some(&destinations[turn]), ..facts }, otherwise)
            });
        });
    }
    benches.finish();
}

/// Deadlines as sessions have them: connects of seconds among idle timeouts of an hour.
fn timers_of_a_worker(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("timers");
    for others in [0u64, 10_000] {
        let mut wheel = Wheel::new(Instant::ZERO);
        for index in 0..others {
            let _ = wheel.set(Instant::from_micros(3_600_000_000 + index * 997), index);
        }
        let now = Instant::ZERO;
        benches.bench_function(BenchmarkId::new("set-and-cancel", others), |bencher| {
            bencher.iter(|| {
                let timer = wheel.set(black_box(now + Duration::from_secs(10)), 0);
                wheel.cancel(timer);
            });
        });
        benches.bench_function(BenchmarkId::new("next-wait", others), |bencher| {
            bencher.iter(|| black_box(&wheel).next_wait(now));
        });
    }
    for timers in [100u64, 10_000] {
        benches.bench_function(BenchmarkId::new("set-and-expire", timers), |bencher| {
            let (mut wheel, mut fired, mut now) = (Wheel::new(Instant::ZERO), Vec::new(), Instant::ZERO);
            bencher.iter(|| {
                for index in 0..timers {
                    let _ = wheel.set(now + Duration::from_micros(index * 1_009 % 1_000_000), index);
                }
                now = now + Duration::from_secs(2);
                wheel.expire(now, &mut fired);
                assert_eq!(fired.len() as u64, timers);
                fired.clear();
            });
        });
    }
    benches.finish();
}

/// What counting costs, alone and beside a worker that counts the same target in its own cell; and, to compare, the
/// shared atomic number that is not used.
fn counters(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("counters");
    let counters = TargetCounters::new(2);
    let count = |worker: usize| black_box(&counters).cell(WorkerIndex(worker)).bytes_up.add(64);
    benches.bench_function("own-cell/alone", |bencher| bencher.iter(|| count(0)));
    beside(
        || || count(1),
        || {
            benches.bench_function("own-cell/beside", |bencher| bencher.iter(|| count(0)));
        },
    );
    let shared = AtomicU64::new(0);
    let count_shared = || black_box(&shared).fetch_add(64, Ordering::Relaxed);
    benches.bench_function("shared/alone", |bencher| bencher.iter(count_shared));
    beside(
        || {
            || {
                count_shared();
            }
        },
        || {
            benches.bench_function("shared/beside", |bencher| bencher.iter(count_shared));
        },
    );
    for workers in [1, 2, 16] {
        let counters = TargetCounters::new(workers);
        benches.bench_function(BenchmarkId::new("sum", workers), |bencher| {
            bencher.iter(|| black_box(&counters).sum(|cell| &cell.active));
        });
    }
    benches.finish();
}
