//! Values and their masks, right-aligned, to text and back.

use std::net::{Ipv4Addr, Ipv6Addr};

use encap::field::MacAddr;

use crate::field::{Form, Value};

/// Some bits of a field, right-aligned: those in `mask` matter, and only they may be set in `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bits {
    pub value: u128,
    pub mask: u128,
    /// How many there are.
    pub width: u32,
}

impl Bits {
    const fn new(value: u128, mask: u128, width: u32) -> Self {
        Bits { value: value & mask, mask, width }
    }

    /// Do all of them matter?
    pub const fn is_whole(self) -> bool {
        self.mask == ones(self.width)
    }

    /// As bits of an IPv4 address, if these are 128 of which the mask tells that they are one.
    pub const fn mapped(self) -> Option<Bits> {
        if self.mask >> 32 == ones(96) && self.value >> 32 == MAPPED {
            Some(Bits::new(self.value & ones(32), self.mask & ones(32), 32))
        } else {
            None
        }
    }

    /// No bit matters.
    pub const fn none(width: u32) -> Self {
        Bits::new(0, 0, width)
    }

    /// `width` of them from bit `shift` on.
    pub const fn slice(self, shift: u32, width: u32) -> Self {
        Bits { value: self.value >> shift & ones(width), mask: self.mask >> shift & ones(width), width }
    }

    /// These, and `low` below them.
    pub const fn concat(self, low: Bits) -> Self {
        let high = self.shl(low.width);
        Bits { value: high.value | low.value, mask: high.mask | low.mask, width: high.width }
    }

    const fn shl(self, shift: u32) -> Bits {
        Bits { value: self.value << shift, mask: self.mask << shift, width: self.width + shift }
    }
}

/// The upper 96 bits of an IPv4 address as an IPv6 one (RFC 4291 section 2.5.5.2).
const MAPPED: u128 = 0xffff;

const fn ones(width: u32) -> u128 {
    u128::MAX >> (128 - width)
}

/// The names of an IP packet's states of fragmentation: value, mask, name (ovs-fields(7), `ip_frag`).
const FRAGMENTS: &[(u128, u128, &str)] =
    &[(0, 3, "no"), (1, 1, "yes"), (1, 3, "first"), (3, 3, "later"), (0, 2, "not_later")];

/// Writes `value`, or `value/mask` if not all bits matter.
pub(super) fn write(form: Form, bits: Bits) -> String {
    let Bits { value, mask, width } = bits;
    match form {
        Form::Decimal | Form::Port if bits.is_whole() => value.to_string(),
        Form::Decimal | Form::Port => format!("{value:#x}/{mask:#x}"),
        Form::Tos if bits.is_whole() => (value << 2).to_string(),
        Form::Tos => write(Form::Decimal, bits.shl(2)),
        Form::Hex | Form::Tci => {
            let digits = if width > 32 { 0 } else { width.div_ceil(4) as usize + 2 };
            masked(bits, |bits| format!("{bits:#0digits$x}"))
        }
        Form::Mac => masked(bits, |bits| MacAddr::from_bits(bits).to_string()),
        Form::Ipv4 => with_prefix(bits, |bits| Ipv4Addr::from_bits(bits as u32).to_string()),
        Form::Ip => match bits.mapped() {
            Some(bits) => write(Form::Ipv4, bits),
            None => write(Form::Ipv6, bits),
        },
        Form::Ipv6 => with_prefix(bits, |bits| Ipv6Addr::from_bits(bits).to_string()),
        Form::Fragment => match FRAGMENTS.iter().find(|(v, m, _)| (*v, *m) == (value, mask)) {
            Some((_, _, name)) => (*name).to_owned(),
            None => format!("{value:#x}/{mask:#x}"),
        },
        Form::Flags(names) => flags(names, bits),
    }
}

fn masked(bits: Bits, text: impl Fn(u128) -> String) -> String {
    if bits.is_whole() { text(bits.value) } else { format!("{}/{}", text(bits.value), text(bits.mask)) }
}

/// As [`masked`], but a mask without holes is written as its length.
fn with_prefix(bits: Bits, text: impl Fn(u128) -> String) -> String {
    let length = bits.mask.count_ones();
    if bits.is_whole() || bits.mask.trailing_zeros() + length != bits.width {
        return masked(bits, text);
    }
    format!("{}/{length}", text(bits.value))
}

/// `syn|ack` if all flags matter, else `+syn-ack`.
fn flags(names: &[&str], bits: Bits) -> String {
    let selected = |which: u128| names.iter().enumerate().filter(move |(i, _)| which >> i & 1 != 0);
    if bits.is_whole() {
        let set: Vec<&str> = selected(bits.value).map(|(_, name)| *name).collect();
        return if set.is_empty() { "0".to_owned() } else { set.join("|") };
    }
    let sign = |i: usize| if bits.value >> i & 1 != 0 { '+' } else { '-' };
    selected(bits.mask).map(|(i, name)| format!("{}{name}", sign(i))).collect()
}

