//! The fields of a flow key: one table says where each is, what a frame must be to have it, and its names.
//!
//! Adding a field is one line of `with_fields!`: the getters of [`FlowKey`] and [`Probe`](crate::mask::Probe),
//! masks and flow text follow from it. The fields are those of OpenFlow 1.3 (section 7.2.3.7) as
//! ovs-fields(7) names them. Fields that no frame has at the same time share bits, as in OVS: ARP addresses
//! and IPv4 ones, ICMP type and ports. What plain switching looks at is in words 0 to 2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::BitOr;

use encap::field::{EtherType, IpProto, MacAddr, VlanId};
use encap::offsets::Fragment;

use crate::id::PortId;
use crate::key::{FlowKey, WORDS};

/// Calls macro `$emit` with the table. A line is: variant, getter, type, word, lowest bit, width in bits (128:
/// two words, the upper one first), what the frame must be, names (the first is the one we print).
macro_rules! with_fields {
    ($emit:ident) => {
        $emit! {
            /// Tunnel id: VNI or GRE key; zero outside tunnels.
            TunId tun_id: u64 = 15, 0, 64, ANY, ["tun_id", "tunnel_id"];
            /// Outer source of the tunnel; `::` outside tunnels.
            TunSrc tun_src: IpAddr = 16, 0, 128, ANY, ["tun_src", "tun_ipv6_src"];
            /// Outer destination of the tunnel; `::` outside tunnels.
            TunDst tun_dst: IpAddr = 18, 0, 128, ANY, ["tun_dst", "tun_ipv6_dst"];
            /// Outer DSCP and ECN of the tunnel.
            TunTos tun_tos: u8 = 6, 56, 8, ANY, ["tun_tos"];
            /// Outer time to live of the tunnel.
            TunTtl tun_ttl: u8 = 6, 48, 8, ANY, ["tun_ttl"];
            /// Flags of the tunnel.
            TunFlags tun_flags: TunnelFlags = 6, 40, 4, ANY, ["tun_flags"];
            /// The port the frame came in.
            InPort in_port: PortId = 0, 32, 32, ANY, ["in_port"];
            /// TPID of the outermost VLAN tag; zero without one.
            OuterTpid outer_tpid: EtherType = 0, 16, 16, ANY, ["vlan_tpid"];
            /// The outermost VLAN tag.
            OuterTci outer_tci: VlanTci = 0, 0, 16, ANY, ["vlan_tci"];
            /// TPID of the second VLAN tag; zero without one.
            InnerTpid inner_tpid: EtherType = 5, 48, 16, ANY, ["vlan_tpid1"];
            /// The second VLAN tag.
            InnerTci inner_tci: VlanTci = 5, 32, 16, ANY, ["vlan_tci1"];
            /// Ethernet source.
            EthSrc eth_src: MacAddr = 2, 16, 48, ANY, ["dl_src", "eth_src"];
            /// Ethernet destination.
            EthDst eth_dst: MacAddr = 1, 16, 48, ANY, ["dl_dst", "eth_dst"];
            /// EtherType behind the tags; [`EtherType::NOT_ETH_II`] for 802.2 without SNAP.
            EthType eth_type: EtherType = 1, 0, 16, ANY, ["dl_type", "eth_type"];
            /// Label of the top MPLS entry.
            MplsLabel mpls_label: Label = 6, 12, 20, MPLS, ["mpls_label"];
            /// Traffic class of the top MPLS entry, 0 to 7.
            MplsTc mpls_tc: u8 = 6, 9, 3, MPLS, ["mpls_tc"];
            /// Bottom-of-stack bit of the top MPLS entry, 0 or 1.
            MplsBos mpls_bos: u8 = 6, 8, 1, MPLS, ["mpls_bos"];
            /// Time to live of the top MPLS entry.
            MplsTtl mpls_ttl: u8 = 6, 0, 8, MPLS, ["mpls_ttl"];
            /// IPv4 source.
            Ipv4Src ip_src: Ipv4Addr = 3, 32, 32, IPV4, ["nw_src", "ip_src"];
            /// IPv4 destination.
            Ipv4Dst ip_dst: Ipv4Addr = 3, 0, 32, IPV4, ["nw_dst", "ip_dst"];
            /// IPv6 source.
            Ipv6Src ipv6_src: Ipv6Addr = 7, 0, 128, IPV6, ["ipv6_src"];
            /// IPv6 destination.
            Ipv6Dst ipv6_dst: Ipv6Addr = 9, 0, 128, IPV6, ["ipv6_dst"];
            /// IPv6 flow label.
            Ipv6Label ipv6_label: FlowLabel = 5, 0, 20, IPV6, ["ipv6_label"];
            /// ARP sender protocol address.
            ArpSpa arp_spa: Ipv4Addr = 3, 32, 32, ARP, ["arp_spa", "nw_src", "ip_src"];
            /// ARP target protocol address.
            ArpTpa arp_tpa: Ipv4Addr = 3, 0, 32, ARP, ["arp_tpa", "nw_dst", "ip_dst"];
            /// ARP operation; zero above 255, as in OVS.
            ArpOp arp_op: u8 = 2, 8, 8, ARP, ["arp_op", "nw_proto", "ip_proto"];
            /// ARP sender hardware address.
            ArpSha arp_sha: MacAddr = 13, 16, 48, ARP, ["arp_sha"];
            /// ARP target hardware address.
            ArpTha arp_tha: MacAddr = 14, 16, 48, ARP, ["arp_tha"];
            /// IP protocol; in IPv6 the one behind the extension headers.
            IpProto ip_proto: IpProto = 2, 8, 8, IP, ["nw_proto", "ip_proto"];
            /// IP differentiated services code point.
            IpDscp ip_dscp: Dscp = 4, 10, 6, IP, ["nw_tos"];
            /// IP explicit congestion notification, 0 to 3.
            IpEcn ip_ecn: u8 = 4, 8, 2, IP, ["nw_ecn", "ip_ecn"];
            /// IPv4 time to live, IPv6 hop limit.
            IpTtl ip_ttl: u8 = 4, 0, 8, IP, ["nw_ttl", "ip_ttl"];
            /// Whether the frame is a fragment.
            IpFrag ip_frag: Fragment = 2, 0, 2, IP, ["nw_frag", "ip_frag"];
            /// TCP, UDP or SCTP source port.
            L4Src l4_src: L4Port = 4, 48, 16, L4, ["tp_src"];
            /// TCP, UDP or SCTP destination port.
            L4Dst l4_dst: L4Port = 4, 32, 16, L4, ["tp_dst"];
            /// TCP flags.
            TcpFlags tcp_flags: TcpFlags = 4, 16, 12, TCP, ["tcp_flags"];
            /// ICMP type.
            IcmpType icmp_type: u8 = 4, 48, 8, ICMP, ["icmp_type", "icmpv4_type"];
            /// ICMP code.
            IcmpCode icmp_code: u8 = 4, 32, 8, ICMP, ["icmp_code", "icmpv4_code"];
            /// ICMPv6 type.
            Icmpv6Type icmpv6_type: u8 = 4, 48, 8, ICMPV6, ["icmp_type", "icmpv6_type"];
            /// ICMPv6 code.
            Icmpv6Code icmpv6_code: u8 = 4, 32, 8, ICMPV6, ["icmp_code", "icmpv6_code"];
            /// IGMP type.
            IgmpType igmp_type: u8 = 4, 48, 8, IGMP, ["igmp_type"];
            /// IGMP code: the maximum response time of a query.
            IgmpCode igmp_code: u8 = 4, 32, 8, IGMP, ["igmp_code"];
            /// Target of an IPv6 neighbour solicitation or advertisement.
            NdTarget nd_target: Ipv6Addr = 11, 0, 128, ICMPV6, ["nd_target"];
            /// Source link-layer address option of a neighbour solicitation or advertisement.
            NdSll nd_sll: MacAddr = 13, 16, 48, ICMPV6, ["nd_sll"];
            /// Target link-layer address option of a neighbour solicitation or advertisement.
            NdTll nd_tll: MacAddr = 14, 16, 48, ICMPV6, ["nd_tll"];
        }
    };
}
pub(crate) use with_fields;

