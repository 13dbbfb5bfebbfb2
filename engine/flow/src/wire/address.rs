//! Addresses as SOCKS5 has them (RFC 1928, section 5), and Shadowsocks after it: a type, an address, a port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Destination;
use super::reader::Reader;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Why some bytes are no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::wire) enum BadAddress {
    /// Of a type that there is not.
    Type,
    /// A name or a port that nobody can be reached by.
    Unreachable,
}

/// Reads an address; `None` while it is not complete.
pub(in crate::wire) fn read(reader: &mut Reader<'_>) -> Option<Result<Destination, BadAddress>> {
    let destination = match reader.byte()? {
        IPV4 => {
            let address = Ipv4Addr::from(reader.array::<4>()?);
            Ok(Destination::Address(SocketAddr::new(IpAddr::V4(address), reader.port()?)))
        }
        IPV6 => {
            let address = Ipv6Addr::from(reader.array::<16>()?);
            Ok(Destination::Address(SocketAddr::new(IpAddr::V6(address), reader.port()?)))
        }
        NAME => {
            let name = reader.counted()?;
            Destination::from_host(name, reader.port()?).map_err(|_| BadAddress::Unreachable)
        }
        _ => return Some(Err(BadAddress::Type)),
    };
    Some(destination.and_then(|destination| match destination.port() {
        0 => Err(BadAddress::Unreachable),
        _ => Ok(destination),
    }))
}

/// Writes an address.
pub(in crate::wire) fn write(destination: &Destination, out: &mut Vec<u8>) {
    match destination {
        Destination::Address(address) => match address.ip() {
            IpAddr::V4(ip) => {
                out.push(IPV4);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(IPV6);
                out.extend_from_slice(&ip.octets());
            }
        },
        Destination::Name(name, _) => {
            // Names are no longer than an octet can say.
            out.extend_from_slice(&[NAME, name.as_str().len() as u8]);
            out.extend_from_slice(name.as_str().as_bytes());
        }
    }
    out.extend_from_slice(&destination.port().to_be_bytes());
}
