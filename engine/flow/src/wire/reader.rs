//! Reads messages that are offered anew, from their beginning, whenever more of them has arrived.

/// Reads from the front; `None` when it is not there yet.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Reader<'a> {
        Reader { rest: input }
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    pub(super) fn array<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (&first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(first)
    }

    pub(super) fn port(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// One octet that counts, then that many.
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let (&count, rest) = self.rest.split_first()?;
        let (counted, rest) = rest.split_at_checked(usize::from(count))?;
        self.rest = rest;
        Some(counted)
    }

    /// Up to a NUL, which is left out; what has more than `max_bytes` before it is refused.
    pub(super) fn terminated(&mut self, max_bytes: usize) -> Option<Result<&'a [u8], Endless>> {
        let window = &self.rest[..self.rest.len().min(max_bytes + 1)];
        match window.iter().position(|byte| *byte == 0) {
            Some(end) => {
                let text = &self.rest[..end];
                self.rest = &self.rest[end + 1..];
                Some(Ok(text))
            }
            None => (window.len() > max_bytes).then_some(Err(Endless)),
        }
    }

    pub(super) fn consumed(&self, input: &[u8]) -> usize {
        input.len() - self.rest.len()
    }
}

/// A text is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endless;
