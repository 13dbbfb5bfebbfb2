//! The control loop: one task that owns the configuration, what is known of targets, and the binds; everything that
//! happens reaches it as an [`Event`], and every change leaves it as a snapshot.

mod health;
mod programs;
mod reload;
mod restart;
mod rules;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::account::ListenerCounters;
use ringweir_flow::close::CloseReason;
use ringweir_flow::resolve::Resolver;
use ringweir_flow::retire::Retirement;
use ringweir_flow::snapshot::Snapshot;
use ringweir_flow::verify::Verifier;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::programs::await_plugins;
use self::reload::Reading;
use crate::admin::{self, Scope};
use crate::assemble::{Knowledge, assemble};
use crate::bind::{self, OpenBind, Opened};
use crate::check::{self, Finding, MAX_PROBES};
use crate::clock;
use crate::health::Care;
use crate::health::history::Entry;
use crate::health::retire::Retirements;
use crate::health::speed::{self, Speeds};
use crate::histogram::{Keeper, Source};
use crate::metrics::Reloads;
use crate::model::{Config, Endpoint, EngineKind, TargetKind};
use crate::passwords::pool::Pool;
use crate::plugins::{self, News, Plugins};
use crate::resolve::{self, Located, NamePort, Names, Watch};
use crate::rules::files::{Change, Watcher};
use crate::signals::{self, ServiceState};
use crate::state;
use crate::status::{self, Status};

/// Events that may wait; senders wait beyond it.
const EVENTS: usize = 256;

/// How long a probe that somebody waits for may take: less than a connection to the admin endpoint lasts.
const LONGEST_PROBE: Duration = Duration::from_secs(9);

/// How often a draining daemon looks whether its last session has ended: counters are read, nobody reports.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// What carries out the sessions. Implemented by the composition root for each engine.
pub trait Driver {
    /// Swaps the snapshot; opens the sockets of new binds, drains and closes those of binds that are gone.
    fn publish(&self, snapshot: Arc<Snapshot>, opened: Vec<Opened>);
    /// Stops accepting, after what waits in the accept queues; sessions go on.
    fn drain(&self);
    /// Ends the sessions that the order is about.
    fn retire(&self, order: Arc<Retirement>);
    /// Ends every session for this reason, and returns when the workers are gone.
    fn stop(self: Box<Self>, reason: CloseReason);
}

/// What an engine is started with.
pub struct StartRequest {
    /// Which engine is asked for.
    pub kind: EngineKind,
    /// How many workers.
    pub workers: usize,
    /// How many pipes there may be to splice streams through; `None` for what the system's limits are good for.
    pub pipes: Option<usize>,
    /// How long rings poll network devices before they sleep. Only the io_uring engine can.
    pub busy_poll: Option<Duration>,
    /// Resolves names for `direct`.
    pub resolver: Arc<dyn Resolver>,
    /// Verifies passwords that are known by their hashes.
    pub verifier: Arc<dyn Verifier>,
    /// The first snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Its sockets.
    pub opened: Vec<Opened>,
}

/// A started engine.
pub struct Started {
    /// `io-uring` or `tokio`.
    pub name: &'static str,
    /// The engine.
    pub driver: Box<dyn Driver>,
}

/// What happens to the daemon.
#[derive(Debug)]
pub(crate) enum Event {
    /// The configuration is to be read again; the answer says what came of it.
    Reload(Option<oneshot::Sender<Result<String, String>>>),
    /// The operator selects a member of a group.
    Select { group: String, target: String, reply: oneshot::Sender<Result<String, String>> },
    /// Somebody wants a target probed now.
    Probe { target: String, reply: oneshot::Sender<Result<String, String>> },
    /// The operator takes a target out of service, or puts it back.
    Say { target: String, word: Word, reply: oneshot::Sender<Result<String, String>> },
    /// Somebody wants to see how things stand.
    Observe(oneshot::Sender<Observation>),
    /// Somebody wants to see what has happened to targets.
    ReadHistory(oneshot::Sender<Vec<Entry>>),
    /// Somebody wants to see what was recorded.
    ReadHistograms(oneshot::Sender<Source>),
    /// SIGUSR1.
    WriteHistograms,
    /// SIGTERM or SIGINT.
    Terminate,
}

/// What the operator may say of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// No new sessions.
    Drain,
    /// New sessions again.
    Undrain,
    /// No new sessions, and no probes.
    Disable,
    /// Both again, whatever the configuration says.
    Enable,
}

