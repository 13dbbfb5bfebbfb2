//! The head of an HTTP/1 request (RFC 9112, section 3), as far as sessions go by it.

use crate::wire::http::{MAX_HEADERS, empty_line_end};
use crate::wire::{Destination, HostName};

/// The longest method that is taken for one; longer ones are nobody's.
const MAX_METHOD_BYTES: usize = 24;

/// What a request's head shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The host that is asked for, without its port; none where it is an address or missing.
    pub host: Option<HostName>,
    /// Path and query.
    target: Box<str>,
    /// All cookies, as they are written.
    cookies: Box<[u8]>,
}

/// The bytes are no such head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHead;

/// Looks for the end of a head as it grows, at each byte once.
#[derive(Debug, Default)]
pub struct Search {
    line: Line,
    /// What is looked for does not stand before this offset.
    searched: usize,
}

/// Whether the first line has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Awaited,
    Sound,
}

impl Search {
    /// Reads a head from the beginning of a stream. `None` while it is incomplete.
    ///
    /// # Errors
    /// [`NotAHead`] as soon as it is known to be none.
    pub fn read(&mut self, input: &[u8]) -> Result<Option<RequestHead>, NotAHead> {
        if self.line == Line::Awaited {
            judge_method(input)?;
            let Some(found) = input[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = input.len();
                return Ok(None);
            };
            // An empty line is found from the end of the one before.
            self.searched += found;
            judge_line(&input[..self.searched])?;
            self.line = Line::Sound;
        }
        match empty_line_end(&input[self.searched..]) {
            Some(end) => parse(&input[..self.searched + end]).map(Some).ok_or(NotAHead),
            None => {
                // The last two bytes may be the start of an empty line's `\n\r\n`.
                self.searched = self.searched.max(input.len().saturating_sub(2));
                Ok(None)
            }
        }
    }
}

/// Methods are capitals.
fn judge_method(input: &[u8]) -> Result<(), NotAHead> {
    let method = input.iter().take(MAX_METHOD_BYTES + 1).take_while(|byte| byte.is_ascii_uppercase()).count();
    let is_method = match input.get(method) {
        None => method <= MAX_METHOD_BYTES,
        Some(next) => *next == b' ' && (1..=MAX_METHOD_BYTES).contains(&method),
    };
    if is_method { Ok(()) } else { Err(NotAHead) }
}

/// The first line ends in the version.
fn judge_line(line: &[u8]) -> Result<(), NotAHead> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") { Ok(()) } else { Err(NotAHead) }
}

fn parse(head: &[u8]) -> Option<RequestHead> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    if !parsed.parse(head).ok()?.is_complete() {
        return None;
    }
    let named = |name: &'static str| {
        parsed
            .headers
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    };
    let mut hosts = named("host");
    let host = hosts.next();
    // Whoever serves such a request might go by the other (RFC 9112, section 3.2).
    if hosts.next().is_some() {
        return None;
    }
    let uri = parsed.path?;
    // The authority of a whole URI counts before Host (RFC 9112, section 3.2.2).
    let whole = uri.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?']));
    let (host, target) = match whole {
        Some((_, rest)) => {
            let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority.as_bytes()), target)
        }
        None => (host, uri),
    };
    let cookies: Vec<&[u8]> = named("cookie").collect();
    Some(RequestHead {
        host: host.and_then(host_name),
        target: target.split('#').next().unwrap_or_default().into(),
        cookies: cookies.join(&b';').into(),
    })
}

/// The name in a host with or without a port.
fn host_name(authority: &[u8]) -> Option<HostName> {
    let end = authority.iter().rposition(|byte| *byte == b':').unwrap_or(authority.len());
    let (host, port) = authority.split_at(end);
    let is_port = port.iter().skip(1).all(u8::is_ascii_digit);
    match Destination::from_host(host, 0) {
        Ok(Destination::Name(name, _)) if is_port => Some(name),
        Ok(Destination::Name(..) | Destination::Address(_)) | Err(_) => None,
    }
}

impl RequestHead {
    /// The path.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a key in the query: the first, as it is written.
    pub fn query(&self, key: &str) -> Option<&[u8]> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).map(str::as_bytes)
    }

    /// The value of a cookie: the first, as it is written (RFC 6265, section 4.2).
    pub fn cookie(&self, name: &str) -> Option<&[u8]> {
        let mut pairs = self.cookies.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> RequestHead {
        Search::default().read(text.as_bytes()).unwrap().unwrap()
    }

    fn is_none(text: &str) -> bool {
        Search::default().read(text.as_bytes()) == Err(NotAHead)
    }

    #[test]
    fn host_path_query_and_cookies_are_read() {
        let head = head(
            "GET /socket.io/?EIO=4&sid=ab%2Fc&sid=2 HTTP/1.1\r\nhost: A.example:8080\r\nCookie: io=1; id=x=y\r\n\
             Cookie: idle=7;empty=\r\n\r\nbody",
        );
        assert_eq!(head.host.as_ref().unwrap().as_str(), "A.example");
        assert_eq!(head.path(), "/socket.io/");
        let query = |key| head.query(key).map(String::from_utf8_lossy);
        assert_eq!((query("sid").as_deref(), query("EIO").as_deref()), (Some("ab%2Fc"), Some("4")));
        assert_eq!((query("si"), query("id")), (None, None));
        let cookie = |name| head.cookie(name).map(String::from_utf8_lossy);
        assert_eq!((cookie("id").as_deref(), cookie("idle").as_deref()), (Some("x=y"), Some("7")));
        assert_eq!((cookie("empty").as_deref(), cookie("o")), (Some(""), None));
    }

    #[test]
    fn the_authority_of_a_whole_uri_counts_before_host() {
        let absolute = head("GET http://a.example/p?q=1 HTTP/1.1\r\nHost: b.example\r\n\r\n");
        assert_eq!(absolute.host.as_ref().unwrap().as_str(), "a.example");
        assert_eq!((absolute.path(), absolute.query("q")), ("/p", Some(&b"1"[..])));
        let relative = head("GET /to?url=http://a.example/ HTTP/1.0\n\n");
        assert_eq!((relative.host.clone(), relative.path()), (None, "/to"));
        for host in ["192.0.2.1", "[::1]:80", "", "a.example:b"] {
            assert_eq!(head(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).host, None, "{host}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_none() {
        assert!(is_none("GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"));
        assert!(is_none("GET / HTTP/1.1\r\nHost : a.example\r\n\r\n"));
        assert!(is_none("PRI * HTTP/2.0\r\n"));
        assert!(is_none("get / HTTP/1.1\r\n"));
        assert!(is_none("GET / HTTP/1.1 \u{1}\r\n"));
        assert!(is_none(&"G".repeat(MAX_METHOD_BYTES + 1)));
    }
}
