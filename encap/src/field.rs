//! Wire types: one newtype per header field, with a checked constructor where not every bit pattern is legal.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A text or number that is no legal value of a wire field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldError {
    /// Not six colon-separated hexadecimal octets.
    #[error("`{0}` is not a MAC address, expected six hexadecimal octets such as 02:00:00:00:00:01")]
    Mac(String),
    /// A VLAN id above 4095.
    #[error("VLAN id {0} is out of range, expected 0 to 4095")]
    Vlan(u32),
    /// A priority above 7.
    #[error("VLAN priority {0} is out of range, expected 0 to 7")]
    Pcp(u32),
    /// A VXLAN or Geneve network identifier above 2^24 - 1.
    #[error("VNI {0} is out of range, expected 0 to 16777215")]
    Vni(u32),
}

/// A 48-bit IEEE 802 MAC address in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// True for group addresses (multicast and broadcast): the I/G bit is set.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for `ff:ff:ff:ff:ff:ff` only.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// True for `01:80:c2:00:00:00` to `01:80:c2:00:00:0f`, the addresses that IEEE 802.1D/Q bridges must not
    /// forward (802.1Q-2018 table 8-1).
    #[inline]
    pub const fn is_reserved(self) -> bool {
        let m = self.0;
        m[0] == 0x01 && m[1] == 0x80 && m[2] == 0xc2 && m[3] == 0 && m[4] == 0 && m[5] & 0xf0 == 0
    }

    /// The address as the low 48 bits of a word, first octet most significant.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        let m = self.0;
        u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]])
    }

    /// The inverse of [`MacAddr::to_u64`]; the upper 16 bits are ignored.
    #[inline]
    pub const fn from_u64(word: u64) -> Self {
        let b = word.to_be_bytes();
        MacAddr([b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let bad = || FieldError::Mac(text.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| (1..=2).contains(&p.len())).ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        parts.next().is_none().then_some(MacAddr(octets)).ok_or_else(bad)
    }
}

/// An EtherType (values below 0x600 on the wire are 802.3 lengths, not types).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: EtherType = EtherType(0x0800);
    /// ARP.
    pub const ARP: EtherType = EtherType(0x0806);
    /// Reverse ARP, which hypervisors send to announce a migrated guest.
    pub const RARP: EtherType = EtherType(0x8035);
    /// 802.1Q customer tag.
    pub const VLAN: EtherType = EtherType(0x8100);
    /// 802.1ad service tag.
    pub const QINQ: EtherType = EtherType(0x88a8);
    /// IPv6.
    pub const IPV6: EtherType = EtherType(0x86dd);
    /// MPLS unicast.
    pub const MPLS: EtherType = EtherType(0x8847);
    /// MPLS multicast.
    pub const MPLS_MULTICAST: EtherType = EtherType(0x8848);
    /// An Ethernet frame (transparent Ethernet bridging): the protocol type of GRE and Geneve.
    pub const TEB: EtherType = EtherType(0x6558);
    /// ERSPAN, types I and II: a mirrored frame in GRE.
    pub const ERSPAN: EtherType = EtherType(0x88be);
    /// ERSPAN, type III.
    pub const ERSPAN_3: EtherType = EtherType(0x22eb);
    /// What OVS calls a frame without a type: 802.2 LLC, not SNAP (ovs-fields(7), `eth_type`).
    pub const NOT_ETH_II: EtherType = EtherType(0x05ff);

    /// True for the two tag types, 0x8100 and 0x88a8.
    #[inline]
    pub const fn is_vlan(self) -> bool {
        matches!(self.0, 0x8100 | 0x88a8)
    }
}

impl fmt::Display for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.0)
    }
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A 12-bit VLAN id, 0 to 4095. Zero means "no VLAN, only a priority" on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct VlanId(u16);

impl VlanId {
    /// VLAN 0: untagged and priority-tagged frames of a bridge that uses no VLANs.
    pub const NONE: VlanId = VlanId(0);

    /// Checks the range.
    ///
    /// # Errors
    /// [`FieldError::Vlan`] above 4095.
    pub const fn new(id: u16) -> Result<Self, FieldError> {
        if id < 4096 { Ok(VlanId(id)) } else { Err(FieldError::Vlan(id as u32)) }
    }