impl Word {
    pub(crate) const ALL: [Word; 4] = [Word::Drain, Word::Undrain, Word::Disable, Word::Enable];

    /// The word itself.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Word::Drain => "drain",
            Word::Undrain => "undrain",
            Word::Disable => "disable",
            Word::Enable => "enable",
        }
    }
}

/// How things stand.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) status: Status,
    pub(crate) reloads: Reloads,
    pub(crate) snapshot: Arc<Snapshot>,
}

/// What the daemon is started with, beside the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The file to read again at a reload.
    pub(crate) file: Option<PathBuf>,
    /// What the command line says over the file, applied to every configuration that is read.
    pub(crate) overrides: crate::cli::Overrides,
}

/// Serves until told to end.
///
/// # Errors
/// What kept it from starting, for people.
pub(crate) async fn serve(
    config: Config,
    settings: Settings,
    start: impl FnOnce(StartRequest) -> Result<Started, String>,
) -> Result<(), String> {
    let (events, mut inbox) = mpsc::channel(EVENTS);
    let (findings, mut found) = mpsc::channel(EVENTS);
    let (locations, mut located) = mpsc::channel(EVENTS);
    let (changes, mut changed) = mpsc::channel(EVENTS);
    open_admin(&config, &settings, &events).await?;
    let (care, mut noticed) = Care::new();
    let (plugins, mut plugin_news) = Plugins::new();
    let mut known = Knowledge::default();
    (known.care, known.plugins) = (care, plugins);
    let mut daemon =
        Daemon::start(config, settings, (known, &mut plugin_news), (findings, locations, changes), start)
            .await?;
    signals::listen(events).map_err(|error| format!("signals cannot be handled: {error}"))?;
    signals::notify(ServiceState::Ready);
    tracing::info!(target: crate::logging::ANNOUNCEMENTS, "ready");
    let mut drain_look = interval(DRAIN_LOOK);
    let mut speed_look = interval(speed::LOOK);
    for look in [&mut drain_look, &mut speed_look] {
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let histograms_at = daemon.histograms.next_at();
        let care_at = daemon.knowledge.care.poll_timeout();
        tokio::select! {
            Some(event) = inbox.recv() => daemon.handle_event(event),
            read = daemon.reading.finished() => daemon.handle_read(read).await,
            Some(finding) = found.recv() => daemon.handle_finding(finding),
            Some(notice) = noticed.recv() => daemon.handle_notice(notice),
            () = sleep_until(care_at.unwrap_or_else(Instant::now)), if care_at.is_some() => {
                daemon.handle_care_due();
            }
            Some(change) = changed.recv() => daemon.handle_change(change),
            Some(news) = plugin_news.recv() => daemon.handle_plugin(news),
            Some(location) = located.recv() => daemon.handle_located(location),
            () = sleep_until(histograms_at.unwrap_or_else(Instant::now)), if histograms_at.is_some() => {
                daemon.histograms.handle_due(&daemon.snapshot);
            }
            _ = speed_look.tick() => {
                clock::set();
                daemon.speeds.handle_tick(&daemon.snapshot);
            }
            _ = drain_look.tick(), if daemon.phase != Phase::Serving => {}
        }
        if daemon.is_done() {
            let plugins = std::mem::take(&mut daemon.knowledge.plugins);
            daemon.stop();
            plugins.end().await;
            return Ok(());
        }
    }
}

