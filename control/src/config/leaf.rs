//! Single values: from what stands in the file to what it means, or a complaint that says what was expected.

pub(super) mod overlay;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::tables::{PriorityTags, VlanSet};
use encap::field::{MacAddr, VlanId};
use flowtable::flow::MAX_POLLERS;
use toml::de::DeValue;

use super::read::{Node, Reader, found};
use crate::problem::did_you_mean;

/// The longest interface name, in bytes (`IFNAMSIZ` less its NUL, linux/if.h).
const NAME_MAX: usize = 15;
/// The longest path of a Unix socket, in bytes (`sun_path` less its NUL, unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// Puts a value in its place, if there is one; else the default stays.
pub(super) fn keep<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// `true` or `false`.
pub(super) fn boolean(node: &Node, reader: &mut Reader) -> Option<bool> {
    let value = node.get_ref().as_bool();
    if value.is_none() {
        reader.wrong(node, format_args!("found {}, expected true or false", found(node)));
    }
    value
}

/// An integer within `range`.
pub(super) fn integer<T: TryFrom<i64>>(
    node: &Node,
    range: RangeInclusive<i64>,
    reader: &mut Reader,
) -> Option<T> {
    let (low, high) = (range.start(), range.end());
    let DeValue::Integer(digits) = node.get_ref() else {
        reader.wrong(node, format_args!("found {}, expected an integer from {low} to {high}", found(node)));
        return None;
    };
    let value = i64::from_str_radix(digits.as_str(), digits.radix()).ok().filter(|n| range.contains(n));
    let value = value.and_then(|n| T::try_from(n).ok());
    if value.is_none() {
        reader.wrong(node, format_args!("{digits} is out of range, expected {low} to {high}"));
    }
    value
}

/// A number of seconds within `range`.
pub(super) fn seconds(node: &Node, range: RangeInclusive<i64>, reader: &mut Reader) -> Option<Duration> {
    integer(node, range, reader).map(Duration::from_secs)
}

/// A number of milliseconds within `range`.
pub(super) fn milliseconds(node: &Node, range: RangeInclusive<i64>, reader: &mut Reader) -> Option<Duration> {
    integer(node, range, reader).map(Duration::from_millis)
}

/// One of a few words.
pub(super) fn choice<T: Copy>(node: &Node, words: &[(&str, T)], reader: &mut Reader) -> Option<T> {
    let names = || words.iter().map(|(word, _)| *word);
    let text = node.get_ref().as_str();
    let chosen = words.iter().find(|(word, _)| Some(*word) == text).map(|(_, value)| *value);
    if chosen.is_none() {
        let hint = text.map(|text| did_you_mean(text, names())).unwrap_or_default();
        let all = names().collect::<Vec<_>>().join(", ");
        let gap = if hint.is_empty() { "," } else { "" };
        reader.wrong(node, format_args!("found {}{hint}{gap} expected one of {all}", found(node)));
    }
    chosen
}

/// A string that `read` understands; `expected` says what that is.
fn text<T>(
    node: &Node,
    expected: &str,
    read: impl Fn(&str) -> Result<T, String>,
    reader: &mut Reader,
) -> Option<T> {
    let Some(text) = node.get_ref().as_str() else {
        reader.wrong(node, format_args!("found {}, expected {expected} as a string", found(node)));
        return None;
    };
    read(text).map_err(|error| reader.wrong(node, error)).ok()
}

/// A name that Linux takes for an interface, without what would confuse flow text and `%d` templates.
pub(super) fn name(node: &Node, reader: &mut Reader) -> Option<String> {
    text(node, "a name", |name| check_name(name, NAME_MAX), reader)
}

fn check_name(name: &str, most: usize) -> Result<String, String> {
    let illegal = |c: &char| !c.is_ascii_graphic() || "/:%,=\"`".contains(*c);
    let shown = name.escape_debug();
    if let Some(c) = name.chars().find(illegal) {
        let c = c.escape_debug();
        return Err(format!(
            "`{shown}` has `{c}` in it, expected ASCII without spaces and without / : % , = \" `"
        ));
    }
    match name.len() {
        0 => Err(format!("the name is empty, expected 1 to {most} bytes")),
        _ if name == "." || name == ".." => Err(format!("`{shown}` is no interface name")),
        length if length > most => Err(format!("`{shown}` is {length} bytes long, expected at most {most}")),
        _ => Ok(name.to_owned()),
    }
}

/// The path of a Unix socket, or of the directory of some.
pub(super) fn socket_path(node: &Node, reader: &mut Reader) -> Option<PathBuf> {
    let read = |path: &str| match path.len() {
        1..=SOCKET_PATH_MAX if Path::new(path).is_absolute() && !path.contains('\0') => {
            Ok(PathBuf::from(path))
        }
        1..=SOCKET_PATH_MAX => Err(format!("`{}` is no absolute path", path.escape_debug())),
        length => Err(format!("the path is {length} bytes long, expected 1 to {SOCKET_PATH_MAX}")),
    };
    text(node, "a path", read, reader)
}

/// A unicast MAC address, not all zero.
pub(super) fn mac(node: &Node, reader: &mut Reader) -> Option<MacAddr> {
    let read = |text: &str| {
        let mac: MacAddr = text.parse().map_err(|error: encap::field::FieldError| error.to_string())?;
        match mac.is_multicast() || mac == MacAddr::default() {
            true => Err(format!("{mac} is no unicast address")),
            false => Ok(mac),
        }
    };
    text(node, "a MAC address", read, reader)
}

