//! Which addresses `direct` may dial for the clients of a listener.
//!
//! A proxy that outsiders may use must not become their way into the machine's own services: loopback, link-local
//! and cloud metadata addresses are refused there unless the operator allows them. *The address that is really
//! dialled is judged*, after resolution, so a name that resolves (or later re-resolves) to such an address is
//! refused as well, and so are the IPv6 forms that carry an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

/// Which destinations may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Any: the listener itself is reachable from this machine alone.
    Anywhere,
    /// Any but local ones, with exceptions in `allowed`.
    NotLocal {
        /// Local networks that may be dialled all the same.
        allowed: Arc<[IpNet]>,
    },
}

impl Reach {
    /// Whether `address` may be dialled.
    pub fn permits(&self, address: IpAddr) -> bool {
        match self {
            Reach::Anywhere => true,
            Reach::NotLocal { allowed } => {
                let inner = embedded_ipv4(address).map_or(address, IpAddr::V4);
                if allowed.iter().any(|net| net.contains(&inner) || net.contains(&address)) {
                    return true;
                }
                !is_local(address) && !is_local(inner)
            }
        }
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped (RFC 4291, 2.5.5.2), compatible (2.5.5.1), NAT64's
/// well-known prefix (RFC 6052, 2.1) and 6to4 (RFC 3056).
fn embedded_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let low = |segments: [u16; 8]| {
        let [a, b] = segments[6].to_be_bytes();
        let [c, d] = segments[7].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    let segments = v6.segments();
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] => Some(low(segments)),
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, ..] => Some(low(segments)),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(low(segments)),
        [0x2002, high, tail, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = tail.to_be_bytes();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Loopback, "this host" (which Linux routes to loopback), link-local with its metadata services, the metadata
/// services that live elsewhere, multicast and broadcast.
fn is_local(address: IpAddr) -> bool {
    /// Alibaba Cloud's metadata service.
    const METADATA_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    /// Amazon's metadata service over IPv6.
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.octets()[0] == 0
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4 == METADATA_V4
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6 == METADATA_V6
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside() -> Reach {
        Reach::NotLocal { allowed: [].into() }
    }

    #[test]
    fn local_addresses_are_refused_in_every_disguise() {
        for text in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(!outside().permits(text.parse().unwrap()), "{text}");
            assert!(Reach::Anywhere.permits(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn other_addresses_pass_and_exceptions_count() {
        for text in ["10.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "fd00::1"] {
            assert!(outside().permits(text.parse().unwrap()), "{text}");
        }
        let some = Reach::NotLocal { allowed: ["127.0.0.0/8".parse().unwrap()].into() };
        assert!(some.permits("127.0.0.1".parse().unwrap()));
        assert!(some.permits("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!some.permits("::1".parse().unwrap()));
    }
}
