//! Reads messages that are offered anew, from their beginning, whenever more of them has arrived.

/// Reads from the front; `None` when it is not there yet.
pub(in crate::wire) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(in crate::wire) fn new(input: &'a [u8]) -> Reader<'a> {
        Reader { rest: input }
    }

    pub(in crate::wire) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    pub(in crate::wire) fn array<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (&first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(first)
    }

    pub(in crate::wire) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    pub(in crate::wire) fn port(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// One octet that counts, then that many.
    pub(in crate::wire) fn counted(&mut self) -> Option<&'a [u8]> {
        let (&count, rest) = self.rest.split_first()?;
        let (counted, rest) = rest.split_at_checked(usize::from(count))?;
        self.rest = rest;
        Some(counted)
    }

    /// Two octets that count, then that many.
    pub(in crate::wire) fn counted16(&mut self) -> Option<&'a [u8]> {
        let (&count, rest) = self.rest.split_first_chunk()?;
        let (counted, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(count)))?;
        self.rest = rest;
        Some(counted)
    }

    pub(in crate::wire) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to a NUL, which is left out; what has more than `max_bytes` before it is refused.
    pub(in crate::wire) fn terminated(&mut self, max_bytes: usize) -> Option<Result<&'a [u8], Endless>> {
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

    pub(in crate::wire) fn consumed(&self, input: &[u8]) -> usize {
        input.len() - self.rest.len()
    }
}

/// A text is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::wire) struct Endless;
