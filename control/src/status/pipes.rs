//! What was spliced, and what was not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ringweir_flow::account::ListenerCounters;
use ringweir_flow::way::Refusal;
use serde::{Deserialize, Serialize};

/// What a listener's sessions had of pipes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PipeStatus {
    /// Directions of sessions that began to stream through a pipe.
    pub(crate) to_pipe: u64,
    /// Directions that went back to buffers because they calmed down.
    pub(crate) to_buffer: u64,
    /// Receives that were copied because no pipe was to be had, by reason; reasons that never occurred are left out.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Bytes from clients that were spliced.
    pub(crate) bytes_up: u64,
    /// Bytes to clients that were spliced.
    pub(crate) bytes_down: u64,
}

impl PipeStatus {
    /// Of a listener.
    pub(super) fn of(counters: &ListenerCounters) -> PipeStatus {
        PipeStatus {
            to_pipe: counters.sum(|cell| &cell.ways.to_pipe),
            to_buffer: counters.sum(|cell| &cell.ways.to_buffer),
            refused: Refusal::ALL
                .iter()
                .map(|refusal| {
                    let count = counters.sum(|cell| &cell.ways.refused[refusal.index()]);
                    (refusal.as_str().to_owned(), count)
                })
                .filter(|(_, count)| *count > 0)
                .collect(),
            bytes_up: counters.sum(|cell| &cell.ways.piped_up),
            bytes_down: counters.sum(|cell| &cell.ways.piped_down),
        }
    }

    /// The share that was spliced, and what was refused.
    pub(super) fn summary(&self, of_bytes: u64) -> String {
        let spliced = (self.bytes_up + self.bytes_down) as f64 / of_bytes.max(1) as f64;
        let mut text = format!("{:.0}%", spliced.min(1.0) * 100.0);
        for (reason, count) in &self.refused {
            let _ = write!(text, ", {count} refused ({reason})");
        }
        text
    }
}
