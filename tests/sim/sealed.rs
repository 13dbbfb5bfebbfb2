//! Two sessions with a tunnel of Shadowsocks between them: whatever the pieces and the moments, what one end says the
//! other hears; and what is tampered with, cut off or repeated on the way is never taken for genuine or whole.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::close::CloseReason;
use ringweir_flow::dial::AttemptId;
use ringweir_flow::pump::{Closing, Direction, Ending, Side, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::{
    Commit, FirstHop, Group, Hop, Listener, ListenerIndex, Member, Policy, Protocol, Proxy, Route, Snapshot,
    Target, TargetIndex, TargetKind, Towards, Upstream, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;
use ringweir_flow::wire::Destination;
use ringweir_flow::wire::shadowsocks::{Client, Clock, Edition, Key, Method, Secret, Server};

const SCHEDULES: u64 = 4_000;

/// More than any schedule needs.
const MAX_STEPS: usize = 100_000;

/// The longest that one end says: more than a chunk of either edition.
const MAX_BYTES: usize = 150_000;

const SERVER: &str = "192.0.2.1:8388";
const ORIGIN: &str = "198.51.100.7:80";

/// What goes wrong between the two sessions, at a byte of what is on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    Flips(Direction, usize),
    Cuts(Direction, usize),
}

/// Bytes on their way from one socket to another.
#[derive(Debug, Default)]
struct Link {
    bytes: Vec<u8>,
    /// How many were ever sent.
    sent: usize,
    end: Option<Ending>,
    fault: Option<Fault>,
    /// Everything that was sent, as it arrives.
    record: Vec<u8>,
}

impl Link {
    fn send(&mut self, bytes: &[u8]) {
        if self.end.is_some() {
            return;
        }
        let begin = self.sent;
        self.sent += bytes.len();
        let mut bytes = bytes.to_vec();
        match self.fault {
            Some(Fault::Flips(_, at)) if (begin..self.sent).contains(&at) => bytes[at - begin] ^= 0x10,
            Some(Fault::Cuts(_, at)) if at < self.sent => {
                bytes.truncate(at.saturating_sub(begin));
                self.end = Some(Ending::Plain);
            }
            Some(Fault::Nothing | Fault::Flips(..) | Fault::Cuts(..)) | None => {}
        }
        self.record.extend_from_slice(&bytes);
        self.bytes.extend_from_slice(&bytes);
    }

    fn end(&mut self, how: Ending) {
        self.end.get_or_insert(how);
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        self.bytes.drain(..bytes.min(self.bytes.len())).collect()
    }
}

/// The links, by the socket that they lead to.
const TO_NEAR: usize = 0;
const TO_FAR: usize = 1;
const TO_ORIGIN: usize = 2;
const TO_NEAR_BACK: usize = 3;
const TO_CLIENT: usize = 4;
const TO_FAR_BACK: usize = 5;

/// A session and what its driver does.
struct Node {
    session: Session,
    /// Links in and out, by side.
    inward: [usize; 2],
    outward: [usize; 2],
    outbox: [Vec<u8>; 2],
    ends_upstream: bool,
    held: [Vec<u8>; 2],
    awaits: [bool; 2],
    /// A connect, and when it is answered.
    connecting: Option<(AttemptId, Instant)>,
    attempt: Option<AttemptId>,
    hears_ahead: bool,
    has_fed: bool,
    client_told: bool,
    connects: usize,
    closing: Option<Closing>,
}

struct Room {
    rng: fastrand::Rng,
    now: Instant,
    links: [Link; 6],
}

const fn at(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Upstream => 1,
    }
}

impl Node {
    fn new(view: &Rc<View>, inward: [usize; 2], outward: [usize; 2]) -> Node {
        let client = ClientAddr::Ip("192.0.2.200:40000".parse().unwrap());
        Node {
            session: Session::new(Rc::clone(view), ListenerIndex(0), client, Instant::ZERO),
            inward,
            outward,
            outbox: Default::default(),
            ends_upstream: false,
            held: Default::default(),
            awaits: [false; 2],
            connecting: None,
            attempt: None,
            hears_ahead: false,
            has_fed: false,
            client_told: false,
            connects: 0,
            closing: None,
        }
    }

