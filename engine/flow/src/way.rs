//! Which way the bytes of a direction go: through buffers of the driver's, or through a pipe, which spares the copies.
//!
//! A receive into a buffer and a send from it cost least while messages are small: one operation each, no wait for
//! readiness. From [`STREAMING_BYTES`] at once on, two splice(2) cost less than two copies. The figures are in
//! perf/RESULTS.md, "The curve".

use crate::account::WayCell;
use crate::pump::Direction;

/// A receive of so many bytes is one of a stream.
pub const STREAMING_BYTES: usize = 16 * 1024;

/// So many such receives in a row, and a direction goes through a pipe.
const STREAMING_RECEIVES: u8 = 2;

/// So many smaller ones in a row, and it goes through buffers again. More, because a stream that is spliced as it
/// arrives often shows less at once than it would to a receive that comes later.
const CALM_RECEIVES: u8 = 8;

/// How a receive is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into a buffer of the driver's, as much as it likes.
    Buffer,
    /// Into a pipe, no more than `max_bytes`, once there is something. A driver that cannot answers with
    /// `handle_pipe_refused`.
    Pipe {
        /// At least 1; `u64::MAX` for no bound.
        max_bytes: u64,
    },
}

/// When pipes are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splicing {
    /// Where the receives of a direction bring so many bytes at once, or more.
    From(usize),
    /// Never.
    Off,
}

impl Default for Splicing {
    fn default() -> Splicing {
        Splicing::From(STREAMING_BYTES)
    }
}

/// Why a receive could not go through a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// All pipes of the budget are taken.
    Budget,
    /// The kernel gave none, or one that is too small: descriptors, memory, or `fs.pipe-user-pages-soft`.
    Kernel,
    /// These sockets cannot be spliced, or the system forbids it.
    Unsupported,
}

impl Refusal {
    /// All of them, by [`Refusal::index`].
    pub const ALL: [Refusal; 3] = [Refusal::Budget, Refusal::Kernel, Refusal::Unsupported];

    /// Its place among the counters.
    pub const fn index(self) -> usize {
        match self {
            Refusal::Budget => 0,
            Refusal::Kernel => 1,
            Refusal::Unsupported => 2,
        }
    }

    /// The word used in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::Budget => "budget",
            Refusal::Kernel => "kernel",
            Refusal::Unsupported => "unsupported",
        }
    }
}

/// A change of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// A direction streams.
    ToPipe,
    /// It does no more.
    ToBuffer,
}

/// Chooses the way of one direction by what its receives bring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chooser {
    gear: Gear,
    /// A receive of so many bytes is one of a stream.
    streaming_bytes: usize,
    /// Receives in a row that speak for the other gear.
    streak: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gear {
    Buffer,
    Pipe,
    /// Buffers for ever.
    Fixed,
}

impl Chooser {
    pub(crate) fn new(splicing: Splicing) -> Chooser {
        let (gear, streaming_bytes) = match splicing {
            Splicing::From(bytes) => (Gear::Buffer, bytes),
            Splicing::Off => (Gear::Fixed, usize::MAX),
        };
        Chooser { gear, streaming_bytes, streak: 0 }
    }

    /// How the next receive is to be done when `allowance` more bytes may be forwarded.
    pub(crate) fn way(&self, allowance: u64) -> Way {
        match self.gear {
            Gear::Pipe if allowance > 0 => Way::Pipe { max_bytes: allowance },
            // What is not to be forwarded is read away.
            Gear::Pipe | Gear::Buffer | Gear::Fixed => Way::Buffer,
        }
    }

    pub(crate) fn handle_received(&mut self, bytes: usize) -> Option<Switch> {
        let is_streaming = bytes >= self.streaming_bytes;
        let (speaks_for_other, needed, other, switch) = match self.gear {
            Gear::Fixed => return None,
            Gear::Buffer => (is_streaming, STREAMING_RECEIVES, Gear::Pipe, Switch::ToPipe),
            Gear::Pipe => (!is_streaming, CALM_RECEIVES, Gear::Buffer, Switch::ToBuffer),
        };
        self.streak = if speaks_for_other { self.streak + 1 } else { 0 };
        if self.streak < needed {
            return None;
        }
        self.gear = other;
        self.streak = 0;
        Some(switch)
    }

    pub(crate) fn handle_refused(&mut self, refusal: Refusal) {
        self.streak = 0;
        self.gear = match refusal {
            // The next may be had: a direction that goes on streaming asks again.
            Refusal::Budget | Refusal::Kernel => Gear::Buffer,
            Refusal::Unsupported => Gear::Fixed,
        };
    }
}

impl WayCell {
    pub(crate) fn count_switch(&self, switch: Switch) {
        match switch {
            Switch::ToPipe => self.to_pipe.add(1),
            Switch::ToBuffer => self.to_buffer.add(1),
        }
    }

    pub(crate) fn count_piped(&self, direction: Direction, bytes: u64) {
        match direction {
            Direction::Up => self.piped_up.add(bytes),
            Direction::Down => self.piped_down.add(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Way = Way::Pipe { max_bytes: u64::MAX };

    fn streaming() -> Chooser {
        let mut chooser = Chooser::new(Splicing::default());
        assert_eq!(chooser.handle_received(STREAMING_BYTES), None, "one large message is no stream");
        assert_eq!(chooser.handle_received(STREAMING_BYTES), Some(Switch::ToPipe));
        chooser
    }

    #[test]
    fn a_stream_goes_through_a_pipe_until_it_calms_down() {
        let mut chooser = streaming();
        for _ in 1..CALM_RECEIVES {
            assert_eq!(chooser.handle_received(100), None);
            assert_eq!(chooser.way(u64::MAX), PIPE);
        }
        assert_eq!(chooser.handle_received(100), Some(Switch::ToBuffer));
        assert_eq!(chooser.way(u64::MAX), Way::Buffer);
    }

    #[test]
    fn small_messages_between_large_ones_start_the_count_anew() {
        let mut chooser = Chooser::new(Splicing::default());
        for _ in 0..100 {
            assert_eq!(chooser.handle_received(STREAMING_BYTES), None);
            assert_eq!(chooser.handle_received(STREAMING_BYTES - 1), None);
        }
        assert_eq!(chooser.way(u64::MAX), Way::Buffer);
    }

    #[test]
    fn a_refused_stream_asks_again_unless_its_sockets_cannot() {
        let mut chooser = streaming();
        chooser.handle_refused(Refusal::Budget);
        assert_eq!(chooser.way(u64::MAX), Way::Buffer);
        chooser.handle_received(STREAMING_BYTES);
        assert_eq!(chooser.handle_received(STREAMING_BYTES), Some(Switch::ToPipe));
        chooser.handle_refused(Refusal::Unsupported);
        for _ in 0..100 {
            assert_eq!(chooser.handle_received(STREAMING_BYTES), None);
        }
        assert_eq!(chooser.way(u64::MAX), Way::Buffer);
    }

    #[test]
    fn what_is_not_to_be_forwarded_goes_through_no_pipe() {
        let chooser = streaming();
        assert_eq!(chooser.way(7), Way::Pipe { max_bytes: 7 });
        assert_eq!(chooser.way(0), Way::Buffer);
    }

    #[test]
    fn splicing_that_is_off_stays_off() {
        let mut chooser = Chooser::new(Splicing::Off);
        for _ in 0..100 {
            assert_eq!(chooser.handle_received(usize::MAX), None);
        }
        assert_eq!(chooser.way(u64::MAX), Way::Buffer);
    }
}
