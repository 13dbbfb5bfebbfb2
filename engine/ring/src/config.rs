//! Sizes and counters of a ring.

use std::time::Duration;

/// Sizes of a ring.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Operations that can be queued before they must be submitted; more are submitted early. The kernel rounds it up
    /// to a power of two, and down to 32768.
    pub entries: u32,
    /// Buffers in the pool: what sends in flight hold, and what receives get.
    pub buffers: u16,
    /// Bytes of each; a multiple of 64.
    pub buffer_bytes: u32,
    /// How many of the pool's buffers stand ready in the kernel at a time: what one turn can receive. A power of two.
    /// Fewer means that the same warm ones come round sooner.
    pub ring_buffers: u16,
    /// Whether receives may fill several buffers at once: what [`Ring::probe`](crate::Ring::probe)
    /// has found.
    pub receive_bundle: bool,
    /// How long [`Ring::wait`](crate::Ring::wait) polls the network devices that its sockets receive from before it
    /// sleeps (IORING_REGISTER_NAPI, Linux 6.9), in whole microseconds; `None` for not at all.
    pub busy_poll: Option<Duration>,
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig {
            entries: 1024,
            buffers: 1024,
            buffer_bytes: 16 << 10,
            ring_buffers: 256,
            receive_bundle: false,
            busy_poll: None,
        }
    }
}

/// Counters of a ring, since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingStats {
    /// Calls of [`Ring::wait`](crate::Ring::wait).
    pub turns: u64,
    /// Operations submitted, the ring's own included.
    pub submitted: u64,
    /// Completions read, the ring's own included.
    pub completions: u64,
    /// Buffers not held by any [`Chunks`](crate::Chunks).
    pub pool_free: usize,
    /// The least that `pool_free` has been.
    pub pool_low_water: usize,
    /// Receives that found no buffer.
    pub no_buffers: u64,
    /// Operations that the kernel has not had room for yet.
    pub backlog: usize,
    /// Operations of the caller's that have not ended.
    pub in_flight: usize,
    /// Buffers lost by dropping a [`Chunks`](crate::Chunks), in the whole process.
    pub leaked_buffers: u64,
}
