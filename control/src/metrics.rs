//! The metrics for Prometheus, collected from the counters at every scrape.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use ringweir_flow::snapshot::Snapshot;

use crate::histogram::expose;
use crate::status::Status;

/// Every metric with its help, in the order in which they are shown.
pub const METRICS: &[(&str, &str)] = &[
    ("build_info", "The running version and engine; always 1"),
    ("workers", "Workers that serve"),
    ("uptime", "Time since the start"),
    (
        "snapshot_generation",
        "The snapshot that is served; grows with every change of health or configuration",
    ),
    ("outage", "1 while our own network is taken to be down, else 0"),
    ("outages", "How often our own network was taken to be down"),
    ("reloads", "Reloads of the configuration, by result"),
    ("worker_sessions_active", "Sessions open now, by worker"),
    ("worker_sessions_accepted", "Sessions accepted, by worker"),
    ("sessions_active", "Sessions open now"),
    ("sessions_accepted", "Sessions accepted"),
    ("sessions_closed", "Sessions ended, by reason"),
    ("listener_bytes", "Bytes moved for the clients of a listener, by direction"),
    ("listener_spliced_bytes", "What of them went through pipes, without being copied, by direction"),
    (
        "pipe_switches",
        "Directions of sessions that changed to a pipe or back to buffers, by what they changed to",
    ),
    ("pipe_refusals", "Receives that were copied because no pipe was to be had, by reason"),
    ("user_sessions_active", "Sessions of a user open now, by listener"),
    ("user_sessions", "Sessions of a user that made a request, by listener"),
    ("user_bytes", "Bytes moved for a user, by listener and direction"),
    ("plugin_up", "1 when the plugin listens, else 0, by whose it is"),
    ("plugin_starts", "Starts of the plugin"),
    ("plugin_exits", "How often the plugin ended by itself, or could not be started"),
    ("rule_hits", "Sessions that a rule has decided"),
    ("target_up", "1 when new sessions may go to the target, 0 when it is down or drained"),
    ("target_active", "Sessions and attempts that hold the target now"),
    ("target_attempts", "Attempts to reach the target"),
    ("target_sessions", "Attempts that became sessions"),
    ("target_attempt_failures", "Attempts that failed, by kind"),
    ("target_resets", "Sessions that the target reset"),
    ("target_events", "Changes of the target's health, by what happened"),
    ("target_bytes", "Bytes moved to and from the target, by direction"),
    ("listener_dispatch", "From accept to the first target that was picked"),
    ("listener_connect", "From the first pick to an open upstream"),
    ("listener_first_byte", "From an open upstream to its first byte"),
    ("listener_session", "From accept to the end of sessions that had an upstream"),
    ("target_connect", "Connects to the target that succeeded"),
    ("target_first_byte", "From an open connection to its first byte"),
];

/// How many reloads there were, by result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) applied: u64,
    pub(crate) refused: u64,
}

/// The text that Prometheus scrapes (OpenMetrics 1.0).
pub(crate) fn encode(status: Status, reloads: Reloads, snapshot: &Arc<Snapshot>) -> String {
    let mut registry = Registry::with_prefix("ringweir");
    registry.register_collector(Box::new(Scrape {
        status: Arc::new(status),
        reloads,
        snapshot: Arc::clone(snapshot),
    }));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Scrape {
    status: Arc<Status>,
    reloads: Reloads,
    snapshot: Arc<Snapshot>,
}

type Encoded = Result<(), std::fmt::Error>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        self.daemon(&mut encoder)?;
        self.workers(&mut encoder)?;
        self.listeners(&mut encoder)?;
        self.pipes(&mut encoder)?;
        self.users(&mut encoder)?;
        self.plugins(&mut encoder)?;
        self.rules(&mut encoder)?;
        self.targets(&mut encoder)?;
        expose(&mut encoder, &self.snapshot, help)
    }
}

