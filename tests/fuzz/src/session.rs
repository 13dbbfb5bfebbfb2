//! A whole session: whatever clients, upstreams, resolvers and the clock do, in whatever order, the upstream hears what
//! the client said and the client what the upstream did, every connect is answered for, and the session comes to an end.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::close::ConnectError;
use ringweir_flow::dial::AttemptId;
use ringweir_flow::pump::{Direction, Side, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::resolve::ResolveError;
use ringweir_flow::session::{Command, MAX_EARLY_BYTES, Session};
use ringweir_flow::snapshot::{
    Commit, FirstHop, Group, Hop, Listener, ListenerIndex, Member, Policy, Protocol, Proxy, Route, Snapshot,
    Target, TargetIndex, TargetKind, Towards, Upstream, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::users::Users;
use ringweir_flow::verify::Verdict;
use ringweir_flow::view::View;
use ringweir_flow::way::{Refusal, Way};
use ringweir_flow::wire::Destination;

use crate::Script;

/// More than one thing that happens ever brings about.
const MAX_COMMANDS: usize = 64;

/// More than any session has, once nobody does anything any longer.
const MAX_TIMEOUTS: usize = 64;

/// What is said to whom, of a session that goes through no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// The upstream hears the client from the first byte on, and the client hears nobody else.
    All,
    /// The beginning is between the client and the session.
    Some,
    /// The session has words for the upstream, too.
    Mixed,
}

fn upstreams() -> Vec<TargetKind> {
    let at = |host: u8| SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 80));
    let tcp = |host| TargetKind::Upstream(Upstream::Tcp([at(host), at(host + 100)].into()));
    let proxied = |proxy, towards| {
        let first = FirstHop::Tcp([at(9)].into());
        TargetKind::Upstream(Upstream::Proxied(Arc::new(Route {
            first,
            hops: [Hop { proxy, towards }].into(),
        })))
    };
    let fixed = || Towards::Fixed(Destination::from_host(b"a.example", 443).unwrap());
    let race = Policy::Race { stagger: Duration::from_millis(300), parallel: 2 };
    let group = |policy, members: &[u32], commit| {
        let members = members.iter().map(|target| Member::primary(TargetIndex(*target), 1)).collect();
        let mut group = Group::new(policy, members, 4, Duration::from_secs(10));
        group.commit = commit;
        TargetKind::Group(group)
    };
    vec![
        tcp(1),
        tcp(2),
        proxied(Proxy::Socks5(None), fixed()),
        proxied(Proxy::Http(None), fixed()),
        TargetKind::Upstream(Upstream::Direct),
        proxied(Proxy::Socks5(None), Towards::Client),
        group(Policy::Failover, &[0, 1], None),
        group(race, &[0, 1], Some(Commit::FirstByte)),
        group(race, &[2, 1, 3], Some(Commit::Handshake)),
        group(race, &[3, 2], Some(Commit::FirstByte)),
        group(Policy::RoundRobin, &[7, 0], None),
    ]
}

