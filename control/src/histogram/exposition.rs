//! The figures as histograms for Prometheus: few buckets, since each is a line for each listener and target.

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use ringweir_flow::histogram::Figure;
use ringweir_flow::snapshot::Snapshot;

use super::{Owner, Tally, owners};

/// Upper ends of the buckets for what lasts moments, in microseconds.
const MOMENTS_US: &[u64] = &[500, 1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// The same for whole sessions.
const LENGTHS_US: &[u64] = &[10_000, 100_000, 1_000_000, 10_000_000, 60_000_000, 600_000_000, 3_600_000_000];

/// Whose figure a metric shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Listener,
    Target,
}

/// Every metric: of targets, of which there may be thousands, only what differs between them.
const SHOWN: &[(&str, Kind, Figure, &[u64])] = &[
    ("listener_dispatch", Kind::Listener, Figure::Dispatch, MOMENTS_US),
    ("listener_connect", Kind::Listener, Figure::Connect, MOMENTS_US),
    ("listener_first_byte", Kind::Listener, Figure::FirstByte, MOMENTS_US),
    ("listener_session", Kind::Listener, Figure::Session, LENGTHS_US),
    ("target_connect", Kind::Target, Figure::Connect, MOMENTS_US),
    ("target_first_byte", Kind::Target, Figure::FirstByte, MOMENTS_US),
];

/// Encodes every metric for everything that was used; `help` knows what each is.
pub(crate) fn expose(
    encoder: &mut DescriptorEncoder<'_>,
    snapshot: &Snapshot,
    help: fn(&str) -> &'static str,
) -> Result<(), std::fmt::Error> {
    for &(name, kind, figure, bounds_us) in SHOWN {
        let mut family =
            encoder.encode_descriptor(name, help(name), Some(&Unit::Seconds), MetricType::Histogram)?;
        for owner in owners(snapshot) {
            let label = match (owner, kind) {
                (Owner::Listener(name, _), Kind::Listener) => ("listener", name),
                (Owner::Target(name, _), Kind::Target) => ("target", name),
                (Owner::Listener(..), Kind::Target) | (Owner::Target(..), Kind::Listener) => continue,
            };
            let recorders = owner.recorders(figure);
            let tally = Tally::of(&recorders);
            if !tally.is_empty() {
                let sum_us = recorders.iter().map(|recorder| recorder.sum()).sum();
                let shown = Shown { tally, sum_us, bounds_us };
                shown.encode(family.encode_family(&[label])?)?;
            }
        }
    }
    Ok(())
}

struct Shown {
    tally: Tally,
    sum_us: u64,
    bounds_us: &'static [u64],
}

impl Shown {
    /// The upper end of each bucket in seconds and what is in it alone; the encoder adds them up.
    fn buckets(&self) -> Vec<(f64, u64)> {
        let mut below = 0;
        let mut bucket = |end_seconds, up_to| {
            let inside = up_to - below;
            below = up_to;
            (end_seconds, inside)
        };
        let mut buckets: Vec<_> =
            self.bounds_us.iter().map(|end| bucket(*end as f64 / 1e6, self.tally.up_to(*end))).collect();
        buckets.push(bucket(f64::INFINITY, self.tally.total()));
        buckets
    }
}

impl EncodeMetric for Shown {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sum_seconds = self.sum_us as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum_seconds, self.tally.total(), &self.buckets(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
