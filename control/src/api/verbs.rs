//! Our own verbs, `sluice/...`: each answers with a value of [`report`](super::report).

use std::path::Path;

use dataplane::switch::Learn;
use serde::Serialize;
use serde_json::{Value, to_value};
use tracing::Level;

use super::report::{Flushed, LogReport};
use super::{Answer, Verb, overlay, ovs, tnl};
use crate::daemon::Running;
use crate::edit::Change;
use crate::model::Bridge;
use crate::service::Service;

/// Every verb of the switch, but for `list-commands`.
pub const VERBS: &[Verb<Running>] = &[
    Verb { name: "dpctl/dump-flows", usage: "[--names]", params: (0, 1), run: ovs::dump_flows },
    Verb { name: "exit", usage: "", params: (0, 0), run: ovs::exit },
    Verb { name: "fdb/add", usage: "bridge port vlan mac", params: (4, 4), run: ovs::fdb_add },
    Verb { name: "fdb/del", usage: "bridge vlan mac", params: (3, 3), run: ovs::fdb_del },
    Verb { name: "fdb/flush", usage: "[bridge]", params: (0, 1), run: ovs::fdb_flush },
    Verb { name: "fdb/show", usage: "bridge", params: (1, 1), run: ovs::fdb_show },
    Verb { name: "fdb/stats-show", usage: "bridge", params: (1, 1), run: ovs::fdb_stats },
    Verb { name: "log", usage: "[level]", params: (0, 1), run: ovs::log },
    Verb { name: "mdb/flush", usage: "[bridge]", params: (0, 1), run: ovs::mdb_flush },
    Verb { name: "mdb/show", usage: "bridge", params: (1, 1), run: ovs::mdb_show },
    Verb { name: "ofproto/trace", usage: "bridge br_flow", params: (2, 2), run: ovs::trace },
    Verb {
        name: "ovs/route/add",
        usage: "ip_addr/prefix_len out_br_name [gw]",
        params: (2, 3),
        run: tnl::route_add,
    },
    Verb { name: "ovs/route/del", usage: "ip_addr/prefix_len", params: (1, 1), run: tnl::route_del },
    Verb { name: "ovs/route/lookup", usage: "ip_addr", params: (1, 1), run: tnl::route_lookup },
    Verb { name: "ovs/route/show", usage: "", params: (0, 0), run: tnl::route_show },
    Verb { name: "tnl/arp/flush", usage: "", params: (0, 0), run: tnl::neigh_flush },
    Verb { name: "tnl/arp/set", usage: "BRIDGE IP MAC", params: (3, 3), run: tnl::neigh_set },
    Verb { name: "tnl/arp/show", usage: "", params: (0, 0), run: tnl::neigh_show },
    Verb { name: "tnl/neigh/flush", usage: "", params: (0, 0), run: tnl::neigh_flush },
    Verb { name: "tnl/neigh/set", usage: "BRIDGE IP MAC", params: (3, 3), run: tnl::neigh_set },
    Verb { name: "tnl/neigh/show", usage: "", params: (0, 0), run: tnl::neigh_show },
    Verb { name: "tnl/ports/show", usage: "-v", params: (0, 1), run: tnl::ports_show },
    Verb { name: "version", usage: "", params: (0, 0), run: ovs::version },
    Verb { name: "sluice/apply", usage: "[file]", params: (0, 1), run: apply },
    Verb { name: "sluice/bridge/add", usage: "bridge [key=value]...", params: (1, MANY), run: bridge_add },
    Verb { name: "sluice/bridge/del", usage: "bridge", params: (1, 1), run: bridge_del },
    Verb { name: "sluice/bridge/set", usage: "bridge key=value...", params: (2, MANY), run: bridge_set },
    Verb { name: "sluice/bridge/show", usage: "[bridge]", params: (0, 1), run: bridge_show },
    Verb { name: "sluice/drops", usage: "", params: (0, 0), run: drops },
    Verb {
        name: "sluice/fdb/add",
        usage: "bridge {mac key=value...}...",
        params: (2, MANY),
        run: overlay::fdb_add,
    },
    Verb {
        name: "sluice/fdb/del",
        usage: "bridge {mac [key=value]}...",
        params: (2, MANY),
        run: overlay::fdb_del,
    },
    Verb { name: "sluice/fdb/flush", usage: "[bridge [port]]", params: (0, 2), run: fdb_flush },
    Verb { name: "sluice/fdb/show", usage: "[bridge]", params: (0, 1), run: fdb_show },
    Verb { name: "sluice/flow/flush", usage: "", params: (0, 0), run: flow_flush },
    Verb { name: "sluice/flow/show", usage: "[filter]", params: (0, 1), run: flow_show },
    Verb { name: "sluice/ledger", usage: "", params: (0, 0), run: ledger },
    Verb { name: "sluice/log", usage: "[level]", params: (0, 1), run: log },
    Verb { name: "sluice/mdb/show", usage: "[bridge]", params: (0, 1), run: mdb_show },
    Verb {
        name: "sluice/neigh/add",
        usage: "bridge {address key=value...}...",
        params: (2, MANY),
        run: overlay::neigh_add,
    },
    Verb {
        name: "sluice/neigh/del",
        usage: "bridge {address key=value}...",
        params: (2, MANY),
        run: overlay::neigh_del,
    },
    Verb { name: "sluice/neigh/show", usage: "[bridge]", params: (0, 1), run: overlay::neigh_show },
    Verb { name: "sluice/poller/place", usage: "port queue core", params: (3, 3), run: poller_place },
    Verb { name: "sluice/poller/show", usage: "", params: (0, 0), run: poller_show },
    Verb { name: "sluice/port/add", usage: "bridge port [key=value]...", params: (2, MANY), run: port_add },
    Verb { name: "sluice/port/del", usage: "port", params: (1, 1), run: port_del },
    Verb { name: "sluice/port/set", usage: "port key=value...", params: (2, MANY), run: port_set },
    Verb { name: "sluice/port/show", usage: "[port]", params: (0, 1), run: port_show },
    Verb { name: "sluice/route/add", usage: "prefix key=value...", params: (2, 3), run: overlay::route_add },
    Verb { name: "sluice/route/del", usage: "prefix", params: (1, 1), run: overlay::route_del },
    Verb { name: "sluice/route/show", usage: "", params: (0, 0), run: overlay::route_show },
    Verb {
        name: "sluice/segment/add",
        usage: "bridge segment key=value...",
        params: (3, MANY),
        run: overlay::segment_add,
    },
    Verb { name: "sluice/segment/del", usage: "segment", params: (1, 1), run: overlay::segment_del },
    Verb {
        name: "sluice/segment/set",
        usage: "segment key=value...",
        params: (2, MANY),
        run: overlay::segment_set,
    },
    Verb { name: "sluice/segment/show", usage: "[bridge]", params: (0, 1), run: overlay::segment_show },
    Verb { name: "sluice/show", usage: "", params: (0, 0), run: show },
    Verb { name: "sluice/trace", usage: "bridge br_flow [learn]", params: (2, 3), run: trace },
    Verb {
        name: "sluice/tunnel/add",
        usage: "bridge port key=value...",
        params: (3, MANY),
        run: overlay::tunnel_add,
    },
    Verb { name: "sluice/tunnel/del", usage: "port", params: (1, 1), run: overlay::tunnel_del },
    Verb {
        name: "sluice/tunnel/set",
        usage: "port key=value...",
        params: (2, MANY),
        run: overlay::tunnel_set,
    },
    Verb { name: "sluice/tunnel/show", usage: "[port]", params: (0, 1), run: overlay::tunnel_show },
    Verb { name: "sluice/underlay", usage: "", params: (0, 0), run: underlay },
];

/// More parameters than a command line holds.
const MANY: usize = usize::MAX;

pub(super) fn value(report: impl Serialize) -> Answer {
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
pub(super) fn bridges<'a>(service: &'a Service, params: &[&str]) -> Result<Vec<Bridge<'a>>, String> {
    match params.first() {
        Some(name) => Ok(vec![bridge(service, name)?]),
        None => Ok(service.model().bridges().collect()),
    }
}

pub(super) fn no_port(name: &str) -> String {
    format!("no port \"{name}\"; `sluice port show` lists them")
}

pub(super) fn edit(running: &mut Running, change: Change) -> Answer {
    value(running.service.edit(&change).map_err(|e| e.to_string())?)
}

pub(super) fn owned(params: &[&str]) -> Vec<String> {
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

fn underlay(running: &mut Running, _: &[&str]) -> Answer {
    value(running.service.underlay_report())
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
