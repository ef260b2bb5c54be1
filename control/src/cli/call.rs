//! Verbs as calls: the method, its parameters, and how its answer is shown.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, to_value};

use super::{Ask, BridgeVerb, FlowVerb, MdbVerb, PollerVerb, PortVerb, overlay};
use crate::api::report::{ApplyReport, Flushed, LogReport, PollerReport, PortReport};
use crate::render;

pub(super) type Render = fn(Value) -> serde_json::Result<String>;

/// One call on the control socket.
pub(super) struct Call {
    pub method: &'static str,
    pub params: Vec<String>,
    /// The answer for people.
    pub render: Render,
}

pub(super) fn call<const N: usize>(method: &'static str, params: [&str; N], render: Render) -> Call {
    Call { method, params: params.map(str::to_owned).to_vec(), render }
}

impl Call {
    pub fn with<'a>(mut self, more: impl IntoIterator<Item = &'a String>) -> Self {
        self.params.extend(more.into_iter().cloned());
        self
    }
}

/// The call a verb makes. An error if a file it names has no absolute path, or standard input no entries.
pub(super) fn of(ask: &Ask) -> Result<Call, String> {
    Ok(match ask {
        Ask::Apply { config } => call("sluice/apply", [], |v| one(v, render::applied))
            .with(&config.as_deref().map(absolute).transpose()?),
        Ask::Show => call("sluice/show", [], |v| one(v, render::overview)),
        Ask::Bridge(verb) => bridge(verb),
        Ask::Port(verb) => port(verb),
        Ask::Segment(verb) => overlay::segment(verb),
        Ask::Tunnel(verb) => overlay::tunnel(verb),
        Ask::Fdb(verb) => overlay::fdb(verb)?,
        Ask::Neigh(verb) => overlay::neigh(verb)?,
        Ask::Route(verb) => overlay::route(verb),
        Ask::Flow(FlowVerb::Show { filter }) => list("sluice/flow/show", |v| rows(v, render::flows), filter),
        Ask::Flow(FlowVerb::Flush) => call("sluice/flow/flush", [], flushed),
        Ask::Mdb(MdbVerb::Show { bridge }) => list("sluice/mdb/show", |v| rows(v, render::mdb), bridge),
        Ask::Trace { bridge, flow, learn } => call("sluice/trace", [bridge, flow], |v| one(v, render::trace))
            .with(&learn.then(|| "learn".to_owned())),
        Ask::Poller(PollerVerb::Show { perf: false, .. }) => {
            call("sluice/poller/show", [], |v| rows(v, render::pollers))
        }
        Ask::Poller(PollerVerb::Show { perf: true, .. }) => {
            call("sluice/poller/show", [], |v| rows(v, render::perf))
        }
        Ask::Poller(PollerVerb::Place { port, queue, core }) => {
            call("sluice/poller/place", [port, &queue.to_string(), &core.to_string()], silent)
        }
        Ask::Underlay => call("sluice/underlay", [], |v| one(v, render::underlay)),
        Ask::Drops => call("sluice/drops", [], |v| rows(v, render::drops)),
        Ask::Ledger => call("sluice/ledger", [], |v| one(v, render::ledger)),
        Ask::Log { level } => list("sluice/log", |v| Ok(from_value::<LogReport>(v)?.level + "\n"), level),
    })
}

/// What happened between two answers about pollers.
pub(super) fn between(before: &Value, after: &Value) -> serde_json::Result<Value> {
    let (before, after) =
        (Vec::<PollerReport>::deserialize(before)?, Vec::<PollerReport>::deserialize(after)?);
    let pairs = after.iter().zip(&before);
    to_value(pairs.map(|(now, then)| now.since(then)).collect::<Vec<_>>())
}

pub(super) fn list(method: &'static str, render: Render, filter: &Option<String>) -> Call {
    call(method, [], render).with(filter)
}

fn bridge(verb: &BridgeVerb) -> Call {
    match verb {
        BridgeVerb::Add { bridge, settings } => call("sluice/bridge/add", [bridge], silent).with(settings),
        BridgeVerb::Del { bridge } => call("sluice/bridge/del", [bridge], silent),
        BridgeVerb::Set { bridge, settings } => call("sluice/bridge/set", [bridge], silent).with(settings),
        BridgeVerb::Show { bridge } => list("sluice/bridge/show", |v| rows(v, render::bridges), bridge),
    }
}

fn port(verb: &PortVerb) -> Call {
    match verb {
        PortVerb::Add { bridge, port, settings } => {
            call("sluice/port/add", [bridge, port], silent).with(settings)
        }
        PortVerb::Del { port } => call("sluice/port/del", [port], silent),
        PortVerb::Set { port, settings } => call("sluice/port/set", [port], silent).with(settings),
        PortVerb::Show { port: None } => call("sluice/port/show", [], |v| rows(v, render::ports)),
        PortVerb::Show { port: Some(port) } => call("sluice/port/show", [port], |v| {
            Ok(from_value::<Vec<PortReport>>(v)?.iter().map(render::port).collect())
        }),
    }
}

fn absolute(path: &Path) -> Result<String, String> {
    let path = std::path::absolute(path).map_err(|e| format!("cannot find {}: {e}", path.display()))?;
    path.into_os_string().into_string().map_err(|p| format!("{} is not UTF-8", PathBuf::from(p).display()))
}

fn one<T: DeserializeOwned>(value: Value, draw: fn(&T) -> String) -> serde_json::Result<String> {
    Ok(draw(&from_value(value)?))
}

pub(super) fn rows<T: DeserializeOwned>(
    value: Value,
    draw: fn(&[T]) -> String,
) -> serde_json::Result<String> {
    Ok(draw(&from_value::<Vec<T>>(value)?))
}

pub(super) fn silent(_: Value) -> serde_json::Result<String> {
    Ok(String::new())
}

pub(super) fn flushed(value: Value) -> serde_json::Result<String> {
    Ok(format!("{} entries flushed\n", render::count(from_value::<Flushed>(value)?.flushed as u64)))
}

/// What a change of the configuration left to complain about.
pub(super) fn warnings(value: &Value) -> impl Iterator<Item = String> {
    let report = ApplyReport::deserialize(value).unwrap_or_default();
    let restart = report.needs_restart.into_iter().map(|key| format!("{key} changes only at the next start"));
    let troubles = report.troubles.into_iter().map(|t| format!("port {}: {}", t.port, t.error));
    restart.chain(troubles).chain(report.warnings)
}
