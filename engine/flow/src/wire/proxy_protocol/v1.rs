//! Version 1: a line (section 2.1).

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::{Ends, Header, HeaderError};

/// The longest line, its end included (section 2.1).
pub const MAX_V1_BYTES: usize = 107;

const BEGIN: &[u8] = b"PROXY ";

pub(super) fn read(input: &[u8]) -> Result<Option<(usize, Header)>, HeaderError> {
    let known = input.len().min(BEGIN.len());
    if input[..known] != BEGIN[..known] {
        return Err(HeaderError::Missing);
    }
    let window = &input[..input.len().min(MAX_V1_BYTES)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() == MAX_V1_BYTES { Err(HeaderError::TooLong) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").and_then(|line| line.strip_prefix(BEGIN));
    let line = line.and_then(|line| std::str::from_utf8(line).ok()).ok_or(HeaderError::Unknown)?;
    let ends = match line.split_once(' ') {
        Some(("TCP4", rest)) => Some(ends::<std::net::Ipv4Addr>(rest)?),
        Some(("TCP6", rest)) => Some(ends::<std::net::Ipv6Addr>(rest)?),
        // What follows is to be ignored.
        Some(("UNKNOWN", _)) => None,
        None if line == "UNKNOWN" => None,
        Some(_) | None => return Err(HeaderError::Unknown),
    };
    Ok(Some((end + 1, Header { ends, unique_id: None })))
}

fn ends<Ip: FromStr + Into<IpAddr>>(text: &str) -> Result<Ends, HeaderError> {
    let ip = |text: &str| text.parse::<Ip>().ok().map(Into::into);
    let words: Vec<&str> = text.splitn(5, ' ').collect();
    let [source, destination, from, to] = words[..] else { return Err(HeaderError::BadAddress) };
    let end = |address, from| Some(SocketAddr::new(ip(address)?, port(from)?));
    let ends = end(source, from).zip(end(destination, to));
    ends.map(|(source, destination)| Ends { source, destination }).ok_or(HeaderError::BadAddress)
}

/// Digits without zeros before them.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// The ends are of one family.
pub(super) fn write(ends: Option<Ends>, out: &mut Vec<u8>) {
    let written = match ends {
        None => out.write_all(b"PROXY UNKNOWN\r\n"),
        Some(Ends { source, destination }) => {
            let family = if source.is_ipv4() { 4 } else { 6 };
            let (from, to) = (source.port(), destination.port());
            write!(out, "PROXY TCP{family} {} {} {from} {to}\r\n", source.ip(), destination.ip())
        }
    };
    // A vector takes everything.
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Option<(usize, Header)>, HeaderError> {
        read(text.as_bytes())
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        let worst =
            format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", "ffff:f...f:ffff".repeat(3).get(..39).unwrap());
        assert_eq!(worst.len(), MAX_V1_BYTES);
        assert_eq!(line(&worst), Ok(Some((MAX_V1_BYTES, Header::default()))));
        assert_eq!(line("PROXY UNKNOWN\r\nGET"), Ok(Some((15, Header::default()))));
        let text = "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n";
        let (consumed, header) = line(&format!("{text}GET / HTTP/1.1\r\n")).unwrap().unwrap();
        let ends = header.ends.unwrap();
        assert_eq!((consumed, ends.source), (text.len(), "192.168.0.1:56324".parse().unwrap()));
        assert_eq!(ends.destination, "192.168.0.11:443".parse().unwrap());
    }

    #[test]
    fn what_is_not_as_written_there_is_refused() {
        for text in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        ] {
            assert_eq!(line(text), Err(HeaderError::BadAddress), "{text:?}");
        }
        for text in ["PROXY TCP5 ::1 ::2 1 2\r\n", "PROXY UNKNOWN\n", "PROXY \r\n", "PROXY UNKNOWNX\r\n"] {
            assert_eq!(line(text), Err(HeaderError::Unknown), "{text:?}");
        }
        assert_eq!(line("PROXX"), Err(HeaderError::Missing));
        assert_eq!(line(&format!("PROXY UNKNOWN {}", "x".repeat(100))), Err(HeaderError::TooLong));
    }
}
