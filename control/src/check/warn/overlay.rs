//! What is legal, and likely not meant, of segments and tunnels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::tables::VlanSet;
use dataplane::tunnel::{Carrier, Key};
use encap::tunnel::TunnelKind;

use crate::compile::DEFAULT_MTU;
use crate::config::{BridgeConfig, Config, PortConfig, PortKind, SegmentConfig, SegmentKind};
use crate::resolve::{Names, Own};

/// How many names a warning lists.
const NAMED: usize = 3;
/// Bytes of an Ethernet header, which inner frames have.
const ETHERNET: u16 = 14;

/// One bridge, with all that is known of it.
pub(super) struct Overlay<'a> {
    pub config: &'a Config,
    pub bridge: &'a BridgeConfig,
    pub names: &'a Names<'a>,
    pub own: &'a Own<'a>,
    /// The VLANs that each port carries.
    pub carried: &'a BTreeMap<&'a str, VlanSet>,
}

impl<'a> Overlay<'a> {
    /// O(n log n) in ports, segments and entries; for each tunnel O(VLANs) for each port whose MTU is too big.
    pub fn warnings(&self) -> Vec<String> {
        let tunnels: Vec<&PortConfig> =
            self.bridge.ports.iter().filter(|port| port.tunnel_kind().is_some()).collect();
        let mut warnings: Vec<String> = tunnels.iter().filter_map(|port| self.fallback(port)).collect();
        let by_tunnel = self.by_tunnel();
        for port in tunnels {
            let segments = by_tunnel.get(port.name.as_str()).map_or(&[][..], Vec::as_slice);
            if port.is_flow_based() && segments.is_empty() {
                warnings.push(format!("no segment uses tunnel port `{}`", port.name));
            }
            warnings.extend(self.too_long(port, segments));
        }
        warnings.extend(self.empty());
        warnings.extend(self.unreachable());
        let ignores = |s: &&SegmentConfig| !s.learning && !matches!(s.kind, SegmentKind::Tunnel(_));
        let message =
            |s: &SegmentConfig| format!("segment `{}` ignores `learning`: it is in no tunnel", s.name);
        warnings.extend(self.bridge.segments.iter().filter(ignores).map(message));
        warnings
    }

    fn by_tunnel(&self) -> BTreeMap<&'a str, Vec<&'a SegmentConfig>> {
        let mut by_tunnel: BTreeMap<&str, Vec<&SegmentConfig>> = BTreeMap::new();
        for segment in &self.bridge.segments {
            let tunnel = self.names.tunnel(segment).ok();
            tunnel.into_iter().for_each(|port| by_tunnel.entry(&port.name).or_default().push(segment));
        }
        by_tunnel
    }

    fn fallback(&self, port: &PortConfig) -> Option<String> {
        let fallen = port.tunnel.underlay.is_none() && self.own.carrier(port) == Carrier::Host;
        let whose =
            port.tunnel.local.map_or("no address".to_owned(), |local| format!("no vtep port with {local}"));
        fallen.then(|| {
            format!(
                "tunnel port `{}` rides on the host's IP stack, as this switch has {whose}: every outer packet passes the \
                 kernel's stack and a socket, at more cost; add a vtep port, or say underlay = \"host\" if that \
                 is meant, or \"switch\" if an internal port has the address",
                port.name
            )
        })
    }

    /// Ports whose packets do not fit into a tunnel.
    fn too_long(&self, tunnel: &PortConfig, segments: &[&SegmentConfig]) -> Option<String> {
        let underlay = self.underlay_mtu(tunnel)?;
        let overhead = overhead(tunnel, segments)?;
        let most = underlay.saturating_sub(overhead);
        let joined: BTreeSet<&str> = segments.iter().map(|segment| segment.name.as_str()).collect();
        let vlans = &self.carried[tunnel.name.as_str()];
        let in_tunnel = |port: &&PortConfig| {
            let by_name = port.segment.as_deref().is_some_and(|name| joined.contains(name));
            by_name || self.carried[port.name.as_str()].iter().any(|vlan| vlans.contains(vlan))
        };
        let too_long = self.bridge.ports.iter().filter(|port| known_mtu(port).is_some_and(|mtu| mtu > most));
        let ports: Vec<&str> = too_long.filter(in_tunnel).map(|port| port.name.as_str()).collect();
        (!ports.is_empty()).then(|| {
            format!(
                "{} may send longer packets than tunnel port `{}` carries, {most} bytes (the underlay's {underlay} less \
                 {overhead} of headers): they are refused or dropped; set `mtu` to {most}, or raise the underlay's",
                few("port", &ports),
                tunnel.name
            )
        })
    }

