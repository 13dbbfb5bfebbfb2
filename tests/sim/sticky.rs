//! Groups that remember whom they served, over random schedules of members that go down, refuse, are removed and come
//! back: a client is served by the same member for as long as that can be; one whose member is lost goes to another,
//! and stays there when the lost one returns.

use std::cell::Cell;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::affinity::{Affinity, Binding, Settings};
use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::pick::HashKey;
use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::{
    Group, Health, Listener, ListenerIndex, Member, Policy, Protocol, Snapshot, Target, TargetIndex,
    TargetKind, Upstream, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

const MEMBERS: usize = 5;
const CLIENTS: usize = 4;
const WORKERS: usize = 2;
const TTL: Duration = Duration::from_secs(60);

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Wait { seconds: u64 },
    /// Control has found something out about a member.
    Judge { member: usize, health: Health },
    /// A member begins to refuse connections, or accepts them again; nobody has noticed yet.
    Turn { member: usize, accepts: bool },
    /// A reload puts a member into the group, or takes it out.
    Reload { member: usize, belongs: bool },
    /// A client opens so many connections at once, each at either worker.
    Come { client: usize, workers: Vec<usize> },
}

fn step() -> impl Strategy<Value = Step> {
    let healths = vec![Health::Up, Health::Up, Health::Unknown, Health::Down, Health::Draining];
    let judged = (0..MEMBERS, prop::sample::select(healths));
    let turned = (0..MEMBERS, prop::bool::weighted(0.6));
    let reloaded = (0..MEMBERS, prop::bool::weighted(0.7));
    let come = (0..CLIENTS, prop::collection::vec(0..WORKERS, 1..4));
    prop_oneof![
        1 => (1u64..80).prop_map(|seconds| Step::Wait { seconds }),
        2 => judged.prop_map(|(member, health)| Step::Judge { member, health }),
        1 => turned.prop_map(|(member, accepts)| Step::Turn { member, accepts }),
        1 => reloaded.prop_map(|(member, belongs)| Step::Reload { member, belongs }),
        6 => come.prop_map(|(client, workers)| Step::Come { client, workers }),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(vec![
        Policy::RoundRobin,
        Policy::Random,
        Policy::LeastConnections,
        Policy::LeastLatency,
        Policy::Failover,
    ])
}

#[derive(Clone, Copy, Debug)]
struct State {
    health: Health,
    accepts: bool,
    belongs: bool,
}

impl State {
    fn may_be_picked(self) -> bool {
        self.belongs && self.health.is_available()
    }
}

struct World {
    policy: Policy,
    binding: Binding,
    members: [State; MEMBERS],
    table: Arc<Affinity>,
    listener: Arc<ListenerCounters>,
    counters: Vec<Arc<TargetCounters>>,
    views: Vec<Rc<View>>,
    now: Instant,
    /// Who served each client last, and until when that is remembered.
    served: [Option<(usize, Instant)>; CLIENTS],
}

/// What the schedules have shown, lest they show nothing.
#[derive(Debug, Default)]
struct Seen {
    /// A client came again to the one that had served it.
    stayed: Cell<u32>,
    /// Its member was not to be picked.
    lost: Cell<u32>,
    /// Its member refused.
    refused: Cell<u32>,
    /// It came when the time was up.
    forgotten: Cell<u32>,
    /// Nobody served it.
    unserved: Cell<u32>,
}

/// A session that waits for a connection.
struct Open {
    session: Session,
    attempt: Option<(AttemptId, usize)>,
    tried: Vec<usize>,
}

impl World {
    fn new(policy: Policy, binding: Binding) -> World {
        let size = NonZeroUsize::new(1000).unwrap();
        let mut world = World {
            policy,
            binding,
            members: [State { health: Health::Unknown, accepts: true, belongs: true }; MEMBERS],
            table: Arc::new(Affinity::new(Settings { key: HashKey::Source, ttl: TTL, size, binding })),
            listener: Arc::new(ListenerCounters::new(WORKERS)),
            counters: (0..=MEMBERS).map(|_| Arc::new(TargetCounters::new(WORKERS))).collect(),
            views: Vec::new(),
            now: Instant::ZERO,
            served: [None; CLIENTS],
        };
        let snapshot = world.snapshot();
        let view = |worker| View::new(Arc::clone(&snapshot), WorkerIndex(worker), worker as u64);
        world.views = (0..WORKERS).map(view).collect();
        world
    }

    /// Only members that belong to the group are known, so that positions move with every reload.
    fn snapshot(&self) -> Arc<Snapshot> {
        let upstream = |(member, state): (usize, &State)| {
            let kind = TargetKind::Upstream(Upstream::Tcp([address(member)].into()));
            let target = Target::new(format!("member-{member}"), kind, Arc::clone(&self.counters[member]));
            state.belongs.then_some(Target { health: state.health, ..target })
        };
        let mut targets: Vec<Target> = self.members.iter().enumerate().filter_map(upstream).collect();
        let root = TargetIndex(targets.len() as u32);
        let members: Arc<[Member]> =
            (0..root.0).map(|index| Member::primary(TargetIndex(index), 1)).collect();
        let mut group = Group::new(self.policy, members, MEMBERS as u32, Duration::from_secs(4));
        group.affinity = Some(Arc::clone(&self.table));
        let counters = Arc::clone(&self.counters[MEMBERS]);
        targets.push(Target::new("group", TargetKind::Group(group), counters));
        let listener = Listener::new("in", Protocol::Tcp, root, Arc::clone(&self.listener));
        Arc::new(Snapshot::new(vec![listener], targets))
    }

    fn publish(&mut self) {
        let snapshot = self.snapshot();
        for view in &mut self.views {
            *view = view.succeeded_by(Arc::clone(&snapshot));
        }
    }

    fn take(&mut self, step: Step, seen: &Seen) -> TestCaseResult {
        match step {
            Step::Wait { seconds } => self.now = self.now + Duration::from_secs(seconds),
            Step::Judge { member, health } => {
                self.members[member].health = health;
                self.publish();
            }
            Step::Turn { member, accepts } => self.members[member].accepts = accepts,
            Step::Reload { member, belongs } => {
                self.members[member].belongs = belongs;
                self.publish();
            }
            Step::Come { client, workers } => self.come(client, &workers, seen)?,
        }
        Ok(())
    }

    fn come(&mut self, client: usize, workers: &[usize], seen: &Seen) -> TestCaseResult {
        let remembered = self.served[client].filter(|(_, until)| self.now < *until).map(|(member, _)| member);
        let sessions: Vec<Open> = workers.iter().map(|&worker| self.begin(client, worker)).collect();
        if let Some(member) = remembered.filter(|&member| self.members[member].may_be_picked()) {
            let first: Vec<_> = sessions.iter().map(|open| &open.tried[..]).collect();
            prop_assert!(first.iter().all(|tried| *tried == [member]), "{member} was not first: {first:?}");
        }
        let could = |member: usize| self.members[member].may_be_picked() && self.members[member].accepts;
        let winners: Vec<_> = sessions.into_iter().map(|open| self.finish(open)).collect();
        for winner in &winners {
            prop_assert!(winner.map_or_else(|| !(0..MEMBERS).any(could), could), "{winner:?} served");
        }
        let winner = winners[winners.len() - 1];
        if self.binding == Binding::AtPick {
            prop_assert!(winners.iter().all(|other| *other == winner), "not together: {winners:?}");
        }
        self.note(client, remembered, winner, seen);
        self.served[client] = winner.map(|member| (member, self.now + TTL));
        Ok(())
    }

    fn note(&self, client: usize, remembered: Option<usize>, winner: Option<usize>, seen: &Seen) {
        let cell = match (remembered, winner) {
            (_, None) => &seen.unserved,
            (Some(member), Some(winner)) if member == winner => &seen.stayed,
            (Some(member), Some(_)) if self.members[member].may_be_picked() => &seen.refused,
            (Some(_), Some(_)) => &seen.lost,
            (None, Some(_)) if self.served[client].is_some() => &seen.forgotten,
            (None, Some(_)) => return,
        };
        cell.set(cell.get() + 1);
    }

    /// Up to the first connect, which is not answered yet.
    fn begin(&self, client: usize, worker: usize) -> Open {
        let client = ClientAddr::Ip(SocketAddr::from(([10, 0, 0, client as u8], 4_000)));
        let session = Session::new(Rc::clone(&self.views[worker]), ListenerIndex(0), client, self.now);
        let mut open = Open { session, attempt: None, tried: Vec::new() };
        open.look();
        open
    }

    /// Every connect is answered; who served.
    fn finish(&self, mut open: Open) -> Option<usize> {
        while let Some((attempt, member)) = open.attempt.take() {
            if self.members[member].accepts {
                open.session.handle_connected(attempt, None, self.now);
            } else {
                open.session.handle_connect_failed(attempt, ConnectError::Refused, self.now);
            }
            open.look();
        }
        let winner = open.tried.last().copied().filter(|_| open.session.is_pumping());
        open.session.handle_stop(CloseReason::Stopped);
        open.look();
        open.session.handle_closed(self.now);
        winner
    }
}

impl Open {
    /// Carries out what the session wants.
    fn look(&mut self) {
        while let Some(command) = self.session.poll_command() {
            if let Command::Connect { attempt, address, .. } = command {
                let UpstreamAddr::Tcp(address) = address else { panic!("{address:?}") };
                let member = usize::from(address.port()) - 1;
                self.tried.push(member);
                self.attempt = Some((attempt, member));
            }
        }
    }
}

/// The port tells the member.
fn address(member: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], member as u16 + 1))
}

#[test]
fn a_client_stays_with_its_member_until_that_is_lost_and_then_with_the_one_that_served_instead() {
    for binding in [Binding::AtPick, Binding::AtCommit] {
        let seen = Seen::default();
        let schedules = (policy(), prop::collection::vec(step(), 1..80));
        let config = Config { cases: 1_000, failure_persistence: None, ..Config::default() };
        let held = TestRunner::new(config).run(&schedules, |(policy, steps)| {
            let mut world = World::new(policy, binding);
            steps.into_iter().try_for_each(|step| world.take(step, &seen))
        });
        assert!(held.is_ok(), "{binding:?}: {}", held.unwrap_err());
        let counts = [&seen.stayed, &seen.lost, &seen.refused, &seen.forgotten, &seen.unserved];
        println!("{binding:?}: {seen:?}");
        assert!(counts.iter().all(|count| count.get() > 200), "the schedules show too little: {seen:?}");
    }
}
