//! Seeded simulation of a group under load: targets that refuse, hang, fall mute, slow down and return, outages of our
//! own, thousands of real sessions of `flow`, and everything that control makes of it, in virtual time.
//!
//! `FLEET_SEED=n cargo test -p ringweir-control fleet` takes one world again; `FLEET_WORLDS=n` runs more than usual.

mod sessions;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::health::{Evidence, Judgement, Verdict, VerdictTerms};
use ringweir_flow::snapshot::{Health, Snapshot, WorkerIndex};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::advance;

use self::sessions::{Happening, Sessions};
use super::{Care, Notice};
use crate::assemble::{Knowledge, assemble};
use crate::check::Finding;
use crate::model::Config;

/// How many worlds are tried unless `FLEET_WORLDS` says otherwise; each has some 1,500 sessions.
const WORLDS: u64 = 100;

/// How long a world lasts.
const LIFE: Duration = Duration::from_secs(240);

/// How often clients come, on average.
const BETWEEN_CLIENTS_MS: u64 = 160;

/// `fall` and `rise`, how long a probe may take, and how long the wait for the next is, its jitter included.
const FALL: u32 = 2;
const RISE: u32 = 1;
const PROBE: Duration = Duration::from_secs(1);
const WAIT_MS: std::ops::RangeInclusive<u64> = 900..=1_100;

/// Within this a target that is dead is found out: a probe that it has just answered, then `fall` probes, each made twice
/// where it is doubted, after its wait.
const FOUND_OUT: Duration = Duration::from_millis(1_000 + FALL as u64 * (2 * 1_000 + 1_100));

/// After this a target that is well is served again, whatever it did before: eight times `rise` for one that flaps, or the
/// longest ejection.
const SETTLED: Duration = Duration::from_secs(25);

const WORKERS: usize = 2;

/// What a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Answers after so many milliseconds.
    Well(u64),
    Refuses,
    /// Nothing comes back.
    Hangs,
    /// Accepts, and never says a word.
    Mute,
}

impl Mood {
    const fn is_well(self) -> bool {
        matches!(self, Mood::Well(_))
    }
}

pub(super) struct Target {
    pub(super) mood: Mood,
    since: Instant,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Mood(usize),
    Probe(usize),
    Probed(usize, bool),
    OutageBegins,
    OutageEnds,
    Client,
    Session(Happening),
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    config: Config,
    knowledge: Knowledge,
    inbox: UnboundedReceiver<Notice>,
    snapshot: Arc<Snapshot>,
    views: Vec<Rc<View>>,
    targets: Vec<Target>,
    /// Since when nothing gets out, or until when nothing did.
    outage: Option<Instant>,
    outage_ended: Option<Instant>,
    /// When control took it to be our own outage last, be it one or not.
    believed_at: Option<Instant>,
    /// Who served, and was not on trial, when the outage began.
    serving_before: Vec<usize>,
    sessions: Sessions,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    seen: Seen,
}

/// What a world had in it.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    served: u64,
    failed: u64,
    found_down: u64,
    ejected: u64,
    outages: u64,
}

#[tokio::test(start_paused = true)]
async fn a_fleet_serves_as_long_as_anybody_is_well() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("FLEET_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLEET_WORLDS").unwrap_or(WORLDS),
    };
    let is_one = seeds.end - seeds.start == 1;
    let mut all = Seen::default();
    for seed in seeds {
        let mut world = World::new(seed);
        if let Err(violation) = world.live().await {
            let at = world.now.as_micros() as f64 / 1e6;
            panic!(
                "seed {seed}, {at:.3} s: {violation}\nagain: FLEET_SEED={seed} cargo test -p ringweir-control fleet"
            );
        }
        let Seen { served, failed, found_down, ejected, outages } = world.seen;
        all.served += served;
        all.failed += failed;
        all.found_down += found_down;
        all.ejected += ejected;
        all.outages += outages;
    }
    println!("{all:?}");
    if !is_one {
        let Seen { served, failed, found_down, ejected, outages } = all;
        assert!(
            served > 1_000 && [failed, found_down, ejected, outages].iter().all(|count| *count > 0),
            "{all:?}"
        );
    }
}

