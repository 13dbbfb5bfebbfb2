//! The memory that operations in flight keep alive: what the kernel reads between a submission and its completion.
//!
//! Entries move when the table grows, what they own does not: buffers lie in the pool, a `Vec`'s bytes on the heap,
//! and the rest in a [`Fixed`], reused from operation to operation.

use std::mem;
use std::ptr::{self, NonNull};

use rustix::net::SocketAddrAny;

use crate::pool::{Chunks, Pool};
use crate::token::{MEMORY_BITS, Token};

/// Pieces that one gathering send takes at most (UIO_MAXIOV); the rest is sent by the next.
pub(crate) const MAX_PIECES: usize = 1024;

/// Memory of owned sends that is kept for the next ones: as much as a turn may need, and none that is large.
const MAX_SPARES: usize = 256;
pub(crate) const MAX_SPARE_BYTES: usize = 4096;

/// How many spares for more than that are kept, and how long they may be: what sessions that are sealed have on their
/// way in one turn.
const MAX_LARGE_SPARES: usize = 8;
const MAX_LARGE_SPARE_BYTES: usize = 640 * 1024;

/// What an operation in flight owns.
pub(crate) enum Memory {
    /// Of a send of one piece.
    Chunks(Chunks),
    /// Of a send of several, with the message header that lists them.
    Gathered(Chunks, Fixed<Gather>),
    /// Of a send of the caller's own bytes, from an offset on.
    Owned(Vec<u8>, usize),
    /// Of a connect.
    Address(Fixed<SocketAddrAny>),
}

/// No entry; index 0 means in `user_data` that there is no memory.
const NONE: u32 = 0;

struct Entry {
    /// None when free.
    held: Option<(Token, Memory)>,
    /// Neighbours among the entries of the same slot; of a free entry, `next` is the next free one.
    previous: u32,
    next: u32,
}

/// A table of what is in flight, with the entries of each slot listed so that a token finds its own.
pub(crate) struct InFlight {
    entries: Vec<Entry>,
    free: u32,
    /// For each slot, the first of its entries.
    slots: Vec<u32>,
    gathers: Vec<Fixed<Gather>>,
    addresses: Vec<Fixed<SocketAddrAny>>,
    bytes: Vec<Vec<u8>>,
    /// Those of more than [`MAX_SPARE_BYTES`].
    large: Vec<Vec<u8>>,
}

impl InFlight {
    pub(crate) fn new() -> InFlight {
        let unused = Entry { held: None, previous: NONE, next: NONE };
        InFlight {
            entries: vec![unused],
            free: NONE,
            slots: Vec::new(),
            gathers: Vec::new(),
            addresses: Vec::new(),
            bytes: Vec::new(),
            large: Vec::new(),
        }
    }

    /// Keeps `memory` until it is taken; returns its index.
    ///
    /// # Panics
    /// at 4 million entries, more than sessions can have open descriptors for.
    pub(crate) fn insert(&mut self, token: Token, memory: Memory) -> u32 {
        let slot = token.slot() as usize;
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, NONE);
        }
        let next = self.slots[slot];
        let entry = Entry { held: Some((token, memory)), previous: NONE, next };
        let index = if self.free == NONE {
            assert!(self.entries.len() < 1 << MEMORY_BITS, "4 million sends and connects in flight");
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = mem::replace(&mut self.entries[index as usize], entry).next;
            index
        };
        if next != NONE {
            self.entries[next as usize].previous = index;
        }
        self.slots[slot] = index;
        index
    }

    /// Gives back what an operation owned that has completed.
    ///
    /// # Panics
    /// when nothing is kept under `index`, which a sound kernel never names.
    pub(crate) fn take(&mut self, index: u32) -> Memory {
        let entry = &mut self.entries[index as usize];
        let Some((token, memory)) = entry.held.take() else {
            panic!("a completion of an operation that is not in flight");
        };
        let (previous, next) = (entry.previous, entry.next);
        entry.next = mem::replace(&mut self.free, index);
        if previous == NONE {
            self.slots[token.slot() as usize] = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        memory
    }

    /// Under which index the operation named by `token` keeps its memory; 0 when it has none.
    pub(crate) fn find(&self, token: Token) -> u32 {
        let mut index = self.slots.get(token.slot() as usize).copied().unwrap_or(NONE);
        while index != NONE {
            let entry = &self.entries[index as usize];
            if entry.held.as_ref().is_some_and(|(holder, _)| *holder == token) {
                return index;
            }
            index = entry.next;
        }
        NONE
    }

    /// A message header that lists the pieces of `chunks`.
    pub(crate) fn gather(&mut self, chunks: &Chunks, pool: &Pool) -> Fixed<Gather> {
        let mut gather = self.gathers.pop().unwrap_or_else(|| Fixed::new(Gather::new()));
        gather.get_mut().list(chunks, pool);
        gather
    }

    /// A copy of `address` that stays where it is.
    pub(crate) fn address(&mut self, address: SocketAddrAny) -> Fixed<SocketAddrAny> {
        match self.addresses.pop() {
            Some(mut fixed) => {
                *fixed.get_mut() = address;
                fixed
            }
            None => Fixed::new(address),
        }
    }

    pub(crate) fn reuse_gather(&mut self, gather: Fixed<Gather>) {
        self.gathers.push(gather);
    }

    pub(crate) fn reuse_address(&mut self, address: Fixed<SocketAddrAny>) {
        self.addresses.push(address);
    }

    pub(crate) fn spare_bytes(&mut self) -> Vec<u8> {
        self.bytes.pop().unwrap_or_default()
    }

    pub(crate) fn large_spare(&mut self) -> Vec<u8> {
        self.large.pop().unwrap_or_default()
    }

    pub(crate) fn reuse_bytes(&mut self, mut bytes: Vec<u8>) {
        let capacity = bytes.capacity();
        let (spares, most) = if capacity == 0 {
            return;
        } else if capacity <= MAX_SPARE_BYTES {
            (&mut self.bytes, MAX_SPARES)
        } else if capacity <= MAX_LARGE_SPARE_BYTES {
            (&mut self.large, MAX_LARGE_SPARES)
        } else {
            return;
        };
        if spares.len() < most {
            bytes.clear();
            spares.push(bytes);
        }
    }

    /// Leaves everything where it is for ever, for a kernel that may still read it.
    pub(crate) fn leak(self) {
        mem::forget(self);
    }
}

