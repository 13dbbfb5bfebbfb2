//! `ringweir-load`: the load generator of the measuring lab, and the backend that stands behind the forwarder.
//!
//! Both are single threads over epoll, so that on a small machine they cost less than what they measure. `perf/run`
//! calls them; they are of use alone too.

mod backend;
mod drive;
mod error;
mod exchange;
mod idle;
mod loads;
mod net;
mod pace;
mod report;
mod streams;
mod witness;

use clap::{Args, Parser, Subcommand, ValueEnum};
use drive::{Context, Load, Plan, drive};
use error::LoadError;
use loads::{PingPong, Rate, ShortSessions};
use report::{Header, RunReport, write_hlog};
use serde::Serialize;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use streams::{Download, Upload};

/// Load generator and backend for measuring a forwarder of TCP connections.
#[derive(Parser)]
#[command(name = "ringweir-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve echo, sink and source, as the first byte of each connection asks; prints the port.
    Backend {
        /// Where to listen; port 0 lets the kernel choose.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Put one kind of load on an address and report.
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The kind of load.
    scenario: Scenario,
    /// The forwarder (or the backend itself).
    #[arg(long)]
    to: SocketAddr,
    /// Length of the measured window, in seconds.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Load before the window that is not counted, in seconds.
    #[arg(long, default_value_t = 0.3, value_parser = parse_seconds)]
    warmup: f64,
    /// Connections at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Message size, in bytes; 64 if not given. Streams have no messages and refuse it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(8..=16_777_216))]
    size: Option<u32>,
    /// Messages a second over all connections; for `rate` only.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Hold all streams together to so many MiB a second; for `up` and `down` only.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    mib_per_second: Option<u32>,
    /// Processes whose CPU is read at both ends of the window (the forwarder's), separated by commas.
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
    /// Other processes that make this load (its backend, say): whoever else is on their core is a stranger.
    #[arg(long, value_delimiter = ',')]
    helpers: Vec<u32>,
    /// Write the raw latency histogram here, in the HdrHistogram interval log format.
    #[arg(long)]
    hlog: Option<PathBuf>,
    /// Print one JSON object instead of a line for people.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Closed loop: each connection echoes message after message.
    Pingpong,
    /// Connect, echo, close; so many at once.
    Crr,
    /// Streams from the client.
    Up,
    /// Streams to the client.
    Down,
    /// Open loop at a fixed rate; latency counts from when a message was due.
    Rate,
    /// Open sessions, say so, wait for a line on stdin, and ask each once more.
    Idle,
}

/// Size of a message where none is asked for, in bytes.
const DEFAULT_SIZE_BYTES: u32 = 64;
const BYTES_PER_MIB: f64 = 1_048_576.0;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Backend { listen } => backend::serve(listen),
        Command::Run(args) => run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ringweir-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if seconds.is_finite() && (0.0..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("{text} s is not between 0 and a day"))
    }
}

fn run(args: &RunArgs) -> Result<(), LoadError> {
    check_options(args);
    net::raise_descriptor_limit()?;
    // Without this the kernel may wake an open loop 50 us late, and that would count as the forwarder's latency.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).map_err(LoadError::system("prctl"))?;
    let connections = args.connections as usize;
    let size_bytes = args.size.unwrap_or(DEFAULT_SIZE_BYTES) as usize;
    let bytes_per_second = args.mib_per_second.map(|mib| f64::from(mib) * BYTES_PER_MIB);
    let mut context = Context::new(net::Dialer::new(args.to))?;
    let mut load: Box<dyn Load> = match args.scenario {
        Scenario::Pingpong => Box::new(PingPong::new(connections, size_bytes)),
        Scenario::Crr => Box::new(ShortSessions::new(connections, size_bytes)),
        Scenario::Up => Box::new(Upload::new(connections, bytes_per_second)),
        Scenario::Down => Box::new(Download::new(connections, bytes_per_second)),
        Scenario::Rate => Box::new(Rate::new(connections, size_bytes, f64::from(args.rate.unwrap_or(1)))),
        Scenario::Idle => {
            let report = idle::run(&mut context, connections, size_bytes)?;
            return print_json(&report);
        }
    };
    let plan = Plan {
        warmup: Duration::from_secs_f64(args.warmup),
        window: Duration::from_secs_f64(args.seconds),
        watched_pids: args.watch.clone(),
        load_pids: args.helpers.iter().copied().chain([std::process::id()]).collect(),
    };
    let outcome = drive(load.as_mut(), context, &plan)?;
    let scenario =
        args.scenario.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    let header = Header { scenario, to: args.to, connections, size_bytes };
    if let Some(path) = &args.hlog {
        write_hlog(path, &header, &outcome)?;
    }
    let report = RunReport::new(&header, &outcome);
    if args.json { print_json(&report) } else { print_line(&report.to_line()) }
}

/// Refuses, in the parser's own manner, options that the scenario would not use.
fn check_options(args: &RunArgs) {
    let refuse = |message: &str| {
        clap::Command::new("ringweir-load").error(clap::error::ErrorKind::ArgumentConflict, message).exit()
    };
    let streams = matches!(args.scenario, Scenario::Up | Scenario::Down);
    if streams && args.size.is_some() {
        refuse("streams have no messages: --size does not go with them");
    }
    if !streams && args.mib_per_second.is_some() {
        refuse("only streams have a rate in bytes: --mib-per-second does not go with this scenario");
    }
    if (streams || args.scenario == Scenario::Idle) && args.hlog.is_some() {
        refuse("only pingpong, crr and rate have latencies: --hlog does not go with this scenario");
    }
    if (args.scenario == Scenario::Rate) != args.rate.is_some() {
        refuse("--rate belongs to the scenario rate, which needs it");
    }
    if args.scenario == Scenario::Idle && !(args.watch.is_empty() && args.helpers.is_empty()) {
        refuse("idle measures no CPU: --watch and --helpers do not go with it");
    }
}

fn print_json(report: &impl Serialize) -> Result<(), LoadError> {
    let text = serde_json::to_string(report)
        .map_err(|error| LoadError::Unwritable { what: "the report".into(), reason: error.to_string() })?;
    print_line(&text)
}

fn print_line(line: &str) -> Result<(), LoadError> {
    writeln!(std::io::stdout(), "{line}").map_err(LoadError::system("write to stdout"))
}
