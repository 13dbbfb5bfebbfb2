//! Pipes to splice(2) streams through: a pool for each worker, one [`Budget`] for the process.
//!
//! A direction borrows a pipe when its source has something, and gives it back as soon as the sink has taken all of
//! it. So a few pipes serve any number of streams, and only one whose reader stalls keeps its own.
//!
//! A pipe is empty whenever it is filled. So EAGAIN, which splice(2) says for a full pipe as well as for an empty
//! socket, means one thing only.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringweir_flow::way::Refusal;
use rustix::io::Errno;
use rustix::param::page_size;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe holds at most.
pub const PIPE_BYTES: usize = 1 << 20;

/// Pipes that a worker keeps when nobody needs them: enough for a turn, and not so many that others go without.
const KEPT_PIPES: usize = 4;

/// The most pipes of a process: each may hold [`PIPE_BYTES`] for a reader that stalls, and takes two descriptors.
const MAX_PIPES: usize = 64;

/// How many more pipes the process may open.
#[derive(Debug)]
pub struct Budget {
    pipes: usize,
    left: AtomicUsize,
}

impl Budget {
    /// As many as three quarters of `fs.pipe-user-pages-soft` (pipe(7)) are enough for, 64 at most. Past that limit the
    /// kernel gives an unprivileged user pipes of one page; the last quarter is for the user's other programs.
    pub fn of_this_system() -> Budget {
        let pages = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft");
        let pages: Option<usize> = pages.ok().and_then(|pages| pages.trim().parse().ok());
        Budget::new(match pages {
            // 0 is no limit.
            Some(0) => MAX_PIPES,
            Some(pages) => (pages / 4 * 3 * page_size() / PIPE_BYTES).min(MAX_PIPES),
            // What the kernel starts with, 16384, for want of better knowledge.
            None => (16_384 / 4 * 3 * page_size() / PIPE_BYTES).min(MAX_PIPES),
        })
    }

    /// So many.
    pub fn new(pipes: usize) -> Budget {
        Budget { pipes, left: AtomicUsize::new(pipes) }
    }

    /// How many pipes may be open at a time. Each takes two descriptors.
    pub fn pipes(&self) -> usize {
        self.pipes
    }

    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pipes of a worker that nobody uses at the moment.
#[derive(Debug)]
pub struct Pool {
    budget: Arc<Budget>,
    kept: Vec<Pipe>,
}

impl Pool {
    /// An empty pool.
    pub fn new(budget: Arc<Budget>) -> Pool {
        Pool { budget, kept: Vec::with_capacity(KEPT_PIPES) }
    }

    /// An empty pipe.
    ///
    /// # Errors
    /// [`Refusal::Budget`] or [`Refusal::Kernel`].
    pub fn take(&mut self) -> Result<Pipe, Refusal> {
        match self.kept.pop() {
            Some(pipe) => Ok(pipe),
            None if self.budget.take() => Pipe::open(Ticket(Arc::clone(&self.budget))),
            None => Err(Refusal::Budget),
        }
    }

    /// Takes a pipe back. One that is not empty, or one too many, is closed.
    pub fn give_back(&mut self, pipe: Pipe) {
        if pipe.held == 0 && self.kept.len() < KEPT_PIPES {
            self.kept.push(pipe);
        }
    }
}

/// Whether [`Pipe::fill`] failed because the source cannot be spliced (`INVAL`, `OPNOTSUPP`), or because the system does
/// not know splice(2) or forbids it, as sandboxes do (`NOSYS`, `PERM`). Nothing was taken from the source: whatever else
/// is wrong with it, the next receive meets as well.
pub fn is_unspliceable(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM)
}

/// A place in the budget, given back when dropped.
#[derive(Debug)]
struct Ticket(Arc<Budget>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
    /// Given back when the descriptors are closed.
    _ticket: Ticket,
}

