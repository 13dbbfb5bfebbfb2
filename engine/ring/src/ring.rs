//! The ring: operations in, completions out.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode, squeue};

use crate::completion::{Completion, Unsent};
use crate::config::{RingConfig, RingStats};
use crate::inflight::{Fixed, InFlight, MAX_SPARE_BYTES, Memory};
use crate::pool::{self, Chunks, Pool, PoolError};
use crate::probe::{self, Capabilities};
use crate::setup::{Kernel, SetupError};
use crate::token::{self, Op, Owner, Token};
use crate::wake::Waker;
use crate::{Errno, PollEvents, SocketAddrAny};

/// IORING_RECVSEND_BUNDLE of linux/io_uring.h.
const BUNDLE: u16 = 1 << 4;
/// IORING_RECVSEND_POLL_FIRST of linux/io_uring.h.
const POLL_FIRST: u16 = 1;
/// Splicing needs O_NONBLOCK; receives and sends of the ring wait all the same.
const ACCEPT_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
/// How long a ring that is dropped waits for its operations to end. Cancelled ones end at once, so this is reached only
/// by a kernel gone astray; then their memory is left to it.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long it waits before it cancels again.
const DRAIN_PAUSE: Duration = Duration::from_millis(20);

/// An io_uring with its pool of buffers, for the thread that made it.
pub struct Ring {
    // The order matters: the io_uring goes first, then the memory that its operations point to.
    kernel: Kernel,
    pool: Pool,
    inflight: InFlight,
    /// What the read on the waker's eventfd writes to.
    wake_count: Fixed<u64>,
    waker: Waker,
    /// Operations that found the queue full and the kernel unwilling, in order.
    backlog: VecDeque<squeue::Entry>,
    receive_bundle: bool,
    /// Completions that this turn may still hand out. Those that arrive meanwhile belong to the next, so that the
    /// caller's timers get their turn.
    turn: usize,
    /// Operations of the caller's that have not ended, and the ring's own: cancels and the read on the eventfd.
    in_flight: usize,
    own_in_flight: usize,
    phase: Phase,
    turns: u64,
    submitted: u64,
    completions: u64,
    no_buffers: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Being dropped: the eventfd is not read again.
    Closing,
}

impl Ring {
    /// Makes a ring for the calling thread.
    pub fn new(config: &RingConfig) -> Result<Ring, SetupError> {
        let kernel = Kernel::new(config.entries)?;
        if let Some(time) = config.busy_poll {
            kernel.poll_busily(time)?;
        }
        let mut pool = Pool::new(config).map_err(|error| match error {
            PoolError::Config(what) => SetupError::Config(what),
            PoolError::Memory(error) => SetupError::at("the buffer pool", &error),
        })?;
        pool.register(&kernel.submitter()).map_err(|error| SetupError::at("the buffer ring", &error))?;
        let waker = Waker::new().map_err(|error| SetupError::at("the eventfd", &error))?;
        let mut ring = Ring {
            kernel,
            pool,
            inflight: InFlight::new(),
            wake_count: Fixed::new(0),
            waker,
            backlog: VecDeque::new(),
            receive_bundle: config.receive_bundle,
            turn: 0,
            in_flight: 0,
            own_in_flight: 0,
            phase: Phase::Open,
            turns: 0,
            submitted: 0,
            completions: 0,
            no_buffers: 0,
        };
        ring.read_wakes();
        Ok(ring)
    }

    /// Makes a small ring, tries it out on sockets, and drops it. An error says why io_uring cannot be used here; the
    /// capabilities are for [`RingConfig`]. Takes a few milliseconds.
    pub fn probe() -> Result<Capabilities, SetupError> {
        probe::run()
    }

