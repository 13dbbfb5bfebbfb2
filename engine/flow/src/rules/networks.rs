//! Sets of networks: sorted ranges that do not touch, searched by halves.

use std::net::IpAddr;

use ipnet::IpNet;

/// A set of networks of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Networks {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(network) => v4.push((network.network().to_bits(), network.broadcast().to_bits())),
                // Clients and destinations are asked for in their own family.
                IpNet::V6(network) => match network.network().to_ipv4_mapped() {
                    Some(address) if network.prefix_len() >= 96 => {
                        let bits = u32::MAX.checked_shr(u32::from(network.prefix_len()) - 96).unwrap_or(0);
                        v4.push((address.to_bits(), address.to_bits() | bits));
                    }
                    Some(_) | None => v6.push((network.network().to_bits(), network.broadcast().to_bits())),
                },
            }
        }
        Networks { v4: joined(v4, |end| end.checked_add(1)), v6: joined(v6, |end| end.checked_add(1)) }
    }
}

/// Ranges in order, those that touch or overlap as one.
fn joined<T: Copy + Ord>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut joined: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if next(*end).is_none_or(|next| from <= next) => *end = to.max(*end),
            Some(_) | None => joined.push((from, to)),
        }
    }
    joined.into()
}

impl Networks {
    /// Whether an address is in one of them; an IPv4 address in mapped form is one of IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => is_within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => is_within(&self.v6, address.to_bits()),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// The ranges of IPv4 addresses, the first and the last of each.
    pub fn v4(&self) -> &[(u32, u32)] {
        &self.v4
    }

    /// The ranges of IPv6 addresses, the first and the last of each.
    pub fn v6(&self) -> &[(u128, u128)] {
        &self.v6
    }
}

fn is_within<T: Copy + Ord>(ranges: &[(T, T)], wanted: T) -> bool {
    let behind = ranges.partition_point(|(from, _)| *from <= wanted);
    behind.checked_sub(1).is_some_and(|at| wanted <= ranges[at].1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(networks: &[&str]) -> Networks {
        networks.iter().map(|text| text.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let networks = set(&["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "192.0.2.1/32", "::/0"]);
        assert_eq!(networks.len(), 3);
        for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.1", "::ffff:10.0.0.1", "2001:db8::1"] {
            assert!(networks.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.0.2.0", "192.0.2.2"] {
            assert!(!networks.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(set(&["0.0.0.0/0"]).contains("255.255.255.255".parse().unwrap()));
        assert!(set(&["::ffff:10.0.0.0/104"]).contains("10.9.9.9".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn a_set_says_what_a_naive_search_says(
            networks in prop::collection::vec((0u8..8, 20u8..=32), 0..20),
            addresses in prop::collection::vec(any::<[u8; 2]>(), 1..20),
        ) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|(third, prefix)| format!("10.0.{third}.{}/{prefix}", third * 31).parse().unwrap())
                .collect();
            let set: Networks = networks.iter().copied().collect();
            for [third, fourth] in addresses {
                let address = IpAddr::from([10, 0, third % 9, fourth]);
                let expected = networks.iter().any(|network| network.contains(&address));
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
        }
    }
}
