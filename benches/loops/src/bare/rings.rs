//! Loops on io_uring, by the safe layer that the engine uses.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use ringweir_ring::{Chunks, Completion, Errno, Op, PollEvents, Ring, RingConfig, Token};
use rustix::net::{Shutdown, shutdown};

use crate::lane::{BUFFER_BYTES, Lane, Wait};
use crate::linux::upstream;

const CLIENT: usize = 0;
const UPSTREAM: usize = 1;

struct Pair {
    sockets: [OwnedFd; 2],
    /// By what they lead to; of the loop that splices.
    lanes: Option<[Lane; 2]>,
    over: [bool; 2],
    is_connected: bool,
    /// What the client said before.
    early: Option<Chunks>,
    in_flight: u32,
    has_failed: bool,
}

struct Loop {
    ring: Ring,
    to: SocketAddr,
    splices: bool,
    pairs: Vec<Option<Pair>>,
    free: Vec<u32>,
    buffer: Vec<u8>,
}

pub(crate) fn copy(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    run(listener, to, false)
}

pub(crate) fn splice(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    run(listener, to, true)
}

fn run(listener: &TcpListener, to: SocketAddr, splices: bool) -> io::Result<()> {
    let receive_bundle = Ring::probe().map_err(io::Error::other)?.receive_bundle;
    let config = RingConfig { receive_bundle, ..RingConfig::default() };
    let ring = Ring::new(&config).map_err(io::Error::other)?;
    let mut state = Loop { ring, to, splices, pairs: Vec::new(), free: Vec::new(), buffer: Vec::new() };
    state.ring.accept_multishot(Token::new(Op::Accept, 0, 0, 0), listener.as_fd());
    loop {
        state.ring.wait(None)?;
        while let Some(completion) = state.ring.next_completion() {
            match completion {
                Completion::Accepted { token, result, more } => {
                    if !more {
                        state.ring.accept_multishot(token, listener.as_fd());
                    }
                    state.begin(result?)?;
                }
                Completion::Woken => {}
                Completion::Received { .. }
                | Completion::Sent { .. }
                | Completion::Connected { .. }
                | Completion::Polled { .. } => state.handle(completion),
            }
        }
    }
}

impl Loop {
    fn begin(&mut self, client: OwnedFd) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() as u32 - 1
        });
        let lanes = if self.splices { Some([Lane::new(true)?, Lane::new(true)?]) } else { None };
        let sockets = [client, upstream(self.to)?];
        let (over, is_connected, early, has_failed) = ([false; 2], false, None, false);
        let pair = Pair { sockets, lanes, over, is_connected, early, in_flight: 1, has_failed };
        let pair = self.pairs[slot as usize].insert(pair);
        self.ring.connect(Token::new(Op::Connect, 0, slot, 0), pair.sockets[UPSTREAM].as_fd(), self.to);
        if !self.splices {
            pair.receive(&mut self.ring, slot, CLIENT);
        }
        Ok(())
    }

    fn handle(&mut self, completion: Completion) {
        let (Completion::Received { token, .. }
        | Completion::Sent { token, .. }
        | Completion::Connected { token, .. }
        | Completion::Polled { token, .. }) = completion
        else {
            return;
        };
        let slot = token.slot();
        let Some(pair) = &mut self.pairs[slot as usize] else { return };
        pair.in_flight -= 1;
        let done = pair.advance(completion, slot, &mut self.ring, &mut self.buffer);
        if done.is_err() && !pair.has_failed {
            pair.has_failed = true;
            for socket in &pair.sockets {
                // Ends what is in flight.
                let _ = shutdown(socket, Shutdown::Both);
            }
        }
        if pair.in_flight == 0 && (pair.has_failed || pair.over == [true; 2]) {
            if let Some(early) = pair.early.take() {
                self.ring.recycle(early);
            }
            self.pairs[slot as usize] = None;
            self.free.push(slot);
        }
    }
}

impl Pair {
    fn receive(&mut self, ring: &mut Ring, slot: u32, side: usize) {
        self.in_flight += 1;
        let token = Token::new(Op::Receive, side as u8, slot, 0);
        ring.receive(token, self.sockets[side].as_fd(), BUFFER_BYTES as u32);
    }

    fn send(&mut self, ring: &mut Ring, slot: u32, side: usize, chunks: Chunks) {
        self.in_flight += 1;
        ring.send(Token::new(Op::Send, side as u8, slot, 0), self.sockets[side].as_fd(), chunks);
    }

    /// Waits until a side is ready for an event: in, to be forwarded from it; out, to it.
    fn poll(&mut self, ring: &mut Ring, slot: u32, side: usize, events: PollEvents) {
        self.in_flight += 1;
        let lane = side as u8 + if events == PollEvents::OUT { 2 } else { 0 };
        ring.poll(Token::new(Op::Poll, lane, slot, 0), self.sockets[side].as_fd(), events);
    }

    fn advance(
        &mut self,
        completion: Completion,
        slot: u32,
        ring: &mut Ring,
        buffer: &mut [u8],
    ) -> Result<(), Errno> {
        match completion {
            Completion::Connected { result, .. } => {
                result?;
                self.is_connected = true;
                if self.lanes.is_some() {
                    self.poll(ring, slot, CLIENT, PollEvents::IN);
                    self.poll(ring, slot, UPSTREAM, PollEvents::IN);
                    return Ok(());
                }
                self.receive(ring, slot, UPSTREAM);
                if self.over[UPSTREAM] {
                    let _ = shutdown(&self.sockets[UPSTREAM], Shutdown::Write);
                }
                if let Some(early) = self.early.take() {
                    self.send(ring, slot, UPSTREAM, early);
                }
            }
            Completion::Received { token, result, .. } => {
                let (from, to) = (usize::from(token.lane()), 1 - usize::from(token.lane()));
                let chunks = match result {
                    Err(Errno::NOBUFS) => {
                        self.receive(ring, slot, from);
                        return Ok(());
                    }
                    result => result?,
                };
                if chunks.is_empty() {
                    ring.recycle(chunks);
                    self.over[to] = true;
                    if to == CLIENT || self.is_connected {
                        let _ = shutdown(&self.sockets[to], Shutdown::Write);
                    }
                } else if to == UPSTREAM && !self.is_connected {
                    self.early = Some(chunks);
                } else {
                    self.send(ring, slot, to, chunks);
                }
            }
            Completion::Sent { token, result, rest } => {
                let side = usize::from(token.lane());
                if let Some(rest) = rest {
                    if let ringweir_ring::Unsent::Chunks(rest) = rest {
                        ring.recycle(rest);
                    }
                    return Err(result.err().unwrap_or(Errno::PIPE));
                }
                result?;
                self.receive(ring, slot, 1 - side);
            }
            Completion::Polled { token, result } => {
                result?;
                let lane = usize::from(token.lane());
                let side = if lane < 2 { 1 - lane } else { lane - 2 };
                let Some(lanes) = &mut self.lanes else { return Ok(()) };
                match lanes[side].pump(&self.sockets[1 - side], &self.sockets[side], buffer, false)? {
                    Wait::Source => self.poll(ring, slot, 1 - side, PollEvents::IN),
                    Wait::Sink => self.poll(ring, slot, side, PollEvents::OUT),
                    Wait::Over => self.over[side] = true,
                }
            }
            Completion::Accepted { .. } | Completion::Woken => {}
        }
        Ok(())
    }
}
