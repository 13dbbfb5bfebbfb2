//! `ringweir histogram --hlog`: the interval log of a running daemon, whole or one interval after another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hyper::Method;
use tokio::time::{MissedTickBehavior, interval_at};

use super::hlog::{self, Log, Parsed};
use super::{Moment, Tally};
use crate::cli::AdminArgument;
use crate::client;

/// Writes what was recorded since the daemon's start, or, with an `interval`, what is recorded from now on until
/// somebody interrupts it.
///
/// # Errors
/// Why the daemon cannot be asked or the file not written, for people.
pub(crate) async fn dump(
    admin: &AdminArgument,
    file: &Path,
    interval: Option<Duration>,
) -> Result<(), String> {
    let mut output = Output::open(file)?;
    match interval {
        None => output.write(client::ask(admin, Method::GET, "/histograms.hlog").await?.as_bytes()).map(drop),
        Some(interval) => follow(admin, output, interval).await,
    }
}

async fn follow(admin: &AdminArgument, mut output: Output, interval: Duration) -> Result<(), String> {
    let mut known = ask(admin).await?;
    let mut since = Moment::now();
    let mut log = Log::new();
    log.header(since.wall);
    let mut flow = output.write(&log.into_bytes())?;
    let mut ticks = interval_at(since.clock + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut phase = Phase::Following;
    while phase == Phase::Following && flow == Flow::On {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut interrupt => phase = Phase::Interrupted,
        }
        let now = Moment::now();
        let current = ask(admin).await?;
        let before = if current.start == known.start { &known.tallies } else { &BTreeMap::new() };
        let intervals = intervals(&current.tallies, before, since.wall, since.until(now));
        flow = output.write(&intervals)?;
        (known, since) = (current, now);
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Following,
    Interrupted,
}

fn intervals(
    current: &BTreeMap<String, Tally>,
    before: &BTreeMap<String, Tally>,
    start: SystemTime,
    length: Duration,
) -> Vec<u8> {
    let mut log = Log::new();
    for (tag, tally) in current {
        let new = before.get(tag).map_or_else(|| tally.clone(), |before| tally.since(before));
        if !new.is_empty() {
            log.interval(tag, start, length, &new);
        }
    }
    log.into_bytes()
}

async fn ask(admin: &AdminArgument) -> Result<Parsed, String> {
    hlog::parse(&client::ask(admin, Method::GET, "/histograms.hlog").await?)
}

/// Where the log goes.
enum Output {
    Stdout,
    File { name: String, file: File },
}

/// Whether more is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    On,
    /// A reader that has seen enough, as head(1) has, is no failure.
    Enough,
}

impl Output {
    fn open(path: &Path) -> Result<Output, String> {
        if path == Path::new("-") {
            return Ok(Output::Stdout);
        }
        let name = path.display().to_string();
        match File::create(path) {
            Ok(file) => Ok(Output::File { name, file }),
            Err(error) => Err(format!("{name}: {error}")),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Flow, String> {
        let (name, result) = match self {
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                ("stdout", stdout.write_all(bytes).and_then(|()| stdout.flush()))
            }
            Output::File { name, file } => (name.as_str(), file.write_all(bytes)),
        };
        match result {
            Ok(()) => Ok(Flow::On),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Flow::Enough),
            Err(error) => Err(format!("{name}: {error}")),
        }
    }
}
