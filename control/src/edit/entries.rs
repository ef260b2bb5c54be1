//! Entries of lists that have no name: stations, neighbours, routes. Many are added or removed in one pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::field::MacAddr;
use flowtable::lpm::Prefix;
use toml_edit::{Table, Value};

use super::{find_bridge, layout};
use crate::config::{Config, Entity, FdbConfig, NeighConfig, RouteConfig};
use crate::problem::{Problem, Problems};
use crate::resolve::{Domain, Names};

/// Adds static entries. Those that are there already stay as they are.
pub(super) fn add_fdb(
    text: &str,
    config: &Config,
    (bridge, entries): (&str, &[FdbConfig]),
) -> Result<String, Problems> {
    let (b, owner) = find_bridge(config, bridge)?;
    let names = Names::new(owner);
    let mut known: BTreeMap<(Domain, MacAddr), &FdbConfig> = BTreeMap::new();
    for entry in &owner.fdb {
        known.insert((domain(&names, entry)?, entry.mac), entry);
    }
    let mut new = Vec::new();
    for entry in entries {
        let (domain, mac) = (domain(&names, entry)?, entry.mac);
        match known.insert((domain, mac), entry) {
            None => new.push(fdb_table(entry)),
            Some(other) if (&other.port, other.vtep) == (&entry.port, entry.vtep) => {}
            Some(other) => {
                let message = format!("{mac} in {domain} of bridge `{bridge}` is {} already", place(other));
                return Err(Problem::new(format!("{message}; delete that entry first")).into());
            }
        }
    }
    Ok(layout::push_inline(text, (Entity::Bridge(b), "fdb"), new)?)
}

/// Removes static entries.
pub(super) fn del_fdb(
    text: &str,
    config: &Config,
    (bridge, entries): (&str, &[FdbConfig]),
) -> Result<String, Problems> {
    let (b, owner) = find_bridge(config, bridge)?;
    let names = Names::new(owner);
    let mut at: BTreeMap<(Domain, MacAddr), usize> = BTreeMap::new();
    for (f, entry) in owner.fdb.iter().enumerate() {
        at.insert((domain(&names, entry)?, entry.mac), f);
    }
    let mut gone = BTreeSet::new();
    for entry in entries {
        let (domain, mac) = (domain(&names, entry)?, entry.mac);
        let absent = || Problem::new(format!("bridge `{bridge}` has no static entry {mac} in {domain}"));
        gone.insert(*at.get(&(domain, mac)).ok_or_else(absent)?);
    }
    Ok(layout::remove(text, (Entity::Bridge(b), "fdb"), &gone)?)
}

fn domain<'a>(names: &Names<'a>, entry: &FdbConfig) -> Result<Domain<'a>, Problem> {
    names.domain(entry).map_err(|error| Problem::new(format!("static entry {} is in {error}", entry.mac)))
}

fn place(entry: &FdbConfig) -> String {
    let port = || format!("at port `{}`", entry.port.as_deref().unwrap_or_default());
    entry.vtep.map_or_else(port, |vtep| format!("behind VTEP {vtep}"))
}

fn fdb_table(entry: &FdbConfig) -> Table {
    let vlan = entry.vlan.map(|vlan| Value::from(i64::from(vlan.get())));
    table([
        ("mac", Some(entry.mac.to_string().into())),
        ("vlan", vlan),
        ("segment", entry.segment.as_ref().map(Value::from)),
        ("port", entry.port.as_ref().map(Value::from)),
        ("vtep", entry.vtep.map(|vtep| vtep.to_string().into())),
    ])
}

/// Adds neighbours. Those that are there already stay as they are; what was somebody else's is refused.
pub(super) fn add_neigh(
    text: &str,
    config: &Config,
    (bridge, entries): (&str, &[NeighConfig]),
) -> Result<String, Problems> {
    let (b, owner) = find_bridge(config, bridge)?;
    let mut known: BTreeMap<(&str, IpAddr), MacAddr> =
        owner.neighbours.iter().map(|entry| ((entry.segment.as_str(), entry.address), entry.mac)).collect();
    let mut new = Vec::new();
    for entry in entries {
        let NeighConfig { segment, address, mac } = entry;
        match known.insert((segment, *address), *mac) {
            None => new.push(table([
                ("segment", Some(segment.into())),
                ("address", Some(address.to_string().into())),
                ("mac", Some(mac.to_string().into())),
            ])),
            Some(other) if other == *mac => {}
            Some(other) => {
                let message = format!("{address} in segment `{segment}` is {other}'s already");
                return Err(Problem::new(format!("{message}; delete that entry first")).into());
            }
        }
    }
    Ok(layout::push_inline(text, (Entity::Bridge(b), "neigh"), new)?)
}

/// Removes neighbours.
pub(super) fn del_neigh(
    text: &str,
    config: &Config,
    (bridge, entries): (&str, &[NeighConfig]),
) -> Result<String, Problems> {
    let (b, owner) = find_bridge(config, bridge)?;
    let known = owner.neighbours.iter().enumerate();
    let at: BTreeMap<(&str, IpAddr), usize> =
        known.map(|(n, entry)| ((entry.segment.as_str(), entry.address), n)).collect();
    let find = |entry: &NeighConfig| {
        let NeighConfig { segment, address, .. } = entry;
        let absent =
            || Problem::new(format!("bridge `{bridge}` has no neighbour {address} in segment `{segment}`"));
        at.get(&(segment.as_str(), *address)).copied().ok_or_else(absent)
    };
    let gone = entries.iter().map(find).collect::<Result<BTreeSet<_>, _>>()?;
    Ok(layout::remove(text, (Entity::Bridge(b), "neigh"), &gone)?)
}

/// Adds a route.
pub(super) fn add_route(text: &str, config: &Config, route: &RouteConfig) -> Result<String, Problems> {
    match config.routes.iter().find(|other| other.to == route.to) {
        Some(other) if other == route => return Ok(text.to_owned()),
        Some(_) => {
            let message = format!("there is a route to {} already; delete it first", route.to);
            return Err(Problem::new(message).into());
        }
        None => {}
    }
    let entry = table([
        ("to", Some(route.to.to_string().into())),
        ("via", route.via.map(|via| via.to_string().into())),
        ("port", route.port.as_ref().map(Value::from)),
    ]);
    Ok(layout::push(text, (Entity::Root, "route"), entry)?)
}

/// Removes a route.
pub(super) fn del_route(text: &str, config: &Config, to: Prefix) -> Result<String, Problems> {
    let at = config.routes.iter().position(|route| route.to == to);
    let at = at.ok_or_else(|| Problem::new(format!("there is no configured route to {to}")))?;
    Ok(layout::remove(text, (Entity::Root, "route"), &BTreeSet::from([at]))?)
}

fn table<const N: usize>(keys: [(&str, Option<Value>); N]) -> Table {
    keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}
