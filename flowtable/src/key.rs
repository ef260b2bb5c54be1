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
#[cfg(target_arch = "x86_64")]
use crate::wide;

/// How many 64-bit words a [`FlowKey`] has.
pub const WORDS: usize = 20;

/// The word from which on there are only tunnel fields.
pub(crate) const TUNNEL: usize = 15;

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

    /// A well-mixed hash of all words: every bit of the key moves about half of its bits. It is multilinear over 32 bits at a
    /// time (Lemire and Kaser, "Strongly universal string hashing is fast", 2014).
    ///
    /// It is not keyed: who can choose fields can make keys collide, so a table must bound what a collision costs.
    #[inline]
    pub fn hash(&self) -> u64 {
        self.hash_under((0..WORDS).map(|i| (i, u64::MAX)))
    }

    /// The hash of the key under a mask that is given by its nonzero words ([`Mask::nonzero`]): equal to
    /// `self.masked(&mask).hash()`, at the cost of those words only.
    #[inline]
    pub fn hash_under(&self, nonzero: impl IntoIterator<Item = (usize, u64)>) -> u64 {
        let product = |(i, mask)| halves(self.0[i] & mask, MULTIPLIERS[i]);
        spread(nonzero.into_iter().map(product).fold(0, u64::wrapping_add))
    }

    /// As [`FlowKey::hash_under`], under the first four times `N` words of a mask; what is behind these is zero in the key, or in
    /// the mask. Four words at a time, and half products instead of whole ones: 25 instructions instead of 57 where three words
    /// are looked at, 57 instead of 230 behind a tunnel (bench `instructions`, `l2/1000` and `vxlan-decap/1000`).
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    pub(crate) fn hash_wide<const N: usize>(&self, mask: &Mask) -> u64 {
        use std::arch::x86_64::{
            _mm_add_epi64, _mm_cvtsi128_si64, _mm_unpackhi_epi64, _mm256_add_epi64, _mm256_and_si256,
            _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_mul_epu32, _mm256_setzero_si256,
            _mm256_srli_epi64,
        };
        let sums = (0..N).fold(_mm256_setzero_si256(), |sums, n| {
            let four = |of: &[u64; WORDS]| wide::words(of, 4 * n);
            let (words, multipliers) = (_mm256_and_si256(four(&self.0), four(&mask.0)), four(&MULTIPLIERS));
            let upper = _mm256_mul_epu32(_mm256_srli_epi64(words, 32), _mm256_srli_epi64(multipliers, 32));
            _mm256_add_epi64(_mm256_add_epi64(sums, _mm256_mul_epu32(words, multipliers)), upper)
        });
        let two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        spread(_mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two))) as u64)
    }

    /// A hash of what tells connections apart: the entropy of an outer UDP source port (RFC 7348 section 5, RFC 6335).
    ///
    /// Of IP that is addresses and protocol, and the ports of TCP, UDP and SCTP; of anything else MAC addresses and
    /// EtherType. No fragment has ports or a protocol, so that all those of a datagram take the same path (later ones of
    /// IPv6 do not say what they carry). Every bit is well mixed; not keyed, see [`FlowKey::hash`].
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        let [_, dst_and_type, src_and_proto, ipv4, l4, ..] = self.0;
        let transport = match (src_and_proto & 3, src_and_proto >> 8 & 0xff) {
            (0, proto) if L4_WITH_PORTS.contains(&proto) => l4 & !0xffff_ffff | proto,
            (0, proto) => proto,
            _ => 0,
        };
        let sum = match EtherType::from_bits(dst_and_type.into()) {
            EtherType::IPV4 => sum([(3, ipv4), (4, transport)]),
            EtherType::IPV6 => {
                sum([(7, self.0[7]), (8, self.0[8]), (9, self.0[9]), (10, self.0[10]), (4, transport)])
            }
            _ => sum([(1, dst_and_type), (2, src_and_proto >> 16)]),
        };
        (finish(sum) >> 32) as u32
    }

    /// The TCP flags that any of these keys has. Those of a frame that is not TCP are zero, as they stand.
    #[inline]
    pub fn all_tcp_flags(keys: &[FlowKey]) -> TcpFlags {
        TcpFlags::from_bits(keys.iter().fold(0, |all, key| all | Field::TcpFlags.get(&key.0)))
    }

    /// Writes what the outer headers said into the tunnel fields.
    #[inline]
    pub fn set_tunnel(&mut self, outer: &TunnelFields) {
        self.0[6] = self.0[6] & 0xff_ffff_ffff | outer.octets;
        self.0[TUNNEL] = outer.id;
        self.0[TUNNEL + 1..].copy_from_slice(&outer.ends);
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

/// The protocols whose headers begin with two ports.
const L4_WITH_PORTS: [u64; 3] = [IpProto::TCP.0 as u64, IpProto::UDP.0 as u64, IpProto::SCTP.0 as u64];

/// What the outer headers of a frame say that came out of a tunnel, as it stands in a key: put together once, in registers,
/// where they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelFields {
    octets: u64,
    id: u64,
    ends: [u64; 4],
}

