//! A driver as adversarial as its contract with flow allows: operations complete in any order, in pieces of any size,
//! at once or late; what was abandoned may answer all the same.

mod complete;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::dial::AttemptId;
use ringweir_flow::pump::{Closing, Direction, Side, Step};
use ringweir_flow::record::ClientAddr;
use ringweir_flow::resolve::Resolved;
use ringweir_flow::retire::Retirement;
use ringweir_flow::session::{Command, Session};
use ringweir_flow::snapshot::{ListenerIndex, TargetIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::verify::Verdict;
use ringweir_flow::view::View;
use ringweir_flow::way::{Refusal, Way};

use crate::client::Script;
use crate::faults::Fault;
use crate::invariants::{Ends, Login, Phase, Verdicts, Witness, hold, index};
use crate::peer::{Conn, Out, PeerStep};
use crate::rules::Origin;
use crate::schedule::Tools;
use crate::world::{self, World};

/// Something that may happen to a session now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Peer(Side, PeerStep),
    Receive(Side),
    Send(Side),
    Dial(usize),
    Resolve(usize),
    Verify,
    Timer,
    EarlyTimer,
    Stop,
}

/// How a driver learns what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// By completions: a receive may be under way when the pump begins.
    Completions,
    /// By readiness: nothing is under way while it sleeps.
    Readiness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Idle,
    InFlight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Nothing,
    Outbox,
    /// That many of the bytes held for the sink.
    Held(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Running,
    /// The session was told that nothing more comes, or that nothing can go.
    Over,
}

