//! A flow as `ovs-appctl dpctl/dump-flows` of Open vSwitch 3 writes it: the words of the datapath (ODP), which
//! are not those of ovs-fields(7), each header a group, what no decision looked at left out.

use std::net::{Ipv4Addr, Ipv6Addr};

use encap::field::{EtherType, IpProto, MacAddr};

use super::print::{port_text, print_actions};
use super::value::{self, Bits};
use super::{PortNames, visible};
use crate::field::{Field, Form, Value, VlanTci};
use crate::flow::{Flow, FlowTotals};
use crate::id::PortId;
use crate::key::FlowKey;
use crate::mask::Mask;
use crate::time::Instant;

/// Writes a flow with its counters and actions; `now` tells how long ago it was used.
pub fn dump(flow: &Flow, now: Instant, names: PortNames<'_>) -> String {
    let stats = stats(&flow.totals(), now);
    let actions = print_actions(&flow.actions(), names);
    format!("{}, {stats}, actions:{actions}", Match { key: &flow.key(), mask: flow.mask() }.text(names))
}

fn stats(totals: &FlowTotals, now: Instant) -> String {
    let used =
        totals.used.map_or("never".to_owned(), |used| format!("{:.3}s", now.since(used).as_secs_f64()));
    let letters = tcp_letters(totals.tcp_flags);
    let flags = if letters.is_empty() { letters } else { format!(", flags:{letters}") };
    format!("packets:{}, bytes:{}, used:{used}{flags}", totals.frames, totals.bytes)
}

/// TCP flags as OVS abbreviates them, in its order.
fn tcp_letters(flags: u16) -> String {
    const LETTERS: [(u16, &str); 12] = [
        (0x002, "S"),
        (0x001, "F"),
        (0x008, "P"),
        (0x004, "R"),
        (0x020, "U"),
        (0x010, "."),
        (0x040, "E"),
        (0x080, "C"),
        (0x100, "N"),
        (0x200, "[200]"),
        (0x400, "[400]"),
        (0x800, "[800]"),
    ];
    LETTERS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter).collect()
}

/// A group: its name, and the name and the fields, most significant first, of each member.
type Group = (&'static str, &'static [(&'static str, &'static [Field])]);

const TUNNEL: &[(&str, &[Field])] = &[
    ("tun_id", &[Field::TunId]),
    ("src", &[Field::TunSrc]),
    ("dst", &[Field::TunDst]),
    ("tos", &[Field::TunTos]),
    ("ttl", &[Field::TunTtl]),
];

const ETHERNET: Group = ("eth", &[("src", &[Field::EthSrc]), ("dst", &[Field::EthDst])]);

const ARP: Group = (
    "arp",
    &[
        ("sip", &[Field::ArpSpa]),
        ("tip", &[Field::ArpTpa]),
        ("op", &[Field::ArpOp]),
        ("sha", &[Field::ArpSha]),
        ("tha", &[Field::ArpTha]),
    ],
);

const MPLS: Group = (
    "mpls",
    &[
        ("label", &[Field::MplsLabel]),
        ("tc", &[Field::MplsTc]),
        ("ttl", &[Field::MplsTtl]),
        ("bos", &[Field::MplsBos]),
    ],
);

const IPV4: Group = (
    "ipv4",
    &[
        ("src", &[Field::Ipv4Src]),
        ("dst", &[Field::Ipv4Dst]),
        ("proto", &[Field::IpProto]),
        ("tos", &[Field::IpDscp, Field::IpEcn]),
        ("ttl", &[Field::IpTtl]),
        ("frag", &[Field::IpFrag]),
    ],
);

const IPV6: Group = (
    "ipv6",
    &[
        ("src", &[Field::Ipv6Src]),
        ("dst", &[Field::Ipv6Dst]),
        ("label", &[Field::Ipv6Label]),
        ("proto", &[Field::IpProto]),
        ("tclass", &[Field::IpDscp, Field::IpEcn]),
        ("hlimit", &[Field::IpTtl]),
        ("frag", &[Field::IpFrag]),
    ],
);

const PORTS: &[(&str, &[Field])] = &[("src", &[Field::L4Src]), ("dst", &[Field::L4Dst])];
const TCP: Group = ("tcp", PORTS);
const UDP: Group = ("udp", PORTS);
const SCTP: Group = ("sctp", PORTS);
const ICMP: Group = ("icmp", &[("type", &[Field::IcmpType]), ("code", &[Field::IcmpCode])]);
const IGMP: Group = ("igmp", &[("type", &[Field::IgmpType]), ("code", &[Field::IgmpCode])]);
const ICMPV6: Group = ("icmpv6", &[("type", &[Field::Icmpv6Type]), ("code", &[Field::Icmpv6Code])]);
const ND: Group =
    ("nd", &[("target", &[Field::NdTarget]), ("sll", &[Field::NdSll]), ("tll", &[Field::NdTll])]);

/// What matters of a key.
struct Match<'f> {
    key: &'f FlowKey,
    mask: &'f Mask,
}

