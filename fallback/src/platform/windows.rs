//! Windows: no local sockets, Winsock's error numbers, no limit on descriptors.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use ringweir_flow::close::ConnectError;
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

// Windows Sockets Error Codes (WinSock2.h).
const WSA_NOT_ENOUGH_MEMORY: i32 = 8;
const WSAEINTR: i32 = 10_004;
const WSAEMFILE: i32 = 10_024;
const WSAEWOULDBLOCK: i32 = 10_035;
const WSAEINPROGRESS: i32 = 10_036;
const WSAEAFNOSUPPORT: i32 = 10_047;
const WSAEADDRNOTAVAIL: i32 = 10_049;
const WSAENETUNREACH: i32 = 10_051;
const WSAECONNABORTED: i32 = 10_053;
const WSAECONNRESET: i32 = 10_054;
const WSAENOBUFS: i32 = 10_055;
const WSAETIMEDOUT: i32 = 10_060;
const WSAECONNREFUSED: i32 = 10_061;
const WSAEHOSTUNREACH: i32 = 10_065;

/// A stream over a local socket: there is none.
#[derive(Debug)]
pub(crate) struct LocalStream(Infallible);

/// A listening local socket: there is none.
#[derive(Debug)]
pub(crate) struct LocalListener(Infallible);

impl LocalListener {
    pub(crate) async fn accept(&self) -> io::Result<(LocalStream, ())> {
        match self.0 {}
    }
}

impl LocalStream {
    pub(crate) fn poll_read_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }

    pub(crate) fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }

    pub(crate) fn try_io<R>(&self, _: Interest, _: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        match self.0 {}
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}

pub(crate) fn adopt_local(_: Socket) -> io::Result<LocalStream> {
    Err(io::Error::from_raw_os_error(WSAEAFNOSUPPORT))
}

pub(crate) fn release_local(stream: LocalStream) -> io::Result<Socket> {
    match stream.0 {}
}

pub(crate) fn adopt_local_listener(_: Socket) -> io::Result<LocalListener> {
    Err(io::Error::from_raw_os_error(WSAEAFNOSUPPORT))
}

pub(crate) fn release_local_listener(listener: LocalListener) -> io::Result<Socket> {
    match listener.0 {}
}

pub(crate) fn shut_down_local(stream: &LocalStream) -> io::Result<()> {
    match stream.0 {}
}

pub(crate) fn connect_local(_: &Path) -> io::Result<LocalStream> {
    Err(io::Error::from_raw_os_error(WSAEAFNOSUPPORT))
}

/// Whether a connect goes on in the background.
pub(crate) fn is_in_progress(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(WSAEWOULDBLOCK | WSAEINPROGRESS))
}

/// Whether the accept queue of a local socket is full for now.
pub(crate) fn is_full(_: &io::Error) -> bool {
    false
}

/// Whether an accept failed for the one client alone, so that the next may be served at once.
pub(crate) fn is_clients_doing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(WSAECONNRESET | WSAECONNABORTED | WSAEINTR))
}

pub(crate) fn connect_error(error: &io::Error) -> ConnectError {
    match error.raw_os_error() {
        Some(WSAECONNREFUSED) => ConnectError::Refused,
        Some(WSAETIMEDOUT) => ConnectError::TimedOut,
        Some(WSAENETUNREACH) => ConnectError::NetworkUnreachable,
        Some(WSAEHOSTUNREACH) => ConnectError::HostUnreachable,
        Some(WSAECONNRESET) => ConnectError::Reset,
        Some(WSAEMFILE | WSAENOBUFS | WSA_NOT_ENOUGH_MEMORY | WSAEADDRNOTAVAIL) => {
            ConnectError::OutOfResources
        }
        Some(other) => ConnectError::Other(other),
        None => ConnectError::Other(0),
    }
}

/// How many sessions there may be: memory alone bounds them.
pub(crate) fn session_limit(_: usize, _: usize) -> usize {
    usize::MAX
}
