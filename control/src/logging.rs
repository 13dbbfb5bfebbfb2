//! The log: to stderr, through a thread of its own that drops lines rather than stall a worker.

use std::io::{self, IsTerminal};

use ringweir_flow::record::Record;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::model::{Level, Log, LogFormat};

/// Lines that may wait to be written; beyond it they are dropped.
const BUFFERED_LINES: usize = 16 * 1024;

/// The `tracing` target of the lines that tell where clients can connect and when they may: shown at every level,
/// because scripts wait for them.
pub(crate) const ANNOUNCEMENTS: &str = "ringweir::announcements";

/// Sets the log up. Lines are written as long as the guard lives.
pub(crate) fn start(log: Log) -> WorkerGuard {
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES).finish(io::stderr());
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // Session lines are asked for on their own, and what the libraries say is for developers.
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("ringweir", level)
        .with_target(Record::LOG_TARGET, LevelFilter::INFO)
        .with_target(ANNOUNCEMENTS, LevelFilter::INFO);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match log.format {
        LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // A second call is a test's; the first subscriber stays.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    guard
}
