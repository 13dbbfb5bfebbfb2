//! Names of operations, and how they are packed into the 64 bits that the kernel hands back.
//!
//! ```text
//! user_data:  op 4 | lane 4 | generation 12 | slot 22 | memory 22
//!             `---------------- Token ----------------'
//! ```
//!
//! `memory` is the ring's own: the index of what an operation keeps alive (see `inflight`), 0 for nothing.

use std::fmt;

/// Slots are below this: sessions and listeners of one worker together.
pub const MAX_SLOTS: u32 = 1 << SLOT_BITS;
/// Lanes are below this: operations of one kind that one slot may have in flight, such as one per side.
pub const MAX_LANES: u8 = 1 << LANE_BITS;
/// Generations are below this, and wrap; they tell the tenants of one slot apart.
pub const MAX_GENERATIONS: u16 = 1 << GENERATION_BITS;

const LANE_BITS: u32 = 4;
const GENERATION_BITS: u32 = 12;
const SLOT_BITS: u32 = 22;
const OP_BITS: u32 = 4;
pub(crate) const MEMORY_BITS: u32 = 22;
const _: () = assert!(OP_BITS + LANE_BITS + GENERATION_BITS + SLOT_BITS + MEMORY_BITS == 64);

const GENERATION_SHIFT: u32 = SLOT_BITS;
const LANE_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
const OP_SHIFT: u32 = LANE_SHIFT + LANE_BITS;

/// What an operation does. A token's op must be that of the method it is given to: [`Ring::send`](crate::Ring::send)
/// takes tokens of [`Op::Send`] and panics on others, so that a cancel finds what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// [`Ring::accept_multishot`](crate::Ring::accept_multishot)
    Accept = 0,
    /// [`Ring::receive`](crate::Ring::receive)
    Receive = 1,
    /// [`Ring::send`](crate::Ring::send) and [`Ring::send_owned`](crate::Ring::send_owned)
    Send = 2,
    /// [`Ring::connect`](crate::Ring::connect)
    Connect = 3,
    /// [`Ring::poll`](crate::Ring::poll)
    Poll = 4,
}

/// Names an operation's owner; comes back with its completion.
///
/// Of the operations in flight at one time no two should bear the same token: both would complete, but a cancel
/// reaches only one of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// # Panics
    /// when `lane`, `slot` or `generation` is not below [`MAX_LANES`], [`MAX_SLOTS`] or [`MAX_GENERATIONS`].
    #[inline]
    #[must_use]
    pub const fn new(op: Op, lane: u8, slot: u32, generation: u16) -> Token {
        assert!(lane < MAX_LANES, "lane out of range");
        assert!(slot < MAX_SLOTS, "slot out of range");
        assert!(generation < MAX_GENERATIONS, "generation out of range");
        Token(
            ((op as u64) << OP_SHIFT)
                | ((lane as u64) << LANE_SHIFT)
                | ((generation as u64) << GENERATION_SHIFT)
                | slot as u64,
        )
    }

    /// What the operation does.
    #[inline]
    #[must_use]
    pub const fn op(self) -> Op {
        match (self.0 >> OP_SHIFT) as u8 {
            0 => Op::Accept,
            1 => Op::Receive,
            2 => Op::Send,
            3 => Op::Connect,
            4 => Op::Poll,
            _ => panic!("a token holds one of the ops"),
        }
    }

    /// Which of the slot's operations of this kind.
    #[inline]
    #[must_use]
    pub const fn lane(self) -> u8 {
        ((self.0 >> LANE_SHIFT) as u8) & (MAX_LANES - 1)
    }

    /// Whose operation it is.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 as u32) & (MAX_SLOTS - 1)
    }

    /// Which tenant of the slot.
    #[inline]
    #[must_use]
    pub const fn generation(self) -> u16 {
        ((self.0 >> GENERATION_SHIFT) as u16) & (MAX_GENERATIONS - 1)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{} of {}#{}", self.op(), self.lane(), self.slot(), self.generation())
    }
}

/// The completion of a cancel; nobody's but the ring's.
pub(crate) const CANCELLED: u64 = 14 << (OP_SHIFT + MEMORY_BITS);
/// The read on the waker's eventfd; nobody's but the ring's.
pub(crate) const WOKEN: u64 = 15 << (OP_SHIFT + MEMORY_BITS);

/// What a completion's `user_data` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// An operation of the caller's, and the index of the memory it kept alive, 0 for none.
    Operation(Token, u32),
    Cancel,
    Wake,
}

#[inline]
pub(crate) fn pack(token: Token, memory: u32) -> u64 {
    debug_assert!(memory < 1 << MEMORY_BITS);
    (token.0 << MEMORY_BITS) | u64::from(memory)
}

#[inline]
pub(crate) fn unpack(user_data: u64) -> Owner {
    match user_data {
        CANCELLED => Owner::Cancel,
        WOKEN => Owner::Wake,
        operation => {
            Owner::Operation(Token(operation >> MEMORY_BITS), (operation as u32) & ((1 << MEMORY_BITS) - 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_user_data_whole() {
        for op in [Op::Accept, Op::Receive, Op::Send, Op::Connect, Op::Poll] {
            for (lane, slot, generation, memory) in [
                (0, 0, 0, 0),
                (15, MAX_SLOTS - 1, MAX_GENERATIONS - 1, (1 << MEMORY_BITS) - 1),
                (3, 77, 1234, 9),
            ] {
                let token = Token::new(op, lane, slot, generation);
                assert_eq!(unpack(pack(token, memory)), Owner::Operation(token, memory));
                assert_eq!(
                    (token.op(), token.lane(), token.slot(), token.generation()),
                    (op, lane, slot, generation)
                );
            }
        }
        assert_eq!(unpack(CANCELLED), Owner::Cancel);
        assert_eq!(unpack(WOKEN), Owner::Wake);
    }

    #[test]
    #[should_panic(expected = "slot out of range")]
    fn a_slot_out_of_range_is_refused() {
        let _ = Token::new(Op::Poll, 0, MAX_SLOTS, 0);
    }
}
