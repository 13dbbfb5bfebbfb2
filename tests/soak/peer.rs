//! One end of a session: a writer that follows its moves and a reader that checks every byte, side by side.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::script::{Abort, How, Leave, Move, Part, Reading, When};
use crate::socket::{MAX_READ_BYTES, Socket};
use crate::stream::Stream;

/// What one end has done so far; others may look.
pub(crate) struct Tally {
    pub(crate) sent: Cell<u64>,
    pub(crate) received: Cell<u64>,
    pub(crate) writing: Cell<Writing>,
    pub(crate) reading: Cell<ReadState>,
    /// A write met an error: a socket tells of a reset once, to the reader or to the writer.
    pub(crate) broken: Cell<Option<io::ErrorKind>>,
    pub(crate) moved_at: Cell<Instant>,
    pub(crate) ports: Cell<Option<(u16, u16)>>,
    pub(crate) is_over: Cell<bool>,
    changed: Notify,
}

/// What a writer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    Shaking,
    Move(usize),
    /// It has ended its direction in order, all bytes written.
    Ended,
    /// Its end was left before.
    Left,
}

/// What a reader is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadState {
    Open,
    /// An orderly end of the stream.
    Ended,
    Failed(io::ErrorKind),
}

/// Why an end does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// As its script says.
    Abort(How),
    /// The connection failed.
    Broken,
    /// What came is not what was sent.
    Wrong(String),
}

/// All that one end needs.
pub(crate) struct Peer<'a> {
    pub(crate) socket: Socket,
    pub(crate) part: &'a Part,
    pub(crate) tally: &'a Tally,
    pub(crate) outgoing: Stream,
    pub(crate) incoming: Stream,
    pub(crate) abort: Option<Abort>,
    pub(crate) rng: Rng,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            sent: Cell::new(0),
            received: Cell::new(0),
            writing: Cell::new(Writing::Shaking),
            reading: Cell::new(ReadState::Open),
            broken: Cell::new(None),
            moved_at: Cell::new(Instant::now()),
            ports: Cell::new(None),
            is_over: Cell::new(false),
            changed: Notify::new(),
        }
    }

    fn add(&self, counter: &Cell<u64>, bytes: usize) {
        counter.set(counter.get() + bytes as u64);
        self.moved_at.set(Instant::now());
    }

    fn end_reading(&self, state: ReadState) {
        self.reading.set(state);
        self.changed.notify_one();
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent {} ({:?}), received {} ({:?}), write error {:?}, ports {:?}, over {}, still for {:?}",
            self.sent.get(),
            self.writing.get(),
            self.received.get(),
            self.reading.get(),
            self.broken.get(),
            self.ports.get(),
            self.is_over.get(),
            self.moved_at.get().elapsed(),
        )
    }
}

