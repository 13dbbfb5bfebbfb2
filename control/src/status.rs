//! What `ringweir status` shows: plain data, as JSON for machines and as tables for people.

mod pipes;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use ringweir_flow::account::{ListenerCell, ListenerCounters, TargetCell};
use ringweir_flow::close::{CloseReason, ConnectError};
use ringweir_flow::snapshot::{FirstHop, Policy, Protocol, Snapshot, TargetKind, Towards, Upstream};
use serde::{Deserialize, Serialize};

use self::pipes::PipeStatus;
use crate::check::StageTime;
use crate::plugins::PluginStatus;
use crate::rules::RuleStatus;
use crate::users::{self, UserStatus};

/// The daemon at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Of the binary.
    pub(crate) version: String,
    /// `io-uring` or `tokio`.
    pub(crate) engine: String,
    /// How many workers serve.
    pub(crate) workers: usize,
    /// Seconds since the start.
    pub(crate) uptime_seconds: u64,
    /// `serving` or `draining`.
    pub(crate) phase: String,
    /// Of the snapshot that is served.
    pub(crate) generation: u64,
    /// For how long our own network is taken to be down, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outage_for_seconds: Option<f64>,
    /// How often it was.
    #[serde(default)]
    pub(crate) outages: u64,
    /// The listeners, as configured.
    pub(crate) listeners: Vec<ListenerStatus>,
    /// The rules, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rules: Vec<RuleStatus>,
    /// The programs that Shadowsocks goes through besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) plugins: Vec<PluginStatus>,
    /// Upstreams and groups, as configured.
    pub(crate) targets: Vec<TargetStatus>,
    /// What each worker serves, over the listeners of the snapshot.
    pub(crate) per_worker: Vec<WorkerStatus>,
}

/// What one worker serves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    /// Sessions open now.
    pub(crate) active: u64,
    /// Sessions accepted since the start.
    pub(crate) accepted: u64,
    /// Bytes moved, both ways.
    pub(crate) bytes: u64,
}

/// A listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ListenerStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its addresses, as bound.
    pub(crate) addresses: Vec<String>,
    /// What is spoken there.
    pub(crate) protocol: String,
    /// Where its sessions go.
    pub(crate) target: String,
    /// Sessions open now.
    pub(crate) active: u64,
    /// Sessions accepted since the start.
    pub(crate) accepted: u64,
    /// Sessions ended, by reason; reasons that never occurred are left out.
    pub(crate) closed: BTreeMap<String, u64>,
    /// Bytes from clients.
    pub(crate) bytes_up: u64,
    /// Bytes to clients.
    pub(crate) bytes_down: u64,
    /// What of them was spliced through pipes.
    pub(crate) pipes: PipeStatus,
    /// Its users, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) users: BTreeMap<String, UserStatus>,
}

/// An upstream or group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetStatus {
    /// Its name.
    pub(crate) name: String,
    /// `tcp`, `unix`, `direct`, `reject` or `group`.
    pub(crate) kind: String,
    /// The endpoint of an upstream, the policy of a group.
    pub(crate) detail: String,
    /// Of a group, the names of its members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) members: Vec<String>,
    /// Of a group, those of them that new sessions go to as things stand: all that may be picked, of a failover the one
    /// whose turn it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) serving: Vec<String>,
    /// Of a group, those of them that get no new sessions, or one on trial.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) out: BTreeMap<String, OutStatus>,
    /// Of a group with `policy = "select"`, the one that is selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) selected: Option<String>,
    /// Of a group with `active`, those that wait to take a place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) reserve: Vec<String>,
    /// `unknown`, `up`, `down`, `draining`, `disabled`, `ejected` or `trial`.
    pub(crate) health: String,
    /// Why, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// For how long.
    #[serde(default)]
    pub(crate) health_for_seconds: f64,
    /// How often it was ejected for what real sessions met there.
    #[serde(default)]
    pub(crate) ejections: u64,
    /// What has happened to its health, and how often.
    #[serde(default)]
    pub(crate) events: BTreeMap<String, u64>,
    /// The last probe, where one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) check: Option<CheckStatus>,
    /// Sessions and attempts that hold it now.
    pub(crate) active: u64,
    /// Attempts begun.
    pub(crate) attempts: u64,
    /// Attempts that became sessions.
    pub(crate) committed: u64,
    /// Attempts given up without fault.
    pub(crate) abandoned: u64,
    /// Attempts that failed, by kind; kinds that never occurred are left out.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Sessions that it reset.
    pub(crate) resets: u64,
    /// Those of them that it reset before it had sent anything.
    #[serde(default)]
    pub(crate) early_resets: u64,
    /// Attempts whose first byte was awaited in vain.
    #[serde(default)]
    pub(crate) first_byte_timeouts: u64,
    /// Bytes from clients.
    pub(crate) bytes_up: u64,
    /// Bytes to clients.
    pub(crate) bytes_down: u64,
    /// Bytes a second from clients, over the last seconds.
    #[serde(default)]
    pub(crate) up_per_second: u64,
    /// Bytes a second to clients, over the last seconds.
    #[serde(default)]
    pub(crate) down_per_second: u64,
    /// How long it takes to get through to it, where anybody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<LatencyStatus>,
}

