//! Reads a profile of the allocator `dhat` (its file format, version 2) and sums it up by the lines of ours that
//! allocate.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

/// How many of our callers are shown above the one that allocates.
const CALLERS_SHOWN: usize = 2;

/// Allocations by call site.
pub(crate) struct CallSites {
    /// Those with a frame of a driver below: what a session costs.
    ours: BTreeMap<String, Total>,
    /// Those of the bench itself.
    others: BTreeMap<String, Total>,
}

#[derive(Clone, Copy, Default)]
struct Total {
    blocks: u64,
    bytes: u64,
}

impl CallSites {
    pub(crate) fn read(file: &Path) -> CallSites {
        let profile: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(profile["dhatFileVersion"], 2);
        let table: Vec<&str> =
            profile["ftbl"].as_array().unwrap().iter().map(|frame| frame.as_str().unwrap()).collect();
        let mut sites = CallSites { ours: BTreeMap::new(), others: BTreeMap::new() };
        for point in profile["pps"].as_array().unwrap() {
            let frames = point["fs"].as_array().unwrap();
            let frames = frames.iter().map(|index| table[index.as_u64().unwrap() as usize]);
            let ours: Vec<String> = frames.clone().filter_map(frame_of_ours).collect();
            let (into, site) = if ours.is_empty() {
                (&mut sites.others, frames.collect::<Vec<_>>().join(" < "))
            } else {
                (&mut sites.ours, ours[..ours.len().min(CALLERS_SHOWN + 1)].join(" < "))
            };
            let total = into.entry(site).or_default();
            total.blocks += point["tbk"].as_u64().unwrap();
            total.bytes += point["tb"].as_u64().unwrap();
        }
        sites
    }

    /// How many allocations the driver made.
    pub(crate) fn blocks_of_ours(&self) -> u64 {
        self.ours.values().map(|total| total.blocks).sum()
    }

    /// A text for people; `sessions` were run.
    pub(crate) fn report(&self, sessions: f64) -> String {
        let sum = |sites: &BTreeMap<String, Total>| {
            sites.values().fold(Total::default(), |sum, total| Total {
                blocks: sum.blocks + total.blocks,
                bytes: sum.bytes + total.bytes,
            })
        };
        let ours = sum(&self.ours);
        let mut text = format!(
            "{:.3} allocations a session, {:.0} bytes\n",
            ours.blocks as f64 / sessions,
            ours.bytes as f64 / sessions
        );
        let mut sites: Vec<_> = self.ours.iter().collect();
        sites.sort_by_key(|(_, total)| std::cmp::Reverse(total.blocks));
        for (site, total) in sites {
            let (blocks, bytes) = (total.blocks as f64 / sessions, total.bytes as f64 / total.blocks as f64);
            let _ = writeln!(text, "  {blocks:6.3} x {bytes:6.0} B  {site}");
        }
        let others = sum(&self.others);
        if others.blocks > 0 {
            let _ = writeln!(text, "  beside it the bench itself: {} in all", others.blocks);
            for (site, total) in &self.others {
                let _ = writeln!(text, "  {:6} in all  {site}", total.blocks);
            }
        }
        text
    }
}

/// `0x7f…: ringweir_flow::dial::Dial::new (flow/src/dial.rs:67:9)` as `new (flow/src/dial.rs:67)`; none for code that
/// is not ours.
fn frame_of_ours(frame: &str) -> Option<String> {
    let (_, rest) = frame.split_once(": ")?;
    let (symbol, place) = rest.rsplit_once(" (")?;
    let is_ours = symbol.trim_start_matches(['<', '&']).starts_with("ringweir_");
    let place = place.trim_end_matches(')');
    let line = place.rsplit_once(':').map_or(place, |(line, _column)| line);
    let function = symbol.rsplit("::").find(|part| !part.starts_with("{{"))?;
    is_ours.then(|| format!("{function} ({line})"))
}
