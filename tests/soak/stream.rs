//! The bytes of a direction: each has its place, by session and direction, so that what is lost, doubled, swapped or
//! another session's is found without keeping anything.

use std::sync::LazyLock;

use crate::script::Direction;

/// A prime, so that no power-of-two buffer or pipe lines up with a repetition.
const PERIOD_BYTES: usize = 1_048_573;

/// What one write takes at most.
pub(crate) const MAX_WRITE_BYTES: usize = 4 << 20;

/// How many bytes tell from where in the table they are.
const TRACE_BYTES: usize = 16;

/// A period, and so much of the next ones that any write finds its bytes in one piece.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut period = vec![0; PERIOD_BYTES];
    fastrand::Rng::with_seed(0x9e37_79b9_7f4a_7c15).fill(&mut period);
    let mut table = period;
    while table.len() < PERIOD_BYTES + MAX_WRITE_BYTES {
        let more = PERIOD_BYTES.min(PERIOD_BYTES + MAX_WRITE_BYTES - table.len());
        table.extend_from_within(..more);
    }
    table
});

/// One direction of one session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Where in the table its first byte is.
    begin: u64,
}

impl Stream {
    pub(crate) fn new(session: u64, direction: Direction) -> Stream {
        let salt = match direction {
            Direction::Up => 0x51_7cc1,
            Direction::Down => 0xb7_2722,
        };
        Stream { begin: fastrand::Rng::with_seed(mix(session, salt)).u64(0..PERIOD_BYTES as u64) }
    }

    /// `bytes` bytes from a position on, at most [`MAX_WRITE_BYTES`].
    pub(crate) fn at(self, position: u64, bytes: usize) -> &'static [u8] {
        let from = ((self.begin + position) % PERIOD_BYTES as u64) as usize;
        &TABLE[from..from + bytes]
    }

    /// Whether these are the bytes at a position; else what is wrong.
    pub(crate) fn check(self, position: u64, bytes: &[u8]) -> Result<(), String> {
        let wanted = self.at(position, bytes.len());
        if bytes == wanted {
            return Ok(());
        }
        let at = bytes.iter().zip(wanted).take_while(|(got, wanted)| got == wanted).count();
        Err(format!(
            "wrong byte at {}: {}",
            position + at as u64,
            self.trace(position + at as u64, &bytes[at..])
        ))
    }

    /// Where foreign bytes seem to come from.
    fn trace(self, position: u64, foreign: &[u8]) -> String {
        let Some(sample) = foreign.get(..TRACE_BYTES) else {
            return format!("{foreign:02x?}");
        };
        let Some(found) = TABLE.windows(TRACE_BYTES).take(PERIOD_BYTES).position(|window| window == sample)
        else {
            return format!("bytes of nobody's: {sample:02x?}");
        };
        let period = PERIOD_BYTES as u64;
        let ahead = (found as u64 + period - (self.begin + position) % period) % period;
        format!(
            "there are bytes from {ahead} further ahead, or {} back, or of another stream",
            period - ahead
        )
    }
}

/// One seed of two numbers.
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mut state = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[test]
fn a_stream_knows_its_bytes_and_tells_lost_ones() {
    let stream = Stream::new(7, Direction::Up);
    let bytes = stream.at(5_000_000, 100_000).to_vec();
    assert_eq!(stream.check(5_000_000, &bytes), Ok(()));
    let lost = [&bytes[..50_000], &bytes[54_096..]].concat();
    let fault = stream.check(5_000_000, &lost).expect_err("4096 bytes are missing");
    assert!(fault.contains("at 5050000") && fault.contains("from 4096 further ahead"), "{fault}");
    assert!(Stream::new(7, Direction::Down).check(5_000_000, &bytes).is_err());
    assert!(Stream::new(8, Direction::Up).check(5_000_000, &bytes).is_err());
}
