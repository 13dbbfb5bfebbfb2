//! What a server's first answer shows of the value that its client will come back with.

/// The value that an HTTP/1 response sets a cookie to (RFC 6265, section 4.1): the first in as much of the response as
/// there is. A line that has not ended is not read.
pub fn set_cookie<'a>(answer: &'a [u8], name: &str) -> Option<&'a [u8]> {
    const FIELD: &[u8] = b"set-cookie:";
    let mut lines = answer.strip_prefix(b"HTTP/1.")?.split_inclusive(|byte| *byte == b'\n').skip(1);
    lines.find_map(|line| {
        let line = line.strip_suffix(b"\n")?;
        if line.trim_ascii().is_empty() {
            // The head has ended.
            return Some(None);
        }
        let (field, value) = line.split_at_checked(FIELD.len())?;
        let pair = value.split(|byte| *byte == b';').next()?.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        field.eq_ignore_ascii_case(FIELD).then_some(Some(value))
    })?
}

/// The value of a key of the packet that opens a session of Engine.IO, which Socket.IO stands on (its protocol,
/// "Handshake"): `0{"sid":"…",…}`, in the body of an HTTP/1 response.
pub fn opened_session<'a>(answer: &'a [u8], key: &str) -> Option<&'a [u8]> {
    const OPEN: &[u8] = b"0{";
    let head_end = position(answer.strip_prefix(b"HTTP/1.")?, b"\r\n\r\n")?;
    let body = answer.get(b"HTTP/1.".len() + head_end..)?;
    let packet = &body[position(body, OPEN)? + OPEN.len()..];
    let field = format!("\"{key}\":\"");
    let value = &packet[position(packet, field.as_bytes())? + field.len()..];
    let end = value.iter().position(|byte| *byte == b'"')?;
    Some(&value[..end])
}

fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nSet-Cookie: other=1\r\nset-cookie:id=a=b; Path=/\r\n\
        Set-Cookie: id=second\r\n\r\nSet-Cookie: body=1\r\n96\r\n0{\"sid\":\"lv_VI97HAXpY6yYWAAAC\",\"upgrades\":[]}";

    #[test]
    fn the_first_cookie_of_the_name_is_found_in_the_head_alone() {
        assert_eq!(set_cookie(ANSWER, "id"), Some(&b"a=b"[..]));
        assert_eq!(set_cookie(ANSWER, "other"), Some(&b"1"[..]));
        for name in ["body", "i", "ath", "OTHER"] {
            assert_eq!(set_cookie(ANSWER, name), None, "{name}");
        }
        assert_eq!(set_cookie(b"HTTP/1.1 200 OK\r\nSet-Cookie: id=cut", "id"), None);
        assert_eq!(set_cookie(b"SSH-2.0\r\nSet-Cookie: id=1\r\n", "id"), None);
    }

    #[test]
    fn the_packet_that_opens_a_session_is_found_in_the_body() {
        assert_eq!(opened_session(ANSWER, "sid"), Some(&b"lv_VI97HAXpY6yYWAAAC"[..]));
        assert_eq!(opened_session(ANSWER, "id"), None);
        assert_eq!(opened_session(b"HTTP/1.1 200 OK\r\n\r\n0{\"sid\":\"cut", "sid"), None);
        assert_eq!(opened_session(b"HTTP/1.1 200 OK\r\n\r\n4{\"sid\":\"a\"}", "sid"), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_borne(noise in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..240) {
            let cut = &ANSWER[..cut.min(ANSWER.len())];
            for bytes in [&noise[..], &[cut, &noise].concat(), &[b"HTTP/1.1", &noise[..]].concat()] {
                set_cookie(bytes, "id");
                opened_session(bytes, "sid");
            }
        }
    }
}
