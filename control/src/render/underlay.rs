//! The underlay as an operator reads it.

use super::{dash, table};
use crate::api::report::{EndpointReport, HolderReport, NeighbourReport, PathReport, UnderlayReport};

/// `sluice underlay`: what there is of endpoints, neighbours and paths.
pub fn underlay(report: &UnderlayReport) -> String {
    if report.endpoints.is_empty() {
        return "no port has addresses for tunnels; add one of type vtep, or addresses to an internal port\n"
            .to_owned();
    }
    let mut tables = vec![endpoints(&report.endpoints)];
    if !report.neighbours.is_empty() {
        tables.push(neighbours(&report.neighbours));
    }
    if !report.paths.is_empty() {
        tables.push(paths(&report.paths));
    }
    tables.join("\n")
}

fn endpoints(endpoints: &[EndpointReport]) -> String {
    let holder = |holder| match holder {
        HolderReport::Sluice => "sluice",
        HolderReport::Kernel => "kernel",
    };
    let row = |e: &EndpointReport| {
        [e.port.clone(), e.bridge.clone(), e.mac.clone(), e.addresses.join(" "), holder(e.holder).to_owned()]
    };
    table(["endpoint", "bridge", "mac", "addresses", "held by"], endpoints.iter().map(row))
}

fn neighbours(neighbours: &[NeighbourReport]) -> String {
    let row = |n: &NeighbourReport| {
        let age = dash(n.age_s.map(|age| age.to_string()));
        [n.port.clone(), n.address.clone(), dash(n.mac.clone()), n.state.clone(), age]
    };
    table(["endpoint", "neighbour", "mac", "state", ">age s"], neighbours.iter().map(row))
}

fn paths(paths: &[PathReport]) -> String {
    table(["path to", ">mtu"], paths.iter().map(|path| [path.to.clone(), path.mtu.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_left_out() {
        let mut report = UnderlayReport { endpoints: vec![], neighbours: vec![], paths: vec![] };
        assert!(underlay(&report).starts_with("no port has addresses"));
        report.endpoints.push(EndpointReport {
            port: "vtep0".into(),
            bridge: "br-phy".into(),
            mac: "02:00:00:00:00:01".into(),
            addresses: vec!["192.0.2.1".into(), "2001:db8::1".into()],
            holder: HolderReport::Sluice,
        });
        assert_eq!(
            underlay(&report),
            "ENDPOINT  BRIDGE  MAC                ADDRESSES              HELD BY\n\
             vtep0     br-phy  02:00:00:00:00:01  192.0.2.1 2001:db8::1  sluice\n"
        );
        let neighbour = |mac: Option<&str>, state: &str| NeighbourReport {
            port: "vtep0".into(),
            bridge: "br-phy".into(),
            address: "192.0.2.2".into(),
            mac: mac.map(str::to_owned),
            state: state.into(),
            age_s: Some(3),
        };
        report.neighbours =
            vec![neighbour(Some("02:00:00:00:00:02"), "reachable"), neighbour(None, "failed")];
        report.paths.push(PathReport { to: "198.51.100.2".into(), mtu: 1400 });
        let text = underlay(&report);
        assert!(text.contains("vtep0     192.0.2.2  02:00:00:00:00:02  reachable      3\n"), "{text}");
        assert!(text.contains("vtep0     192.0.2.2  -                  failed         3\n"), "{text}");
        assert!(text.ends_with("\nPATH TO        MTU\n198.51.100.2  1400\n"), "{text}");
    }
}
