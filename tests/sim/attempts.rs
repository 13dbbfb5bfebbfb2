//! Seeded simulation of several attempts: races, commits by the first byte with replay, proxies on the way, nested
//! groups. Its driver is plain, and what it watches is what becomes of each attempt and of each byte that is said to it.

mod peer;
mod tried;
mod world;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::dial::{AttemptId, UpstreamAddr};
use ringweir_flow::pump::{Closing, Direction, Side, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::{ListenerIndex, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

use self::peer::Conn;
use self::tried::Tried;
use self::world::World;
use crate::invariants::{Verdicts, hold};

/// How many schedules are tried unless `SIM_ATTEMPTS` says otherwise.
const SCHEDULES: u64 = 20_000;

/// More steps than any schedule needs.
const MAX_STEPS: u32 = 20_000;

/// The most that is received at once.
const RECEIVE_BYTES: usize = 16 * 1024;

#[test]
fn attempts_are_never_left_open_and_hear_what_the_client_said() {
    if let Some(seed) = crate::number_from("SIM_ATTEMPT_SEED") {
        assert_eq!(run(seed, true).map(drop), Ok(()), "seed {seed}");
        return;
    }
    let mut seen = Seen::default();
    for seed in 0..crate::number_from("SIM_ATTEMPTS").unwrap_or(SCHEDULES) {
        match run(seed, false) {
            Ok(one) => seen.add(&one),
            Err(violation) => panic!(
                "seed {seed}: {violation}\nreplay it with SIM_ATTEMPT_SEED={seed} cargo test -p ringweir-flow --test sim \
                 attempts"
            ),
        }
    }
    println!("{seen:?}");
    for count in seen.counts() {
        assert!(count > 100, "the simulation is blind: {seen:?}");
    }
}

/// What a schedule had in it.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    pumped: u64,
    exhausted: u64,
    abandoned: u64,
    /// Two attempts and more were under way at once.
    parallel: u64,
    /// Two attempts and more were told what the client said.
    replayed: u64,
    /// The winner stands behind a proxy.
    proxied: u64,
    /// A proxy fell silent or went away amid its handshake, and somebody else served.
    broken_off: u64,
    /// The winner spoke first, behind a proxy, and was told by nobody what others had been told.
    untold: u64,
    /// Nobody served: a proxy had won by its connection.
    decided: u64,
    /// Nobody served, and a group stood in a group.
    nested: u64,
    /// Nobody served, and the time of a group was up before it had tried everybody.
    late: u64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.pumped += other.pumped;
        self.exhausted += other.exhausted;
        self.abandoned += other.abandoned;
        self.parallel += other.parallel;
        self.replayed += other.replayed;
        self.proxied += other.proxied;
        self.broken_off += other.broken_off;
        self.untold += other.untold;
        self.decided += other.decided;
        self.nested += other.nested;
        self.late += other.late;
    }

    fn counts(&self) -> [u64; 11] {
        let Seen { pumped, exhausted, abandoned, parallel, replayed, proxied, .. } = *self;
        let Seen { broken_off, untold, decided, nested, late, .. } = *self;
        [pumped, exhausted, abandoned, parallel, replayed, proxied, broken_off, untold, decided, nested, late]
    }
}

/// What is going to happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    ClientSends(usize),
    ClientEnds,
    ClientResets,
    /// A connect is answered.
    Connected(usize, Result<(), ConnectError>),
    /// A peer does what it has decided to do.
    Acts(usize),
}

struct Schedule {
    rng: fastrand::Rng,
    now: Instant,
    world: World,
    session: Session,
    events: Vec<(Instant, Event)>,
    conns: Vec<Conn>,
    /// What the client is going to say in all, and how much of it stands in its socket's buffer.
    payload: Vec<u8>,
    arrived: usize,
    taken: usize,
    client_ended: bool,
    client_end_told: bool,
    client_broken: bool,
    /// What the client got.
    heard: Vec<u8>,
    /// For the upstream, before it is known which.
    outbox: Vec<u8>,
    pumped: Option<usize>,
    held: [usize; 2],
    /// Whether the session waits for the source of a direction.
    awaits: [bool; 2],
    closing: Option<Closing>,
    seen: Seen,
    is_told: bool,
}

