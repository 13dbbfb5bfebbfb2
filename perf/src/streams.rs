//! Bulk: so many streams in one direction, as fast as they go.

use crate::backend::{SINK, SOURCE};
use crate::drive::{Acknowledged, Context, Load};
use crate::error::LoadError;
use crate::exchange::Broken;
use crate::net::{Transfer, receive, send};
use crate::pace::Pace;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::net::{Shutdown, shutdown};
use std::time::{Duration, Instant};

/// One transfer a turn and stream: large enough that the system call is not what is measured, small enough for L2.
const CHUNK_BYTES: usize = 256 * 1024;

/// How long the end of an upload may take to pass the forwarder and be acknowledged.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(5);

/// All streams of a load share one pace; who moves the last bytes of an instalment rests with everyone else.
struct Brake {
    bytes_per_second: Option<f64>,
    pace: Option<Pace>,
    resting_until: Option<Instant>,
}

impl Brake {
    fn new(bytes_per_second: Option<f64>) -> Brake {
        Brake { bytes_per_second, pace: None, resting_until: None }
    }

    /// True when the streams are to stop listening to their sockets until [`Brake::poll_timeout`].
    fn handle_moved(&mut self, bytes: usize) -> bool {
        let Some(bytes_per_second) = self.bytes_per_second else { return false };
        let now = Instant::now();
        let pace = self.pace.get_or_insert_with(|| Pace::new(bytes_per_second, now));
        self.resting_until = pace.handle_moved(bytes, now);
        self.resting_until.is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.resting_until
    }

    /// True when the rest is over.
    fn handle_timeout(&mut self, now: Instant) -> bool {
        self.resting_until.take_if(|until| *until <= now).is_some()
    }
}

/// The client writes.
pub(crate) struct Upload {
    connections: usize,
    brake: Brake,
    chunk: Vec<u8>,
    streams: Vec<UploadStream>,
}

struct UploadStream {
    fd: OwnedFd,
    sent_bytes: u64,
    answer: Vec<u8>,
    state: AnswerState,
}

#[derive(Clone, Copy, PartialEq)]
enum AnswerState {
    Awaited,
    Over,
}

impl Upload {
    /// `bytes_per_second` holds all streams together to a rate.
    pub(crate) fn new(connections: usize, bytes_per_second: Option<f64>) -> Upload {
        let brake = Brake::new(bytes_per_second);
        Upload { connections, brake, chunk: vec![SINK; CHUNK_BYTES], streams: Vec::new() }
    }
}

impl Load for Upload {
    fn start(&mut self, context: &mut Context, _now: Instant) -> Result<(), LoadError> {
        for index in 0..self.connections {
            let fd = context.dialer.dial()?;
            context.poller.add(&fd, index, EventFlags::OUT)?;
            self.streams.push(UploadStream {
                fd,
                sent_bytes: 0,
                answer: Vec::new(),
                state: AnswerState::Awaited,
            });
        }
        Ok(())
    }

    fn handle_ready(
        &mut self,
        context: &mut Context,
        token: usize,
        _flags: EventFlags,
    ) -> Result<(), LoadError> {
        let stream = &mut self.streams[token];
        let moved = send(&stream.fd, &self.chunk).map_err(|errno| Broken::from(errno).of(token))?;
        if let Transfer::Moved(count) = moved {
            stream.sent_bytes += count as u64;
            context.tally.bytes += count as u64;
            if self.brake.handle_moved(count) {
                return self.watch_all(context, EventFlags::empty());
            }
        }
        Ok(())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.brake.poll_timeout()
    }

    fn handle_timeout(&mut self, context: &mut Context, now: Instant) -> Result<(), LoadError> {
        if self.brake.handle_timeout(now) { self.watch_all(context, EventFlags::OUT) } else { Ok(()) }
    }

    /// Ends every stream and adds up what the sinks say they read.
    fn finish(&mut self, context: &mut Context) -> Result<Acknowledged, LoadError> {
        for (index, stream) in self.streams.iter().enumerate() {
            shutdown(&stream.fd, Shutdown::Write).map_err(LoadError::system("shutdown"))?;
            context.poller.modify(&stream.fd, index, EventFlags::IN)?;
        }
        let deadline = Instant::now() + ACKNOWLEDGE_WITHIN;
        while self.streams.iter().any(|stream| stream.state == AnswerState::Awaited) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Acknowledged::NoAnswer);
            }
            for index in 0..context.poller.wait(Some(left))? {
                let (token, _) = context.poller.event(index);
                self.streams[token].read_answer();
                if self.streams[token].state == AnswerState::Over {
                    context.poller.modify(&self.streams[token].fd, token, EventFlags::ET)?;
                }
            }
        }
        Ok(self.sum_answers())
    }
}

