//! What control makes of real traffic: ejections, trials, slow starts and the rosters of groups, beside what checks
//! find. The decisions are flow's (`ringweir_flow::health`); here are their clock, their names and their effect on the
//! snapshot.

pub(crate) mod history;
mod network;
pub(crate) mod retire;
pub(crate) mod serving;
pub(crate) mod speed;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::account::TargetCounters;
use ringweir_flow::health::{
    Alarm, Cause, Move, News, Outcomes, Pool, RAMP_STEPS, Ramp, Ranking, Roster, Standing, Terms, Trial,
    Ward, Watch, Wellness,
};
use ringweir_flow::snapshot::{Group, Health, Member, Role, Snapshot, TargetKind};
use ringweir_flow::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant as Clock;

use self::history::{History, Incident};
use self::network::Network;
use self::serving::Leads;
use crate::check::Finding;
use crate::model::{self, Config};

/// How long a spare that failed its probe is passed over where no check tells of it.
const FORGIVE_AFTER: Duration = Duration::from_secs(30);

/// The share of one probe in what is known of a latency is one of this.
const LATENCY_SHARE: u32 = 4;

/// What reaches control of health beside the findings of checks.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A worker has seen too much at a target, or the end of a trial. At most one a target is under way.
    Raised(Arc<str>),
    /// The probe of a spare that is to take a place.
    Probed { group: Arc<str>, spare: Arc<str>, error: Option<String> },
}

/// Where workers call.
#[derive(Debug)]
struct Bell(UnboundedSender<Notice>);

impl Alarm for Bell {
    fn raise(&self, target: &Arc<str>) {
        // Nobody listens when the daemon ends.
        let _ = self.0.send(Notice::Raised(Arc::clone(target)));
    }
}

/// What is known of targets from real traffic, and what follows from it.
#[derive(Debug)]
pub(crate) struct Care {
    origin: Clock,
    notices: UnboundedSender<Notice>,
    watches: HashMap<Arc<str>, Arc<Watch>>,
    ward: Ward,
    /// Members whose weight still grows, by the names of the group and of the member.
    ramps: BTreeMap<(Arc<str>, Arc<str>), Ramp>,
    /// Of groups of which not all members serve.
    rosters: BTreeMap<Arc<str>, Roster>,
    /// Of groups that go by latency.
    rankings: BTreeMap<Arc<str>, Ranking>,
    /// How quickly targets answered their probes of late.
    latencies: HashMap<Arc<str>, Duration>,
    network: Network,
    leads: Leads,
    forgive_at: Option<Instant>,
    rng: fastrand::Rng,
    pub(crate) history: History,
    /// Since when a target's health is what it is, and why.
    standings: HashMap<Arc<str>, (Clock, Option<String>)>,
}

impl Default for Care {
    fn default() -> Care {
        Care::new().0
    }
}

impl Care {
    /// Cares for nobody yet; what happens comes by the other.
    pub(crate) fn new() -> (Care, UnboundedReceiver<Notice>) {
        let (notices, inbox) = unbounded_channel();
        let care = Care {
            origin: Clock::now(),
            notices,
            watches: HashMap::new(),
            ward: Ward::default(),
            ramps: BTreeMap::new(),
            rosters: BTreeMap::new(),
            rankings: BTreeMap::new(),
            latencies: HashMap::new(),
            network: Network::default(),
            leads: Leads::default(),
            forgive_at: None,
            rng: fastrand::Rng::new(),
            history: History::default(),
            standings: HashMap::new(),
        };
        (care, inbox)
    }

    /// Where probes of spares are to be told.
    pub(crate) fn notices(&self) -> UnboundedSender<Notice> {
        self.notices.clone()
    }

