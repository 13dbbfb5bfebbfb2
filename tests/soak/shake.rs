//! How clients ask a proxy for the upstream.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use crate::script::Handshake;
use crate::socket::Socket;

/// A head of an answer that is longer is none.
const MAX_HEAD_BYTES: usize = 4096;

/// SOCKS 5 CONNECT without authentication (RFC 1928), and `first` behind it.
pub(crate) async fn socks(
    socket: &Socket,
    target: SocketAddr,
    handshake: Handshake,
    first: &[u8],
) -> io::Result<()> {
    let greeting: &[u8] = &[5, 1, 0];
    let IpAddr::V4(ip) = target.ip() else { return Err(ErrorKind::Unsupported.into()) };
    let request = [&[5, 1, 0, 1][..], &ip.octets(), &target.port().to_be_bytes()].concat();
    match handshake {
        Handshake::Hasty => {
            socket.write_all(&[greeting, &request, first].concat()).await?;
            expect(socket, &[5, 0]).await?;
            read_reply(socket).await
        }
        Handshake::Polite => {
            socket.write_all(greeting).await?;
            expect(socket, &[5, 0]).await?;
            socket.write_all(&request).await?;
            read_reply(socket).await?;
            socket.write_all(first).await
        }
    }
}

/// HTTP CONNECT (RFC 9110, section 9.3.6), and `first` behind it.
pub(crate) async fn http(
    socket: &Socket,
    target: SocketAddr,
    handshake: Handshake,
    first: &[u8],
) -> io::Result<()> {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    match handshake {
        Handshake::Hasty => {
            socket.write_all(&[request.as_bytes(), first].concat()).await?;
            read_head(socket).await
        }
        Handshake::Polite => {
            socket.write_all(request.as_bytes()).await?;
            read_head(socket).await?;
            socket.write_all(first).await
        }
    }
}

async fn expect(socket: &Socket, wanted: &[u8]) -> io::Result<()> {
    let mut bytes = vec![0; wanted.len()];
    socket.read_exact(&mut bytes).await?;
    if bytes == wanted { Ok(()) } else { Err(refused(format!("{bytes:02x?} instead of {wanted:02x?}"))) }
}

async fn read_reply(socket: &Socket) -> io::Result<()> {
    let mut reply = [0; 10];
    socket.read_exact(&mut reply).await?;
    if reply[..4] == [5, 0, 0, 1] { Ok(()) } else { Err(refused(format!("the reply {reply:02x?}"))) }
}

/// A byte at a time, so that none of the tunnel's is taken.
async fn read_head(socket: &Socket) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).await?;
        head.push(byte[0]);
        if head.len() > MAX_HEAD_BYTES {
            return Err(refused("an endless head".to_owned()));
        }
    }
    let text = String::from_utf8_lossy(&head);
    if text.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(refused(text.into_owned())) }
}

fn refused(what: String) -> io::Error {
    io::Error::new(ErrorKind::ConnectionRefused, what)
}