fn configuration(targets: usize, double_check: bool, rng: &mut fastrand::Rng) -> String {
    let policies = [
        "round-robin",
        "random",
        "least-connections",
        "least-latency",
        "failover",
        "failover\"\norder = \"latency\"\ntolerance = \"100ms",
        "hash",
        "race",
    ];
    let policy = policies[rng.usize(..policies.len())];
    let commit = ["connect", "first-byte"][rng.usize(..2)];
    let slow_start = match policy {
        "round-robin" | "random" | "least-connections" | "least-latency" => {
            ["", "slow_start = \"20s\"\n"][rng.usize(..2)]
        }
        _ => "",
    };
    let max_ejected = [0.0, 0.34, 0.5, 1.0][rng.usize(..4)];
    let names: Vec<String> = (0..targets).map(|target| format!("t{target}")).collect();
    let mut text = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n[timeouts]\nconnect = \"2s\"\n\
         [group.pool]\npolicy = \"{policy}\"\nmembers = {names:?}\ncommit = \"{commit}\"\nattempt_timeout = \"2s\"\n\
         check = \"alive\"\npassive = {{ failures = 3, eject = \"3s\", max_eject = \"12s\", max_ejected = {max_ejected:?} }}\n{slow_start}\
         [check.alive]\nschedule = [\"1s\"]\ntimeout = \"1s\"\ndouble_check = {double_check}\n"
    );
    for (number, name) in names.iter().enumerate() {
        text.push_str(&format!("[upstream.{name}]\naddress = \"10.0.0.{number}:1\"\n"));
    }
    text
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(2..=6);
        let double_check = rng.bool();
        let text = configuration(count, double_check, &mut rng);
        let config = crate::config::parse(&text, "fleet", Path::new("")).unwrap();
        let (care, inbox) = Care::new();
        let mut knowledge = Knowledge::default();
        knowledge.care = care;
        knowledge.care.reconfigure(&config);
        let snapshot = Arc::new(assemble(&config, &mut knowledge, &[], WORKERS, 1, false));
        let views = (0..WORKERS)
            .map(|worker| View::new(Arc::clone(&snapshot), WorkerIndex(worker), rng.u64(..)))
            .collect();
        let terms = VerdictTerms { fall: FALL, rise: RISE, double_check };
        let target = |rng: &mut fastrand::Rng| Target {
            mood: Mood::Well(rng.u64(1..200)),
            since: Instant::ZERO,
            verdict: Verdict::new(terms),
        };
        let targets = (0..count).map(|_| target(&mut rng)).collect();
        let mut world = World {
            rng,
            now: Instant::ZERO,
            config,
            knowledge,
            inbox,
            snapshot,
            views,
            targets,
            outage: None,
            outage_ended: None,
            believed_at: None,
            serving_before: Vec::new(),
            sessions: Sessions::default(),
            events: BinaryHeap::new(),
            next_event: 0,
            seen: Seen::default(),
        };
        for target in 0..count {
            world.schedule(0..=1_000, Event::Probe(target));
            world.schedule(5_000..=60_000, Event::Mood(target));
        }
        world.schedule(0..=100, Event::Client);
        world.schedule(50_000..=150_000, Event::OutageBegins);
        world
    }

    fn schedule(&mut self, after_ms: std::ops::RangeInclusive<u64>, event: Event) {
        let after = Duration::from_micros(self.rng.u64(after_ms.start() * 1000..=after_ms.end() * 1000));
        self.next_event += 1;
        self.events.push(Reverse(((self.now + after).as_micros(), self.next_event, event)));
    }

    async fn live(&mut self) -> Result<(), String> {
        while self.now.since(Instant::ZERO) < LIFE {
            let event_at = self.events.peek().map(|Reverse((at, ..))| *at);
            let due = [event_at, self.sessions.next_timeout(), self.care_due()].into_iter().flatten().min();
            let Some(due) = due else { return Err("nothing is left to happen".to_owned()) };
            let next = self.now.max(Instant::from_micros(due));
            advance(next.since(self.now)).await;
            self.now = next;
            if event_at == Some(due)
                && let Some(Reverse((_, _, event))) = self.events.pop()
            {
                self.happen(event);
            } else {
                self.sessions.handle_timeouts(self.now);
                if self.care_due().is_some_and(|at| at <= due) && self.knowledge.care.handle_timeout() {
                    self.publish();
                }
            }
            self.serve()?;
            self.heed();
            self.check()?;
        }
        Ok(())
    }

    /// When control waits for the clock, in microseconds.
    fn care_due(&self) -> Option<u64> {
        let at = self.knowledge.care.poll_timeout()?;
        let left = at.saturating_duration_since(tokio::time::Instant::now());
        Some((self.now + left).as_micros())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Mood(target) => {
                let next = match self.targets[target].mood {
                    Mood::Well(_) if self.rng.u8(..3) == 0 => Mood::Well(self.rng.u64(1..900)),
                    Mood::Well(_) => [Mood::Refuses, Mood::Hangs, Mood::Mute][self.rng.usize(..3)],
                    Mood::Refuses | Mood::Hangs | Mood::Mute => Mood::Well(self.rng.u64(1..200)),
                };
                let known = &mut self.targets[target];
                // One that is well and grows slower stays well.
                if known.mood.is_well() != next.is_well() {
                    known.since = self.now;
                }
                known.mood = next;
                // Some flap.
                let stays = if self.rng.u8(..4) == 0 { 500..=4_000 } else { 5_000..=60_000 };
                self.schedule(stays, Event::Mood(target));
            }
            Event::OutageBegins => {
                self.outage = Some(self.now);
                let serving = |target: &usize| {
                    let health = self.snapshot.targets[self.index_of(*target)].health;
                    matches!(health, Health::Up | Health::Unknown)
                };
                self.serving_before = (0..self.targets.len()).filter(serving).collect();
                self.schedule(3_000..=20_000, Event::OutageEnds);
            }
            Event::OutageEnds => {
                self.outage = None;
                self.outage_ended = Some(self.now);
            }
            Event::Probe(target) => match self.mood(target) {
                Mood::Well(latency_ms) => self.schedule(latency_ms..=latency_ms, Event::Probed(target, true)),
                Mood::Refuses => self.schedule(0..=2, Event::Probed(target, false)),
                // A connect is all that such a check wants.
                Mood::Mute => self.schedule(1..=5, Event::Probed(target, true)),
                Mood::Hangs => self.schedule(1_000..=1_000, Event::Probed(target, false)),
            },
            Event::Probed(target, is_well) => self.find(target, is_well),
            Event::Client => {
                let worker = self.rng.usize(..WORKERS);
                let client = self.rng.u8(..);
                self.sessions.accept(&self.views[worker], client, self.now);
                self.schedule(0..=2 * BETWEEN_CLIENTS_MS, Event::Client);
            }
            Event::Session(happening) => self.sessions.happen(happening, self.now),
        }
    }

    /// What it does as far as anybody here can see.
    fn mood(&self, target: usize) -> Mood {
        if self.outage.is_some() { Mood::Hangs } else { self.targets[target].mood }
    }

    /// As a running check does.
    fn find(&mut self, target: usize, is_well: bool) {
        let evidence = match (is_well, self.mood(target)) {
            (true, _) | (false, Mood::Refuses) => Evidence::Answer,
            (false, Mood::Well(_) | Mood::Hangs | Mood::Mute) => Evidence::Silence,
        };
        let judgement = self.targets[target].verdict.handle(is_well, self.now);
        if judgement == Judgement::Doubted {
            self.schedule(0..=0, Event::Probe(target));
            return;
        }
        self.schedule(WAIT_MS, Event::Probe(target));
        let name: Arc<str> = format!("t{target}").into();
        let finding = Finding {
            target: Arc::clone(&name),
            error: (!is_well).then(|| "failed".to_owned()),
            took: match self.mood(target) {
                Mood::Well(latency_ms) => Duration::from_millis(latency_ms),
                Mood::Refuses | Mood::Hangs | Mood::Mute => PROBE,
            },
            stages: Vec::new(),
            evidence,
            health: self.targets[target].verdict.health(),
        };
        let is_news = self.knowledge.care.handle_probe(&finding, &self.config);
        let before = self.knowledge.health.insert(name, finding.health);
        let changed = before.unwrap_or(Health::Unknown) != finding.health;
        self.seen.found_down += u64::from(changed && finding.health == Health::Down);
        if changed || is_news {
            self.publish();
        }
    }

    /// What workers have called for.
    fn heed(&mut self) {
        while let Ok(notice) = self.inbox.try_recv() {
            let is_changed = match notice {
                Notice::Raised(target) => self.knowledge.care.handle_raised(&target, &self.snapshot),
                Notice::Probed { .. } => false,
            };
            if is_changed {
                self.publish();
            }
        }
    }

    /// As the daemon does.
    fn publish(&mut self) {
        let generation = self.snapshot.generation + 1;
        let assemble = |knowledge: &mut Knowledge, config: &Config| {
            assemble(config, knowledge, &[], WORKERS, generation, false)
        };
        let mut next = assemble(&mut self.knowledge, &self.config);
        if self.knowledge.care.release_the_needed(&next) {
            next = assemble(&mut self.knowledge, &self.config);
        }
        if self.knowledge.care.handle_change((&self.snapshot, &next), &self.config, |_, _| None) {
            next = assemble(&mut self.knowledge, &self.config);
        }
        for (before, after) in self.snapshot.targets.iter().zip(&next.targets) {
            let is_ejected = after.health == Health::Ejected && before.health != Health::Ejected;
            self.seen.ejected += u64::from(is_ejected);
        }
        self.snapshot = Arc::new(next);
        for view in &mut self.views {
            *view = view.succeeded_by(Arc::clone(&self.snapshot));
        }
    }
}

