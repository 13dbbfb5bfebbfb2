//! Clients: plain TCP, and SOCKS5 byte by byte as RFC 1928 and RFC 1929 have it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::pattern::End;
use super::server::{be_patient, set_patience_unix};

/// A TCP connection that waits for nothing longer than patience allows.
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    be_patient(&stream);
    stream
}

/// A TCP connection whose receive buffer is small.
pub(crate) fn connect_narrow(address: SocketAddr, receive_bytes: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    // Before connect(2), or the window is scaled for the default.
    socket.set_recv_buffer_size(receive_bytes).expect("SO_RCVBUF");
    socket.connect(&SockAddr::from(address)).unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    let stream = socket.into();
    be_patient(&stream);
    stream
}

/// A connection to a Unix socket, as patient.
#[track_caller]
pub(crate) fn connect_unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("connect to {path:?}: {error}"));
    set_patience_unix(&stream);
    stream
}

/// Sends `bytes` and wants them back.
#[track_caller]
pub(crate) fn assert_echo(stream: &mut (impl Read + Write), bytes: &[u8]) {
    try_echo(stream, bytes).unwrap_or_else(|error| panic!("echo: {error}"));
}

/// [`assert_echo`] that may fail.
pub(crate) fn try_echo(stream: &mut (impl Read + Write), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    assert!(answer == bytes, "the echo differs");
    Ok(())
}

/// Whether a new connection to `address` echoes.
pub(crate) fn is_served(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    be_patient(&stream);
    try_echo(&mut stream, b"served?").is_ok()
}

/// Connects to a [`Server::named`](super::server::Server::named) and reads its name; `None` when it is not served.
pub(crate) fn ask_name(address: SocketAddr) -> Option<(u8, TcpStream)> {
    let mut stream = TcpStream::connect(address).ok()?;
    be_patient(&stream);
    let mut name = [0];
    stream.read_exact(&mut name).ok()?;
    Some((name[0], stream))
}

/// Reads exactly that many bytes.
#[track_caller]
pub(crate) fn read_bytes(stream: &mut impl Read, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).unwrap_or_else(|error| panic!("read {bytes} bytes: {error}"));
    buffer
}

/// Everything up to the end of the stream, and how it ended.
pub(crate) fn read_rest(stream: &mut impl Read) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, End::Fin),
            Ok(bytes) => all.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (all, End::of(&error)),
        }
    }
}

/// The daemon ends the connection without another byte; FIN or reset are both an end.
#[track_caller]
pub(crate) fn assert_closed(stream: &mut impl Read) {
    let (rest, end) = read_rest(stream);
    assert!(rest.is_empty(), "unexpected bytes {rest:?}");
    assert!(matches!(end, End::Fin | End::Reset), "still open: {end:?}");
}

/// When each connection ended, counted from `begin`; `None` for those that are open at `deadline` still.
pub(crate) fn ends(streams: &[TcpStream], begin: Instant, deadline: Duration) -> Vec<Option<Duration>> {
    let mut ended = vec![None; streams.len()];
    loop {
        let open: Vec<usize> = (0..streams.len()).filter(|&index| ended[index].is_none()).collect();
        let left = deadline.saturating_sub(begin.elapsed());
        if open.is_empty() || left.is_zero() {
            return ended;
        }
        let mut polled: Vec<PollFd<'_>> = open
            .iter()
            .map(|&index| PollFd::from_borrowed_fd(streams[index].as_fd(), PollFlags::IN))
            .collect();
        let timeout = Timespec::try_from(left).expect("a short time");
        poll(&mut polled, Some(&timeout)).expect("poll");
        let now = begin.elapsed();
        for (&index, polled) in open.iter().zip(&polled) {
            if !polled.revents().is_empty() {
                let mut byte = [0];
                let read = (&streams[index]).read(&mut byte);
                assert!(!matches!(read, Ok(1)), "unexpected byte {byte:?}");
                ended[index] = Some(now);
            }
        }
    }
}

/// A destination as SOCKS5 writes it: address type and address.
pub(crate) fn socks_ip(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [&[1][..], &v4.octets()].concat(),
        IpAddr::V6(v6) => [&[4][..], &v6.octets()].concat(),
    }
}

/// The same for a name.
pub(crate) fn socks_name(name: &str) -> Vec<u8> {
    [&[3, u8::try_from(name.len()).expect("a short name")], name.as_bytes()].concat()
}

/// A CONNECT request.
pub(crate) fn socks_request(destination: &[u8], port: u16) -> Vec<u8> {
    [&[5, 1, 0], destination, &port.to_be_bytes()].concat()
}

/// A CONNECT request for an address.
pub(crate) fn socks_request_to(address: SocketAddr) -> Vec<u8> {
    socks_request(&socks_ip(address.ip()), address.port())
}

/// The greeting of a client without a password.
pub(crate) const SOCKS_GREETING: &[u8] = &[5, 1, 0];
/// What the proxy answers.
pub(crate) const SOCKS_WELCOME: &[u8] = &[5, 0];

/// A reply: its code, and the address bound.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SocksReply {
    pub(crate) code: u8,
    pub(crate) bound: SocketAddr,
}

/// Reads a reply in full.
#[track_caller]
pub(crate) fn read_socks_reply(stream: &mut impl Read) -> SocksReply {
    let head = read_bytes(stream, 4);
    assert_eq!((head[0], head[2]), (5, 0), "version and reserved byte of {head:?}");
    let ip = match head[3] {
        1 => IpAddr::from(<[u8; 4]>::try_from(read_bytes(stream, 4)).expect("4 bytes")),
        4 => IpAddr::from(<[u8; 16]>::try_from(read_bytes(stream, 16)).expect("16 bytes")),
        other => panic!("address type {other} in a reply"),
    };
    let port = read_bytes(stream, 2);
    SocksReply { code: head[1], bound: SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])) }
}

/// Greets without a password.
#[track_caller]
pub(crate) fn socks_greet(proxy: SocketAddr) -> TcpStream {
    let mut stream = connect(proxy);
    stream.write_all(SOCKS_GREETING).expect("send the greeting");
    assert_eq!(read_bytes(&mut stream, 2), SOCKS_WELCOME);
    stream
}

/// A whole handshake without a password; `destination` as [`socks_ip`] and [`socks_name`] write it.
#[track_caller]
pub(crate) fn socks_connect(proxy: SocketAddr, destination: &[u8], port: u16) -> (SocksReply, TcpStream) {
    let mut stream = socks_greet(proxy);
    stream.write_all(&socks_request(destination, port)).expect("send the request");
    let reply = read_socks_reply(&mut stream);
    (reply, stream)
}

/// A tunnel to an address.
#[track_caller]
pub(crate) fn socks_tunnel(proxy: SocketAddr, to: SocketAddr) -> TcpStream {
    let (reply, stream) = socks_connect(proxy, &socks_ip(to.ip()), to.port());
    assert_eq!(reply.code, 0, "{to} through {proxy}");
    stream
}

/// The message of RFC 1929.
pub(crate) fn socks_login(user: &[u8], password: &[u8]) -> Vec<u8> {
    let count = |text: &[u8]| u8::try_from(text.len()).expect("at most 255 bytes");
    [&[1, count(user)], user, &[count(password)], password].concat()
}
