//! Sums what workers recorded of their sessions and shows it: as percentiles, as HdrHistogram's interval log, and as
//! a file that grows while the daemon serves.

mod dump;
mod exposition;
mod file;
mod hlog;
mod report;
mod tally;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::histogram::{Figure, Recorder};
use ringweir_flow::snapshot::Snapshot;
use tokio::time::Instant;

pub(crate) use dump::dump;
pub(crate) use exposition::expose;
pub(crate) use file::Keeper;
pub(crate) use report::{Percentiles, Report, log_report};
pub(crate) use tally::Tally;

/// A moment on both clocks: the one that people read, and the one that never jumps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    wall: SystemTime,
    clock: Instant,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment { wall: SystemTime::now(), clock: Instant::now() }
    }

    fn until(self, later: Moment) -> Duration {
        later.clock.saturating_duration_since(self.clock)
    }
}

/// Where figures are read: the counters behind a snapshot, and since when they count.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) since: Moment,
}

impl Source {
    /// All that was recorded since the start, as an interval log with one interval.
    pub(crate) fn to_log(&self) -> Vec<u8> {
        let mut log = hlog::Log::new();
        log.header(self.since.wall);
        let length = self.since.until(Moment::now());
        for series in all_series(&self.snapshot) {
            log.interval(&series.tag(), self.since.wall, length, &series.tally());
        }
        log.into_bytes()
    }

    /// All that was recorded since the start, as percentiles.
    pub(crate) fn to_report(&self) -> Report {
        Report::new(&self.snapshot, self.since.until(Moment::now()))
    }
}

/// Whose figures.
#[derive(Clone, Copy, Debug)]
enum Owner<'s> {
    Listener(&'s str, &'s ListenerCounters),
    Target(&'s str, &'s TargetCounters),
}

impl<'s> Owner<'s> {
    fn recorders(self, figure: Figure) -> Vec<&'s Recorder> {
        match self {
            Owner::Listener(_, counters) => {
                counters.cells().filter_map(|cell| cell.histograms.of(figure)).collect()
            }
            Owner::Target(_, counters) => {
                counters.cells().filter_map(|cell| cell.histograms.of(figure)).collect()
            }
        }
    }
}

/// One figure of one listener or target, of which something was recorded.
struct Series<'s> {
    owner: Owner<'s>,
    figure: Figure,
    recorders: Vec<&'s Recorder>,
}

impl Series<'_> {
    fn tally(&self) -> Tally {
        Tally::of(&self.recorders)
    }

    /// What the series is called in an interval log: `listener/web/connect`. A tag ends at a comma or a line's end
    /// and holds no space; those, and what gives a tag its parts, are escaped as in URLs (RFC 3986, section 2.1).
    fn tag(&self) -> String {
        let (kind, name) = match self.owner {
            Owner::Listener(name, _) => ("listener", name),
            Owner::Target(name, _) => ("target", name),
        };
        let mut tag = format!("{kind}/");
        for character in name.chars() {
            if matches!(character, ',' | '/' | '%' | '=') || character.is_control() || character == ' ' {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    tag.push_str(&format!("%{byte:02X}"));
                }
            } else {
                tag.push(character);
            }
        }
        tag.push('/');
        tag.push_str(self.figure.as_str());
        tag
    }
}

/// Every figure of every listener and target of which anything was recorded, one at a time: ten thousand targets
/// are never held as histograms at once.
fn all_series(snapshot: &Snapshot) -> impl Iterator<Item = Series<'_>> {
    owners(snapshot).flat_map(series_of)
}

fn owners(snapshot: &Snapshot) -> impl Iterator<Item = Owner<'_>> {
    let listeners = snapshot.listeners.iter().map(|one| Owner::Listener(&one.name, &one.counters));
    listeners.chain(snapshot.targets.iter().map(|one| Owner::Target(&one.name, &one.counters)))
}

/// How long attempts took to reach each target of a snapshot, where any did.
pub(crate) fn times_to_connect(snapshot: &Snapshot) -> Vec<Option<Percentiles>> {
    let mut scratch = tally::histogram();
    let mut of = |owner: Owner<'_>| {
        let tally = Tally::of(&owner.recorders(Figure::Connect));
        (!tally.is_empty()).then(|| {
            tally.fill(&mut scratch);
            Percentiles::of(&scratch)
        })
    };
    snapshot.targets.iter().map(|one| of(Owner::Target(&one.name, &one.counters))).collect()
}

fn series_of(owner: Owner<'_>) -> impl Iterator<Item = Series<'_>> {
    Figure::ALL.into_iter().filter_map(move |figure| {
        let recorders = owner.recorders(figure);
        let is_recorded = recorders.iter().any(|recorder| recorder.counts().next().is_some());
        is_recorded.then_some(Series { owner, figure, recorders })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_hold_nothing_that_would_end_them() {
        let counters = ListenerCounters::new(1);
        let series = |name| Series {
            owner: Owner::Listener(name, &counters),
            figure: Figure::FirstByte,
            recorders: Vec::new(),
        };
        assert_eq!(series("web").tag(), "listener/web/first-byte");
        assert_eq!(series("a/b,c=100%\u{7f}ä").tag(), "listener/a%2Fb%2Cc%3D100%25%7Fä/first-byte");
    }
}
