//! Distributions that one worker records and anybody reads, in the bucket layout of HdrHistogram.
//!
//! Recording is an index computation and two relaxed stores. The cells of an octave (the values from a power of two
//! to the next) are allotted when the first value falls into it, and everything else when anything is recorded at
//! all: a target that never carried traffic costs two words.

use std::sync::OnceLock;

use crate::account::Counter;

/// Decimal digits that survive recording: any value is off by less than 1 %, as HdrHistogram promises for 2.
pub const SIGNIFICANT_DIGITS: u8 = 2;

/// The largest value that is told apart, in microseconds four years, in bytes 128 TiB. Larger ones count as this.
pub const MAX_VALUE: u64 = (1 << 47) - 1;

/// Cells of an octave: 128 keep a value within 1/128 of what it was, which is less than 1 %.
pub const OCTAVE_CELLS: usize = 1 << OCTAVE_BITS;
const OCTAVE_BITS: u32 = 7;

/// Octaves from 0 to [`MAX_VALUE`]; the first holds everything below [`OCTAVE_CELLS`].
const OCTAVES: usize = (MAX_VALUE.ilog2() + 2 - OCTAVE_BITS) as usize;

/// How many cells there are. HdrHistogram's index of a value is the same number.
pub const CELLS: usize = OCTAVES * OCTAVE_CELLS;

const _: () = assert!(100 < OCTAVE_CELLS, "two digits need more than 100 cells an octave");
const _: () = assert!(CELLS <= u16::MAX as usize, "readers keep indexes in 16 bits");
const _: () = assert!(index_of(MAX_VALUE) == CELLS - 1);

/// The cell that counts `value`.
pub const fn index_of(value: u64) -> usize {
    let value = if value > MAX_VALUE { MAX_VALUE } else { value };
    // How many low bits are dropped: none below two octaves' worth of cells.
    let shift = (value | (2 * OCTAVE_CELLS as u64 - 1)).ilog2() - OCTAVE_BITS;
    shift as usize * OCTAVE_CELLS + (value >> shift) as usize
}

/// The smallest value that the cell at `index` counts.
pub const fn lowest_at(index: usize) -> u64 {
    match (index / OCTAVE_CELLS).checked_sub(1) {
        None => index as u64,
        Some(shift) => ((OCTAVE_CELLS + index % OCTAVE_CELLS) as u64) << shift,
    }
}

/// The largest value that the cell at `index` counts.
pub const fn highest_at(index: usize) -> u64 {
    lowest_at(index + 1) - 1
}

/// The distribution of one figure, recorded by one worker.
#[derive(Debug)]
pub struct Recorder {
    octaves: [OnceLock<Box<Octave>>; OCTAVES],
    sum: Counter,
}

type Octave = [Counter; OCTAVE_CELLS];

impl Recorder {
    fn new() -> Recorder {
        Recorder { octaves: [const { OnceLock::new() }; OCTAVES], sum: Counter::default() }
    }

    /// Counts a value. Only the owning worker may call this. It allocates when the value is the first of its octave.
    pub fn record(&self, value: u64) {
        let index = index_of(value);
        let octave = self.octaves[index / OCTAVE_CELLS].get_or_init(allot_octave);
        octave[index % OCTAVE_CELLS].add(1);
        self.sum.add(value.min(MAX_VALUE));
    }

    /// The cells that have counted anything, in order, as index and count; anybody may call this.
    pub fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        self.octaves.iter().enumerate().flat_map(|(octave, cells)| {
            cells.get().into_iter().flat_map(move |cells| {
                let counts = cells.iter().enumerate().map(|(cell, counter)| (cell, counter.get()));
                let counted = counts.filter(|(_, count)| *count > 0);
                counted.map(move |(cell, count)| (octave * OCTAVE_CELLS + cell, count))
            })
        })
    }

    /// The sum of all values, exactly; anybody may call this.
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }
}

#[cold]
fn allot_octave() -> Box<Octave> {
    Box::new([const { Counter::new() }; OCTAVE_CELLS])
}

/// What is measured of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Figure {
    /// Of a listener, from accept to the first target that was picked, the client's request included; of a target,
    /// from accept until it was picked, tries of others included.
    Dispatch,
    /// Of a listener, from the first pick to an open upstream, failed tries included; of a target, its own connect.
    Connect,
    /// From an open upstream to the first byte from it.
    FirstByte,
    /// From accept to the end, of sessions that had an upstream.
    Session,
    /// Bytes that such a session delivered to its upstream.
    BytesUp,
    /// Bytes that such a session delivered to its client.
    BytesDown,
}

