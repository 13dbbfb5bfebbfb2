//! The buffers of a worker. A session takes one only for bytes that are there, so an idle session holds none.

/// What one receive takes at most while little flows.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;

/// What one receive of a streaming flow takes at most: fewer system calls for a buffer that stays in the cache.
pub(crate) const LARGE_BYTES: usize = 64 * 1024;

/// How many spare buffers of a size are kept. Beyond it a burst's memory goes back to the system.
const SPARE_SMALL: usize = 256;
const SPARE_LARGE: usize = 64;
const SPARE_EMPTIED: usize = 64;

/// A stalled reader may cost a session 256 KiB; it costs one buffer a direction here.
const _: () = assert!(2 * LARGE_BYTES <= 256 * 1024);

/// The size of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
}

impl Size {
    /// What to take next after a receive of `bytes` bytes.
    pub(crate) fn after(bytes: usize) -> Size {
        if bytes >= SMALL_BYTES { Size::Large } else { Size::Small }
    }

    fn bytes(self) -> usize {
        match self {
            Size::Small => SMALL_BYTES,
            Size::Large => LARGE_BYTES,
        }
    }
}

/// A buffer of one of the two sizes.
#[derive(Debug)]
pub(crate) struct Buffer {
    size: Size,
    bytes: Box<[u8]>,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// The spare buffers of a worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    /// For what is translated; empty, but with room.
    emptied: Vec<Vec<u8>>,
}

impl Buffers {
    pub(crate) fn take(&mut self, size: Size) -> Buffer {
        let spare = match size {
            Size::Small => self.small.pop(),
            Size::Large => self.large.pop(),
        };
        Buffer { size, bytes: spare.unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice()) }
    }

    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        let (spares, most) = match buffer.size {
            Size::Small => (&mut self.small, SPARE_SMALL),
            Size::Large => (&mut self.large, SPARE_LARGE),
        };
        if spares.len() < most {
            spares.push(buffer.bytes);
        }
    }
}

impl Buffers {
    /// Empty memory for what is translated.
    pub(crate) fn take_empty(&mut self) -> Vec<u8> {
        self.emptied.pop().unwrap_or_default()
    }

    pub(crate) fn give_back_emptied(&mut self, mut bytes: Vec<u8>) {
        if self.emptied.len() < SPARE_EMPTIED {
            bytes.clear();
            self.emptied.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_spares_are_bounded() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take(Size::Small);
        buffer.bytes_mut()[0] = 7;
        buffers.give_back(buffer);
        assert_eq!(buffers.take(Size::Small).bytes()[0], 7, "the same one");
        let many: Vec<_> = (0..SPARE_LARGE + 5).map(|_| buffers.take(Size::Large)).collect();
        many.into_iter().for_each(|buffer| buffers.give_back(buffer));
        assert_eq!(buffers.large.len(), SPARE_LARGE);
    }
}
