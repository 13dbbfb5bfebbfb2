//! A connected socket, TCP or local, as the stages of a session use it.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::platform::{self, LocalStream, Pipe};

/// What a socket is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    /// A Unix socket.
    Local,
}

/// A non-blocking stream socket that belongs to a session.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Local(LocalStream),
}

impl Stream {
    /// Makes the runtime of this thread wait for a non-blocking socket.
    pub(crate) fn adopt(socket: Socket, transport: Transport) -> io::Result<Stream> {
        match transport {
            Transport::Tcp => TcpStream::from_std(socket.into()).map(Stream::Tcp),
            Transport::Local => platform::adopt_local(socket).map(Stream::Local),
        }
    }

    /// Takes the socket out of this thread's runtime, for that of another.
    pub(crate) fn into_socket(self) -> io::Result<(Socket, Transport)> {
        match self {
            Stream::Tcp(stream) => Ok((stream.into_std()?.into(), Transport::Tcp)),
            Stream::Local(stream) => Ok((platform::release_local(stream)?, Transport::Local)),
        }
    }

    /// Receives into `buffer`; 0 is the end of the stream.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Stream::Local(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        })?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Local(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Waits until a receive is worth a try.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Local(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Receives into an empty pipe; 0 is the end of the stream.
    pub(crate) fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        max_bytes: u64,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_readable(cx))?;
            let filled = match self {
                Stream::Tcp(stream) => {
                    stream.try_io(Interest::READABLE, || platform::fill(pipe, stream, max_bytes))
                }
                Stream::Local(stream) => {
                    stream.try_io(Interest::READABLE, || platform::fill(pipe, stream, max_bytes))
                }
            };
            match filled {
                // The runtime has been told, and is asked to wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => return Poll::Ready(filled),
            }
        }
    }

    /// Sends the first `bytes` bytes of what a pipe holds.
    pub(crate) fn poll_drain(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        bytes: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            let drained = match self {
                Stream::Tcp(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || platform::drain(pipe, stream, bytes))
                }
                Stream::Local(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || platform::drain(pipe, stream, bytes))
                }
            };
            match drained {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                drained => return Poll::Ready(drained),
            }
        }
    }

    /// Waits for the connect that was started on the socket.
    pub(crate) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = match self {
            Stream::Tcp(stream) => stream,
            // Connects at once or not at all.
            Stream::Local(_) => return Poll::Ready(Ok(())),
        };
        ready!(stream.poll_write_ready(cx))?;
        Poll::Ready(stream.take_error()?.map_or(Ok(()), Err))
    }

    /// Ends the stream towards the peer. It fails only when the connection is gone, which the next operation on it
    /// reports.
    pub(crate) fn shut_down(&self) {
        let _ = match self {
            Stream::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Stream::Local(stream) => platform::shut_down_local(stream),
        };
    }

    /// Where a client was going whose connection the system has redirected here.
    pub(crate) fn original_destination(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => ringweir_socket::original_destination(stream),
            Stream::Local(_) => None,
        }
    }

    /// The socket's own address.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Local(_) => None,
        }
    }
}
