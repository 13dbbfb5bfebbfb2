//! Loops that epoll tells when a socket is ready.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, connect};

use crate::lane::{BUFFER_BYTES, Lane, Wait};
use crate::linux::upstream;

const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 512;

struct Pair {
    /// Client and upstream.
    sockets: [OwnedFd; 2],
    /// By what they lead to.
    lanes: [Lane; 2],
    over: [bool; 2],
    /// Whether lanes have bytes that their sinks had no room for.
    blocked: [bool; 2],
    /// Whether sides have said their last: there is no other event for what is unread.
    ended: [bool; 2],
}

pub(crate) fn run(listener: &TcpListener, to: SocketAddr, splices: bool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    let (mut pairs, mut free): (Vec<Option<Pair>>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let data = { event.data }.u64();
            if data == LISTENER {
                while let Some(client) = accept(listener)? {
                    let index = free.pop().unwrap_or_else(|| {
                        pairs.push(None);
                        pairs.len() - 1
                    });
                    pairs[index] = Some(Pair::new(client, to, &epoll, index, splices)?);
                }
                continue;
            }
            let (index, side) = ((data / 2) as usize, (data % 2) as usize);
            // Events of a session that has ended may still be on their way.
            let Some(pair) = &mut pairs[index] else { continue };
            if pair.handle(side, event.flags, &mut buffer).is_err() || pair.over == [true; 2] {
                pairs[index] = None;
                free.push(index);
            }
        }
    }
}

fn accept(listener: &TcpListener) -> io::Result<Option<OwnedFd>> {
    match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(client) => Ok(Some(client)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Pair {
    fn new(
        client: OwnedFd,
        to: SocketAddr,
        epoll: &OwnedFd,
        index: usize,
        splices: bool,
    ) -> io::Result<Pair> {
        let upstream = upstream(to)?;
        match connect(&upstream, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let sockets = [client, upstream];
        for (side, socket) in sockets.iter().enumerate() {
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(epoll, socket, EventData::new_u64((index * 2 + side) as u64), flags)?;
        }
        let lanes = [Lane::new(splices)?, Lane::new(splices)?];
        Ok(Pair { sockets, lanes, over: [false; 2], blocked: [false; 2], ended: [false; 2] })
    }

    fn handle(&mut self, side: usize, flags: EventFlags, buffer: &mut [u8]) -> rustix::io::Result<()> {
        self.ended[side] |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.pump(1 - side, buffer)?;
        }
        if flags.contains(EventFlags::OUT) && self.blocked[side] {
            self.pump(side, buffer)?;
        }
        Ok(())
    }

    /// Forwards to a side.
    fn pump(&mut self, side: usize, buffer: &mut [u8]) -> rustix::io::Result<()> {
        if self.over[side] {
            return Ok(());
        }
        let (from, to) = (&self.sockets[1 - side], &self.sockets[side]);
        let to_the_last = match &self.lanes[side] {
            Lane::Copies(_) => self.ended[1 - side],
            // A full pipe looks like an empty source.
            Lane::Splices { .. } => true,
        };
        let wait = self.lanes[side].pump(from, to, buffer, to_the_last)?;
        self.over[side] = wait == Wait::Over;
        self.blocked[side] = wait == Wait::Sink;
        Ok(())
    }
}