/// How long attempts took until they had won, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LatencyStatus {
    /// Of late: the moving average that picks go by, over the workers that have one.
    pub(crate) average_ms: f64,
    /// Since the start: as many took less as took longer.
    pub(crate) p50_ms: f64,
    /// One in ten took longer.
    pub(crate) p90_ms: f64,
    /// One in a hundred took longer.
    pub(crate) p99_ms: f64,
}

/// Puts the latencies of the targets of a snapshot into its status. Sums histograms up: for a thread that may take a
/// while.
pub(crate) fn add_latencies(status: &mut Status, snapshot: &Snapshot) {
    let percentiles = crate::histogram::times_to_connect(snapshot);
    for ((status, target), percentiles) in status.targets.iter_mut().zip(&snapshot.targets).zip(percentiles) {
        let known: Vec<u64> = target
            .counters
            .cells()
            .map(|cell| cell.latency.at_last())
            .filter(|average| *average > 0)
            .collect();
        let millis = |micros: u64| micros as f64 / 1e3;
        status.latency = percentiles.map(|at| LatencyStatus {
            average_ms: millis(known.iter().sum::<u64>() / known.len().max(1) as u64),
            p50_ms: millis(at.p50),
            p90_ms: millis(at.p90),
            p99_ms: millis(at.p99),
        });
    }
}

/// A member that is out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OutStatus {
    /// `down`, `draining`, `disabled`, `ejected` or `trial`.
    pub(crate) health: String,
    /// Why, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

/// The last probe of a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckStatus {
    /// Why it failed; `None` when it succeeded.
    pub(crate) error: Option<String>,
    /// How long it took.
    pub(crate) took_ms: f64,
    /// How far it came, and when.
    pub(crate) stages: Vec<StageTime>,
    /// How long ago it was.
    pub(crate) ago_seconds: f64,
    /// Since when the health is what it is.
    pub(crate) health_for_seconds: f64,
}

/// The listeners of a snapshot with the sums of their counters.
pub(crate) fn listeners(snapshot: &Snapshot) -> Vec<ListenerStatus> {
    let sum = |counters: &ListenerCounters, pick: fn(&ListenerCell) -> &ringweir_flow::account::Counter| {
        counters.sum(pick)
    };
    (0u32..)
        .zip(&snapshot.listeners)
        .map(|(index, listener)| {
            let counters = &*listener.counters;
            ListenerStatus {
                name: listener.name.to_string(),
                addresses: snapshot
                    .binds
                    .iter()
                    .filter(|bind| bind.listener.0 == index)
                    .map(|bind| bind.address.to_string())
                    .collect(),
                protocol: protocol_name(listener.protocol).to_owned(),
                target: snapshot.target(listener.target).name.to_string(),
                active: sum(counters, |cell| &cell.active),
                accepted: sum(counters, |cell| &cell.accepted),
                closed: CloseReason::ALL
                    .iter()
                    .map(|reason| (reason.to_string(), counters.sum(|cell| &cell.closed[reason.index()])))
                    .filter(|(_, count)| *count > 0)
                    .collect(),
                bytes_up: sum(counters, |cell| &cell.bytes_up),
                bytes_down: sum(counters, |cell| &cell.bytes_down),
                pipes: PipeStatus::of(counters),
                users: users::of(listener),
            }
        })
        .collect()
}

/// How the sessions are spread over the workers.
pub(crate) fn per_worker(snapshot: &Snapshot, workers: usize) -> Vec<WorkerStatus> {
    let mut all = vec![WorkerStatus::default(); workers];
    for listener in &snapshot.listeners {
        for (worker, cell) in all.iter_mut().zip(listener.counters.cells()) {
            worker.active += cell.active.get();
            worker.accepted += cell.accepted.get();
            worker.bytes += cell.bytes_up.get() + cell.bytes_down.get();
        }
    }
    all
}