/// What a frame must be to have a field. An empty list asks nothing.
#[derive(Debug)]
pub(crate) struct Needs {
    /// One of these types.
    pub types: &'static [EtherType],
    /// One of these protocols.
    pub protos: &'static [IpProto],
}

const V4: &[EtherType] = &[EtherType::IPV4];
const V6: &[EtherType] = &[EtherType::IPV6];
const V46: &[EtherType] = &[EtherType::IPV4, EtherType::IPV6];

const ANY: Needs = Needs { types: &[], protos: &[] };
const MPLS: Needs = Needs { types: &[EtherType::MPLS, EtherType::MPLS_MULTICAST], protos: &[] };
const ARP: Needs = Needs { types: &[EtherType::ARP, EtherType::RARP], protos: &[] };
const IP: Needs = Needs { types: V46, protos: &[] };
const IPV4: Needs = Needs { types: V4, protos: &[] };
const IPV6: Needs = Needs { types: V6, protos: &[] };
const L4: Needs = Needs { types: V46, protos: &[IpProto::TCP, IpProto::UDP, IpProto::SCTP] };
const TCP: Needs = Needs { types: V46, protos: &[IpProto::TCP] };
const ICMP: Needs = Needs { types: V4, protos: &[IpProto::ICMP] };
const IGMP: Needs = Needs { types: V4, protos: &[IpProto::IGMP] };
const ICMPV6: Needs = Needs { types: V6, protos: &[IpProto::ICMPV6] };

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Spec {
    pub word: usize,
    pub shift: u32,
    pub width: u32,
    pub needs: Needs,
    pub names: &'static [&'static str],
    pub form: Form,
}

