//! Longest prefix match over IP addresses: the most specific route to a destination (RFC 4632 section 5.1).
//!
//! One hash table per prefix length in use, from the longest on: a lookup takes as many probes as there are lengths,
//! at most 33 for IPv4 and 129 for IPv6.

use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;
use thiserror::Error;

/// A prefix length that the address family does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("prefix length {len} is out of range for {address}, expected 0 to {}", width(*address))]
pub struct PrefixError {
    /// The address.
    pub address: IpAddr,
    /// The length.
    pub len: u8,
}

/// An address prefix, its host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of an address; host bits are cleared.
    ///
    /// # Errors
    /// [`PrefixError`]: `len` is above 32 for IPv4, or 128 for IPv6.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        if len > width(address) {
            return Err(PrefixError { address, len });
        }
        Ok(Prefix { address: masked(address, len), len })
    }

    /// The address, its host bits zero.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Its length in bits.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Is the address in it?
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.len) == self.address
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into())
        }
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(
            v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0),
        )),
    }
}

/// Values by prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lpm<T> {
    by_prefix: HashMap<Prefix, T>,
    /// Prefix lengths in use, longest first, by family: IPv4, IPv6.
    lengths: [Vec<u8>; 2],
}

impl<T> Default for Lpm<T> {
    fn default() -> Self {
        Lpm { by_prefix: HashMap::new(), lengths: [Vec::new(), Vec::new()] }
    }
}

impl<T> Lpm<T> {
    /// The value of the longest prefix that contains the address.
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        lengths.iter().find_map(|&len| self.by_prefix.get(&Prefix { address: masked(address, len), len }))
    }

    /// The value of exactly this prefix.
    pub fn get(&self, prefix: Prefix) -> Option<&T> {
        self.by_prefix.get(&prefix)
    }

    /// All, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        self.by_prefix.iter().map(|(prefix, value)| (*prefix, value))
    }

    fn insert(&mut self, prefix: Prefix, value: T) {
        let lengths = &mut self.lengths[usize::from(prefix.address.is_ipv6())];
        if let Err(at) = lengths.binary_search_by(|len| prefix.len.cmp(len)) {
            lengths.insert(at, prefix.len);
        }
        self.by_prefix.entry(prefix).or_insert(value);
    }
}

/// Of two values for the same prefix the first counts.
impl<T> FromIterator<(Prefix, T)> for Lpm<T> {
    fn from_iter<I: IntoIterator<Item = (Prefix, T)>>(routes: I) -> Self {
        let mut lpm = Lpm::default();
        routes.into_iter().for_each(|(prefix, value)| lpm.insert(prefix, value));
        lpm
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_most_specific_prefix_wins_in_its_family() {
        let routes = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "2001:db8::/32"];
        let lpm: Lpm<&str> = routes.iter().map(|r| (prefix(r), *r)).collect();
        let find = |address: &str| lpm.lookup(address.parse().unwrap()).copied();
        assert_eq!(find("192.0.2.1"), Some("0.0.0.0/0"));
        assert_eq!(find("10.9.9.9"), Some("10.0.0.0/8"));
        assert_eq!(find("10.1.9.9"), Some("10.1.0.0/16"));
        assert_eq!(find("10.1.2.3"), Some("10.1.2.3/32"));
        assert_eq!(find("2001:db8::5"), Some("2001:db8::/32"));
        assert_eq!(find("2001:db9::5"), None);
    }

    #[test]
    fn a_prefix_has_no_host_bits_and_a_length_of_its_family() {
        assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(
            Prefix::new([10, 0, 0, 0].into(), 33),
            Err(PrefixError { address: [10, 0, 0, 0].into(), len: 33 })
        );
    }

    #[test]
    fn of_two_values_for_a_prefix_the_first_counts() {
        let lpm: Lpm<u8> =
            [("10.0.0.1/8", 1), ("10.0.0.2/8", 2)].map(|(p, v)| (prefix(p), v)).into_iter().collect();
        assert_eq!((lpm.get(prefix("10.0.0.0/8")), lpm.get(prefix("10.0.0.0/9"))), (Some(&1), None));
        assert_eq!(lpm.iter().collect::<Vec<_>>(), [(prefix("10.0.0.0/8"), &1)]);
    }

    /// An address of either family with few distinct bits, so that prefixes nest.
    fn nested(is_ipv4: bool, bits: u128) -> IpAddr {
        let bits = bits & 0xc0c0_c0c1_0000_0000_0000_0000_c0c0_c0c1;
        if is_ipv4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) }
    }

    proptest! {
        /// Against a linear scan.
        #[test]
        fn a_lookup_is_the_longest_of_all_that_contain(
            routes in proptest::collection::vec((any::<bool>(), any::<u128>(), 0u8..=128), 0..60),
            is_ipv4 in any::<bool>(),
            bits in any::<u128>(),
        ) {
            let route = |&(is_ipv4, bits, len): &(bool, u128, u8)| {
                let address = nested(is_ipv4, bits);
                Prefix::new(address, len.min(width(address))).unwrap()
            };
            let routes: Vec<Prefix> = routes.iter().map(route).collect();
            let lpm: Lpm<Prefix> = routes.iter().map(|p| (*p, *p)).collect();
            let address = nested(is_ipv4, bits);
            let best = routes.iter().filter(|p| p.contains(address)).max_by_key(|p| p.prefix_len());
            prop_assert_eq!(lpm.lookup(address), best);
        }
    }
}
