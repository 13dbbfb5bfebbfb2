//! Upstreams that bear no more than so many sessions, and clients that wait for a place, on several workers: nobody has
//! a place too many, no place is lost, and whoever is refused had reason to be.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::capacity::{Capacity, Place, Room};
use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::pump::{Direction, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::{
    Group, Listener, ListenerIndex, Member, Policy, Protocol, Snapshot, Target, TargetIndex, TargetKind,
    Upstream, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

const SCHEDULES: u64 = 3_000;
const WORKERS: usize = 2;

struct World {
    rng: fastrand::Rng,
    now: Instant,
    views: Vec<Rc<View>>,
    capacities: Vec<Arc<Capacity>>,
    rooms: Vec<Room>,
    /// What came to workers' inboxes.
    inbox: Arc<Mutex<Vec<(usize, Place)>>>,
    clients: Vec<Client>,
}

struct Client {
    session: Session,
    /// What is being connected, to whom, and when that is answered.
    dials: Vec<(AttemptId, usize, Instant)>,
    served_by: Option<usize>,
    joined_at: Option<Instant>,
    /// The line was full when it was to be joined.
    was_turned_away: bool,
    closed: Option<CloseReason>,
}

fn address_of(member: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1000 + member as u16))
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let members = rng.usize(1..4);
        let rooms: Vec<Room> = (0..members)
            .map(|_| Room {
                sessions: rng.u32(1..4),
                queue: [0, 1, 5][rng.usize(..3)],
                patience: Duration::from_millis(rng.u64(1..3_000)),
            })
            .collect();
        let capacities: Vec<_> = rooms.iter().map(|room| Arc::new(Capacity::new(*room))).collect();
        let counters = || Arc::new(TargetCounters::new(WORKERS));
        let mut targets: Vec<Target> = (0..members)
            .map(|member| {
                let kind = TargetKind::Upstream(Upstream::Tcp([address_of(member)].into()));
                let mut target = Target::new(format!("{member}"), kind, counters());
                target.capacity = Some(Arc::clone(&capacities[member]));
                target
            })
            .collect();
        let policy = [Policy::Failover, Policy::RoundRobin, Policy::LeastConnections][rng.usize(..3)];
        let list = (0..members as u32).map(|member| Member::primary(TargetIndex(member), 1)).collect();
        let group = Group::new(policy, list, members as u32, Duration::from_secs(4));
        targets.push(Target::new("all", TargetKind::Group(group), counters()));
        let listener = Listener::new(
            "in",
            Protocol::Tcp,
            TargetIndex(members as u32),
            Arc::new(ListenerCounters::new(WORKERS)),
        );
        let snapshot = Arc::new(Snapshot::new(vec![listener], targets));
        let views = (0..WORKERS)
            .map(|worker| View::new(Arc::clone(&snapshot), WorkerIndex(worker), rng.u64(..)))
            .collect();
        let (inbox, clients) = (Arc::default(), Vec::new());
        World { rng, now: Instant::ZERO, views, capacities, rooms, inbox, clients }
    }

    fn come(&mut self) {
        let view = Rc::clone(&self.views[self.rng.usize(..WORKERS)]);
        let address = ClientAddr::Ip("192.0.2.200:40000".parse().unwrap());
        self.clients.push(Client {
            session: Session::new(view, ListenerIndex(0), address, self.now),
            dials: Vec::new(),
            served_by: None,
            joined_at: None,
            was_turned_away: false,
            closed: None,
        });
        self.drive(self.clients.len() - 1);
    }

    /// Something happens to a client.
    fn happen(&mut self, number: usize) {
        let now = self.now;
        let client = &mut self.clients[number];
        let due = client.dials.iter().position(|(.., at)| *at <= now);
        if let Some(at) = due {
            let (attempt, member, _) = client.dials.remove(at);
            if self.rng.u8(..5) == 0 {
                client.session.handle_connect_failed(attempt, ConnectError::Refused, now);
            } else {
                client.served_by = Some(member);
                client.session.handle_connected(attempt, None, now);
            }
        } else if client.session.poll_timeout().is_some_and(|at| at <= now) {
            client.session.handle_timeout(now);
        } else if self.rng.u8(..6) == 0 {
            if client.session.is_pumping() {
                client.session.handle_receive_failed(Direction::Up);
            } else {
                client.session.handle_client_failed();
            }
        }
        self.drive(number);
    }

    fn drive(&mut self, number: usize) {
        let now = self.now;
        let client = &mut self.clients[number];
        loop {
            while let Some(command) = client.session.poll_command() {
                match command {
                    Command::Connect { attempt, address, .. } => {
                        let UpstreamAddr::Tcp(address) = address else { unreachable!("a path") };
                        let after = Duration::from_millis(self.rng.u64(0..300));
                        client.dials.push((attempt, usize::from(address.port()) - 1000, now + after));
                    }
                    Command::Abandon(attempt) => client.dials.retain(|(known, ..)| *known != attempt),
                    Command::JoinLine(line) => {
                        let inbox = Arc::clone(&self.inbox);
                        let wake = Box::new(move |place| inbox.lock().unwrap().push((number, place)));
                        let ticket = line.join(wake);
                        client.was_turned_away = ticket.is_none();
                        client.joined_at.get_or_insert(now);
                        client.session.handle_joined(ticket, now);
                    }
                    Command::Pump(_) => {}
                    Command::Close(closing) => {
                        client.closed = Some(closing.reason);
                        client.served_by = None;
                        client.dials.clear();
                    }
                    Command::Send(..)
                    | Command::ShutDownClient
                    | Command::SendAhead(..)
                    | Command::EndAhead(_)
                    | Command::ReceiveAhead(_)
                    | Command::NameLocal
                    | Command::NameDestination(_)
                    | Command::Resolve(_)
                    | Command::Verify(_) => unreachable!("{command:?} in a world without a word"),
                }
            }
            if client.closed.is_some() || !client.session.is_pumping() {
                return;
            }
            let steps = Direction::BOTH.map(|direction| client.session.poll_step(direction));
            if steps.iter().all(|step| matches!(step, None | Some(Step::Receive(_)))) {
                match client.session.poll_command() {
                    None => return,
                    Some(Command::Close(closing)) => {
                        client.closed = Some(closing.reason);
                        client.served_by = None;
                        return;
                    }
                    Some(other) => unreachable!("{other:?}"),
                }
            }
        }
    }

    /// Workers look into their inboxes, in any order.
    fn deliver(&mut self) -> bool {
        let mut inbox = self.inbox.lock().unwrap();
        if inbox.is_empty() {
            return false;
        }
        let at = self.rng.usize(..inbox.len());
        let (number, place) = inbox.swap_remove(at);
        drop(inbox);
        let client = &mut self.clients[number];
        if client.closed.is_none() {
            client.session.handle_place(place, self.now);
            self.drive(number);
        }
        true
    }

    fn check(&self, seed: u64) {
        for (member, (capacity, room)) in self.capacities.iter().zip(&self.rooms).enumerate() {
            let uses = |client: &&Client| {
                client.served_by == Some(member) || client.dials.iter().any(|(_, to, _)| *to == member)
            };
            let used = self.clients.iter().filter(uses).count();
            let (taken, waiting) = capacity.counts();
            assert!(taken <= room.sessions, "seed {seed}: {taken} of {room:?}");
            assert!(used <= taken as usize, "seed {seed}: {used} at {member}, {taken} places taken");
            assert!(waiting <= room.queue as usize, "seed {seed}: {waiting} of {room:?}");
        }
        for client in &self.clients {
            if client.closed == Some(CloseReason::UpstreamFull) {
                let nobody_waits = self.rooms.iter().all(|room| room.queue == 0);
                let shortest = self.rooms.iter().map(|room| room.patience).min().unwrap();
                let has_waited = client.joined_at.is_some_and(|at| self.now.since(at) >= shortest);
                let any_turned_away = client.was_turned_away || self.rooms.iter().any(|room| room.queue == 0);
                assert!(nobody_waits || has_waited || any_turned_away, "seed {seed}: refused for no reason");
            }
        }
    }
}