/// Before anybody is served: a daemon that cannot be asked is not the one that was configured.
async fn open_admin(
    config: &Config,
    settings: &Settings,
    events: &mpsc::Sender<Event>,
) -> Result<(), String> {
    let admin = &config.admin;
    for (address, scope) in [(&admin.listen, Scope::Full), (&admin.metrics, Scope::ReadOnly)] {
        let Some(address) = address else { continue };
        match admin::open(address, scope, admin.token.clone(), events.clone()) {
            Ok(bound) => tracing::info!("admin endpoint address={bound}"),
            // Without a file nobody asked for this very address.
            Err(error) if settings.file.is_none() && !settings.overrides.names_admin() => {
                tracing::warn!("{error}; going on without it");
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

struct Daemon {
    config: Config,
    settings: Settings,
    workers: usize,
    engine: &'static str,
    driver: Box<dyn Driver>,
    names: Arc<Names>,
    knowledge: Knowledge,
    binds: Vec<OpenBind>,
    next_bind: u64,
    snapshot: Arc<Snapshot>,
    retirements: Retirements,
    speeds: Speeds,
    probes: Arc<Semaphore>,
    findings: mpsc::Sender<Finding>,
    locations: mpsc::Sender<Located>,
    changes: mpsc::Sender<Change>,
    /// Of the files that rules go by.
    watcher: Option<Watcher>,
    checks: HashMap<Arc<str>, check::Running>,
    watches: HashMap<Arc<str>, Watch>,
    last_probes: HashMap<Arc<str>, Probed>,
    reloads: Reloads,
    reading: Reading,
    /// Of listeners that a reload removed: their sessions live on and are waited for.
    retired: Vec<Arc<ListenerCounters>>,
    histograms: Keeper,
    started_at: Instant,
    phase: Phase,
}

/// The last probe of a target.
#[derive(Clone, Debug)]
struct Probed {
    finding: Finding,
    at: Instant,
    health_since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining { until: Instant },
    Stopping,
}

// Start and end.
impl Daemon {
    async fn start(
        config: Config,
        settings: Settings,
        (mut knowledge, plugin_news): (Knowledge, &mut mpsc::UnboundedReceiver<News>),
        (findings, locations, changes): (mpsc::Sender<Finding>, mpsc::Sender<Located>, mpsc::Sender<Change>),
        start: impl FnOnce(StartRequest) -> Result<Started, String>,
    ) -> Result<Daemon, String> {
        let workers = config.engine.workers.count();
        let histograms = Keeper::new(config.histograms.clone());
        let names = Arc::new(Names::new(&config.resolver)?);
        knowledge.selected = config.state.as_deref().map(state::load).unwrap_or_default();
        knowledge.rules.configure(&config, workers);
        knowledge.care.reconfigure(&config);
        bind::try_upstreams(&config)?;
        plugins::try_out(&config)?;
        let (binds, opened, next_bind) = bind::open_at_start(&config, workers).await?;
        resolve::locate(&config, &names, &mut knowledge).await;
        knowledge.plugins.configure(&config, &binds);
        await_plugins(&mut knowledge, plugin_news).await;
        let snapshot = Arc::new(assemble(&config, &mut knowledge, &binds, workers, 1, config.log.sessions));
        let started = start(StartRequest {
            kind: config.engine.kind,
            workers,
            pipes: config.engine.pipes,
            busy_poll: config.engine.busy_poll,
            resolver: Arc::new(NamePort(Arc::clone(&names))),
            verifier: Arc::new(Pool::new()),
            snapshot: Arc::clone(&snapshot),
            opened,
        })?;
        let mut daemon = Daemon {
            config,
            settings,
            workers,
            engine: started.name,
            driver: started.driver,
            names,
            knowledge,
            binds,
            next_bind,
            snapshot,
            retirements: Retirements::default(),
            speeds: Speeds::default(),
            probes: Arc::new(Semaphore::new(MAX_PROBES)),
            findings,
            locations,
            changes,
            watcher: None,
            checks: HashMap::new(),
            watches: HashMap::new(),
            last_probes: HashMap::new(),
            reloads: Reloads::default(),
            reading: Reading::default(),
            retired: Vec::new(),
            histograms,
            started_at: Instant::now(),
            phase: Phase::Serving,
        };
        daemon.announce(&[]);
        daemon.watch_targets();
        daemon.watch_files();
        Ok(daemon)
    }

    fn handle_terminate(&mut self) {
        self.phase = match self.phase {
            Phase::Serving => {
                let until = Instant::now() + self.config.drain;
                tracing::info!(sessions = self.active_sessions(), "draining; a second signal ends at once");
                signals::notify(ServiceState::Stopping);
                self.driver.drain();
                Phase::Draining { until }
            }
            Phase::Draining { .. } | Phase::Stopping => Phase::Stopping,
        };
    }

    fn is_done(&self) -> bool {
        match self.phase {
            Phase::Serving => false,
            Phase::Draining { until } => self.active_sessions() == 0 || Instant::now() >= until,
            Phase::Stopping => true,
        }
    }

    fn stop(self) {
        let left = self.active_sessions();
        if left > 0 {
            tracing::warn!(sessions = left, "ending sessions that are still running");
        }
        self.driver.stop(match self.phase {
            Phase::Serving | Phase::Stopping => CloseReason::Stopped,
            Phase::Draining { .. } => CloseReason::Drained,
        });
        self.histograms.finish(&self.snapshot);
        self.binds.iter().for_each(remove_socket_file);
        if let Some(crate::model::BindAddress::Unix(path)) = &self.config.admin.listen {
            let _ = std::fs::remove_file(path);
        }
        tracing::info!("ended");
    }

    fn active_sessions(&self) -> u64 {
        let serving = self.snapshot.listeners.iter().map(|listener| &listener.counters);
        serving.chain(&self.retired).map(|counters| counters.sum(|cell| &cell.active)).sum()
    }
}

// What happens.
impl Daemon {
    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Reload(reply) => self.handle_reload(reply),
            Event::Select { group, target, reply } => {
                let _ = reply.send(self.select(&group, &target));
            }
            Event::Probe { target, reply } => self.probe(&target, reply),
            Event::Say { target, word, reply } => {
                let _ = reply.send(self.hear(&target, word));
            }
            Event::Observe(reply) => {
                let _ = reply.send(self.observe());
            }
            Event::ReadHistory(reply) => {
                let _ = reply.send(self.knowledge.care.history.entries());
            }
            Event::ReadHistograms(reply) => {
                let _ = reply.send(self.histograms.source(&self.snapshot));
            }
            Event::WriteHistograms => self.histograms.handle_request(&self.snapshot),
            Event::Terminate => self.handle_terminate(),
        }
    }

    fn handle_located(&mut self, located: Located) {
        if !self.watches.contains_key(&located.target) {
            return;
        }
        let known = self.knowledge.addresses.get(&located.target);
        if known != Some(&located.addresses) {
            tracing::info!(target_name = &*located.target, addresses = ?located.addresses, "addresses changed");
            self.knowledge.addresses.insert(located.target, located.addresses);
            self.publish(Vec::new());
        }
    }
}

// How it changes.
impl Daemon {
    /// Starts checks and lookups that are new, and ends those that are gone or asked for otherwise.
    fn watch_targets(&mut self) {
        let mut checks = std::mem::take(&mut self.checks);
        let mut watches = std::mem::take(&mut self.watches);
        for target in &self.config.targets {
            let TargetKind::Upstream(upstream) = &target.kind else { continue };
            let name = || Arc::clone(&target.name);
            let check = upstream.check.as_ref().filter(|_| !self.knowledge.is_disabled(target));
            if let (Some(check), Some(upstream)) = (check, self.knowledge.plugins.dialled(upstream)) {
                let running = checks.remove(&target.name).filter(|running| running.is_same(&upstream));
                let running = running.unwrap_or_else(|| {
                    self.knowledge.health.remove(&target.name);
                    let (names, probes) = (Arc::clone(&self.names), Arc::clone(&self.probes));
                    let check = Arc::clone(check);
                    check::start(name(), check, upstream, names, probes, self.findings.clone())
                });
                self.checks.insert(name(), running);
            } else {
                self.knowledge.health.remove(&target.name);
            }
            // What a proxy leads to is the proxy's to find.
            if let Endpoint::Name(host, port) = &upstream.endpoint
                && upstream.via.is_empty()
                && upstream.plugin.is_none()
            {
                let watch = watches.remove(&target.name).filter(|watch| watch.is_same(host, *port));
                let watch = watch.unwrap_or_else(|| {
                    let (names, locations) = (Arc::clone(&self.names), self.locations.clone());
                    Watch::start(name(), host.clone(), *port, names, locations)
                });
                self.watches.insert(name(), watch);
            }
        }
        self.last_probes.retain(|name, _| self.checks.contains_key(name));
        self.knowledge.care.retain_probed(|name| self.checks.contains_key(name));
    }

    /// Says where clients can connect now and could not before.
    fn announce(&self, before: &[OpenBind]) {
        for bind in &self.snapshot.binds {
            if before.iter().any(|known| known.id == bind.id) {
                continue;
            }
            let listener = self.snapshot.listener(bind.listener);
            let protocol = status::protocol_name(listener.protocol);
            tracing::info!(
                target: crate::logging::ANNOUNCEMENTS,
                "listening name={} address={} protocol={protocol}",
                listener.name,
                bind.address
            );
        }
    }
}

fn remove_socket_file(bind: &OpenBind) {
    if let crate::model::BindAddress::Unix(path) = &bind.configured {
        let _ = std::fs::remove_file(path);
    }
}
