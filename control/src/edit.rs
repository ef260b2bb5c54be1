//! Changes of the running configuration that are kept in its file: comments, order and layout stay.
//!
//! A change is made in the text, and the text is read again as any file is: what breaks a rule is found by
//! the same code, and what [`edit`] returns always parses. Cost: one pass over the text per setting.

mod atomic;
mod change;
mod entries;
mod layout;

use std::collections::BTreeSet;

use toml_edit::{Array, Item, Table, Value};

use crate::config::{self, BRIDGE, BridgeConfig, Config, Entity, Key, PORT, SEGMENT, Shape, canonical};
use crate::problem::{Problem, Problems, did_you_mean};

pub use atomic::write_atomically;
pub use change::Change;

/// Makes one change in the text of a configuration file, which is `config`; the new text and what it says.
///
/// What is already as the change wants it (a setting, a static entry) stays as it is.
///
/// # Errors
/// What is wrong with the change, without lines.
pub fn edit(text: &str, config: &Config, change: &Change) -> Result<(String, Config), Problems> {
    let edited = apply(text, config, change)?;
    let unplaced = |problem: Problem| Problem::new(problem.message);
    match config::parse(&edited) {
        Ok(config) => Ok((edited, config)),
        Err(problems) => Err(Problems(problems.0.into_iter().map(unplaced).collect())),
    }
}

fn apply(text: &str, config: &Config, change: &Change) -> Result<String, Problems> {
    match change {
        Change::AddBridge { bridge, settings } => {
            if config.bridges.iter().any(|other| other.name == *bridge) {
                return Err(
                    Problem::new(format!("bridge `{bridge}` exists already; change it with `set`")).into()
                );
            }
            add(text, (Entity::Root, "bridge"), BRIDGE, (bridge, settings))
        }
        Change::DelBridge { bridge } => {
            remove(text, (Entity::Root, "bridge"), find_bridge(config, bridge)?.0)
        }
        Change::SetBridge { bridge, settings } => {
            set(text, Entity::Bridge(find_bridge(config, bridge)?.0), BRIDGE, settings)
        }
        Change::AddPort { bridge, port, settings } => {
            let (b, _) = find_bridge(config, bridge)?;
            if let Ok((other, _)) = find_port(config, port) {
                return Err(exists("port", port, &config.bridges[other]).into());
            }
            add(text, (Entity::Bridge(b), "port"), PORT, (port, settings))
        }
        Change::DelPort { port } => {
            let (b, p) = find_port(config, port)?;
            remove(text, (Entity::Bridge(b), "port"), p)
        }
        Change::SetPort { port, settings } => {
            let (b, p) = find_port(config, port)?;
            set(text, Entity::Port(b, p), PORT, settings)
        }
        Change::AddSegment { bridge, segment, settings } => {
            let (b, _) = find_bridge(config, bridge)?;
            if let Ok((other, _)) = find_segment(config, segment) {
                return Err(exists("segment", segment, &config.bridges[other]).into());
            }
            add(text, (Entity::Bridge(b), "segment"), SEGMENT, (segment, settings))
        }
        Change::DelSegment { segment } => {
            let (b, s) = find_segment(config, segment)?;
            remove(text, (Entity::Bridge(b), "segment"), s)
        }
        Change::SetSegment { segment, settings } => {
            let (b, s) = find_segment(config, segment)?;
            set(text, Entity::Segment(b, s), SEGMENT, settings)
        }
        Change::AddFdb { bridge, entries } => entries::add_fdb(text, config, (bridge, entries)),
        Change::DelFdb { bridge, entries } => entries::del_fdb(text, config, (bridge, entries)),
        Change::AddNeigh { bridge, entries } => entries::add_neigh(text, config, (bridge, entries)),
        Change::DelNeigh { bridge, entries } => entries::del_neigh(text, config, (bridge, entries)),
        Change::AddRoute(route) => entries::add_route(text, config, route),
        Change::DelRoute(to) => entries::del_route(text, config, *to),
    }
}

fn exists(what: &str, name: &str, owner: &BridgeConfig) -> Problem {
    let message = format!("{what} `{name}` is in bridge `{}` already", owner.name);
    Problem::new(format!("{message}; change it with `set`, or delete it first"))
}

/// Adds a named table with settings to a list.
fn add<T>(
    text: &str,
    list: (Entity, &str),
    keys: &[Key<T>],
    (name, settings): (&str, &[String]),
) -> Result<String, Problems> {
    let mut table = Table::from_iter([("name", name)]);
    for (key, value) in all_typed(settings, keys)? {
        match value {
            Some(value) => drop(table.insert(&key, Item::Value(value))),
            None => drop(table.remove(&key)),
        }
    }
    Ok(layout::push(text, list, table)?)
}