    /// Does one thing, if there is one to do.
    fn step(&mut self, room: &mut Room) -> bool {
        if self.closing.is_some() {
            return false;
        }
        if let Some(command) = self.session.poll_command() {
            self.carry_out(command, room);
            return true;
        }
        if self.session.poll_timeout().is_some_and(|due| due <= room.now) {
            self.session.handle_timeout(room.now);
            return true;
        }
        if let Some((attempt, _)) = self.connecting.take_if(|(_, due)| *due <= room.now) {
            self.attempt = Some(attempt);
            self.session.handle_connected(attempt, None, room.now);
            return true;
        }
        if self.flush(room) {
            return true;
        }
        match self.session.is_pumping() {
            true => self.pump(Direction::Up, room) | self.pump(Direction::Down, room),
            false => self.hear(room) || self.feed(room),
        }
    }

    fn carry_out(&mut self, command: Command, room: &mut Room) {
        match command {
            Command::Send(side, bytes) => self.outbox[at(side)].extend_from_slice(&bytes),
            Command::SendAhead(_, bytes) => self.outbox[1].extend_from_slice(&bytes),
            Command::EndAhead(_) => self.ends_upstream = true,
            Command::ReceiveAhead(_) => self.hears_ahead = true,
            Command::Connect { attempt, .. } => {
                self.connects += 1;
                let after = Duration::from_millis(room.rng.u64(0..120));
                self.connecting = Some((attempt, room.now + after));
            }
            Command::Abandon(_) => self.connecting = None,
            Command::Pump(_) => {
                if std::mem::take(&mut self.hears_ahead) {
                    let step = self.session.poll_step(Direction::Down);
                    assert!(matches!(step, Some(Step::Receive(_))), "{step:?}");
                    self.awaits[1] = true;
                }
            }
            Command::ShutDownClient => unreachable!("neither protocol has a last word"),
            Command::Resolve(_)
            | Command::JoinLine(_)
            | Command::Verify(_)
            | Command::NameLocal
            | Command::NameDestination(_) => {
                unreachable!("nobody wants a name here")
            }
            Command::Close(closing) => {
                room.links[self.outward[0]].end(closing.client);
                // Who was never connected to notices nothing.
                if self.attempt.is_some() {
                    room.links[self.outward[1]].end(closing.upstream);
                }
                self.closing = Some(closing);
            }
        }
    }

    /// Sends some of what the session has to say itself.
    fn flush(&mut self, room: &mut Room) -> bool {
        for side in [Side::Client, Side::Upstream] {
            let outbox = &mut self.outbox[at(side)];
            if side == Side::Upstream && self.attempt.is_none() {
                continue;
            }
            if !outbox.is_empty() {
                // A first flight is one write.
                let bytes = std::mem::take(outbox);
                room.links[self.outward[at(side)]].send(&bytes);
                return true;
            }
        }
        if self.attempt.is_some() && std::mem::take(&mut self.ends_upstream) {
            room.links[self.outward[1]].end(Ending::Plain);
            return true;
        }
        false
    }

    /// What the destination says ahead of the pump.
    fn hear(&mut self, room: &mut Room) -> bool {
        let Some(attempt) = self.attempt.filter(|_| self.hears_ahead) else { return false };
        let link = &mut room.links[self.inward[1]];
        if !link.bytes.is_empty() {
            let bytes = room.rng.usize(1..=link.bytes.len());
            self.hears_ahead = false;
            self.session.handle_received_ahead(attempt, &link.take(bytes), room.now);
            return true;
        }
        match link.end {
            None => return false,
            Some(Ending::Plain) => self.session.handle_ended_ahead(attempt, room.now),
            Some(Ending::Reset) => self.session.handle_failed_ahead(attempt, room.now),
        }
        self.hears_ahead = false;
        true
    }

    /// What the client says ahead of the pump.
    fn feed(&mut self, room: &mut Room) -> bool {
        if !self.session.wants_bytes() {
            return false;
        }
        let link = &mut room.links[self.inward[0]];
        if !link.bytes.is_empty() {
            // The first of a tunnel is read at once.
            let first = !std::mem::replace(&mut self.has_fed, true);
            let bytes = if first { link.bytes.len() } else { room.rng.usize(1..=link.bytes.len()) };
            self.session.handle_bytes(&link.take(bytes), room.now);
            return true;
        }
        match link.end {
            Some(how) if !std::mem::replace(&mut self.client_told, true) => {
                match how {
                    Ending::Plain => self.session.handle_client_ended(),
                    Ending::Reset => self.session.handle_client_failed(),
                }
                true
            }
            Some(_) | None => false,
        }
    }

