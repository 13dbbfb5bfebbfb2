//! One schedule: a world and a few sessions, from a seed alone.

use std::rc::Rc;
use std::time::Duration;

use ringweir_flow::close::CloseReason;
use ringweir_flow::snapshot::{Snapshot, TargetIndex, TargetKind, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;

use crate::driver::{Act, Driver, Word};
use crate::faults::Fault;
use crate::invariants::{Verdicts, hold};
use crate::world::{self, World};

/// The most sessions of one schedule.
const MAX_SESSIONS: usize = 3;

/// More steps than any schedule needs; one that needs more goes round in circles.
const MAX_STEPS: u32 = 200_000;

/// What every part of a schedule draws from.
pub(crate) struct Tools {
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: Instant,
    /// Whether operations are answered even when nobody waits for them any more.
    pub(crate) is_late: bool,
    /// How late the clock has let things become, in all.
    pub(crate) late: Duration,
    fault: Option<Fault>,
    /// How often the fault struck.
    pub(crate) strikes: u32,
    trace: Trace,
}

/// Where the steps of a schedule are told.
pub(crate) enum Trace {
    Off,
    Kept(Vec<String>),
    /// At once: a panic of flow takes what is kept with it.
    Printed,
}

/// How a schedule went.
pub(crate) struct Report {
    pub(crate) verdict: Verdicts,
    pub(crate) closed: Vec<CloseReason>,
    /// Switches to pipes, switches to buffers, refusals.
    pub(crate) ways: [u64; 3],
    pub(crate) strikes: u32,
    pub(crate) trace: Vec<String>,
}

struct Schedule {
    tools: Tools,
    world: Rc<World>,
    views: Vec<Rc<View>>,
    drivers: Vec<Driver>,
    /// When sessions are accepted, last first; and when the next snapshot comes.
    arrivals: Vec<Instant>,
    swap_at: Option<Instant>,
    closed: Vec<CloseReason>,
}

/// Runs a schedule. A panic of flow is for the caller to catch.
pub(crate) fn run(seed: u64, fault: Option<Fault>, trace: Trace) -> Report {
    let mut schedule = Schedule::new(seed, fault, trace);
    let verdict = schedule.run();
    let trace = match schedule.tools.trace {
        Trace::Kept(lines) => lines,
        Trace::Off | Trace::Printed => Vec::new(),
    };
    let ways = schedule.world.count_ways();
    Report { verdict, closed: schedule.closed, ways, strikes: schedule.tools.strikes, trace }
}

impl Tools {
    /// Notes what happens, where somebody reads it.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        match &mut self.trace {
            Trace::Off => {}
            Trace::Kept(lines) => lines.push(text()),
            Trace::Printed => println!("{}", text()),
        }
    }

    /// Whether the driver is to make this mistake now.
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        let strikes = self.fault == Some(fault);
        self.strikes += u32::from(strikes);
        strikes
    }

    /// The bytes, or what a careless driver makes of them.
    pub(crate) fn spoil(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let (middle, last) = (bytes.len() / 2, bytes.len() - 1);
        match self.fault {
            Some(Fault::DropByte) if bytes.len() > 1 => {
                bytes.remove(middle);
            }
            Some(Fault::DoubleByte) => bytes.insert(middle, bytes[middle]),
            Some(Fault::SwapBytes) if bytes[0] != bytes[last] => bytes.swap(0, last),
            Some(_) | None => return bytes,
        }
        self.strikes += 1;
        bytes
    }

    /// How long a peer rests after a step: mostly not, sometimes beyond every timeout.
    pub(crate) fn draw_rest(&mut self) -> Duration {
        match self.rng.u8(..64) {
            0..=7 => world::span(&mut self.rng, 0, 300),
            8 => world::span(&mut self.rng, 0, 90_000),
            _ => Duration::ZERO,
        }
    }
}

impl Schedule {
    fn new(seed: u64, fault: Option<Fault>, trace: Trace) -> Schedule {
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = Rc::new(World::new(&mut rng));
        let snapshot = world.snapshot(1, &mut rng);
        let view = View::new(snapshot, WorkerIndex(0), rng.u64(..));
        let at = |rng: &mut fastrand::Rng| Instant::ZERO + world::span(rng, 0, 2_000);
        let arrivals = (0..rng.usize(1..=MAX_SESSIONS)).map(|_| at(&mut rng)).collect();
        let swap_at = (rng.u8(..4) == 0).then(|| at(&mut rng));
        let is_late = rng.bool();
        let mut tools =
            Tools { rng, now: Instant::ZERO, is_late, late: Duration::ZERO, fault, strikes: 0, trace };
        tools.note(|| format!("{:?} over {:?}, {:?}", world.protocol, world.kinds, world.timeouts));
        Schedule { tools, world, views: vec![view], drivers: vec![], arrivals, swap_at, closed: vec![] }
    }

    fn run(&mut self) -> Verdicts {
        let mut acts: Vec<(usize, Act)> = Vec::new();
        for _ in 0..MAX_STEPS {
            self.arrive()?;
            acts.clear();
            for (number, driver) in self.drivers.iter().enumerate() {
                driver.list_acts(&self.tools, |act| acts.push((number, act)));
            }
            if acts.is_empty() {
                if !self.skip_time() {
                    return self.check_counters();
                }
                continue;
            }
            let (number, act) = match self.tools.rng.u8(..32) {
                0 => (self.tools.rng.usize(..self.drivers.len()), Act::EarlyTimer),
                _ => acts[self.tools.rng.usize(..acts.len())],
            };
            let now = self.tools.now;
            self.tools.note(|| format!("{:>9} us, session {number}: {act:?}", now.as_micros()));
            self.perform(number, act)?;
            let step = Duration::from_micros(self.tools.rng.u64(..60));
            self.tools.now = now + step;
        }
        Err(format!("not over after {MAX_STEPS} steps"))
    }

