//! Our own verbs about segments, tunnels, stations and the underlay.

use super::verbs::{bridge, bridges, edit, no_port, owned, value};
use super::{Answer, entries};
use crate::config::PortConfig;
use crate::daemon::Running;
use crate::edit::Change;

pub(super) fn segment_add(running: &mut Running, params: &[&str]) -> Answer {
    let (bridge, segment, settings) = (params[0].to_owned(), params[1].to_owned(), owned(&params[2..]));
    edit(running, Change::AddSegment { bridge, segment, settings })
}

pub(super) fn segment_del(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::DelSegment { segment: params[0].to_owned() })
}

pub(super) fn segment_set(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::SetSegment { segment: params[0].to_owned(), settings: owned(&params[1..]) })
}

pub(super) fn segment_show(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridges = bridges(service, params)?;
    value(bridges.iter().flat_map(|bridge| service.segment_reports(bridge)).collect::<Vec<_>>())
}

/// The tunnel port of this name.
fn tunnel<'a>(running: &'a Running, name: &str) -> Result<&'a PortConfig, String> {
    let port = running.service.model().port(name).ok_or_else(|| no_port(name))?.config;
    let is_tunnel = port.tunnel_kind().is_some();
    let other = || format!("port \"{name}\" is no tunnel port; `sluice port` has verbs for it");
    is_tunnel.then_some(port).ok_or_else(other)
}

pub(super) fn tunnel_add(running: &mut Running, params: &[&str]) -> Answer {
    let kinds = ["type=vxlan", "type=gre", "type=geneve"];
    if !params[2..].iter().any(|setting| kinds.contains(setting)) {
        return Err(format!("a tunnel port takes one of {}", kinds.join(", ")));
    }
    let (bridge, port, settings) = (params[0].to_owned(), params[1].to_owned(), owned(&params[2..]));
    edit(running, Change::AddPort { bridge, port, settings })
}

pub(super) fn tunnel_del(running: &mut Running, params: &[&str]) -> Answer {
    let port = tunnel(running, params[0])?.name.clone();
    edit(running, Change::DelPort { port })
}

pub(super) fn tunnel_set(running: &mut Running, params: &[&str]) -> Answer {
    let port = tunnel(running, params[0])?.name.clone();
    edit(running, Change::SetPort { port, settings: owned(&params[1..]) })
}

pub(super) fn tunnel_show(running: &mut Running, params: &[&str]) -> Answer {
    params.first().map(|name| tunnel(running, name)).transpose()?;
    let mut reports = running.service.tunnel_reports();
    reports.retain(|report| params.first().is_none_or(|name| report.name == *name));
    value(reports)
}

pub(super) fn fdb_add(running: &mut Running, params: &[&str]) -> Answer {
    let entries = entries::fdb(&params[1..])?;
    edit(running, Change::AddFdb { bridge: params[0].to_owned(), entries })
}

pub(super) fn fdb_del(running: &mut Running, params: &[&str]) -> Answer {
    let entries = entries::fdb(&params[1..])?;
    edit(running, Change::DelFdb { bridge: params[0].to_owned(), entries })
}

pub(super) fn neigh_add(running: &mut Running, params: &[&str]) -> Answer {
    let entries = entries::neigh(&params[1..])?;
    edit(running, Change::AddNeigh { bridge: params[0].to_owned(), entries })
}

pub(super) fn neigh_del(running: &mut Running, params: &[&str]) -> Answer {
    let entries = entries::neigh(&params[1..])?;
    edit(running, Change::DelNeigh { bridge: params[0].to_owned(), entries })
}

pub(super) fn neigh_show(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridge = params.first().map(|name| bridge(service, name)).transpose()?;
    value(service.neigh_reports(bridge.as_ref()))
}

pub(super) fn route_add(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::AddRoute(entries::route(params)?))
}

pub(super) fn route_del(running: &mut Running, params: &[&str]) -> Answer {
    edit(running, Change::DelRoute(entries::prefix(params[0])?))
}

pub(super) fn route_show(running: &mut Running, _: &[&str]) -> Answer {
    value(running.service.route_reports())
}