/// What a session is to go through, by the first bytes of an input.
fn view(script: &mut Script<'_>) -> Option<(Rc<View>, Words)> {
    let (protocol, target) = (script.byte()?, script.byte()?);
    let is_peeking = protocol & 32 != 0;
    let has_users = protocol & 64 != 0;
    let protocol = match protocol & 7 {
        0 | 1 => Protocol::Tcp,
        2 => Protocol::Socks5,
        3 => Protocol::Socks,
        4 | 5 => Protocol::Http,
        _ => Protocol::Mixed,
    };
    let kinds = upstreams();
    let mut root = usize::from(target) % kinds.len();
    // Control refuses plain listeners in front of what wants to know where to.
    if protocol == Protocol::Tcp && (root == 4 || root == 5) {
        root = 0;
    }
    let words = match (protocol, root) {
        (_, 2 | 3 | 5 | 8 | 9) | (Protocol::Http | Protocol::Mixed, _) => Words::Mixed,
        (Protocol::Tcp, _) => Words::All,
        _ => Words::Some,
    };
    let mut listener =
        Listener::new("in", protocol, TargetIndex(root as u32), Arc::new(ListenerCounters::new(1)));
    if protocol == Protocol::Tcp && is_peeking {
        listener.peek = Some(Duration::from_millis(500));
    }
    if protocol != Protocol::Tcp && has_users {
        let mut users = Users::default();
        users.insert(b"ann", b"secret");
        users.insert_hashed(b"bob", "hash of secret");
        listener.users = Some(Arc::new(users));
    }
    let target = |(number, kind): (usize, TargetKind)| {
        Target::new(number.to_string(), kind, Arc::new(TargetCounters::new(1)))
    };
    let targets = kinds.into_iter().enumerate().map(target).collect();
    let snapshot = Arc::new(Snapshot { log_sessions: true, ..Snapshot::new(vec![listener], targets) });
    Some((View::new(snapshot, WorkerIndex(0), 1), words))
}

/// A connect, and what was said on it.
struct Attempt {
    id: AttemptId,
    state: Dialled,
    told: Vec<u8>,
    heard: Vec<u8>,
    hears_ahead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialled {
    UnderWay,
    Open,
    Over,
}

/// A direction of the pump.
#[derive(Default)]
struct Lane {
    awaits: Option<Way>,
    sending: Option<usize>,
    held: Vec<u8>,
    is_shut: bool,
}

struct World {
    session: Session,
    view: Rc<View>,
    words: Words,
    now: Instant,
    said: Vec<u8>,
    has_ended: bool,
    told_client: Vec<u8>,
    /// What is for the upstream, though it is not known which one.
    told_upstream: Vec<u8>,
    attempts: Vec<Attempt>,
    lookups: usize,
    questions: usize,
    shuts_down: bool,
    winner: Option<usize>,
    lanes: [Lane; 2],
    is_closed: bool,
}

pub(crate) fn session(data: &[u8]) {
    let mut script = Script::new(data);
    let Some((view, words)) = view(&mut script) else { return };
    let client = ClientAddr::Ip("192.0.2.200:40000".parse().unwrap());
    let mut world = World {
        session: Session::new(Rc::clone(&view), ListenerIndex(0), client, Instant::ZERO),
        view,
        words,
        now: Instant::ZERO,
        said: Vec::new(),
        has_ended: false,
        told_client: Vec::new(),
        told_upstream: Vec::new(),
        attempts: Vec::new(),
        lookups: 0,
        questions: 0,
        shuts_down: false,
        winner: None,
        lanes: [Lane::default(), Lane::default()],
        is_closed: false,
    };
    world.carry_out();
    while let Some(event) = script.byte() {
        if world.is_closed {
            break;
        }
        world.happen(event, &mut script);
        world.carry_out();
    }
    world.wait_for_its_end();
}

/// One of those attempts, if there are any.
fn choose(
    attempts: &mut [Attempt],
    pick: usize,
    is_meant: impl Fn(&Attempt) -> bool,
) -> Option<&mut Attempt> {
    let count = attempts.iter().filter(|attempt| is_meant(attempt)).count();
    attempts.iter_mut().filter(|attempt| is_meant(attempt)).nth(pick % count.max(1))
}

impl World {
    fn happen(&mut self, event: u8, script: &mut Script<'_>) {
        let pick = usize::from(event >> 4);
        match event & 15 {
            0..=2 => self.client_says(script),
            3 => self.client_ends(pick),
            4 | 5 => self.connect_ends(pick, None),
            6 => self.connect_ends(pick, script.byte()),
            7 | 8 => self.upstream_says(pick, script),
            9 => self.upstream_ends(pick),
            10 => self.send(pick, script),
            11 => self.pass(Duration::from_millis(10 * u64::from(script.byte().unwrap_or(1)))),
            12 => self.answer_lookup(script),
            13 => self.answer_question(pick),
            14 => self.hitch(pick),
            _ => self.pass(Duration::from_secs(7)),
        }
    }

