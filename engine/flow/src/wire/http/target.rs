//! What a request line asks for (RFC 9112, section 3.2; RFC 3986).

use super::reply::Refusal;
use crate::wire::Destination;

/// The port of `http://` without one (RFC 9110, section 4.2.1).
pub(super) const HTTP_PORT: u16 = 80;

/// A request target that a proxy can serve.
pub(super) enum Target<'a> {
    /// CONNECT to a host and port.
    Tunnel { authority: Authority<'a>, port: u16 },
    /// Anything else, with a whole `http://` URI.
    Absolute(Absolute<'a>),
}

/// A whole `http://` URI.
pub(super) struct Absolute<'a> {
    /// Where it points.
    pub(super) authority: Authority<'a>,
    /// What follows the authority, without the fragment. May be empty.
    path_and_query: &'a str,
}

/// A host, and a port where one is written.
pub(super) struct Authority<'a> {
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Target<'a> {
    pub(super) fn parse(method: &str, uri: &'a str) -> Result<Target<'a>, Refusal> {
        if method == "CONNECT" {
            let authority = Authority::parse(uri)?;
            let Some(port) = authority.port else {
                return Err(Refusal::Malformed("CONNECT needs host:port"));
            };
            return Ok(Target::Tunnel { authority, port });
        }
        let Some((scheme, rest)) = uri.split_once("://") else { return Err(Refusal::NoProxyRequest) };
        if scheme.starts_with(['/', '*']) {
            return Err(Refusal::NoProxyRequest);
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(Refusal::SchemeUnsupported);
        }
        let rest = rest.split_once('#').map_or(rest, |(before, _fragment)| before);
        let (authority, path_and_query) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Ok(Target::Absolute(Absolute { authority: Authority::parse(authority)?, path_and_query }))
    }
}

impl Absolute<'_> {
    /// Writes the target as the origin server wants it (RFC 9112, sections 3.2.1 and 3.2.4).
    pub(super) fn write_origin_form(&self, method: &str, out: &mut Vec<u8>) {
        if self.path_and_query.is_empty() {
            out.push(if method == "OPTIONS" { b'*' } else { b'/' });
        } else if self.path_and_query.starts_with('?') {
            out.push(b'/');
        }
        out.extend_from_slice(self.path_and_query.as_bytes());
    }
}

impl<'a> Authority<'a> {
    fn parse(text: &'a str) -> Result<Authority<'a>, Refusal> {
        if text.contains('@') {
            // RFC 9110, section 4.2.4.
            return Err(Refusal::Malformed("user names and passwords do not belong into a URI"));
        }
        let (host, port) = match text.rfind(']') {
            Some(bracket) => text.split_at(bracket + 1),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port {
            "" | ":" => None,
            _ => Some(port.strip_prefix(':').and_then(parse_port).ok_or(Refusal::Malformed("bad port"))?),
        };
        Ok(Authority { host, port })
    }

    /// The destination, with `default_port` where none is written.
    pub(super) fn destination(&self, default_port: u16) -> Result<Destination, Refusal> {
        // Brackets are for IPv6 alone (RFC 3986, section 3.2.2).
        if self.host.starts_with('[') && !self.host.contains(':') {
            return Err(Refusal::BAD_HOST);
        }
        Destination::from_host(self.host.as_bytes(), self.port.unwrap_or(default_port))
            .map_err(|_| Refusal::BAD_HOST)
    }

    /// Writes it as the value of a `Host` field.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.host.as_bytes());
        if let Some(port) = self.port {
            out.extend_from_slice(format!(":{port}").as_bytes());
        }
    }
}

/// Digits alone: `parse` would take a sign too. Nobody listens at port 0.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|&port| port != 0)
}
