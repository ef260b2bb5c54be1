//! The flow key: every field a decision may look at, in fixed words, canonical.
//!
//! Canonical means: two frames that agree in all fields have equal words, and a field that a frame does not
//! have is zero. So equality, hashing and masking are word operations, at most [`WORDS`] of them. Where each
//! field is, [`Field`] says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::field::{EtherType, IpProto, MacAddr, VlanTag};
use encap::offsets::Fragment;

use crate::field::with_fields;
use crate::field::{Dscp, Field, FlowLabel, L4Port, Label, TcpFlags, TunnelFlags, Value, VlanTci};
use crate::id::PortId;
use crate::mask::Mask;

/// How many 64-bit words a [`FlowKey`] has.
pub const WORDS: usize = 20;

/// The header fields of one frame and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey(pub(crate) [u64; WORDS]);

impl FlowKey {
    /// The words, for hashing and comparing.
    #[inline]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// The key with every bit outside `mask` cleared.
    #[inline]
    pub fn masked(&self, mask: &Mask) -> FlowKey {
        FlowKey(std::array::from_fn(|i| self.0[i] & mask.0[i]))
    }

    /// A well-mixed hash of all words: every bit of the key moves about half of its bits.
    ///
    /// It is not keyed: who can choose fields can make keys collide, so a table must bound what a collision costs.
    #[inline]
    pub fn hash(&self) -> u64 {
        finish(self.0.iter().zip(&MULTIPLIERS).fold(0, |sum, (word, k)| add(sum, *word, *k)))
    }

    /// The hash of the key under a mask that is given by its nonzero words ([`Mask::nonzero`]): equal to
    /// `self.masked(&mask).hash()`, at the cost of those words only.
    #[inline]
    pub fn hash_under(&self, nonzero: impl IntoIterator<Item = (usize, u64)>) -> u64 {
        finish(nonzero.into_iter().fold(0, |sum, (i, mask)| add(sum, self.0[i] & mask, MULTIPLIERS[i])))
    }

    /// The key with one field changed; the caller keeps it canonical.
    ///
    /// # Panics
    /// If the value has more bits than the field.
    pub fn with(mut self, field: Field, value: impl Value) -> FlowKey {
        let bits = value.to_bits();
        assert!(bits & !field.ones() == 0, "{bits:#x} does not fit {}", field.name());
        field.clear(&mut self.0);
        field.or(&mut self.0, bits);
        self
    }

    /// VLAN tag `i`, 0 being the outermost of two.
    #[inline]
    pub fn vlan_tag(&self, i: usize) -> Option<VlanTag> {
        let tci = VlanTci::from_bits(Field::TCI[i].get(&self.0)).to_wire()?;
        Some(VlanTag { tpid: EtherType::from_bits(Field::TPID[i].get(&self.0)), tci })
    }

    /// The value of a field; zero if the frame has none.
    #[inline(always)]
    fn value<T: Value>(&self, field: Field) -> T {
        T::from_bits(if field.exists_in(self) { field.get(&self.0) } else { 0 })
    }
}

macro_rules! define_getters {
    ($($(#[$doc:meta])* $field:ident $get:ident: $type:ty = $($rest:expr),*;)*) => {
        impl FlowKey {
            $($(#[$doc])*
            #[inline]
            pub fn $get(&self) -> $type {
                self.value(Field::$field)
            })*
        }
    };
}
with_fields!(define_getters);

/// One odd multiplier per word, from the splitmix64 sequence (Steele, Lea, Flood 2014).
static MULTIPLIERS: [u64; WORDS] = {
    let mut multipliers = [0; WORDS];
    let mut i = 0;
    while i < WORDS {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        multipliers[i] = (z ^ z >> 31) | 1;
        i += 1;
    }
    multipliers
};

/// One step of the multilinear hash of Lemire and Kaser ("Strongly universal string hashing is fast", 2014):
/// a sum of products, so the multiplications do not wait for each other and a zero word adds nothing.
#[inline]
fn add(sum: u128, word: u64, multiplier: u64) -> u128 {
    sum.wrapping_add(u128::from(word) * u128::from(multiplier))
}

/// Folds the sum and spreads it over all bits (the finalizer of MurmurHash3).
#[inline]
fn finish(sum: u128) -> u64 {
    let h = sum as u64 ^ ((sum >> 64) as u64).rotate_left(32);
    let h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ h >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words() -> impl Strategy<Value = [u64; WORDS]> {
        proptest::array::uniform20(prop_oneof![Just(0), any::<u64>()])
    }

    proptest! {
        #[test]
        fn hash_under_a_mask_is_the_hash_of_the_masked_key(key in words(), mask in words()) {
            let (key, mask) = (FlowKey(key), Mask(mask));
            prop_assert_eq!(key.hash_under(mask.nonzero()), key.masked(&mask).hash());
        }
    }

    #[test]
    fn every_bit_of_the_key_moves_half_of_the_hash() {
        let key = FlowKey(std::array::from_fn(|i| i as u64 * 0x0123_4567_89ab_cdef));
        for bit in 0..64 * WORDS {
            let mut other = key;
            other.0[bit / 64] ^= 1 << (bit % 64);
            let moved = (key.hash() ^ other.hash()).count_ones();
            assert!((12..=52).contains(&moved), "bit {bit} moves {moved}");
        }
    }

    #[test]
    fn neighbouring_addresses_do_not_collide() {
        let mut hashes: Vec<u64> = (0..1 << 16)
            .map(|n| {
                FlowKey::default()
                    .with(Field::EthSrc, MacAddr::from_u64(n))
                    .with(Field::InPort, PortId(n as u32 % 8))
            })
            .map(|key| key.hash())
            .collect();
        let mut buckets = vec![0u32; 1 << 10];
        hashes.iter().for_each(|h| buckets[(h >> 54) as usize] += 1);
        assert!(buckets.iter().all(|n| (20..=120).contains(n)), "expected about 64 each: {buckets:?}");
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 1 << 16);
    }

    #[test]
    fn fields_read_back_what_was_written() {
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let key = FlowKey::default()
            .with(Field::InPort, PortId(7))
            .with(Field::EthDst, mac)
            .with(Field::EthType, EtherType::IPV6)
            .with(Field::OuterTpid, EtherType::VLAN)
            .with(Field::OuterTci, VlanTci::from_wire(0xa00a))
            .with(Field::Ipv6Dst, v6)
            .with(Field::TunDst, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!((key.in_port(), key.eth_dst(), key.ipv6_dst()), (PortId(7), mac, v6));
        assert_eq!(key.vlan_tag(0), Some(VlanTag { tpid: EtherType::VLAN, tci: 0xa00a }));
        assert_eq!((key.vlan_tag(1), key.ip_dst()), (None, Ipv4Addr::UNSPECIFIED));
        assert_eq!(key.tun_dst(), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    }
}
