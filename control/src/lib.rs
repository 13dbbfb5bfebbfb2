//! The control side of ringweir: everything that decides slowly. It reads the configuration, checks targets, resolves
//! names, binds sockets, and publishes snapshots; engines carry them out.
//!
//! ```text
//! a decision:  config file -> control -> snapshot -> worker
//! ```
//!
//! It knows no engine: the composition root hands it a function that starts one behind [`Driver`].

mod admin;
mod assemble;
mod bind;
mod check;
mod cli;
mod client;
mod clock;
pub mod config;
mod daemon;
mod explain;
mod forward;
mod health;
mod histogram;
mod logging;
mod metrics;
pub mod model;
mod passwords;
mod paths;
mod plugins;
mod resolve;
mod rules;
mod shadowsocks;
mod signals;
mod state;
mod status;
mod users;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use hyper::Method;

pub use crate::bind::Opened;
use crate::check::Probe;
pub use crate::cli::Cli;
use crate::cli::{AdminArgument, Command, Run};
pub use crate::daemon::{Driver, StartRequest, Started};
use crate::daemon::{Settings, Word, serve};
use crate::health::history::{self, Entry};
use crate::histogram::Report;
pub use crate::metrics::METRICS;
use crate::model::Config;
pub use crate::shadowsocks::convert as convert_import;
use crate::status::Status;

/// Runs the command that the command line asks for; `start` starts an engine.
pub fn run(start: impl FnOnce(StartRequest) -> Result<Started, String>) -> ExitCode {
    let cli = Cli::parse();
    match carry_out(cli, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal { message, code }) => {
            // Nothing can be done when even stderr is gone.
            let _ = writeln!(std::io::stderr(), "{}", message.trim_end());
            ExitCode::from(code)
        }
    }
}

/// Why a command was not carried out, and what the process says of it to its parent.
struct Refusal {
    message: String,
    code: u8,
}

impl From<String> for Refusal {
    fn from(message: String) -> Refusal {
        Refusal { message, code: 1 }
    }
}

/// Wrong words on the command line; the code is clap's.
fn usage(errors: config::ConfigErrors) -> Refusal {
    Refusal { message: errors.to_string(), code: 2 }
}

