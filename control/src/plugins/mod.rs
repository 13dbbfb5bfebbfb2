//! Plugins of Shadowsocks (SIP003): programs that traffic goes through, before an upstream or in front of a listener.
//! Each runs for as long as the configuration names it, and is started again when it ends.

pub(crate) mod exec;
mod process;
mod supervise;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::wire::Destination;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::supervise::{Teller, supervise};
use crate::bind::OpenBind;
use crate::model::{Config, TargetKind, Upstream};

/// How long a start waits for plugins to listen. Those that take longer come later.
pub(crate) const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// The word for a plugin that listens.
const READY: &str = "ready";

/// Whose a plugin is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// An upstream's: its connections go to the plugin.
    Upstream(Arc<str>),
    /// A listener's: its clients connect to the plugin.
    Listener(Arc<str>),
}

impl Owner {
    fn as_str(&self) -> &str {
        match self {
            Owner::Upstream(name) | Owner::Listener(name) => name,
        }
    }
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    program: String,
    options: Option<String>,
    /// `SS_REMOTE_HOST` and `SS_REMOTE_PORT`: the server, or where its clients connect.
    remote: (String, u16),
    /// `SS_LOCAL_HOST` and `SS_LOCAL_PORT`; `None` for a port that the kernel chooses.
    local: Option<SocketAddr>,
}

/// What has happened to a plugin.
#[derive(Debug)]
pub(crate) struct News {
    owner: Owner,
    id: u64,
    what: Happening,
}

#[derive(Debug)]
enum Happening {
    /// It runs.
    Started { pid: u32 },
    /// It listens.
    Ready { local: SocketAddr },
    /// It runs no more, or could not be started at all, and is started again after a wait.
    Ended { why: String, wait: Duration },
}

/// What is to be told of a plugin to whoever asks for events.
#[derive(Debug)]
pub(crate) enum Told {
    /// It listens.
    Started { upstream: Arc<str>, what: String },
    /// It has ended.
    Ended { upstream: Arc<str>, what: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Ready { local: SocketAddr },
    Down { why: String },
}

/// How often it has come and gone, whatever it was told; counts from the first to the last with that owner.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    started: u64,
    ended: u64,
}

#[derive(Debug)]
struct Running {
    spec: Spec,
    id: u64,
    state: State,
    pid: Option<u32>,
    restarts: u64,
    runs: Runs,
    last_exit: Option<String>,
    /// Dropped to end it.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// A plugin, for people and programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PluginStatus {
    /// `upstream` or `listener`.
    pub(crate) of: String,
    /// The name of that.
    pub(crate) name: String,
    /// What is run.
    program: String,
    /// `starting`, `ready` or `down`.
    state: String,
    /// Where it leads, or where clients connect.
    remote: String,
    /// Where ringweir dials, or where it is dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// How often it was started again.
    restarts: u64,
    /// How often it was started, changes of the configuration included.
    pub(crate) starts: u64,
    /// How often it ended by itself, or could not be started.
    pub(crate) exits: u64,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_exit: Option<String>,
}

impl PluginStatus {
    /// Whether it listens.
    pub(crate) fn is_up(&self) -> bool {
        self.state == READY
    }

    /// A table, where there are plugins.
    pub(crate) fn to_table(plugins: &[PluginStatus], text: &mut String) {
        if plugins.is_empty() {
            return;
        }
        text.push('\n');
        let titles = ["PLUGIN", "OF", "STATE", "PID", "RESTARTS", "EXITS", "REMOTE", "LOCAL", "LAST EXIT"];
        let mut rows = vec![crate::status::header(titles)];
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        rows.extend(plugins.iter().map(|plugin| {
            vec![
                plugin.program.clone(),
                format!("{} {}", plugin.of, plugin.name),
                plugin.state.clone(),
                dash(plugin.pid.map(|pid| pid.to_string())),
                plugin.restarts.to_string(),
                plugin.exits.to_string(),
                plugin.remote.clone(),
                dash(plugin.local.clone()),
                dash(plugin.last_exit.clone()),
            ]
        }));
        crate::status::align(&rows, text);
    }
}

/// All plugins that run, or ought to.
#[derive(Debug, Default)]
pub(crate) struct Plugins {
    running: BTreeMap<Owner, Running>,
    /// Those that are being ended.
    ending: Vec<JoinHandle<()>>,
    news: Option<mpsc::UnboundedSender<News>>,
    next: u64,
}

