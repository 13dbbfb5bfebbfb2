//! Version 2: binary, with fields of type, length and value (section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::reader::Reader;
use super::{Ends, Header, HeaderError};

/// The longest header that is read. Addresses take 52 bytes at most; the fields of a sender that passes a client's
/// certificate on are the longest that occur.
pub const MAX_V2_BYTES: usize = 4096;

/// The longest unique id (section 2.2.6).
pub const MAX_UNIQUE_ID_BYTES: usize = 128;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length of the rest.
const FIXED_BYTES: usize = 16;
const VERSION: u8 = 2;

const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const STREAM_IPV4: u8 = 0x11;
const STREAM_IPV6: u8 = 0x21;
/// Two paths.
const UNIX_ADDRESSES_BYTES: usize = 216;

const FIELD_HEAD_BYTES: usize = 3;
const FIELD_CRC32C: u8 = 0x03;
const FIELD_UNIQUE_ID: u8 = 0x05;

pub(super) fn read(input: &[u8]) -> Result<Option<(usize, Header)>, HeaderError> {
    let known = input.len().min(SIGNATURE.len());
    if input[..known] != SIGNATURE[..known] {
        return Err(HeaderError::Missing);
    }
    let Some(&[.., version_command, kind, high, low]) = input.first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let (version, command) = (version_command >> 4, version_command & 0xf);
    let (family, transport) = (kind >> 4, kind & 0xf);
    if version != VERSION || command > COMMAND_PROXY || family > 3 || transport > 2 {
        return Err(HeaderError::Unknown);
    }
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2_BYTES {
        return Err(HeaderError::TooLong);
    }
    let Some(header) = input.get(..length) else { return Ok(None) };
    // What a sender says that speaks for itself is to be discarded, and so is what has no known family.
    let header = match (command, family) {
        (COMMAND_LOCAL, _) | (_, 0) => Header::default(),
        (_, _) => read_block(header, kind)?,
    };
    Ok(Some((length, header)))
}

/// Addresses and fields.
fn read_block(header: &[u8], kind: u8) -> Result<Header, HeaderError> {
    let mut reader = Reader::new(&header[FIXED_BYTES..]);
    let ends = read_addresses(&mut reader, kind).ok_or(HeaderError::BadAddress)?;
    let at = FIXED_BYTES + reader.consumed(&header[FIXED_BYTES..]);
    let unique_id = read_fields(header, at)?;
    // Datagrams do not come here, and Unix sockets have no address that anything could go by.
    let is_stream = matches!(kind, STREAM_IPV4 | STREAM_IPV6);
    Ok(Header { ends: ends.filter(|_| is_stream), unique_id })
}

fn read_addresses(reader: &mut Reader<'_>, kind: u8) -> Option<Option<Ends>> {
    let (source, destination): (IpAddr, IpAddr) = match kind >> 4 {
        1 => (Ipv4Addr::from(reader.array::<4>()?).into(), Ipv4Addr::from(reader.array::<4>()?).into()),
        2 => (Ipv6Addr::from(reader.array::<16>()?).into(), Ipv6Addr::from(reader.array::<16>()?).into()),
        _ => {
            reader.array::<UNIX_ADDRESSES_BYTES>()?;
            return Some(None);
        }
    };
    let (from, to) = (reader.port()?, reader.port()?);
    let (source, destination) = (SocketAddr::new(source, from), SocketAddr::new(destination, to));
    Some(Some(Ends { source, destination }))
}

/// Reads the fields from `at` on: the unique id, if there is one. All others are passed over.
fn read_fields(header: &[u8], mut at: usize) -> Result<Option<Box<[u8]>>, HeaderError> {
    let mut unique_id = None;
    while at < header.len() {
        let Some(&[kind, high, low]) = header[at..].first_chunk::<FIELD_HEAD_BYTES>() else {
            return Err(HeaderError::BadField);
        };
        let begin = at + FIELD_HEAD_BYTES;
        at = begin + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(begin..at).ok_or(HeaderError::BadField)?;
        match kind {
            FIELD_CRC32C => {
                let said = u32::from_be_bytes(value.try_into().map_err(|_| HeaderError::BadField)?);
                // Over the whole header, with the checksum itself as zeros (section 2.2.4).
                let parts = [&header[..begin], &[0; 4], &header[at..]];
                if crc32c(parts) != said {
                    return Err(HeaderError::BadChecksum);
                }
            }
            FIELD_UNIQUE_ID if value.is_empty() => {}
            FIELD_UNIQUE_ID if value.len() > MAX_UNIQUE_ID_BYTES => return Err(HeaderError::BadField),
            FIELD_UNIQUE_ID => unique_id = Some(value.into()),
            _ => {}
        }
    }
    Ok(unique_id)
}

