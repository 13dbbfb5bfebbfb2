//! Streams of sealed chunks, in memory that the caller owns: what comes is gathered behind what was put out before, and
//! opened or sealed there in place.

use std::mem;

use super::cipher::{Cipher, Method, TAG_BYTES};

/// How long a length is, before its tag.
const LENGTH_BYTES: usize = 2;

/// A stream that was tampered with, or sealed with another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came was not sealed with this key")]
pub struct Forged;

/// Bytes in pieces, taken from the front.
pub(super) struct Feed<'a, I> {
    pieces: I,
    piece: &'a [u8],
    left: usize,
}

impl<'a, I: Iterator<Item = &'a [u8]> + Clone> Feed<'a, I> {
    pub(super) fn new(pieces: I) -> Feed<'a, I> {
        let left = pieces.clone().map(<[u8]>::len).sum();
        Feed { pieces, piece: &[], left }
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Moves the next `bytes` bytes to `out`, or as many as there are.
    pub(super) fn take(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let mut missing = bytes.min(self.left);
        self.left -= missing;
        while missing > 0 {
            if self.piece.is_empty() {
                match self.pieces.next() {
                    Some(piece) => self.piece = piece,
                    None => return,
                }
            }
            let (taken, rest) = self.piece.split_at(missing.min(self.piece.len()));
            out.extend_from_slice(taken);
            self.piece = rest;
            missing -= taken.len();
        }
    }
}

/// Seals one direction.
#[derive(Debug)]
pub(super) struct Sealer {
    cipher: Box<Cipher>,
    max_payload_bytes: usize,
}

impl Sealer {
    pub(super) fn new(method: Method, cipher: Box<Cipher>) -> Sealer {
        Sealer { cipher, max_payload_bytes: method.max_payload_bytes() }
    }

    /// Seals what `fill` appends as one message.
    pub(super) fn seal_one(&mut self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
        let begin = out.len();
        fill(out);
        out.resize(out.len() + TAG_BYTES, 0);
        self.cipher.seal(&mut out[begin..]);
    }

    /// Seals what is left as chunks, behind what is there already.
    pub(super) fn seal<'a>(
        &mut self,
        feed: &mut Feed<'a, impl Iterator<Item = &'a [u8]> + Clone>,
        out: &mut Vec<u8>,
    ) {
        let chunks = feed.left().div_ceil(self.max_payload_bytes);
        out.reserve_exact(feed.left() + chunks * (LENGTH_BYTES + 2 * TAG_BYTES));
        while feed.left() > 0 {
            let bytes = feed.left().min(self.max_payload_bytes);
            self.seal_chunk(bytes, out, |out| feed.take(bytes, out));
        }
    }

    /// Seals the `bytes` bytes that `fill` appends as one chunk.
    pub(super) fn seal_chunk(&mut self, bytes: usize, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
        debug_assert!(bytes <= self.max_payload_bytes);
        self.seal_one(out, |out| out.extend_from_slice(&(bytes as u16).to_be_bytes()));
        self.seal_one(out, fill);
    }
}

/// Opens one direction.
#[derive(Debug)]
pub(super) struct Opener {
    cipher: Box<Cipher>,
    max_payload_bytes: usize,
    next: Next,
    /// The beginning of a message whose end has not come.
    partial: Vec<u8>,
}

/// The message that comes next, by the bytes it has before its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Length,
    Payload(usize),
}

impl Next {
    fn sealed_bytes(self) -> usize {
        TAG_BYTES
            + match self {
                Next::Length => LENGTH_BYTES,
                Next::Payload(bytes) => bytes,
            }
    }
}

impl Opener {
    /// Opens what begins with a length.
    pub(super) fn new(method: Method, cipher: Box<Cipher>) -> Opener {
        let max_payload_bytes = method.max_payload_bytes();
        Opener { cipher, max_payload_bytes, next: Next::Length, partial: Vec::new() }
    }

    /// Opens what begins with `bytes` bytes of payload, as a header has said.
    pub(super) fn within(method: Method, cipher: Box<Cipher>, bytes: usize) -> Opener {
        Opener { next: Next::Payload(bytes), ..Opener::new(method, cipher) }
    }

    /// Whether everything that came was whole.
    pub(super) fn is_between_chunks(&self) -> bool {
        self.partial.is_empty() && self.next == Next::Length
    }

    /// Appends the payload of what came to `out`.
    pub(super) fn open<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        out: &mut Vec<u8>,
    ) -> Result<(), Forged> {
        // As much as there is, and no more: what stalls is held.
        out.reserve_exact(self.partial.len() + pieces.clone().map(<[u8]>::len).sum::<usize>());
        let mut begin = out.len();
        out.append(&mut self.partial);
        for mut piece in pieces {
            while !piece.is_empty() {
                let missing = self.next.sealed_bytes() - (out.len() - begin);
                let (taken, rest) = piece.split_at(missing.min(piece.len()));
                out.extend_from_slice(taken);
                piece = rest;
                if taken.len() == missing {
                    if let Err(forged) = self.open_one(begin, out) {
                        out.truncate(begin);
                        return Err(forged);
                    }
                    begin = out.len();
                }
            }
        }
        if begin < out.len() {
            self.partial.reserve_exact(out.len() - begin);
            self.partial.extend_from_slice(&out[begin..]);
            out.truncate(begin);
        } else {
            // A session that waits between chunks holds no memory for them.
            drop(mem::take(&mut self.partial));
        }
        Ok(())
    }

    /// Opens the message that stands at the end of `out`, from `begin` on; what is payload of it stays there.
    fn open_one(&mut self, begin: usize, out: &mut Vec<u8>) -> Result<(), Forged> {
        let message = &mut out[begin..];
        if !self.cipher.open(message) {
            return Err(Forged);
        }
        self.next = match (self.next, &*message) {
            (Next::Length, [high, low, ..]) => {
                let bytes = usize::from(u16::from_be_bytes([*high, *low]));
                out.truncate(begin);
                // The two highest bits of SIP004 are reserved.
                if bytes > self.max_payload_bytes {
                    return Err(Forged);
                }
                Next::Payload(bytes)
            }
            (Next::Length, _) | (Next::Payload(_), _) => {
                out.truncate(out.len() - TAG_BYTES);
                Next::Length
            }
        };
        Ok(())
    }
}