    /// What this ring was told that the kernel can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        Capabilities { receive_bundle: self.receive_bundle }
    }

    /// Accepts connections, as non-blocking sockets, until it fails or is cancelled. The listener is in blocking mode (O_NONBLOCK makes some
    /// kernels answer EAGAIN).
    ///
    /// # Panics
    /// when the token's op is not [`Op::Accept`].
    pub fn accept_multishot(&mut self, token: Token, fd: BorrowedFd<'_>) {
        assert_op(token, Op::Accept);
        let entry = opcode::AcceptMulti::new(descriptor(fd)).flags(ACCEPT_FLAGS).build();
        // SAFETY: a multishot accept points to no memory.
        unsafe { self.submit(entry, token, 0) };
    }

    /// Accepts one connection, as a non-blocking socket. The listener is in blocking mode.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Accept`].
    pub fn accept(&mut self, token: Token, fd: BorrowedFd<'_>) {
        assert_op(token, Op::Accept);
        let entry =
            opcode::Accept::new(descriptor(fd), ptr::null_mut(), ptr::null_mut()).flags(ACCEPT_FLAGS).build();
        // SAFETY: an accept that does not ask for the peer's address points to no memory.
        unsafe { self.submit(entry, token, 0) };
    }

    /// Receives what is there, or waits until something is, into buffers of the pool; none is taken before.
    ///
    /// At most `max_bytes` arrive. With bundles that is rounded down to whole buffers, one at least; without them one
    /// buffer is the most.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Receive`].
    #[inline]
    pub fn receive(&mut self, token: Token, fd: BorrowedFd<'_>, max_bytes: u32) {
        self.queue_receive(token, fd, max_bytes, 0);
    }

    /// Like [`Ring::receive`], for a socket that is likely empty: waits until it is readable before the first try,
    /// which saves the kernel a futile one. Loses nothing when bytes are there after all.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Receive`].
    #[inline]
    pub fn receive_when_readable(&mut self, token: Token, fd: BorrowedFd<'_>, max_bytes: u32) {
        self.queue_receive(token, fd, max_bytes, POLL_FIRST);
    }

    /// Sends all of `chunks`, waiting for room as long as it takes.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Send`], or the chunks are another ring's.
    #[inline]
    pub fn send(&mut self, token: Token, fd: BorrowedFd<'_>, chunks: Chunks) {
        assert_op(token, Op::Send);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let mut slices = chunks.slices_in(&self.pool);
        let first = slices.next().unwrap_or_default();
        let (entry, memory) = if slices.next().is_none() {
            let send = opcode::Send::new(descriptor(fd), first.as_ptr(), first.len() as u32).flags(flags);
            (send.build(), Memory::Chunks(chunks))
        } else {
            let gather = self.inflight.gather(&chunks, &self.pool);
            let send = opcode::SendMsg::new(descriptor(fd), gather.header()).flags(flags as u32);
            (send.build(), Memory::Gathered(chunks, gather))
        };
        let index = self.inflight.insert(token, memory);
        // SAFETY: the chunks are in `inflight` until the completion, so nobody writes to their buffers; the message
        // header and its list are there too, at a fixed address.
        unsafe { self.submit(entry, token, index) };
    }

    /// Sends `bytes` from `offset` on, waiting for room as long as it takes.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Send`], or `offset` lies past the end.
    pub fn send_owned(&mut self, token: Token, fd: BorrowedFd<'_>, bytes: Vec<u8>, offset: usize) {
        assert_op(token, Op::Send);
        let unsent = &bytes[offset..];
        // The kernel takes a length of 32 bits; the rest of a longer one is handed back.
        let len = u32::try_from(unsent.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(descriptor(fd), unsent.as_ptr(), len)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        let index = self.inflight.insert(token, Memory::Owned(bytes, offset));
        // SAFETY: the Vec is in `inflight`, untouched, until the completion; moving it left its bytes where they are.
        unsafe { self.submit(entry, token, index) };
    }

    /// Memory that a send of [`Ring::send_owned`] needs no more, for the next; empty, and of no capacity when there is
    /// none.
    #[must_use]
    pub fn spare_bytes(&mut self) -> Vec<u8> {
        self.inflight.spare_bytes()
    }

    /// The same for `bytes` bytes: what is given has not room for as many, but the better chance.
    pub fn spare_bytes_for(&mut self, bytes: usize) -> Vec<u8> {
        match bytes {
            0..=MAX_SPARE_BYTES => self.inflight.spare_bytes(),
            _ => self.inflight.large_spare(),
        }
    }

    /// Takes memory back that [`Ring::spare_bytes`] gave and that was not sent.
    pub fn reuse_bytes(&mut self, bytes: Vec<u8>) {
        self.inflight.reuse_bytes(bytes);
    }

    /// Connects a socket.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Connect`].
    pub fn connect(&mut self, token: Token, fd: BorrowedFd<'_>, address: impl Into<SocketAddrAny>) {
        assert_op(token, Op::Connect);
        let address = self.inflight.address(address.into());
        let (pointer, len) = address.as_sockaddr();
        let entry = opcode::Connect::new(descriptor(fd), pointer, len).build();
        let index = self.inflight.insert(token, Memory::Address(address));
        // SAFETY: the address is in `inflight` until the completion, at a fixed address.
        unsafe { self.submit(entry, token, index) };
    }

    /// Waits once until the descriptor is ready for one of `events`, or has failed or hung up.
    ///
    /// # Panics
    /// when the token's op is not [`Op::Poll`].
    #[inline]
    pub fn poll(&mut self, token: Token, fd: BorrowedFd<'_>, events: PollEvents) {
        assert_op(token, Op::Poll);
        let entry = opcode::PollAdd::new(descriptor(fd), u32::from(events.bits())).build();
        // SAFETY: a poll points to no memory.
        unsafe { self.submit(entry, token, 0) };
    }

    /// Asks that the operation named by `victim` end. It ends exactly once either way: with `Errno::CANCELED`, or with
    /// what it had come to. Of a victim that has ended, nothing happens. The cancel itself is not seen by the caller.
    pub fn cancel(&mut self, victim: Token) {
        let victim = token::pack(victim, self.inflight.find(victim));
        self.submit_cancel(CancelBuilder::user_data(victim));
    }

    /// Gives received buffers back to the pool.
    ///
    /// # Panics
    /// when the chunks are another ring's.
    #[inline]
    pub fn recycle(&mut self, chunks: Chunks) {
        self.pool.recycle(chunks);
    }

    /// Drops the first `bytes` of `chunks`, and gives the buffers back that hold no others.
    ///
    /// # Panics
    /// when there are fewer bytes, or the chunks are another ring's.
    pub fn advance(&mut self, chunks: &mut Chunks, bytes: usize) {
        self.pool.advance(chunks, bytes);
    }

    /// Submits everything, then waits until there is a completion or `timeout` has passed (`None`: for ever). Does not
    /// sleep if completions are there already. Returns early, and with nothing, on a signal.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.turns += 1;
        self.pool.publish();
        self.submit_backlog();
        let may_sleep = self.kernel.ready() == 0 && self.backlog.is_empty();
        // With completions at hand and nothing to submit, the kernel need not be asked at all.
        if may_sleep || self.kernel.queued() > 0 {
            let entered = self.kernel.submit_and_wait(u32::from(may_sleep), timeout);
            if let Err(error) = entered {
                match Errno::from_io_error(&error) {
                    // Time is up; a signal; or the kernel wants completions read before it takes more.
                    Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                    Some(_) | None => return Err(error),
                }
            }
        }
        self.turn = self.kernel.ready();
        Ok(())
    }

    /// The next completion of this turn. Those that arrive after [`Ring::wait`] are left for the next.
    #[inline]
    pub fn next_completion(&mut self) -> Option<Completion> {
        while self.turn > 0 {
            self.turn -= 1;
            let entry = self.kernel.next_completion()?;
            self.completions += 1;
            if let Some(completion) = self.complete(&entry) {
                return Some(completion);
            }
        }
        None
    }

    /// Buffers that receives can be given now. Above 0, a receive that ended with `Errno::NOBUFS` can be tried again.
    #[inline]
    #[must_use]
    pub fn buffers_available(&self) -> usize {
        self.pool.available()
    }

    /// Operations of the caller's that have not ended.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// A handle to wake this ring by, from any thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        RingStats {
            turns: self.turns,
            submitted: self.submitted,
            completions: self.completions,
            pool_free: self.pool.available(),
            pool_low_water: self.pool.low_water(),
            no_buffers: self.no_buffers,
            backlog: self.backlog.len(),
            in_flight: self.in_flight,
            leaked_buffers: pool::leaked_buffers(),
        }
    }

    #[inline]
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Queues an operation of the caller's.
    ///
    /// # Safety
    /// As for `Kernel::push`.
    #[inline]
    unsafe fn submit(&mut self, entry: squeue::Entry, token: Token, memory: u32) {
        self.in_flight += 1;
        // SAFETY: the caller's promise.
        unsafe { self.queue(entry.user_data(token::pack(token, memory))) };
    }

    #[inline]
    fn queue_receive(&mut self, token: Token, fd: BorrowedFd<'_>, max_bytes: u32, flags: u16) {
        assert_op(token, Op::Receive);
        let buffer_bytes = self.pool.buffer_bytes();
        let (len, bundle) = if self.receive_bundle && max_bytes > buffer_bytes {
            // One byte more than whole buffers: the kernel then maps the whole ones, leaves the last, and is done with
            // those (io_ring_buffers_peek). Asked for whole buffers it would look again, and take all that waits.
            (max_bytes - max_bytes % buffer_bytes + 1, BUNDLE)
        } else {
            (max_bytes.clamp(1, buffer_bytes), 0)
        };
        let entry = opcode::Recv::new(descriptor(fd), ptr::null_mut(), len)
            .ioprio(flags | bundle)
            .buf_group(pool::GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: the memory is the pool's, chosen by the kernel from the buffer ring: nobody is lent a buffer that
        // stands there, and the pool outlives the operation.
        unsafe { self.submit(entry, token, 0) };
    }

    fn submit_cancel(&mut self, which: CancelBuilder) {
        self.own_in_flight += 1;
        let entry = opcode::AsyncCancel2::new(which).build().user_data(token::CANCELLED);
        // SAFETY: a cancel points to no memory.
        unsafe { self.queue(entry) };
    }

    fn read_wakes(&mut self) {
        self.own_in_flight += 1;
        let eventfd = descriptor(self.waker.eventfd().as_fd());
        let count = self.wake_count.as_ptr().cast();
        let entry = opcode::Read::new(eventfd, count, size_of::<u64>() as u32).build();
        // SAFETY: the count lives as long as the ring, at a fixed address; only the kernel uses it, and one read at a
        // time is in flight.
        unsafe { self.queue(entry.user_data(token::WOKEN)) };
    }

    /// # Safety
    /// As for `Kernel::push`.
    #[inline]
    unsafe fn queue(&mut self, entry: squeue::Entry) {
        self.submitted += 1;
        if !self.backlog.is_empty() || (self.kernel.is_full() && !self.submit_early()) {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise.
        let queued = unsafe { self.kernel.push(&entry) };
        debug_assert!(queued, "room was made");
    }

    /// Makes room in a full queue; false when the kernel takes nothing now.
    fn submit_early(&mut self) -> bool {
        self.pool.publish();
        self.kernel.submit().is_ok_and(|submitted| submitted > 0)
    }

    fn submit_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the memory of operations in the backlog is kept like that of those in the queue.
            if unsafe { self.kernel.push(entry) } {
                self.backlog.pop_front();
            } else if !self.submit_early() {
                return;
            }
        }
    }

    #[inline]
    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (token, memory) = match token::unpack(entry.user_data()) {
            Owner::Operation(token, memory) => (token, memory),
            Owner::Cancel => {
                self.own_in_flight -= 1;
                return None;
            }
            Owner::Wake => return self.complete_wake(),
        };
        let more = cqueue::more(entry.flags());
        if !more {
            self.in_flight -= 1;
        }
        let result = outcome(entry.result());
        Some(match token.op() {
            Op::Accept => Completion::Accepted { token, result: result.map(adopt), more },
            Op::Receive => {
                let pending = cqueue::sock_nonempty(entry.flags());
                Completion::Received { token, result: self.complete_receive(entry, result), pending }
            }
            Op::Send => {
                let memory = self.inflight.take(memory);
                Completion::Sent { token, result, rest: self.complete_send(memory, result) }
            }
            Op::Connect => {
                if let Memory::Address(address) = self.inflight.take(memory) {
                    self.inflight.reuse_address(address);
                }
                Completion::Connected { token, result: result.map(|_| ()) }
            }
            Op::Poll => {
                let result = result.map(|events| PollEvents::from_bits_retain(events as u16));
                Completion::Polled { token, result }
            }
        })
    }

    #[inline]
    fn complete_receive(
        &mut self,
        entry: &cqueue::Entry,
        result: Result<usize, Errno>,
    ) -> Result<Chunks, Errno> {
        let len = result.unwrap_or(0);
        let chunks = match cqueue::buffer_select(entry.flags()) {
            Some(first) => self.pool.take(first, len as u32),
            None => {
                assert!(len == 0, "bytes received into no buffer");
                self.pool.empty()
            }
        };
        match result {
            Ok(1..) => return Ok(chunks),
            Ok(0) | Err(_) => self.pool.recycle(chunks),
        }
        if result == Err(Errno::NOBUFS) {
            self.no_buffers += 1;
        }
        result.map(|_| self.pool.empty())
    }

    #[inline]
    fn complete_send(&mut self, memory: Memory, result: Result<usize, Errno>) -> Option<Unsent> {
        let sent = result.unwrap_or(0);
        let mut chunks = match memory {
            Memory::Chunks(chunks) => chunks,
            Memory::Gathered(chunks, gather) => {
                self.inflight.reuse_gather(gather);
                chunks
            }
            Memory::Owned(bytes, offset) => {
                let offset = offset + sent;
                if offset < bytes.len() {
                    return Some(Unsent::Owned { bytes, offset });
                }
                self.inflight.reuse_bytes(bytes);
                return None;
            }
            Memory::Address(_) => unreachable!("a send keeps bytes"),
        };
        if sent == chunks.len() {
            self.pool.recycle(chunks);
            return None;
        }
        self.pool.advance(&mut chunks, sent);
        Some(Unsent::Chunks(chunks))
    }

    fn complete_wake(&mut self) -> Option<Completion> {
        self.own_in_flight -= 1;
        if self.phase == Phase::Closing {
            return None;
        }
        self.waker.acknowledge();
        self.read_wakes();
        Some(Completion::Woken)
    }

    /// Ends all operations; false when some have not within the limit.
    fn drain(&mut self) -> bool {
        self.phase = Phase::Closing;
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.in_flight + self.own_in_flight > 0 {
            if Instant::now() > deadline {
                return false;
            }
            // Each time again: operations of the backlog were not there to be cancelled the time before.
            self.submit_cancel(CancelBuilder::any());
            if self.wait(Some(DRAIN_PAUSE)).is_err() {
                return false;
            }
            while let Some(completion) = self.next_completion() {
                self.discard(completion);
            }
        }
        true
    }

    fn discard(&mut self, completion: Completion) {
        match completion {
            Completion::Received { result: Ok(chunks), .. }
            | Completion::Sent { rest: Some(Unsent::Chunks(chunks)), .. } => self.recycle(chunks),
            Completion::Accepted { .. }
            | Completion::Received { .. }
            | Completion::Sent { .. }
            | Completion::Connected { .. }
            | Completion::Polled { .. }
            | Completion::Woken => {}
        }
    }
}