    fn client_says(&mut self, script: &mut Script<'_>) {
        if self.has_ended {
            return;
        }
        let up = &mut self.lanes[Direction::Up as usize];
        if self.session.is_pumping() {
            if up.awaits.is_none() {
                return;
            }
        } else if !self.session.wants_bytes() {
            return;
        }
        let length = script.byte().map_or(0, usize::from);
        let bytes = script.take(length);
        if bytes.is_empty() {
            return;
        }
        self.said.extend_from_slice(bytes);
        match self.session.is_pumping() {
            true => {
                up.awaits = None;
                up.held.extend_from_slice(bytes);
                self.session.handle_received(Direction::Up, bytes.len(), self.now);
            }
            false => self.session.handle_bytes(bytes, self.now),
        }
    }

    fn client_ends(&mut self, pick: usize) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let is_failure = pick & 1 == 1;
        if !self.session.is_pumping() {
            match is_failure {
                true => self.session.handle_client_failed(),
                false => self.session.handle_client_ended(),
            }
        } else if self.lanes[Direction::Up as usize].awaits.take().is_some() {
            self.end(Direction::Up, is_failure);
        } else {
            self.has_ended = false;
        }
    }

    fn end(&mut self, direction: Direction, is_failure: bool) {
        match is_failure {
            true => self.session.handle_receive_failed(direction),
            false => self.session.handle_ended(direction, self.now),
        }
    }

    fn connect_ends(&mut self, pick: usize, error: Option<u8>) {
        let waits = |attempt: &Attempt| attempt.state == Dialled::UnderWay;
        let Some(attempt) = choose(&mut self.attempts, pick, waits) else { return };
        match error {
            None => {
                attempt.state = Dialled::Open;
                let local = Some("192.0.2.77:5000".parse().unwrap());
                self.session.handle_connected(attempt.id, local, self.now);
            }
            Some(error) => {
                attempt.state = Dialled::Over;
                let error = match error & 3 {
                    0 => ConnectError::Refused,
                    1 => ConnectError::TimedOut,
                    2 => ConnectError::OutOfResources,
                    _ => ConnectError::Other(5),
                };
                self.session.handle_connect_failed(attempt.id, error, self.now);
            }
        }
    }

    fn upstream_says(&mut self, pick: usize, script: &mut Script<'_>) {
        let (now, is_pumping) = (self.now, self.session.is_pumping());
        let length = script.byte().map_or(0, usize::from);
        let bytes = script.take(length);
        if bytes.is_empty() {
            return;
        }
        if is_pumping {
            let down = &mut self.lanes[Direction::Down as usize];
            if down.awaits.take().is_some() {
                down.held.extend_from_slice(bytes);
                self.session.handle_received(Direction::Down, bytes.len(), now);
            }
        } else if let Some(attempt) = choose(&mut self.attempts, pick, |attempt| attempt.hears_ahead) {
            attempt.hears_ahead = false;
            attempt.heard.extend_from_slice(bytes);
            let id = attempt.id;
            self.session.handle_received_ahead(id, bytes, now);
        }
    }

    fn upstream_ends(&mut self, pick: usize) {
        let now = self.now;
        if self.session.is_pumping() {
            if self.lanes[Direction::Down as usize].awaits.take().is_some() {
                self.end(Direction::Down, pick & 1 == 1);
            }
        } else if let Some(attempt) = choose(&mut self.attempts, pick / 2, |attempt| attempt.hears_ahead) {
            attempt.hears_ahead = false;
            let id = attempt.id;
            match pick & 1 == 1 {
                true => self.session.handle_failed_ahead(id, now),
                false => self.session.handle_ended_ahead(id, now),
            }
        }
    }

