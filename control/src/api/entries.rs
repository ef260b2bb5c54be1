//! Entries as words: `WHAT key=value…`, many in a row. A word without `=` begins the next one.

use std::fmt::Display;
use std::str::FromStr;

use encap::field::VlanId;
use flowtable::lpm::Prefix;

use crate::config::{self, FdbConfig, NeighConfig, RouteConfig, canonical};
use crate::problem::did_you_mean;

/// One entry: what it is about, and its keys.
type Words<'a> = (&'a str, Vec<(String, &'a str)>);

fn split<'a>(words: &[&'a str]) -> Result<Vec<Words<'a>>, String> {
    let mut all: Vec<Words> = Vec::new();
    for word in words {
        match (word.split_once('='), all.last_mut()) {
            (None, _) => all.push((word, Vec::new())),
            (Some((key, value)), Some((_, keys))) => keys.push((canonical(key), value)),
            (Some(_), None) => {
                return Err(format!("\"{word}\" belongs to nothing; say first what it is about"));
            }
        }
    }
    Ok(all)
}

fn parsed<T: FromStr>(what: &str, text: &str) -> Result<T, String>
where
    T::Err: Display,
{
    text.parse().map_err(|error| format!("no {what} \"{text}\": {error}"))
}

fn unknown(key: &str, known: &[&str]) -> String {
    let hint = did_you_mean(key, known.iter().copied());
    format!("unknown key \"{key}\"{hint}; expected one of {}", known.join(", "))
}

/// A VLAN as operators write it.
pub(super) fn vlan(text: &str) -> Result<VlanId, String> {
    let id = text.parse().ok().and_then(|n: u16| VlanId::new(n).ok());
    id.ok_or_else(|| format!("no VLAN \"{text}\"; expected a number from 0 to 4095"))
}

/// `MAC [vlan=N|segment=NAME] [port=NAME|vtep=ADDRESS]`
///
/// # Errors
/// The first word that is wrong.
pub(super) fn fdb(words: &[&str]) -> Result<Vec<FdbConfig>, String> {
    let entry = |(mac, keys): Words| {
        let mut entry = FdbConfig { mac: parsed("MAC address", mac)?, ..FdbConfig::default() };
        for (key, value) in keys {
            match key.as_str() {
                "vlan" => entry.vlan = Some(vlan(value)?),
                "segment" => entry.segment = Some(value.to_owned()),
                "port" => entry.port = Some(value.to_owned()),
                "vtep" => entry.vtep = Some(parsed("IP address", value)?),
                other => return Err(unknown(other, &["vlan", "segment", "port", "vtep"])),
            }
        }
        Ok(entry)
    };
    split(words)?.into_iter().map(entry).collect()
}

/// `ADDRESS segment=NAME [mac=MAC]`
///
/// # Errors
/// The first word that is wrong.
pub(super) fn neigh(words: &[&str]) -> Result<Vec<NeighConfig>, String> {
    let entry = |(address, keys): Words| {
        let mut entry = NeighConfig { address: parsed("IP address", address)?, ..NeighConfig::default() };
        for (key, value) in keys {
            match key.as_str() {
                "segment" => entry.segment = value.to_owned(),
                "mac" => entry.mac = parsed("MAC address", value)?,
                other => return Err(unknown(other, &["segment", "mac"])),
            }
        }
        match entry.segment.is_empty() {
            true => Err(format!("{address} is in no segment; add segment=NAME")),
            false => Ok(entry),
        }
    };
    split(words)?.into_iter().map(entry).collect()
}

/// `PREFIX [via=ADDRESS] [port=NAME]`
///
/// # Errors
/// The first word that is wrong.
pub(super) fn route(words: &[&str]) -> Result<RouteConfig, String> {
    let entries = split(words)?;
    let [(to, keys)] = entries.as_slice() else { return Err("expected one prefix".to_owned()) };
    let mut route = RouteConfig { to: prefix(to)?, via: None, port: None };
    for (key, value) in keys {
        match key.as_str() {
            "via" => route.via = Some(parsed("IP address", value)?),
            "port" => route.port = Some((*value).to_owned()),
            other => return Err(unknown(other, &["via", "port"])),
        }
    }
    Ok(route)
}

/// `192.0.2.0/24`, or `default`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    config::read_prefix(if text == "default" { "0.0.0.0/0" } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_entries_stand_in_a_row() {
        let words =
            ["02:00:00:00:00:01", "vlan=7", "port=vm1", "02:00:00:00:00:02", "segment=red", "vtep=192.0.2.2"];
        let [first, second] = &fdb(&words).unwrap()[..] else { panic!("two entries") };
        assert_eq!((first.vlan, first.port.as_deref()), (Some(VlanId::new(7).unwrap()), Some("vm1")));
        assert_eq!((second.segment.as_deref(), second.vtep), (Some("red"), Some([192, 0, 2, 2].into())));
        let [entry] = &neigh(&["2001:db8::5", "segment=red", "mac=02:00:00:00:00:05"]).unwrap()[..] else {
            panic!("one entry")
        };
        assert_eq!((entry.segment.as_str(), entry.mac.0[5]), ("red", 5));
        let route = route(&["default", "via=192.0.2.254"]).unwrap();
        assert_eq!(
            (route.to.to_string(), route.via),
            ("0.0.0.0/0".to_owned(), Some([192, 0, 2, 254].into()))
        );
    }

    #[test]
    fn wrong_words_are_told_with_what_was_expected() {
        let wrong = |words: &[&str]| fdb(words).unwrap_err();
        assert_eq!(
            wrong(&["02:00:00:00:00:01", "vtp=192.0.2.2"]),
            "unknown key \"vtp\", did you mean `vtep`?; expected one of vlan, segment, port, vtep"
        );
        assert!(wrong(&["02:00"]).starts_with("no MAC address \"02:00\""));
        assert_eq!(wrong(&["vlan=1"]), "\"vlan=1\" belongs to nothing; say first what it is about");
        assert_eq!(
            wrong(&["02:00:00:00:00:01", "vlan=4096"]),
            "no VLAN \"4096\"; expected a number from 0 to 4095"
        );
        assert_eq!(neigh(&["10.0.0.5"]).unwrap_err(), "10.0.0.5 is in no segment; add segment=NAME");
        assert_eq!(
            route(&["10.0.0.1/8"]).unwrap_err(),
            "`10.0.0.1/8` has bits behind its prefix, expected 10.0.0.0/8"
        );
    }
}
