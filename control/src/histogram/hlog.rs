//! The interval log of HdrHistogram ("V2", deflated and in base64), the format that its tools read: one line for each
//! series and interval, with a tag, the start in seconds since 1970, the length in seconds, the largest value, and
//! the histogram itself.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};

use super::tally::{Tally, histogram};

/// Tells readers the units, which the format has no place for.
const COMMENT: &str = "Recorded by ringweir. dispatch, connect, first-byte and session are microseconds, \
                       bytes-up and bytes-down are bytes.";

/// A log in the making.
pub(crate) struct Log {
    bytes: Vec<u8>,
    serializer: V2DeflateSerializer,
    scratch: Histogram<u64>,
}

impl Log {
    pub(crate) fn new() -> Log {
        Log { bytes: Vec::new(), serializer: V2DeflateSerializer::new(), scratch: histogram() }
    }

    /// The lines that a log begins with. Intervals bear absolute times, so that logs may be appended to one another.
    pub(crate) fn header(&mut self, start: SystemTime) {
        let mut builder = IntervalLogWriterBuilder::new();
        builder.add_comment("[Histogram log format version 1.3]").add_comment(COMMENT).with_start_time(start);
        sound(builder.begin_log_with(&mut self.bytes, &mut self.serializer).map(drop));
        self.bytes.extend_from_slice(
            b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        );
    }

    /// One series over one interval.
    pub(crate) fn interval(&mut self, tag: &str, start: SystemTime, length: Duration, tally: &Tally) {
        tally.fill(&mut self.scratch);
        let start = start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let builder = IntervalLogWriterBuilder::new();
        let mut writer = sound(builder.begin_log_with(&mut self.bytes, &mut self.serializer));
        sound(writer.write_histogram(&self.scratch, start, length, Tag::new(tag)));
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Memory takes everything, and any histogram of ours can be serialized.
fn sound<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("an interval log in memory: {error}"),
    }
}

/// What a daemon's log tells: when the daemon started, and the histograms by tag.
pub(crate) struct Parsed {
    pub(crate) start: Duration,
    pub(crate) tallies: BTreeMap<String, Tally>,
}

/// Reads a log with one interval for each tag.
///
/// # Errors
/// Where it is damaged, for people.
pub(crate) fn parse(text: &str) -> Result<Parsed, String> {
    let mut parsed = Parsed { start: Duration::ZERO, tallies: BTreeMap::new() };
    let mut deserializer = Deserializer::new();
    for entry in IntervalLogIterator::new(text.as_bytes()) {
        match entry.map_err(|error| format!("the interval log cannot be read: {error:?}"))? {
            LogEntry::StartTime(start) => parsed.start = start,
            LogEntry::BaseTime(_) => {}
            LogEntry::Interval(interval) => {
                let tag = interval.tag().map_or("", |tag| tag.as_str());
                let damaged = |error: String| format!("the histogram of {tag} cannot be read: {error}");
                let bytes = STANDARD
                    .decode(interval.encoded_histogram())
                    .map_err(|error| damaged(error.to_string()))?;
                let histogram: Histogram<u64> = deserializer
                    .deserialize(&mut bytes.as_slice())
                    .map_err(|error| damaged(error.to_string()))?;
                parsed.tallies.insert(tag.to_owned(), Tally::from_histogram(&histogram));
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use ringweir_flow::histogram::{Figure, Histograms};

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let histograms = Histograms::default();
        for value in [0, 1, 300, 70_000, u64::MAX] {
            histograms.record(Figure::Session, value);
        }
        let tally = Tally::of(&[histograms.of(Figure::Session).unwrap()]);
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let mut log = Log::new();
        log.header(start);
        log.interval("listener/web/session", start, Duration::from_secs(10), &tally);
        log.interval("target/ä/session", start, Duration::from_secs(10), &tally);
        let text = String::from_utf8(log.into_bytes()).unwrap();
        assert!(text.contains("\nTag=listener/web/session,1700000000.250,10.000,"), "{text}");
        let parsed = parse(&text).unwrap();
        assert_eq!(parsed.start, Duration::from_millis(1_700_000_000_250));
        assert_eq!(parsed.tallies.keys().collect::<Vec<_>>(), ["listener/web/session", "target/ä/session"]);
        assert!(parsed.tallies.values().all(|read| *read == tally));
        assert!(parse(&text.replace("HIST", "HISS")).is_err());
    }
}
