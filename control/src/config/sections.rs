//! The sections that stand alone: engine, admin, log, timeouts, resolver.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringweir_flow::snapshot::Timeouts;
use ringweir_flow::way::Splicing;

use super::address::{parse_bind, parse_server};
use super::reader::{Node, Table};
use super::{schema, secrets};
use crate::model::{
    Admin, BindAddress, Engine, EngineKind, HistogramFile, Level, Log, LogFormat, MAX_PIPES, MAX_WORKERS,
    ResolverSettings, Token, Workers,
};

/// How long SIGTERM waits for running sessions unless configured otherwise.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// How long one question to the name servers may take unless configured otherwise.
pub(crate) const DEFAULT_RESOLVE: Duration = Duration::from_secs(5);

/// Where the admin endpoint is unless configured otherwise.
#[cfg(unix)]
pub(crate) const DEFAULT_ADMIN: &str = "unix:/run/ringweir/admin.sock";
/// Where the admin endpoint is unless configured otherwise.
#[cfg(not(unix))]
pub(crate) const DEFAULT_ADMIN: &str = "127.0.0.1:9180";

/// The words of `engine.kind` and `--engine`.
pub(crate) const ENGINE_KINDS: &[(&str, EngineKind)] =
    &[("auto", EngineKind::Auto), ("io-uring", EngineKind::IoUring), ("tokio", EngineKind::Tokio)];

/// The words of `log.format` and `--log-format`.
pub(crate) const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// How often histograms may be written: each time every cell of every worker is read.
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_millis(500);

