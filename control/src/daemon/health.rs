//! What becomes of targets: findings of checks, what workers have seen, the operator's word; and the snapshot that
//! follows from it.

use std::sync::Arc;

use ringweir_flow::snapshot::{Health, Policy};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Daemon, LONGEST_PROBE, Observation, Phase, Probed, Word};
use crate::assemble::assemble;
use crate::bind::Opened;
use crate::check::{self, Finding, Prober};
use crate::health::Notice;
use crate::health::serving::{members_out, serving};
use crate::model::TargetKind;
use crate::rules;
use crate::state;
use crate::status::{self, CheckStatus, OutStatus, Status};

/// Why a target is disabled that the operator has not disabled.
const CONFIGURED: &str = "the configuration's word";

impl Daemon {
    pub(super) fn handle_finding(&mut self, finding: Finding) {
        let target = Arc::clone(&finding.target);
        // A probe that was under way when its target was removed.
        if !self.checks.contains_key(&target) {
            return;
        }
        let now = Instant::now();
        let is_news = self.knowledge.care.handle_probe(&finding, &self.config);
        let before = self.knowledge.health.insert(Arc::clone(&target), finding.health);
        let changed = before.unwrap_or(Health::Unknown) != finding.health;
        let health_since = match self.last_probes.get(&target) {
            Some(probed) if !changed => probed.health_since,
            Some(_) | None => now,
        };
        self.last_probes.insert(target, Probed { finding, at: now, health_since });
        if changed || is_news {
            self.publish(Vec::new());
        }
    }

    /// A worker has called, or a spare was probed.
    pub(super) fn handle_notice(&mut self, notice: Notice) {
        let care = &mut self.knowledge.care;
        let is_changed = match notice {
            Notice::Raised(target) => care.handle_raised(&target, &self.snapshot),
            Notice::Probed { group, spare, error } => care.handle_probed(&group, &spare, error),
        };
        if is_changed {
            self.publish(Vec::new());
        } else {
            self.replace_ill_members();
        }
    }

    /// The time of an ejection, or of a step of a slow start, has come.
    pub(super) fn handle_care_due(&mut self) {
        if self.knowledge.care.handle_timeout() {
            self.publish(Vec::new());
        } else {
            self.replace_ill_members();
        }
    }

    /// Puts a snapshot together and gives it to the engine.
    pub(super) fn publish(&mut self, opened: Vec<Opened>) {
        let generation = self.snapshot.generation + 1;
        let mut snapshot = self.assemble(generation);
        if self.knowledge.care.release_the_needed(&snapshot) {
            snapshot = self.assemble(generation);
        }
        let (probes, words) = (&self.last_probes, &self.knowledge.disabled);
        let (plugins, config) = (&self.knowledge.plugins, &self.config);
        let why = |name: &str, health: Health| match health {
            Health::Down if plugins.why(config, name).is_some() => plugins.why(config, name),
            Health::Down => probes.get(name).and_then(|probed| probed.finding.error.clone()),
            Health::Disabled if !words.contains_key(name) => Some(CONFIGURED.to_owned()),
            Health::Draining | Health::Disabled => Some("the operator's word".to_owned()),
            Health::Unknown | Health::Up | Health::Ejected | Health::Trial => None,
        };
        let change = (&*self.snapshot, &snapshot);
        if self.knowledge.care.handle_change(change, &self.config, why) {
            snapshot = self.assemble(generation);
        }
        let orders = self.retirements.follow(&self.snapshot, &snapshot);
        self.snapshot = Arc::new(snapshot);
        self.driver.publish(Arc::clone(&self.snapshot), opened);
        for order in orders {
            self.driver.retire(order);
        }
        self.replace_ill_members();
    }

    fn assemble(&mut self, generation: u64) -> ringweir_flow::snapshot::Snapshot {
        let sessions = self.config.log.sessions;
        assemble(&self.config, &mut self.knowledge, &self.binds, self.workers, generation, sessions)
    }

