//! The worlds that sessions are played in.

use std::time::Duration;

use crate::harness::daemon::Setup;
use crate::harness::{Engine, scenarios};
use crate::operator::{Reloads, Stage};
use crate::script::Route;
use crate::world::{Plan, Scarcity};

scenarios!(Alone:
    sessions_of_every_kind_with_reloads_in_between,
    sessions_where_pipes_are_few,
    sessions_where_descriptors_are_few,
);

/// How many sessions at once, if nothing is said.
const SLOTS: usize = 240;

/// How long all worlds of one engine take together, if nothing is said.
const SECONDS: u64 = 20;

/// Room for the daemon, its listeners, and for by far not all of the sessions.
const FEW_DESCRIPTORS: u64 = 160;

/// So few pipes that most streams find none.
const FEW_PIPES: &str = "pipes = 2";

fn sessions_of_every_kind_with_reloads_in_between(engine: Engine) {
    let mut stage = Stage::new(Setup::new(engine), engine, Reloads::Often, "");
    // The first wave fills pools and slabs; what the second leaves behind beyond that is lost.
    let next = stage.play(plan(Scarcity::Plenty, 20, 0));
    let settled = stage.assert_quiet(None);
    stage.play(plan(Scarcity::Plenty, 40, next));
    stage.assert_quiet(Some(settled));
    assert_piped(&stage);
}

fn sessions_where_pipes_are_few(engine: Engine) {
    let mut stage = Stage::new(Setup::new(engine), engine, Reloads::Never, FEW_PIPES);
    stage.play(plan(Scarcity::Plenty, 20, 0));
    stage.assert_quiet(None);
    assert_piped(&stage);
    let pipes = stage.pipes();
    assert!(pipes.refused_budget > 0, "no pipe was refused: {pipes:?}");
}

fn sessions_where_descriptors_are_few(engine: Engine) {
    let setup = Setup::new(engine).descriptors(FEW_DESCRIPTORS);
    let mut stage = Stage::new(setup, engine, Reloads::Never, "");
    stage.play(plan(Scarcity::FewDescriptors, 15, 0));
    stage.assert_quiet(None);
    let served = Route::ALL.iter().all(|route| stage.served(*route) > 0);
    assert!(served, "some route served nobody: {}", stage.summary());
}

/// Both switches were made, and bytes went through pipes both ways.
#[track_caller]
fn assert_piped(stage: &Stage) {
    let pipes = stage.pipes();
    let is_whole = pipes.to_pipe > 0 && pipes.to_buffer > 0 && pipes.bytes_up > 0 && pipes.bytes_down > 0;
    assert!(is_whole, "some way was never taken: {pipes:?}");
}

/// A plan that takes `percent` of the time.
fn plan(scarcity: Scarcity, percent: u32, first: u64) -> Plan {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
    };
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(SECONDS)) * percent / 100;
    let seed = number("SOAK_SEED").unwrap_or_else(fresh_seed);
    let slots =
        number("SOAK_SLOTS").map_or(SLOTS, |slots| usize::try_from(slots).expect("a number of slots"));
    Plan { seed, slots, length, only: number("SOAK_SESSION"), scarcity, first }
}

/// One for the whole process, so that one number reproduces all of it.
fn fresh_seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| fastrand::u64(..))
}
