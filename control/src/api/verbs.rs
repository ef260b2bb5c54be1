//! Our own verbs, `sluice/...`: each answers with a value of [`report`](super::report).

use std::path::Path;

use dataplane::switch::Learn;
use encap::field::{MacAddr, VlanId};
use serde::Serialize;
use serde_json::{Value, to_value};
use tracing::Level;

use super::report::{Flushed, LogReport};
use super::{Answer, Verb, ovs};
use crate::daemon::Running;
use crate::edit::Change;
use crate::model::Bridge;
use crate::service::Service;

/// Every verb of the switch, but for `list-commands`.
pub const VERBS: &[Verb<Running>] = &[
    Verb { name: "dpctl/dump-flows", usage: "[--names]", params: (0, 1), run: ovs::dump_flows },
    Verb { name: "exit", usage: "", params: (0, 0), run: ovs::exit },
    Verb { name: "fdb/flush", usage: "[bridge]", params: (0, 1), run: ovs::fdb_flush },
    Verb { name: "fdb/show", usage: "bridge", params: (1, 1), run: ovs::fdb_show },
    Verb { name: "log", usage: "[level]", params: (0, 1), run: ovs::log },
    Verb { name: "mdb/show", usage: "bridge", params: (1, 1), run: ovs::mdb_show },
    Verb { name: "ofproto/trace", usage: "bridge br_flow", params: (2, 2), run: ovs::trace },
    Verb { name: "version", usage: "", params: (0, 0), run: ovs::version },
    Verb { name: "sluice/apply", usage: "[file]", params: (0, 1), run: apply },
    Verb { name: "sluice/bridge/add", usage: "bridge [key=value]...", params: (1, MANY), run: bridge_add },
    Verb { name: "sluice/bridge/del", usage: "bridge", params: (1, 1), run: bridge_del },
    Verb { name: "sluice/bridge/set", usage: "bridge key=value...", params: (2, MANY), run: bridge_set },
    Verb { name: "sluice/bridge/show", usage: "[bridge]", params: (0, 1), run: bridge_show },
    Verb { name: "sluice/drops", usage: "", params: (0, 0), run: drops },
    Verb { name: "sluice/fdb/add", usage: "bridge vlan mac port", params: (4, 4), run: fdb_add },
    Verb { name: "sluice/fdb/del", usage: "bridge vlan mac", params: (3, 3), run: fdb_del },
    Verb { name: "sluice/fdb/flush", usage: "[bridge [port]]", params: (0, 2), run: fdb_flush },
    Verb { name: "sluice/fdb/show", usage: "[bridge]", params: (0, 1), run: fdb_show },
    Verb { name: "sluice/flow/flush", usage: "", params: (0, 0), run: flow_flush },
    Verb { name: "sluice/flow/show", usage: "[filter]", params: (0, 1), run: flow_show },
    Verb { name: "sluice/ledger", usage: "", params: (0, 0), run: ledger },
    Verb { name: "sluice/log", usage: "[level]", params: (0, 1), run: log },
    Verb { name: "sluice/mdb/show", usage: "[bridge]", params: (0, 1), run: mdb_show },
    Verb { name: "sluice/poller/place", usage: "port queue core", params: (3, 3), run: poller_place },
    Verb { name: "sluice/poller/show", usage: "", params: (0, 0), run: poller_show },
    Verb { name: "sluice/port/add", usage: "bridge port [key=value]...", params: (2, MANY), run: port_add },
    Verb { name: "sluice/port/del", usage: "port", params: (1, 1), run: port_del },
    Verb { name: "sluice/port/set", usage: "port key=value...", params: (2, MANY), run: port_set },
    Verb { name: "sluice/port/show", usage: "[port]", params: (0, 1), run: port_show },
    Verb { name: "sluice/show", usage: "", params: (0, 0), run: show },
    Verb { name: "sluice/trace", usage: "bridge br_flow [learn]", params: (2, 3), run: trace },
];

/// More parameters than a command line holds.
const MANY: usize = usize::MAX;

fn value(report: impl Serialize) -> Answer {
    to_value(report).map_err(|e| e.to_string())
}

/// The bridge of this name, or an error that tells which there are.
pub(super) fn bridge<'a>(service: &'a Service, name: &str) -> Result<Bridge<'a>, String> {
    let names = || service.model().bridges().map(|b| b.config.name.as_str()).collect::<Vec<_>>().join(", ");
    service.model().bridge(name).ok_or_else(|| match names() {
        none if none.is_empty() => format!("no bridge \"{name}\"; add it with `sluice bridge add {name}`"),
        names => format!("no bridge \"{name}\"; there are: {names}"),
    })
}

/// The one bridge asked for, or all.
fn bridges<'a>(service: &'a Service, params: &[&str]) -> Result<Vec<Bridge<'a>>, String> {
    match params.first() {
        Some(name) => Ok(vec![bridge(service, name)?]),
        None => Ok(service.model().bridges().collect()),
    }
}

fn no_port(name: &str) -> String {
    format!("no port \"{name}\"; `sluice port show` lists them")
}

fn edit(running: &mut Running, change: Change) -> Answer {
    value(running.service.edit(&change).map_err(|e| e.to_string())?)
}

fn owned(params: &[&str]) -> Vec<String> {
    params.iter().map(|p| p.to_string()).collect()
}

