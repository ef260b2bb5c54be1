//! Values that segments, tunnels and routes have.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use dataplane::tunnel::{Key, Tos};
use flowtable::lpm::Prefix;
use toml::de::DeValue;

use super::{check_name, integer, list, text};
use crate::config::read::{Node, Reader, found};
use crate::config::{Cidr, Remote, Ttl};

/// The longest name of a segment, in bytes: that of a Neutron network, its UUID, and some.
const SEGMENT_NAME_MAX: usize = 64;

/// The name of a segment.
pub(in crate::config) fn segment_name(node: &Node, reader: &mut Reader) -> Option<String> {
    text(node, "a name", |name| check_name(name, SEGMENT_NAME_MAX), reader)
}

/// An address that one host can have.
pub(in crate::config) fn unicast(node: &Node, reader: &mut Reader) -> Option<IpAddr> {
    text(node, "an IP address", read_unicast, reader)
}

fn read_unicast(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("`{}` is no IP address", text.escape_debug()))?;
    let broadcast = address == IpAddr::from([255; 4]);
    match broadcast || address.is_multicast() || address.is_unspecified() {
        true => Err(format!("{address} is no unicast address")),
        false => Ok(address),
    }
}

/// An address, or one per segment: `"flow"`.
pub(in crate::config) fn remote(node: &Node, reader: &mut Reader) -> Option<Remote> {
    let read = |text: &str| match text {
        "flow" => Ok(Remote::Flow),
        text => read_unicast(text)
            .map(Remote::Fixed)
            .map_err(|error| format!("{error}, expected one or \"flow\"")),
    };
    text(node, "an IP address or \"flow\"", read, reader)
}

/// Addresses of other endpoints. What is wrong is left out.
pub(in crate::config) fn vteps(node: &Node, reader: &mut Reader) -> Vec<IpAddr> {
    let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
    for element in list(node, "IP addresses such as [\"192.0.2.2\"]", reader) {
        let Some(address) = unicast(element, reader) else { continue };
        all.push(address);
        if !seen.insert(address) {
            reader.wrong(element, format_args!("{address} is listed twice"));
        }
    }
    all
}

/// Our own addresses with the length of their prefixes. What is wrong is left out.
pub(in crate::config) fn cidrs(node: &Node, reader: &mut Reader) -> Vec<Cidr> {
    let elements = list(node, "addresses such as [\"192.0.2.1/24\"]", reader);
    elements
        .iter()
        .filter_map(|element| text(element, "an address such as \"192.0.2.1/24\"", cidr, reader))
        .collect()
}

fn cidr(text: &str) -> Result<Cidr, String> {
    let (address, network) = address_and_prefix(text)?;
    Ok(Cidr { address: read_unicast(&address.to_string())?, network })
}

fn address_and_prefix(text: &str) -> Result<(IpAddr, Prefix), String> {
    let parts = || {
        let (address, len) = text.split_once('/')?;
        Some((address.parse::<IpAddr>().ok()?, len.parse::<u8>().ok()?))
    };
    let wrong =
        || format!("`{}` is no address with a prefix length such as 192.0.2.0/24", text.escape_debug());
    let (address, len) = parts().ok_or_else(wrong)?;
    Ok((address, Prefix::new(address, len).map_err(|error| error.to_string())?))
}

/// The addresses a route is for.
pub(in crate::config) fn prefix(node: &Node, reader: &mut Reader) -> Option<Prefix> {
    text(node, "a prefix such as \"192.0.2.0/24\"", read_prefix, reader)
}

/// A prefix as operators write it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_prefix(text: &str) -> Result<Prefix, String> {
    match address_and_prefix(text)? {
        (address, prefix) if address == prefix.address() => Ok(prefix),
        (_, prefix) => Err(format!("`{text}` has bits behind its prefix, expected {prefix}")),
    }
}

/// A VNI or GRE key, or the segment's: `"flow"`.
pub(in crate::config) fn tunnel_key(node: &Node, reader: &mut Reader) -> Option<Key> {
    let range = 0..=u32::MAX.into();
    number_or(node, reader, Choice { word: "flow", meaning: Key::Flow, range, number: Key::Fixed })
}

/// A TOS byte, or that of the inner packet.
pub(in crate::config) fn tos(node: &Node, reader: &mut Reader) -> Option<Tos> {
    number_or(
        node,
        reader,
        Choice { word: "inherit", meaning: Tos::Inherit, range: 0..=255, number: Tos::Fixed },
    )
}

/// A time to live, or that of the inner packet.
pub(in crate::config) fn ttl(node: &Node, reader: &mut Reader) -> Option<Ttl> {
    number_or(
        node,
        reader,
        Choice { word: "inherit", meaning: Ttl::Inherit, range: 1..=255, number: Ttl::Fixed },
    )
}

/// An integer within `range`, or a word.
fn number_or<T, N: TryFrom<i64>>(node: &Node, reader: &mut Reader, choice: Choice<T, N>) -> Option<T> {
    let Choice { word, meaning, range, number } = choice;
    match node.get_ref() {
        DeValue::String(text) if text == word => Some(meaning),
        DeValue::String(_) => {
            let (low, high) = (range.start(), range.end());
            let expected = format!("expected an integer from {low} to {high} or \"{word}\"");
            reader.wrong(node, format_args!("found {}, {expected}", found(node)));
            None
        }
        _ => integer(node, range, reader).map(number),
    }
}

/// What [`number_or`] takes.
struct Choice<T, N> {
    word: &'static str,
    meaning: T,
    range: RangeInclusive<i64>,
    number: fn(N) -> T,
}