impl Peer<'_> {
    /// Plays to the end, and closes.
    pub(crate) async fn play(mut self, leave: Leave) -> Result<(), Stop> {
        let mut rng = self.rng.fork();
        let result = match leave {
            Leave::Last => tokio::try_join!(self.write(&mut rng, leave), self.read()).map(|_| ()),
            Leave::AtOnce => self.write(&mut rng, leave).await,
        };
        if let Err(Stop::Abort(How::Reset)) = result {
            self.socket.arm_reset();
        }
        if self.tally.writing.get() != Writing::Ended {
            self.tally.writing.set(Writing::Left);
        }
        result
    }

    async fn write(&self, rng: &mut Rng, leave: Leave) -> Result<(), Stop> {
        for (index, step) in self.part.moves.iter().enumerate() {
            self.tally.writing.set(Writing::Move(index));
            match *step {
                Move::Write { bytes, least_bytes, most_bytes, pause_ms } => {
                    let mut left = bytes;
                    while left > 0 {
                        let size = rng.usize(least_bytes..=most_bytes).min(left as usize);
                        if self.write_piece(size).await?.is_err() {
                            return Ok(());
                        }
                        left -= size as u64;
                        pause(if pause_ms > 0 { rng.u64(..=pause_ms) } else { 0 }).await;
                    }
                }
                Move::Pause { pause_ms } => pause(pause_ms).await,
                Move::Await { bytes } => self.wait(|tally| tally.received.get() >= bytes).await,
                Move::AwaitEnd => self.wait(|_| false).await,
            }
        }
        self.look_at_abort()?;
        // All is written: from here on the other side may see the end.
        self.tally.writing.set(Writing::Ended);
        if leave == Leave::Last && self.socket.shut_down().is_err() {
            self.tally.broken.set(Some(io::ErrorKind::NotConnected));
        }
        Ok(())
    }

    /// Writes so many bytes. The connection may fail; then the reader sees to the end.
    async fn write_piece(&self, bytes: usize) -> Result<Result<(), ()>, Stop> {
        let mut piece = self.outgoing.at(self.tally.sent.get(), bytes);
        while !piece.is_empty() {
            self.look_at_abort()?;
            let room = self.room(|when| match when {
                When::Sent(at) => Some(at - self.tally.sent.get()),
                When::Received(_) => None,
            });
            match self.socket.write(&piece[..piece.len().min(room)]).await {
                Ok(written) => {
                    self.tally.add(&self.tally.sent, written);
                    piece = &piece[written..];
                }
                Err(error) => {
                    self.tally.broken.set(Some(error.kind()));
                    return Ok(Err(()));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Waits until something holds, or nothing more can come.
    async fn wait(&self, holds: impl Fn(&Tally) -> bool) {
        while self.tally.reading.get() == ReadState::Open && !holds(self.tally) {
            self.tally.changed.notified().await;
        }
    }

    async fn read(&self) -> Result<(), Stop> {
        let mut readings = self.part.readings.iter().peekable();
        loop {
            self.look_at_abort()?;
            let position = self.tally.received.get();
            while readings.next_if(|reading| reading.until <= position).is_some() {}
            let reading = readings.peek().copied().copied().unwrap_or(Reading {
                until: u64::MAX,
                most_bytes: MAX_READ_BYTES,
                pause_ms: 0,
            });
            pause(reading.pause_ms).await;
            let room = self.room(|when| match when {
                When::Received(at) => Some(at - position),
                When::Sent(_) => None,
            });
            let most =
                room.min(reading.most_bytes).min((reading.until - position).try_into().unwrap_or(usize::MAX));
            if !self.read_piece(position, most).await? {
                return Ok(());
            }
        }
    }

    /// Reads what is there; whether more may come.
    async fn read_piece(&self, position: u64, most_bytes: usize) -> Result<bool, Stop> {
        let result = self.socket.read_with(most_bytes, |bytes| self.incoming.check(position, bytes)).await;
        match result {
            Ok((0, _)) => {
                self.tally.end_reading(ReadState::Ended);
                Ok(false)
            }
            Ok((bytes, Ok(()))) => {
                self.tally.add(&self.tally.received, bytes);
                self.tally.changed.notify_one();
                Ok(true)
            }
            Ok((_, Err(fault))) => Err(Stop::Wrong(fault)),
            Err(error) => {
                self.tally.end_reading(ReadState::Failed(error.kind()));
                Err(Stop::Broken)
            }
        }
    }

    /// How far it may go before its abort.
    fn room(&self, left: impl Fn(When) -> Option<u64>) -> usize {
        self.abort
            .and_then(|abort| left(abort.when))
            .map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn look_at_abort(&self) -> Result<(), Stop> {
        let is_due = |when| match when {
            When::Sent(at) => self.tally.sent.get() >= at,
            When::Received(at) => self.tally.received.get() >= at,
        };
        match self.abort {
            Some(abort) if is_due(abort.when) => Err(Stop::Abort(abort.how)),
            Some(_) | None => Ok(()),
        }
    }
}

async fn pause(pause_ms: u64) {
    if pause_ms > 0 {
        sleep(Duration::from_millis(pause_ms)).await;
    }
}
