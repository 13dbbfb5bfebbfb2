//! Streams of known content: every byte has its place, so what is lost, doubled, swapped or foreign is found, and
//! where.

use std::io::{ErrorKind, Read, Write};
use std::sync::LazyLock;

/// A prime, so that no power-of-two buffer lines up with a repetition.
const PERIOD_BYTES: usize = 1_048_573;

/// What clients send.
pub(crate) static UP: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(0x9e37_79b9_7f4a_7c15));
/// What upstreams send.
pub(crate) static DOWN: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(0xd1b5_4a32_d192_ed03));

/// An endless stream of random bytes.
pub(crate) struct Pattern(Vec<u8>);

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// An orderly end.
    Fin,
    /// ECONNRESET.
    Reset,
    /// Nothing came for longer than the socket's timeout.
    Silence,
    /// Another error.
    Failed(ErrorKind),
}

impl End {
    pub(crate) fn of(error: &std::io::Error) -> End {
        let kind = error.kind();
        if kind == ErrorKind::ConnectionReset {
            End::Reset
        } else if matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            End::Silence
        } else {
            End::Failed(kind)
        }
    }
}

/// What arrived of a pattern.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) bytes: u64,
    /// The first byte that is not the pattern's.
    pub(crate) wrong_at: Option<u64>,
    pub(crate) end: End,
}

impl Receipt {
    /// Exactly `bytes` bytes and then `end`.
    #[track_caller]
    pub(crate) fn assert(&self, bytes: u64, end: End) {
        assert_eq!(*self, Receipt { bytes, wrong_at: None, end });
    }
}

impl Pattern {
    fn new(seed: u64) -> Pattern {
        let mut state = seed;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Pattern(words.flatten().take(PERIOD_BYTES).collect())
    }

    /// The first `bytes` bytes.
    pub(crate) fn head(&self, bytes: usize) -> &[u8] {
        &self.0[..bytes]
    }

    /// Writes the first `bytes` bytes.
    pub(crate) fn write(&self, sink: &mut impl Write, bytes: u64) -> std::io::Result<()> {
        let mut offset = 0;
        while offset < bytes {
            let piece = self.at(offset, bytes - offset);
            sink.write_all(piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// The bytes from `offset`, as many as there are in one piece.
    pub(crate) fn at(&self, offset: u64, most: u64) -> &[u8] {
        let from = (offset % PERIOD_BYTES as u64) as usize;
        let rest = &self.0[from..];
        &rest[..rest.len().min(usize::try_from(most).unwrap_or(usize::MAX))]
    }

    /// Reads to the end of the stream, whatever it is.
    pub(crate) fn read_to_end(&self, source: &mut impl Read) -> Receipt {
        self.read(source, u64::MAX, 256 * 1024)
    }

    /// Reads until the stream ends or `most` bytes have come (which counts as [`End::Fin`]), in pieces of `piece`.
    pub(crate) fn read(&self, source: &mut impl Read, most: u64, piece: usize) -> Receipt {
        let mut buffer = vec![0; piece];
        let mut receipt = Receipt { bytes: 0, wrong_at: None, end: End::Fin };
        while receipt.bytes < most {
            let room = buffer.len().min(usize::try_from(most - receipt.bytes).unwrap_or(usize::MAX));
            match source.read(&mut buffer[..room]) {
                Ok(0) => return receipt,
                Ok(bytes) => self.check(&buffer[..bytes], &mut receipt),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    receipt.end = End::of(&error);
                    return receipt;
                }
            }
        }
        receipt
    }

    fn check(&self, mut bytes: &[u8], receipt: &mut Receipt) {
        while !bytes.is_empty() {
            let expected = self.at(receipt.bytes, bytes.len() as u64);
            let (piece, rest) = bytes.split_at(expected.len());
            if receipt.wrong_at.is_none() && piece != expected {
                let at = piece.iter().zip(expected).position(|(got, wanted)| got != wanted);
                receipt.wrong_at = at.map(|at| receipt.bytes + at as u64);
            }
            receipt.bytes += piece.len() as u64;
            bytes = rest;
        }
    }
}
