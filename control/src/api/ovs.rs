//! The verbs that Open vSwitch has too, in its words: scripts and people that read `ovs-appctl`'s output keep
//! reading it.

use dataplane::switch::Learn;
use flowtable::fdb::Counters;
use flowtable::text;
use serde_json::Value;

use super::report::{FdbReport, MdbReport, TraceReport};
use super::{Answer, verbs};
use crate::config::FdbConfig;
use crate::daemon::Running;
use crate::edit::Change;
use crate::model::{Bridge, LOCAL};
use crate::service::{FdbStats, Service};

pub(super) fn version(_: &mut Running, _: &[&str]) -> Answer {
    Ok(format!("sluice {}\n", env!("CARGO_PKG_VERSION")).into())
}

pub(super) fn exit(running: &mut Running, _: &[&str]) -> Answer {
    running.stop();
    Ok("".into())
}

pub(super) fn log(running: &mut Running, params: &[&str]) -> Answer {
    Ok(format!("{}\n", verbs::set_level(running, params)?.to_string().to_lowercase()).into())
}

fn bridge<'a>(service: &'a Service, name: &str) -> Result<Bridge<'a>, String> {
    service.model().bridge(name).ok_or_else(|| "no such bridge".to_owned())
}

fn ofport(number: u16) -> String {
    if number == LOCAL { "LOCAL".to_owned() } else { number.to_string() }
}

pub(super) fn fdb_show(running: &mut Running, params: &[&str]) -> Answer {
    let entries = running.service.fdb_reports(&bridge(&running.service, params[0])?);
    Ok(fdb_text(&entries).into())
}

fn fdb_text(entries: &[FdbReport]) -> String {
    let line = |e: &FdbReport| {
        let place = format!("{:>5}  {:>4}  {}", ofport(e.ofport), e.vlan, e.mac);
        match e.age_s {
            Some(age) => format!("{place}  {age:>3}\n"),
            None => format!("{place}  static\n"),
        }
    };
    let lines: String = entries.iter().map(line).collect();
    format!(" port  VLAN  MAC                Age\n{lines}")
}

pub(super) fn fdb_flush(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridges = match params {
        [name] => vec![bridge(service, name)?],
        _ => service.model().bridges().collect(),
    };
    for bridge in bridges {
        service.switch().fdb_flush(bridge.id, None);
    }
    Ok("table successfully flushed\n".into())
}

/// Static entries are in the file, as all that the operator says.
pub(super) fn fdb_add(running: &mut Running, params: &[&str]) -> Answer {
    bridge(&running.service, params[0])?;
    let entry = FdbConfig { port: Some(params[1].to_owned()), ..station(params[2], params[3])? };
    verbs::edit(running, Change::AddFdb { bridge: params[0].to_owned(), entries: vec![entry] })?;
    Ok("".into())
}

pub(super) fn fdb_del(running: &mut Running, params: &[&str]) -> Answer {
    bridge(&running.service, params[0])?;
    let entries = vec![station(params[1], params[2])?];
    verbs::edit(running, Change::DelFdb { bridge: params[0].to_owned(), entries })?;
    Ok("".into())
}

fn station(vlan: &str, mac: &str) -> Result<FdbConfig, String> {
    let vlan = Some(super::entries::vlan(vlan)?);
    let mac = mac.parse().map_err(|_| "bad MAC address".to_owned())?;
    Ok(FdbConfig { mac, vlan, ..FdbConfig::default() })
}

pub(super) fn fdb_stats(running: &mut Running, params: &[&str]) -> Answer {
    let stats = running.service.fdb_stats(&bridge(&running.service, params[0])?);
    Ok(fdb_stats_text(params[0], &stats).into())
}

fn fdb_stats_text(bridge: &str, stats: &FdbStats) -> String {
    let FdbStats { entries, size, fixed, counters } = stats;
    let Counters { learned, expired, evicted, moved, .. } = counters;
    format!(
        "Statistics for bridge \"{bridge}\":\n\
         \x20 Current/maximum MAC entries in the table: {entries}/{size}\n\
         \x20 Current static MAC entries in the table : {fixed}\n\
         \x20 Total number of learned MAC entries     : {learned}\n\
         \x20 Total number of expired MAC entries     : {expired}\n\
         \x20 Total number of evicted MAC entries     : {evicted}\n\
         \x20 Total number of port moved MAC entries  : {moved}\n"
    )
}

pub(super) fn mdb_flush(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridges = match params {
        [name] => vec![bridge(service, name)?],
        _ => service.model().bridges().collect(),
    };
    if let [off] = &bridges[..]
        && !off.config.mcast_snooping_enable
    {
        return Err("multicast snooping is disabled".to_owned());
    }
    bridges.iter().for_each(|bridge| service.switch().mdb_flush(bridge.id));
    Ok("table successfully flushed\n".into())
}

