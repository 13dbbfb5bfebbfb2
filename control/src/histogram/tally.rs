//! A distribution as the list of cells that counted anything: small, and easy to subtract.

use hdrhistogram::Histogram;
use ringweir_flow::histogram::{MAX_VALUE, Recorder, SIGNIFICANT_DIGITS, highest_at, index_of};

/// Cells and their counts, in order, none of them zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally(Vec<(u16, u64)>);

impl Tally {
    /// The sum of what several workers recorded.
    pub(crate) fn of(recorders: &[&Recorder]) -> Tally {
        let counts = recorders.iter().flat_map(|recorder| recorder.counts());
        // flow asserts that every index fits.
        let mut all: Vec<(u16, u64)> = counts.map(|(index, count)| (index as u16, count)).collect();
        all.sort_unstable_by_key(|(index, _)| *index);
        all.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.saturating_add(next.1);
            }
            same
        });
        Tally(all)
    }

    /// What a histogram of the library counts.
    pub(crate) fn from_histogram(histogram: &Histogram<u64>) -> Tally {
        let cells = histogram.iter_recorded();
        Tally(cells.map(|cell| (index_of(cell.value_iterated_to()) as u16, cell.count_at_value())).collect())
    }

    /// What was counted since `earlier`. Counts never fall: where one has, they began anew, and all of them are new.
    pub(crate) fn since(&self, earlier: &Tally) -> Tally {
        let mut before = earlier.0.iter().copied().peekable();
        let mut new = Vec::new();
        for &(index, count) in &self.0 {
            let known = match before.peek() {
                Some((at, known)) if *at == index => *known,
                Some(_) | None => 0,
            };
            if known > 0 {
                before.next();
            }
            match count.checked_sub(known) {
                Some(0) => {}
                Some(more) => new.push((index, more)),
                None => return self.clone(),
            }
        }
        // A cell that is gone is one that has fallen to zero.
        if before.next().is_some() { self.clone() } else { Tally(new) }
    }

    /// Whether nothing was counted.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many values were counted.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// How many values were counted in cells that end at `value` or below.
    pub(crate) fn up_to(&self, value: u64) -> u64 {
        let below = self.0.iter().take_while(|(index, _)| highest_at(usize::from(*index)) <= value);
        below.map(|(_, count)| count).sum()
    }

    /// Puts the counts into a histogram from [`histogram`], in place of what it holds.
    pub(crate) fn fill(&self, histogram: &mut Histogram<u64>) {
        histogram.reset();
        for &(index, count) in &self.0 {
            histogram.saturating_record_n(highest_at(usize::from(index)), count);
        }
    }
}

/// An empty histogram of the layout in which workers record.
pub(crate) fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, MAX_VALUE, SIGNIFICANT_DIGITS) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constants make a sound histogram: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringweir_flow::histogram::{Figure, Histograms};

    use super::*;

    fn tally(values: &[u64]) -> Tally {
        let histograms = Histograms::default();
        values.iter().for_each(|value| histograms.record(Figure::Connect, *value));
        Tally::of(&histograms.of(Figure::Connect).into_iter().collect::<Vec<_>>())
    }

    #[test]
    fn counts_that_began_anew_are_all_new() {
        let fresh = tally(&[5, 9]);
        assert_eq!(fresh.since(&tally(&[5, 5, 9])), fresh);
        assert_eq!(fresh.since(&tally(&[7])), fresh);
        assert_eq!(fresh.since(&tally(&[5, 9])), Tally::default());
    }

    proptest! {
        #[test]
        fn an_interval_is_what_came_after_the_one_before(
            before in prop::collection::vec(0u64..100_000, 0..50),
            after in prop::collection::vec(0u64..100_000, 0..50),
        ) {
            let all = [before.clone(), after.clone()].concat();
            prop_assert_eq!(tally(&all).since(&tally(&before)), tally(&after));
        }

        #[test]
        fn a_histogram_of_the_library_holds_the_same(values in prop::collection::vec(any::<u64>(), 0..50)) {
            let tally = tally(&values);
            let mut library = histogram();
            tally.fill(&mut library);
            prop_assert_eq!(library.len(), tally.total());
            prop_assert_eq!(Tally::from_histogram(&library), tally);
        }
    }
}