/// Reads what [`write`](fn@write) writes, and the other ways that ovs-fields(7) has to say it.
pub(super) fn read(form: Form, width: u32, text: &str) -> Option<Bits> {
    match form {
        Form::Decimal | Form::Hex | Form::Tci | Form::Port => numbers(text, width),
        Form::Tos => {
            let Bits { value, mask, .. } = numbers(text, 8)?;
            (value & 3 == 0).then_some(Bits::new(value >> 2, mask >> 2, width))
        }
        Form::Mac => pair(text, width, |text| text.parse().ok().map(MacAddr::to_bits)),
        Form::Ipv4 => address(text, width, |text| text.parse().ok().map(|a: Ipv4Addr| a.to_bits().into())),
        Form::Ipv6 => address(text, width, |text| text.parse().ok().map(Ipv6Addr::to_bits)),
        Form::Ip => match read(Form::Ipv4, 32, text) {
            Some(Bits { value, mask, .. }) => {
                Some(Bits::new(MAPPED << 32 | value, ones(96) << 32 | mask, width))
            }
            None => read(Form::Ipv6, width, text),
        },
        Form::Fragment => match FRAGMENTS.iter().find(|(_, _, name)| *name == text) {
            Some((value, mask, _)) => Some(Bits::new(*value, *mask, width)),
            None => numbers(text, width),
        },
        Form::Flags(names) => match text.starts_with(['+', '-']) {
            true => signed(names, width, text),
            false => numbers(text, width).or_else(|| named(names, width, text)),
        },
    }
}

/// What a value of this form looks like.
pub(super) const fn expected(form: Form) -> &'static str {
    match form {
        Form::Decimal | Form::Hex => "a number that fits, such as 10 or 0x1f, or NUMBER/MASK",
        Form::Port => "the number or the name of a port",
        Form::Tci => "16 bits such as 0x100a (VLAN 10, tag present) or 0x0000/0x1000 (no tag)",
        Form::Tos => "a number up to 252 whose lower two bits are zero",
        Form::Mac => "a MAC address such as 02:00:00:00:00:01, or ADDRESS/MASK",
        Form::Ipv4 => "an IPv4 address such as 10.0.0.1, ADDRESS/LENGTH or ADDRESS/MASK",
        Form::Ipv6 => "an IPv6 address such as fe80::1, ADDRESS/LENGTH or ADDRESS/MASK",
        Form::Ip => "an IPv4 or IPv6 address, ADDRESS/LENGTH or ADDRESS/MASK",
        Form::Fragment => "no, yes, first, later or not_later",
        Form::Flags(_) => "flags such as syn|ack or +syn-ack, or a number",
    }
}

fn number(text: &str) -> Option<u128> {
    match text.strip_prefix("0x") {
        Some(digits) => u128::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+')),
        None => text.parse().ok().filter(|_| !text.starts_with('+')),
    }
}

fn numbers(text: &str, width: u32) -> Option<Bits> {
    pair(text, width, number)
}

/// `value` or `value/mask`, both read by `one`.
fn pair(text: &str, width: u32, one: impl Fn(&str) -> Option<u128>) -> Option<Bits> {
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (one(value)?, one(mask)?),
        None => (one(text)?, ones(width)),
    };
    ((value | mask) & !ones(width) == 0).then_some(Bits::new(value, mask, width))
}

/// An address alone, with a prefix length, or with a mask.
fn address(text: &str, width: u32, one: impl Fn(&str) -> Option<u128>) -> Option<Bits> {
    let Some((value, length)) = text.split_once('/') else { return pair(text, width, one) };
    match length.parse::<u32>() {
        Ok(0) => Some(Bits::new(one(value)?, 0, width)),
        Ok(length) if length <= width => {
            Some(Bits::new(one(value)?, ones(length) << (width - length), width))
        }
        Ok(_) => None,
        Err(_) => pair(text, width, one),
    }
}

fn flag(names: &[&str], name: &str) -> Option<u128> {
    names.iter().position(|n| *n == name).map(|i| 1 << i)
}

/// `+syn-ack`.
fn signed(names: &[&str], width: u32, text: &str) -> Option<Bits> {
    let mut bits = Bits::new(0, 0, width);
    let mut rest = text;
    while let Some(sign) = rest.chars().next() {
        let end = rest[1..].find(['+', '-']).map_or(rest.len(), |end| end + 1);
        let flag = flag(names, &rest[1..end])?;
        bits.mask |= flag;
        bits.value |= if sign == '+' { flag } else { 0 };
        rest = &rest[end..];
    }
    Some(bits)
}

/// `syn|ack`.
fn named(names: &[&str], width: u32, text: &str) -> Option<Bits> {
    let value = text.split('|').try_fold(0, |value, name| Some(value | flag(names, name)?))?;
    Some(Bits::new(value, ones(width), width))
}