// What must hold.
impl World {
    /// Lets sessions go on, and judges those that have ended.
    fn serve(&mut self) -> Result<(), String> {
        let moods: Vec<Mood> = (0..self.targets.len()).map(|target| self.mood(target)).collect();
        let (happenings, begun, ended) = self.sessions.drive(&moods, self.now);
        for (after, happening) in happenings {
            self.next_event += 1;
            let at = (self.now + after).as_micros();
            self.events.push(Reverse((at, self.next_event, Event::Session(happening))));
        }
        for (target, accepted_at) in begun {
            self.check_pick(target, accepted_at)?;
        }
        for (accepted_at, is_served) in ended {
            if is_served {
                self.seen.served += 1;
            } else {
                self.seen.failed += 1;
                self.check_failure(accepted_at)?;
            }
        }
        Ok(())
    }

    /// A dead member is not picked any more by clients that come after it could be found out.
    fn check_pick(&self, target: usize, accepted_at: Instant) -> Result<(), String> {
        let Target { mood, since, .. } = self.targets[target];
        let is_dead = matches!(mood, Mood::Refuses | Mood::Hangs);
        let is_disturbed = self.outage.is_some() || self.outage_ended.is_some_and(|at| at + SETTLED > since);
        if is_dead && !is_disturbed && accepted_at > since + FOUND_OUT {
            // All of them may have died within one round: that is taken for an outage while nobody answers, and each has
            // a probe of its own after it.
            let is_excused = self.believed_at.is_some_and(|at| at + FOUND_OUT > accepted_at);
            if !is_excused {
                return Err(format!("t{target} was picked, which {mood:?} since {since:?}: {}", self.show()));
            }
        }
        Ok(())
    }