    fn pump(&mut self, direction: Direction, room: &mut Room) -> bool {
        let lane = direction as usize;
        if !self.outbox[at(direction.sink())].is_empty() {
            return false;
        }
        if self.awaits[lane] {
            return self.receive(direction, room);
        }
        let Some(step) = self.session.poll_step(direction) else { return false };
        match step {
            Step::Receive(_) => self.awaits[lane] = true,
            Step::Send(due) => {
                assert_eq!(due, self.held[lane].len(), "all that was translated is to be sent");
                let bytes = room.rng.usize(1..=due);
                let piece: Vec<u8> = self.held[lane].drain(..bytes).collect();
                room.links[self.outward[at(direction.sink())]].send(&piece);
                self.session.handle_sent(direction, bytes, room.now);
            }
            Step::ShutDown => room.links[self.outward[at(direction.sink())]].end(Ending::Plain),
        }
        true
    }

    fn receive(&mut self, direction: Direction, room: &mut Room) -> bool {
        let lane = direction as usize;
        let link = &mut room.links[self.inward[at(direction.source())]];
        if link.bytes.is_empty() {
            match link.end {
                None => return false,
                Some(Ending::Plain) => self.session.handle_ended(direction, room.now),
                Some(Ending::Reset) => self.session.handle_receive_failed(direction),
            }
            self.awaits[lane] = false;
            return true;
        }
        let bytes = room.rng.usize(1..=link.bytes.len());
        let received = link.take(bytes);
        self.awaits[lane] = false;
        assert!(self.session.is_sealed());
        let (head, tail) = received.split_at(room.rng.usize(0..=received.len()));
        let pieces = [head, tail].into_iter().filter(|piece| !piece.is_empty());
        let mut out = Vec::new();
        // In pieces of one receive, or as parts of it.
        if room.rng.bool() {
            self.session.handle_received_sealed(direction, pieces, &mut out, room.now);
        } else {
            for part in pieces {
                self.session.handle_received_sealed(direction, [part].into_iter(), &mut out, room.now);
            }
        }
        self.held[lane] = out;
        true
    }
}

/// An end of the line: what it says, and what it has heard.
struct End {
    says: Vec<u8>,
    said: usize,
    /// How much it hears before it says anything.
    listens_first: usize,
    heard: Vec<u8>,
    ended: Option<Ending>,
    inward: usize,
    outward: usize,
}

impl End {
    fn step(&mut self, room: &mut Room) -> bool {
        let link = &mut room.links[self.inward];
        if !link.bytes.is_empty() {
            let bytes = link.bytes.len();
            self.heard.extend(link.take(bytes));
            return true;
        }
        if link.end.is_some() && self.ended.is_none() {
            self.ended = link.end;
            return true;
        }
        if self.heard.len() < self.listens_first && self.ended.is_none() {
            return false;
        }
        let link = &mut room.links[self.outward];
        if self.said == self.says.len() {
            return link.end.is_none() && {
                link.end(Ending::Plain);
                true
            };
        }
        if room.rng.u8(..3) > 0 {
            return false;
        }
        let bytes = room.rng.usize(1..=self.says.len() - self.said);
        link.send(&self.says[self.said..][..bytes]);
        self.said += bytes;
        true
    }
}

fn length(rng: &mut fastrand::Rng) -> usize {
    match rng.u8(..6) {
        0 => 0,
        1 => 1,
        2 | 3 => rng.usize(2..400),
        4 => rng.usize(400..20_000),
        _ => rng.usize(20_000..MAX_BYTES),
    }
}

fn text_of_key(method: Method, fill: u8) -> String {
    match method.edition() {
        Edition::Aead => format!("password {fill}"),
        Edition::Aead2022 => BASE64_STANDARD.encode(vec![fill; method.key_bytes()]),
    }
}

fn view(listener: Listener, mut targets: Vec<TargetKind>, seed: u64) -> Rc<View> {
    let target = |(number, kind)| Target::new(format!("{number}"), kind, Arc::new(TargetCounters::new(1)));
    let targets = targets.drain(..).enumerate().map(target).collect();
    View::new(Arc::new(Snapshot::new(vec![listener], targets)), WorkerIndex(0), seed)
}

fn listener(protocol: Protocol, target: u32) -> Listener {
    Listener::new("in", protocol, TargetIndex(target), Arc::new(ListenerCounters::new(1)))
}