fn remove(text: &str, list: (Entity, &str), index: usize) -> Result<String, Problems> {
    Ok(layout::remove(text, list, &BTreeSet::from([index]))?)
}

fn find_bridge<'a>(config: &'a Config, name: &str) -> Result<(usize, &'a BridgeConfig), Problem> {
    let found = config.bridges.iter().enumerate().find(|(_, bridge)| bridge.name == name);
    found.ok_or_else(|| {
        let hint = did_you_mean(name, config.bridges.iter().map(|bridge| bridge.name.as_str()));
        Problem::new(format!("there is no bridge `{name}`{hint}"))
    })
}

fn find_port(config: &Config, name: &str) -> Result<(usize, usize), Problem> {
    let find = |bridge: &BridgeConfig| bridge.ports.iter().position(|port| port.name == name);
    let found = config.bridges.iter().enumerate().find_map(|(b, bridge)| Some((b, find(bridge)?)));
    found.ok_or_else(|| {
        let ports = config.bridges.iter().flat_map(|bridge| &bridge.ports);
        let hint = did_you_mean(name, ports.map(|port| port.name.as_str()));
        Problem::new(format!("there is no port `{name}`{hint}"))
    })
}

fn find_segment(config: &Config, name: &str) -> Result<(usize, usize), Problem> {
    let find = |bridge: &BridgeConfig| bridge.segments.iter().position(|segment| segment.name == name);
    let found = config.bridges.iter().enumerate().find_map(|(b, bridge)| Some((b, find(bridge)?)));
    found.ok_or_else(|| {
        let segments = config.bridges.iter().flat_map(|bridge| &bridge.segments);
        let hint = did_you_mean(name, segments.map(|segment| segment.name.as_str()));
        Problem::new(format!("there is no segment `{name}`{hint}"))
    })
}

/// Makes `key=value` settings in a table.
fn set<T>(text: &str, entity: Entity, keys: &[Key<T>], settings: &[String]) -> Result<String, Problems> {
    let mut text = text.to_owned();
    for (key, value) in all_typed(settings, keys)? {
        text = match value {
            Some(value) => layout::set(&text, entity, (&key, value))?,
            None => layout::unset(&text, entity, &key)?,
        };
    }
    Ok(text)
}

/// A key, and its value unless it is to go.
type Setting = (String, Option<Value>);

fn all_typed<T>(settings: &[String], keys: &[Key<T>]) -> Result<Vec<Setting>, Problems> {
    let (good, bad): (Vec<_>, Vec<_>) =
        settings.iter().map(|setting| typed(setting, keys)).partition(Result::is_ok);
    let problems: Vec<Problem> = bad.into_iter().filter_map(Result::err).collect();
    if problems.is_empty() { Ok(good.into_iter().flatten().collect()) } else { Err(Problems(problems)) }
}

/// A setting's key and its value, typed as the key demands; no value takes the key out. What does not fit
/// the type becomes a string, which is then complained about as it would be in the file.
fn typed<T>(setting: &str, keys: &[Key<T>]) -> Result<Setting, Problem> {
    let Some((key, text)) = setting.split_once('=') else {
        return Err(Problem::new(format!("`{setting}` is no setting, expected key=value")));
    };
    let (key, text) = (canonical(key.trim()), text.trim());
    let shape = keys.iter().find(|known| known.name == key).map(|known| known.shape);
    match shape {
        None => Err(Problem::new(config::unknown_key(&key, keys))),
        Some(_) if key == "name" => Err(Problem::new("`name` cannot be changed; delete it and add another")),
        Some(Shape::Nested) => Err(Problem::new(format!("`{key}` is a table of its own, not a setting"))),
        Some(_) if text.is_empty() => Ok((key, None)),
        Some(shape) => Ok((key, Some(value(shape, text)))),
    }
}

fn value(shape: Shape, text: &str) -> Value {
    match shape {
        Shape::Boolean => text.parse::<bool>().map_or_else(|_| Value::from(text), Value::from),
        Shape::Integer => text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from),
        Shape::Text | Shape::Nested => Value::from(text),
        Shape::List => {
            let elements =
                text.trim_matches(['[', ']']).split(',').map(str::trim).filter(|text| !text.is_empty());
            Value::Array(
                elements.map(|element| value(Shape::Integer, element.trim_matches('"'))).collect::<Array>(),
            )
        }
    }
}

#[cfg(test)]
mod tests;
