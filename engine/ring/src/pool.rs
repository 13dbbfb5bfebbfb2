//! The buffers that all receives of one ring share, and the part of them that stands in the kernel's buffer ring.
//!
//! A buffer is in one of three places: on the free stack, in the kernel's hands, or held by a [`Chunks`]. Only a
//! [`Chunks`] lends its bytes, so safe code never sees a byte that the kernel may be writing.
//!
//! The kernel takes buffers in the order in which they were put into its ring, and a completion names only the first
//! of those it filled. So each buffer remembers which one was put in after it: a bundle is walked along that chain,
//! whatever order the completions are read in, and a [`Chunks`] needs no list of its own.

use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::config::RingConfig;
use crate::ring::Ring;

/// The one group of provided buffers of a ring.
pub(crate) const GROUP: u16 = 0;
/// A cache line: neighbouring buffers share none, and the zero-copy paths of the kernel like it.
const ALIGNMENT_BYTES: u32 = 64;
/// The kernel's limit on a buffer ring (io_uring_register_buf_ring(3)).
const MAX_RING_BUFFERS: u16 = 1 << 15;

/// Tells pools apart, so that no ring takes another's chunks for its own.
static POOLS: AtomicU32 = AtomicU32::new(0);
/// Buffers lost because a `Chunks` was dropped instead of recycled, in the whole process.
static LEAKED_BUFFERS: AtomicU64 = AtomicU64::new(0);

/// Received bytes, in one or more buffers of a ring's pool. Not `Clone`: it owns them.
///
/// Give it to [`Ring::send`] or [`Ring::recycle`]. One that is dropped takes its buffers along for the ring's life,
/// which [`RingStats::leaked_buffers`](crate::RingStats::leaked_buffers) counts.
#[derive(Debug)]
#[must_use = "its buffers are lost unless sent or recycled"]
pub struct Chunks {
    /// Bytes held, after `offset` in `first` and on through the buffers that follow.
    len: u32,
    /// Below `buffer_bytes`.
    offset: u32,
    pool: u32,
    first: u16,
    buffers: u16,
}

impl Chunks {
    /// Bytes held.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no byte is held: of a receive, the end of the stream.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Buffers of the pool held.
    #[inline]
    #[must_use]
    pub fn buffers(&self) -> usize {
        usize::from(self.buffers)
    }

    /// The bytes, in order, a slice for each buffer.
    ///
    /// # Panics
    /// when the chunks are another ring's.
    #[inline]
    #[must_use]
    pub fn slices<'a>(&'a self, ring: &'a Ring) -> Slices<'a> {
        self.slices_in(ring.pool())
    }

    /// Appends the bytes to `to`.
    ///
    /// # Panics
    /// when the chunks are another ring's.
    pub fn copy_to(&self, ring: &Ring, to: &mut Vec<u8>) {
        to.reserve(self.len());
        self.slices(ring).for_each(|slice| to.extend_from_slice(slice));
    }

    #[inline]
    pub(crate) fn slices_in<'a>(&'a self, pool: &'a Pool) -> Slices<'a> {
        pool.assert_owns(self);
        Slices { pool, next: self.first, offset: self.offset, len: self.len }
    }

    fn empty(pool: u32) -> Chunks {
        Chunks { len: 0, offset: 0, pool, first: 0, buffers: 0 }
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if self.buffers > 0 {
            LEAKED_BUFFERS.fetch_add(u64::from(self.buffers), Ordering::Relaxed);
        }
    }
}

/// The slices of a [`Chunks`], in order; none is empty.
#[derive(Clone)]
pub struct Slices<'a> {
    pool: &'a Pool,
    next: u16,
    offset: u32,
    len: u32,
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.len == 0 {
            return None;
        }
        let take = self.len.min(self.pool.buffer_bytes - self.offset);
        let start = self.pool.address(self.next, self.offset);
        // SAFETY: the pool's mapping outlives 'a, is initialised (zeroed by mmap), and `address` keeps offset + take
        // within one buffer. The buffer is held by the Chunks borrowed for 'a: the kernel does not have it, and
        // nothing hands out a mutable slice.
        let slice = unsafe { slice::from_raw_parts(start.as_ptr(), take as usize) };
        self.next = self.pool.following[usize::from(self.next)];
        self.offset = 0;
        self.len -= take;
        Some(slice)
    }
}

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Kernel,
    Held,
}