/// The ends are of one family.
pub(super) fn write(ends: Option<Ends>, unique_id: Option<&[u8]>, out: &mut Vec<u8>) {
    let unique_id = unique_id.filter(|id| (1..=MAX_UNIQUE_ID_BYTES).contains(&id.len()));
    let mut block = Vec::with_capacity(64);
    let kind = match ends {
        None => 0,
        Some(Ends { source, destination }) => {
            for ip in [source.ip(), destination.ip()] {
                match ip {
                    IpAddr::V4(ip) => block.extend(ip.octets()),
                    IpAddr::V6(ip) => block.extend(ip.octets()),
                }
            }
            block.extend(source.port().to_be_bytes());
            block.extend(destination.port().to_be_bytes());
            if source.is_ipv4() { STREAM_IPV4 } else { STREAM_IPV6 }
        }
    };
    if let Some(id) = unique_id {
        // At most 128.
        block.extend([FIELD_UNIQUE_ID, 0, id.len() as u8]);
        block.extend_from_slice(id);
    }
    out.extend(SIGNATURE);
    // Far below 64 KiB.
    let length = block.len() as u16;
    out.extend([VERSION << 4 | COMMAND_PROXY, kind]);
    out.extend(length.to_be_bytes());
    out.append(&mut block);
}

pub(super) fn write_local(out: &mut Vec<u8>) {
    out.extend(SIGNATURE);
    out.extend([VERSION << 4 | COMMAND_LOCAL, 0, 0, 0]);
}

/// The polynomial of Castagnoli, its bits in reverse (RFC 3309).
const CASTAGNOLI: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut rest = index as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { rest >> 1 ^ CASTAGNOLI } else { rest >> 1 };
            bit += 1;
        }
        table[index] = rest;
        index += 1;
    }
    table
};

fn crc32c<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let step = |sum: u32, byte: &u8| TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8;
    !parts.into_iter().flatten().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2];

    fn header(command: u8, kind: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, kind], &length, block].concat()
    }

    fn with_fields(fields: &[u8]) -> Vec<u8> {
        header(1, STREAM_IPV4, &[&ADDRESSES, fields].concat())
    }

    #[test]
    fn the_checksum_is_that_of_castagnoli() {
        assert_eq!(crc32c([&b"123456789"[..]]), 0xe306_9283);
        assert_eq!(crc32c([&[0; 32][..]]), 0x8a91_36aa);
    }

    #[test]
    fn a_checksum_that_is_there_is_checked() {
        // A field of another kind on either side.
        let fields =
            [&[0x02, 0, 1, b'a'][..], &[FIELD_CRC32C, 0, 4, 0, 0, 0, 0], &[0x04, 0, 2, 0, 0]].concat();
        let mut bytes = with_fields(&fields);
        let at = FIXED_BYTES + ADDRESSES.len() + 4 + FIELD_HEAD_BYTES;
        let sum = crc32c([&bytes[..]]).to_be_bytes();
        bytes[at..at + 4].copy_from_slice(&sum);
        assert!(matches!(read(&bytes), Ok(Some((_, Header { ends: Some(_), .. })))));
        // All but the byte that says that it is a checksum.
        for index in (FIXED_BYTES..bytes.len()).filter(|index| *index != at - FIELD_HEAD_BYTES) {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(read(&damaged).is_err(), "byte {index}");
        }
    }

    #[test]
    fn fields_that_overrun_the_header_are_refused() {
        for fields in [
            &[FIELD_UNIQUE_ID][..],
            &[FIELD_UNIQUE_ID, 0],
            &[FIELD_UNIQUE_ID, 0, 2, 1],
            &[0x04, 0xff, 0xff],
            &[FIELD_CRC32C, 0, 3, 0, 0, 0],
            &[&[FIELD_UNIQUE_ID, 0, 129][..], &[0; 129]].concat(),
        ] {
            assert_eq!(read(&with_fields(fields)), Err(HeaderError::BadField), "{fields:?}");
        }
        // The bytes behind the header are payload, whatever a field says.
        let joined = [&with_fields(&[FIELD_UNIQUE_ID, 0, 2, 1])[..], b"payload"].concat();
        assert_eq!(read(&joined), Err(HeaderError::BadField));
    }

    #[test]
    fn senders_that_speak_for_themselves_leave_the_connection_as_it_is() {
        for (command, kind, block) in [
            (0, 0, &[][..]),
            (0, STREAM_IPV4, &ADDRESSES),
            (0, STREAM_IPV4, &[1]),
            (1, 0, &[1, 2, 3]),
            (1, 0x31, &[0; UNIX_ADDRESSES_BYTES]),
            (1, 0x12, &ADDRESSES),
        ] {
            let bytes = header(command, kind, block);
            assert_eq!(read(&bytes), Ok(Some((bytes.len(), Header::default()))), "{command} {kind:#x}");
        }
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for (command, kind) in [(2, STREAM_IPV4), (15, 0), (1, 0x41), (1, 0x13), (0, 0xff)] {
            assert_eq!(read(&header(command, kind, &ADDRESSES)), Err(HeaderError::Unknown));
        }
        let mut other_version = header(1, STREAM_IPV4, &ADDRESSES);
        other_version[12] = 0x11;
        assert_eq!(read(&other_version), Err(HeaderError::Unknown));
        for (kind, bytes) in [(STREAM_IPV4, 11), (STREAM_IPV6, 35), (0x31, 215)] {
            assert_eq!(read(&header(1, kind, &vec![0; bytes])), Err(HeaderError::BadAddress), "{kind:#x}");
        }
        let long = header(1, STREAM_IPV4, &[0; MAX_V2_BYTES]);
        assert_eq!(read(&long[..FIXED_BYTES]), Err(HeaderError::TooLong));
    }
}
