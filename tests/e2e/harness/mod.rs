//! What the scenarios share: the daemon under test, servers and clients to put around it, and patience.

pub(crate) mod client;
pub(crate) mod curl;
pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod names;
pub(crate) mod netns;
pub(crate) mod pattern;
pub(crate) mod peers;
pub(crate) mod proc;
pub(crate) mod server;
pub(crate) mod status;

use std::sync::{Once, OnceLock, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that ought to take milliseconds: long enough for a loaded machine, short enough that
/// a hanging scenario ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How often [`eventually`] looks.
const POLL: Duration = Duration::from_millis(5);

/// Which driver runs the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    IoUring,
    Tokio,
}

impl Engine {
    /// The value of `--engine`.
    pub(crate) const fn as_arg(self) -> &'static str {
        match self {
            Engine::IoUring => "io-uring",
            Engine::Tokio => "tokio",
        }
    }
}

/// What a scenario needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// Others may run beside it.
    Welcome,
    /// It measures time, CPU or memory, or fills the machine: it runs alone.
    Alone,
}

/// Makes a test for each engine of each scenario.
macro_rules! scenarios {
    ($company:ident: $($name:ident),+ $(,)?) => {
        mod io_uring {
            $(#[test] fn $name() {
                $crate::harness::play($crate::harness::Engine::IoUring, $crate::harness::Company::$company, super::$name);
            })+
        }
        mod tokio {
            $(#[test] fn $name() {
                $crate::harness::play($crate::harness::Engine::Tokio, $crate::harness::Company::$company, super::$name);
            })+
        }
    };
}
pub(crate) use scenarios;

/// Runs one scenario on one engine.
pub(crate) fn play(engine: Engine, company: Company, scenario: fn(Engine)) {
    /// Scenarios that need quiet hold it for writing, the others for reading.
    static QUIET: RwLock<()> = RwLock::new(());
    static DESCRIPTORS: Once = Once::new();
    DESCRIPTORS.call_once(raise_descriptor_limit);
    if let (Engine::IoUring, Err(reason)) = (engine, io_uring()) {
        eprintln!("SKIPPED: this machine refuses io_uring: {reason}");
        return;
    }
    // A scenario that failed poisons the lock; the next one is none the worse for it.
    match company {
        Company::Welcome => {
            let _shared = QUIET.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            scenario(engine);
        }
        Company::Alone => {
            let _alone = QUIET.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            scenario(engine);
        }
    }
}

/// Whether the machine lets the daemon run on io_uring; asked once.
fn io_uring() -> &'static Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(daemon::probe_io_uring)
}

/// A thousand sessions are two thousand descriptors of this process.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may rise to the hard one");
}

/// Waits for an outside effect that offers no event to wait for.
#[track_caller]
pub(crate) fn eventually(within: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(POLL);
    }
    begin.elapsed()
}

/// Lets a stretch of time pass over which something is measured, or in which something must not happen.
pub(crate) fn observe_for(window: Duration) {
    thread::sleep(window);
}

/// Asserts that `took` is `expected`, give or take `slack`.
#[track_caller]
pub(crate) fn assert_took(took: Duration, expected: Duration, slack: Duration) {
    assert!(
        took >= expected.saturating_sub(slack) && took <= expected + slack,
        "took {took:?}, expected {expected:?} ± {slack:?}"
    );
}
