//! What a run says at its end: one JSON object, or a line for people, and the raw histogram.

use crate::drive::{Acknowledged, Outcome, Tally};
use crate::error::LoadError;
use crate::witness::Spending;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Interval logs give the maximum in milliseconds while the histogram itself holds nanoseconds.
const NS_PER_MS: f64 = 1e6;

/// The figures of one window.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    scenario: String,
    to: String,
    connections: usize,
    size_bytes: usize,
    wall_seconds: f64,
    /// Exchanges or sessions completed in the window; 0 for streams.
    units: u64,
    /// Payload bytes in the window, one way.
    bytes: u64,
    /// Sessions that ended otherwise than they should.
    failed: u64,
    /// Bytes written over the whole run, where the backend confirmed a count.
    sent_bytes: Option<u64>,
    /// Bytes that the backend counted; `None` where it was not asked or its answer did not come through.
    arrived_bytes: Option<u64>,
    latency_us: Option<Latency>,
    spending: Spending,
    /// CPU of this process and of those named as its helpers, over the window.
    load_cpu_seconds: f64,
}

/// Percentiles in microseconds, from when a unit was due to its last byte.
#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
    /// The median of the 99th percentiles of slices of 100 ms: deaf to single stalls of the machine.
    p99_typical: Option<f64>,
}

/// What was run.
pub(crate) struct Header {
    pub(crate) scenario: String,
    pub(crate) to: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) size_bytes: usize,
}

impl RunReport {
    pub(crate) fn new(header: &Header, outcome: &Outcome) -> RunReport {
        let (sent_bytes, arrived_bytes) = match outcome.acknowledged {
            Acknowledged::NotAsked | Acknowledged::NoAnswer => (None, None),
            Acknowledged::Counted { sent_bytes, arrived_bytes } => (Some(sent_bytes), Some(arrived_bytes)),
        };
        RunReport {
            scenario: header.scenario.clone(),
            to: header.to.to_string(),
            connections: header.connections,
            size_bytes: header.size_bytes,
            wall_seconds: outcome.wall.as_secs_f64(),
            units: outcome.tally.units,
            bytes: outcome.tally.bytes,
            failed: outcome.tally.failed,
            sent_bytes,
            arrived_bytes,
            latency_us: summarize(&outcome.tally),
            spending: outcome.spending.clone(),
            load_cpu_seconds: outcome.load_cpu_seconds,
        }
    }

    /// One line for people.
    pub(crate) fn to_line(&self) -> String {
        let seconds = self.wall_seconds;
        let latency = self.latency_us.as_ref().map_or(String::new(), |latency| {
            format!(", p50 {:.0} p99 {:.0} max {:.0} us", latency.p50, latency.p99, latency.max)
        });
        format!(
            "{}: {} units and {} bytes in {seconds:.3} s, {} failed{latency}, watched CPU {:.3} s",
            self.scenario, self.units, self.bytes, self.failed, self.spending.cpu_seconds
        )
    }
}

fn summarize(tally: &Tally) -> Option<Latency> {
    let latency_ns: &Histogram<u64> = &tally.latency_ns;
    let us = |ns| Duration::from_nanos(ns).as_secs_f64() * 1e6;
    let at = |quantile| us(latency_ns.value_at_quantile(quantile));
    (!latency_ns.is_empty()).then(|| Latency {
        mean: latency_ns.mean() / 1e3,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
        p99_typical: tally.typical_p99_ns().map(us),
    })
}

/// Writes the window as a one-interval HdrHistogram log (V2), values in nanoseconds.
pub(crate) fn write_hlog(path: &Path, header: &Header, outcome: &Outcome) -> Result<(), LoadError> {
    let failed = |reason: String| LoadError::Unwritable { what: path.display().to_string(), reason };
    let mut file = File::create(path).map_err(|error| failed(error.to_string()))?;
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("values in nanoseconds, maximum in milliseconds")
        .with_start_time(outcome.began)
        .with_max_value_divisor(NS_PER_MS)
        .begin_log_with(&mut file, &mut serializer)
        .map_err(|error| failed(error.to_string()))?;
    let start = outcome.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    log.write_histogram(&outcome.tally.latency_ns, start, outcome.wall, Tag::new(&header.scenario))
        .map_err(|error| failed(error.to_string()))
}