pub(crate) struct Pool {
    memory: Mapping,
    /// What `io_uring_buf_ring` of the kernel is: entries of 16 bytes, the tail in the last two of the first.
    entries: Mapping,
    id: u32,
    buffer_bytes: u32,
    ring_buffers: u16,
    /// Of the kernel's ring: where the next buffer goes. Wraps.
    tail: u16,
    /// The buffer last put into the kernel's ring.
    last: u16,
    /// How many buffers the kernel has, completions not yet read included: at least as many as its ring holds.
    standing: u16,
    low_water: usize,
    free: Vec<u16>,
    /// For each buffer, the one put into the kernel's ring right after it. Never changes between two buffers of one
    /// `Chunks`: a buffer's entry is written only while it is the last one put in.
    following: Box<[u16]>,
    places: Box<[Place]>,
}

impl Pool {
    /// Maps the memory; nothing of it is touched before the kernel or the caller writes there.
    pub(crate) fn new(config: &RingConfig) -> Result<Pool, PoolError> {
        let buffers = usize::from(config.buffers);
        if !config.ring_buffers.is_power_of_two() || config.ring_buffers > MAX_RING_BUFFERS {
            return Err(PoolError::Config("ring_buffers is a power of two up to 32768"));
        }
        if config.ring_buffers > config.buffers {
            return Err(PoolError::Config("ring_buffers is no more than buffers"));
        }
        if config.buffer_bytes == 0 || !config.buffer_bytes.is_multiple_of(ALIGNMENT_BYTES) {
            return Err(PoolError::Config("buffer_bytes is a multiple of 64"));
        }
        let bytes = buffers * config.buffer_bytes as usize;
        if u32::try_from(bytes).is_err() {
            return Err(PoolError::Config("buffers * buffer_bytes is below 4 GiB"));
        }
        let entries_bytes = usize::from(config.ring_buffers) * size_of::<BufRingEntry>();
        Ok(Pool {
            memory: Mapping::new(bytes).map_err(PoolError::Memory)?,
            entries: Mapping::new(entries_bytes).map_err(PoolError::Memory)?,
            id: POOLS.fetch_add(1, Ordering::Relaxed),
            buffer_bytes: config.buffer_bytes,
            ring_buffers: config.ring_buffers,
            tail: 0,
            last: 0,
            standing: 0,
            low_water: buffers,
            free: (0..config.buffers).rev().collect(),
            following: vec![0; buffers].into_boxed_slice(),
            places: vec![Place::Free; buffers].into_boxed_slice(),
        })
    }

