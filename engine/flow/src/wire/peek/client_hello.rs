//! The ClientHello of TLS (RFC 8446, section 4.1.2, and its like since TLS 1.0): the names in it that are readable
//! (RFC 6066, section 3; RFC 7301). Of an encrypted one (ECH) that is the outer part.

use crate::wire::reader::Reader;
use crate::wire::{Destination, HostName};

/// The content type of the records (RFC 8446, section 5.1).
pub const CONTENT_HANDSHAKE: u8 = 22;

/// The longest fragment of a record (RFC 8446, section 5.1).
const MAX_FRAGMENT_BYTES: usize = 1 << 14;
const RECORD_HEAD_BYTES: usize = 5;
const MESSAGE_HEAD_BYTES: usize = 4;
/// Of every TLS version (and of none of SSL 2).
const MAJOR_VERSION: u8 = 3;

const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const NAME_HOST: u8 = 0;

/// What a ClientHello shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server that is asked for (SNI).
    pub server_name: Option<HostName>,
    /// The protocols that the client offers (ALPN), as they are written.
    pub protocols: Vec<Box<[u8]>>,
}

/// The bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHello;

/// Reads a ClientHello from the beginning of a stream, over as many records as it has. `None` while it is incomplete.
///
/// # Errors
/// [`NotAHello`] as soon as it is known to be none.
pub fn read(input: &[u8]) -> Result<Option<ClientHello>, NotAHello> {
    let mut message = Vec::new();
    let mut rest = input;
    loop {
        if let Some(body) = body_of(&message)? {
            return parse(body).map(Some).ok_or(NotAHello);
        }
        if rest.first().is_some_and(|kind| *kind != CONTENT_HANDSHAKE)
            || rest.get(1).is_some_and(|major| *major != MAJOR_VERSION)
        {
            return Err(NotAHello);
        }
        let Some((&[_, _, _, high, low], after)) = rest.split_first_chunk::<RECORD_HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(1..=MAX_FRAGMENT_BYTES).contains(&length) {
            return Err(NotAHello);
        }
        let (fragment, next) = after.split_at(length.min(after.len()));
        message.extend_from_slice(fragment);
        rest = next;
        if fragment.len() < length {
            let body = body_of(&message)?;
            return body.map(|body| parse(body).ok_or(NotAHello)).transpose();
        }
    }
}

/// The body of the message, once it is all there.
fn body_of(message: &[u8]) -> Result<Option<&[u8]>, NotAHello> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NotAHello);
    }
    let Some((&[_, high, middle, low], rest)) = message.split_first_chunk::<MESSAGE_HEAD_BYTES>() else {
        return Ok(None);
    };
    Ok(rest.get(..u32::from_be_bytes([0, high, middle, low]) as usize))
}

fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader::new(body);
    // Version and random.
    reader.array::<34>()?;
    let _session = reader.counted()?;
    let _cipher_suites = reader.counted16()?;
    let _compression = reader.counted()?;
    let mut hello = ClientHello::default();
    if reader.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader::new(reader.counted16()?);
    let mut has_name = false;
    while !extensions.is_empty() {
        let kind = u16::from_be_bytes(extensions.array()?);
        let value = extensions.counted16()?;
        match kind {
            // Twice is forbidden (RFC 8446, section 4.2): the server might go by the other.
            EXTENSION_SERVER_NAME if has_name => return None,
            EXTENSION_SERVER_NAME => {
                has_name = true;
                hello.server_name = server_name(value)?;
            }
            EXTENSION_ALPN => hello.protocols = protocols(value)?,
            _ => {}
        }
    }
    reader.is_empty().then_some(hello)
}

/// The first host name; an address is none (RFC 6066, section 3).
fn server_name(value: &[u8]) -> Option<Option<HostName>> {
    let mut value = Reader::new(value);
    let mut names = Reader::new(value.counted16()?);
    let mut found = None;
    while !names.is_empty() {
        let kind = names.byte()?;
        let name = names.counted16()?;
        if kind == NAME_HOST && found.is_none() {
            found = match Destination::from_host(name, 0) {
                Ok(Destination::Name(name, _)) => Some(name),
                Ok(Destination::Address(_)) | Err(_) => None,
            };
        }
    }
    Some(found)
}

fn protocols(value: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut value = Reader::new(value);
    let mut list = Reader::new(value.counted16()?);
    let mut found = Vec::new();
    while !list.is_empty() {
        found.push(list.counted()?.into());
    }
    Some(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn counted(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &counted(value)].concat()
    }

    pub(in crate::wire::peek) fn sni(name: &str) -> Vec<u8> {
        extension(0, &counted(&[&[NAME_HOST][..], &counted(name.as_bytes())].concat()))
    }

    /// A ClientHello with these extensions.
    pub(in crate::wire::peek) fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let fixed = [&[3, 3][..], &[7; 32], &[32], &[9; 32], &[0, 4, 0x13, 1, 0x13, 2], &[1, 0]].concat();
        let body = [fixed, counted(&extensions.concat())].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO], &length[1..], &body].concat()
    }

    /// The message over records that are cut so, and the rest in one more.
    pub(in crate::wire::peek) fn records(message: &[u8], cuts: &[usize]) -> Vec<u8> {
        let (mut all, mut rest) = (Vec::new(), message);
        for &bytes in cuts.iter().chain([&message.len()]) {
            let (fragment, next) = rest.split_at(bytes.min(rest.len()));
            rest = next;
            if !fragment.is_empty() {
                all.extend([CONTENT_HANDSHAKE, 3, 1]);
                all.extend(counted(fragment));
            }
        }
        all
    }

    #[test]
    fn names_and_protocols_are_read_whatever_stands_beside_them() {
        let alpn = extension(16, &counted(b"\x02h2\x08http/1.1"));
        let ech = extension(0xfe0d, &[0; 200]);
        let message = message(&[extension(0x0a0a, b""), ech, sni("Outer.Example"), alpn]);
        let hello = read(&records(&message, &[])).unwrap().unwrap();
        assert_eq!(hello.server_name.unwrap().as_str(), "Outer.Example");
        assert_eq!(hello.protocols, [Box::from(&b"h2"[..]), Box::from(&b"http/1.1"[..])]);
    }

    #[test]
    fn a_hello_without_a_name_is_one_too() {
        for extensions in [vec![], vec![sni("192.0.2.1")], vec![sni("a b")]] {
            let hello = read(&records(&message(&extensions), &[3, 1])).unwrap().unwrap();
            assert_eq!(hello, ClientHello::default());
        }
    }

    #[test]
    fn what_is_not_as_it_must_be_is_no_hello() {
        let sound = records(&message(&[sni("a.example")]), &[]);
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            bytes
        };
        // Content, major version, message type, length of the session id.
        for (at, byte) in [(0, 23), (1, 2), (5, 2), (9 + 34, 0xff)] {
            assert_eq!(read(&with(at, byte)), Err(NotAHello), "{at}");
        }
        let twice = records(&message(&[sni("a.example"), sni("b.example")]), &[]);
        assert_eq!(read(&twice), Err(NotAHello));
        assert_eq!(read(&[22, 3, 1, 0, 0]), Err(NotAHello), "an empty record");
        assert_eq!(read(&[22, 3, 1, 0x40, 1]), Err(NotAHello), "a record that is too long");
        let other_record_between = [&records(&message(&[]), &[9])[..14], &[21, 3, 1, 0, 2, 1, 0]].concat();
        assert_eq!(read(&other_record_between), Err(NotAHello));
    }
}