    /// Probes spares whose turn it is; the answers come as notices.
    fn replace_ill_members(&mut self) {
        for (group, spare) in self.knowledge.care.spares_to_probe(&self.snapshot) {
            let notices = self.knowledge.care.notices();
            let target = self.config.targets.iter().find(|target| target.name == spare);
            let (names, probes) = (Arc::clone(&self.names), Arc::clone(&self.probes));
            match target.map(|target| &target.kind) {
                Some(TargetKind::Upstream(upstream)) => {
                    let Some(upstream) = self.knowledge.plugins.dialled(upstream) else {
                        let error = Some("its plugin does not listen".to_owned());
                        let _ = notices.send(Notice::Probed { group, spare, error });
                        continue;
                    };
                    let mut prober = Prober::once(Arc::clone(&spare), upstream, names);
                    tokio::spawn(async move {
                        // The semaphore is never closed.
                        let _permit = probes.acquire().await;
                        let error = prober.probe().await.error;
                        // Nobody listens when the daemon ends.
                        let _ = notices.send(Notice::Probed { group, spare, error });
                    });
                }
                // What is inside a group was judged where it stands.
                Some(TargetKind::Group(_)) | None => {
                    let _ = notices.send(Notice::Probed { group, spare, error: None });
                }
            }
        }
    }

    /// New sessions of a group go to this member, and to no other.
    pub(super) fn select(&mut self, group: &str, member: &str) -> Result<String, String> {
        let target = |name: &str| self.config.targets.iter().find(|target| *target.name == *name);
        let Some((name, TargetKind::Group(found))) = target(group).map(|target| (&target.name, &target.kind))
        else {
            return Err(format!("there is no group {group:?}\n"));
        };
        if found.policy != Policy::Select {
            return Err(format!(
                "{group} picks by itself: only groups with policy = \"select\" are told whom\n"
            ));
        }
        let names: Vec<&Arc<str>> =
            found.members.iter().map(|member| &self.config.targets[member.target.0 as usize].name).collect();
        let Some(chosen) = names.iter().find(|name| &****name == member) else {
            let names: Vec<&str> = names.iter().map(|name| &***name).collect();
            return Err(format!("{member:?} is no member of {group}: it has {}\n", names.join(", ")));
        };
        let (name, chosen) = (Arc::clone(name), Arc::clone(chosen));
        self.knowledge.selected.insert(Arc::clone(&name), Arc::clone(&chosen));
        self.publish(Vec::new());
        Ok(format!("{group} leads to {chosen}{}\n", self.keep_selections()))
    }

    /// What is to be said of that, if anything.
    fn keep_selections(&self) -> String {
        let Some(path) = self.config.state.as_deref() else {
            return "; not across a restart, for want of state.file".to_owned();
        };
        match state::save(path, &self.knowledge.selected) {
            Ok(()) => String::new(),
            Err(error) => {
                let file = path.display();
                tracing::error!(%file, %error, "the selection is not kept");
                format!("; not across a restart: {file} cannot be written: {error}")
            }
        }
    }

    /// Probes a target once, beside its schedule and without consequences.
    pub(super) fn probe(&self, name: &str, reply: oneshot::Sender<Result<String, String>>) {
        let target = self.config.targets.iter().find(|target| *target.name == *name);
        let upstream = match target.map(|target| &target.kind) {
            Some(TargetKind::Upstream(upstream)) => match self.knowledge.plugins.dialled(upstream) {
                Some(upstream) => upstream,
                None => {
                    let _ = reply.send(Err(format!("{name}: its plugin does not listen\n")));
                    return;
                }
            },
            Some(TargetKind::Group(_)) => {
                let _ = reply.send(Err(format!("{name} is a group: its members can be probed\n")));
                return;
            }
            None => {
                let _ = reply.send(Err(format!("there is no upstream {name:?}\n")));
                return;
            }
        };
        let mut prober = Prober::once(name.into(), upstream, Arc::clone(&self.names)).within(LONGEST_PROBE);
        tokio::spawn(async move {
            let answer = prober.probe_for_show().await;
            // Who asked may be gone.
            let _ = reply.send(serde_json::to_string(&answer).map_err(|error| error.to_string()));
        });
    }

