//! Reports as an operator reads them: plain aligned tables without borders, units a person can take in.

mod overlay;
mod poller;
mod underlay;
mod vhost;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::api::report::*;

pub use overlay::*;
pub use poller::{perf, pollers};
pub use underlay::underlay;

/// A table with these headings; those that begin with `>` head columns of numbers, flush right.
fn table<const N: usize>(headings: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(headings.map(|h| h.trim_start_matches('>').to_uppercase()).to_vec());
    table.add_rows(rows.map(|row| row.map(|cell| one_line(&cell)).to_vec()));
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Text from elsewhere must not break the table, nor reach the terminal's controls.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `1234567` as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|g| String::from_utf8_lossy(g).into_owned()).collect::<Vec<_>>().join(",")
}

/// Bytes in binary units, four digits at most: `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds as `2d 03:04:05`.
fn uptime(s: u64) -> String {
    let (days, hours, minutes) = (s / 86400, s / 3600 % 24, s / 60 % 60);
    let days = if days > 0 { format!("{days}d ") } else { String::new() };
    format!("{days}{hours:02}:{minutes:02}:{:02}", s % 60)
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

fn dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn state(port: &PortReport) -> &'static str {
    match port.state {
        PortState::Up => "up",
        PortState::Down => "down",
        PortState::Error => "error",
    }
}

/// The type obtained, and why nothing better.
fn attachment(port: &PortReport) -> String {
    let obtained = port.obtained.as_deref().unwrap_or("-");
    match &port.because {
        Some(reason) => format!("{obtained} because {reason}"),
        None => obtained.to_owned(),
    }
}

/// `sluice show`: every bridge with its ports.
pub fn overview(o: &Overview) -> String {
    let mut text = format!(
        "sluice {} (process {}), up {}\nconfiguration {}, generation {}\n{}",
        o.version,
        o.pid,
        uptime(o.uptime_s),
        one_line(&o.config),
        o.generation,
        flow_cache(&o.flow_cache)
    );
    if let Some(reason) = &o.umem_refused {
        text += &format!("no UMEM, so no AF_XDP: {}\n", one_line(reason));
    }
    for bridge in &o.bridges {
        text += &format!("\nbridge {}  datapath id {}\n", one_line(&bridge.name), bridge.datapath_id);
        let rows: Vec<_> = o.ports.iter().filter(|p| p.bridge == bridge.name).map(summary).collect();
        if rows.is_empty() {
            text += "  no ports\n";
            continue;
        }
        let lines = table([">no", "port", "type", "state", "vlan", ">mtu"], rows.into_iter());
        text.extend(lines.lines().map(|line| format!("  {line}\n")));
    }
    text
}

fn summary(port: &PortReport) -> [String; 6] {
    [
        port.ofport.to_string(),
        port.name.clone(),
        dash(port.obtained.clone().or_else(|| Some(port.asked.clone()))),
        state(port).to_owned(),
        port.vlan.clone(),
        dash(port.mtu.map(|mtu| mtu.to_string())),
    ]
}

/// `sluice bridge show`
pub fn bridges(bridges: &[BridgeReport]) -> String {
    let rows = bridges.iter().map(|b| {
        [
            b.name.clone(),
            b.datapath_id.clone(),
            b.ports.len().to_string(),
            format!("{} / {}", count(b.mac_entries as u64), count(b.mac_table_size as u64)),
            format!("{} s", b.mac_aging_time),
            if b.mcast_snooping_enable { "on" } else { "off" }.to_owned(),
            if b.forward_bpdu { "forwarded" } else { "dropped" }.to_owned(),
        ]
    });
    table(["bridge", "datapath id", ">ports", ">macs", ">aging", "snooping", "bpdu"], rows)
}

/// `sluice port show`: a line each, then what is wrong with those that do not work.
pub fn ports(ports: &[PortReport]) -> String {
    let rows = ports.iter().map(|p| {
        let dropped = p.drops.values().sum();
        [
            p.name.clone(),
            p.bridge.clone(),
            p.ofport.to_string(),
            p.asked.clone(),
            p.obtained.clone().unwrap_or_else(|| "-".to_owned()),
            state(p).to_owned(),
            dash(p.mtu.map(|mtu| mtu.to_string())),
            p.vlan.clone(),
            count(p.rx.frames),
            count(p.tx.frames),
            count(dropped),
        ]
    });
    let headings =
        ["port", "bridge", ">no", "asked", "obtained", "state", ">mtu", "vlan", ">rx", ">tx", ">dropped"];
    let mut text = table(headings, rows);
    for port in ports {
        let why = port.error.iter().cloned().chain(port.because.as_ref().map(|_| attachment(port)));
        text.extend(why.map(|line| format!("{}: {}\n", one_line(&port.name), one_line(&line))));
    }
    text
}