impl Drop for Ring {
    /// Ends every operation before the memory goes. Closing an io_uring does not wait for its operations: the kernel
    /// ends them later, and may still write to their buffers until it has. So they are cancelled and their completions
    /// read; and if the kernel does not give all of them back, what they point to is leaked, on purpose.
    fn drop(&mut self) {
        if self.drain() {
            return;
        }
        self.pool.leak();
        mem::replace(&mut self.inflight, InFlight::new()).leak();
        mem::forget(mem::replace(&mut self.wake_count, Fixed::new(0)));
    }
}

#[inline]
fn assert_op(token: Token, op: Op) {
    assert!(token.op() == op, "{token:?} given to {op:?}");
}

#[inline]
fn descriptor(fd: BorrowedFd<'_>) -> Fd {
    Fd(fd.as_raw_fd())
}

/// The result field of a completion: a count, or an error negated.
#[inline]
fn outcome(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.wrapping_neg()))
}

fn adopt(accepted: usize) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and tells of it once.
    unsafe { OwnedFd::from_raw_fd(accepted as i32) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_backlog_is_submitted_first_and_in_order() {
        // The kernel seldom refuses, so the backlog is made by hand: it is longer than the queue, and a send after it
        // must not overtake.
        let mut ring = Ring::new(&RingConfig { entries: 4, ..RingConfig::default() }).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        ring.wait(Some(Duration::ZERO)).unwrap();
        // A cancel of nothing: the ring swallows its completion.
        ring.own_in_flight += 1;
        let parked = opcode::AsyncCancel::new(token::CANCELLED).build().user_data(token::CANCELLED);
        ring.backlog.push_back(parked);
        for slot in 0..50 {
            ring.send_owned(Token::new(Op::Send, 0, slot, 0), near.as_fd(), vec![slot as u8], 0);
        }
        assert_eq!(ring.stats().backlog, 51);
        let mut ended = 0;
        while ended < 50 {
            ring.wait(Some(Duration::from_secs(1))).unwrap();
            while let Some(completion) = ring.next_completion() {
                assert!(matches!(completion, Completion::Sent { result: Ok(1), rest: None, .. }));
                ended += 1;
            }
        }
        assert_eq!((ring.stats().backlog, ring.in_flight()), (0, 0));
        drop(near);
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        assert_eq!(all, (0..50).collect::<Vec<u8>>());
    }
}
