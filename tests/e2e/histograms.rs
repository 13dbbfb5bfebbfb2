//! Histograms: what is measured, and every way to see it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::client::{assert_echo, connect, is_served, read_bytes};
use crate::harness::daemon::{Daemon, Following, ringweir};
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{metric, named};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::relay::to;
use crate::reload::{listener, upstream};

scenarios!(Welcome:
    every_session_is_counted_once,
    a_slow_answer_shows_in_the_first_byte,
    failed_tries_show_where_they_cost_time,
    the_command_shows_a_table_json_and_a_log,
    intervals_of_the_command_add_up,
    a_signal_writes_an_interval_to_the_file,
    intervals_of_the_file_add_up_to_the_end,
    without_a_file_the_signal_goes_to_the_log,
    counts_survive_a_reload_and_the_file_changes,
    a_file_that_cannot_be_written_is_a_warning,
    metrics_have_the_histograms,
);

fn histograms(daemon: &Daemon) -> Value {
    let response = daemon.ask("GET", "/histograms");
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_slice(&response.body).unwrap()
}

/// A number of a figure; 0 where nothing was recorded.
#[track_caller]
fn figure(all: &Value, kind: &str, name: &str, figure: &str, key: &str) -> u64 {
    let figure = &named(all, kind, name)["figures"][figure];
    if figure.is_null() { 0 } else { figure[key].as_u64().unwrap_or_else(|| panic!("no {key} in {figure}")) }
}

#[track_caller]
fn serve(daemon: &Daemon, sessions: usize) {
    for _ in 0..sessions {
        assert!(is_served(daemon.address("in")));
    }
}

#[track_caller]
fn wait_until_counted(daemon: &Daemon, sessions: u64) {
    eventually(PATIENCE, "the sessions are counted", || {
        figure(&histograms(daemon), "listeners", "in", "session_us", "count") == sessions
    });
}

/// Every interval of a log: its tag, and the histogram.
#[track_caller]
fn read_log(text: &str) -> Vec<(String, Histogram<u64>)> {
    let mut intervals = Vec::new();
    for entry in IntervalLogIterator::new(text.as_bytes()) {
        match entry.unwrap_or_else(|error| panic!("{error:?} in:\n{text}")) {
            LogEntry::StartTime(_) | LogEntry::BaseTime(_) => {}
            LogEntry::Interval(interval) => {
                let engine = base64::engine::general_purpose::STANDARD;
                let bytes = engine.decode(interval.encoded_histogram()).unwrap();
                let histogram = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
                intervals.push((interval.tag().unwrap().to_string(), histogram));
            }
        }
    }
    intervals
}