pub(super) fn mdb_show(running: &mut Running, params: &[&str]) -> Answer {
    let entries = running.service.mdb_reports(&bridge(&running.service, params[0])?);
    Ok(mdb_text(&entries).into())
}

fn mdb_text(entries: &[MdbReport]) -> String {
    let line = |e: &MdbReport| {
        let place = format!("{:>5}  {:>4}", ofport(e.ofport), e.vlan);
        match &e.group {
            Some(group) => format!("{place}  {group}         {:>3}\n", e.age_s),
            None => format!("{place}  querier             {:>3}\n", e.age_s),
        }
    };
    // As Open vSwitch: groups first, then queriers.
    let (groups, queriers): (Vec<_>, Vec<_>) = entries.iter().partition(|e| e.group.is_some());
    let lines: String = groups.into_iter().chain(queriers).map(line).collect();
    format!(" port  VLAN  GROUP                Age\n{lines}")
}

pub(super) fn dump_flows(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let names = match params {
        [] => Default::default(),
        ["--names"] => service.names(),
        [other, ..] => return Err(format!("unknown option \"{other}\"; expected --names")),
    };
    let name = |port| names.get(&port).map(|name: &&str| name.to_string());
    let now = service.switch().now();
    let lines = service.switch().flows();
    let lines: String = lines.iter().map(|flow| text::dump(flow, now, &name) + "\n").collect();
    Ok(Value::String(lines))
}

pub(super) fn trace(running: &mut Running, params: &[&str]) -> Answer {
    let service = &running.service;
    let bridge = service.model().bridge(params[0]).ok_or_else(|| format!("{}: unknown bridge", params[0]))?;
    let report = service.explain(&bridge, params[1], Learn::No)?;
    Ok(trace_text(params[0], &report).into())
}

fn trace_text(bridge: &str, report: &TraceReport) -> String {
    let title = format!("bridge(\"{bridge}\")");
    let rule = "-".repeat(title.len());
    let step =
        |s: &super::report::StepReport| format!("{:indent$}{}\n", "", s.text, indent = 4 + 4 * s.depth);
    let steps: String = report.steps.iter().map(step).collect();
    let TraceReport { flow, megaflow, actions, .. } = report;
    format!("Flow: {flow}\n\n{title}\n{rule}\n{steps}\nMegaflow: {megaflow}\nDatapath actions: {actions}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::report::StepReport;

    /// The lines Open vSwitch 3.1 prints for the same entries.
    #[test]
    fn the_fdb_reads_as_in_open_vswitch() {
        let entry = |ofport, vlan, age_s| FdbReport {
            bridge: "br0".into(),
            vlan,
            segment: None,
            mac: "02:00:00:00:00:01".into(),
            port: "p".into(),
            vtep: None,
            ofport,
            age_s,
        };
        let expected = " port  VLAN  MAC                Age\n\
                        \x20   2    10  02:00:00:00:00:01  static\n\
                        LOCAL     0  02:00:00:00:00:01    7\n";
        assert_eq!(fdb_text(&[entry(2, 10, None), entry(LOCAL, 0, Some(7))]), expected);
    }

    #[test]
    fn statistics_read_as_in_open_vswitch() {
        let counters = Counters { learned: 2, moved: 1, ..Counters::default() };
        let text = fdb_stats_text("br0", &FdbStats { entries: 3, size: 8192, fixed: 1, counters });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..2],
            ["Statistics for bridge \"br0\":", "  Current/maximum MAC entries in the table: 3/8192"]
        );
        assert_eq!(lines[6], "  Total number of port moved MAC entries  : 1");
    }

    #[test]
    fn the_mdb_reads_as_in_open_vswitch() {
        let entry = |group: Option<&str>| MdbReport {
            bridge: "br0".into(),
            vlan: 10,
            segment: None,
            group: group.map(str::to_owned),
            port: "p".into(),
            ofport: 2,
            age_s: 7,
        };
        let expected = " port  VLAN  GROUP                Age\n\
                        \x20   2    10  239.1.1.1           7\n\
                        \x20   2    10  querier               7\n";
        assert_eq!(mdb_text(&[entry(None), entry(Some("239.1.1.1"))]), expected);
    }

    #[test]
    fn a_trace_reads_as_in_open_vswitch() {
        let report = TraceReport {
            flow: "in_port=1".into(),
            steps: vec![StepReport { depth: 0, text: "flooding".into() }],
            megaflow: "in_port=1".into(),
            actions: "2".into(),
        };
        let expected = "Flow: in_port=1\n\nbridge(\"br0\")\n-------------\n    flooding\n\n\
                        Megaflow: in_port=1\nDatapath actions: 2\n";
        assert_eq!(trace_text("br0", &report), expected);
    }
}