macro_rules! define_fields {
    ($($(#[$doc:meta])* $field:ident $get:ident: $type:ty =
        $word:literal, $shift:literal, $width:literal, $needs:ident, $names:expr;)*) => {
        /// A field of a flow key.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Field { $($(#[$doc])* $field,)* }

        impl Field {
            /// All fields, in the order in which flow text prints them.
            pub const ALL: &'static [Field] = &[$(Field::$field,)*];

            const SPECS: &'static [Spec] = &[$(Spec {
                word: $word,
                shift: $shift,
                width: $width,
                needs: $needs,
                names: &$names,
                form: <$type as Value>::FORM,
            },)*];
        }
    };
}
with_fields!(define_fields);

impl Field {
    /// The field's line of the table.
    #[inline(always)]
    pub(crate) const fn spec(self) -> &'static Spec {
        &Field::SPECS[self as usize]
    }

    /// The TPID of the outermost tag and of the second.
    pub(crate) const TPID: [Field; 2] = [Field::OuterTpid, Field::InnerTpid];

    /// The rest of the outermost tag and of the second.
    pub(crate) const TCI: [Field; 2] = [Field::OuterTci, Field::InnerTci];

    /// The name in flow text.
    pub const fn name(self) -> &'static str {
        self.spec().names[0]
    }

    /// The field's bits, all set, right-aligned.
    #[inline(always)]
    pub(crate) const fn ones(self) -> u128 {
        u128::MAX >> (128 - self.spec().width)
    }

    /// The field's bits in `words`, right-aligned.
    #[inline(always)]
    pub(crate) const fn get(self, words: &[u64; WORDS]) -> u128 {
        let Spec { word, shift, width, .. } = *self.spec();
        if width == 128 {
            (words[word] as u128) << 64 | words[word + 1] as u128
        } else {
            (words[word] >> shift) as u128 & self.ones()
        }
    }

    /// Sets those of the field's bits in `words` that are set in `bits`; clears none.
    #[inline(always)]
    pub(crate) const fn or(self, words: &mut [u64; WORDS], bits: u128) {
        let Spec { word, shift, width, .. } = *self.spec();
        if width == 128 {
            words[word] |= (bits >> 64) as u64;
            words[word + 1] |= bits as u64;
        } else {
            words[word] |= ((bits & self.ones()) as u64) << shift;
        }
    }

    /// Clears the field's bits in `words`.
    #[inline(always)]
    pub(crate) const fn clear(self, words: &mut [u64; WORDS]) {
        let Spec { word, shift, width, .. } = *self.spec();
        if width == 128 {
            words[word] = 0;
            words[word + 1] = 0;
        } else {
            words[word] &= !((self.ones() as u64) << shift);
        }
    }

    /// Does a frame with this key have the field?
    #[inline(always)]
    pub fn exists_in(self, key: &FlowKey) -> bool {
        self.type_fits(key) && self.proto_fits(key)
    }

    /// Is the frame's EtherType one that has the field?
    #[inline(always)]
    pub(crate) fn type_fits(self, key: &FlowKey) -> bool {
        let types = self.spec().needs.types;
        types.is_empty() || types.contains(&EtherType::from_bits(Field::EthType.get(key.words())))
    }

    /// Is the frame's IP protocol one that has the field?
    #[inline(always)]
    pub(crate) fn proto_fits(self, key: &FlowKey) -> bool {
        let protos = self.spec().needs.protos;
        protos.is_empty() || protos.contains(&IpProto::from_bits(Field::IpProto.get(key.words())))
    }
}

