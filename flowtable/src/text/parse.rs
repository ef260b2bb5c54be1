//! Flow text to key and mask.
//!
//! Items may come in any order. What a field needs (ovs-fields(7) calls it prerequisites) is taken from the
//! text, or follows from the field if only one thing can be meant: `nw_src` makes it IPv4, `arp_op` makes it
//! ARP, `tcp,…` allows `tcp_dst`. Cost: linear in the text, times the number of fields.

use encap::field::{EtherType, IpProto};
use thiserror::Error;

use super::value::{self, Bits};
use super::{PortsByName, SHORTHANDS, Shorthand};
use crate::field::{Field, Form, Value, VlanTci};
use crate::key::FlowKey;
use crate::mask::Mask;

/// What is wrong with a flow text, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("column {column}: {problem}")]
pub struct ParseError {
    /// Where the item begins, in characters from 1.
    pub column: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with one item of a flow text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// No field or shorthand has this name.
    #[error("unknown field `{0}`, expected a name from ovs-fields(7) such as in_port, dl_src, tcp or nw_dst")]
    Unknown(String),
    /// A field without a value.
    #[error("`{field}` has no value, expected {field}={expected}")]
    NoValue {
        /// The field.
        field: String,
        /// What its values look like.
        expected: &'static str,
    },
    /// A shorthand with a value.
    #[error("`{0}` takes no value")]
    Value(String),
    /// Not a value of this field.
    #[error("`{value}` is no value of `{field}`, expected {expected}")]
    Bad {
        /// The field.
        field: String,
        /// The text behind `=`.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A port name that nobody knows.
    #[error("there is no port `{0}`, expected the name or the number of one")]
    NoPort(String),
    /// The text does not say that frames have this field.
    #[error("`{field}` needs {needs}")]
    Needs {
        /// The field.
        field: String,
        /// The shorthands that would do.
        needs: String,
    },
    /// Two items ask for different values of the same bits.
    #[error("`{0}` contradicts the rest of the text")]
    Contradiction(String),
}

/// Reads a flow text: items separated by commas or blanks. `in_port` takes what `ports` knows, be it a name or
/// a number of another numbering, or else a [`PortId`](crate::id::PortId).
///
/// # Errors
/// [`ParseError`] with the first item that is wrong.
pub fn parse(text: &str, ports: PortsByName<'_>) -> Result<(FlowKey, Mask), ParseError> {
    let mut flow = Partial::default();
    let mut rest = Vec::new();
    for item in items(text) {
        match item.place()? {
            Place::Shorthand(short) => flow.shorthand(short).map_err(|problem| item.error(problem))?,
            Place::Targets(targets) if targets[0].field.spec().needs.types.is_empty() => {
                flow.take(&item, &targets[0], ports)?;
            }
            Place::Targets(targets) => rest.push((item, targets)),
        }
    }
    // Names with one meaning decide first what others mean.
    rest.sort_by_key(|(_, targets)| targets.len());
    rest.iter().for_each(|(_, targets)| flow.imply_type(targets));
    rest.iter().for_each(|(_, targets)| flow.imply_proto(targets));
    // An explicit protocol is read before the ports that need it.
    rest.sort_by_key(|(item, targets)| (!targets[0].protos.is_empty(), item.before.len()));
    for (item, targets) in &rest {
        let target = targets.iter().find(|t| flow.fits(t));
        flow.take(item, target.ok_or_else(|| item.needs(targets))?, ports)?;
    }
    Ok((flow.key, flow.mask))
}

/// One item of a text.
struct Item<'t> {
    /// The text in front of it.
    before: &'t str,
    name: &'t str,
    value: Option<&'t str>,
}

fn items(text: &str) -> impl Iterator<Item = Item<'_>> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty()).map(|item| {
        let before = &text[..item.as_ptr() as usize - text.as_ptr() as usize];
        let (name, value) = item.split_once('=').map_or((item, None), |(name, value)| (name, Some(value)));
        Item { before, name, value }
    })
}