fn run(seed: u64, seen: &mut [u64; CloseReason::ALL.len()]) {
    let mut world = World::new(seed);
    for _ in 0..150 {
        match world.rng.u8(..4) {
            0 if world.clients.len() < 40 => world.come(),
            1 => world.now = world.now + Duration::from_millis(world.rng.u64(1..200)),
            2 => drop(world.deliver()),
            _ if !world.clients.is_empty() => {
                let number = world.rng.usize(..world.clients.len());
                if world.clients[number].closed.is_none() {
                    world.happen(number);
                }
            }
            _ => {}
        }
        world.check(seed);
    }
    // Everybody goes home, and every place is free.
    for round in 0..10_000 {
        let open: Vec<usize> =
            (0..world.clients.len()).filter(|number| world.clients[*number].closed.is_none()).collect();
        if open.is_empty() && !world.deliver() {
            break;
        }
        assert!(round < 9_999, "seed {seed}: {} are still open", open.len());
        for number in open {
            world.happen(number);
        }
        world.deliver();
        world.now = world.now + Duration::from_millis(50);
        world.check(seed);
    }
    for capacity in &world.capacities {
        assert_eq!(capacity.counts(), (0, 0), "seed {seed}");
    }
    for client in &world.clients {
        seen[client.closed.unwrap().index()] += 1;
    }
}

#[test]
fn places_are_neither_lost_nor_doubled_and_nobody_waits_for_ever() {
    let mut seen = [0; CloseReason::ALL.len()];
    for seed in 0..crate::number_from("SIM_SCHEDULES").unwrap_or(SCHEDULES) {
        run(seed, &mut seen);
    }
    for reason in [CloseReason::UpstreamFull, CloseReason::ClientReset, CloseReason::ConnectFailed] {
        assert!(seen[reason.index()] > 0, "no session ended as {reason}: the simulation is blind");
    }
}

#[test]
fn no_place_is_lost_or_doubled_between_threads() {
    let room = Room { sessions: 3, queue: 100, patience: Duration::from_secs(1) };
    let capacity = Arc::new(Capacity::new(room));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..2_000 {
                    let place = capacity.take();
                    assert!(capacity.counts().0 <= 3);
                    if place.is_none() {
                        let (tell, told) = mpsc::channel();
                        let ticket = capacity.join(Box::new(move |place| drop(tell.send(place))));
                        if round % 3 == 0 {
                            drop(ticket);
                        } else {
                            drop(told.recv().unwrap());
                        }
                    }
                }
            });
        }
    });
    assert_eq!(capacity.counts(), (0, 0));
}