struct Dial {
    attempt: AttemptId,
    wants_local: bool,
    state: DialState,
    /// When it is answered and how; never when nobody does.
    answer: Option<(Instant, Result<(), ConnectError>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DialState {
    Pending,
    Abandoned,
    Connected(Option<SocketAddr>),
    Done,
}

/// What the operator, or control, may tell a session.
pub(crate) enum Word {
    Stop(CloseReason),
    /// Follow this member, which has gone.
    Retire(TargetIndex, Arc<Retirement>),
}

pub(crate) struct Driver {
    world: Rc<World>,
    manner: Manner,
    session: Session,
    witness: Witness,
    client: Conn,
    upstream: Option<Conn>,
    dials: Vec<Dial>,
    lookups: Vec<Option<(Instant, Resolved)>>,
    /// What is being verified, until when, and what comes of it.
    verdict: Option<(Instant, Verdict)>,
    /// What was commanded to be sent, by side; for the upstream even before it is known.
    outbox: [Vec<u8>; 2],
    /// What was received for a side and is not sent to it.
    held: [Vec<u8>; 2],
    sending: [Sending; 2],
    receiving: [Receiving; 2],
    /// How the last receive from a side was to be done.
    ways: [Way; 2],
    /// By the side that a direction leads to.
    course: [Course; 2],
    shuts_down_client: bool,
    closing: Option<Closing>,
    pub(crate) word_at: Option<(Instant, Word)>,
}

impl Driver {
    pub(crate) fn accept(world: &Rc<World>, view: &Rc<View>, tools: &mut Tools) -> Result<Driver, String> {
        let rng = &mut tools.rng;
        let script = Script::new(world, rng);
        let len = script.bytes.len();
        let out = Out::Script(script.bytes.clone());
        let window = rng.usize(1..=4) * world.grain;
        let limit = if rng.u8(..10) == 0 { rng.usize(..200) } else { usize::MAX };
        let client =
            Conn::new(out, world::manner(rng, len), script.gates.clone(), world.grain).limited(limit, window);
        let (address, origin) = match rng.u8(..3) {
            0 => (ClientAddr::Unix, Origin::Unix),
            1 => (ClientAddr::Ip("[::ffff:10.0.0.9]:4000".parse().unwrap()), Origin::Inside),
            _ => (ClientAddr::Ip("192.0.2.200:4000".parse().unwrap()), Origin::Outside),
        };
        let manner = [Manner::Completions, Manner::Readiness][rng.usize(..2)];
        tools.note(|| format!("{manner:?}: accepted {address}: {:?}, {:?}", client, script.verdict));
        let session = Session::new(Rc::clone(view), ListenerIndex(0), address, tools.now);
        let is_allowed = origin != Origin::Outside || world.access.is_none();
        let witness = Witness::new(world, view, script, (is_allowed, origin), tools.now);
        let mut driver = Driver {
            world: Rc::clone(world),
            manner,
            session,
            witness,
            client,
            upstream: None,
            dials: Vec::new(),
            lookups: Vec::new(),
            verdict: None,
            outbox: [Vec::new(), Vec::new()],
            held: [Vec::new(), Vec::new()],
            sending: [Sending::Nothing; 2],
            receiving: [Receiving::Idle; 2],
            ways: [Way::Buffer; 2],
            course: [Course::Running; 2],
            shuts_down_client: false,
            closing: None,
            word_at: None,
        };
        driver.drive(tools)?;
        Ok(driver)
    }

    /// Where its session is dispatched, unless a rule ends it.
    pub(crate) fn root(&self) -> Option<TargetIndex> {
        self.witness.root().ok()
    }

    /// The world that its session was dispatched in.
    pub(crate) fn view(&self) -> &View {
        self.witness.view()
    }

    /// Whether it has come to the pump.
    pub(crate) fn has_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    pub(crate) fn closing(&self) -> Option<Closing> {
        self.closing
    }

    /// Everything that may happen now.
    pub(crate) fn list_acts(&self, tools: &Tools, mut add: impl FnMut(Act)) {
        let now = tools.now;
        let is_open = self.closing.is_none();
        if !is_open && !tools.is_late {
            return;
        }
        for side in [Side::Client, Side::Upstream] {
            let Some(conn) = self.conn(side) else { continue };
            if self.receiving[index(side)] == Receiving::InFlight && conn.can_receive() {
                add(Act::Receive(side));
            }
            if self.sending[index(side)] != Sending::Nothing && conn.can_send() {
                add(Act::Send(side));
            }
            for step in PeerStep::ALL {
                if is_open && conn.may(step, now) {
                    add(Act::Peer(side, step));
                }
            }
        }
        for (number, dial) in self.dials.iter().enumerate() {
            if dial.answer.is_some_and(|(at, _)| at <= now) {
                add(Act::Dial(number));
            }
        }
        for (number, lookup) in self.lookups.iter().enumerate() {
            if lookup.as_ref().is_some_and(|(at, _)| *at <= now) {
                add(Act::Resolve(number));
            }
        }
        if self.verdict.is_some_and(|(at, _)| at <= now) {
            add(Act::Verify);
        }
        if is_open {
            if self.session.poll_timeout().is_some_and(|at| at <= now) {
                add(Act::Timer);
            }
            if self.word_at.as_ref().is_some_and(|(at, _)| *at <= now) {
                add(Act::Stop);
            }
        }
    }

    /// When something may happen next, if nothing may now.
    pub(crate) fn next_at(&self, tools: &Tools) -> Option<Instant> {
        let is_open = self.closing.is_none();
        if !is_open && !tools.is_late {
            return None;
        }
        let dials = self.dials.iter().filter_map(|dial| dial.answer.map(|(at, _)| at));
        let lookups = self.lookups.iter().flatten().map(|(at, _)| *at);
        let verdict = self.verdict.map(|(at, _)| at);
        let mut next = dials.chain(lookups).chain(verdict).min();
        if is_open {
            let peers = [Some(&self.client), self.upstream.as_ref()].into_iter().flatten();
            let peers = peers.filter_map(|conn| conn.next_at(tools.now));
            let own =
                [self.session.poll_timeout(), self.word_at.as_ref().map(|(at, _)| *at)].into_iter().flatten();
            next = next.into_iter().chain(peers).chain(own).min();
        }
        next
    }

    /// Lets one thing happen, and carries out what the session makes of it.
    pub(crate) fn perform(&mut self, act: Act, tools: &mut Tools) -> Verdicts {
        match act {
            Act::Peer(side, step) => {
                let rest = tools.draw_rest();
                let now = tools.now;
                let Some(conn) = self.conn_mut(side) else { return Ok(()) };
                conn.take(step, &mut tools.rng);
                conn.rest_until(now + rest);
                return Ok(());
            }
            Act::Receive(side) => self.complete_receive(side, tools)?,
            Act::Send(side) => self.complete_send(side, tools)?,
            Act::Dial(number) => self.complete_dial(number, tools),
            Act::Resolve(number) => {
                if let Some((_, resolved)) = self.lookups[number].take() {
                    self.tell_resolved(resolved, tools);
                }
            }
            Act::Verify => {
                if let Some((_, verdict)) = self.verdict.take() {
                    self.tell_verified(verdict, tools);
                }
            }
            Act::Timer => return self.expire(tools),
            Act::EarlyTimer => {
                if self.closing.is_none() && self.session.poll_timeout().is_some_and(|at| at <= tools.now) {
                    // It is not early.
                    return Ok(());
                }
                self.session.handle_timeout(tools.now);
                let command = self.session.poll_command();
                hold!(command.is_none(), "a timeout that came early made the session say {command:?}");
                return Ok(());
            }
            Act::Stop => match self.word_at.take() {
                Some((_, Word::Stop(reason))) => {
                    self.witness.stop = Some(reason);
                    self.session.handle_stop(reason);
                }
                Some((_, Word::Retire(member, order))) => {
                    if tools.rng.u8(..8) == 0 {
                        order.revoke();
                    }
                    let timeout = self.session.poll_timeout();
                    let is_concerned = self.session.handle_retirement(&order, tools.now);
                    if !is_concerned {
                        let (after, command) = (self.session.poll_timeout(), self.session.poll_command());
                        let said = (timeout != after, command);
                        hold!(said == (false, None), "an order about others made the session say {said:?}");
                    }
                    self.witness.retired = Some((member, Arc::clone(&order)));
                    self.drive(tools)?;
                    if self.closing.is_none() && tools.rng.u8(..4) == 0 {
                        order.revoke();
                    }
                }
                None => {}
            },
        }
        self.drive(tools)
    }

    fn expire(&mut self, tools: &mut Tools) -> Verdicts {
        let now = tools.now;
        self.witness.is_overdue = self.pending() > 0;
        self.session.handle_timeout(now);
        self.drive(tools)?;
        self.witness.is_overdue = false;
        let next = self.session.poll_timeout();
        let goes_on = self.closing.is_some() || next.is_some_and(|next| next > now);
        hold!(goes_on, "a timeout that changes nothing: due at {next:?}");
        Ok(())
    }

    fn pending(&self) -> usize {
        let lookups = self.lookups.iter().flatten().filter(|_| self.witness.is_resolving()).count();
        let verdicts = usize::from(self.verdict.is_some());
        self.dials.iter().filter(|dial| dial.state == DialState::Pending).count() + lookups + verdicts
    }
}

// What the session wants.
impl Driver {
    fn drive(&mut self, tools: &mut Tools) -> Verdicts {
        loop {
            self.carry_out_all(tools)?;
            if self.closing.is_some() {
                hold!(!self.session.wants_bytes(), "a closed session wants bytes");
                return Ok(());
            }
            if self.session.is_pumping() {
                let has_shut_down = self.pump(tools)?;
                if self.manner == Manner::Readiness && !has_shut_down {
                    // Such a driver sleeps now; nothing would wake it for a command.
                    let command = self.session.poll_command();
                    hold!(command.is_none(), "{command:?} is due though nothing was told to the session");
                }
            } else if self.session.wants_bytes() {
                self.receiving[index(Side::Client)] = Receiving::InFlight;
            }
            self.flush(tools);
            if !self.carry_out_all(tools)? {
                break;
            }
        }
        self.check_progress(tools)
    }

    /// False when there was nothing to carry out.
    fn carry_out_all(&mut self, tools: &mut Tools) -> Result<bool, String> {
        let mut is_any = false;
        loop {
            if self.closing.is_none()
                && let Some(record) = self.session.record(CloseReason::Finished, tools.now)
            {
                self.witness.observe(&record, tools.now)?;
            }
            let Some(command) = self.session.poll_command() else { return Ok(is_any) };
            tools.note(|| {
                if let Command::Send(side, bytes) = &command {
                    format!("  Send({side:?}, {} bytes)", bytes.len())
                } else {
                    format!("  {command:?}")
                }
            });
            hold!(self.closing.is_none(), "{command:?} after the close");
            self.carry_out(command, tools)?;
            is_any = true;
        }
    }

    fn carry_out(&mut self, command: Command, tools: &mut Tools) -> Verdicts {
        let now = tools.now;
        match command {
            Command::Send(side, bytes) => {
                hold!(!bytes.is_empty(), "nothing is to be sent");
                hold!(self.witness.phase == Phase::Setup, "a command to send in {:?}", self.witness.phase);
                if side == Side::Client {
                    self.witness.said.extend_from_slice(&bytes);
                }
                if !tools.strikes(Fault::ForgetOutbox) {
                    self.outbox[index(side)].extend_from_slice(&bytes);
                }
            }
            Command::ShutDownClient => {
                let record = self.session.record(CloseReason::Finished, now).ok_or("no record")?;
                self.witness.check_refusal(&record, now)?;
                self.shuts_down_client = true;
            }
            Command::Connect { attempt, address, local, origin } => {
                let is_new = self.dials.iter().all(|dial| dial.attempt != attempt);
                hold!(is_new && self.witness.phase == Phase::Setup, "{attempt:?} is not new or too late");
                self.witness.check_connect(&address, local)?;
                hold!(origin.is_none(), "{origin:?} of an upstream that has nothing special");
                let outcome = world::connect_outcome(&mut tools.rng);
                let answer = outcome.map(|(after, result)| (now + after, result));
                self.dials.push(Dial { attempt, wants_local: local, state: DialState::Pending, answer });
                // Some answer at once: a Unix socket, or no descriptor left.
                if answer.is_some() && tools.rng.u8(..8) == 0 {
                    self.complete_dial(self.dials.len() - 1, tools);
                }
            }
            Command::NameLocal | Command::NameDestination(_) => {
                return Err("nobody wants to know where a connection was going".to_owned());
            }
            Command::SendAhead(attempt, _) | Command::EndAhead(attempt) | Command::ReceiveAhead(attempt) => {
                return Err(format!("{attempt:?} is used ahead of the pump, and no group wants that"));
            }
            Command::Abandon(attempt) => return self.abandon(attempt, tools),
            Command::Resolve(name) => {
                hold!(name.as_str() == "a.example", "{name} is to be resolved");
                self.witness.handle_resolve()?;
                let resolved = World::resolve(&mut tools.rng);
                if tools.rng.u8(..4) == 0 {
                    self.tell_resolved(resolved, tools);
                } else {
                    self.lookups.push(Some((now + world::span(&mut tools.rng, 0, 6_000), resolved)));
                }
            }
            Command::JoinLine(_) => unreachable!("every upstream bears all in this world"),
            Command::Verify(question) => {
                hold!(self.verdict.is_none(), "two passwords at a time");
                let verdict = World::verify(&question, &mut tools.rng);
                self.witness.login = Login::Asked;
                if tools.rng.u8(..4) == 0 {
                    self.tell_verified(verdict, tools);
                } else {
                    self.verdict = Some((now + world::span(&mut tools.rng, 0, 6_000), verdict));
                }
            }
            Command::Pump(attempt) => return self.start_pump(attempt, tools),
            Command::Close(closing) => {
                let is_given_up = self.dials.iter().all(|dial| dial.state != DialState::Pending);
                hold!(is_given_up, "closed with an attempt under way");
                let record = self.session.record(closing.reason, now).ok_or("no record")?;
                let ends = Ends { client: &self.client, upstream: self.upstream.as_ref(), now };
                self.witness.check_close(closing, &ends, &record)?;
                self.closing = Some(closing);
            }
        }
        Ok(())
    }

    fn abandon(&mut self, attempt: AttemptId, tools: &mut Tools) -> Verdicts {
        if tools.strikes(Fault::IgnoreAbandon) {
            return Ok(());
        }
        let dial = self.dials.iter_mut().find(|dial| dial.attempt == attempt);
        let Some(dial) = dial.filter(|dial| dial.state == DialState::Pending) else {
            return Err(format!("{attempt:?} is abandoned, and is not under way"));
        };
        dial.state = DialState::Abandoned;
        // As a cancelled operation does, it may end in any way, cancelled or not.
        dial.answer = tools.is_late.then(|| {
            let cancelled = Err(ConnectError::Other(125));
            let outcome = world::connect_outcome(&mut tools.rng).map_or(cancelled, |(_, result)| result);
            (tools.now + world::span(&mut tools.rng, 0, 400), outcome)
        });
        Ok(())
    }

    fn start_pump(&mut self, attempt: AttemptId, tools: &mut Tools) -> Verdicts {
        let is_given_up = self.dials.iter().all(|dial| dial.state != DialState::Pending);
        hold!(is_given_up, "the pump starts with another attempt under way");
        let dial = self.dials.iter_mut().find(|dial| dial.attempt == attempt);
        let Some(DialState::Connected(local)) = dial.as_ref().map(|dial| dial.state) else {
            return Err(format!("{attempt:?} is pumped, and is not connected"));
        };
        self.witness.check_pump(local, tools.now)?;
        let conn = self.world.accept(&mut tools.rng);
        tools.note(|| format!("  the upstream: {conn:?}"));
        self.upstream = Some(conn);
        if self.manner == Manner::Readiness {
            self.receiving[index(Side::Client)] = Receiving::Idle;
        }
        if self.receiving[index(Side::Client)] == Receiving::InFlight {
            let step = self.session.poll_step(Direction::Up);
            hold!(
                step == Some(Step::Receive(Way::Buffer)),
                "a receive is under way, and the pump's first step is {step:?}"
            );
        }
        Ok(())
    }

    /// Whether a stream was ended, which may be all there was left to do.
    fn pump(&mut self, tools: &mut Tools) -> Result<bool, String> {
        let mut has_shut_down = false;
        let mut directions = Direction::BOTH;
        tools.rng.shuffle(&mut directions);
        for direction in directions {
            let (source, sink) = (index(direction.source()), index(direction.sink()));
            while self.outbox[sink].is_empty()
                && let Some(step) = self.session.poll_step(direction)
            {
                match step {
                    Step::Receive(way) => {
                        hold!(self.receiving[source] == Receiving::Idle, "two receives at a time");
                        self.ways[source] = way;
                        if let Some(refusal) = draw_refusal(way, tools) {
                            self.session.handle_pipe_refused(direction, refusal);
                            continue;
                        }
                        self.receiving[source] = Receiving::InFlight;
                        if !self.held[sink].is_empty() && tools.strikes(Fault::SendSurplus) {
                            self.outbox[sink].append(&mut self.held[sink]);
                        }
                        self.held[sink].clear();
                    }
                    Step::Send(bytes) => {
                        hold!(self.sending[sink] == Sending::Nothing, "two sends at a time");
                        hold!((1..=self.held[sink].len()).contains(&bytes), "{bytes} bytes are not there");
                        let is_whole = self.held[sink].len() == bytes || self.ways[source] == Way::Buffer;
                        hold!(is_whole, "bytes that are not to be forwarded are in a pipe");
                        if self.held[sink].len() > bytes && tools.strikes(Fault::SendSurplus) {
                            self.outbox[sink] = self.held[sink].split_off(bytes);
                        }
                        self.held[sink].truncate(bytes);
                        self.sending[sink] = Sending::Held(bytes);
                    }
                    Step::ShutDown => {
                        has_shut_down = true;
                        if !tools.strikes(Fault::SkipShutDown)
                            && let Some(conn) = self.conn_mut(direction.sink())
                        {
                            conn.is_shut_down = true;
                        }
                    }
                }
            }
        }
        Ok(has_shut_down)
    }

    fn flush(&mut self, tools: &mut Tools) {
        for side in [Side::Client, Side::Upstream] {
            let is_free = self.sending[index(side)] == Sending::Nothing;
            if is_free && self.conn(side).is_some() && !self.outbox[index(side)].is_empty() {
                self.sending[index(side)] = Sending::Outbox;
            }
        }
        if self.shuts_down_client && self.outbox[index(Side::Client)].is_empty() {
            self.shuts_down_client = false;
            if !tools.strikes(Fault::SkipShutDown) {
                self.client.is_shut_down = true;
            }
            self.session.handle_shut_down();
        }
    }

    /// Whatever is not over has something under way.
    fn check_progress(&self, tools: &Tools) -> Verdicts {
        self.witness.check_waiting(self.session.poll_timeout(), self.pending(), tools)?;
        for direction in Direction::BOTH {
            let (source, sink) = (index(direction.source()), index(direction.sink()));
            let is_moving = self.receiving[source] == Receiving::InFlight
                || self.sending[sink] != Sending::Nothing
                || self.course[sink] == Course::Over
                || self.session.is_paused(direction);
            let is_stuck = self.session.is_pumping() && !is_moving;
            hold!(!is_stuck, "nothing is under way {direction:?}, nor is it over");
        }
        Ok(())
    }

    fn conn(&self, side: Side) -> Option<&Conn> {
        match side {
            Side::Client => Some(&self.client),
            Side::Upstream => self.upstream.as_ref(),
        }
    }

    fn conn_mut(&mut self, side: Side) -> Option<&mut Conn> {
        match side {
            Side::Client => Some(&mut self.client),
            Side::Upstream => self.upstream.as_mut(),
        }
    }
}

/// Why a pipe is not to be had this time.
fn draw_refusal(way: Way, tools: &mut Tools) -> Option<Refusal> {
    match way {
        Way::Pipe { .. } if tools.rng.u8(..10) == 0 => {
            Some(Refusal::ALL[tools.rng.usize(..Refusal::ALL.len())])
        }
        Way::Pipe { .. } | Way::Buffer => None,
    }
}
