//! Trying out what this kernel can do, on sockets, because version numbers lie: fixes are backported, and faults too.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::completion::Completion;
use crate::config::RingConfig;
use crate::pool::Chunks;
use crate::ring::Ring;
use crate::setup::SetupError;
use crate::{Errno, Op, Token};

/// Small buffers, and few of them, so that little data goes round the buffer ring many times.
const BUFFER_BYTES: u32 = 1024;
const RING_BUFFERS: u16 = 32;
/// More than the buffer ring, so that its buffers change places.
const BUFFERS: u16 = 48;
/// One receive may take a quarter of the buffer ring.
const MAX_BYTES: u32 = 8 * BUFFER_BYTES;
/// Enough for the two streams to go round the buffer ring more than ten times.
const ROUNDS: usize = 48;
/// What is written in a round: less than a buffer, just one, a part more, and more than one receive may take.
const SIZES: [usize; 7] = [100, 1024, 1500, 8192, 12_000, 5000, 4096];
/// Chunks of one stream held back, so that buffers return out of order.
const HELD: usize = 3;
/// Loopback answers within microseconds; this is for a machine in trouble.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was found to work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// One receive can fill several buffers, in order, and no more than it may (IORING_RECVSEND_BUNDLE). Kernels before
    /// 6.10 refuse it, and some after that return buffers in the wrong order.
    pub receive_bundle: bool,
}

/// See [`Ring::probe`].
pub(crate) fn run() -> Result<Capabilities, SetupError> {
    let config = RingConfig {
        entries: 8,
        buffers: BUFFERS,
        buffer_bytes: BUFFER_BYTES,
        ring_buffers: RING_BUFFERS,
        receive_bundle: true,
        busy_poll: None,
    };
    let mut ring = Ring::new(&RingConfig { receive_bundle: false, ..config.clone() })?;
    send_and_receive(&mut ring).map_err(SetupError::SelfTest)?;
    drop(ring);
    let mut ring = Ring::new(&config)?;
    Ok(Capabilities { receive_bundle: bundles_keep_order(&mut ring).is_some() })
}

fn send_and_receive(ring: &mut Ring) -> Result<(), &'static str> {
    let (ours, theirs) = UnixStream::pair().map_err(|_| "no pair of unix sockets")?;
    // As the sockets of sessions are; the receive is to wait all the same.
    ours.set_nonblocking(true).map_err(|_| "a socket cannot be made non-blocking")?;
    let words = b"in at one end, out at the other";
    ring.receive(Token::new(Op::Receive, 0, 0, 0), ours.as_fd(), BUFFER_BYTES);
    ring.send_owned(Token::new(Op::Send, 0, 0, 0), theirs.as_fd(), words.to_vec(), 0);
    let mut received = Vec::new();
    let mut ended = 0;
    while ended < 2 {
        ring.wait(Some(PATIENCE)).map_err(|_| "io_uring_enter fails")?;
        let before = ended;
        while let Some(completion) = ring.next_completion() {
            match completion {
                Completion::Received { result, .. } => {
                    let chunks = result.map_err(|_| "a receive fails")?;
                    chunks.copy_to(ring, &mut received);
                    ring.recycle(chunks);
                }
                Completion::Sent { result, .. } => drop(result.map_err(|_| "a send fails")?),
                Completion::Accepted { .. }
                | Completion::Connected { .. }
                | Completion::Polled { .. }
                | Completion::Woken => return Err("a completion that nobody asked for"),
            }
            ended += 1;
        }
        if ended == before {
            return Err("an operation does not complete");
        }
    }
    if received == words { Ok(()) } else { Err("bytes arrive changed") }
}

/// None on any doubt.
fn bundles_keep_order(ring: &mut Ring) -> Option<()> {
    let mut streams = [Stream::open()?, Stream::open()?];
    let outcome = run_streams(ring, &mut streams);
    streams.iter_mut().for_each(|stream| stream.let_go(ring));
    outcome
}