    /// Does what the operator says of a target.
    pub(super) fn hear(&mut self, name: &str, word: Word) -> Result<String, String> {
        let Some(target) = self.config.targets.iter().find(|target| &*target.name == name) else {
            return Err(format!("there is no target called {name:?}\n"));
        };
        let name = Arc::clone(&target.name);
        let was_disabled = self.knowledge.is_disabled(target);
        let changed = match word {
            Word::Drain => self.knowledge.drained.insert(Arc::clone(&name)),
            Word::Undrain => self.knowledge.drained.remove(&name),
            Word::Disable | Word::Enable => {
                let disabled = word == Word::Disable;
                self.knowledge.disabled.insert(Arc::clone(&name), disabled);
                was_disabled != disabled
            }
        };
        if changed {
            tracing::info!(target_name = &*name, word = word.as_str(), "the operator's word");
            self.watch_targets();
            self.publish(Vec::new());
        }
        let known = self.snapshot.targets.iter().find(|target| target.name == name);
        let active = known.map_or(0, |target| target.counters.sum(|cell| &cell.active));
        let health = known.map_or(Health::Unknown, |target| target.health);
        Ok(match word {
            Word::Drain => format!("{name} gets no new sessions; {active} are running\n"),
            Word::Disable => format!("{name} gets no new sessions and no probes; {active} are running\n"),
            Word::Undrain | Word::Enable if health.is_available() => {
                format!("{name} gets new sessions again\n")
            }
            Word::Undrain | Word::Enable => format!("{name} is {} still\n", health.as_str()),
        })
    }

    pub(super) fn observe(&self) -> Observation {
        let mut targets = status::targets(&self.snapshot);
        let care = &self.knowledge.care;
        for (target, served) in targets.iter_mut().zip(&self.snapshot.targets) {
            let (since, why) = care.standing(&target.name);
            target.health_for_seconds = since.as_secs_f64();
            // It was so from the start: nothing has happened that would have been told.
            let is_configured = why.is_none() && served.health == Health::Disabled;
            target.why = if is_configured { Some(CONFIGURED.to_owned()) } else { why };
            let speed = self.speeds.of(&target.name, target.bytes_up, target.bytes_down);
            (target.up_per_second, target.down_per_second) = (speed.up, speed.down);
            target.serving = serving(&self.snapshot, &served.kind);
            let out = members_out(&self.snapshot, &served.kind).into_iter();
            target.out = out
                .map(|(member, health)| {
                    let (_, why) = care.standing(&member);
                    (member, OutStatus { health: health.as_str().to_owned(), why })
                })
                .collect();
            target.reserve = care.reserve(&target.name);
            target.ejections = care.ejections(&target.name);
            target.events = care.history.counts(&target.name);
            target.check = self.last_probes.get(target.name.as_str()).map(|probed| CheckStatus {
                error: probed.finding.error.clone(),
                took_ms: check::millis(probed.finding.took),
                stages: probed.finding.stages.clone(),
                ago_seconds: probed.at.elapsed().as_secs_f64(),
                health_for_seconds: probed.health_since.elapsed().as_secs_f64(),
            });
        }
        let (outage, outages) = care.outage();
        let status = Status {
            outage_for_seconds: outage.map(|outage| outage.as_secs_f64()),
            outages,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: self.engine.to_owned(),
            workers: self.workers,
            per_worker: status::per_worker(&self.snapshot, self.workers),
            uptime_seconds: self.started_at.elapsed().as_secs(),
            phase: match self.phase {
                Phase::Serving => "serving",
                Phase::Draining { .. } | Phase::Stopping => "draining",
            }
            .to_owned(),
            generation: self.snapshot.generation,
            listeners: status::listeners(&self.snapshot),
            rules: rules::statuses(&self.snapshot),
            plugins: self.knowledge.plugins.statuses(),
            targets,
        };
        Observation { status, reloads: self.reloads, snapshot: Arc::clone(&self.snapshot) }
    }
}