impl TunnelFields {
    /// From what was read: `id` is the VNI or GRE key, `None` for GRE without a key, and becomes
    /// [`TunnelFlags::KEY`] and `tun_id`; `ends` are the endpoint that sent the frame and that which it was sent to, with IPv4
    /// addresses as `::ffff:a.b.c.d`.
    #[inline(always)]
    pub fn new(id: Option<u32>, ends: [Ipv6Addr; 2], hop: Hop) -> Self {
        let flags = if id.is_some() { hop.flags | TunnelFlags::KEY } else { hop.flags };
        let [src, dst] = ends.map(Ipv6Addr::to_bits);
        TunnelFields {
            octets: u64::from(hop.tos) << 56 | u64::from(hop.ttl) << 48 | (flags.to_bits() as u64) << 40,
            id: id.map_or(0, u64::from),
            ends: [(src >> 64) as u64, src as u64, (dst >> 64) as u64, dst as u64],
        }
    }
}

/// The rest of what outer headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hop {
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// All flags but [`TunnelFlags::KEY`].
    pub flags: TunnelFlags,
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

/// The sum of some words of a key, given with their indexes.
#[inline(always)]
fn sum<const N: usize>(words: [(usize, u64); N]) -> u128 {
    words.into_iter().fold(0, |sum, (i, word)| add(sum, word, MULTIPLIERS[i]))
}

/// One term of the hash of a key: the lower half of a word by that of its multiplier, and the upper halves. A zero word adds
/// nothing, no product waits for another, and a processor makes four at a time.
#[inline]
fn halves(word: u64, multiplier: u64) -> u64 {
    let lower = u64::from(word as u32) * u64::from(multiplier as u32);
    lower.wrapping_add((word >> 32) * (multiplier >> 32))
}

/// Folds the sum and spreads it over all bits (the finalizer of MurmurHash3).
#[inline]
fn finish(sum: u128) -> u64 {
    spread(sum as u64 ^ ((sum >> 64) as u64).rotate_left(32))
}