fn apply(running: &mut Running, params: &[&str]) -> Answer {
    let service = &mut running.service;
    let report = match params {
        [file] => service.replace(Path::new(file)),
        _ => service.apply(),
    };
    value(report.map_err(|e| e.to_string())?)
}

fn show(running: &mut Running, _: &[&str]) -> Answer {
    value(running.service.overview())
}

fn bridge_add(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::AddBridge { bridge: params[0].to_owned(), settings: owned(&params[1..]) })
}

fn bridge_del(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::DelBridge { bridge: params[0].to_owned() })
}

fn bridge_set(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::SetBridge { bridge: params[0].to_owned(), settings: owned(&params[1..]) })
}

fn bridge_show(running: &mut Running, params: &[&str]) -> Answer {
    bridges(&running.service, params)?;
    let mut reports = running.service.bridge_reports();
    reports.retain(|report| params.first().is_none_or(|name| report.name == *name));
    value(reports)
}

fn port_add(running: &mut Running, params: &[&str]) -> Answer {
    let (bridge, port, settings) = (params[0].to_owned(), params[1].to_owned(), owned(&params[2..]));
    edit(running, Change::AddPort { bridge, port, settings })
}

fn port_del(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::DelPort { port: params[0].to_owned() })
}

fn port_set(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::SetPort { port: params[0].to_owned(), settings: owned(&params[1..]) })
}

fn port_show(running: &mut Running, params: &[&str]) -> Answer {
    let mut reports = running.service.port_reports();
    reports.retain(|report| params.first().is_none_or(|name| report.name == *name));
    match params {
        [name] if reports.is_empty() => Err(no_port(name)),
        _ => value(reports),
    }
}

fn station(vlan: &str, mac: &str) -> Result<(VlanId, MacAddr), String> {
    let id = vlan.parse().ok().and_then(|n: u16| VlanId::new(n).ok());
    let id = id.ok_or_else(|| format!("no VLAN \"{vlan}\"; expected a number from 0 to 4094"))?;
    Ok((id, mac.parse().map_err(|e| format!("no MAC address \"{mac}\": {e}"))?))
}

fn fdb_add(running: &mut Running, params: &[&str]) -> Answer {
    let (vlan, mac) = station(params[1], params[2])?;
    edit(running, Change::AddFdb { bridge: params[0].to_owned(), vlan, mac, port: params[3].to_owned() })
}

fn fdb_del(running: &mut Running, params: &[&str]) -> Answer {
    let (vlan, mac) = station(params[1], params[2])?;
    edit(running, Change::DelFdb { bridge: params[0].to_owned(), vlan, mac })
}

fn fdb_flush(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let port = params.get(1).map(|name| service.model().port(name).ok_or_else(|| no_port(name)));
    let port = port.transpose()?.map(|port| port.id);
    let flush = |bridge: &Bridge| service.switch().fdb_flush(bridge.id, port);
    value(Flushed { flushed: bridges(service, params)?.iter().map(flush).sum() })
}

fn fdb_show(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridges = bridges(service, params)?;
    value(bridges.iter().flat_map(|bridge| service.fdb_reports(bridge)).collect::<Vec<_>>())
}

fn mdb_show(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridges = bridges(service, params)?;
    value(bridges.iter().flat_map(|bridge| service.mdb_reports(bridge)).collect::<Vec<_>>())
}

fn flow_flush(running: &mut Running, _: &[&str]) -> Answer {
    value(Flushed { flushed: running.service.switch().flush_flows() })
}

fn flow_show(running: &mut Running, params: &[&str]) -> Answer {
    value(running.service.flow_reports(params.first().unwrap_or(&"")))
}

fn trace(running: &mut Running, params: &[&str]) -> Answer {
    let learn = match params.get(2) {
        None => Learn::No,
        Some(&"learn") => Learn::Yes,
        Some(other) => return Err(format!("unknown option \"{other}\"; expected learn")),
    };
    let service = &running.service;
    value(service.explain(&bridge(service, params[0])?, params[1], learn)?)
}

fn poller_show(running: &mut Running, _: &[&str]) -> Answer {
    value(running.service.poller_reports())
}

fn poller_place(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let port = service.model().port(params[0]).ok_or_else(|| no_port(params[0]))?;
    let queue =
        params[1].parse().map_err(|_| format!("no queue \"{}\"; expected a number from 0", params[1]))?;
    let core =
        params[2].parse().map_err(|_| format!("no core \"{}\"; expected a number from 0", params[2]))?;
    service.switch().place(port.id, queue, core).map_err(|e| format!("port {}: {e}", params[0]))?;
    Ok(Value::Null)
}

fn drops(running: &mut Running, _: &[&str]) -> Answer {
    value(running.service.drop_reports())
}

fn ledger(running: &mut Running, _: &[&str]) -> Answer {
    value(running.service.ledger_report())
}

fn log(running: &mut Running, params: &[&str]) -> Answer {
    value(LogReport { level: set_level(running, params)?.to_string().to_lowercase() })
}

/// Sets the level if one is given; the level in force.
pub(super) fn set_level(running: &Running, params: &[&str]) -> Result<Level, String> {
    let log = running.service.log();
    if let Some(name) = params.first() {
        let unknown = |_| format!("no log level \"{name}\"; use error, warn, info, debug or trace");
        log.set(name.parse::<Level>().map_err(unknown)?);
    }
    Ok(log.level())
}