    /// The low 12 bits of a tag control word.
    #[inline]
    pub const fn from_tci(tci: u16) -> Self {
        VlanId(tci & 0xfff)
    }

    /// The id, 0 to 4095.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<u16> for VlanId {
    type Error = FieldError;

    fn try_from(id: u16) -> Result<Self, FieldError> {
        VlanId::new(id)
    }
}

/// A 3-bit 802.1Q priority code point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Pcp(u8);

impl Pcp {
    /// Checks the range.
    ///
    /// # Errors
    /// [`FieldError::Pcp`] above 7.
    pub const fn new(pcp: u8) -> Result<Self, FieldError> {
        if pcp < 8 { Ok(Pcp(pcp)) } else { Err(FieldError::Pcp(pcp as u32)) }
    }

    /// The upper 3 bits of a tag control word.
    #[inline]
    pub const fn from_tci(tci: u16) -> Self {
        Pcp((tci >> 13) as u8)
    }

    /// The priority, 0 to 7.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// One VLAN tag as it stands on the wire: TPID, then PCP (3 bits), DEI (1), VID (12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VlanTag {
    /// 0x8100 or 0x88a8.
    pub tpid: EtherType,
    /// The tag control information.
    pub tci: u16,
}

impl VlanTag {
    /// A tag with drop-eligible clear.
    pub const fn new(tpid: EtherType, vid: VlanId, pcp: Pcp) -> Self {
        VlanTag { tpid, tci: (pcp.0 as u16) << 13 | vid.0 }
    }

    /// The VLAN id.
    #[inline]
    pub const fn vid(self) -> VlanId {
        VlanId::from_tci(self.tci)
    }

    /// The priority.
    #[inline]
    pub const fn pcp(self) -> Pcp {
        Pcp::from_tci(self.tci)
    }
}

/// An IP protocol number, or the last next-header value of an IPv6 chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct IpProto(pub u8);

impl IpProto {
    /// ICMP for IPv4.
    pub const ICMP: IpProto = IpProto(1);
    /// IGMP.
    pub const IGMP: IpProto = IpProto(2);
    /// TCP.
    pub const TCP: IpProto = IpProto(6);
    /// UDP.
    pub const UDP: IpProto = IpProto(17);
    /// GRE.
    pub const GRE: IpProto = IpProto(47);
    /// ICMPv6.
    pub const ICMPV6: IpProto = IpProto(58);
    /// SCTP.
    pub const SCTP: IpProto = IpProto(132);
}

impl fmt::Display for IpProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for IpProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A 24-bit network identifier of VXLAN (RFC 7348 section 5) or Geneve (RFC 8926 section 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Vni(u32);

impl Vni {
    /// Checks the range.
    ///
    /// # Errors
    /// [`FieldError::Vni`] from 2^24 on.
    pub const fn new(id: u32) -> Result<Self, FieldError> {
        if id < 1 << 24 { Ok(Vni(id)) } else { Err(FieldError::Vni(id)) }
    }

    /// The three octets of a header, most significant first.
    #[inline]
    pub const fn from_octets([a, b, c]: [u8; 3]) -> Self {
        Vni(u32::from_be_bytes([0, a, b, c]))
    }

    /// The inverse of [`Vni::from_octets`].
    #[inline]
    pub const fn to_octets(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// The identifier, below 2^24.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<u32> for Vni {
    type Error = FieldError;

    fn try_from(id: u32) -> Result<Self, FieldError> {
        Vni::new(id)
    }
}

/// The key of a GRE tunnel (RFC 2890 section 2.1): any 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GreKey(pub u32);

impl fmt::Display for GreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn vni() -> impl Strategy<Value = Vni> {
        any::<[u8; 3]>().prop_map(Vni::from_octets)
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::new(0xff_ffff).map(Vni::to_octets), Ok([0xff; 3]));
        assert_eq!(Vni::new(0x100_0000), Err(FieldError::Vni(0x100_0000)));
        assert_eq!(Vni::from_octets([1, 2, 3]).get(), 0x01_0203);
    }
}