/// How flow text writes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `10`.
    Decimal,
    /// `0x0800`, with as many digits as the field has; more than 32 bits without leading zeros.
    Hex,
    /// `02:00:00:00:00:01`.
    Mac,
    /// `10.0.0.1`.
    Ipv4,
    /// `fe80::1`.
    Ipv6,
    /// IPv4 or IPv6, by value.
    Ip,
    /// A port's name or number.
    Port,
    /// `dl_vlan=10,dl_vlan_pcp=0`, or 16 bits in hexadecimal.
    Tci,
    /// The upper six bits of an octet, in decimal.
    Tos,
    /// `no`, `yes`, `first`, `later` or `not_later`.
    Fragment,
    /// Named bits, lowest first.
    Flags(&'static [&'static str]),
}

/// A value that a field can have.
pub trait Value: Copy {
    /// How flow text writes it.
    const FORM: Form;

    /// From right-aligned bits; bits that are too many are ignored.
    fn from_bits(bits: u128) -> Self;

    /// As right-aligned bits.
    fn to_bits(self) -> u128;
}

macro_rules! values {
    ($($type:ty: $form:expr, |$bits:ident| $from:expr, |$value:ident| $to:expr;)*) => {$(
        impl Value for $type {
            const FORM: Form = $form;

            #[inline(always)]
            fn from_bits($bits: u128) -> Self {
                $from
            }

            #[inline(always)]
            fn to_bits(self) -> u128 {
                let $value = self;
                $to
            }
        }
    )*};
}

values! {
    u8: Form::Decimal, |bits| bits as u8, |value| value.into();
    u64: Form::Hex, |bits| bits as u64, |value| value.into();
    PortId: Form::Port, |bits| PortId(bits as u32), |value| value.0.into();
    MacAddr: Form::Mac, |bits| MacAddr::from_u64(bits as u64), |value| value.to_u64().into();
    EtherType: Form::Hex, |bits| EtherType(bits as u16), |value| value.0.into();
    IpProto: Form::Decimal, |bits| IpProto(bits as u8), |value| value.0.into();
    Ipv4Addr: Form::Ipv4, |bits| Ipv4Addr::from_bits(bits as u32), |value| value.to_bits().into();
    Ipv6Addr: Form::Ipv6, |bits| Ipv6Addr::from_bits(bits), |value| value.to_bits();
    IpAddr: Form::Ip, |bits| ip_from_bits(bits), |value| ip_to_bits(value);
    VlanTci: Form::Tci, |bits| VlanTci(bits as u16), |value| value.0.into();
    Label: Form::Decimal, |bits| Label(bits as u32 & 0xf_ffff), |value| value.0.into();
    FlowLabel: Form::Hex, |bits| FlowLabel(bits as u32 & 0xf_ffff), |value| value.0.into();
    Dscp: Form::Tos, |bits| Dscp(bits as u8 & 0x3f), |value| value.0.into();
    L4Port: Form::Decimal, |bits| L4Port(bits as u16), |value| value.0.into();
    Fragment: Form::Fragment, |bits| fragment_from_bits(bits), |value| fragment_to_bits(value);
    TcpFlags: Form::Flags(TcpFlags::NAMES), |bits| TcpFlags(bits as u16 & 0xfff), |value| value.0.into();
    TunnelFlags: Form::Flags(TunnelFlags::NAMES), |bits| TunnelFlags(bits as u8 & 0xf), |value| value.0.into();
}

