//! Segments, tunnels, neighbours and routes.

use super::{bytes, count, dash, table};
use crate::api::report::*;

/// How many names a cell of a table shows.
const SHOWN: usize = 4;

/// The first few of many.
fn few(names: Vec<String>) -> String {
    match names.len() {
        0 => "-".to_owned(),
        n if n <= SHOWN => names.join(" "),
        n => format!("{} and {} more", names[..SHOWN].join(" "), n - SHOWN),
    }
}

/// `sluice segment show`
pub fn segments(segments: &[SegmentReport]) -> String {
    let rows = segments.iter().map(|s| {
        let vtep = |v: &VtepReport| match v.age_s {
            Some(age) => format!("{} ({age} s)", v.address),
            None => v.address.clone(),
        };
        [
            s.name.clone(),
            s.bridge.clone(),
            dash(s.vlan.map(|vlan| vlan.to_string())),
            s.kind.clone(),
            dash(s.id.map(|id| id.to_string())),
            dash(s.outside.clone()),
            few(s.ports.clone()),
            few(s.vteps.iter().map(vtep).collect()),
            s.stations.to_string(),
            s.neighbours.to_string(),
        ]
    });
    let headings =
        ["segment", "bridge", ">vlan", "type", ">id", "outside", "ports", "vteps", ">macs", ">neighbours"];
    table(headings, rows)
}

/// `sluice tunnel show`: a line each, then why frames were dropped.
pub fn tunnels(tunnels: &[TunnelReport]) -> String {
    let traffic = |t: Traffic| format!("{} / {}", count(t.frames), bytes(t.bytes));
    let rows = tunnels.iter().map(|t| {
        [
            t.name.clone(),
            t.bridge.clone(),
            t.dst_port.map_or_else(|| t.kind.clone(), |port| format!("{}:{port}", t.kind)),
            dash(t.local.clone()),
            t.remote.clone(),
            t.key.clone(),
            t.segments.to_string(),
            t.carrier.clone(),
            t.listener.clone(),
            traffic(t.rx),
            traffic(t.tx),
        ]
    });
    let headings = [
        "tunnel",
        "bridge",
        "type",
        "local",
        "remote",
        "key",
        ">segments",
        "underlay",
        "listener",
        ">received",
        ">sent",
    ];
    let mut text = table(headings, rows);
    for tunnel in tunnels.iter().filter(|tunnel| !tunnel.drops.is_empty()) {
        let drops: Vec<_> =
            tunnel.drops.iter().map(|(reason, n)| format!("{} {reason}", count(*n))).collect();
        text += &format!("{}: dropped {}\n", super::one_line(&tunnel.name), drops.join(", "));
    }
    text
}

/// `sluice neigh show`
pub fn neighbours(entries: &[NeighReport]) -> String {
    let rows = entries.iter().map(|e| {
        let (segment, port) = (dash(e.segment.clone()), dash(e.port.clone()));
        [e.bridge.clone(), segment, port, e.address.clone(), e.mac.clone()]
    });
    table(["bridge", "segment", "port", "address", "mac"], rows)
}

/// `sluice route show`
pub fn routes(routes: &[RouteReport]) -> String {
    let rows = routes.iter().map(|r| {
        let origin = match r.origin {
            RouteOrigin::Configured => "configured",
            RouteOrigin::Connected => "connected",
            RouteOrigin::Kernel => "kernel",
        };
        [r.to.clone(), dash(r.via.clone()), r.port.clone(), dash(r.source.clone()), origin.to_owned()]
    });
    table(["to", "via", "port", "source", "origin"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentReport {
        SegmentReport {
            name: "blue".into(),
            bridge: "br-int".into(),
            vlan: None,
            number: 4096,
            kind: "vxlan".into(),
            id: Some(5001),
            outside: Some("vx".into()),
            learning: true,
            strict_peers: false,
            vteps: vec![
                VtepReport { address: "192.0.2.2".into(), age_s: None },
                VtepReport { address: "192.0.2.3".into(), age_s: Some(7) },
            ],
            ports: (1..=6).map(|n| format!("vm{n}")).collect(),
            stations: 3,
            neighbours: 1,
        }
    }

    #[test]
    fn a_segment_says_what_it_is_called_everywhere() {
        let text = segments(&[segment()]);
        let line = text.lines().nth(1).unwrap();
        for part in ["vxlan", "5001", "vm4 and 2 more", "192.0.2.2 192.0.2.3 (7 s)"] {
            assert!(line.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn a_tunnel_says_why_frames_were_dropped() {
        let tunnel = TunnelReport {
            name: "vx".into(),
            bridge: "br-int".into(),
            kind: "vxlan".into(),
            local: None,
            remote: "flow".into(),
            key: "flow".into(),
            dst_port: Some(4789),
            tos: "0".into(),
            ttl: "64".into(),
            df: true,
            csum: false,
            carrier: "host".into(),
            listener: "vx".into(),
            segments: 2,
            rx: Traffic { frames: 1200, bytes: 4096 },
            tx: Traffic::default(),
            drops: [("no-route".to_owned(), 3)].into(),
        };
        let text = tunnels(&[tunnel]);
        assert!(text.contains("vxlan:4789") && text.contains("1,200 / 4.0 KiB"), "{text}");
        assert!(text.ends_with("vx: dropped 3 no-route\n"), "{text}");
    }
}
