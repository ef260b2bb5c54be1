//! Masks: which bits of a key matter; and the probe, the only window on a key for whoever decides.
//!
//! A decision may be cached for every frame that agrees in the bits it depended on. So `translate` never sees
//! a [`FlowKey`]: it gets a [`Probe`], and cannot look without un-wildcarding (a bit that was looked at is in
//! the mask). Before a field of layer 3 or 4 the probe looks at what tells whether it is there: the EtherType,
//! and the IP protocol. Cost of a look: a few word operations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::field::{EtherType, IpProto, MacAddr, Pcp, VlanId, VlanTag};
use encap::offsets::Fragment;

use crate::field::{
    Dscp, Field, FlowLabel, L4Port, Label, TcpFlags, TunnelFlags, Value, VlanTci, with_fields,
};
use crate::id::PortId;
use crate::key::{FlowKey, WORDS};

/// Which bits of a [`FlowKey`] matter: a set bit must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mask(pub(crate) [u64; WORDS]);

impl Mask {
    /// No bit: matches every frame.
    pub const EMPTY: Mask = Mask([0; WORDS]);

    /// Every bit: matches one key.
    pub const EXACT: Mask = Mask([u64::MAX; WORDS]);

    /// Every bit of every field that a frame with this key has.
    pub fn of_fields(key: &FlowKey) -> Mask {
        let mut mask = Mask::EMPTY;
        Field::ALL.iter().filter(|f| f.exists_in(key)).for_each(|f| f.or(&mut mask.0, u128::MAX));
        mask
    }

    /// The words.
    #[inline]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// The words that are not zero, with their indexes, ascending: all that a masked lookup has to visit.
    #[inline]
    pub fn nonzero(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.0.iter().copied().enumerate().filter(|(_, word)| *word != 0)
    }

    /// The bits of either.
    #[inline]
    pub fn union(&self, other: &Mask) -> Mask {
        Mask(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// True if every bit of `other` is in this mask: it tells apart whatever `other` tells apart.
    #[inline]
    pub fn covers(&self, other: &Mask) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, theirs)| theirs & !mine == 0)
    }

    /// How many bits are set.
    pub fn bits(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// A window on a key that records every bit that was looked at.
#[derive(Debug)]
pub struct Probe<'k> {
    key: &'k FlowKey,
    mask: Mask,
}

impl<'k> Probe<'k> {
    /// A window through which nobody has looked yet.
    pub fn new(key: &'k FlowKey) -> Self {
        Probe { key, mask: Mask::EMPTY }
    }

    /// The bits that were looked at so far.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Tag `i` (0 the outermost, 1 the second) without its TPID: 16 bits.
    #[inline]
    pub fn vlan_tci(&mut self, i: usize) -> VlanTci {
        self.value(Field::TCI[i])
    }

    /// Is there a tag `i`? One bit.
    #[inline]
    pub fn has_vlan(&mut self, i: usize) -> bool {
        self.look(Field::TCI[i], VlanTci::PRESENT.into()) != 0
    }

    /// The VLAN id of tag `i`, if it is there: 13 bits, one if not.
    #[inline]
    pub fn vlan_vid(&mut self, i: usize) -> Option<VlanId> {
        self.has_vlan(i).then(|| VlanId::from_tci(self.look(Field::TCI[i], 0x0fff) as u16))
    }

    /// The priority of tag `i`, if it is there: 4 bits, one if not.
    #[inline]
    pub fn vlan_pcp(&mut self, i: usize) -> Option<Pcp> {
        self.has_vlan(i).then(|| Pcp::from_tci(self.look(Field::TCI[i], 0xe000) as u16))
    }

    /// Tag `i` with its TPID, if it is there: 32 bits, one if not.
    #[inline]
    pub fn vlan_tag(&mut self, i: usize) -> Option<VlanTag> {
        let tci = self.has_vlan(i).then(|| self.vlan_tci(i))?.to_wire()?;
        Some(VlanTag { tpid: self.value(Field::TPID[i]), tci })
    }