/// The session that seals, and the one that opens.
fn views(method: Method, is_answered: bool, rng: &mut fastrand::Rng) -> (Rc<View>, Rc<View>) {
    let clock = Arc::new(Clock::new(1_700_000_000));
    let users = method.has_identities() && rng.bool();
    let client_key = match users {
        true => [1, 2].map(|fill| text_of_key(method, fill)).join(":"),
        false => text_of_key(method, 1),
    };
    let key = |fill| Key::new(method, &text_of_key(method, fill)).unwrap();
    let users = if users { vec![("ann".into(), key(2))] } else { vec![] };
    let server = Server::new(method, key(1), users, Secret::new([8; 32]), Arc::clone(&clock)).unwrap();
    let client = Client::new(method, &client_key, Secret::new([9; 32]), clock).unwrap();

    let towards = Towards::Fixed(Destination::Address(ORIGIN.parse().unwrap()));
    let hops = vec![Hop { proxy: Proxy::Shadowsocks(Arc::new(client)), towards }];
    let first = FirstHop::Tcp([SERVER.parse::<SocketAddr>().unwrap()].into());
    let route = Upstream::Proxied(Arc::new(Route { first, hops: hops.into() }));
    // An origin that says nothing is no first byte.
    let commits = [None, Some(Commit::Connect), Some(Commit::FirstByte)];
    let commit = commits[rng.usize(..2 + usize::from(is_answered))];
    let members = [Member::primary(TargetIndex(0), 1)].into();
    let mut group = Group::new(Policy::Failover, members, 1, Duration::from_secs(60));
    group.commit = commit;
    let targets = vec![TargetKind::Upstream(route), TargetKind::Group(group)];
    let near = view(listener(Protocol::Tcp, 1), targets, rng.u64(..));

    let mut listener = listener(Protocol::Shadowsocks, 0);
    listener.shadowsocks = Some(Arc::new(server));
    let far = view(listener, vec![TargetKind::Upstream(Upstream::Direct)], rng.u64(..));
    (near, far)
}

/// Plays one schedule; returns how the far and the near session ended.
fn run(seed: u64) -> [CloseReason; 3] {
    let mut rng = fastrand::Rng::with_seed(seed);
    let method = Method::ALL[rng.usize(..Method::ALL.len())];
    let (up, down) = (length(&mut rng), length(&mut rng));
    let (near_view, far_view) = views(method, down > 0, &mut rng);
    let bytes = |rng: &mut fastrand::Rng, length| (0..length).map(|_| rng.u8(..)).collect::<Vec<u8>>();
    let (up, down) = (bytes(&mut rng, up), bytes(&mut rng, down));
    let direction = if rng.bool() { Direction::Up } else { Direction::Down };
    let most = [80, 2_000, MAX_BYTES][rng.usize(..3)];
    let place = rng.usize(..most);
    let fault = match rng.u8(..4) {
        0 => Fault::Flips(direction, place),
        1 => Fault::Cuts(direction, place),
        _ => Fault::Nothing,
    };
    let listens_first = if up.is_empty() { 0 } else { rng.usize(0..=1) };
    let mut room = Room { rng, now: Instant::ZERO, links: Default::default() };
    match fault {
        Fault::Nothing => {}
        Fault::Flips(Direction::Up, _) | Fault::Cuts(Direction::Up, _) => {
            room.links[TO_FAR].fault = Some(fault);
        }
        Fault::Flips(Direction::Down, _) | Fault::Cuts(Direction::Down, _) => {
            room.links[TO_NEAR_BACK].fault = Some(fault);
        }
    }
    let mut near = Node::new(&near_view, [TO_NEAR, TO_NEAR_BACK], [TO_CLIENT, TO_FAR]);
    let mut far = Node::new(&far_view, [TO_FAR, TO_FAR_BACK], [TO_NEAR_BACK, TO_ORIGIN]);
    let end = |says, listens_first, inward, outward| End {
        says,
        said: 0,
        listens_first,
        heard: Vec::new(),
        ended: None,
        inward,
        outward,
    };
    let mut client = end(up, 0, TO_CLIENT, TO_NEAR);
    let mut origin = end(down, listens_first, TO_ORIGIN, TO_FAR_BACK);
    for _ in 0..MAX_STEPS {
        if near.closing.is_some() && far.closing.is_some() {
            break;
        }
        let mut has_moved = false;
        for turn in 0..room.rng.usize(1..5) {
            has_moved |= match (turn + room.rng.usize(..4)) % 4 {
                0 => near.step(&mut room),
                1 if far.attempt.is_some() => origin.step(&mut room),
                2 => client.step(&mut room),
                _ => far.step(&mut room),
            };
        }
        if !has_moved && room.rng.u8(..4) == 0 {
            room.now = room.now + Duration::from_millis(room.rng.u64(1..200));
        }
    }
    // What is on its way still arrives.
    while client.step(&mut room) | (far.attempt.is_some() && origin.step(&mut room)) {}
    judge(seed, fault, &room, [&near, &far], &client, &origin);
    let replayed = replay(&far_view, &mut room, &far);
    [near.closing.unwrap().reason, far.closing.unwrap().reason, replayed]
}