/// Two streams of known bytes through bundles, their completions mixed.
fn run_streams(ring: &mut Ring, streams: &mut [Stream; 2]) -> Option<()> {
    let mut bundles = 0;
    for round in 0..ROUNDS {
        // Every third time the receives wait for the bytes instead of finding them.
        let waiting = round % 3 == 0;
        if waiting {
            (0..streams.len()).for_each(|slot| streams[slot].receive(ring, slot));
            ring.wait(Some(Duration::ZERO)).ok()?;
        }
        for (slot, stream) in streams.iter_mut().enumerate() {
            stream.write(SIZES[(round * 2 + slot * 3) % SIZES.len()])?;
            if !waiting {
                stream.receive(ring, slot);
            }
        }
        while streams.iter().any(|stream| stream.read < stream.written) {
            bundles += receive_turn(ring, streams, round)?;
        }
    }
    // Bundles that never hold more than one buffer would keep order, too.
    (bundles >= ROUNDS).then_some(())
}

/// One turn; how many completions held several buffers.
fn receive_turn(ring: &mut Ring, streams: &mut [Stream; 2], round: usize) -> Option<usize> {
    let mut bundles = 0;
    let before = ring.stats().completions;
    ring.wait(Some(PATIENCE)).ok()?;
    while let Some(completion) = ring.next_completion() {
        let Completion::Received { token, result, .. } = completion else { return None };
        let slot = token.slot() as usize;
        let stream = streams.get_mut(slot)?;
        match result {
            Ok(chunks) => {
                bundles += usize::from(chunks.buffers() > 1);
                stream.handle_received(ring, chunks, round)?;
            }
            Err(Errno::NOBUFS) => streams.iter_mut().for_each(|stream| stream.let_go(ring)),
            Err(_) => return None,
        }
        let stream = streams.get_mut(slot)?;
        if stream.read < stream.written {
            stream.receive(ring, slot);
        }
    }
    (ring.stats().completions > before).then_some(bundles)
}

struct Stream {
    writer: TcpStream,
    reader: TcpStream,
    written: usize,
    read: usize,
    held: VecDeque<Chunks>,
}

impl Stream {
    fn open() -> Option<Stream> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let writer = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        let (reader, peer) = listener.accept().ok()?;
        writer.set_nonblocking(true).ok()?;
        writer.set_nodelay(true).ok()?;
        // Whoever else connected to our port just then is not to be tested on.
        (peer == writer.local_addr().ok()?).then_some(())?;
        Some(Stream { writer, reader, written: 0, read: 0, held: VecDeque::new() })
    }

    fn write(&mut self, bytes: usize) -> Option<()> {
        let pattern: Vec<u8> = (self.written..self.written + bytes).map(pattern).collect();
        match self.writer.write(&pattern) {
            Ok(written) => self.written += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        Some(())
    }

    fn receive(&mut self, ring: &mut Ring, slot: usize) {
        ring.receive(Token::new(Op::Receive, 0, slot as u32, 0), self.reader.as_fd(), MAX_BYTES);
    }

    fn handle_received(&mut self, ring: &mut Ring, chunks: Chunks, round: usize) -> Option<()> {
        let expected = self.read..self.read + chunks.len();
        let bytes = chunks.slices(ring).flatten().copied();
        let sound = (1..=MAX_BYTES as usize).contains(&chunks.len()) && bytes.eq(expected.map(pattern));
        self.read += chunks.len();
        self.held.push_back(chunks);
        if self.held.len() > HELD {
            // Oldest first or newest first, by turns.
            let chunks = if round.is_multiple_of(2) { self.held.pop_front() } else { self.held.pop_back() };
            ring.recycle(chunks?);
        }
        sound.then_some(())
    }

    fn let_go(&mut self, ring: &mut Ring) {
        self.held.drain(..).for_each(|chunks| ring.recycle(chunks));
    }
}

/// The byte at a position of the stream; of no period that buffers could hide in.
fn pattern(position: usize) -> u8 {
    ((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_agrees_with_the_feature_flags_of_the_kernel() {
        // Where the kernel knows no bundles, the self-test finds none; where it does, this tells how it fared.
        let Ok(capabilities) = run() else { return };
        let knows = io_uring::IoUring::new(2).unwrap().params().is_feature_recvsend_bundle();
        assert!(knows || !capabilities.receive_bundle);
    }
}
