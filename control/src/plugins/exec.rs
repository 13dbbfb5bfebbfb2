//! What a plugin is on Linux before it is itself: ringweir once more, which asks to be told when its parent dies and then
//! becomes the plugin. So no plugin outlives a daemon that was killed. Control has no other way: between fork and exec
//! nothing safe can be run.

use std::process::Command;

/// How a shell ends for a program that cannot be run.
pub(crate) const NOT_RUN: u8 = 127;

/// Becomes the program; returns only when that fails.
#[cfg(target_os = "linux")]
pub(crate) fn run(parent: i32, program: &str) -> String {
    use std::os::unix::process::CommandExt as _;

    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return format!("the death of the daemon cannot be watched: {error}");
    }
    // It may have died before.
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(parent) {
        return "the daemon is gone".to_owned();
    }
    let error = Command::new(program).exec();
    format!("{program} cannot be run: {error}")
}

/// Elsewhere plugins are run at once.
#[cfg(not(target_os = "linux"))]
pub(crate) fn run(_parent: i32, program: &str) -> String {
    format!("{program} is run without this here: {:?}", Command::new(program))
}