    fn index_of(&self, target: usize) -> usize {
        let name = format!("t{target}");
        self.snapshot.targets.iter().position(|known| *known.name == *name).unwrap()
    }

    /// No session fails while some member could have served it.
    fn check_failure(&self, accepted_at: Instant) -> Result<(), String> {
        let is_undisturbed =
            |at: Instant| self.outage.is_none() && self.outage_ended.is_none_or(|ended| ended + SETTLED < at);
        let well = (0..self.targets.len()).find(|target| {
            let known = &self.targets[*target];
            known.mood.is_well() && known.since + SETTLED < accepted_at
        });
        match well {
            Some(target) if is_undisturbed(accepted_at) => {
                Err(format!("a session of {accepted_at:?} failed though t{target} is well: {}", self.show()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let healths: Vec<Health> = (0..self.targets.len())
            .map(|target| self.snapshot.targets[self.index_of(target)].health)
            .collect();
        let ejected = healths.iter().filter(|health| **health == Health::Ejected).count();
        let pool = self.config.targets.iter().find(|target| &*target.name == "pool");
        let share = pool.map_or(0.0, |target| target.health.max_ejected);
        if ejected > (healths.len() as f64 * share).floor() as usize {
            return Err(format!("{ejected} of {} are ejected, {share} may be", healths.len()));
        }
        let (outage, outages) = self.knowledge.care.outage();
        self.seen.outages = outages;
        if outage.is_some() {
            self.believed_at = Some(self.now);
        }
        for (target, health) in healths.iter().enumerate() {
            let known = &self.targets[target];
            let was_well = |at: Instant| known.mood.is_well() && known.since + SETTLED < at;
            let is_out = !health.is_available();
            // A steady target is left in peace, whatever the others do.
            let is_calm = self.outage.is_none() && self.outage_ended.is_none_or(|at| at + SETTLED < self.now);
            if is_calm && was_well(self.now) && is_out {
                return Err(format!("t{target} is well, and {health:?}: {}", self.show()));
            }
            // Once our own outage is known, it throws nobody out.
            if let (Some(began), Some(_)) = (self.outage, outage)
                && was_well(began)
                && self.serving_before.contains(&target)
                && is_out
            {
                return Err(format!("t{target} is {health:?} for our own outage: {}", self.show()));
            }
        }
        Ok(())
    }

    fn show(&self) -> String {
        let each = self.targets.iter().enumerate().map(|(number, target)| {
            let health = self.snapshot.targets[self.index_of(number)].health;
            format!("t{number} {:?} since {:?} is {health:?}", target.mood, target.since)
        });
        let each: Vec<String> = each.collect();
        let events: Vec<String> = (self.knowledge.care.history.entries().iter().rev().take(8))
            .map(|entry| format!("{} {} {:?}", entry.target, entry.event.as_str(), entry.why))
            .collect();
        format!("{events:?} {}; outage {:?} until {:?}", each.join(", "), self.outage, self.outage_ended)
    }
}