    /// Did the frame come out of a tunnel? One bit if so: the highest that the endpoint's address has, which is the same
    /// for all of IPv4. All of the address if not.
    #[inline]
    pub fn is_decapped(&mut self) -> bool {
        let dst = Field::TunDst.get(self.key.words());
        self.look(Field::TunDst, dst.checked_ilog2().map_or(u128::MAX, |bit| 1 << bit)) != 0
    }

    /// The VNI or key of the tunnel. `None` without one, which is not 0: one bit, else 65.
    #[inline]
    pub fn tun_key(&mut self) -> Option<u32> {
        let has_key = self.look(Field::TunFlags, TunnelFlags::KEY.to_bits()) != 0;
        has_key.then(|| self.tun_id()).and_then(|id| id.try_into().ok())
    }

    /// The outer congestion notification of the tunnel, 0 to 3. Two bits.
    #[inline]
    pub fn tun_ecn(&mut self) -> u8 {
        self.look(Field::TunTos, 3) as u8
    }

    /// Is the destination a group address? One bit.
    #[inline]
    pub fn eth_dst_is_multicast(&mut self) -> bool {
        self.look(Field::EthDst, GROUP_BIT) != 0
    }

    /// Is the source a group address? One bit.
    #[inline]
    pub fn eth_src_is_multicast(&mut self) -> bool {
        self.look(Field::EthSrc, GROUP_BIT) != 0
    }

    #[inline(always)]
    fn value<T: Value>(&mut self, field: Field) -> T {
        T::from_bits(self.look(field, field.ones()))
    }

    /// Looks at the field's bits in `bits`, after what tells whether the frame has the field.
    #[inline(always)]
    fn look(&mut self, field: Field, bits: u128) -> u128 {
        let needs = &field.spec().needs;
        if !needs.types.is_empty() {
            Field::EthType.or(&mut self.mask.0, u128::MAX);
            if !field.type_fits(self.key) {
                return 0;
            }
        }
        if !needs.protos.is_empty() {
            Field::IpProto.or(&mut self.mask.0, u128::MAX);
            if !field.proto_fits(self.key) {
                return 0;
            }
        }
        field.or(&mut self.mask.0, bits);
        field.get(self.key.words()) & bits
    }
}

/// The I/G bit of an address.
const GROUP_BIT: u128 = 1 << 40;