/// The targets of a snapshot with the sums of their counters.
pub(crate) fn targets(snapshot: &Snapshot) -> Vec<TargetStatus> {
    snapshot
        .targets
        .iter()
        .map(|target| {
            let counters = &*target.counters;
            let sum = |pick: fn(&TargetCell) -> &ringweir_flow::account::Counter| counters.sum(pick);
            let (kind, detail, members) = describe(snapshot, &target.kind);
            TargetStatus {
                name: target.name.to_string(),
                kind: kind.to_owned(),
                detail,
                members,
                serving: Vec::new(),
                out: BTreeMap::new(),
                selected: selected(snapshot, &target.kind),
                reserve: Vec::new(),
                health: target.health.as_str().to_owned(),
                why: None,
                health_for_seconds: 0.0,
                ejections: 0,
                events: BTreeMap::new(),
                check: None,
                active: sum(|cell| &cell.active),
                attempts: sum(|cell| &cell.attempts),
                committed: sum(|cell| &cell.committed),
                abandoned: sum(|cell| &cell.abandoned),
                failed: ConnectError::LABELS
                    .iter()
                    .enumerate()
                    .map(|(kind, label)| ((*label).to_owned(), counters.sum(|cell| &cell.failed[kind])))
                    .filter(|(_, count)| *count > 0)
                    .collect(),
                resets: sum(|cell| &cell.resets),
                early_resets: sum(|cell| &cell.outcomes.early_resets),
                first_byte_timeouts: sum(|cell| &cell.outcomes.first_byte_timeouts),
                bytes_up: sum(|cell| &cell.bytes_up),
                bytes_down: sum(|cell| &cell.bytes_down),
                up_per_second: 0,
                down_per_second: 0,
                latency: None,
            }
        })
        .collect()
}

fn describe(snapshot: &Snapshot, kind: &TargetKind) -> (&'static str, String, Vec<String>) {
    match kind {
        TargetKind::Upstream(Upstream::Tcp(addresses)) => ("tcp", addresses_text(addresses), vec![]),
        TargetKind::Upstream(Upstream::Unix(path)) => ("unix", format!("unix:{}", path.display()), vec![]),
        TargetKind::Upstream(Upstream::Direct) => ("direct", String::new(), vec![]),
        TargetKind::Upstream(Upstream::Reject) => ("reject", String::new(), vec![]),
        TargetKind::Upstream(Upstream::Proxied(route)) => {
            // What it is follows from where its last proxy leads; the text tells the whole way.
            let first = match &route.first {
                FirstHop::Tcp(addresses) => addresses_text(addresses),
                FirstHop::Unix(path) => format!("unix:{}", path.display()),
            };
            let mut way = first;
            let mut kind = "tcp";
            for hop in &route.hops {
                match &hop.towards {
                    Towards::Fixed(next) => way.push_str(&format!(" -> {next}")),
                    Towards::Client => kind = hop.proxy.as_str(),
                }
            }
            (kind, way, vec![])
        }
        TargetKind::Group(group) => {
            let members =
                group.members.iter().map(|member| snapshot.target(member.target).name.to_string()).collect();
            ("group", policy_name(group.policy).to_owned(), members)
        }
    }
}

fn selected(snapshot: &Snapshot, kind: &TargetKind) -> Option<String> {
    match kind {
        TargetKind::Group(group) if group.policy == Policy::Select => {
            let member = group.members.get(group.selected as usize)?;
            Some(snapshot.target(member.target).name.to_string())
        }
        TargetKind::Group(_) | TargetKind::Upstream(_) => None,
    }
}

fn addresses_text(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() { "not resolved".to_owned() } else { addresses.join(" ") }
}

/// The word for a protocol in configurations.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Redirect => "redirect",
        Protocol::Tproxy => "tproxy",
        Protocol::Socks => "socks",
        Protocol::Socks5 => "socks5",
        Protocol::Http => "http",
        Protocol::Mixed => "mixed",
        Protocol::Shadowsocks => "shadowsocks",
    }
}

/// The word for a policy in configurations.
pub(crate) fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::RoundRobin => "round-robin",
        Policy::Random => "random",
        Policy::LeastConnections => "least-connections",
        Policy::LeastLatency => "least-latency",
        Policy::Hash(_) => "hash",
        Policy::Failover => "failover",
        Policy::Select => "select",
        Policy::Race { .. } => "race",
    }
}