fn run(seed: u64, is_told: bool) -> Result<Seen, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::new(&mut rng);
    let view = View::new(world.snapshot(), WorkerIndex(0), rng.u64(..));
    let mut schedule = Schedule::new(rng, world, &view, is_told);
    schedule.note(|| format!("{:?}", schedule.world));
    schedule.play()?;
    schedule.judge()?;
    Ok(schedule.seen)
}

impl Schedule {
    fn new(mut rng: fastrand::Rng, world: World, view: &Rc<View>, is_told: bool) -> Schedule {
        let client = ClientAddr::Ip("192.0.2.200:40000".parse().unwrap());
        let session = Session::new(Rc::clone(view), ListenerIndex(0), client, Instant::ZERO);
        let len = [0, 1, 50, 700, 5_000, 40_000][rng.usize(..6)];
        let payload: Vec<u8> = (0..len).map(|at: usize| (at * 31 % 251) as u8).collect();
        let mut events = Vec::new();
        let (mut at, mut said) = (Instant::ZERO, 0);
        while said < payload.len() {
            let piece = rng.usize(1..=payload.len() - said).max(payload.len() / 8);
            let piece = piece.min(payload.len() - said);
            at = at + world::span(&mut rng, 0, 400);
            events.push((at, Event::ClientSends(piece)));
            said += piece;
        }
        let end = if rng.u8(..12) == 0 { Event::ClientResets } else { Event::ClientEnds };
        events.push((at + world::span(&mut rng, 0, 9_000), end));
        Schedule {
            rng,
            now: Instant::ZERO,
            world,
            session,
            events,
            conns: Vec::new(),
            payload,
            arrived: 0,
            taken: 0,
            client_ended: false,
            client_end_told: false,
            client_broken: false,
            heard: Vec::new(),
            outbox: Vec::new(),
            pumped: None,
            held: [0; 2],
            awaits: [false; 2],
            closing: None,
            seen: Seen::default(),
            is_told,
        }
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>9} us  {}", self.now.as_micros(), text());
        }
    }

    fn play(&mut self) -> Verdicts {
        self.drive()?;
        for _ in 0..MAX_STEPS {
            if self.closing.is_some() {
                return Ok(());
            }
            let event = (0..self.events.len()).min_by_key(|at| self.events[*at].0);
            let event_at = event.map(|at| self.events[at].0);
            let timeout = self.session.poll_timeout();
            let next = [event_at, timeout].into_iter().flatten().min();
            self.now = self.now.max(next.ok_or("nothing is left to happen, and the session is open")?);
            match event {
                Some(at) if event_at == next => {
                    let (_, event) = self.events.swap_remove(at);
                    self.note(|| format!("{event:?}"));
                    self.happen(event)?;
                }
                Some(_) | None => {
                    self.note(|| "a timeout".to_owned());
                    self.session.handle_timeout(self.now);
                }
            }
            self.drive()?;
        }
        Err(format!("not over after {MAX_STEPS} steps"))
    }

    fn happen(&mut self, event: Event) -> Verdicts {
        match event {
            Event::ClientSends(bytes) => self.arrived += bytes,
            Event::ClientEnds => self.client_ended = true,
            Event::ClientResets => {
                self.client_broken = true;
                if self.session.is_pumping() {
                    self.session.handle_receive_failed(Direction::Up);
                } else {
                    self.session.handle_client_failed();
                }
            }
            Event::Connected(index, result) => {
                let conn = &mut self.conns[index];
                // Who was given up answers nobody.
                if conn.is_gone() {
                    return Ok(());
                }
                match result {
                    Ok(()) => {
                        conn.opened_at = Some(self.now);
                        self.session.handle_connected(conn.attempt, None, self.now);
                        self.react(index);
                    }
                    Err(error) => {
                        conn.ended_at = Some(self.now);
                        self.session.handle_connect_failed(conn.attempt, error, self.now);
                    }
                }
            }
            Event::Acts(index) => {
                self.conns[index].act();
                self.deliver_ahead(index);
            }
        }
        Ok(())
    }

    /// Carries out what the session wants until it wants nothing more.
    fn drive(&mut self) -> Verdicts {
        loop {
            while let Some(command) = self.session.poll_command() {
                self.note(|| format!("  {}", world::brief(&command)));
                hold!(self.closing.is_none(), "{} after the close", world::brief(&command));
                self.carry_out(command)?;
            }
            if self.closing.is_some() {
                return Ok(());
            }
            let has_moved = if self.session.is_pumping() { self.pump()? } else { self.feed() };
            if !has_moved {
                let open = self.conns.iter().filter(|conn| !conn.is_gone()).count();
                self.seen.parallel = self.seen.parallel.max(u64::from(open > 1));
                return Ok(());
            }
        }
    }

    /// Gives the session what the client has sent, before the pump runs.
    fn feed(&mut self) -> bool {
        if self.client_broken || !self.session.wants_bytes() {
            return false;
        }
        let bytes = (self.arrived - self.taken).min(RECEIVE_BYTES);
        if bytes > 0 {
            let bytes = self.rng.usize(1..=bytes);
            let piece = self.payload[self.taken..self.taken + bytes].to_vec();
            self.taken += bytes;
            self.session.handle_bytes(&piece, self.now);
            return true;
        }
        if self.client_ended && self.taken == self.arrived && !self.client_end_told {
            self.client_end_told = true;
            self.session.handle_client_ended();
            return true;
        }
        false
    }

    fn carry_out(&mut self, command: Command) -> Verdicts {
        match command {
            Command::Connect { attempt, address, .. } => {
                let UpstreamAddr::Tcp(address) = address else { return Err("a path".to_owned()) };
                let known = self.conns.iter().any(|conn| conn.attempt == attempt);
                hold!(!known && self.pumped.is_none(), "{attempt:?} is not new, or too late");
                let (conn, result) =
                    self.world.accept(attempt, address, self.payload.len(), self.now, &mut self.rng);
                self.conns.push(conn);
                if let Some((after, result)) = result {
                    self.events.push((self.now + after, Event::Connected(self.conns.len() - 1, result)));
                }
            }
            Command::SendAhead(attempt, bytes) => {
                let index = self.open(attempt)?;
                hold!(!bytes.is_empty(), "nothing is to be sent ahead");
                self.conns[index].take(&bytes);
                self.react(index);
            }
            Command::EndAhead(attempt) => {
                let index = self.open(attempt)?;
                hold!(self.client_ended, "the client has not ended its stream");
                self.conns[index].has_ended = true;
                self.react(index);
            }
            Command::ReceiveAhead(attempt) => {
                let index = self.open(attempt)?;
                hold!(!self.conns[index].is_awaited, "two receives at a time");
                self.conns[index].is_awaited = true;
                self.deliver_ahead(index);
            }
            Command::Abandon(attempt) => {
                let index = self.index_of(attempt)?;
                hold!(!self.conns[index].is_gone(), "{attempt:?} is given up, and is gone");
                self.conns[index].ended_at = Some(self.now);
                self.seen.abandoned = 1;
            }
            Command::NameLocal | Command::NameDestination(_) => {
                return Err("nobody wants a name here".to_owned());
            }
            Command::Resolve(name) => return Err(format!("{name} is to be resolved")),
            Command::JoinLine(_) => return Err("every upstream bears all in this world".to_owned()),
            Command::Verify(question) => return Err(format!("{question:?} of nobody who was asked")),
            Command::Send(Side::Client, bytes) => self.heard.extend_from_slice(&bytes),
            Command::Send(Side::Upstream, bytes) => self.outbox.extend_from_slice(&bytes),
            Command::ShutDownClient => self.session.handle_shut_down(),
            Command::Pump(attempt) => return self.start_pump(attempt),
            Command::Close(closing) => {
                let left = self
                    .conns
                    .iter()
                    .enumerate()
                    .find(|(at, conn)| !conn.is_gone() && self.pumped != Some(*at));
                hold!(left.is_none(), "{:?} is left open", left.map(|(_, conn)| conn.attempt));
                if let Some(record) = self.session.record(closing.reason, self.now) {
                    self.note(|| format!("  {record:?}"));
                }
                self.closing = Some(closing);
            }
        }
        Ok(())
    }

    fn start_pump(&mut self, attempt: AttemptId) -> Verdicts {
        let index = self.open(attempt)?;
        let others = self.conns.iter().enumerate().any(|(at, conn)| at != index && !conn.is_gone());
        hold!(!others, "the pump starts with another attempt under way");
        self.pumped = Some(index);
        let was_untold = self.conns[index].has_spoken_first() && self.conns[index].payload().is_empty();
        let others_told = self.conns.iter().any(|conn| !conn.payload().is_empty());
        self.seen.untold = u64::from(was_untold && others_told);
        let first = std::mem::take(&mut self.outbox);
        self.conns[index].take(&first);
        self.react(index);
        if self.conns[index].is_awaited {
            // The receive that is under way is the pump's.
            let step = self.session.poll_step(Direction::Down);
            hold!(
                matches!(step, Some(Step::Receive(_))),
                "a receive is under way, and the first step is {step:?}"
            );
            self.awaits[1] = true;
        }
        self.seen.pumped = 1;
        self.seen.proxied = u64::from(self.conns[index].is_proxied());
        self.seen.broken_off = u64::from(self.conns.iter().any(|conn| conn.has_broken_off));
        Ok(())
    }

    /// Moves what can be moved; false when nothing can.
    fn pump(&mut self) -> Result<bool, String> {
        let mut has_moved = false;
        for (lane, direction) in [(0, Direction::Up), (1, Direction::Down)] {
            if self.awaits[lane] {
                has_moved |= self.receive(lane, direction)?;
                continue;
            }
            let Some(step) = self.session.poll_step(direction) else { continue };
            has_moved = true;
            match step {
                Step::Receive(_) => self.awaits[lane] = true,
                Step::Send(bytes) => self.send(lane, direction, bytes)?,
                Step::ShutDown => {
                    if let (Direction::Up, Some(index)) = (direction, self.pumped) {
                        self.conns[index].has_ended = true;
                        self.react(index);
                    }
                }
            }
        }
        Ok(has_moved)
    }

    fn receive(&mut self, lane: usize, direction: Direction) -> Result<bool, String> {
        let index = self.pumped.ok_or("nobody is pumped")?;
        let conn = &mut self.conns[index];
        let (waiting, has_ended) = match direction {
            Direction::Up => (self.arrived - self.taken, self.client_ended),
            Direction::Down => (conn.outgoing.len(), conn.has_finished),
        };
        if direction == Direction::Down && conn.has_reset {
            self.awaits[lane] = false;
            self.session.handle_receive_failed(direction);
            return Ok(true);
        }
        if waiting > 0 {
            let bytes = self.rng.usize(1..=waiting.min(RECEIVE_BYTES));
            self.held[lane] = bytes;
            self.awaits[lane] = false;
            self.session.handle_received(direction, bytes, self.now);
        } else if has_ended {
            self.awaits[lane] = false;
            self.session.handle_ended(direction, self.now);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn send(&mut self, lane: usize, direction: Direction, bytes: usize) -> Verdicts {
        hold!((1..=self.held[lane]).contains(&bytes), "{bytes} bytes are not there");
        let index = self.pumped.ok_or("nobody is pumped")?;
        match direction {
            Direction::Up => {
                let piece = self.payload[self.taken..self.taken + bytes].to_vec();
                self.taken += bytes;
                self.conns[index].take(&piece);
                self.react(index);
            }
            Direction::Down => self.heard.extend(self.conns[index].outgoing.drain(..bytes)),
        }
        self.held[lane] -= bytes;
        self.session.handle_sent(direction, bytes, self.now);
        Ok(())
    }

    /// A peer that has heard enough makes up its mind.
    fn react(&mut self, index: usize) {
        if let Some(after) = self.conns[index].decide(&mut self.rng) {
            self.events.push((self.now + after, Event::Acts(index)));
        }
    }

    /// What a peer has said, to an attempt that waits for it.
    fn deliver_ahead(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if self.pumped.is_some() || conn.is_gone() || !conn.is_awaited {
            return;
        }
        let attempt = conn.attempt;
        if conn.has_reset {
            conn.is_awaited = false;
            self.session.handle_failed_ahead(attempt, self.now);
        } else if !conn.outgoing.is_empty() {
            conn.is_awaited = false;
            let bytes = self.rng.usize(1..=conn.outgoing.len());
            let piece: VecDeque<u8> = conn.outgoing.drain(..bytes).collect();
            let piece: Vec<u8> = piece.into();
            self.session.handle_received_ahead(attempt, &piece, self.now);
        } else if conn.has_finished {
            conn.is_awaited = false;
            self.session.handle_ended_ahead(attempt, self.now);
        }
    }

    fn index_of(&self, attempt: AttemptId) -> Result<usize, String> {
        let found = self.conns.iter().position(|conn| conn.attempt == attempt);
        found.ok_or_else(|| format!("{attempt:?} is nobody's"))
    }

    fn open(&self, attempt: AttemptId) -> Result<usize, String> {
        let index = self.index_of(attempt)?;
        let conn = &self.conns[index];
        hold!(conn.is_open() && !conn.is_gone(), "{attempt:?} is not open");
        Ok(index)
    }
}

// When all is over.
impl Schedule {
    fn judge(&mut self) -> Verdicts {
        let closing = self.closing.ok_or("not closed")?;
        for conn in &self.conns {
            let is_prefix = self.payload.starts_with(conn.payload());
            hold!(is_prefix, "{:?} was told something that the client did not say", conn.attempt);
        }
        let told = self.conns.iter().filter(|conn| !conn.payload().is_empty()).count();
        self.seen.replayed = u64::from(told > 1);
        if let Some(index) = self.pumped {
            let conn = &self.conns[index];
            let is_heard = conn.answer().starts_with(&self.heard);
            hold!(is_heard, "the client got something that its upstream did not say");
            if closing.reason == CloseReason::Finished {
                let is_whole =
                    conn.payload().len() == self.payload.len() && self.heard.len() == conn.answer().len();
                hold!(is_whole, "finished, and not everything has arrived");
            }
        } else {
            hold!(self.heard.is_empty(), "a tcp client was told something by nobody");
            self.judge_exhaustion(closing)?;
        }
        self.world.check_counters(closing)
    }

    /// Nobody who might have served was left untried.
    fn judge_exhaustion(&mut self, closing: Closing) -> Verdicts {
        let is_given_up = matches!(
            closing.reason,
            CloseReason::ConnectFailed | CloseReason::ConnectTimeout | CloseReason::NoTarget
        );
        let ended_by_client = self.client_broken && closing.reason == CloseReason::ClientReset;
        hold!(is_given_up || ended_by_client, "{closing:?} though nobody was reached");
        if is_given_up {
            self.seen.exhausted = 1;
            let tried = self.conns.iter().map(|conn| Tried {
                upstream: conn.upstream,
                begun_at: conn.begun_at,
                ended_at: conn.ended_at.unwrap_or(self.now),
                opened_at: conn.opened_at,
            });
            let judged = self.world.check_tried(&tried.collect::<Vec<_>>())?;
            (self.seen.nested, self.seen.late) = (judged.nested, judged.late);
            self.seen.decided = judged.decided;
        }
        Ok(())
    }
}

/// A moment that no schedule reaches.
const NEVER: Duration = Duration::from_secs(100_000);