impl Plugins {
    /// Nobody runs yet; what happens comes by the other.
    pub(crate) fn new() -> (Plugins, mpsc::UnboundedReceiver<News>) {
        let (news, inbox) = mpsc::unbounded_channel();
        (Plugins { news: Some(news), ..Plugins::default() }, inbox)
    }

    /// Starts what is new, ends what is gone, and leaves alone what is as before. Must be called within the runtime.
    pub(crate) fn configure(&mut self, config: &Config, binds: &[OpenBind]) {
        let Some(news) = self.news.clone() else { return };
        let mut before = std::mem::take(&mut self.running);
        self.ending.retain(|task| !task.is_finished());
        for (owner, spec) in wanted(config, binds) {
            let running = match before.remove(&owner) {
                Some(same) if same.spec == spec => same,
                other => {
                    let runs = other.as_ref().map_or_else(Runs::default, |other| other.runs);
                    // The new one may want the address of the old one.
                    let old = other.map(Running::stop);
                    self.next += 1;
                    let teller = Teller { owner: owner.clone(), id: self.next, news: news.clone() };
                    Running { runs, ..Running::start(spec, teller, old) }
                }
            };
            self.running.insert(owner, running);
        }
        self.ending.extend(before.into_values().map(Running::stop));
    }

    /// Takes note; true when sessions go elsewhere from now on.
    pub(crate) fn handle_news(&mut self, news: News) -> (bool, Option<Told>) {
        let Some(running) = self.running.get_mut(&news.owner).filter(|running| running.id == news.id) else {
            return (false, None);
        };
        let program = &running.spec.program;
        let upstream = match &news.owner {
            Owner::Upstream(name) => Some(Arc::clone(name)),
            Owner::Listener(_) => None,
        };
        match news.what {
            Happening::Started { pid } => {
                running.restarts += u64::from(running.last_exit.is_some());
                running.runs.started += 1;
                running.pid = Some(pid);
                running.state = State::Starting;
                (false, None)
            }
            Happening::Ready { local } => {
                running.state = State::Ready { local };
                let pid = running.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
                let what = format!("{program} listens at {local}{pid}");
                (true, upstream.map(|upstream| Told::Started { upstream, what }))
            }
            Happening::Ended { why, wait } => {
                let what = format!("{program}: {why}; again in {} s", wait.as_secs());
                running.pid = None;
                running.runs.ended += 1;
                running.state = State::Down { why: format!("its plugin {program} does not run: {why}") };
                running.last_exit = Some(why);
                (true, upstream.map(|upstream| Told::Ended { upstream, what }))
            }
        }
    }

    /// The way to an upstream as it is dialled: to its plugin, where the connection that is made goes through one.
    /// `None` where that does not listen.
    pub(crate) fn dialled(&self, upstream: &Upstream) -> Option<Upstream> {
        match &upstream.plugin {
            None => Some(upstream.clone()),
            Some(plugin) => self.local(&plugin.owner).map(|local| upstream.dialled_at(local)),
        }
    }

    /// Where the plugin of an upstream listens, if it does.
    pub(crate) fn local(&self, upstream: &Arc<str>) -> Option<SocketAddr> {
        match self.running.get(&Owner::Upstream(Arc::clone(upstream)))?.state {
            State::Ready { local } => Some(local),
            State::Starting | State::Down { .. } => None,
        }
    }

    /// Whether the plugin that leads to an upstream is known not to listen.
    pub(crate) fn is_down(&self, upstream: &Upstream) -> bool {
        let plugin = upstream.plugin.as_ref();
        let owner = plugin.map(|plugin| Owner::Upstream(Arc::clone(&plugin.owner)));
        let running = owner.and_then(|owner| self.running.get(&owner));
        running.is_some_and(|running| !matches!(running.state, State::Ready { .. }))
    }

    /// Why an upstream is down, where that is for want of its plugin.
    pub(crate) fn why(&self, config: &Config, target: &str) -> Option<String> {
        let target = config.targets.iter().find(|known| *known.name == *target)?;
        let TargetKind::Upstream(upstream) = &target.kind else { return None };
        let owner = Owner::Upstream(Arc::clone(&upstream.plugin.as_ref()?.owner));
        match &self.running.get(&owner)?.state {
            State::Starting => Some("its plugin is being started".to_owned()),
            State::Down { why } => Some(why.clone()),
            State::Ready { .. } => None,
        }
    }

    /// Whether somebody is still awaited.
    pub(crate) fn are_starting(&self) -> bool {
        self.running.values().any(|running| running.state == State::Starting)
    }

