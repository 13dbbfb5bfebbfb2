//! How fast bytes move at the moment, by target: counters are read once a second, and nobody else is troubled.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::snapshot::Snapshot;
use tokio::time::Instant;

/// How often counters are read.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Over how many looks a speed is taken: long enough to be read, short enough to be the present one.
const LOOKS: usize = 5;

/// Bytes a second in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Speed {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

/// What the counters said of late.
#[derive(Debug, Default)]
pub(crate) struct Speeds(VecDeque<Look>);

#[derive(Debug)]
struct Look {
    at: Instant,
    /// Bytes up and down, by target.
    bytes: HashMap<Arc<str>, (u64, u64)>,
}

impl Speeds {
    /// The time of [`LOOK`] has come.
    pub(crate) fn handle_tick(&mut self, snapshot: &Snapshot) {
        if self.0.len() == LOOKS {
            self.0.pop_front();
        }
        let bytes = snapshot.targets.iter().map(|target| (Arc::clone(&target.name), moved(&target.counters)));
        self.0.push_back(Look { at: Instant::now(), bytes: bytes.collect() });
    }

    /// Of a target that has moved so many bytes by now.
    pub(crate) fn of(&self, target: &str, up: u64, down: u64) -> Speed {
        let known = self.0.iter().find_map(|look| Some((look.at, *look.bytes.get(target)?)));
        let Some((at, (up_before, down_before))) = known else { return Speed::default() };
        let passed = at.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let speed = |now: u64, before: u64| (now.saturating_sub(before) as f64 / passed) as u64;
        Speed { up: speed(up, up_before), down: speed(down, down_before) }
    }
}

fn moved(counters: &ringweir_flow::account::TargetCounters) -> (u64, u64) {
    (counters.sum(|cell| &cell.bytes_up), counters.sum(|cell| &cell.bytes_down))
}

#[cfg(test)]
mod tests {
    use ringweir_flow::snapshot::WorkerIndex;

    use super::*;
    use crate::assemble::{Knowledge, assemble};

    #[tokio::test(start_paused = true)]
    async fn a_speed_is_that_of_the_last_seconds() {
        let text = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"a\"\n\
                    [upstream.a]\naddress = \"10.0.0.1:1\"\n";
        let config = crate::config::parse(text, "f", std::path::Path::new("")).unwrap();
        let snapshot = assemble(&config, &mut Knowledge::default(), &[], 1, 1, false);
        let cell = snapshot.targets[0].counters.cell(WorkerIndex(0));
        let mut speeds = Speeds::default();
        assert_eq!(speeds.of("a", 100, 100), Speed::default(), "nothing is known yet");
        for _ in 0..10 {
            speeds.handle_tick(&snapshot);
            tokio::time::advance(LOOK).await;
            cell.bytes_up.add(1000);
        }
        assert_eq!(speeds.of("a", cell.bytes_up.get(), 0), Speed { up: 1000, down: 0 });
        tokio::time::advance(5 * LOOK).await;
        assert_eq!(speeds.of("a", cell.bytes_up.get(), 0).up, 500);
    }
}