/// What a [`Figure`]'s values count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Micros,
    /// Bytes.
    Bytes,
}

impl Figure {
    /// All of them, in the order of a session's life.
    pub const ALL: [Figure; 6] = [
        Figure::Dispatch,
        Figure::Connect,
        Figure::FirstByte,
        Figure::Session,
        Figure::BytesUp,
        Figure::BytesDown,
    ];

    /// Its word in tables and tags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Figure::Dispatch => "dispatch",
            Figure::Connect => "connect",
            Figure::FirstByte => "first-byte",
            Figure::Session => "session",
            Figure::BytesUp => "bytes-up",
            Figure::BytesDown => "bytes-down",
        }
    }

    /// What its values count.
    pub const fn unit(self) -> Unit {
        match self {
            Figure::Dispatch | Figure::Connect | Figure::FirstByte | Figure::Session => Unit::Micros,
            Figure::BytesUp | Figure::BytesDown => Unit::Bytes,
        }
    }
}

/// The distributions of every [`Figure`], recorded by one worker.
#[derive(Debug, Default)]
pub struct Histograms(OnceLock<Box<[Recorder; Figure::ALL.len()]>>);

impl Histograms {
    /// Counts a value of a figure. Only the owning worker may call this.
    pub fn record(&self, figure: Figure, value: u64) {
        self.0.get_or_init(allot_recorders)[figure as usize].record(value);
    }

    /// What was recorded of a figure; `None` when nothing was recorded of any. Anybody may call this.
    pub fn of(&self, figure: Figure) -> Option<&Recorder> {
        self.0.get().map(|recorders| &recorders[figure as usize])
    }
}

#[cold]
fn allot_recorders() -> Box<[Recorder; Figure::ALL.len()]> {
    Box::new(std::array::from_fn(|_| Recorder::new()))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    use super::*;

    fn library() -> Histogram<u64> {
        Histogram::new_with_bounds(1, MAX_VALUE, SIGNIFICANT_DIGITS).unwrap()
    }

    #[test]
    fn the_layout_is_hdrhistograms_at_every_edge() {
        let library = library();
        assert_eq!(library.distinct_values(), CELLS);
        for (index, cell) in library.iter_all().enumerate() {
            let value = cell.value_iterated_to();
            assert_eq!(highest_at(index), value);
            assert_eq!(lowest_at(index), library.lowest_equivalent(value));
            assert_eq!((index_of(lowest_at(index)), index_of(value)), (index, index));
        }
    }

    #[test]
    fn figures_stand_where_their_number_says() {
        for (number, figure) in Figure::ALL.into_iter().enumerate() {
            assert_eq!(figure as usize, number, "{figure:?}");
        }
    }

    #[test]
    fn what_nobody_recorded_costs_two_words() {
        let histograms = Histograms::default();
        assert_eq!(size_of_val(&histograms), 2 * size_of::<usize>());
        assert!(histograms.of(Figure::Connect).is_none());
        histograms.record(Figure::Session, 5);
        assert_eq!(histograms.of(Figure::Connect).unwrap().counts().count(), 0);
        assert_eq!(histograms.of(Figure::Session).unwrap().counts().collect::<Vec<_>>(), [(5, 1)]);
    }

    #[test]
    fn values_beyond_the_largest_count_as_the_largest() {
        let recorder = Recorder::new();
        recorder.record(u64::MAX);
        assert_eq!(recorder.counts().collect::<Vec<_>>(), [(CELLS - 1, 1)]);
        assert_eq!(recorder.sum(), MAX_VALUE);
    }

    proptest! {
        #[test]
        fn what_is_recorded_is_what_the_library_would_have_recorded(
            values in prop::collection::vec((any::<u64>(), 0u32..64), 0..200)
        ) {
            let (recorder, mut library) = (Recorder::new(), library());
            for (value, shift) in values {
                let value = value >> shift;
                recorder.record(value);
                library.saturating_record(value);
            }
            let recorded: Vec<_> = recorder.counts().map(|(at, count)| (highest_at(at), count)).collect();
            let expected: Vec<_> = library
                .iter_recorded()
                .map(|cell| (cell.value_iterated_to(), cell.count_at_value()))
                .collect();
            prop_assert_eq!(recorded, expected);
        }
    }
}
