//! curl as a client, where it is installed.

use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Whether curl is there; says aloud that a scenario is skipped when it is not.
pub(crate) fn is_installed() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let installed = *ANSWER.get_or_init(|| {
        Command::new("curl")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    });
    if !installed {
        eprintln!("SKIPPED: curl is not installed");
    }
    installed
}

/// Runs curl, bounded in time, untouched by the environment's proxies and its own configuration.
pub(crate) fn curl(arguments: &[&str]) -> Output {
    const PROXY_VARIABLES: [&str; 5] = ["http_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "HTTPS_PROXY"];
    let mut command = Command::new("curl");
    for variable in PROXY_VARIABLES {
        command.env_remove(variable);
    }
    // An empty list: `localhost` goes through the proxy too.
    command.env("NO_PROXY", "").env("no_proxy", "");
    let output = command.args(["-q", "-sS", "--max-time", "20"]).args(arguments).output();
    output.expect("curl runs")
}

/// Runs curl and wants success; gives the body.
#[track_caller]
pub(crate) fn fetch(arguments: &[&str]) -> Vec<u8> {
    let output = curl(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {arguments:?}: {} {error}", output.status);
    output.stdout
}
