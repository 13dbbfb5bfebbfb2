//! The daemon's side of a run: its configuration, reloads in the middle of traffic, and what its own counts, its
//! descriptors and its memory must be in the end.

use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::proc::{open_descriptors, own_memory_kib};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually};
use crate::script::{ENTRANCES, Ending, Entrance, Route};
use crate::socket::Address;
use crate::world::{Entrances, Plan, Total, Totals, Upstreams, World};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Looks between two reloads.
const RELOAD_EVERY: usize = 3;

/// How long the daemon may take to see that nobody is there any more.
const QUIET_WITHIN: Duration = Duration::from_secs(60);

/// Both ends of the 4 pipes that each of 2 workers keeps when nobody needs them.
const KEPT_DESCRIPTORS: usize = 2 * 4 * 2;

/// What one session's buffers may cost: 256 KiB a direction.
const SESSION_KIB: u64 = 2 * 256;

/// What the daemon may have beyond that: slabs, pools, tables, and what the allocator keeps.
const BASE_KIB: u64 = 64 << 10;

/// What a wave may leave behind beyond what the one before did: the allocator's and the pools' own ups and downs.
const SETTLED_KIB: u64 = 16 << 10;

/// Whether the configuration changes while sessions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reloads {
    Never,
    Often,
}

/// A daemon and what went through it.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    engine: Engine,
    reloads: Reloads,
    /// Of `[engine]`.
    engine_keys: &'static str,
    upstreams: Upstreams,
    runtime: Runtime,
    /// Open before the first session.
    descriptors: usize,
    totals: Totals,
    seed: u64,
    max_memory_kib: u64,
}

/// What the daemon counted of pipes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) to_pipe: u64,
    pub(crate) to_buffer: u64,
    pub(crate) refused_budget: u64,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
}

/// The daemon's own memory while nobody is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SettledKib(u64);