const LEVELS: &[(&str, Level)] = &[
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

/// The longest that a worker may wait for packets without sleeping. Beyond it sleeping costs nothing that anybody
/// would notice.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(10);

/// The most that `engine.splice` may be: no receive brings more at once.
const MAX_SPLICE_BYTES: u32 = 1 << 20;

pub(crate) fn engine(root: &Table<'_>) -> Engine {
    let Some(table) = section(root, "engine", schema::ENGINE) else { return Engine::default() };
    Engine {
        kind: table.get("kind").and_then(|node| node.choice(ENGINE_KINDS)).unwrap_or_default(),
        workers: table.get("workers").and_then(|node| workers(&node)).unwrap_or_default(),
        splicing: table.get("splice").and_then(|node| splicing(&node)).unwrap_or_default(),
        busy_poll: table.get("busy_poll").and_then(|node| busy_poll(&node)),
        pipes: table.get("pipes").and_then(|node| pipes(&node)).unwrap_or_default(),
    }
}

fn splicing(node: &Node<'_>) -> Option<Splicing> {
    if node.is_string() {
        return node.choice(&[("auto", Splicing::default()), ("off", Splicing::Off)]);
    }
    node.integer(1..=MAX_SPLICE_BYTES).map(|bytes| Splicing::From(bytes as usize))
}

fn pipes(node: &Node<'_>) -> Option<Option<usize>> {
    if node.is_string() {
        return node.choice(&[("auto", None)]);
    }
    node.integer(0..=MAX_PIPES as u32).map(|count| Some(count as usize))
}

fn busy_poll(node: &Node<'_>) -> Option<Duration> {
    if !ringweir_socket::IS_LINUX {
        node.report("is of the io_uring engine, and that of Linux", None);
    }
    node.duration_from(Duration::from_micros(1)..=LONGEST_BUSY_POLL)
}

fn workers(node: &Node<'_>) -> Option<Workers> {
    if node.is_string() {
        return node.choice(&[("auto", Workers::Auto)]);
    }
    node.integer(1..=MAX_WORKERS as u32).map(|count| Workers::Count(count as usize))
}

pub(crate) fn admin(root: &Table<'_>, folder: &Path) -> Admin {
    let default = parse_bind(DEFAULT_ADMIN).ok();
    let Some(table) = section(root, "admin", schema::ADMIN) else {
        return Admin { listen: default, metrics: None, token: None };
    };
    let listen = match table.get("listen") {
        Some(node) if node.string() == Some("none") => None,
        Some(node) => node.parsed(parse_bind).or(default),
        None => default,
    };
    let metrics = table.get("metrics").and_then(|node| metrics_bind(&node));
    let token = token(&table, folder);
    let has_token = table.get("token").is_some() || table.get("token_file").is_some();
    for (key, bind) in [("listen", &listen), ("metrics", &metrics)] {
        if let (Some(bind), Some(node)) = (bind, table.get(key))
            && !bind.is_local()
            && !has_token
        {
            node.report(
                format!("{bind} can be reached from other machines, and nothing keeps strangers out"),
                Some("set admin.token or admin.token_file, or bind it to 127.0.0.1".to_owned()),
            );
        }
    }
    Admin { listen, metrics, token }
}

fn metrics_bind(node: &Node<'_>) -> Option<BindAddress> {
    match node.parsed(parse_bind)? {
        BindAddress::Unix(_) => {
            node.report("is a TCP address for scrapers", Some("admin.listen is the Unix socket".to_owned()));
            None
        }
        tcp @ (BindAddress::Tcp(_) | BindAddress::DualStack(_)) => Some(tcp),
    }
}

fn token(table: &Table<'_>, folder: &Path) -> Option<Token> {
    match (table.get("token"), table.get("token_file")) {
        (Some(_), Some(file)) => {
            file.report("the token is given twice", Some("keep token or token_file".to_owned()));
            None
        }
        (Some(node), None) => {
            let text = node.string()?;
            secrets::token(text).map_err(|message| node.report(message, None)).ok()
        }
        (None, Some(node)) => secrets::token_file(&node, folder),
        (None, None) => None,
    }
}

pub(crate) fn log(root: &Table<'_>) -> Log {
    let mut log = Log { level: Level::default(), format: LogFormat::default(), sessions: false };
    let Some(table) = section(root, "log", schema::LOG) else { return log };
    if let Some(level) = table.get("level").and_then(|node| node.choice(LEVELS)) {
        log.level = level;
    }
    if let Some(format) = table.get("format").and_then(|node| node.choice(LOG_FORMATS)) {
        log.format = format;
    }
    log.sessions = table.get("sessions").and_then(|node| node.boolean()).unwrap_or(false);
    log
}

/// The defaults for every listener, and how long SIGTERM waits.
pub(crate) fn timeouts(root: &Table<'_>) -> (Timeouts, Duration) {
    let Some(table) = section(root, "timeouts", schema::TIMEOUTS) else {
        return (Timeouts::default(), DEFAULT_DRAIN);
    };
    let drain = table.get("drain").and_then(|node| node.duration()).unwrap_or(DEFAULT_DRAIN);
    (session_timeouts(&table, Timeouts::default()), drain)
}

/// What a table of timeouts says, over `base`.
pub(crate) fn session_timeouts(table: &Table<'_>, base: Timeouts) -> Timeouts {
    let time = |key, otherwise| table.get(key).and_then(|node| node.duration()).unwrap_or(otherwise);
    Timeouts {
        handshake: time("handshake", base.handshake),
        connect: time("connect", base.connect),
        idle: time("idle", base.idle),
        half_close: time("half_close", base.half_close),
    }
}

pub(crate) fn histograms(root: &Table<'_>, folder: &Path) -> Option<HistogramFile> {
    let table = section(root, "histograms", schema::HISTOGRAMS)?;
    let interval = table.get("interval").and_then(|node| {
        let interval = node.duration()?;
        if interval < SHORTEST_INTERVAL {
            node.report(format!("is shorter than {SHORTEST_INTERVAL:?}"), None);
        }
        Some(interval)
    });
    let node = table.required("file")?;
    let name = node.string()?;
    if name.is_empty() {
        node.report("is empty", None);
    }
    Some(HistogramFile { path: folder.join(name), interval })
}

/// Where the operator's selections are kept: in the folder that systemd gives to services unless configured otherwise
/// (systemd.exec(5), StateDirectory).
pub(crate) fn state(root: &Table<'_>, folder: &Path) -> Option<PathBuf> {
    let Some(table) = section(root, "state", schema::STATE) else {
        let folders = std::env::var_os("STATE_DIRECTORY")?;
        return std::env::split_paths(&folders).next().map(|folder| folder.join("ringweir.json"));
    };
    let node = table.required("file")?;
    let name = node.string()?;
    if name.is_empty() {
        node.report("is empty", None);
    }
    Some(folder.join(name))
}

pub(crate) fn excuse_outages(root: &Table<'_>) -> bool {
    let table = section(root, "health", schema::HEALTH);
    table.and_then(|table| table.get("excuse_outages")?.boolean()).unwrap_or(true)
}

pub(crate) fn resolver(root: &Table<'_>) -> ResolverSettings {
    let mut settings = ResolverSettings { servers: Vec::new(), timeout: DEFAULT_RESOLVE };
    let Some(table) = section(root, "resolver", schema::RESOLVER) else { return settings };
    if let Some(node) = table.get("servers") {
        settings.servers =
            node.one_or_more().iter().filter_map(|server| server.parsed(parse_server)).collect();
        if node.one_or_more().is_empty() {
            node.report("is empty", Some("leave it out to ask the system's name servers".to_owned()));
        }
    }
    if let Some(timeout) = table.get("timeout").and_then(|node| node.duration()) {
        settings.timeout = timeout;
    }
    settings
}

fn section<'a>(root: &Table<'a>, key: &'static str, keys: &'static [&'static str]) -> Option<Table<'a>> {
    root.get(key)?.table(keys)
}