/// `sluice port show NAME`: everything about one port.
pub fn port(p: &PortReport) -> String {
    let traffic = |t: Traffic| format!("{} frames, {}", count(t.frames), bytes(t.bytes));
    let mut lines = vec![
        ("port", p.name.clone()),
        ("bridge", format!("{}, OpenFlow port {}", p.bridge, p.ofport)),
        ("asked", p.asked.clone()),
        ("obtained", attachment(p)),
        ("state", state(p).to_owned()),
    ];
    lines.extend(p.error.clone().map(|error| ("error", error)));
    lines.extend(p.vhost.iter().flat_map(vhost::lines));
    lines.extend([
        ("mtu", dash(p.mtu.map(|mtu| mtu.to_string()))),
        ("vlan", p.vlan.clone()),
        ("queues", p.queues.to_string()),
        ("received", traffic(p.rx)),
        (
            "missed",
            format!("{} frames found no room, {} were broken", count(p.rx_missed), count(p.rx_errors)),
        ),
        ("sent", traffic(p.tx)),
    ]);
    let drops = p.drops.iter().map(|(reason, n)| ("dropped", format!("{} {reason}", count(*n))));
    lines.extend(drops);
    lines.into_iter().map(|(key, value)| format!("{key:<10}{}\n", one_line(&value))).collect()
}

/// The VLAN of a segment's number, if that is one.
fn vlan(number: u32) -> String {
    if number < 4096 { number.to_string() } else { "-".to_owned() }
}

/// `sluice fdb show`
pub fn fdb(entries: &[FdbReport]) -> String {
    let rows = entries.iter().map(|e| {
        let age = e.age_s.map_or("static".to_owned(), |s| format!("{s} s"));
        let (segment, vtep) = (dash(e.segment.clone()), dash(e.vtep.clone()));
        [e.bridge.clone(), vlan(e.vlan), segment, e.mac.clone(), e.port.clone(), vtep, age]
    });
    table(["bridge", ">vlan", "segment", "mac", "port", "vtep", ">age"], rows)
}

/// `sluice mdb show`
pub fn mdb(entries: &[MdbReport]) -> String {
    let rows = entries.iter().map(|e| {
        let group = e.group.clone().unwrap_or_else(|| "querier".to_owned());
        let segment = dash(e.segment.clone());
        [e.bridge.clone(), vlan(e.vlan), segment, group, e.port.clone(), format!("{} s", e.age_s)]
    });
    table(["bridge", ">vlan", "segment", "group", "port", ">age"], rows)
}

/// `sluice flow show`
pub fn flows(flows: &[FlowReport]) -> String {
    let rows = flows.iter().map(|f| {
        let used = f.used_s.map_or("never".to_owned(), |s| format!("{s:.1} s ago"));
        [f.matches.clone(), f.actions.clone(), count(f.frames), bytes(f.bytes), used]
    });
    table(["match", "actions", ">frames", ">bytes", ">used"], rows)
}

/// `sluice trace`: the steps as a tree, then the verdict.
pub fn trace(t: &TraceReport) -> String {
    let mut text = format!("flow: {}\n\n", one_line(&t.flow));
    text.extend(
        t.steps.iter().map(|s| format!("{:indent$}{}\n", "", one_line(&s.text), indent = 2 * s.depth)),
    );
    text + &format!("\nmegaflow: {}\nverdict: {}\n", one_line(&t.megaflow), one_line(&t.actions))
}

fn flow_cache(c: &FlowCacheReport) -> String {
    let (flows, masks) = (count(c.flows as u64), count(c.masks as u64));
    let mut text = format!("{flows} of {} flows", count(c.flow_limit as u64));
    text += &format!(" under {masks} of {} masks", count(c.mask_limit as u64));
    let losses = [
        ("evicted", c.evicted),
        ("refused, full", c.refused_full),
        ("refused, too many masks", c.refused_masks),
    ];
    for (what, frames) in losses.into_iter().filter(|(_, n)| *n > 0) {
        text += &format!(", {} {what}", count(frames));
    }
    text + "\n"
}

/// `sluice ledger`
pub fn ledger(l: &LedgerReport) -> String {
    let (rx, created, tx, dropped, held) =
        (count(l.received), count(l.created), count(l.sent), count(l.dropped), count(l.held));
    let verdict = if l.balances { "it adds up" } else { "IT DOES NOT ADD UP: frames were lost or invented" };
    format!("{rx} received + {created} created = {tx} sent + {dropped} dropped + {held} held: {verdict}\n")
}