    /// How things stand.
    pub(crate) fn statuses(&self) -> Vec<PluginStatus> {
        let status = |(owner, running): (&Owner, &Running)| {
            let (of, state) = match owner {
                Owner::Upstream(_) => ("upstream", &running.state),
                Owner::Listener(_) => ("listener", &running.state),
            };
            let (state, local) = match state {
                State::Starting => ("starting", running.spec.local),
                State::Ready { local } => (READY, Some(*local)),
                State::Down { .. } => ("down", running.spec.local),
            };
            let (host, port) = &running.spec.remote;
            PluginStatus {
                of: of.to_owned(),
                name: owner.as_str().to_owned(),
                program: running.spec.program.clone(),
                state: state.to_owned(),
                remote: if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                },
                local: local.map(|local| local.to_string()),
                pid: running.pid,
                restarts: running.restarts,
                starts: running.runs.started,
                exits: running.runs.ended,
                last_exit: running.last_exit.clone(),
            }
        };
        self.running.iter().map(status).collect()
    }

    /// Ends all, and returns when the last is gone.
    pub(crate) async fn end(self) {
        for task in self.running.into_values().map(Running::stop).chain(self.ending) {
            // One that panicked is gone as well.
            let _ = task.await;
        }
    }
}

impl Running {
    fn start(spec: Spec, teller: Teller, after: Option<JoinHandle<()>>) -> Running {
        let (stop, stopped) = oneshot::channel();
        let id = teller.id;
        let task = tokio::spawn(supervise(spec.clone(), teller, stopped, after));
        let (state, runs) = (State::Starting, Runs::default());
        Running { spec, id, state, pid: None, restarts: 0, runs, last_exit: None, stop, task }
    }

    /// Tells it to end; the task is over when it has.
    fn stop(self) -> JoinHandle<()> {
        drop(self.stop);
        self.task
    }
}

/// What a configuration wants run.
fn wanted(config: &Config, binds: &[OpenBind]) -> Vec<(Owner, Spec)> {
    let mut all = Vec::new();
    for target in &config.targets {
        let TargetKind::Upstream(upstream) = &target.kind else { continue };
        let own = upstream.plugin.as_ref().filter(|plugin| plugin.owner == target.name);
        let remote = upstream.endpoint.destination();
        if let (Some(plugin), Some(remote)) = (own, remote) {
            let remote = match remote {
                Destination::Address(address) => (address.ip().to_string(), address.port()),
                Destination::Name(name, port) => (name.to_string(), port),
            };
            let (program, options) = (plugin.program.clone(), plugin.options.clone());
            all.push((
                Owner::Upstream(Arc::clone(&target.name)),
                Spec { program, options, remote, local: None },
            ));
        }
    }
    for listener in &config.listeners {
        let Some((plugin, public)) = &listener.plugin else { continue };
        let bind = binds.iter().find(|bind| bind.listener == listener.name);
        let Some(local) = bind.and_then(|bind| bind.bound.parse().ok()) else { continue };
        let remote = (public.ip().to_string(), public.port());
        let (program, options) = (plugin.program.clone(), plugin.options.clone());
        let spec = Spec { program, options, remote, local: Some(local) };
        all.push((Owner::Listener(Arc::clone(&listener.name)), spec));
    }
    all
}

/// Whether the programs of all plugins are there.
///
/// # Errors
/// Those that are not, by the key that names them.
pub(crate) fn try_out(config: &Config) -> Result<(), String> {
    let upstreams = config.targets.iter().filter_map(|target| match &target.kind {
        TargetKind::Upstream(upstream) => {
            let own = upstream.plugin.as_ref().filter(|plugin| plugin.owner == target.name);
            own.map(|plugin| (format!("upstream.{}", target.name), &plugin.program))
        }
        TargetKind::Group(_) => None,
    });
    let listeners = config.listeners.iter().filter_map(|listener| {
        let (plugin, _) = listener.plugin.as_ref()?;
        Some((format!("listener.{}", listener.name), &plugin.program))
    });
    let missing = upstreams.chain(listeners).filter(|(_, program)| !is_there(program));
    let missing: Vec<String> = missing
        .map(|(key, program)| format!("{key}.plugin: there is no program {program:?} that could be run"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
}

/// As execvp(3) looks for it.
fn is_there(program: &str) -> bool {
    if program.contains('/') {
        return is_executable(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder: PathBuf| is_executable(&folder.join(program)))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file() || path.with_extension("exe").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_they_will_be_run() {
        assert!(is_there("sh") && is_there("/bin/sh"));
        assert!(!is_there("/etc/passwd") && !is_there("/bin") && !is_there("no-such-plugin"));
    }
}