    /// Another configuration. Whoever stays keeps how it stands.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        let now = self.now();
        let watched: Vec<(Arc<str>, Terms)> = config
            .targets
            .iter()
            .filter_map(|target| Some((Arc::clone(&target.name), target.health.passive?)))
            .collect();
        let before = std::mem::take(&mut self.watches);
        for (name, terms) in &watched {
            let same = before.get(name).filter(|watch| watch.failures() == terms.failures).cloned();
            let fresh = || Watch::new(Arc::clone(name), terms.failures, Arc::new(Bell(self.notices.clone())));
            self.watches.insert(Arc::clone(name), same.unwrap_or_else(|| Arc::new(fresh())));
        }
        let pools = groups(config).map(|(target, group)| {
            let names = member_names(config, group);
            let watched = names.into_iter().filter(|name| self.watches.contains_key(name)).collect();
            Pool::new(watched, target.health.max_ejected)
        });
        let pools = pools.collect();
        self.ward.reconfigure(watched, pools, now);
        let rosters = std::mem::take(&mut self.rosters);
        for (target, group) in groups(config) {
            let Some(active) = target.health.active else { continue };
            let names = member_names(config, group);
            let roster = match rosters.get(&target.name) {
                Some(before) => before.succeeded_by(names, active),
                None => Roster::new(names, active),
            };
            self.rosters.insert(Arc::clone(&target.name), roster);
        }
        let rankings = std::mem::take(&mut self.rankings);
        for (target, group) in groups(config).filter(|(target, _)| target.health.tolerance.is_some()) {
            let names = member_names(config, group);
            let ranking = match rankings.get(&target.name) {
                Some(before) => before.succeeded_by(names),
                None => Ranking::new(names),
            };
            self.rankings.insert(Arc::clone(&target.name), ranking);
        }
        let known: HashSet<&str> = config.targets.iter().map(|target| &*target.name).collect();
        let is_known = |name: &str| known.contains(name);
        self.ramps.retain(|(group, member), _| is_known(group) && is_known(member));
        self.standings.retain(|name, _| is_known(name));
        for target in &config.targets {
            self.standings.entry(Arc::clone(&target.name)).or_insert_with(|| (Clock::now(), None));
        }
        self.leads.retain(is_known);
        self.latencies.retain(|name, _| is_known(name));
        self.network.reconfigure(config, is_known);
        self.history.retain(is_known);
    }

    /// How a target's real traffic is watched.
    pub(crate) fn watch(&self, target: &str) -> Option<Arc<Watch>> {
        self.watches.get(target).cloned()
    }

    /// The health of an upstream of which checks say `found`.
    pub(crate) fn health(&self, target: &str, found: Health) -> Health {
        let is_excused = found == Health::Down && self.network.excuses(target);
        let found = if is_excused { Health::Up } else { found };
        match self.ward.standing(target) {
            Standing::Ejected { .. } if found.is_available() => Health::Ejected,
            Standing::OnTrial(_) if found.is_available() => Health::Trial,
            Standing::Serving | Standing::Ejected { .. } | Standing::OnTrial(_) => found,
        }
    }

    /// The trial of a target, if it is on one.
    pub(crate) fn trial(&self, target: &str) -> Option<Arc<Trial>> {
        match self.ward.standing(target) {
            Standing::OnTrial(trial) => Some(trial),
            Standing::Serving | Standing::Ejected { .. } => None,
        }
    }

    /// A group with the roles and weights of this moment: the reserve are backups, and who slowly starts weighs less.
    pub(crate) fn group(&self, config: &Config, name: &Arc<str>, group: &Group) -> Group {
        let mut members = group.members.to_vec();
        if let Some(ranking) = self.rankings.get(name) {
            let place = |member: &Member| {
                ranking.order().iter().position(|name| *name == config.targets[member.target.0 as usize].name)
            };
            members.sort_by_cached_key(|member| place(member).unwrap_or(usize::MAX));
        }
        let name_of = |member: &Member| &config.targets[member.target.0 as usize].name;
        if let Some(roster) = self.rosters.get(name) {
            let serving: HashSet<&Arc<str>> = roster.serving().collect();
            for member in members.iter_mut().filter(|member| !serving.contains(name_of(member))) {
                member.role = Role::Backup;
            }
        } else if self.ramps.is_empty() && !self.rankings.contains_key(name) {
            return group.clone();
        }
        let now = self.now();
        let ramp = |member: &Member| {
            let key = (Arc::clone(name), Arc::clone(name_of(member)));
            self.ramps.get(&key).map_or(RAMP_STEPS, |ramp| ramp.steps(now))
        };
        let steps: Vec<u32> = members.iter().map(ramp).collect();
        if steps.iter().any(|steps| *steps < RAMP_STEPS) {
            for (member, steps) in members.iter_mut().zip(steps) {
                member.weight *= steps;
            }
        }
        group.with_members(members.into())
    }

    /// The members of a group that wait in its reserve.
    pub(crate) fn reserve(&self, group: &str) -> Vec<String> {
        let names = |roster: &Roster| roster.reserve().map(|name| name.to_string()).collect();
        self.rosters.get(group).map(names).unwrap_or_default()
    }

    /// How often a target was ejected.
    pub(crate) fn ejections(&self, target: &str) -> u64 {
        self.ward.ejections(target)
    }

    /// Since when a target's health is what it is, and why.
    pub(crate) fn standing(&self, target: &str) -> (Duration, Option<String>) {
        let (since, why) = self.standings.get(target).cloned().unwrap_or((self.origin, None));
        (since.elapsed(), why)
    }

    /// When [`Care::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Clock> {
        let now = self.now();
        let ramps = self.ramps.values().map(|ramp| ramp.poll_timeout(now).unwrap_or(now)).min();
        let next = [self.ward.poll_timeout(), ramps, self.forgive_at].into_iter().flatten().min()?;
        Some(self.origin + Duration::from_micros(next.as_micros()))
    }

    /// A target was probed; true when the snapshot is not what it should be any more.
    pub(crate) fn handle_probe(&mut self, finding: &Finding, config: &Config) -> bool {
        let is_excused = self.network.excuses(&finding.target);
        let names = config.targets.iter().map(|target| &target.name);
        let news = self.network.handle(&finding.target, finding.evidence, self.now());
        self.network.excuse(&finding.target, names.clone());
        if news == News::Began {
            // Sessions may have noticed before the probes did.
            let (now, window) = (self.now(), self.network.window());
            for name in names.filter(|name| self.network.excuses(name)) {
                self.ward.pardon(name, window, now);
            }
        }
        self.history.record_outage(news);
        let has_news = news != News::None || is_excused != self.network.excuses(&finding.target);
        let took = finding.error.is_none().then_some(finding.took);
        self.rank(&finding.target, took, config) || has_news
    }

    /// Others are probed from now on: those who are not say nothing of the network.
    pub(crate) fn retain_probed(&mut self, is_probed: impl Fn(&str) -> bool) {
        let news = self.network.retain(is_probed);
        self.history.record_outage(news);
    }

    /// Since when our own network is taken to be down, and how often it was.
    pub(crate) fn outage(&self) -> (Option<Duration>, u64) {
        (self.network.since().map(|since| self.now().since(since)), self.network.outages())
    }

    fn rank(&mut self, name: &Arc<str>, took: Option<Duration>, config: &Config) -> bool {
        if self.rankings.is_empty() {
            return false;
        }
        match took {
            Some(took) => {
                let known = self.latencies.entry(Arc::clone(name)).or_insert(took);
                *known = (*known * (LATENCY_SHARE - 1) + took) / LATENCY_SHARE;
            }
            // When it answers again, what was before counts for nothing.
            None => drop(self.latencies.remove(name)),
        }
        let mut has_changed = false;
        for (target, _) in groups(config) {
            let (Some(tolerance), Some(ranking)) =
                (target.health.tolerance, self.rankings.get_mut(&target.name))
            else {
                continue;
            };
            let latency = |name: &str| best_latency(config, &self.latencies, name);
            has_changed |= ranking.handle_latencies(latency, tolerance);
        }
        has_changed
    }

    /// Time has passed; true when the snapshot is not what it should be any more.
    pub(crate) fn handle_timeout(&mut self) -> bool {
        let now = self.now();
        let is_ramping = !self.ramps.is_empty();
        self.ramps.retain(|_, ramp| !ramp.is_over(now));
        if self.forgive_at.take_if(|at| now >= *at).is_some() {
            self.rosters.values_mut().for_each(Roster::forgive);
        }
        !self.ward.handle_timeout(now).is_empty() || is_ramping
    }

    /// A worker has called; true when the snapshot is not what it should be any more.
    pub(crate) fn handle_raised(&mut self, name: &Arc<str>, snapshot: &Snapshot) -> bool {
        let Some(watch) = self.watches.get(name) else { return false };
        // What happens from here on is worth another call, which finds what is read below or later.
        watch.acknowledge();
        let now = self.now();
        if self.ward.handle_trial(name, now).is_some() {
            return true;
        }
        let targets = &snapshot.targets;
        let Some(target) = targets.iter().find(|target| target.name == *name) else { return false };
        let Some(cause) = too_much(&target.counters, watch.failures()) else { return false };
        // Neither a connect nor an answer gets through.
        if self.network.excuses(name) {
            return false;
        }
        let is_available =
            |other: &str| targets.iter().any(|target| &*target.name == other && target.is_available());
        self.ward.handle_failures(name, cause, is_available, now)
    }

    /// Lets back who was ejected from a group of which nobody else is left; true when there was somebody.
    pub(crate) fn release_the_needed(&mut self, snapshot: &Snapshot) -> bool {
        let now = self.now();
        let mut is_released = false;
        for target in &snapshot.targets {
            let TargetKind::Group(group) = &target.kind else { continue };
            let members = || group.members.iter().map(|member| snapshot.target(member.target));
            if members().any(|member| member.health.is_available()) {
                continue;
            }
            for member in members().filter(|member| member.health == Health::Ejected) {
                is_released |= self.ward.release(&member.name, now);
            }
        }
        is_released
    }

    /// The probe of a spare has ended; true when the snapshot is not what it should be any more.
    pub(crate) fn handle_probed(&mut self, group: &Arc<str>, spare: &str, error: Option<String>) -> bool {
        let wellness = if error.is_none() { Wellness::Well } else { Wellness::Ill };
        if let Some(error) = error {
            tracing::info!(group = &**group, spare, error, "a spare failed its probe and is passed over");
            self.forgive_at = Some(self.now() + FORGIVE_AFTER);
        }
        let Some(roster) = self.rosters.get_mut(group) else { return false };
        let Some(Move::Replaced { out, by }) = roster.handle_probed(spare, wellness) else { return false };
        let why = match out {
            Some(out) => format!("{by} in the place of {out}"),
            None => format!("{by} in a place that was free"),
        };
        self.history.record(group, Incident::Replaced, Some(why));
        true
    }

    /// The spares that are to be probed now, by group: told how everybody is.
    pub(crate) fn spares_to_probe(&mut self, snapshot: &Snapshot) -> Vec<(Arc<str>, Arc<str>)> {
        if self.rosters.is_empty() {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        let wellness: HashMap<&str, Wellness> = snapshot
            .targets
            .iter()
            .map(|target| {
                let is_well = target.health.is_available();
                (&*target.name, if is_well { Wellness::Well } else { Wellness::Ill })
            })
            .collect();
        for (group, roster) in &mut self.rosters {
            roster.handle_all(|name| wellness.get(name).copied());
            match roster.poll(&mut self.rng) {
                Some(Move::Probe(spare)) => wanted.push((Arc::clone(group), spare)),
                Some(Move::Replaced { .. }) | None => {}
            }
        }
        wanted
    }

    /// One snapshot is about to follow another: tells what has changed, `why` by name. True when a member's weight is
    /// to grow from now on, so that the snapshot must be put together anew.
    pub(crate) fn handle_change(
        &mut self,
        (before, after): (&Snapshot, &Snapshot),
        config: &Config,
        why: impl Fn(&str, Health) -> Option<String>,
    ) -> bool {
        let old: HashMap<&str, Health> =
            before.targets.iter().map(|target| (&*target.name, target.health)).collect();
        let now = self.now();
        let mut is_ramping = false;
        for target in &after.targets {
            let Some(was) = old.get(&*target.name).copied() else { continue };
            let Some(incident) = Incident::of_change(was, target.health) else { continue };
            let is_empty = matches!(target.kind, TargetKind::Group(_)) && target.health == Health::Down;
            let why = self.cause(&target.name).or_else(|| why(&target.name, target.health));
            let why = why.or_else(|| is_empty.then(|| "no member is left".to_owned()));
            self.standings.insert(Arc::clone(&target.name), (Clock::now(), why.clone()));
            self.history.record(&target.name, incident, why);
            if matches!(incident, Incident::Up | Incident::Returned) && was != Health::Unknown {
                is_ramping |= self.begin_ramps(&target.name, config, now);
            }
        }
        for (group, how) in self.leads.follow(before, after) {
            self.history.record(&group, Incident::Switched, Some(how));
        }
        is_ramping
    }

    fn cause(&self, target: &str) -> Option<String> {
        match self.ward.standing(target) {
            Standing::Ejected { cause, until } => {
                let left = until.since(self.now()).as_secs_f64().round();
                Some(format!("{}; for {left} s", cause.as_str()))
            }
            Standing::OnTrial(_) => Some("one session is let through".to_owned()),
            Standing::Serving => None,
        }
    }

    fn begin_ramps(&mut self, member: &Arc<str>, config: &Config, now: Instant) -> bool {
        let mut has_begun = false;
        for (target, group) in groups(config) {
            let Some(span) = target.health.slow_start else { continue };
            if group.policy.is_weighted() && member_names(config, group).contains(member) {
                let key = (Arc::clone(&target.name), Arc::clone(member));
                self.ramps.insert(key, Ramp::new(span, now));
                has_begun = true;
            }
        }
        has_begun
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.origin.elapsed()
    }
}