/// `sluice drops`
pub fn drops(drops: &[DropReport]) -> String {
    let rows = drops.iter().map(|d| [d.port.clone(), d.reason.clone(), count(d.frames)]);
    table(["port", "reason", ">frames"], rows)
}

/// What a change did, for those who asked for it.
pub fn applied(a: &ApplyReport) -> String {
    let list = |what: &str, ports: &[String]| match ports {
        [] => String::new(),
        ports => format!("{what} {}\n", one_line(&ports.join(", "))),
    };
    let mut text = list("opened", &a.opened) + &list("closed", &a.closed) + &list("reopened", &a.reopened);
    text += &list("takes a restart:", &a.needs_restart);
    text + &format!("{} ports untouched\n", a.untouched)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_report() -> PortReport {
        PortReport {
            name: "eth1".into(),
            bridge: "br0".into(),
            ofport: 1,
            asked: "system".into(),
            obtained: Some("afpacket".into()),
            because: Some("the driver has no XDP".into()),
            state: PortState::Up,
            error: None,
            mtu: Some(1500),
            vlan: "access 10".into(),
            queues: 1,
            rx: Traffic { frames: 1234567, bytes: 5 << 30 },
            tx: Traffic { frames: 9, bytes: 900 },
            rx_missed: 0,
            rx_errors: 0,
            drops: [("over-mtu".to_owned(), 3)].into(),
            vhost: None,
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([count(0), count(999), count(1000), count(1234567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [bytes(1023), bytes(1536), bytes(1 << 20), bytes(u64::MAX)],
            ["1023 B", "1.5 KiB", "1.0 MiB", "16.0 EiB"]
        );
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!([uptime(59), uptime(90061)], ["00:00:59", "1d 01:01:01"]);
    }

    #[test]
    fn columns_are_aligned() {
        let second = PortReport { name: "a-long-name".into(), state: PortState::Error, ..port_report() };
        let text = ports(&[port_report(), second]);
        let lines: Vec<_> = text.lines().collect();
        let column = |line: &str, word: &str| line.find(word).unwrap();
        assert_eq!(column(lines[0], "BRIDGE"), column(lines[1], "br0"));
        assert_eq!(column(lines[1], "br0"), column(lines[2], "br0"));
        assert_eq!(column(lines[0], "RX") + 2, column(lines[1], "1,234,567") + 9, "numbers are flush right");
        assert_eq!(lines[3], "eth1: afpacket because the driver has no XDP");
    }

    #[test]
    fn one_port_shows_everything() {
        let text = port(&port_report());
        for part in ["asked     system", "obtained  afpacket because the driver", "5.0 GiB", "3 over-mtu"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn a_vm_shows_what_was_negotiated() {
        let vhost = VhostReport {
            socket: "/run/vm0".into(),
            role: "server".into(),
            connected: true,
            features: vec!["CSUM".into(), "VERSION_1".into()],
            protocol_features: vec!["MQ".into()],
            pairs: 1,
            rings: vec![256, 512],
            memory: 4 << 30,
            connections: 3,
            resets: 1,
            last_error: Some("a descriptor out of range".into()),
        };
        let text = port(&PortReport { vhost: Some(vhost.clone()), ..port_report() });
        for part in [
            "socket    /run/vm0 (server)",
            "vm        connected, 3 connections, 1 resets",
            "features  CSUM VERSION_1",
            "protocol  MQ",
            "rings     1 queue pairs, entries: 256 512",
            "memory    4.0 GiB",
            "last      a descriptor out of range",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let gone = VhostReport { connected: false, ..vhost };
        assert!(!port(&PortReport { vhost: Some(gone), ..port_report() }).contains("CSUM"));
    }

    #[test]
    fn controls_do_not_reach_the_terminal() {
        let evil = PortReport { name: "\x1b[31mred\nline".into(), ..port_report() };
        assert!(!ports(std::slice::from_ref(&evil)).contains('\x1b'));
        assert!(!port(&evil).contains('\x1b'));
    }

    #[test]
    fn a_trace_is_a_tree_with_a_verdict() {
        let step = |depth, text: &str| StepReport { depth, text: text.into() };
        let report = TraceReport {
            flow: "in_port=1".into(),
            steps: vec![step(0, "bridge br0"), step(1, "vlan 10")],
            megaflow: "in_port(1)".into(),
            actions: "2".into(),
        };
        let expected = "flow: in_port=1\n\nbridge br0\n  vlan 10\n\nmegaflow: in_port(1)\nverdict: 2\n";
        assert_eq!(trace(&report), expected);
    }
}