/// What `sendmsg` reads: a header and the list of pieces that it points to.
pub(crate) struct Gather {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

impl Gather {
    fn new() -> Gather {
        // SAFETY: all zeroes is a valid msghdr: null pointers and lengths of 0.
        let header = unsafe { mem::zeroed() };
        Gather { header, pieces: Vec::new() }
    }

    fn list(&mut self, chunks: &Chunks, pool: &Pool) {
        self.pieces.clear();
        self.pieces.extend(
            chunks.slices_in(pool).take(MAX_PIECES).map(|slice| libc::iovec {
                iov_base: slice.as_ptr().cast_mut().cast(),
                iov_len: slice.len(),
            }),
        );
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len() as _;
    }
}

impl Fixed<SocketAddrAny> {
    /// For the kernel, which only reads: the address and its length.
    pub(crate) fn as_sockaddr(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        // SAFETY: the address lives as long as self, and is not written while shared.
        let address = unsafe { self.0.as_ref() };
        (address.as_ptr().cast(), address.addr_len())
    }
}

impl Fixed<Gather> {
    /// For the kernel, which only reads.
    pub(crate) fn header(&self) -> *const libc::msghdr {
        // SAFETY: the Gather lives as long as self; only an address is computed.
        unsafe { ptr::addr_of!((*self.0.as_ptr()).header) }
    }
}

/// A value that stays at its address while its owner moves. A `Box` will not do: moving one claims that nobody else
/// refers to its contents.
pub(crate) struct Fixed<T>(NonNull<T>);

impl<T> Fixed<T> {
    pub(crate) fn new(value: T) -> Fixed<T> {
        Fixed(NonNull::from(Box::leak(Box::new(value))))
    }

    /// Only before the value is given to the kernel, or after it has come back.
    fn get_mut(&mut self) -> &mut T {
        // SAFETY: allocated in `new`, freed in `drop`; self is borrowed mutably, and the spares that this is called on
        // are not with the kernel.
        unsafe { self.0.as_mut() }
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak` in `new`, dropped once, and not with the kernel (see `Ring::drop`).
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Op;

    #[test]
    fn a_token_finds_its_memory_among_those_of_its_slot() {
        let mut inflight = InFlight::new();
        let token = |slot, lane| Token::new(Op::Send, lane, slot, 1);
        let mut indices: Vec<_> = (0..60)
            .map(|n| {
                let token = token(n / 6, (n % 6) as u8);
                (token, inflight.insert(token, Memory::Owned(vec![n as u8], 0)))
            })
            .collect();
        // Take them in an order that removes heads, middles and tails, and fill the holes again.
        for round in 0..500usize {
            let (taken, index) = indices.swap_remove(round * 7 % indices.len());
            assert_eq!(inflight.find(taken), index);
            assert!(matches!(inflight.take(index), Memory::Owned(..)));
            assert_eq!(inflight.find(taken), NONE);
            for (token, index) in &indices {
                assert_eq!(inflight.find(*token), *index);
            }
            indices.push((taken, inflight.insert(taken, Memory::Owned(Vec::new(), 0))));
        }
        assert_eq!(inflight.entries.len(), 61, "entries are used again");
        assert_eq!(inflight.find(token(MAX_SLOT, 0)), NONE);
    }

    const MAX_SLOT: u32 = crate::token::MAX_SLOTS - 1;
}