macro_rules! define_looks {
    ($($(#[$doc:meta])* $field:ident $get:ident: $type:ty = $($rest:expr),*;)*) => {
        impl Probe<'_> {
            $($(#[$doc])*
            #[inline]
            pub fn $get(&mut self) -> $type {
                self.value(Field::$field)
            })*
        }
    };
}
with_fields!(define_looks);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{Hop, TunnelFields};

    fn mask() -> impl Strategy<Value = Mask> {
        proptest::array::uniform20(prop_oneof![Just(0), any::<u64>()]).prop_map(Mask)
    }

    proptest! {
        #[test]
        fn a_union_covers_both_and_nothing_more(a in mask(), b in mask(), c in mask()) {
            let both = a.union(&b);
            prop_assert!(both.covers(&a) && both.covers(&b) && Mask::EXACT.covers(&both));
            prop_assert_eq!(both.covers(&c), c.union(&both) == both);
            prop_assert_eq!(both.union(&a), both);
            prop_assert_eq!(a.union(&Mask::EMPTY), a);
        }

        #[test]
        fn nonzero_words_are_the_mask(a in mask()) {
            let mut words = [0; WORDS];
            a.nonzero().for_each(|(i, word)| words[i] = word);
            prop_assert_eq!(words, *a.words());
            prop_assert!(a.nonzero().all(|(_, word)| word != 0));
        }
    }

    /// A UDP datagram over IPv4 in VLAN 10 with priority 5.
    fn udp() -> FlowKey {
        FlowKey::default()
            .with(Field::OuterTpid, EtherType::VLAN)
            .with(Field::OuterTci, VlanTci::from_wire(0xa00a))
            .with(Field::EthDst, MacAddr([0x33, 0x33, 0, 0, 0, 1]))
            .with(Field::EthType, EtherType::IPV4)
            .with(Field::IpProto, IpProto::UDP)
            .with(Field::Ipv4Dst, Ipv4Addr::new(10, 0, 0, 2))
            .with(Field::L4Dst, L4Port(53))
    }

    fn looked_at(look: impl Fn(&mut Probe<'_>)) -> Mask {
        let key = udp();
        let mut probe = Probe::new(&key);
        look(&mut probe);
        *probe.mask()
    }

    fn of(fields: &[Field]) -> Mask {
        let mut mask = Mask::EMPTY;
        fields.iter().for_each(|f| f.or(&mut mask.0, u128::MAX));
        mask
    }

    #[test]
    fn a_look_returns_the_field_and_sets_its_bits() {
        let key = udp();
        let mut probe = Probe::new(&key);
        assert_eq!(*probe.mask(), Mask::EMPTY);
        assert_eq!(probe.ip_dst(), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(*probe.mask(), of(&[Field::EthType, Field::Ipv4Dst]));
        assert_eq!(probe.l4_dst(), L4Port(53));
        assert_eq!(*probe.mask(), of(&[Field::EthType, Field::Ipv4Dst, Field::IpProto, Field::L4Dst]));
    }

    #[test]
    fn a_look_for_what_is_not_there_stops_at_the_reason() {
        assert_eq!(looked_at(|p| assert_eq!(p.arp_spa(), Ipv4Addr::UNSPECIFIED)), of(&[Field::EthType]));
        let reason = of(&[Field::EthType, Field::IpProto]);
        assert_eq!(looked_at(|p| assert_eq!(p.tcp_flags(), TcpFlags::default())), reason);
    }

    #[test]
    fn narrow_looks_set_few_bits() {
        assert_eq!(looked_at(|p| assert!(p.eth_dst_is_multicast())).bits(), 1);
        assert_eq!(looked_at(|p| assert!(!p.eth_src_is_multicast())).bits(), 1);
        assert_eq!(looked_at(|p| assert!(p.has_vlan(0))).bits(), 1);
        assert_eq!(looked_at(|p| assert_eq!(p.vlan_vid(0).map(VlanId::get), Some(10))).bits(), 13);
        assert_eq!(looked_at(|p| assert_eq!(p.vlan_pcp(0).map(Pcp::get), Some(5))).bits(), 4);
        assert_eq!(
            looked_at(|p| assert_eq!((p.vlan_vid(1), p.vlan_pcp(1), p.vlan_tag(1)), (None, None, None)))
                .bits(),
            1
        );
        let tag = VlanTag { tpid: EtherType::VLAN, tci: 0xa00a };
        assert_eq!(looked_at(|p| assert_eq!(p.vlan_tag(0), Some(tag))).bits(), 32);
    }

    /// A frame that came out of a tunnel.
    fn decapped(id: Option<u32>, dst: Ipv6Addr) -> FlowKey {
        let mut key = udp();
        let flags = TunnelFlags::NONE;
        key.set_tunnel(&TunnelFields::new(id, [dst; 2], Hop { tos: 0xb9, ttl: 64, flags }));
        key
    }

    #[test]
    fn narrow_looks_at_a_tunnel_set_few_bits() {
        let bits = |key: &FlowKey, look: &dyn Fn(&mut Probe<'_>)| {
            let mut probe = Probe::new(key);
            look(&mut probe);
            probe.mask().bits()
        };
        let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped(), "2001:db8::1".parse().unwrap());
        assert_eq!(bits(&decapped(Some(0), v6), &|p| assert!(p.is_decapped())), 1);
        assert_eq!(bits(&udp(), &|p| assert!(!p.is_decapped())), 128);
        assert_eq!(bits(&decapped(Some(0), v4), &|p| assert_eq!(p.tun_key(), Some(0))), 65);
        assert_eq!(bits(&decapped(None, v4), &|p| assert_eq!(p.tun_key(), None)), 1);
        assert_eq!(bits(&decapped(None, v4), &|p| assert_eq!(p.tun_ecn(), 1)), 2);
        let mask = |key: &FlowKey| {
            let mut probe = Probe::new(key);
            probe.is_decapped();
            *probe.mask()
        };
        assert_eq!(
            mask(&decapped(None, v4)),
            mask(&decapped(None, Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped())),
            "one mask for IPv4"
        );
    }
}