fn carry_out(cli: Cli, start: impl FnOnce(StartRequest) -> Result<Started, String>) -> Result<(), Refusal> {
    match cli.command.unwrap_or_else(|| Command::Run(Run::default())) {
        Command::Run(run) => {
            let mut config = match &run.config {
                Some(file) => config::load(file).map_err(|errors| errors.to_string())?,
                None => {
                    let mut config = forward::without_file().map_err(|errors| errors.to_string())?;
                    config.admin.listen = Some(paths::own_admin());
                    config
                }
            };
            run.overrides.apply(&mut config);
            serve_until_told(config, Settings { file: run.config, overrides: run.overrides }, start)?;
        }
        Command::Forward(forward) => {
            let mut config = forward::from_arguments(&forward.forward).map_err(usage)?;
            config.admin.listen = Some(paths::own_admin());
            forward.overrides.apply(&mut config);
            serve_until_told(config, Settings { file: None, overrides: forward.overrides }, start)?;
        }
        Command::Check { file } => {
            let config = config::load(&file).map_err(|errors| errors.to_string())?;
            let (listeners, targets) = (config.listeners.len(), config.targets.len());
            print(&format!("{}: sound; {listeners} listeners, {targets} targets\n", file.display()))?;
        }
        Command::Status { admin, json } => {
            let text = ask(&admin, Method::GET, "/status")?;
            if json {
                print(&format!("{text}\n"))?;
                return Ok(());
            }
            let status: Status =
                serde_json::from_str(&text).map_err(|error| format!("the status cannot be read: {error}"))?;
            print(&status.to_table())?;
        }
        Command::Histogram { admin, hlog: Some(file), interval, .. } => {
            runtime()?.block_on(histogram::dump(&admin, &file, interval))?;
        }
        Command::Histogram { admin, json, .. } => show_histograms(&admin, json)?,
        Command::Events { admin, json } => show_events(&admin, json)?,
        Command::Reload { admin } => print(&ask(&admin, Method::POST, "/reload")?)?,
        Command::Select { group, target, admin } => {
            let path = format!("{}&group={}", query("/select", &target), escaped(&group));
            print(&ask(&admin, Method::POST, &path)?)?
        }
        Command::Explain(arguments) => explain::run(arguments)?,
        Command::Import(arguments) => shadowsocks::import(&arguments)?,
        Command::Share(arguments) => shadowsocks::share(&arguments)?,
        Command::HashPassword(cost) => print(&format!("{}\n", passwords::hash_what_is_entered(cost)?))?,
        Command::Probe { target, json, admin } => probe(&target, json, &admin)?,
        Command::Drain { target, admin } => say(Word::Drain, &target, &admin)?,
        Command::Undrain { target, admin } => say(Word::Undrain, &target, &admin)?,
        Command::Disable { target, admin } => say(Word::Disable, &target, &admin)?,
        Command::Enable { target, admin } => say(Word::Enable, &target, &admin)?,
        Command::PluginExec { parent, program } => {
            let message = plugins::exec::run(parent, &program);
            return Err(Refusal { message, code: plugins::exec::NOT_RUN });
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringweir", &mut script);
            print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(())
}

/// Says the operator's word of a target.
fn say(word: Word, target: &str, admin: &AdminArgument) -> Result<(), String> {
    print(&ask(admin, Method::POST, &query(&format!("/{}", word.as_str()), target))?)
}

/// A probe that fails is a failure of the command as well.
fn probe(target: &str, json: bool, admin: &AdminArgument) -> Result<(), String> {
    let text = ask(admin, Method::POST, &query("/probe", target))?;
    let probe: Probe =
        serde_json::from_str(&text).map_err(|error| format!("the probe cannot be read: {error}"))?;
    if json {
        print(&format!("{text}\n"))?;
    } else {
        print(&probe.to_table())?;
    }
    probe.report.error.map_or(Ok(()), |_| Err(format!("{target} is not well")))
}

fn show_histograms(admin: &AdminArgument, json: bool) -> Result<(), String> {
    let text = ask(admin, Method::GET, "/histograms")?;
    if json {
        return print(&format!("{text}\n"));
    }
    let report: Report =
        serde_json::from_str(&text).map_err(|error| format!("the histograms cannot be read: {error}"))?;
    print(&report.to_table())
}

fn show_events(admin: &AdminArgument, json: bool) -> Result<(), String> {
    let text = ask(admin, Method::GET, "/events")?;
    if json {
        return print(&format!("{text}\n"));
    }
    let entries: Vec<Entry> =
        serde_json::from_str(&text).map_err(|error| format!("the events cannot be read: {error}"))?;
    print(&history::to_table(&entries))
}

fn serve_until_told(
    config: Config,
    settings: Settings,
    start: impl FnOnce(StartRequest) -> Result<Started, String>,
) -> Result<(), String> {
    let _log = logging::start(config.log);
    raise_descriptor_limit();
    runtime()?.block_on(serve(config, settings, start))
}

fn ask(admin: &AdminArgument, method: Method, path: &str) -> Result<String, String> {
    runtime()?.block_on(client::ask(admin, method, path))
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("the control thread cannot be set up: {error}"))
}

/// A path with a target's name in its query, every byte that could mean something else escaped (RFC 3986, 2.1).
fn query(path: &str, target: &str) -> String {
    format!("{path}?target={}", escaped(target))
}

fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn print(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough, as head(1) has, is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("stdout: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Every session needs two descriptors, and the soft limit is often 1024 for the sake of select(2), which nobody uses
/// here.
#[cfg(unix)]
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    // macOS names no limit and allows no more than OPEN_MAX.
    let current = if cfg!(target_os = "macos") { Some(10_240) } else { limit.maximum };
    let raised = Rlimit { current, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit on descriptors stays as it is");
    }
}

#[cfg(not(unix))]
fn raise_descriptor_limit() {}
