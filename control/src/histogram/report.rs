//! Percentiles, as JSON for machines and as tables for people.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use ringweir_flow::histogram::{Figure, Unit};
use ringweir_flow::snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use super::tally::histogram;
use super::{Owner, Source, owners, series_of};
use crate::status::{align, bytes, header};

/// Lines that one SIGUSR1 may put into the log: the log drops what comes faster than it is written.
const MAX_LOGGED: usize = 1000;

/// The percentiles of everything that was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// For how long has been recorded.
    pub(crate) uptime_seconds: f64,
    /// The listeners, as configured.
    pub(crate) listeners: Vec<Measured>,
    /// Upstreams and groups, as configured.
    pub(crate) targets: Vec<Measured>,
}

/// What was measured of a listener or target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Its name.
    pub(crate) name: String,
    /// By figure; those of which nothing was recorded are left out.
    pub(crate) figures: BTreeMap<String, Percentiles>,
}

/// A distribution in a few numbers; microseconds or bytes. Each is right to 1 %.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// How many values.
    pub(crate) count: u64,
    /// The smallest.
    pub(crate) min: u64,
    /// As many are below as above.
    pub(crate) p50: u64,
    /// One in ten is above.
    pub(crate) p90: u64,
    /// One in a hundred is above.
    pub(crate) p99: u64,
    /// One in a thousand is above.
    pub(crate) p99_9: u64,
    /// The largest.
    pub(crate) max: u64,
    /// Their sum over their number.
    pub(crate) mean: f64,
}

impl Percentiles {
    pub(super) fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Percentiles {
            count: histogram.len(),
            min: histogram.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
            mean: (histogram.mean() * 10.0).round() / 10.0,
        }
    }
}

impl Report {
    pub(crate) fn new(snapshot: &Snapshot, uptime: Duration) -> Report {
        let uptime_seconds = (uptime.as_secs_f64() * 1e3).round() / 1e3;
        let mut report = Report { uptime_seconds, listeners: Vec::new(), targets: Vec::new() };
        let mut scratch = histogram();
        for owner in owners(snapshot) {
            let figures = series_of(owner)
                .map(|series| {
                    series.tally().fill(&mut scratch);
                    (key(series.figure), Percentiles::of(&scratch))
                })
                .collect();
            match owner {
                Owner::Listener(name, _) => {
                    report.listeners.push(Measured { name: name.to_owned(), figures });
                }
                Owner::Target(name, _) => report.targets.push(Measured { name: name.to_owned(), figures }),
            }
        }
        report
    }

    /// Tables for people: what nobody used has no line.
    pub(crate) fn to_table(&self) -> String {
        let mut text = String::new();
        for (title, all) in [("LISTENER", &self.listeners), ("TARGET", &self.targets)] {
            let mut rows =
                vec![header([title, "FIGURE", "COUNT", "MIN", "50%", "90%", "99%", "99.9%", "MAX"])];
            rows.extend(all.iter().flat_map(Measured::rows));
            if !text.is_empty() {
                text.push('\n');
            }
            align(&rows, &mut text);
        }
        text
    }
}

impl Measured {
    fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.in_order().map(|(figure, at)| {
            let shown = |value| shown(figure.unit(), value);
            let values = [at.min, at.p50, at.p90, at.p99, at.p99_9, at.max].map(shown);
            let head = [self.name.clone(), figure.as_str().to_owned(), at.count.to_string()];
            head.into_iter().chain(values).collect()
        })
    }

    /// In the order of a session's life.
    fn in_order(&self) -> impl Iterator<Item = (Figure, &Percentiles)> {
        Figure::ALL
            .into_iter()
            .filter_map(|figure| self.figures.get(&key(figure)).map(|percentiles| (figure, percentiles)))
    }
}

/// Writes the percentiles into the log.
pub(crate) fn log_report(source: &Source) {
    let report = source.to_report();
    let listeners = report.listeners.iter().map(|measured| ("listener", measured));
    let all = listeners.chain(report.targets.iter().map(|measured| ("target", measured)));
    let lines: Vec<_> = all
        .flat_map(|(kind, measured)| {
            measured.in_order().map(move |(figure, at)| (kind, measured, figure, at))
        })
        .collect();
    for (kind, measured, figure, at) in lines.iter().take(MAX_LOGGED) {
        let shown = |value| shown(figure.unit(), value);
        tracing::info!(
            "histogram {kind}={} figure={} count={} min={:?} p50={:?} p90={:?} p99={:?} p99.9={:?} max={:?}",
            measured.name,
            figure.as_str(),
            at.count,
            shown(at.min),
            shown(at.p50),
            shown(at.p90),
            shown(at.p99),
            shown(at.p99_9),
            shown(at.max)
        );
    }
    if lines.is_empty() {
        tracing::info!("histogram: nothing was recorded yet");
    } else if lines.len() > MAX_LOGGED {
        tracing::info!("{} more histograms are shown by `ringweir histogram`", lines.len() - MAX_LOGGED);
    }
}

/// The figure's name in JSON, with its unit where the name has none.
fn key(figure: Figure) -> String {
    let word = figure.as_str().replace('-', "_");
    match figure.unit() {
        Unit::Micros => word + "_us",
        Unit::Bytes => word,
    }
}

fn shown(unit: Unit, value: u64) -> String {
    match unit {
        Unit::Micros => time(value),
        Unit::Bytes => bytes(value),
    }
}

/// A time in the unit that shows it best, with three digits.
fn time(micros: u64) -> String {
    const UNITS: [(&str, f64); 5] = [("µs", 1.0), ("ms", 1e3), ("s", 1e6), ("min", 6e7), ("h", 3.6e9)];
    let value = micros as f64;
    let fits = |(_, unit): &&(&str, f64)| value >= *unit;
    let (name, unit) = UNITS.iter().rev().find(fits).copied().unwrap_or(UNITS[0]);
    let scaled = value / unit;
    let decimals = if unit == 1.0 || scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.decimals$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_the_unit_that_fits() {
        let shown = [0, 999, 1_000, 15_300, 250_000, 2_500_000, 90_000_000, 7_200_000_000].map(time);
        assert_eq!(shown, ["0 µs", "999 µs", "1.00 ms", "15.3 ms", "250 ms", "2.50 s", "1.50 min", "2.00 h"]);
    }

    #[test]
    fn figures_stand_in_the_table_in_the_order_of_a_sessions_life() {
        let percentiles =
            Percentiles { count: 3, min: 1, p50: 2, p90: 3, p99: 3, p99_9: 3, max: 3000, mean: 2.0 };
        let figures = Figure::ALL.into_iter().map(|figure| (key(figure), percentiles)).collect();
        let web = Measured { name: "web".to_owned(), figures };
        let idle = Measured { name: "idle".to_owned(), figures: BTreeMap::new() };
        let report = Report { uptime_seconds: 1.0, listeners: vec![web], targets: vec![idle] };
        let table = report.to_table();
        let words: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let expected =
            ["FIGURE", "dispatch", "connect", "first-byte", "session", "bytes-up", "bytes-down", "FIGURE"];
        assert_eq!(words, expected, "{table}");
        assert!(table.contains("3.00 ms") && table.contains("2.9 KiB") && !table.contains("idle"), "{table}");
    }
}
