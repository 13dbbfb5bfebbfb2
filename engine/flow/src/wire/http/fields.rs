//! Header fields: how long a body is, and the head that the upstream gets instead of the client's.

use httparse::Header;
use smallvec::SmallVec;

use super::Version;
use super::reply::Refusal;
use super::target::Absolute;
use crate::wire::Body;

/// The most options in `Connection` fields: each is looked for among all fields, so their number is a cost.
const MAX_CONNECTION_OPTIONS: usize = 32;

/// Fields of this connection alone (RFC 9110, section 7.6.1), and those that are written anew.
const NOT_FORWARDED: [&str; 11] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "upgrade",
];

/// How the end of a request's body is told (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// By `Content-Length`.
    Length(u64),
    /// By the chunked transfer coding.
    Chunked,
}

impl Framing {
    /// Strict: what two servers could read in two ways is refused, for it lets one request hide in another.
    pub(super) fn read(version: Version, headers: &[Header<'_>]) -> Result<Framing, Refusal> {
        let length = content_length(headers)?;
        let mut codings = elements(headers, "transfer-encoding").peekable();
        if codings.peek().is_none() {
            return Ok(length.map_or(Framing::None, Framing::Length));
        }
        if length.is_some() {
            return Err(Refusal::Malformed("both Content-Length and Transfer-Encoding"));
        }
        match version {
            Version::Http10 => return Err(Refusal::Malformed("HTTP/1.0 has no Transfer-Encoding")),
            Version::Http11 => {}
        }
        // Chunked, once and last; a coding before it is the upstream's to understand.
        while let Some(coding) = codings.next() {
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            let token = !coding.is_empty() && coding.iter().all(|&byte| super::is_token_byte(byte));
            if !token || chunked != codings.peek().is_none() {
                return Err(Refusal::Malformed("bad Transfer-Encoding"));
            }
        }
        Ok(Framing::Chunked)
    }
}

/// The first line of a plain request.
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a str,
    pub(super) target: Absolute<'a>,
    pub(super) version: Version,
}

/// The head that the upstream gets (RFC 9112, section 3.2.2; RFC 9110, section 7.6), and how much of what the
/// client sends after it may follow.
pub(super) fn rewrite(
    line: &RequestLine<'_>,
    headers: &[Header<'_>],
    framing: Framing,
) -> Result<(Vec<u8>, Body), Refusal> {
    if headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host")).count() > 1 {
        return Err(Refusal::Malformed("more than one Host"));
    }
    let options = Options::read(headers)?;
    let protocols = upgrade_protocols(line.version, headers, &options);
    let mut head = Vec::with_capacity(headers.iter().map(|h| h.name.len() + h.value.len() + 4).sum());
    write_request_line(line, &mut head);
    for header in headers.iter().filter(|header| is_forwarded(header.name, &options)) {
        write_field(&mut head, header.name, header.value);
    }
    let mut body = match framing {
        Framing::None => Body::Limited(0),
        Framing::Length(bytes) => {
            write_field(&mut head, "Content-Length", bytes.to_string().as_bytes());
            Body::Limited(bytes)
        }
        // Where it ends is known to the upstream alone, which was told to close after it.
        Framing::Chunked => Body::Unlimited,
    };
    let mut connection = String::from("close");
    if !protocols.is_empty() {
        write_field(&mut head, "Upgrade", &protocols);
        connection = String::from("Upgrade");
        body = Body::Unlimited;
    }
    if elements(headers, "te").any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
        write_field(&mut head, "TE", b"trailers");
        connection.push_str(", TE");
    }
    write_field(&mut head, "Connection", connection.as_bytes());
    head.extend_from_slice(b"\r\n");
    Ok((head, body))
}

/// The options of all `Connection` fields.
struct Options<'a>(SmallVec<[&'a [u8]; 8]>);

impl<'a> Options<'a> {
    fn read(headers: &[Header<'a>]) -> Result<Options<'a>, Refusal> {
        let named = elements(headers, "connection").filter(|option| !option.is_empty());
        let options: SmallVec<_> = named.take(MAX_CONNECTION_OPTIONS + 1).collect();
        if options.len() > MAX_CONNECTION_OPTIONS {
            return Err(Refusal::Malformed("too many Connection options"));
        }
        Ok(Options(options))
    }

    fn contain(&self, name: &str) -> bool {
        self.0.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Whether the upstream gets a field as the client sent it. A client cannot have the framing taken away by naming
/// it in `Connection`: its body would become a request of its own.
fn is_forwarded(name: &str, options: &Options<'_>) -> bool {
    name.eq_ignore_ascii_case("transfer-encoding")
        || !(NOT_FORWARDED.iter().any(|known| known.eq_ignore_ascii_case(name)) || options.contain(name))
}

/// The protocols that a request offers to upgrade to (RFC 9110, section 7.8), or nothing. `h2c` is left out: it is
/// gone (RFC 9113, section 3.1), and with it a client could talk to its upstream past every rule of HTTP/1.
fn upgrade_protocols(version: Version, headers: &[Header<'_>], options: &Options<'_>) -> Vec<u8> {
    match version {
        Version::Http10 => return Vec::new(),
        Version::Http11 if options.contain("upgrade") => {}
        Version::Http11 => return Vec::new(),
    }
    let offered = elements(headers, "upgrade")
        .filter(|protocol| !protocol.is_empty() && !protocol.eq_ignore_ascii_case(b"h2c"));
    offered.collect::<Vec<_>>().join(&b", "[..])
}

fn write_request_line(line: &RequestLine<'_>, head: &mut Vec<u8>) {
    head.extend_from_slice(line.method.as_bytes());
    head.push(b' ');
    line.target.write_origin_form(line.method, head);
    head.extend_from_slice(match line.version {
        Version::Http10 => b" HTTP/1.0\r\nHost: ",
        Version::Http11 => b" HTTP/1.1\r\nHost: ",
    });
    line.target.authority.write(head);
    head.extend_from_slice(b"\r\n");
}

fn write_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// The one length that all `Content-Length` fields agree on; `None` where there is none.
fn content_length(headers: &[Header<'_>]) -> Result<Option<u64>, Refusal> {
    let mut agreed = None;
    for text in elements(headers, "content-length") {
        // Digits alone: `parse` would take a sign too.
        let digits = text.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        let Some(length) = length else { return Err(Refusal::Malformed("bad Content-Length")) };
        if agreed.is_some_and(|agreed| agreed != length) {
            return Err(Refusal::Malformed("more than one Content-Length"));
        }
        agreed = Some(length);
    }
    Ok(agreed)
}

/// The elements of all fields called `name`, which are one list (RFC 9110, section 5.3), empty ones included.
fn elements<'a>(headers: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.flat_map(|header| header.value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}
