//! Which country an address is in, as a table says.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// A country by its two letters (ISO 3166-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code([u8; 2]);

impl Code {
    /// Reads two letters of either case.
    pub fn parse(text: &str) -> Option<Code> {
        match *text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Code([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or("??"))
    }
}

/// The countries of networks: sorted ranges, searched by halves.
#[derive(Clone, Debug, Default)]
pub struct Countries {
    v4: Box<[(u32, u32, Code)]>,
    v6: Box<[(u128, u128, Code)]>,
}

/// Countries that a condition is about, and the table by which they are known.
#[derive(Clone, Debug)]
pub struct Origins {
    /// The table.
    pub countries: Arc<Countries>,
    /// The countries.
    pub codes: Arc<[Code]>,
}

impl Origins {
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.countries.find(address).is_some_and(|code| self.codes.contains(&code))
    }
}

impl Countries {
    /// A table of networks that do not overlap; of those that do, any may be found.
    pub fn new(networks: impl IntoIterator<Item = (IpNet, Code)>) -> Countries {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, code) in networks {
            match network {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits(), code)),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits(), code)),
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        Countries { v4: v4.into(), v6: v6.into() }
    }

    /// The country of an address, where it is known.
    pub fn find(&self, address: IpAddr) -> Option<Code> {
        match address.to_canonical() {
            IpAddr::V4(address) => find(&self.v4, address.to_bits()),
            IpAddr::V6(address) => find(&self.v6, address.to_bits()),
        }
    }

    /// How many networks there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn find<T: Copy + Ord>(ranges: &[(T, T, Code)], wanted: T) -> Option<Code> {
    let behind = ranges.partition_point(|(from, ..)| *from <= wanted);
    let (_, to, code) = ranges[behind.checked_sub(1)?];
    (wanted <= to).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_their_networks_alone() {
        let entry = |network: &str, code| (network.parse().unwrap(), Code::parse(code).unwrap());
        let table = Countries::new([
            entry("192.0.2.0/24", "de"),
            entry("2001:db8::/32", "FR"),
            entry("10.0.0.0/8", "CN"),
        ]);
        let find = |text: &str| table.find(text.parse().unwrap()).map(|code| code.to_string());
        assert_eq!(find("192.0.2.200").as_deref(), Some("DE"));
        assert_eq!(find("::ffff:10.0.0.1").as_deref(), Some("CN"));
        assert_eq!(find("2001:db8:1::1").as_deref(), Some("FR"));
        assert_eq!(
            [find("192.0.3.0"), find("9.9.9.9"), find("2001:db9::"), find("::")],
            [None, None, None, None]
        );
        assert_eq!([Code::parse("D"), Code::parse("DEU"), Code::parse("d1")], [None, None, None]);
    }
}