/// How many values all intervals of a tag have, and how many intervals there are.
fn sum_of(text: &str, tag: &str) -> (u64, usize) {
    let intervals = read_log(text);
    let ours: Vec<_> = intervals.iter().filter(|(found, _)| found == tag).collect();
    (ours.iter().map(|(_, histogram)| histogram.len()).sum(), ours.len())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn every_session_is_counted_once(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    serve(&daemon, 20);
    wait_until_counted(&daemon, 20);
    let all = histograms(&daemon);
    for (kind, name) in [("listeners", "in"), ("targets", "up")] {
        for key in ["dispatch_us", "connect_us", "first_byte_us", "session_us", "bytes_up", "bytes_down"] {
            assert_eq!(figure(&all, kind, name, key, "count"), 20, "{kind} {key}: {all:#}");
        }
        for key in ["bytes_up", "bytes_down"] {
            assert_eq!(figure(&all, kind, name, key, "p50"), b"served?".len() as u64, "{kind} {key}");
        }
    }
}

fn a_slow_answer_shows_in_the_first_byte(engine: Engine) {
    const DELAY: Duration = Duration::from_millis(150);
    let server = Server::new(|mut stream| {
        thread::sleep(DELAY);
        let _ = stream.write_all(b"x");
    });
    let daemon = Daemon::start(engine, &to(server.address()));
    for _ in 0..3 {
        read_bytes(&mut connect(daemon.address("in")), 1);
    }
    wait_until_counted(&daemon, 3);
    let all = histograms(&daemon);
    for (kind, name) in [("listeners", "in"), ("targets", "up")] {
        let at = |key, percentile| u128::from(figure(&all, kind, name, key, percentile));
        let least = DELAY.as_micros() * 98 / 100;
        assert!(at("first_byte_us", "min") >= least, "{all:#}");
        assert!(at("session_us", "min") >= least, "{all:#}");
        assert!(at("connect_us", "p50") < least, "{all:#}");
    }
}

fn failed_tries_show_where_they_cost_time(engine: Engine) {
    let (server, dead) = (Server::echo(), Refuser::new());
    let config = listener("in", 0, "pool")
        + &upstream("dead", dead.address())
        + &upstream("up", server.address())
        + "[group.pool]\npolicy = \"failover\"\nmembers = [\"dead\", \"up\"]\n";
    let daemon = Daemon::start(engine, &config);
    serve(&daemon, 4);
    wait_until_counted(&daemon, 4);
    let all = histograms(&daemon);
    let count = |kind, name, key| figure(&all, kind, name, key, "count");
    assert_eq!(count("targets", "dead", "dispatch_us"), 4);
    assert_eq!(count("targets", "dead", "connect_us"), 0);
    assert_eq!(count("targets", "up", "connect_us"), 4);
    assert_eq!(count("targets", "pool", "dispatch_us"), 8, "picked for each of its members");
    assert_eq!(count("targets", "pool", "session_us"), 4);
    assert_eq!(count("listeners", "in", "dispatch_us"), 4);
}

fn the_command_shows_a_table_json_and_a_log(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    serve(&daemon, 5);
    wait_until_counted(&daemon, 5);
    let admin = daemon.admin();
    let table = ringweir(&["histogram", "--admin", &admin]);
    assert_eq!(table.code, 0, "{table:?}");
    for word in ["LISTENER", "TARGET", "99.9%", "first-byte", "bytes-down", "µs", "7 B"] {
        assert!(table.stdout.contains(word), "no {word} in:\n{}", table.stdout);
    }
    let json = ringweir(&["histogram", "--json", "--admin", &admin]);
    let all: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(figure(&all, "targets", "up", "connect_us", "count"), 5, "{all:#}");
    let log = ringweir(&["histogram", "--hlog", "-", "--admin", &admin]);
    let file = daemon.path("out.hlog");
    let done = ringweir(&["histogram", "--hlog", file.to_str().unwrap(), "--admin", &admin]);
    assert_eq!((log.code, done.code), (0, 0), "{log:?} {done:?}");
    for text in [log.stdout, read(&file)] {
        assert!(text.starts_with("#[Histogram log format version 1.3]\n"), "{text}");
        assert_eq!(sum_of(&text, "listener/in/session"), (5, 1));
        assert_eq!(sum_of(&text, "target/up/first-byte"), (5, 1));
    }
    let nowhere = ringweir(&["histogram", "--hlog", "/nowhere/x.hlog", "--admin", &admin]);
    assert_eq!(nowhere.code, 1);
    assert!(nowhere.stderr.contains("/nowhere/x.hlog"), "{nowhere:?}");
    assert_eq!(ringweir(&["histogram", "--interval", "1s", "--admin", &admin]).code, 2);
}

fn intervals_of_the_command_add_up(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    serve(&daemon, 3);
    wait_until_counted(&daemon, 3);
    let file = daemon.path("out.hlog");
    let mut following = Following::start(&[
        "histogram",
        "--hlog",
        file.to_str().unwrap(),
        "--interval",
        "500ms",
        "--admin",
        &daemon.admin(),
    ]);
    eventually(PATIENCE, "the header is written", || read(&file).contains("StartTimestamp"));
    serve(&daemon, 4);
    eventually(PATIENCE, "an interval", || sum_of(&read(&file), "listener/in/session").0 == 4);
    serve(&daemon, 2);
    wait_until_counted(&daemon, 9);
    following.interrupt();
    let (count, intervals) = sum_of(&read(&file), "listener/in/session");
    assert_eq!(count, 6, "what was before it began is not in it, the last interval is");
    assert!(intervals >= 2);
}

fn with_file(upstream: std::net::SocketAddr, more: &str) -> String {
    format!("[histograms]\nfile = \"histograms.hlog\"\n{more}\n{}", to(upstream))
}

fn a_signal_writes_an_interval_to_the_file(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &with_file(server.address(), ""));
    let file = daemon.path("histograms.hlog");
    for round in 1..=2 {
        serve(&daemon, 3);
        wait_until_counted(&daemon, 3 * round);
        daemon.signal(Signal::USR1);
        eventually(PATIENCE, "an interval", || sum_of(&read(&file), "target/up/connect").0 == 3 * round);
    }
    assert_eq!(sum_of(&read(&file), "target/up/connect"), (6, 2));
    assert_eq!(read(&file).matches("#[Histogram log format").count(), 1);
    let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & !0o640, 0, "{mode:o}");
    assert_ne!(mode & 0o600, 0, "{mode:o}");
    // Moved away, as logrotate does.
    fs::rename(&file, daemon.path("old.hlog")).unwrap();
    serve(&daemon, 1);
    wait_until_counted(&daemon, 7);
    daemon.signal(Signal::USR1);
    eventually(PATIENCE, "a new file", || sum_of(&read(&file), "target/up/connect") == (1, 1));
}