impl Status {
    /// Tables for people.
    pub(crate) fn to_table(&self) -> String {
        let mut text = format!(
            "ringweir {} on {}, {} worker{}, {} for {}, snapshot {}\n\n",
            self.version,
            self.engine,
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.phase,
            humantime::format_duration(std::time::Duration::from_secs(self.uptime_seconds)),
            self.generation,
        );
        if let Some(seconds) = self.outage_for_seconds {
            let since = humantime::format_duration(std::time::Duration::from_secs(seconds as u64));
            let _ = writeln!(text, "Nobody has answered for {since}: our own network is taken to be down.\n");
        }
        let mut rows = vec![header([
            "LISTENER", "ADDRESS", "PROTOCOL", "TARGET", "ACTIVE", "ACCEPTED", "UP", "DOWN", "SPLICED",
        ])];
        rows.extend(self.listeners.iter().map(|listener| {
            vec![
                listener.name.clone(),
                listener.addresses.join(" "),
                listener.protocol.clone(),
                listener.target.clone(),
                listener.active.to_string(),
                listener.accepted.to_string(),
                bytes(listener.bytes_up),
                bytes(listener.bytes_down),
                listener.pipes.summary(listener.bytes_up + listener.bytes_down),
            ]
        }));
        align(&rows, &mut text);
        text.push('\n');
        let mut rows = vec![header([
            "TARGET", "KIND", "HEALTH", "FOR", "ACTIVE", "SESSIONS", "FAILED", "UP", "DOWN", "UP/S",
            "DOWN/S", "P50", "WHAT",
        ])];
        rows.extend(self.targets.iter().map(TargetStatus::row));
        align(&rows, &mut text);
        RuleStatus::to_table(&self.rules, &mut text);
        users::to_table(&self.listeners, &mut text);
        PluginStatus::to_table(&self.plugins, &mut text);
        if self.per_worker.len() > 1 {
            text.push('\n');
            let mut rows = vec![header(["WORKER", "ACTIVE", "ACCEPTED", "BYTES"])];
            rows.extend(self.per_worker.iter().enumerate().map(|(index, worker)| {
                let figures = [index as u64, worker.active, worker.accepted].map(|figure| figure.to_string());
                figures.into_iter().chain([bytes(worker.bytes)]).collect()
            }));
            align(&rows, &mut text);
        }
        text
    }
}

impl TargetStatus {
    fn row(&self) -> Vec<String> {
        let mut what = self.detail.clone();
        if !self.members.is_empty() {
            let _ = write!(what, " over {}", self.members.join(", "));
        }
        // Who serves goes without saying where all do; whom a select leads to is said below.
        if self.serving != self.members && self.selected.is_none() && !self.serving.is_empty() {
            let _ = write!(what, "; serving: {}", self.serving.join(", "));
        }
        for (member, out) in &self.out {
            let _ = write!(what, "; {member} is {}", out.health);
            if let Some(why) = &out.why {
                let _ = write!(what, " ({why})");
            }
        }
        if let Some(selected) = &self.selected {
            let _ = write!(what, "; selected: {selected}");
        }
        if !self.reserve.is_empty() {
            let _ = write!(what, "; in reserve: {}", self.reserve.join(", "));
        }
        let error = self.check.as_ref().and_then(|check| check.error.as_ref());
        if let Some(why) = error.or(self.why.as_ref()) {
            let _ = write!(what, " ({why})");
        }
        vec![
            self.name.clone(),
            self.kind.clone(),
            self.health.clone(),
            span(self.health_for_seconds),
            self.active.to_string(),
            self.committed.to_string(),
            self.failed.values().sum::<u64>().to_string(),
            bytes(self.bytes_up),
            bytes(self.bytes_down),
            bytes(self.up_per_second),
            bytes(self.down_per_second),
            self.latency.map_or_else(|| "-".to_owned(), |latency| format!("{:.1} ms", latency.p50_ms)),
            what,
        ]
    }
}

pub(crate) fn header<const N: usize>(titles: [&str; N]) -> Vec<String> {
    titles.map(str::to_owned).to_vec()
}

/// Columns as wide as their widest cell, two spaces between.
pub(crate) fn align(rows: &[Vec<String>], text: &mut String) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
}

/// A time of whole seconds in its two largest units.
fn span(seconds: f64) -> String {
    let whole =
        humantime::format_duration(std::time::Duration::from_secs(seconds.max(0.0) as u64)).to_string();
    let units: Vec<&str> = whole.split(' ').take(2).collect();
    units.join(" ")
}

/// A number of bytes in the unit that shows it best.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn times_are_shown_in_two_units() {
        assert_eq!([span(0.4), span(61.0), span(93_784.0)], ["0s", "1m 1s", "1day 2h"]);
    }

    #[test]
    fn columns_line_up() {
        let mut text = String::new();
        align(&[header(["A", "LONG"]), header(["wide", "x"])], &mut text);
        assert_eq!(text, "A     LONG\nwide  x\n");
    }
}