    /// Some of what a direction holds arrives, or cannot.
    fn send(&mut self, pick: usize, script: &mut Script<'_>) {
        let direction = [Direction::Up, Direction::Down][pick & 1];
        let lane = &mut self.lanes[direction as usize];
        let Some(due) = lane.sending.take() else { return };
        if pick == 14 {
            return self.session.handle_send_failed(direction);
        }
        let bytes = match script.byte() {
            Some(some) if some < 128 => 1 + usize::from(some) % due,
            Some(_) | None => due,
        };
        let sent = lane.held.drain(..bytes);
        match direction {
            Direction::Up => self.told_upstream.extend(sent),
            Direction::Down => self.told_client.extend(sent),
        }
        self.session.handle_sent(direction, bytes, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        if self.session.poll_timeout().is_some_and(|due| due <= self.now) {
            self.session.handle_timeout(self.now);
        }
    }

    fn answer_lookup(&mut self, script: &mut Script<'_>) {
        if self.lookups == 0 {
            return;
        }
        self.lookups -= 1;
        let count = script.byte().unwrap_or(1) % 12;
        let addresses = (0..count).map(|host| Ipv4Addr::new(198, 51, 100, host).into()).collect();
        let resolved = if count == 0 { Err(ResolveError::NotFound) } else { Ok(addresses) };
        self.session.handle_resolved(resolved, self.now);
    }

    fn answer_question(&mut self, pick: usize) {
        if self.questions > 0 {
            self.questions -= 1;
            let verdict = [Verdict::Right, Verdict::Wrong, Verdict::Overloaded][pick % 3];
            self.session.handle_verified(verdict, self.now);
        }
    }

    /// A pipe is not to be had, or the client has read its refusal to the end.
    fn hitch(&mut self, pick: usize) {
        if std::mem::take(&mut self.shuts_down) {
            return self.session.handle_shut_down();
        }
        let direction = [Direction::Up, Direction::Down][pick & 1];
        let awaits = &mut self.lanes[direction as usize].awaits;
        if awaits.take_if(|way| matches!(way, Way::Pipe { .. })).is_some() {
            let refusal = Refusal::ALL[pick % Refusal::ALL.len()];
            self.session.handle_pipe_refused(direction, refusal);
        }
    }

    fn carry_out(&mut self) {
        for _ in 0..MAX_COMMANDS {
            match self.session.poll_command() {
                Some(command) => self.obey(command),
                None if self.is_closed || !self.step() => return,
                None => {}
            }
        }
        panic!("more than {MAX_COMMANDS} commands");
    }

    fn attempt(&mut self, id: AttemptId) -> &mut Attempt {
        self.attempts.iter_mut().find(|attempt| attempt.id == id).unwrap()
    }

    fn obey(&mut self, command: Command) {
        assert!(!self.is_closed, "{command:?} after its end");
        match command {
            Command::Send(Side::Client, bytes) => self.told_client.extend_from_slice(&bytes),
            Command::Send(Side::Upstream, bytes) => self.told_upstream.extend_from_slice(&bytes),
            Command::SendAhead(id, bytes) => {
                let attempt = self.attempt(id);
                assert_eq!(attempt.state, Dialled::Open);
                attempt.told.extend_from_slice(&bytes);
                assert!(attempt.told.len() <= 2 * MAX_EARLY_BYTES);
            }
            Command::EndAhead(id) => assert!(self.attempt(id).state == Dialled::Open),
            Command::ReceiveAhead(id) => {
                let attempt = self.attempt(id);
                assert!(attempt.state == Dialled::Open && !attempt.hears_ahead);
                attempt.hears_ahead = true;
            }
            Command::Connect { attempt: id, .. } => {
                assert!(self.attempts.iter().all(|attempt| attempt.id != id), "{id:?} is given twice");
                let (told, heard) = (Vec::new(), Vec::new());
                self.attempts.push(Attempt { id, state: Dialled::UnderWay, told, heard, hears_ahead: false });
            }
            Command::Abandon(id) => {
                let attempt = self.attempt(id);
                assert_ne!(attempt.state, Dialled::Over, "{id:?} was given up, or has failed");
                (attempt.state, attempt.hears_ahead) = (Dialled::Over, false);
            }
            Command::Resolve(_) => self.lookups += 1,
            Command::Verify(_) => self.questions += 1,
            Command::ShutDownClient => self.shuts_down = true,
            Command::NameLocal => self.session.handle_local(None),
            Command::NameDestination(_) | Command::JoinLine(_) => unreachable!("nothing here is so"),
            Command::Pump(id) => self.begin_to_pump(id),
            Command::Close(_) => {
                self.is_closed = true;
                self.session.handle_closed(self.now);
            }
        }
    }

    fn begin_to_pump(&mut self, id: AttemptId) {
        let index = self.attempts.iter().position(|attempt| attempt.id == id).unwrap();
        let others = self.attempts.iter().filter(|attempt| attempt.id != id);
        assert!(others.clone().all(|other| other.state == Dialled::Over), "others are under way still");
        let winner = &mut self.attempts[index];
        assert!(winner.state == Dialled::Open && self.winner.is_none());
        let early = [&*winner.told, &*self.told_upstream].concat();
        self.winner = Some(index);
        match self.words {
            Words::All => {
                assert_eq!(early, self.said);
                assert_eq!(self.told_client, self.attempts[index].heard);
            }
            Words::Some => {
                assert!(self.said.ends_with(&early));
                assert!(self.told_client.ends_with(&self.attempts[index].heard));
            }
            Words::Mixed => {}
        }
        let winner = &mut self.attempts[index];
        if std::mem::take(&mut winner.hears_ahead) {
            let step = self.session.poll_step(Direction::Down);
            let Some(Step::Receive(way)) = step else { panic!("{step:?}") };
            self.lanes[Direction::Down as usize].awaits = Some(way);
        }
    }

    /// Begins what is to be begun; whether there was anything.
    fn step(&mut self) -> bool {
        if !self.session.is_pumping() || self.winner.is_none() {
            return false;
        }
        let mut is_busy = false;
        for direction in [Direction::Up, Direction::Down] {
            let lane = &mut self.lanes[direction as usize];
            if lane.awaits.is_some() || lane.sending.is_some() {
                continue;
            }
            let Some(step) = self.session.poll_step(direction) else { continue };
            assert!(!lane.is_shut, "{step:?} after {direction:?} was shut down");
            let due = if let Step::Send(bytes) = step { bytes } else { 0 };
            // Of what a client says behind its one request over HTTP nothing goes on.
            assert!(
                due == lane.held.len() || due < lane.held.len() && self.words == Words::Mixed,
                "{step:?}"
            );
            lane.held.truncate(due);
            match step {
                Step::Receive(way) => lane.awaits = Some(way),
                Step::Send(bytes) => lane.sending = Some(bytes),
                Step::ShutDown => lane.is_shut = true,
            }
            is_busy = true;
        }
        is_busy
    }

    /// Nothing happens any longer but that time goes by.
    fn wait_for_its_end(mut self) {
        for _ in 0..MAX_TIMEOUTS {
            if self.is_closed {
                break;
            }
            let due = self.session.poll_timeout().expect("an open session has a timeout");
            self.now = self.now.max(due);
            self.session.handle_timeout(self.now);
            self.carry_out();
        }
        assert!(self.is_closed, "it never ends");
        assert_eq!(self.session.poll_command(), None);
        let counters = &self.view.snapshot().listener(ListenerIndex(0)).counters;
        let cell = counters.cell(WorkerIndex(0));
        assert_eq!((cell.accepted.get(), cell.active.get()), (1, 0));
        for target in &self.view.snapshot().targets {
            assert_eq!(target.counters.cell(WorkerIndex(0)).active.get(), 0, "{}", target.name);
        }
        if self.words == Words::All {
            let winner = self.winner.map(|index| &self.attempts[index].told);
            let told = [winner.map_or(&[][..], |told| told), &*self.told_upstream].concat();
            assert!(self.said.starts_with(&told), "the upstream heard what the client did not say");
        }
    }
}