fn intervals_of_the_file_add_up_to_the_end(engine: Engine) {
    let server = Server::echo();
    let mut daemon = Daemon::start(engine, &with_file(server.address(), "interval = \"500ms\""));
    let file = daemon.path("histograms.hlog");
    serve(&daemon, 3);
    eventually(PATIENCE, "an interval", || sum_of(&read(&file), "listener/in/session").0 == 3);
    // One that only ends with the daemon.
    let mut client = connect(daemon.address("in"));
    assert_echo(&mut client, b"still here");
    daemon.signal(Signal::TERM);
    // Two signals at once would be one.
    daemon.wait_line("the drain", |line| line.contains("draining"));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_exit(PATIENCE).success());
    let text = read(&file);
    assert_eq!(sum_of(&text, "listener/in/session").0, 4, "{text}");
    assert_eq!(sum_of(&text, "target/up/connect").0, 4, "{text}");
}

fn without_a_file_the_signal_goes_to_the_log(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    serve(&daemon, 2);
    wait_until_counted(&daemon, 2);
    daemon.signal(Signal::USR1);
    let line = daemon
        .wait_line("the connect of the target", |line| line.contains("target=up figure=connect count=2 "));
    assert!(line.contains("p99.9="), "{line}");
}

fn counts_survive_a_reload_and_the_file_changes(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    serve(&daemon, 2);
    wait_until_counted(&daemon, 2);
    let config = with_file(server.address(), "");
    daemon.reload(&config).unwrap();
    serve(&daemon, 1);
    wait_until_counted(&daemon, 3);
    // A reload ends the interval in the old file.
    daemon.reload(&config.replace("histograms.hlog", "other.hlog")).unwrap();
    let (old, new) = (daemon.path("histograms.hlog"), daemon.path("other.hlog"));
    eventually(PATIENCE, "the old file", || sum_of(&read(&old), "listener/in/session") == (3, 1));
    serve(&daemon, 4);
    wait_until_counted(&daemon, 7);
    daemon.signal(Signal::USR1);
    eventually(PATIENCE, "the new file", || sum_of(&read(&new), "listener/in/session") == (4, 1));
    assert_eq!(sum_of(&read(&old), "listener/in/session"), (3, 1));
}

fn a_file_that_cannot_be_written_is_a_warning(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &with_file(server.address(), ""));
    let file = daemon.path("histograms.hlog");
    fs::create_dir(&file).unwrap();
    serve(&daemon, 2);
    wait_until_counted(&daemon, 2);
    daemon.signal(Signal::USR1);
    let line = daemon.wait_line("the warning", |line| line.contains("histograms cannot be written"));
    assert!(line.contains("WARN") && line.contains("histograms.hlog"), "{line}");
    serve(&daemon, 1);
    wait_until_counted(&daemon, 3);
    fs::remove_dir(&file).unwrap();
    daemon.signal(Signal::USR1);
    eventually(PATIENCE, "nothing is lost", || sum_of(&read(&file), "listener/in/session") == (3, 1));
}

fn metrics_have_the_histograms(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    serve(&daemon, 3);
    wait_until_counted(&daemon, 3);
    let text = daemon.metrics();
    for name in ["listener_dispatch", "listener_connect", "listener_first_byte", "listener_session"] {
        assert_eq!(metric(&text, &[&format!("ringweir_{name}_seconds_count"), "\"in\""]), 3.0, "{text}");
        let all = metric(&text, &[&format!("ringweir_{name}_seconds_bucket"), "+Inf", "\"in\""]);
        assert_eq!(all, 3.0, "{name}: {text}");
    }
    assert_eq!(metric(&text, &["ringweir_target_connect_seconds_count", "\"up\""]), 3.0, "{text}");
    assert!(metric(&text, &["ringweir_listener_session_seconds_sum", "\"in\""]) > 0.0, "{text}");
}