    /// The longest packet of the underlay, as far as the configuration tells.
    fn underlay_mtu(&self, tunnel: &PortConfig) -> Option<u16> {
        if self.own.carrier(tunnel) == Carrier::Host {
            return None;
        }
        let is_end = |port: &PortConfig| {
            let local = |local| port.addresses.iter().any(|cidr| cidr.address == local);
            port.kind == PortKind::Vtep && tunnel.tunnel.local.is_none_or(local)
        };
        let bridges = self.config.bridges.iter();
        let under = bridges.filter(|bridge| bridge.ports.iter().any(is_end));
        // Other ports there are wires or guests; a guest's MTU says nothing about the wire.
        let mtus = under.flat_map(|bridge| &bridge.ports).filter(|port| is_end(port));
        mtus.map(|port| port.mtu.unwrap_or(DEFAULT_MTU)).min()
    }

    /// Segments that no port is in.
    fn empty(&self) -> Option<String> {
        let mut vlans = VlanSet::empty();
        let uplinks: BTreeSet<&str> =
            self.bridge.segments.iter().filter_map(|segment| segment.uplink.as_deref()).collect();
        let outside = |port: &PortConfig| port.is_flow_based() || uplinks.contains(port.name.as_str());
        for port in self.bridge.ports.iter().filter(|port| !outside(port)) {
            self.carried[port.name.as_str()].iter().for_each(|vlan| vlans.insert(vlan));
        }
        let joined: BTreeSet<&str> =
            self.bridge.ports.iter().filter_map(|port| port.segment.as_deref()).collect();
        let has_port = |segment: &SegmentConfig| {
            joined.contains(segment.name.as_str()) || segment.vlan.is_some_and(|vlan| vlans.contains(vlan))
        };
        let segments = self.bridge.segments.iter().filter(|segment| !has_port(segment));
        let empty: Vec<&str> = segments.map(|segment| segment.name.as_str()).collect();
        (!empty.is_empty())
            .then(|| format!("no port is in {} of bridge `{}`", few("segment", &empty), self.bridge.name))
    }

    /// Segments in tunnels that take no frame, or send none.
    fn unreachable(&self) -> Vec<String> {
        let entries = self.bridge.fdb.iter().filter(|entry| entry.vtep.is_some());
        let told: BTreeSet<&str> =
            entries.filter_map(|entry| Some(self.names.segment_of(entry)?.name.as_str())).collect();
        let lonely = self.bridge.segments.iter().filter(|segment| {
            let remote = self.names.tunnel(segment).map(|tunnel| tunnel.tunnel.fixed_remote());
            remote == Ok(None) && segment.vteps.is_empty() && !told.contains(segment.name.as_str())
        });
        let message = |segment: &SegmentConfig| {
            let name = &segment.name;
            if segment.strict_peers {
                Some(format!(
                    "segment `{name}` has strict-peers and no `vteps`: all that comes from tunnels is dropped"
                ))
            } else if !segment.learning {
                Some(format!("segment `{name}` has no `vteps` and learns none: nothing leaves by its tunnel"))
            } else {
                None
            }
        };
        lonely.filter_map(message).collect()
    }
}

/// The MTU of a port that is no tunnel, if the configuration tells.
fn known_mtu(port: &PortConfig) -> Option<u16> {
    match port.kind {
        PortKind::Tunnel(_) | PortKind::Patch => None,
        PortKind::Internal => Some(port.mtu.unwrap_or(DEFAULT_MTU)),
        _ => port.mtu,
    }
}

/// Bytes of a tunnel's headers in an outer IP packet, inner Ethernet header included.
fn overhead(tunnel: &PortConfig, segments: &[&SegmentConfig]) -> Option<u16> {
    let ends = [tunnel.tunnel.local, tunnel.tunnel.fixed_remote()].into_iter().flatten();
    let ipv6 =
        ends.chain(segments.iter().flat_map(|s| s.vteps.iter().copied())).any(|end: IpAddr| end.is_ipv6());
    let kind = tunnel.tunnel_kind()?;
    let within = match kind {
        TunnelKind::Vxlan | TunnelKind::Geneve => 8 + 8,
        TunnelKind::Gre => {
            let key = if tunnel.tunnel.wire_key(kind) == Key::Absent { 0 } else { 4 };
            4 + key + if tunnel.tunnel.csum == Some(true) { 4 } else { 0 }
        }
    };
    Some(if ipv6 { 40 } else { 20 } + within + ETHERNET)
}

/// ``port `a` ``, ``ports `a`, `b`, `c` and 3 more``.
fn few(what: &str, names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{what}{plural} {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