impl Pipe {
    fn open(ticket: Ticket) -> Result<Pipe, Refusal> {
        let open = || {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            fcntl_setpipe_size(&writer, PIPE_BYTES)?;
            Ok((reader, writer))
        };
        let (reader, writer) = open().map_err(|_: Errno| Refusal::Kernel)?;
        Ok(Pipe { reader, writer, held: 0, _ticket: ticket })
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves what the source has into the empty pipe, `max_bytes` at most; 0 is the end of the stream.
    ///
    /// A source that has nothing makes it wait unless it is non-blocking.
    ///
    /// # Errors
    /// `AGAIN` when the source has nothing, one that [`is_unspliceable`] knows when it cannot be spliced, else what befell
    /// the connection.
    pub fn fill(&mut self, source: impl AsFd, max_bytes: u64) -> Result<usize, Errno> {
        debug_assert_eq!(self.held, 0, "filled before it was empty");
        let bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(PIPE_BYTES);
        self.held = splice(source, None, &self.writer, None, bytes, SpliceFlags::NONBLOCK)?;
        Ok(self.held)
    }

    /// Moves up to `bytes` of what it holds into the sink, which is non-blocking; how many it took.
    ///
    /// # Errors
    /// `AGAIN` when the sink takes nothing now, else what befell the connection.
    pub fn drain(&mut self, sink: impl AsFd, bytes: usize) -> Result<usize, Errno> {
        debug_assert!(bytes <= self.held, "{bytes} bytes of {}", self.held);
        let sent = splice(&self.reader, None, sink, None, bytes, SpliceFlags::NONBLOCK)?;
        self.held -= sent;
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn pool(pipes: usize) -> Pool {
        Pool::new(Arc::new(Budget::new(pipes)))
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut pool = pool(1);
        let (mut client, source) = pair();
        let (sink, mut server) = pair();
        for socket in [&source, &sink] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut pipe = pool.take().unwrap();
        assert_eq!(pipe.fill(&source, u64::MAX), Err(Errno::AGAIN));
        client.write_all(b"through the pipe").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(pipe.fill(&source, 7), Ok(7));
        assert_eq!((pipe.drain(&sink, 3), pipe.drain(&sink, 4)), (Ok(3), Ok(4)));
        assert_eq!(pipe.fill(&source, u64::MAX), Ok(9));
        assert_eq!(pipe.drain(&sink, 9), Ok(9));
        assert_eq!(pipe.fill(&source, u64::MAX), Ok(0), "the end of the stream");
        drop(sink);
        let mut all = String::new();
        server.read_to_string(&mut all).unwrap();
        assert_eq!(all, "through the pipe");
    }

    #[test]
    fn a_pipe_given_back_is_the_next_one_taken_and_the_budget_holds() {
        let mut pool = pool(2);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!(pool.take().unwrap_err(), Refusal::Budget);
        pool.give_back(first);
        let again = pool.take().unwrap();
        assert_eq!(pool.take().unwrap_err(), Refusal::Budget);
        drop((again, second));
        assert!(pool.take().is_ok(), "closed pipes are budget again");
    }

    #[test]
    fn a_pipe_that_is_not_empty_is_not_reused() {
        let mut pool = pool(1);
        let (mut client, source) = pair();
        client.write_all(b"left behind").unwrap();
        let mut pipe = pool.take().unwrap();
        assert_eq!(pipe.fill(&source, u64::MAX), Ok(11));
        pool.give_back(pipe);
        let mut pipe = pool.take().unwrap();
        source.set_nonblocking(true).unwrap();
        assert_eq!((pipe.len(), pipe.fill(&source, u64::MAX)), (0, Err(Errno::AGAIN)));
    }

    #[test]
    fn pools_keep_few_pipes_that_nobody_uses() {
        let mut pool = pool(10);
        let pipes: Vec<_> = (0..10).map(|_| pool.take().unwrap()).collect();
        pipes.into_iter().for_each(|pipe| pool.give_back(pipe));
        assert_eq!(pool.kept.len(), KEPT_PIPES);
        assert_eq!(pool.budget.left.load(Ordering::Relaxed), 10 - KEPT_PIPES);
    }
}