impl Match<'_> {
    fn text(&self, names: PortNames<'_>) -> String {
        let port = self.bits(&[Field::InPort]).map(|bits| port_text(PortId::from_bits(bits.value), names));
        let parts = [
            Some("recirc_id(0)".to_owned()),
            self.tunnel(),
            port.map(|port| format!("in_port({port})")),
            Some("packet_type(ns=0,id=0)".to_owned()),
            self.group(&ETHERNET),
            self.behind_tags(0),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(",")
    }

    /// What follows the addresses and `i` tags.
    fn behind_tags(&self, i: usize) -> Option<String> {
        match Field::TCI.get(i).and_then(|tci| self.vlan(*tci)) {
            Some(vlan) => {
                let tpid = self.ether_type(Field::TPID[i]).map_or(String::new(), |tpid| tpid + ",");
                Some(format!("{tpid}{vlan},encap({})", self.behind_tags(i + 1).unwrap_or_default()))
            }
            None => self.payload(),
        }
    }

    /// The tag, if the mask tells that there is one.
    fn vlan(&self, field: Field) -> Option<String> {
        let tci = self.bits(&[field]).filter(|bits| VlanTci::from_bits(bits.value).is_present())?;
        let (vid, pcp) = (tci.slice(0, 12), tci.slice(13, 3));
        Some(format!("vlan(vid={},pcp={})", text(Form::Decimal, vid), text(Form::Decimal, pcp)))
    }

    fn payload(&self) -> Option<String> {
        let ether_type = self.ether_type(Field::EthType)?;
        let network: &[Group] = match self.key.eth_type() {
            EtherType::ARP | EtherType::RARP => &[ARP],
            EtherType::MPLS | EtherType::MPLS_MULTICAST => &[MPLS],
            EtherType::IPV4 => &[IPV4],
            EtherType::IPV6 => &[IPV6],
            _ => &[],
        };
        let transport: &[Group] = match self.key.ip_proto() {
            IpProto::TCP => &[TCP],
            IpProto::UDP => &[UDP],
            IpProto::SCTP => &[SCTP],
            IpProto::ICMP => &[ICMP],
            IpProto::IGMP => &[IGMP],
            IpProto::ICMPV6 => &[ICMPV6, ND],
            _ => &[],
        };
        let groups = network.iter().chain(transport).filter_map(|group| self.group(group));
        let flags =
            self.bits(&[Field::TcpFlags]).map(|bits| format!("tcp_flags({})", flags(Field::TcpFlags, bits)));
        Some([ether_type].into_iter().chain(groups).chain(flags).collect::<Vec<_>>().join(","))
    }

    fn ether_type(&self, field: Field) -> Option<String> {
        let bits = self.bits(&[field])?;
        Some(match EtherType::from_bits(bits.value) {
            EtherType::NOT_ETH_II => "eth_type(0/0xffff)".to_owned(), // as the kernel has it: no type
            _ => format!("eth_type({})", value::write(Form::Hex, bits)),
        })
    }

    fn tunnel(&self) -> Option<String> {
        let flags =
            self.bits(&[Field::TunFlags]).map(|bits| format!("flags({})", flags(Field::TunFlags, bits)));
        let members: Vec<String> = self.members(TUNNEL).chain(flags).collect();
        (!self.key.tun_dst().is_unspecified()).then(|| format!("tunnel({})", members.join(",")))
    }

    fn group(&self, (name, members): &Group) -> Option<String> {
        let members: Vec<String> = self.members(members).collect();
        (!members.is_empty()).then(|| format!("{name}({})", members.join(",")))
    }

    /// `name=value` of those members that matter.
    fn members(&self, members: &[(&str, &[Field])]) -> impl Iterator<Item = String> {
        members.iter().filter_map(|(name, fields)| {
            let form = match fields {
                [Field::TunTos] => Form::Hex,
                [field] => field.spec().form,
                _ => Form::Hex,
            };
            let bits = self.bits(fields)?;
            let family = if form == Form::Ip && bits.mapped().is_none() { "ipv6_" } else { "" };
            Some(format!("{family}{name}={}", text(form, bits)))
        })
    }

    /// The bits of adjacent fields as one; `None` if none of them matters.
    fn bits(&self, fields: &[Field]) -> Option<Bits> {
        let parts =
            fields.iter().map(|f| visible(*f, self.key, self.mask).unwrap_or(Bits::none(f.spec().width)));
        parts.reduce(Bits::concat).filter(|bits| bits.mask != 0)
    }
}

fn flags(field: Field, bits: Bits) -> String {
    value::write(field.spec().form, bits)
}

/// A value as the datapath's words have it: masks are spelled out.
fn text(form: Form, bits: Bits) -> String {
    let one = |bits: u128| match form {
        Form::Mac => MacAddr::from_bits(bits).to_string(),
        Form::Ipv4 => Ipv4Addr::from_bits(bits as u32).to_string(),
        Form::Ipv6 => Ipv6Addr::from_bits(bits).to_string(),
        _ if bits == 0 => "0".to_owned(), // as C's %#x
        _ => format!("{bits:#x}"),
    };
    let Bits { value, mask, .. } = bits;
    match form {
        Form::Fragment => value::write(form, bits),
        Form::Ip => match bits.mapped() {
            Some(bits) => text(Form::Ipv4, bits),
            None => text(Form::Ipv6, bits),
        },
        Form::Decimal if bits.is_whole() => value.to_string(),
        Form::Decimal => format!("{value}/{mask:#x}"),
        _ if bits.is_whole() => one(value),
        _ => format!("{}/{}", one(value), one(mask)),
    }
}
