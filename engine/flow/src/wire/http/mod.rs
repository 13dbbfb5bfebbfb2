//! The server side of an HTTP/1 proxy: CONNECT tunnels and plain `http://` requests (RFC 9110, RFC 9112).
//!
//! Each connection carries one request. A plain request goes on with `Connection: close`, so that the upstream's
//! end of stream ends its answer; a client that wants more opens more connections, and what it pipelines behind
//! the first request is never forwarded. Requests that upgrade to another protocol keep their connection.
//!
//! No `Via` is added: which proxy a request came through is the operator's to tell. A client's HTTP version is kept,
//! because its answer passes unread.

mod fields;
mod reply;
mod target;

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use httparse::Header;
use zeroize::Zeroizing;

use self::fields::Framing;
use self::reply::Refusal;
use self::target::Target;
use super::{Answer, Body, Progress, Request};
use crate::users::Users;
use crate::verify::{Login, Standing, Verdict};

pub(super) use self::reply::{CONNECTED, failure};

/// The longest head of a request, from its first byte to the empty line: what common servers take (nginx and
/// Apache 8 KiB a line, HAProxy 16 KiB in all), so that a request too long for us is too long for most upstreams.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The most header fields of a request; Apache's default, far above what browsers send.
pub const MAX_HEADERS: usize = 100;

/// The most bytes of empty lines before a request; RFC 9112, section 2.2 asks to ignore at least one line.
pub const MAX_LEADING_BYTES: usize = 16;

/// An HTTP handshake: one request head, up to its empty line.
#[derive(Debug, Default)]
pub struct Handshake {
    /// No head ends before this offset, so that a head that comes byte by byte is searched once, not once a byte.
    searched: usize,
    /// What is known of the login in the head.
    standing: Standing,
}

impl Handshake {
    /// See [`handshake::Handshake::advance`](super::handshake::Handshake::advance).
    pub fn advance(&mut self, input: &[u8], users: Option<&Users>) -> Progress {
        let read = self.find_end(input).and_then(|end| match end {
            Some(end) => read_request(&input[..end], users, self.standing),
            None => Ok(Progress::incomplete()),
        });
        read.unwrap_or_else(Refusal::into_progress)
    }

    /// See [`handshake::Handshake::handle_verdict`](super::handshake::Handshake::handle_verdict).
    pub fn handle_verdict(&mut self, verdict: Verdict) {
        self.standing = Standing::Judged(verdict);
    }

    /// Where the head ends, just behind its empty line.
    fn find_end(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        let leading = input.iter().take(MAX_LEADING_BYTES + 1).take_while(|byte| is_line_end(byte)).count();
        if leading > MAX_LEADING_BYTES || input.get(leading).is_some_and(|&byte| !is_token_byte(byte)) {
            return Err(Refusal::Malformed("no HTTP request"));
        }
        let from = self.searched.max(leading);
        let window = &input[from.min(input.len())..input.len().min(MAX_HEAD_BYTES)];
        if let Some(end) = empty_line_end(window) {
            return Ok(Some(from + end));
        }
        if input.len() >= MAX_HEAD_BYTES {
            return Err(Refusal::HeadTooLarge);
        }
        // The last two bytes may be the start of an empty line's `\n\r\n`.
        self.searched = input.len().saturating_sub(2);
        Ok(None)
    }
}

fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Lines end in CRLF or in a bare LF (RFC 9112, section 2.2), as the parser sees it too.
pub(super) fn empty_line_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = bytes[from..].iter().position(|&byte| byte == b'\n') {
        let next = from + found + 1;
        match &bytes[next..] {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => from = next,
        }
    }
    None
}

fn read_request(head: &[u8], users: Option<&Users>, standing: Standing) -> Result<Progress, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(Refusal::Malformed("the request's head is malformed")),
        Err(error) => return Err(Refusal::from_parser(error, head)),
    }
    let (Some(method), Some(uri), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::Malformed("the request's first line is incomplete"));
    };
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let framing = Framing::read(version, parsed.headers)?;
    let user = match users {
        Some(users) => match authenticated(parsed.headers, users, standing)? {
            Authenticated::As(user) => Some(user),
            Authenticated::Asked(login) => return Ok(Progress::verify(login)),
        },
        None => None,
    };
    let request = match Target::parse(method, uri)? {
        Target::Tunnel { authority, port } => match framing {
            Framing::None | Framing::Length(0) => Request {
                destination: authority.destination(port)?,
                user,
                preface: Vec::new(),
                body: Body::Unlimited,
                answer: Answer::HttpConnect,
            },
            Framing::Length(_) | Framing::Chunked => {
                return Err(Refusal::Malformed("a CONNECT request has no content"));
            }
        },
        Target::Absolute(target) => {
            let destination = target.authority.destination(target::HTTP_PORT)?;
            let line = fields::RequestLine { method, target, version };
            let (preface, body) = fields::rewrite(&line, parsed.headers, framing)?;
            Request { destination, user, preface, body, answer: Answer::HttpPlain }
        }
    };
    Ok(Progress::request(head.len(), request))
}

/// The versions that this proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// What is known of who sends a request.
enum Authenticated {
    As(Arc<str>),
    /// The login has to be asked for.
    Asked(Login),
}

/// Whom of `users` the one `Proxy-Authorization` there is names, with the right password (RFC 7617).
fn authenticated(
    headers: &[Header<'_>],
    users: &Users,
    standing: Standing,
) -> Result<Authenticated, Refusal> {
    let credentials = credentials(headers).ok_or(Refusal::AuthenticationRequired)?;
    let colon = credentials.iter().position(|&byte| byte == b':').ok_or(Refusal::AuthenticationRequired)?;
    let (name, password) = (&credentials[..colon], &credentials[colon + 1..]);
    match standing.judge(users, name, password) {
        // Configured names are text.
        Ok(Verdict::Right) => std::str::from_utf8(name)
            .map(|name| Authenticated::As(name.into()))
            .map_err(|_| Refusal::AuthenticationRequired),
        Ok(Verdict::Wrong) => Err(Refusal::AuthenticationRequired),
        Ok(Verdict::Overloaded) => Err(Refusal::TooManyLogins),
        Err(login) => Ok(Authenticated::Asked(login)),
    }
}

/// The name and password that a request comes with, a colon between them.
fn credentials(headers: &[Header<'_>]) -> Option<Zeroizing<Vec<u8>>> {
    let mut found = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("proxy-authorization"));
    let (Some(header), None) = (found.next(), found.next()) else { return None };
    let (scheme, encoded) = header.value.split_at_checked(b"Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let mut decoded = Zeroizing::new(Vec::with_capacity(encoded.len()));
    if BASE64_STANDARD.decode_vec(encoded.trim_ascii_start(), &mut decoded).is_err() {
        return None;
    }
    Some(decoded)
}

#[cfg(test)]
mod tests;