/// What a name can mean.
enum Place {
    Shorthand(&'static Shorthand),
    Targets(Vec<Target>),
}

/// Bits of a field that an item sets.
#[derive(Clone, Copy)]
struct Target {
    field: Field,
    form: Form,
    /// Where its lowest bit is in the field, and how many bits it has.
    shift: u32,
    width: u32,
    /// Bits of the field that it sets besides.
    besides: u128,
    /// The protocols for which the name is right.
    protos: &'static [IpProto],
}

impl Target {
    const fn whole(field: Field) -> Self {
        let spec = field.spec();
        Target { field, form: spec.form, shift: 0, width: spec.width, besides: 0, protos: spec.needs.protos }
    }

    const fn tci(field: Field, shift: u32, width: u32, besides: u16) -> Self {
        Target { form: Form::Decimal, shift, width, besides: besides as u128, ..Target::whole(field) }
    }

    const fn port(field: Field, protos: &'static [IpProto]) -> Self {
        Target { protos, ..Target::whole(field) }
    }
}

/// Names for a part of a field, or for a field in fewer frames.
const PARTS: &[(&str, Target)] = &[
    ("dl_vlan", Target::tci(Field::OuterTci, 0, 12, VlanTci::PRESENT)),
    ("dl_vlan_pcp", Target::tci(Field::OuterTci, 13, 3, VlanTci::PRESENT)),
    ("vlan_vid", Target::tci(Field::OuterTci, 0, 13, 0)),
    ("vlan_pcp", Target::tci(Field::OuterTci, 13, 3, VlanTci::PRESENT)),
    ("dl_vlan1", Target::tci(Field::InnerTci, 0, 12, VlanTci::PRESENT)),
    ("dl_vlan_pcp1", Target::tci(Field::InnerTci, 13, 3, VlanTci::PRESENT)),
    ("ip_dscp", Target { form: Form::Decimal, ..Target::whole(Field::IpDscp) }),
    ("tcp_src", Target::port(Field::L4Src, &[IpProto::TCP])),
    ("tcp_dst", Target::port(Field::L4Dst, &[IpProto::TCP])),
    ("udp_src", Target::port(Field::L4Src, &[IpProto::UDP])),
    ("udp_dst", Target::port(Field::L4Dst, &[IpProto::UDP])),
    ("sctp_src", Target::port(Field::L4Src, &[IpProto::SCTP])),
    ("sctp_dst", Target::port(Field::L4Dst, &[IpProto::SCTP])),
];

impl Item<'_> {
    fn error(&self, problem: Problem) -> ParseError {
        ParseError { column: self.before.chars().count() + 1, problem }
    }

    fn place(&self) -> Result<Place, ParseError> {
        if let Some(short) = SHORTHANDS.iter().find(|s| s.name == self.name) {
            return match self.value {
                None => Ok(Place::Shorthand(short)),
                Some(_) => Err(self.error(Problem::Value(self.name.to_owned()))),
            };
        }
        let parts = PARTS.iter().filter(|(name, _)| *name == self.name).map(|(_, target)| *target);
        let fields = Field::ALL.iter().filter(|f| f.spec().names.contains(&self.name));
        let targets: Vec<_> = parts.chain(fields.map(|f| Target::whole(*f))).collect();
        match targets.is_empty() {
            true => Err(self.error(Problem::Unknown(self.name.to_owned()))),
            false => Ok(Place::Targets(targets)),
        }
    }

