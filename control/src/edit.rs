//! Changes of the running configuration that are kept in its file: comments, order and layout stay.
//!
//! A change is made in the text, and the text is read again as any file is: what breaks a rule is found by
//! the same code, and what [`edit`] returns always parses. Cost: one pass over the text per setting.

mod atomic;
mod layout;

use encap::field::{MacAddr, VlanId};
use toml_edit::{Array, Table, Value};

use crate::config::{self, BRIDGE, BridgeConfig, Config, Entity, Key, PORT, Shape, canonical};
use crate::problem::{Problem, Problems, did_you_mean};

pub use atomic::write_atomically;

/// One change of a configuration. Settings are `key=value` with the file's keys; `key=` takes the key out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new bridge.
    AddBridge {
        /// Its name.
        bridge: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A bridge goes, with its ports.
    DelBridge {
        /// Its name.
        bridge: String,
    },
    /// Settings of a bridge.
    SetBridge {
        /// Its name.
        bridge: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A new port.
    AddPort {
        /// Where.
        bridge: String,
        /// Its name.
        port: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A port goes.
    DelPort {
        /// Its name.
        port: String,
    },
    /// Settings of a port.
    SetPort {
        /// Its name.
        port: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A new static FDB entry.
    AddFdb {
        /// Where.
        bridge: String,
        /// The VLAN.
        vlan: VlanId,
        /// The address.
        mac: MacAddr,
        /// Where it lives.
        port: String,
    },
    /// A static FDB entry goes.
    DelFdb {
        /// Where.
        bridge: String,
        /// The VLAN.
        vlan: VlanId,
        /// The address.
        mac: MacAddr,
    },
}

/// Makes one change in the text of a configuration file.
///
/// What is already as the change wants it (a setting, a static entry) stays as it is.
///
/// # Errors
/// What is wrong with `text`, with lines; else what is wrong with the change, without.
pub fn edit(text: &str, change: &Change) -> Result<String, Problems> {
    let config = config::parse(text)?;
    let edited = apply(text, &config, change)?;
    let unplaced = |problem: Problem| Problem::new(problem.message);
    match config::parse(&edited) {
        Ok(_) => Ok(edited),
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
            let added = layout::push(text, Entity::Root, "bridge", named(bridge))?;
            set(&added, Entity::Bridge(config.bridges.len()), BRIDGE, settings)
        }
        Change::DelBridge { bridge } => {
            Ok(layout::remove(text, Entity::Bridge(find_bridge(config, bridge)?.0))?)
        }
        Change::SetBridge { bridge, settings } => {
            set(text, Entity::Bridge(find_bridge(config, bridge)?.0), BRIDGE, settings)
        }
        Change::AddPort { bridge, port, settings } => {
            let (b, owner) = find_bridge(config, bridge)?;
            if let Ok((other, _)) = find_port(config, port) {
                let message = format!("port `{port}` is in bridge `{}` already", config.bridges[other].name);
                return Err(
                    Problem::new(format!("{message}; change it with `set`, or delete it first")).into()
                );
            }
            let added = layout::push(text, Entity::Bridge(b), "port", named(port))?;
            set(&added, Entity::Port(b, owner.ports.len()), PORT, settings)
        }
        Change::DelPort { port } => {
            let (b, p) = find_port(config, port)?;
            Ok(layout::remove(text, Entity::Port(b, p))?)
        }
        Change::SetPort { port, settings } => {
            let (b, p) = find_port(config, port)?;
            set(text, Entity::Port(b, p), PORT, settings)
        }
        Change::AddFdb { bridge, vlan, mac, port } => {
            let (b, owner) = find_bridge(config, bridge)?;
            match find_entry(owner, *vlan, *mac).map(|f| &owner.fdb[f].port) {
                Some(other) if other == port => Ok(text.to_owned()),
                Some(other) => Err(Problem::new(format!(
                    "{mac} in VLAN {vlan} of bridge `{bridge}` is at port `{other}` already; delete that entry first"
                ))
                .into()),
                None => Ok(layout::push_inline(text, Entity::Bridge(b), "fdb", entry(*vlan, *mac, port))?),
            }
        }
        Change::DelFdb { bridge, vlan, mac } => {
            let (b, owner) = find_bridge(config, bridge)?;
            let absent =
                || Problem::new(format!("bridge `{bridge}` has no static entry {mac} in VLAN {vlan}"));
            let f = find_entry(owner, *vlan, *mac).ok_or_else(absent)?;
            Ok(layout::remove(text, Entity::Fdb(b, f))?)
        }
    }
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

fn find_entry(bridge: &BridgeConfig, vlan: VlanId, mac: MacAddr) -> Option<usize> {
    bridge.fdb.iter().position(|entry| (entry.vlan, entry.mac) == (vlan, mac))
}

fn named(name: &str) -> Table {
    Table::from_iter([("name", name)])
}

fn entry(vlan: VlanId, mac: MacAddr, port: &str) -> Table {
    let vlan = Value::from(i64::from(vlan.get()));
    Table::from_iter([("mac", Value::from(mac.to_string())), ("vlan", vlan), ("port", Value::from(port))])
}

/// Makes `key=value` settings in a table.
fn set<T>(text: &str, entity: Entity, keys: &[Key<T>], settings: &[String]) -> Result<String, Problems> {
    let mut text = text.to_owned();
    let mut problems = Vec::new();
    for setting in settings {
        match typed(setting, keys) {
            Ok((key, Some(value))) => text = layout::set(&text, entity, (&key, value))?,
            Ok((key, None)) => text = layout::unset(&text, entity, &key)?,
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(text) } else { Err(Problems(problems)) }
}

/// A setting's key and its value, typed as the key demands; no value takes the key out. What does not fit
/// the type becomes a string, which is then complained about as it would be in the file.
fn typed<T>(setting: &str, keys: &[Key<T>]) -> Result<(String, Option<Value>), Problem> {
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
