//! HTTP as far as scenarios need it: a client that reads one response, and an origin server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::client::{connect, read_rest};
use super::pattern::{DOWN, End};
use super::server::Server;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The head in full.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// A header field's value.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a request and reads the response; the request asks the server to close.
#[track_caller]
pub(crate) fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Response {
    stream.write_all(request).expect("send the request");
    read_response(stream)
}

/// Reads a response up to the end of the stream.
#[track_caller]
pub(crate) fn read_response(stream: &mut impl Read) -> Response {
    let head = read_head(stream);
    let (body, end) = read_rest(stream);
    assert_eq!(end, End::Fin, "after {head:?}");
    Response { status: status_of(&head), head, body }
}

/// Reads a head, up to and with its empty line and no byte further.
#[track_caller]
pub(crate) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).expect("a head is text")
}

#[track_caller]
pub(crate) fn status_of(head: &str) -> u16 {
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status in {head:?}"))
}

/// A tunnel by CONNECT, or the status that refuses it.
#[track_caller]
pub(crate) fn http_tunnel(proxy: SocketAddr, authority: &str) -> Result<TcpStream, u16> {
    let mut stream = connect(proxy);
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").expect("send the request");
    let head = read_head(&mut stream);
    match status_of(&head) {
        200 => Ok(stream),
        status => Err(status),
    }
}

/// An origin server. `GET /bytes/N` gives N bytes of [`DOWN`]; `GET /head` gives the request's own head;
/// `POST` gives the body back.
pub(crate) fn origin() -> Server {
    Server::new(|mut stream| {
        let head = read_head(&mut stream);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = match (method, path.strip_prefix("/bytes/")) {
            ("GET", Some(count)) => return send_bytes(&mut stream, count.parse().unwrap_or(0)),
            ("GET", None) => head.clone().into_bytes(),
            _ => read_body(&mut stream, &head),
        };
        let length = body.len();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(&body);
        finish(&mut stream);
    })
}

fn send_bytes(stream: &mut TcpStream, count: u64) {
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {count}\r\nConnection: close\r\n\r\n");
    let _ = DOWN.write(stream, count);
    finish(stream);
}

/// Ends our side and waits for the other: closing with bytes unread would be a reset.
fn finish(stream: &mut TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = read_rest(stream);
}

fn read_body(stream: &mut TcpStream, head: &str) -> Vec<u8> {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // curl asks for this before it sends a long body.
    if head.to_ascii_lowercase().contains("expect: 100-continue") {
        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    let mut body = vec![0; length.unwrap_or(0)];
    let _ = stream.read_exact(&mut body);
    body
}
