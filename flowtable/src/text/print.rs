//! Key, mask and actions to flow text, in the order and the forms of `ovs-ofctl dump-flows`.

use encap::field::{EtherType, VlanTag};

use super::value::{self, Bits};
use super::{PortNames, SHORTHANDS, Shorthand, outer, visible};
use crate::action::{Action, Encap};
use crate::field::{Field, Form, Value, VlanTci};
use crate::id::PortId;
use crate::key::FlowKey;
use crate::mask::Mask;

/// Writes what a mask selects of a key; an empty mask is an empty text.
pub fn print(key: &FlowKey, mask: &Mask, names: PortNames<'_>) -> String {
    let mut out = Items(Vec::new());
    let short = shorthand(key, mask);
    out.0.extend(short.map(|s| s.name.to_owned()));
    for field in Field::ALL {
        let said = short.is_some_and(|s| match field {
            Field::EthType => true,
            Field::IpProto => s.proto.is_some(),
            _ => false,
        });
        if let (false, Some(bits)) = (said, visible(*field, key, mask)) {
            out.field(*field, bits, names);
        }
    }
    out.0.join(",")
}

/// Writes a whole key: every field that is not zero, and those that say something when they are.
pub fn print_key(key: &FlowKey, names: PortNames<'_>) -> String {
    const ALWAYS: &[Field] =
        &[Field::InPort, Field::OuterTci, Field::EthSrc, Field::EthDst, Field::EthType, Field::IpProto];
    let mut mask = Mask::EMPTY;
    Field::ALL
        .iter()
        .filter(|f| f.exists_in(key) && (ALWAYS.contains(f) || f.get(key.words()) != 0))
        .for_each(|f| f.or(&mut mask.0, u128::MAX));
    print(key, &mask, names)
}

/// Writes actions as `dpctl/dump-flows` does; a drop says its reason.
pub fn print_actions(actions: &[Action], names: PortNames<'_>) -> String {
    let one = |action: &Action| match action {
        Action::Output(port) => port_text(*port, names),
        Action::PushVlan(tag) => push_vlan(*tag),
        Action::PopVlan => "pop_vlan".to_owned(),
        Action::Encap(encap) => tnl_push(encap, names),
        Action::SetEcn(ecn) => format!("set(ip(tos={ecn:#x}/0x3))"),
        Action::Answer(mac) => format!("answer({mac})"),
        Action::Decap { listener, .. } => format!("tnl_pop({})", port_text(*listener, names)),
        Action::SetVid(vid) => format!("set(vlan(vid={vid}))"),
        Action::Drop(reason) => format!("drop({})", reason.name()),
    };
    actions.iter().map(one).collect::<Vec<_>>().join(",")
}

fn tnl_push(encap: &Encap, names: PortNames<'_>) -> String {
    let (tunnel, output) = (port_text(encap.tunnel, names), port_text(encap.output, names));
    format!("tnl_push(tnl_port({tunnel}),{},out_port({output}))", outer::header(encap.template.outer()))
}

fn push_vlan(tag: VlanTag) -> String {
    format!("push_vlan({})", tag_text(tag))
}

/// What a tag says; its TPID if that is not the usual one.
pub(super) fn tag_text(tag: VlanTag) -> String {
    let tpid = if tag.tpid == EtherType::VLAN { String::new() } else { format!("tpid={},", tag.tpid) };
    format!("{tpid}vid={},pcp={}", tag.vid(), tag.pcp().get())
}

/// The port's name, or its number if it has none.
pub(super) fn port_text(port: PortId, names: PortNames<'_>) -> String {
    names(port).unwrap_or_else(|| port.to_string())
}

/// The shorthand that says all that the mask selects of type and protocol, or else of the type.
fn shorthand(key: &FlowKey, mask: &Mask) -> Option<&'static Shorthand> {
    let exact = |field: Field| visible(field, key, mask).filter(|b| b.mask == field.ones()).map(|b| b.value);
    let (ether_type, proto) = (exact(Field::EthType)?, exact(Field::IpProto));
    let fits = |s: &&Shorthand| s.ether_type.to_bits() == ether_type;
    SHORTHANDS.iter().filter(fits).find(|s| s.proto.is_none_or(|p| proto == Some(p.to_bits())))
}

/// The parts of a text that commas separate.
struct Items(Vec<String>);

impl Items {
    fn field(&mut self, field: Field, bits: Bits, names: PortNames<'_>) {
        let spec = field.spec();
        match spec.form {
            Form::Tci => self.tci(field, bits),
            Form::Ip => {
                self.item(spec.names[usize::from(bits.mapped().is_none())], value::write(spec.form, bits))
            }
            Form::Port if bits.is_whole() => {
                self.item(field.name(), port_text(PortId::from_bits(bits.value), names));
            }
            form => self.item(field.name(), value::write(form, bits)),
        }
    }

    fn item(&mut self, name: &str, value: String) {
        self.0.push(format!("{name}={value}"));
    }

    /// `dl_vlan` and `dl_vlan_pcp` where they say it all, as OVS does, else the bits.
    fn tci(&mut self, field: Field, bits: Bits) {
        let suffix = if field == Field::InnerTci { "1" } else { "" };
        let (vid, pcp) = (bits.mask & 0x0fff, bits.mask & 0xe000);
        let tagged = bits.value & u128::from(VlanTci::PRESENT) != 0;
        if !tagged || !matches!((vid, pcp), (0x0fff, 0) | (0, 0xe000) | (0x0fff, 0xe000)) {
            return self.item(field.name(), value::write(Form::Tci, bits));
        }
        if vid != 0 {
            self.item(&format!("dl_vlan{suffix}"), (bits.value & vid).to_string());
        }
        if pcp != 0 {
            self.item(&format!("dl_vlan_pcp{suffix}"), (bits.value >> 13).to_string());
        }
    }
}