impl Upload {
    fn watch_all(&self, context: &Context, flags: EventFlags) -> Result<(), LoadError> {
        let mut streams = self.streams.iter().enumerate();
        streams.try_for_each(|(index, stream)| context.poller.modify(&stream.fd, index, flags))
    }

    fn sum_answers(&self) -> Acknowledged {
        let answers: Option<u64> = self
            .streams
            .iter()
            .map(|stream| stream.answer.as_slice().try_into().ok().map(u64::from_le_bytes))
            .sum();
        match answers {
            None => Acknowledged::NoAnswer,
            Some(arrived_bytes) => {
                let sent_bytes = self.streams.iter().map(|stream| stream.sent_bytes).sum();
                Acknowledged::Counted { sent_bytes, arrived_bytes }
            }
        }
    }
}

impl UploadStream {
    /// An answer cut short, by an end or a reset, is found when the answers are added up.
    fn read_answer(&mut self) {
        let mut buffer = [0; 16];
        match receive(&self.fd, &mut buffer) {
            Ok(Transfer::Moved(count)) => self.answer.extend_from_slice(&buffer[..count]),
            Ok(Transfer::Blocked) => {}
            Ok(Transfer::Ended) | Err(_) => self.state = AnswerState::Over,
        }
    }
}

/// The client reads.
pub(crate) struct Download {
    connections: usize,
    brake: Brake,
    buffer: Vec<u8>,
    streams: Vec<DownloadStream>,
}

struct DownloadStream {
    fd: OwnedFd,
    request: Request,
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    Unsent,
    Sent,
}

impl Download {
    /// `bytes_per_second` holds all streams together to a rate.
    pub(crate) fn new(connections: usize, bytes_per_second: Option<f64>) -> Download {
        let brake = Brake::new(bytes_per_second);
        Download { connections, brake, buffer: vec![0; CHUNK_BYTES], streams: Vec::new() }
    }
}

impl Load for Download {
    fn start(&mut self, context: &mut Context, _now: Instant) -> Result<(), LoadError> {
        for index in 0..self.connections {
            let fd = context.dialer.dial()?;
            context.poller.add(&fd, index, EventFlags::OUT)?;
            self.streams.push(DownloadStream { fd, request: Request::Unsent });
        }
        Ok(())
    }

    fn handle_ready(
        &mut self,
        context: &mut Context,
        token: usize,
        _flags: EventFlags,
    ) -> Result<(), LoadError> {
        let stream = &mut self.streams[token];
        match stream.request {
            Request::Unsent => {
                // The count of zero that follows asks for an endless stream; nine bytes fit an empty send buffer.
                send(&stream.fd, &[SOURCE, 0, 0, 0, 0, 0, 0, 0, 0])
                    .map_err(|errno| Broken::from(errno).of(token))?;
                stream.request = Request::Sent;
                context.poller.modify(&stream.fd, token, EventFlags::IN)
            }
            Request::Sent => {
                match receive(&stream.fd, &mut self.buffer).map_err(|errno| Broken::from(errno).of(token))? {
                    Transfer::Moved(count) => {
                        context.tally.bytes += count as u64;
                        let rest = self.brake.handle_moved(count);
                        if rest { self.watch_all(context, EventFlags::empty()) } else { Ok(()) }
                    }
                    Transfer::Blocked => Ok(()),
                    Transfer::Ended => Err(Broken::Lost(std::io::ErrorKind::UnexpectedEof.into()).of(token)),
                }
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.brake.poll_timeout()
    }

    fn handle_timeout(&mut self, context: &mut Context, now: Instant) -> Result<(), LoadError> {
        if self.brake.handle_timeout(now) { self.watch_all(context, EventFlags::IN) } else { Ok(()) }
    }
}

impl Download {
    /// A stream that has not asked yet goes on waiting for its connect.
    fn watch_all(&self, context: &Context, flags: EventFlags) -> Result<(), LoadError> {
        let mut streams = self.streams.iter().enumerate();
        streams.try_for_each(|(index, stream)| match stream.request {
            Request::Unsent => Ok(()),
            Request::Sent => context.poller.modify(&stream.fd, index, flags),
        })
    }
}