fn judge(seed: u64, fault: Fault, room: &Room, [near, far]: [&Node; 2], client: &End, origin: &End) {
    let about = format!("seed {seed}, {fault:?}");
    let (Some(of_near), Some(of_far)) = (near.closing, far.closing) else {
        panic!("{about}: not over, {:?} and {:?}", near.closing, far.closing)
    };
    let is_up_genuine = client.says.starts_with(&origin.heard);
    let is_down_genuine = origin.says.starts_with(&client.heard);
    assert!(is_up_genuine && is_down_genuine, "{about}: somebody heard what nobody said");
    let is_up_whole = origin.heard == client.says;
    let is_down_whole = client.heard == origin.says;
    let hit = match fault {
        Fault::Nothing => false,
        Fault::Flips(direction, at) | Fault::Cuts(direction, at) => {
            let link = if direction == Direction::Up { TO_FAR } else { TO_NEAR_BACK };
            at < room.links[link].sent
        }
    };
    if !hit {
        assert!(is_up_whole && is_down_whole, "{about}: {of_near:?} {of_far:?}");
        assert_eq!([of_near.reason, of_far.reason], [CloseReason::Finished; 2], "{about}");
        return;
    }
    match fault {
        Fault::Nothing => {}
        Fault::Flips(Direction::Up, _) => {
            let reasons =
                [CloseReason::ClientProtocol, CloseReason::ClientAuthentication, CloseReason::ClientLeft];
            assert!(reasons.contains(&of_far.reason) || is_up_whole, "{about}: {of_far:?}");
            assert!(is_up_whole || origin.ended != Some(Ending::Plain), "{about}: a part is taken for whole");
        }
        Fault::Flips(Direction::Down, _) => {
            assert!(
                is_down_whole || client.ended == Some(Ending::Reset),
                "{about}: {:?} {of_near:?}",
                client.ended
            );
        }
        // At the end of a chunk nobody can tell.
        Fault::Cuts(..) => {}
    }
}

/// Everything that was said to the far session is said again to another of its listener.
fn replay(view: &Rc<View>, room: &mut Room, first: &Node) -> CloseReason {
    let said = std::mem::take(&mut room.links[TO_FAR].record);
    let client = ClientAddr::Ip("192.0.2.201:40000".parse().unwrap());
    let mut session = Session::new(Rc::clone(view), ListenerIndex(0), client, room.now);
    if !said.is_empty() {
        session.handle_bytes(&said, room.now);
    }
    let later = room.now + Duration::from_secs(11);
    session.handle_timeout(later);
    let mut commands = std::iter::from_fn(|| session.poll_command());
    match commands.next() {
        Some(Command::Close(closing)) => {
            assert_eq!(closing, Closing::plain(closing.reason), "as any other");
            closing.reason
        }
        other => panic!("{other:?}, and the first had {} connects", first.connects),
    }
}

#[test]
fn what_is_said_through_a_tunnel_is_heard_and_nothing_else() {
    let mut seen = [0u64; CloseReason::ALL.len()];
    for seed in 0..crate::number_from("SIM_SCHEDULES").unwrap_or(SCHEDULES) {
        for reason in run(seed) {
            seen[reason.index()] += 1;
        }
    }
    for reason in [
        CloseReason::Finished,
        CloseReason::ClientReplayed,
        CloseReason::UpstreamProtocol,
        CloseReason::ClientProtocol,
        CloseReason::ClientAuthentication,
    ] {
        assert!(seen[reason.index()] > 0, "no session ended as {reason}: the simulation is blind");
    }
}