impl Scrape {
    fn daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let status = &*self.status;
        let labels = [("version", status.version.as_str()), ("engine", status.engine.as_str())];
        gauges(encoder, "build_info", [(&labels[..], 1)])?;
        gauges(encoder, "workers", [(&[][..], status.workers as u64)])?;
        let uptime = ConstGauge::new(i64::try_from(status.uptime_seconds).unwrap_or(i64::MAX));
        uptime.encode(encoder.encode_descriptor(
            "uptime",
            help("uptime"),
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Gauge,
        )?)?;
        gauges(encoder, "snapshot_generation", [(&[][..], status.generation)])?;
        gauges(encoder, "outage", [(&[][..], u64::from(status.outage_for_seconds.is_some()))])?;
        counters(encoder, "outages", [(&[][..], status.outages)])?;
        counters(
            encoder,
            "reloads",
            [
                (&[("result", "applied")][..], self.reloads.applied),
                (&[("result", "refused")][..], self.reloads.refused),
            ],
        )
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let workers = &self.status.per_worker;
        let numbers: Vec<_> = (0..workers.len()).map(|number| number.to_string()).collect();
        let labels: Vec<_> = numbers.iter().map(|number| [("worker", number.as_str())]).collect();
        let each = || workers.iter().zip(&labels);
        let active = each().map(|(one, labels)| (&labels[..], one.active));
        gauges(encoder, "worker_sessions_active", active)?;
        let accepted = each().map(|(one, labels)| (&labels[..], one.accepted));
        counters(encoder, "worker_sessions_accepted", accepted)
    }

    fn listeners(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let listeners = &self.status.listeners;
        let name: Vec<_> = listeners.iter().map(|listener| [("listener", listener.name.as_str())]).collect();
        let each = || listeners.iter().zip(&name);
        gauges(encoder, "sessions_active", each().map(|(one, labels)| (&labels[..], one.active)))?;
        counters(encoder, "sessions_accepted", each().map(|(one, labels)| (&labels[..], one.accepted)))?;
        let closed: Vec<_> = listeners
            .iter()
            .flat_map(|one| {
                one.closed
                    .iter()
                    .map(|(reason, count)| ([("listener", &*one.name), ("reason", reason.as_str())], *count))
            })
            .collect();
        counters(encoder, "sessions_closed", closed.iter().map(|(labels, count)| (&labels[..], *count)))?;
        let bytes: Vec<_> = listeners
            .iter()
            .flat_map(|one| {
                [("up", one.bytes_up), ("down", one.bytes_down)]
                    .map(|(direction, count)| ([("listener", &*one.name), ("direction", direction)], count))
            })
            .collect();
        counters(encoder, "listener_bytes", bytes.iter().map(|(labels, count)| (&labels[..], *count)))
    }

    fn pipes(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let listeners = &self.status.listeners;
        let bytes: Vec<_> = listeners
            .iter()
            .flat_map(|one| {
                [("up", one.pipes.bytes_up), ("down", one.pipes.bytes_down)]
                    .map(|(direction, count)| ([("listener", &*one.name), ("direction", direction)], count))
            })
            .collect();
        let bytes = bytes.iter().map(|(labels, count)| (&labels[..], *count));
        counters(encoder, "listener_spliced_bytes", bytes)?;
        let switches: Vec<_> = listeners
            .iter()
            .flat_map(|one| {
                [("pipe", one.pipes.to_pipe), ("buffer", one.pipes.to_buffer)]
                    .map(|(to, count)| ([("listener", &*one.name), ("to", to)], count))
            })
            .collect();
        counters(encoder, "pipe_switches", switches.iter().map(|(labels, count)| (&labels[..], *count)))?;
        let refused: Vec<_> = listeners
            .iter()
            .flat_map(|one| {
                one.pipes
                    .refused
                    .iter()
                    .map(|(reason, count)| ([("listener", &*one.name), ("reason", reason.as_str())], *count))
            })
            .collect();
        counters(encoder, "pipe_refusals", refused.iter().map(|(labels, count)| (&labels[..], *count)))
    }

    fn users(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let users: Vec<_> = self
            .status
            .listeners
            .iter()
            .flat_map(|one| {
                one.users
                    .iter()
                    .map(|(name, user)| ([("listener", &*one.name), ("user", name.as_str())], user))
            })
            .collect();
        let each = || users.iter().map(|(labels, user)| (&labels[..], user));
        gauges(encoder, "user_sessions_active", each().map(|(labels, user)| (labels, user.active)))?;
        counters(encoder, "user_sessions", each().map(|(labels, user)| (labels, user.sessions)))?;
        let bytes: Vec<_> = users
            .iter()
            .flat_map(|([listener, name], user)| {
                [("up", user.bytes_up), ("down", user.bytes_down)]
                    .map(|(direction, count)| ([*listener, *name, ("direction", direction)], count))
            })
            .collect();
        counters(encoder, "user_bytes", bytes.iter().map(|(labels, count)| (&labels[..], *count)))
    }

    fn plugins(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let plugins = &self.status.plugins;
        let owners: Vec<_> = plugins.iter().map(|one| [("of", &*one.of), ("name", &*one.name)]).collect();
        let each = || plugins.iter().zip(&owners);
        let up = each().map(|(one, labels)| (&labels[..], u64::from(one.is_up())));
        gauges(encoder, "plugin_up", up)?;
        counters(encoder, "plugin_starts", each().map(|(one, labels)| (&labels[..], one.starts)))?;
        counters(encoder, "plugin_exits", each().map(|(one, labels)| (&labels[..], one.exits)))
    }

    fn rules(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let rules = &self.status.rules;
        let names: Vec<_> = rules.iter().map(|rule| [("rule", rule.name.as_str())]).collect();
        let hits = rules.iter().zip(&names).map(|(rule, labels)| (&labels[..], rule.hits));
        counters(encoder, "rule_hits", hits)
    }

    fn targets(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let targets = &self.status.targets;
        let name: Vec<_> = targets.iter().map(|target| [("target", target.name.as_str())]).collect();
        let each = || targets.iter().zip(&name);
        let is_up = |health: &str| u64::from(matches!(health, "up" | "unknown" | "trial"));
        gauges(encoder, "target_up", each().map(|(one, labels)| (&labels[..], is_up(&one.health))))?;
        gauges(encoder, "target_active", each().map(|(one, labels)| (&labels[..], one.active)))?;
        counters(encoder, "target_attempts", each().map(|(one, labels)| (&labels[..], one.attempts)))?;
        counters(encoder, "target_sessions", each().map(|(one, labels)| (&labels[..], one.committed)))?;
        let failed: Vec<_> = targets
            .iter()
            .flat_map(|one| {
                one.failed
                    .iter()
                    .map(|(kind, count)| ([("target", &*one.name), ("kind", kind.as_str())], *count))
            })
            .collect();
        counters(
            encoder,
            "target_attempt_failures",
            failed.iter().map(|(labels, count)| (&labels[..], *count)),
        )?;
        counters(encoder, "target_resets", each().map(|(one, labels)| (&labels[..], one.resets)))?;
        let events: Vec<_> = targets
            .iter()
            .flat_map(|one| {
                one.events
                    .iter()
                    .map(|(event, count)| ([("target", &*one.name), ("event", event.as_str())], *count))
            })
            .collect();
        counters(encoder, "target_events", events.iter().map(|(labels, count)| (&labels[..], *count)))?;
        let bytes: Vec<_> = targets
            .iter()
            .flat_map(|one| {
                [("up", one.bytes_up), ("down", one.bytes_down)]
                    .map(|(direction, count)| ([("target", &*one.name), ("direction", direction)], count))
            })
            .collect();
        counters(encoder, "target_bytes", bytes.iter().map(|(labels, count)| (&labels[..], *count)))
    }
}

type Labels<'a> = &'a [(&'a str, &'a str)];

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    samples: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> Encoded {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help(name), None, kind)?;
    for (labels, value) in samples {
        let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        if labels.is_empty() {
            return value.encode(family);
        }
        value.encode(family.encode_family(&labels.to_vec())?)?;
    }
    Ok(())
}

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    samples: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> Encoded {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help(name), None, kind)?;
    for (labels, value) in samples {
        let value = ConstCounter::new(value);
        if labels.is_empty() {
            return value.encode(family);
        }
        value.encode(family.encode_family(&labels.to_vec())?)?;
    }
    Ok(())
}

fn help(name: &str) -> &'static str {
    METRICS.iter().find(|(known, _)| *known == name).map_or("", |(_, help)| help)
}
