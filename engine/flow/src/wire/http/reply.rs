//! What a client is told, and why its request ends here.

use std::borrow::Cow;

use crate::close::CloseReason;
use crate::wire::{Failure, Progress};

/// The answer to a CONNECT whose tunnel is open (RFC 9110, section 9.3.6).
pub(in crate::wire) const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Why a request is refused before anything was dialled.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is no valid HTTP; the text says what is wrong.
    Malformed(&'static str),
    /// Its head is longer than [`super::MAX_HEAD_BYTES`].
    HeadTooLarge,
    /// It has more than [`super::MAX_HEADERS`] fields.
    TooManyFields,
    /// It is of a version other than 1.0 and 1.1.
    VersionUnsupported,
    /// It comes without a user and password that may pass.
    AuthenticationRequired,
    /// Its password cannot be looked at: too many others wait.
    TooManyLogins,
    /// It is meant for an origin server.
    NoProxyRequest,
    /// It asks for a URI that is not `http://`.
    SchemeUnsupported,
}

/// A status line without its version.
#[derive(Clone, Copy)]
enum Status {
    BadRequest,
    Forbidden,
    ProxyAuthenticationRequired,
    HeaderFieldsTooLarge,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
    VersionNotSupported,
}

impl Refusal {
    pub(super) const BAD_HOST: Refusal = Refusal::Malformed("bad host");

    /// What the parser found wrong with `head`.
    pub(super) fn from_parser(error: httparse::Error, head: &[u8]) -> Refusal {
        match error {
            httparse::Error::TooManyHeaders => Refusal::TooManyFields,
            httparse::Error::Version if names_a_version(head) => Refusal::VersionUnsupported,
            httparse::Error::Version => Refusal::Malformed("no HTTP version in the first line"),
            httparse::Error::HeaderName => Refusal::Malformed("bad header field name"),
            httparse::Error::HeaderValue => Refusal::Malformed("bad header field value"),
            httparse::Error::NewLine => Refusal::Malformed("bad line end"),
            httparse::Error::Token | httparse::Error::Status => Refusal::Malformed("bad first line"),
        }
    }

    pub(super) fn into_progress(self) -> Progress {
        Progress::refuse(response(self.status(), self.text()), self.reason())
    }

    fn status(&self) -> Status {
        match self {
            Refusal::Malformed(_) | Refusal::NoProxyRequest | Refusal::SchemeUnsupported => {
                Status::BadRequest
            }
            Refusal::HeadTooLarge | Refusal::TooManyFields => Status::HeaderFieldsTooLarge,
            Refusal::VersionUnsupported => Status::VersionNotSupported,
            Refusal::AuthenticationRequired => Status::ProxyAuthenticationRequired,
            Refusal::TooManyLogins => Status::ServiceUnavailable,
        }
    }

    fn text(&self) -> &'static str {
        match self {
            Refusal::Malformed(text) => text,
            Refusal::HeadTooLarge => "the request's head is too large",
            Refusal::TooManyFields => "the request has too many header fields",
            Refusal::VersionUnsupported => "this proxy speaks HTTP/1.0 and HTTP/1.1",
            Refusal::AuthenticationRequired => "a user and password are needed here",
            Refusal::TooManyLogins => "too many passwords wait to be verified: try again",
            Refusal::NoProxyRequest => {
                "this is a proxy: ask for a whole URI (GET http://host/path) or CONNECT host:port"
            }
            Refusal::SchemeUnsupported => "only http:// is forwarded; use CONNECT for https:// and the rest",
        }
    }

    fn reason(&self) -> CloseReason {
        match self {
            Refusal::Malformed(_)
            | Refusal::HeadTooLarge
            | Refusal::TooManyFields
            | Refusal::NoProxyRequest => CloseReason::ClientProtocol,
            Refusal::VersionUnsupported | Refusal::SchemeUnsupported => CloseReason::ClientUnsupported,
            Refusal::AuthenticationRequired => CloseReason::ClientAuthentication,
            Refusal::TooManyLogins => CloseReason::TooManyLogins,
        }
    }
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::BadRequest => "400 Bad Request",
            Status::Forbidden => "403 Forbidden",
            Status::ProxyAuthenticationRequired => "407 Proxy Authentication Required",
            Status::HeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Status::BadGateway => "502 Bad Gateway",
            Status::ServiceUnavailable => "503 Service Unavailable",
            Status::GatewayTimeout => "504 Gateway Timeout",
            Status::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }

    /// The fields that this status alone has.
    fn fields(self) -> &'static str {
        match self {
            // RFC 9110, section 11.7.1; RFC 7617.
            Status::ProxyAuthenticationRequired => "Proxy-Authenticate: Basic realm=\"ringweir\"\r\n",
            Status::BadRequest
            | Status::Forbidden
            | Status::HeaderFieldsTooLarge
            | Status::BadGateway
            | Status::ServiceUnavailable
            | Status::GatewayTimeout
            | Status::VersionNotSupported => "",
        }
    }
}

/// The response to a request that could not be fulfilled.
pub(in crate::wire) fn failure(failure: Failure) -> Cow<'static, [u8]> {
    let (status, text) = match failure {
        Failure::Refused => (Status::BadGateway, "connection refused"),
        Failure::TimedOut => (Status::GatewayTimeout, "connecting timed out"),
        Failure::NetworkUnreachable => (Status::BadGateway, "network unreachable"),
        Failure::HostUnreachable => (Status::BadGateway, "host unreachable"),
        Failure::NotAllowed => (Status::Forbidden, "this destination is not allowed"),
        Failure::NotResolved => (Status::BadGateway, "the host name could not be resolved"),
        Failure::NoTarget => (Status::ServiceUnavailable, "no upstream is up"),
        Failure::Rejected => (Status::Forbidden, "rejected"),
        Failure::OutOfResources => (Status::ServiceUnavailable, "the proxy is out of resources"),
        Failure::General => (Status::BadGateway, "connecting failed"),
    };
    response(status, text).into()
}

fn response(status: Status, text: &str) -> Vec<u8> {
    let (line, fields, bytes) = (status.line(), status.fields(), text.len() + 1);
    format!(
        "HTTP/1.1 {line}\r\n{fields}Content-Type: text/plain\r\nContent-Length: {bytes}\r\n\
         Connection: close\r\n\r\n{text}\n"
    )
    .into()
}

/// Whether the first line ends in a version that is not ours, rather than in anything else.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|&byte| byte == b'\n').next().unwrap_or_default();
    let last = line.trim_ascii_end().rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    last.strip_prefix(b"HTTP/").is_some_and(|version| version.first().is_some_and(u8::is_ascii_digit))
}