/// An OpenFlow datapath id: 16 hexadecimal digits, or fewer after `0x` (`other_config:datapath-id`).
pub(super) fn datapath_id(node: &Node, reader: &mut Reader) -> Option<u64> {
    let read = |text: &str| {
        let digits = text.strip_prefix("0x").or(Some(text).filter(|text| text.len() == 16));
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let id = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).filter(|id| *id != 0);
        id.ok_or_else(|| format!("`{}` is not 16 hexadecimal digits, not all zero", text.escape_debug()))
    };
    text(node, "16 hexadecimal digits", read, reader)
}

/// A VLAN id, 0 to 4095.
pub(super) fn vlan(node: &Node, reader: &mut Reader) -> Option<VlanId> {
    integer(node, 0..=4095, reader).and_then(|id| VlanId::new(id).ok())
}

/// VLAN ids and ranges of them: `[10, "20-29"]`. What is wrong is left out.
pub(super) fn vlans(node: &Node, reader: &mut Reader) -> VlanSet {
    let mut set = VlanSet::empty();
    for element in list(node, "VLANs such as [10, \"20-29\"]", reader) {
        match element.get_ref() {
            DeValue::String(_) => {
                let range = text(element, "a range", vlan_range, reader);
                range.into_iter().flatten().for_each(|id| set.insert(VlanId::from_tci(id)));
            }
            _ => vlan(element, reader).into_iter().for_each(|vlan| set.insert(vlan)),
        }
    }
    set
}

fn vlan_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let id = |text: &str| text.trim().parse::<u16>().ok().filter(|id| *id < 4096);
    let range = id(low).zip(id(high)).filter(|(low, high)| low <= high).map(|(low, high)| low..=high);
    range.ok_or_else(|| {
        format!("`{}` is no range of VLANs, expected such as \"20-29\" within 0 to 4095", text.escape_debug())
    })
}

/// Cores of the machine, each once, at least one.
pub(super) fn cores(node: &Node, reader: &mut Reader) -> Vec<usize> {
    let mut cores = Vec::new();
    let elements = list(node, "core numbers such as [1, 2]", reader);
    if elements.is_empty() && node.get_ref().is_array() {
        reader.wrong(node, "the list is empty, expected at least one core");
    }
    for element in elements {
        let Some(core) = integer(element, 0..=4095, reader) else { continue };
        if !reader.machine.cores.contains(&core) {
            let available = ranges(reader.machine.cores.iter().copied());
            reader.wrong(
                element,
                format_args!("core {core} is not available here, expected some of {available}"),
            );
        } else if cores.contains(&core) {
            reader.wrong(element, format_args!("core {core} is listed twice"));
        } else {
            cores.push(core);
        }
    }
    if cores.len() > MAX_POLLERS {
        let found = cores.len();
        reader.wrong(
            node,
            format_args!("found {found} cores, each for a poller, expected at most {MAX_POLLERS}"),
        );
    }
    cores
}

/// Queues and the cores that poll them: `"0:1,1:2"` (`other_config:pmd-rxq-affinity`).
pub(super) fn rxq_affinity(node: &Node, reader: &mut Reader) -> Option<Vec<(u16, usize)>> {
    let pair = |pair: &str| {
        let (queue, core) = pair.split_once(':')?;
        Some((queue.trim().parse().ok()?, core.trim().parse().ok()?))
    };
    let read = |text: &str| {
        let mut all: Vec<(u16, usize)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || format!("`{}` is no queue:core pair such as 0:1", part.escape_debug());
            let (queue, core) = pair(part).ok_or_else(wrong)?;
            if all.iter().any(|(other, _)| *other == queue) {
                return Err(format!("queue {queue} is listed twice"));
            }
            all.push((queue, core));
        }
        Ok(all)
    };
    text(node, "queues and cores such as \"0:1,1:2\"", read, reader)
}

/// `priority-tags`; OVS took booleans once and still does.
pub(super) fn priority_tags(node: &Node, reader: &mut Reader) -> Option<PriorityTags> {
    let words = [
        ("never", PriorityTags::Never),
        ("if-nonzero", PriorityTags::IfNonzero),
        ("always", PriorityTags::Always),
    ];
    match node.get_ref().as_bool() {
        Some(true) => Some(PriorityTags::IfNonzero),
        Some(false) => Some(PriorityTags::Never),
        None => choice(node, &words, reader),
    }
}

/// The elements of an array; none, and a complaint, if it is no array.
fn list<'n, 'i>(node: &'n Node<'i>, expected: &str, reader: &mut Reader) -> &'n [Node<'i>] {
    let Some(array) = node.get_ref().as_array() else {
        reader.wrong(node, format_args!("found {}, expected a list of {expected}", found(node)));
        return &[];
    };
    array
}

/// Ascending numbers, as people write them: `0-3, 7`.
pub(crate) fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<RangeInclusive<usize>> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some(run) if *run.end() + 1 == n => *run = *run.start()..=n,
            _ => runs.push(n..=n),
        }
    }
    let show = |run: RangeInclusive<usize>| match run.start() == run.end() {
        true => run.start().to_string(),
        false => format!("{}-{}", run.start(), run.end()),
    };
    runs.into_iter().map(show).collect::<Vec<_>>().join(", ")
}