impl Stage {
    #[track_caller]
    pub(crate) fn new(setup: Setup, engine: Engine, reloads: Reloads, engine_keys: &'static str) -> Stage {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let upstreams = {
            let _entered = runtime.enter();
            Upstreams::new(&setup.folder().join("upstream.sock"))
        };
        let daemon = setup.start(&config(&upstreams, engine_keys, Generation::Base));
        daemon.status();
        let descriptors = open_descriptors(daemon.pid());
        let totals = ENTRANCES.map(|entrance| (entrance, Total::default())).to_vec();
        Stage {
            daemon,
            engine,
            reloads,
            engine_keys,
            upstreams,
            runtime,
            descriptors,
            totals,
            seed: 0,
            max_memory_kib: 0,
        }
    }

    /// Plays a plan and checks the daemon's counts against it. The number after the last session's.
    #[track_caller]
    pub(crate) fn play(&mut self, plan: Plan) -> u64 {
        self.seed = plan.seed;
        let most_kib = BASE_KIB + plan.slots as u64 * SESSION_KIB;
        eprintln!("soak on {:?}: SOAK_SEED={}, {plan:?}", self.engine, self.seed);
        match self.play_sessions(plan) {
            Ok((next, totals)) => {
                self.add(&totals);
                eprintln!("{}{:?}", self.summary(), self.pipes());
                self.assert_counts();
                let had_kib = self.max_memory_kib;
                assert!(had_kib <= most_kib, "{had_kib} KiB of memory, {most_kib} expected, {self}");
                next
            }
            Err(report) => panic!("{self}: {report}\n{}", closed(&self.daemon)),
        }
    }

    fn play_sessions(&mut self, plan: Plan) -> Result<(u64, Totals), String> {
        let configs = match self.reloads {
            Reloads::Never => Vec::new(),
            Reloads::Often => Generation::ALL
                .map(|generation| config(&self.upstreams, self.engine_keys, generation))
                .to_vec(),
        };
        let entrances = entrances(&self.daemon);
        let (clients_done, phase) = channel();
        let (quiet, daemon_quiet) = oneshot::channel();
        let (daemon, upstreams, runtime) = (&self.daemon, &self.upstreams, &self.runtime);
        thread::scope(|scope| {
            let operator = scope.spawn(move || operate(daemon, &configs, &phase, quiet));
            let world = World::new(plan, entrances, upstreams.tcp_address);
            let local = LocalSet::new();
            let done = move || {
                let _ = clients_done.send(());
            };
            let result = local.block_on(runtime, world.run(upstreams, done, daemon_quiet));
            drop(local);
            let operated = operator.join();
            // What a session reports tells more than a daemon that is never quiet.
            let played = result?;
            let max_memory_kib = operated.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((played, max_memory_kib))
        })
        .map(|(played, max_memory_kib)| {
            self.max_memory_kib = max_memory_kib;
            played
        })
    }

    fn add(&mut self, totals: &Totals) {
        for ((_, sum), (_, total)) in self.totals.iter_mut().zip(totals) {
            sum.sessions += total.sessions;
            sum.refused += total.refused;
            sum.up_sent += total.up_sent;
            sum.up_received += total.up_received;
            sum.down_sent += total.down_sent;
            sum.down_received += total.down_received;
        }
    }

    /// The daemon's bytes are those that arrived, of sessions that ended in order; of the others no less than what
    /// arrived and no more than what was sent.
    #[track_caller]
    fn assert_counts(&self) {
        let status = self.daemon.status();
        for ((route, ending), total) in &self.totals {
            let listener = named(&status, "listeners", &name(*route, *ending));
            let (up, down) = (number(listener, &["bytes_up"]), number(listener, &["bytes_down"]));
            assert_eq!(number(listener, &["active"]), 0, "{self}: {listener:#}");
            let is_right = match ending {
                Ending::Orderly => {
                    (up, down) == (total.up_received, total.down_received)
                        && number(listener, &["closed", "finished"]) == total.sessions - total.refused
                }
                Ending::Rough => {
                    (total.up_received..=total.up_sent).contains(&up)
                        && (total.down_received..=total.down_sent).contains(&down)
                }
            };
            assert!(is_right, "{self}: of {total:?} the daemon counts {listener:#}");
        }
    }

    /// Every descriptor is back, and the memory that `before` had.
    #[track_caller]
    pub(crate) fn assert_quiet(&self, before: Option<SettledKib>) -> SettledKib {
        let pid = self.daemon.pid();
        let what = format!("{} descriptors as at the start, {self}", self.descriptors);
        eventually(PATIENCE, &what, || open_descriptors(pid) <= self.descriptors + KEPT_DESCRIPTORS);
        let memory_kib = own_memory_kib(pid);
        eprintln!("{memory_kib} KiB when quiet, {} KiB at most", self.max_memory_kib);
        if let Some(SettledKib(before)) = before {
            assert!(memory_kib <= before + SETTLED_KIB, "{memory_kib} KiB left, {before} KiB before, {self}");
        }
        SettledKib(memory_kib)
    }

    /// How many sessions of a route were served.
    pub(crate) fn served(&self, route: Route) -> u64 {
        let of_route = self.totals.iter().filter(|((other, _), _)| *other == route);
        of_route.map(|(_, total)| total.sessions - total.refused).sum()
    }

    /// The sums of what the listeners counted of pipes.
    #[track_caller]
    pub(crate) fn pipes(&self) -> Pipes {
        let status = self.daemon.status();
        let sum = |path: &[&str]| {
            let of = |entrance: &Entrance| {
                number(&named(&status, "listeners", &name(entrance.0, entrance.1))["pipes"], path)
            };
            ENTRANCES.iter().map(of).sum()
        };
        Pipes {
            to_pipe: sum(&["to_pipe"]),
            to_buffer: sum(&["to_buffer"]),
            refused_budget: sum(&["refused", "budget"]),
            bytes_up: sum(&["bytes_up"]),
            bytes_down: sum(&["bytes_down"]),
        }
    }

    /// What was played, a line for each listener.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for ((route, ending), total) in &self.totals {
            let _ = writeln!(text, "{:>20} {total:?}", name(*route, *ending));
        }
        text
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SOAK_SEED={} on {:?}", self.seed, self.engine)
    }
}

/// Looks after the daemon while sessions are played, reloading it; then waits until it is quiet and says so. The
/// most memory that was seen.
fn operate(daemon: &Daemon, configs: &[String], phase: &Receiver<()>, quiet: oneshot::Sender<()>) -> u64 {
    let mut max_memory_kib = 0;
    let mut looks = 0;
    loop {
        match phase.recv_timeout(LOOK) {
            Ok(()) => break,
            // It has failed: whoever is left is not to be waited for.
            Err(RecvTimeoutError::Disconnected) => return max_memory_kib,
            Err(RecvTimeoutError::Timeout) => {}
        }
        max_memory_kib = max_memory_kib.max(own_memory_kib(daemon.pid()));
        looks += 1;
        if looks % RELOAD_EVERY == 0 && !configs.is_empty() {
            let config = &configs[looks / RELOAD_EVERY % configs.len()];
            daemon.reload(config).expect("a good configuration");
        }
    }
    if let Some(base) = configs.first() {
        daemon.reload(base).expect("a good configuration");
    }
    eventually(QUIET_WITHIN, "the daemon has no session any more", || {
        let status = daemon.status();
        let listeners = status["listeners"].as_array().expect("listeners");
        listeners.iter().all(|listener| number(listener, &["active"]) == 0)
    });
    let _ = quiet.send(());
    max_memory_kib
}