    fn perform(&mut self, number: usize, act: Act) -> Verdicts {
        let driver = &mut self.drivers[number];
        let was_open = driver.closing().is_none();
        driver.perform(act, &mut self.tools)?;
        if was_open && let Some(closing) = driver.closing() {
            self.closed.push(closing.reason);
        }
        Ok(())
    }

    fn arrive(&mut self) -> Verdicts {
        let now = self.tools.now;
        if self.swap_at.is_some_and(|at| at <= now)
            && let Some(view) = self.views.last()
        {
            self.swap_at = None;
            let snapshot = self.world.snapshot(2, &mut self.tools.rng);
            self.tools.note(|| "a new snapshot".to_owned());
            self.views.push(view.succeeded_by(snapshot));
        }
        while self.arrivals.last().is_some_and(|at| *at <= now)
            && let Some(view) = self.views.last()
        {
            self.arrivals.pop();
            let mut driver = Driver::accept(&self.world, view, &mut self.tools)?;
            self.closed.extend(driver.closing().map(|closing| closing.reason));
            if self.tools.rng.u8(..10) == 0 {
                let reason = [CloseReason::Stopped, CloseReason::Drained][self.tools.rng.usize(..2)];
                driver.word_at = Some((now + world::span(&mut self.tools.rng, 0, 5_000), Word::Stop(reason)));
            } else if self.tools.rng.u8(..10) == 0
                && let Some((member, order)) = self.world.draw_retirement(&mut self.tools.rng)
            {
                let word = Word::Retire(member, order);
                driver.word_at = Some((now + world::span(&mut self.tools.rng, 0, 5_000), word));
            }
            self.drivers.push(driver);
        }
        Ok(())
    }

    /// On to the next moment when anything may happen, now and then later; false when there is none.
    fn skip_time(&mut self) -> bool {
        let drivers = self.drivers.iter().filter_map(|driver| driver.next_at(&self.tools));
        let arrival = self.arrivals.last().copied();
        let Some(next) = drivers.chain(arrival).chain(self.swap_at).min() else { return false };
        let late = match self.tools.rng.u8(..8) {
            0 => world::span(&mut self.tools.rng, 0, 500),
            _ => Duration::ZERO,
        };
        self.tools.now = self.tools.now.max(next) + late;
        self.tools.late += late;
        true
    }

    /// What is counted is what has happened, and nothing is counted as running when all is over.
    fn check_counters(&self) -> Verdicts {
        let cell = self.world.listener_counters.cell(WorkerIndex(0));
        let sessions = self.drivers.len() as u64;
        hold!(self.closed.len() as u64 == sessions, "{} of {sessions} sessions closed", self.closed.len());
        hold!(cell.active.get() == 0, "{} sessions are counted as active", cell.active.get());
        hold!(cell.accepted.get() == sessions, "{} sessions are counted", cell.accepted.get());
        let is_empty = self.world.limits.as_ref().is_none_or(|limits| limits.sources.is_empty());
        hold!(is_empty, "sources are counted without a session");
        for reason in CloseReason::ALL {
            let seen = self.closed.iter().filter(|closed| **closed == reason).count() as u64;
            let counted = cell.closed[reason.index()].get();
            hold!(seen == counted, "{reason}: {seen} seen and {counted} counted");
        }
        let (mut up, mut down, mut committed, mut resets) = (0, 0, 0, 0);
        for (number, kind) in self.world.kinds.iter().enumerate() {
            let target = self.world.target_counters[number].cell(WorkerIndex(0));
            let failed: u64 = target.failed.iter().map(|counter| counter.get()).sum();
            let (attempts, active) = (target.attempts.get(), target.active.get());
            let ended = target.committed.get() + target.abandoned.get() + failed;
            hold!(active == 0, "target {number} has {active} active at the end");
            hold!(attempts == ended, "target {number}: {attempts} attempts begun and {ended} ended");
            if let TargetKind::Upstream(_) = kind {
                let index = TargetIndex(u32::try_from(number).unwrap());
                let most: usize = self.drivers.iter().map(|driver| self.ways(driver, index)).sum();
                hold!(attempts <= most as u64, "target {number} was tried {attempts} times, not {most}");
                up += target.bytes_up.get();
                down += target.bytes_down.get();
                committed += target.committed.get();
                resets += target.resets.get();
            }
        }
        let pumped = self.drivers.iter().filter(|driver| driver.has_upstream()).count() as u64;
        hold!(committed == pumped, "{pumped} sessions had an upstream, and {committed} are counted");
        let reset = cell.closed[CloseReason::UpstreamReset.index()].get();
        hold!(resets == reset, "{reset} sessions ended by an upstream's reset, and {resets} are counted");
        let seen = (up, down);
        let counted = (cell.bytes_up.get(), cell.bytes_down.get());
        hold!(
            self.tools.is_late || seen == counted,
            "targets count {seen:?} bytes, the listener {counted:?}"
        );
        Ok(())
    }

    fn ways(&self, driver: &Driver, target: TargetIndex) -> usize {
        let snapshot: &Snapshot = driver.view().snapshot();
        driver.root().map_or(0, |root| self.world.ways(snapshot, root, target))
    }
}