    /// Makes the buffer ring known to the kernel. The pool must then outlive the io_uring, which [`Ring`] sees to.
    pub(crate) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.base.as_ptr() as u64;
        // SAFETY: the entries are mapped for as many buffers as named, and stay so until after the io_uring is closed:
        // `Ring` owns both, and leaks the pool when it cannot be sure.
        unsafe { submitter.register_buf_ring_with_flags(address, self.ring_buffers, GROUP, 0) }
    }

    /// Tops up the kernel's ring from the free stack, warmest first. To be called before entering the kernel: it looks
    /// at its buffer ring only then (DEFER_TASKRUN).
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.standing == self.ring_buffers || self.free.is_empty() {
            return;
        }
        while self.standing < self.ring_buffers
            && let Some(buffer) = self.free.pop()
        {
            self.put(buffer);
        }
        // SAFETY: the tail lies within the first entry of the mapping, aligned to 2; both sides access it atomically.
        let tail = unsafe { AtomicU16::from_ptr(self.tail_address()) };
        // Release: the kernel reads it with acquire, and then the entries.
        tail.store(self.tail, Ordering::Release);
    }

    /// The buffers that a completion names: `first`, and as many after it as `len` bytes fill. One buffer at least is
    /// taken, for that is what the kernel used up.
    ///
    /// # Panics
    /// when the kernel names a buffer that it does not have: going on would lend bytes that it writes.
    #[inline]
    pub(crate) fn take(&mut self, first: u16, len: u32) -> Chunks {
        let buffers = len.div_ceil(self.buffer_bytes).max(1);
        assert!(buffers <= u32::from(self.standing), "the kernel filled more buffers than it has");
        let mut buffer = first;
        for _ in 0..buffers {
            let place = &mut self.places[usize::from(buffer)];
            assert!(*place == Place::Kernel, "the kernel filled a buffer that it does not have");
            *place = Place::Held;
            buffer = self.following[usize::from(buffer)];
        }
        self.standing -= buffers as u16;
        self.low_water = self.low_water.min(self.available());
        Chunks { len, offset: 0, pool: self.id, first, buffers: buffers as u16 }
    }

    /// Takes the buffers back.
    #[inline]
    pub(crate) fn recycle(&mut self, chunks: Chunks) {
        self.assert_owns(&chunks);
        let mut buffer = chunks.first;
        for _ in 0..chunks.buffers {
            buffer = self.release(buffer);
        }
        mem::forget(chunks);
    }

    /// Drops the first `bytes`, and takes back the buffers that hold no others.
    pub(crate) fn advance(&mut self, chunks: &mut Chunks, bytes: usize) {
        self.assert_owns(chunks);
        assert!(bytes <= chunks.len(), "advanced past the end");
        if bytes == chunks.len() {
            self.recycle(mem::replace(chunks, Chunks::empty(self.id)));
            return;
        }
        chunks.len -= bytes as u32;
        let mut start = chunks.offset + bytes as u32;
        while start >= self.buffer_bytes {
            start -= self.buffer_bytes;
            chunks.first = self.release(chunks.first);
            chunks.buffers -= 1;
        }
        chunks.offset = start;
    }

    /// What an end of stream is received as.
    #[inline]
    pub(crate) fn empty(&self) -> Chunks {
        Chunks::empty(self.id)
    }

    /// Buffers that receives can be given: free ones, and those in the kernel's ring.
    #[inline]
    pub(crate) fn available(&self) -> usize {
        self.free.len() + usize::from(self.standing)
    }

    /// The least that `available` has been.
    pub(crate) fn low_water(&self) -> usize {
        self.low_water
    }

    #[inline]
    pub(crate) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// # Panics
    /// when the chunks are another pool's: their buffers here may be the kernel's.
    #[inline]
    pub(crate) fn assert_owns(&self, chunks: &Chunks) {
        assert!(chunks.pool == self.id, "chunks of another ring");
    }

    /// Leaves the memory mapped for ever, for a kernel that may still write there.
    pub(crate) fn leak(&mut self) {
        self.memory.keep = Keep::ForEver;
        self.entries.keep = Keep::ForEver;
    }

    /// Puts a free buffer into the kernel's ring, short of moving its tail.
    #[inline]
    fn put(&mut self, buffer: u16) {
        debug_assert_eq!(self.places[usize::from(buffer)], Place::Free);
        let address = self.address(buffer, 0).as_ptr() as u64;
        let index = usize::from(self.tail & (self.ring_buffers - 1));
        let entries = self.entries.base.cast::<BufRingEntry>();
        // SAFETY: the mapping holds `ring_buffers` entries, and index is below that.
        let entry = unsafe { entries.add(index) };
        // SAFETY: the entry is mapped, initialised (zeroed by mmap) and aligned to 16. It is free: the kernel's ring
        // holds at most `standing` entries, fewer than `ring_buffers`. Its tail field is not touched.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(buffer);
        self.places[usize::from(buffer)] = Place::Kernel;
        self.following[usize::from(self.last)] = buffer;
        self.last = buffer;
        self.tail = self.tail.wrapping_add(1);
        self.standing += 1;
    }

    /// Takes one buffer back; returns the one that followed it.
    #[inline]
    fn release(&mut self, buffer: u16) -> u16 {
        debug_assert_eq!(self.places[usize::from(buffer)], Place::Held);
        self.places[usize::from(buffer)] = Place::Free;
        self.free.push(buffer);
        self.following[usize::from(buffer)]
    }

    fn tail_address(&self) -> *mut u16 {
        let base = self.entries.base.cast::<BufRingEntry>();
        // SAFETY: base is the first entry of the buffer ring, mapped and initialised; only an address is computed.
        unsafe { BufRingEntry::tail(base.as_ptr()) }.cast_mut()
    }

    #[inline]
    fn address(&self, buffer: u16, offset: u32) -> NonNull<u8> {
        assert!(usize::from(buffer) < self.places.len() && offset < self.buffer_bytes);
        let start = usize::from(buffer) * self.buffer_bytes as usize + offset as usize;
        // SAFETY: just checked to lie within the mapping.
        unsafe { self.memory.base.add(start) }
    }
}

#[derive(Debug)]
pub(crate) enum PoolError {
    Config(&'static str),
    Memory(io::Error),
}

/// Buffers lost in this process by dropping a `Chunks`.
pub(crate) fn leaked_buffers() -> u64 {
    LEAKED_BUFFERS.load(Ordering::Relaxed)
}

/// Zeroed pages of our own, page-aligned.
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    keep: Keep,
}

/// How long a mapping lasts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    WhileOwned,
    ForEver,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlays nothing.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, bytes, keep: Keep::WhileOwned })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.keep == Keep::ForEver {
            return;
        }
        // SAFETY: this is the mapping made in `new`; whoever drops it knows that neither the kernel nor any slice
        // refers to it (see `Ring::drop`).
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