/// Why the daemon's sessions ended, in its own words.
fn closed(daemon: &Daemon) -> String {
    let status = daemon.status();
    let listeners = status["listeners"].as_array().expect("listeners");
    let line = |listener: &Value| format!("{} closed {}\n", listener["name"], listener["closed"]);
    listeners.iter().map(line).collect()
}

/// What a reload changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    Base,
    /// One more listener and one more upstream, before all others, other timeouts, and everything through pipes.
    More,
    /// Nothing through pipes.
    Copied,
    /// Streams of small receives through pipes.
    Early,
}

impl Generation {
    /// What is loaded by turns; the first one is what a daemon starts and ends with.
    const ALL: [Generation; 4] = [Generation::Base, Generation::More, Generation::Copied, Generation::Early];

    const fn splice(self) -> &'static str {
        match self {
            Generation::Base => "\"auto\"",
            Generation::More => "1",
            Generation::Copied => "\"off\"",
            Generation::Early => "2000",
        }
    }
}

fn config(upstreams: &Upstreams, engine_keys: &str, generation: Generation) -> String {
    let splice = generation.splice();
    let mut text = format!("[engine]\n{engine_keys}\nsplice = {splice}\n");
    // Whoever hangs is to be found here, not by a timeout of the daemon's.
    text.push_str("[timeouts]\nhandshake = \"10m\"\nconnect = \"5m\"\nidle = \"20m\"\n");
    match generation {
        Generation::Base | Generation::Copied | Generation::Early => text.push_str("half_close = \"20m\"\n"),
        Generation::More => {
            text.push_str("half_close = \"21m\"\n[upstream.a-spare]\naddress = \"127.0.0.1:9\"\n");
            text.push_str("[[listener]]\nname = \"spare\"\nbind = \"127.0.0.1:0\"\ntarget = \"a-spare\"\n");
        }
    }
    for (route, ending) in ENTRANCES {
        let name = name(route, ending);
        let (bind, protocol, target) = match route {
            Route::TcpToTcp => ("127.0.0.1:0".to_owned(), "tcp", "tcp"),
            Route::TcpToUnix => ("127.0.0.1:0".to_owned(), "tcp", "local"),
            Route::UnixToTcp => (format!("unix:@dir@/{name}.sock"), "tcp", "tcp"),
            Route::UnixToUnix => (format!("unix:@dir@/{name}.sock"), "tcp", "local"),
            Route::Socks => ("127.0.0.1:0".to_owned(), "socks5", "direct"),
            Route::Http => ("127.0.0.1:0".to_owned(), "http", "direct"),
        };
        let _ = writeln!(
            text,
            "[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nprotocol = \"{protocol}\"\ntarget = \"{target}\""
        );
    }
    let _ = writeln!(text, "[upstream.tcp]\naddress = \"{}\"", upstreams.tcp_address);
    text.push_str("[upstream.local]\naddress = \"unix:@dir@/upstream.sock\"\n");
    text
}

fn entrances(daemon: &Daemon) -> Entrances {
    let address = |(route, ending)| {
        let name = name(route, ending);
        match route {
            Route::TcpToTcp | Route::TcpToUnix | Route::Socks | Route::Http => {
                Address::Tcp(daemon.address(&name))
            }
            Route::UnixToTcp | Route::UnixToUnix => Address::Unix(daemon.path(&format!("{name}.sock"))),
        }
    };
    Entrances(ENTRANCES.map(|entrance| (entrance, address(entrance))).to_vec())
}

/// The listener of a route: two each, so that the sums of those that end in order are exact.
fn name(route: Route, ending: Ending) -> String {
    let route = match route {
        Route::TcpToTcp => "tcp-to-tcp",
        Route::TcpToUnix => "tcp-to-unix",
        Route::UnixToTcp => "unix-to-tcp",
        Route::UnixToUnix => "unix-to-unix",
        Route::Socks => "socks",
        Route::Http => "http",
    };
    match ending {
        Ending::Orderly => route.to_owned(),
        Ending::Rough => format!("{route}-rough"),
    }
}