/// IPv4 addresses stand in a tunnel's 128 bits as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
fn ip_from_bits(bits: u128) -> IpAddr {
    let v6 = Ipv6Addr::from_bits(bits);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

fn ip_to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Bit 0: a fragment; bit 1: a later one (ovs-fields(7), `ip_frag`).
#[inline]
fn fragment_to_bits(fragment: Fragment) -> u128 {
    match fragment {
        Fragment::No => 0,
        Fragment::First => 1,
        Fragment::Later => 3,
    }
}

#[inline]
fn fragment_from_bits(bits: u128) -> Fragment {
    match bits & 3 {
        0 => Fragment::No,
        1 => Fragment::First,
        _ => Fragment::Later,
    }
}

/// A VLAN tag as a key holds it: priority (3 bits), present (1), VLAN id (12). All zero without a tag.
///
/// As in OVS the drop-eligible bit of the wire is not part of it: no OpenFlow match can see that bit, and its
/// place tells a priority tag with VLAN 0 from no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VlanTci(u16);

impl VlanTci {
    /// The bit that says there is a tag.
    pub(crate) const PRESENT: u16 = 0x1000;

    /// No tag.
    pub const ABSENT: VlanTci = VlanTci(0);

    /// The tag with this control word on the wire.
    #[inline]
    pub const fn from_wire(tci: u16) -> Self {
        VlanTci(tci | VlanTci::PRESENT)
    }

    /// Is there a tag?
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & VlanTci::PRESENT != 0
    }

    /// The VLAN id, if there is a tag.
    #[inline]
    pub fn vid(self) -> Option<VlanId> {
        self.is_present().then_some(VlanId::from_tci(self.0))
    }

    /// The control word on the wire with drop-eligible clear, if there is a tag.
    #[inline]
    pub fn to_wire(self) -> Option<u16> {
        self.is_present().then_some(self.0 & !VlanTci::PRESENT)
    }
}

/// An MPLS label, 0 to 1,048,575 (RFC 3032).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Label(u32);

impl Label {
    /// The label.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// An IPv6 flow label, 0 to 1,048,575 (RFC 6437).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowLabel(u32);

impl FlowLabel {
    /// The label.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A differentiated services code point, 0 to 63 (RFC 2474).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Dscp(u8);

impl Dscp {
    /// The code point.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A TCP, UDP or SCTP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct L4Port(pub u16);

/// The twelve TCP flag bits (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpFlags(u16);

impl TcpFlags {
    const NAMES: &'static [&'static str] =
        &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];

    /// The bits, FIN lowest.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Flags of a tunnel packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TunnelFlags(u8);

impl TunnelFlags {
    /// No flag.
    pub const NONE: TunnelFlags = TunnelFlags(0);

    /// Not to be fragmented (IPv4).
    pub const DF: TunnelFlags = TunnelFlags(1);

    /// The outer UDP or GRE header had a checksum.
    pub const CSUM: TunnelFlags = TunnelFlags(2);

    /// There was a key, be it 0: VNIs always are, GRE can do without (RFC 2890).
    pub const KEY: TunnelFlags = TunnelFlags(4);

    /// A control message (Geneve).
    pub const OAM: TunnelFlags = TunnelFlags(8);

    const NAMES: &'static [&'static str] = &["df", "csum", "key", "oam"];

    /// Are all flags of `other` set?
    #[inline]
    pub const fn contains(self, other: TunnelFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for TunnelFlags {
    type Output = TunnelFlags;

    #[inline]
    fn bitor(self, other: TunnelFlags) -> TunnelFlags {
        TunnelFlags(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(field: Field) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        field.or(&mut words, u128::MAX);
        words
    }

    #[test]
    fn fields_that_a_frame_can_have_together_share_no_bits() {
        for (i, a) in Field::ALL.iter().enumerate() {
            for b in &Field::ALL[i + 1..] {
                let overlap = bits(*a).iter().zip(&bits(*b)).any(|(x, y)| x & y != 0);
                assert!(!overlap || apart(*a, *b), "{a:?} and {b:?}");
            }
        }
    }

    /// No frame has both.
    fn apart(a: Field, b: Field) -> bool {
        let (a, b) = (&a.spec().needs, &b.spec().needs);
        let types = !a.types.is_empty() && !a.types.iter().any(|t| b.types.contains(t));
        let protos = !a.protos.is_empty() && !a.protos.iter().any(|p| b.protos.contains(p));
        (types && !b.types.is_empty()) || (protos && !b.protos.is_empty())
    }

    #[test]
    fn plain_switching_looks_at_the_first_three_words() {
        for field in
            [Field::InPort, Field::OuterTci, Field::EthDst, Field::EthSrc, Field::EthType, Field::IpProto]
        {
            assert!(field.spec().word < 3, "{field:?}");
        }
    }
}