    /// The value and mask that the item gives its target, as bits of the target's field.
    fn read(&self, target: &Target, ports: PortsByName<'_>) -> Result<(u128, u128), Problem> {
        let expected = value::expected(target.form);
        let Some(text) = self.value.filter(|v| !v.is_empty()) else {
            return Err(Problem::NoValue { field: self.name.to_owned(), expected });
        };
        if matches!((self.name, text), ("dl_vlan" | "dl_vlan1", "0xffff" | "65535")) {
            return Ok((0, target.field.ones())); // OpenFlow 1.0's way to say that there is no tag
        }
        if let (Form::Port, Some(port)) = (target.form, ports(text)) {
            return Ok((port.to_bits(), target.field.ones()));
        }
        match value::read(target.form, target.width, text) {
            Some(Bits { value, mask, .. }) => {
                Ok((value << target.shift | target.besides, mask << target.shift | target.besides))
            }
            None if target.form == Form::Port => Err(Problem::NoPort(text.to_owned())),
            None => Err(Problem::Bad { field: self.name.to_owned(), value: text.to_owned(), expected }),
        }
    }

    /// The shorthands under which one of the targets would be right.
    fn needs(&self, targets: &[Target]) -> ParseError {
        let helps = |short: &&Shorthand| {
            targets.iter().any(|t| {
                t.field.spec().needs.types.contains(&short.ether_type)
                    && short.proto.map_or(t.protos.is_empty(), |p| t.protos.contains(&p))
            })
        };
        let names: Vec<&str> = SHORTHANDS.iter().filter(helps).map(|s| s.name).collect();
        self.error(Problem::Needs { field: self.name.to_owned(), needs: names.join(" or ") })
    }
}

/// The flow as far as it was read.
#[derive(Default)]
struct Partial {
    key: FlowKey,
    mask: Mask,
}

impl Partial {
    fn shorthand(&mut self, short: &Shorthand) -> Result<(), Problem> {
        let proto = short.proto.map(|proto| (Field::IpProto, proto.to_bits()));
        for (field, bits) in [(Field::EthType, short.ether_type.to_bits())].into_iter().chain(proto) {
            if !self.set(field, bits, field.ones()) {
                return Err(Problem::Contradiction(short.name.to_owned()));
            }
        }
        Ok(())
    }

    /// Sets the field's bits; false, and nothing done, if one of them was set otherwise before.
    fn set(&mut self, field: Field, value: u128, bits: u128) -> bool {
        let both = field.get(self.mask.words()) & bits;
        if (field.get(self.key.words()) ^ value) & both != 0 {
            return false;
        }
        field.or(&mut self.key.0, value & bits);
        field.or(&mut self.mask.0, bits);
        true
    }

    /// Reads the item's value into the target.
    fn take(&mut self, item: &Item<'_>, target: &Target, ports: PortsByName<'_>) -> Result<(), ParseError> {
        let (value, mask) = item.read(target, ports).map_err(|problem| item.error(problem))?;
        match self.set(target.field, value, mask) {
            true => Ok(()),
            false => Err(item.error(Problem::Contradiction(item.name.to_owned()))),
        }
    }

    /// If no type was said and the first meaning of a name leaves one choice, that is it.
    fn imply_type(&mut self, targets: &[Target]) {
        let types = targets[0].field.spec().needs.types;
        if !types.contains(&EtherType::IPV4) || types.len() == 1 {
            self.imply(Field::EthType, types[0].to_bits());
        }
    }

    fn imply_proto(&mut self, targets: &[Target]) {
        let meant = targets.iter().find(|t| self.whole(Field::EthType) && t.field.type_fits(&self.key));
        if let Some([proto]) = meant.map(|t| t.protos) {
            self.imply(Field::IpProto, proto.to_bits());
        }
    }

    fn imply(&mut self, field: Field, value: u128) {
        if field.get(self.mask.words()) == 0 {
            self.set(field, value, field.ones());
        }
    }

    fn whole(&self, field: Field) -> bool {
        field.get(self.mask.words()) == field.ones()
    }

    /// Does the flow say all that the target needs?
    fn fits(&self, target: &Target) -> bool {
        let proto = IpProto::from_bits(Field::IpProto.get(self.key.words()));
        self.whole(Field::EthType)
            && target.field.type_fits(&self.key)
            && (target.protos.is_empty() || self.whole(Field::IpProto) && target.protos.contains(&proto))
    }
}
