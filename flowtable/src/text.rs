//! Flow text: the language of logs, tests and the command line, as ovs-fields(7) and ovs-ofctl(8) define it.
//!
//! `tcp,in_port=1,dl_vlan=10,dl_src=02:00:00:00:00:01,nw_dst=10.0.0.0/24,tp_dst=80` is a key and a mask.
//! [`parse`](fn@parse) reads it, [`print`](fn@print) writes it, and parsing what was printed gives the same key and mask
//! back if the mask has what its fields need (every mask from a [`Probe`](crate::mask::Probe) or from `parse`
//! has). Ports have numbers and, through a function that the caller brings, names.
//!
//! [`dump`] writes a flow as `ovs-appctl dpctl/dump-flows` does, which is another language with the same words.

mod odp;
mod outer;
mod parse;
mod print;
mod value;

use encap::field::{EtherType, IpProto};

use crate::field::Field;
use crate::id::PortId;
use crate::key::FlowKey;
use crate::mask::Mask;
use value::Bits;

pub use odp::dump;
pub use parse::{ParseError, Problem, parse};
pub use print::{print, print_actions, print_key};

/// From what stands behind `in_port=` to a port's id; `None` if that is no port's name.
pub type PortsByName<'a> = &'a dyn Fn(&str) -> Option<PortId>;

/// From a port's id to its name; `None` prints the number.
pub type PortNames<'a> = &'a dyn Fn(PortId) -> Option<String>;

/// A word that stands for an EtherType, or for that and a protocol.
struct Shorthand {
    name: &'static str,
    ether_type: EtherType,
    proto: Option<IpProto>,
}

impl Shorthand {
    const fn new(name: &'static str, ether_type: EtherType, proto: Option<IpProto>) -> Self {
        Shorthand { name, ether_type, proto }
    }
}

/// Those with a protocol first, so that the first that fits is the narrowest.
const SHORTHANDS: &[Shorthand] = &[
    Shorthand::new("icmp", EtherType::IPV4, Some(IpProto::ICMP)),
    Shorthand::new("icmp6", EtherType::IPV6, Some(IpProto::ICMPV6)),
    Shorthand::new("igmp", EtherType::IPV4, Some(IpProto::IGMP)),
    Shorthand::new("tcp", EtherType::IPV4, Some(IpProto::TCP)),
    Shorthand::new("tcp6", EtherType::IPV6, Some(IpProto::TCP)),
    Shorthand::new("udp", EtherType::IPV4, Some(IpProto::UDP)),
    Shorthand::new("udp6", EtherType::IPV6, Some(IpProto::UDP)),
    Shorthand::new("sctp", EtherType::IPV4, Some(IpProto::SCTP)),
    Shorthand::new("sctp6", EtherType::IPV6, Some(IpProto::SCTP)),
    Shorthand::new("ip", EtherType::IPV4, None),
    Shorthand::new("ipv6", EtherType::IPV6, None),
    Shorthand::new("arp", EtherType::ARP, None),
    Shorthand::new("rarp", EtherType::RARP, None),
    Shorthand::new("mpls", EtherType::MPLS, None),
    Shorthand::new("mplsm", EtherType::MPLS_MULTICAST, None),
];

/// The field's bits under the mask, if the mask has any of them and all that the field needs.
fn visible(field: Field, key: &FlowKey, mask: &Mask) -> Option<Bits> {
    let whole = |f: Field| f.get(mask.words()) == f.ones();
    let needs = &field.spec().needs;
    let known = (needs.types.is_empty() || whole(Field::EthType))
        && (needs.protos.is_empty() || whole(Field::IpProto))
        && field.exists_in(key);
    let mask = field.get(mask.words());
    (known && mask != 0).then(|| Bits {
        value: field.get(key.words()) & mask,
        mask,
        width: field.spec().width,
    })
}

#[cfg(test)]
mod tests;