/// Spreads a sum over all bits.
#[inline]
fn spread(h: u64) -> u64 {
    let h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ h >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::{collection, sample};

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
    fn connections_spread_over_all_paths() {
        let base =
            FlowKey::default().with(Field::EthType, EtherType::IPV4).with(Field::IpProto, IpProto::TCP);
        let ports = |n: u32| base.with(Field::L4Src, L4Port(n as u16));
        let hosts = |n: u32| base.with(Field::Ipv4Src, Ipv4Addr::from_bits(0x0a00_0000 + n));
        let macs = |n: u32| FlowKey::default().with(Field::EthSrc, MacAddr::from_u64(n.into()));
        let v6 = base.with(Field::EthType, EtherType::IPV6);
        let hosts6 = |n: u32| v6.with(Field::Ipv6Dst, Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(n)));
        let spread: [&dyn Fn(u32) -> FlowKey; 4] = [&ports, &hosts, &macs, &hosts6];
        for (case, key) in spread.into_iter().enumerate() {
            let (mut high, mut low) = (vec![0u32; 1 << 10], vec![0u32; 1 << 10]);
            for n in 0..1 << 16 {
                let hash = key(n).flow_hash();
                high[(hash >> 22) as usize] += 1;
                low[(hash & 0x3ff) as usize] += 1;
            }
            for paths in [high, low] {
                assert!(
                    paths.iter().all(|n| (20..=120).contains(n)),
                    "case {case}, about 64 each: {paths:?}"
                );
            }
        }
    }

    /// A key with the fields that `canonical` keys with this type and protocol have, from these bits.
    fn filled(ether_type: EtherType, proto: IpProto, bits: &[u128]) -> FlowKey {
        let mut key = FlowKey::default().with(Field::EthType, ether_type);
        if Field::IpProto.exists_in(&key) {
            key = key.with(Field::IpProto, proto);
        }
        for (field, bits) in Field::ALL.iter().zip(bits) {
            if field.exists_in(&key) && !matches!(field, Field::EthType | Field::IpProto | Field::IpFrag) {
                field.or(&mut key.0, *bits);
            }
        }
        key
    }

    /// What tells connections apart. All other fields do not count.
    fn identity(key: &FlowKey) -> Vec<Field> {
        match key.eth_type() {
            EtherType::IPV4 => vec![Field::Ipv4Src, Field::Ipv4Dst],
            EtherType::IPV6 => vec![Field::Ipv6Src, Field::Ipv6Dst],
            _ => return vec![Field::EthSrc, Field::EthDst, Field::EthType],
        }
        .into_iter()
        .chain(
            (key.ip_frag() == Fragment::No)
                .then_some([Field::IpProto, Field::L4Src, Field::L4Dst])
                .into_iter()
                .flatten(),
        )
        .collect()
    }

    proptest! {
        #[test]
        fn the_flow_hash_is_of_what_tells_connections_apart(
            ether_type in sample::select(vec![EtherType::IPV4, EtherType::IPV6, EtherType::ARP, EtherType::MPLS]),
            proto in sample::select(vec![IpProto::TCP, IpProto::UDP, IpProto::SCTP, IpProto::ICMP, IpProto::ICMPV6]),
            fragment in sample::select(vec![Fragment::No, Fragment::First, Fragment::Later]),
            bits in collection::vec(any::<u128>(), Field::ALL.len()),
            others in collection::vec(any::<u128>(), Field::ALL.len()),
        ) {
            let with_fragment = |key: FlowKey| match Field::IpFrag.exists_in(&key) {
                true => key.with(Field::IpFrag, fragment),
                false => key,
            };
            let key = with_fragment(filled(ether_type, proto, &bits));
            let mut other = with_fragment(filled(ether_type, proto, &others));
            let counted: Vec<Field> = identity(&key).into_iter().filter(|f| f.exists_in(&key)).collect();
            for field in &counted {
                let mut changed = key;
                field.clear(&mut changed.0);
                field.or(&mut changed.0, field.get(&key.0) ^ 1);
                prop_assert!(*field == Field::EthType || *field == Field::IpProto || changed.flow_hash() != key.flow_hash(), "{:?}", field);
                field.clear(&mut other.0);
                field.or(&mut other.0, field.get(&key.0));
            }
            prop_assert_eq!(key.flow_hash(), other.flow_hash());
        }
    }

    #[test]
    fn fragments_of_a_datagram_have_one_hash() {
        let ip = FlowKey::default()
            .with(Field::EthType, EtherType::IPV6)
            .with(Field::Ipv6Src, Ipv6Addr::LOCALHOST);
        let first = ip.with(Field::IpProto, IpProto::UDP).with(Field::IpFrag, Fragment::First);
        let first = first.with(Field::L4Dst, L4Port(53));
        let later = ip.with(Field::IpProto, IpProto(44)).with(Field::IpFrag, Fragment::Later);
        assert_eq!(first.flow_hash(), later.flow_hash());
        let udp = |key: FlowKey| key.with(Field::IpProto, IpProto::UDP).flow_hash();
        assert_ne!(udp(ip), ip.with(Field::IpProto, IpProto::TCP).flow_hash());
    }

    #[test]
    fn a_tunnel_is_written_into_its_fields_only() {
        let before = filled(EtherType::MPLS, IpProto::default(), &[u128::MAX; Field::ALL.len()]);
        let (src, dst) = ("2001:db8::1".parse().unwrap(), Ipv4Addr::new(192, 0, 2, 1));
        let hop = Hop { tos: 0xb9, ttl: 63, flags: TunnelFlags::DF };
        let with = |id| {
            let mut key = before;
            key.set_tunnel(&TunnelFields::new(id, [src, dst.to_ipv6_mapped()], hop));
            key
        };
        let expected = before
            .with(Field::TunId, 0u64)
            .with(Field::TunSrc, src)
            .with(Field::TunDst, IpAddr::V4(dst))
            .with(Field::TunTos, hop.tos)
            .with(Field::TunTtl, hop.ttl)
            .with(Field::TunFlags, TunnelFlags::DF | TunnelFlags::KEY);
        assert_eq!(with(Some(0)), expected);
        assert_eq!(with(None), expected.with(Field::TunFlags, TunnelFlags::DF), "no key is not key 0");
        assert_eq!(with(Some(u32::MAX)).tun_id(), u32::MAX.into());
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