/// What a target fails at, if it does so too often.
fn too_much(counters: &TargetCounters, failures: u32) -> Option<Cause> {
    let outcomes = Outcomes::of(counters);
    [Cause::Connect, Cause::Answer].into_iter().find(|cause| outcomes.in_a_row(*cause) >= u64::from(failures))
}

/// That of an upstream; of a group, that of its quickest member. The configuration bounds the depth and has no cycles.
fn best_latency(config: &Config, known: &HashMap<Arc<str>, Duration>, name: &str) -> Option<Duration> {
    let target = config.targets.iter().find(|target| *target.name == *name)?;
    match &target.kind {
        model::TargetKind::Upstream(_) => known.get(name).copied(),
        model::TargetKind::Group(group) => {
            let names = member_names(config, group);
            names.iter().filter_map(|name| best_latency(config, known, name)).min()
        }
    }
}

fn groups(config: &Config) -> impl Iterator<Item = (&model::Target, &Group)> {
    config.targets.iter().filter_map(|target| match &target.kind {
        model::TargetKind::Group(group) => Some((target, group)),
        model::TargetKind::Upstream(_) => None,
    })
}

fn member_names(config: &Config, group: &Group) -> Vec<Arc<str>> {
    group.members.iter().map(|member| Arc::clone(&config.targets[member.target.0 as usize].name)).collect()
}

#[cfg(test)]
mod fleet;
#[cfg(test)]
mod tests;
