//! Rules of tunnel ports, and of addresses and routes in the underlay.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane::tunnel::Key;
use encap::tunnel::TunnelKind;

use super::Check;
use crate::config::{
    Cidr, Entity, PortConfig, PortKind, Remote, RouteConfig, TunnelConfig, VNI_MAX, tunnel_name,
};
use crate::host::stack::ADDRESSES;
use crate::problem::did_you_mean;
use crate::resolve::vtep_towards;

/// What two tunnel ports must not have in common: frames with it could have come in by either.
type Match = (TunnelKind, u16, Option<IpAddr>, Option<IpAddr>, Option<Option<u32>>);

fn matched(port: &PortConfig, kind: TunnelKind) -> Match {
    let tunnel = &port.tunnel;
    let key = match tunnel.wire_key(kind) {
        Key::Flow => None,
        Key::Absent => Some(None),
        Key::Fixed(key) => Some(Some(key)),
    };
    (kind, tunnel.port(kind), tunnel.local, tunnel.fixed_remote(), key)
}

impl<'a> Check<'a> {
    pub(super) fn each_port(&self) -> impl Iterator<Item = (Entity, &'a PortConfig)> + use<'a> {
        let bridges = self.config.bridges.iter().enumerate();
        bridges.flat_map(|(b, bridge)| {
            bridge.ports.iter().enumerate().map(move |(p, port)| (Entity::Port(b, p), port))
        })
    }

    /// Addresses are for VTEP ports, and each is one port's.
    pub(super) fn addresses(&mut self) {
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (entity, port) in self.each_port() {
            let name = &port.name;
            let message = match (port.kind, port.addresses.is_empty()) {
                (PortKind::Vtep, true) => {
                    format!(
                        "port `{name}` is a vtep, expected its addresses such as address = [\"192.0.2.1/24\"]"
                    )
                }
                (PortKind::Vtep, false) if port.addresses.len() > ADDRESSES => {
                    let count = port.addresses.len();
                    format!(
                        "port `{name}` has {count} addresses, expected at most {ADDRESSES}; add another vtep"
                    )
                }
                (PortKind::Vtep, false) => {
                    port.addresses.iter().for_each(|cidr| self.address((entity, port), cidr, &mut owners));
                    continue;
                }
                (_, false) => {
                    format!("port `{name}` has `address` and is no vtep; the kernel has a device's addresses")
                }
                (_, true) => continue,
            };
            self.report(entity, &["address", "type"], message);
        }
    }

    fn address(
        &mut self,
        (entity, port): (Entity, &'a PortConfig),
        cidr: &Cidr,
        owners: &mut BTreeMap<IpAddr, &'a str>,
    ) {
        if let Some(other) = owners.insert(cidr.address, &port.name) {
            let message = match other == port.name {
                true => format!("address {} is listed twice", cidr.address),
                false => {
                    format!("address {} of port `{}` is port `{other}`'s already", cidr.address, port.name)
                }
            };
            self.report(entity, &["address"], message);
        }
    }

    /// A route leads out by a port with addresses, to a router that is reached by it.
    pub(super) fn routes(&mut self) {
        let mut taken = BTreeMap::new();
        for (i, route) in self.config.routes.iter().enumerate() {
            let entity = Entity::Route(i);
            if taken.insert(route.to, i).is_some() {
                self.report(entity, &["to"], format!("there are two routes to {}", route.to));
            }
            self.route(entity, route);
        }
    }

    fn route(&mut self, entity: Entity, route: &RouteConfig) {
        let to = route.to;
        if let Some(via) = route.via {
            if via.is_ipv4() != to.address().is_ipv4() {
                let message = format!("the route to {to} is via {via}, an address of the other family");
                self.report(entity, &["via", "to"], message);
            } else if let Some(port) = self.own.endpoints.get(&via) {
                let message = format!("the route to {to} is via {via}, which is our own, of port `{port}`");
                self.report(entity, &["via"], message);
            }
        }
        let Some(name) = &route.port else {
            return match route.via {
                None => {
                    self.report(entity, &["to"], format!("the route to {to} has neither `via` nor `port`"))
                }
                Some(via) if vtep_towards(self.config, via).is_none() => {
                    let message = format!(
                        "no vtep port has an address in the network of {via}; say which `port` leads there"
                    );
                    self.report(entity, &["via"], message);
                }
                Some(_) => {}
            };
        };
        let message = match self.ports.get(name.as_str()) {
            Some((_, port)) if matches!(port.kind, PortKind::Vtep | PortKind::Internal) => return,
            Some(_) => {
                format!("the route to {to} leaves by port `{name}`, expected one of type vtep or internal")
            }
            None => {
                let ports = self.config.bridges.iter().flat_map(|bridge| &bridge.ports);
                let hint = did_you_mean(name, ports.map(|port| port.name.as_str()));
                format!("the route to {to} leaves by port `{name}`, which does not exist{hint}")
            }
        };
        self.report(entity, &["port"], message);
    }

    /// Tunnel ports, each for itself and against each other.
    pub(super) fn tunnels(&mut self) {
        let mut takers: BTreeMap<Match, &str> = BTreeMap::new();
        for (entity, port) in self.each_port() {
            let Some(kind) = port.tunnel_kind() else {
                self.no_tunnel(entity, port);
                continue;
            };
            self.tunnel_key((entity, port), kind);
            self.remote(entity, port);
            if port.is_flow_based() {
                self.carries_segments_only(entity, port);
            }
            let other = *takers.entry(matched(port, kind)).or_insert(&port.name);
            if other != port.name {
                let message = format!(
                    "tunnel ports `{other}` and `{}` would take the same frames; give them different local-ip, remote-ip \
                     or key",
                    port.name
                );
                self.report(entity, &["remote-ip", "local-ip", "key", "dst-port", "type"], message);
            }
        }
    }

    fn no_tunnel(&mut self, entity: Entity, port: &PortConfig) {
        let TunnelConfig { remote, local, key, dst_port, tos, ttl, df, csum, underlay } = port.tunnel;
        let given: [(bool, &'static [&'static str]); 9] = [
            (remote.is_some(), &["remote-ip", "type"]),
            (local.is_some(), &["local-ip", "type"]),
            (key != Key::Absent, &["key", "type"]),
            (dst_port.is_some(), &["dst-port", "type"]),
            (tos.is_some(), &["tos", "type"]),
            (ttl.is_some(), &["ttl", "type"]),
            (df.is_some(), &["df-default", "type"]),
            (csum.is_some(), &["csum", "type"]),
            (underlay.is_some(), &["underlay", "type"]),
        ];
        for (_, keys) in given.into_iter().filter(|(given, _)| *given) {
            let message = format!(
                "port `{}` has `{}` and is no tunnel port, expected type vxlan, gre or geneve",
                port.name, keys[0]
            );
            self.report(entity, keys, message);
        }
    }

    fn tunnel_key(&mut self, (entity, port): (Entity, &PortConfig), kind: TunnelKind) {
        let name = &port.name;
        match port.tunnel.key {
            Key::Fixed(key) if kind != TunnelKind::Gre && key > VNI_MAX => {
                let message = format!(
                    "key {key} of port `{name}` is no {} VNI, expected 0 to {VNI_MAX}",
                    tunnel_name(kind)
                );
                self.report(entity, &["key", "type"], message);
            }
            _ => {}
        }
        if kind == TunnelKind::Gre && port.tunnel.dst_port.is_some() {
            let message = format!("port `{name}` has a `dst-port`, and GRE has no ports");
            self.report(entity, &["dst-port", "type"], message);
        }
    }

    fn remote(&mut self, entity: Entity, port: &PortConfig) {
        let (name, tunnel) = (&port.name, &port.tunnel);
        match tunnel.remote {
            None => {
                let message =
                    format!("tunnel port `{name}` has no `remote-ip`, expected an address or \"flow\"");
                self.report(entity, &["remote-ip", "type"], message);
            }
            Some(Remote::Flow) if tunnel.key != Key::Flow => {
                let message = format!(
                    "tunnel port `{name}` has remote-ip \"flow\": segments say where frames go, so its key must be \
                     \"flow\", too; or set remote-ip to an address"
                );
                self.report(entity, &["remote-ip", "key"], message);
            }
            Some(Remote::Flow) => {}
            Some(Remote::Fixed(remote)) => self.fixed_remote((entity, port), remote),
        }
    }

    fn fixed_remote(&mut self, (entity, port): (Entity, &PortConfig), remote: IpAddr) {
        let name = &port.name;
        if let Some(local) = port.tunnel.local.filter(|local| local.is_ipv4() != remote.is_ipv4()) {
            let message = format!(
                "remote-ip {remote} and local-ip {local} of tunnel port `{name}` are of different families"
            );
            self.report(entity, &["remote-ip", "local-ip"], message);
        }
        if let Some(owner) = self.own.all.get(&remote) {
            let message = format!(
                "remote-ip {remote} of tunnel port `{name}` is our own address, of port `{owner}`: a tunnel loop"
            );
            self.report(entity, &["remote-ip"], message);
        }
    }

    /// What a flow-based port carries follows from the segments.
    fn carries_segments_only(&mut self, entity: Entity, port: &PortConfig) {
        if let Some(key) = super::segments::vlan_settings(port).next() {
            let message = format!(
                "tunnel port `{}` has key \"flow\": it carries the segments that name it, not VLANs; leave `{}` out",
                port.name, key[0]
            );
            self.report(entity, key, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use crate::model::Model;

    #[test]
    fn a_vtep_has_as_many_addresses_as_its_stack_takes() {
        let with = |count: usize| {
            let addresses: Vec<String> = (1..=count).map(|n| format!("'192.0.2.{n}/24'")).collect();
            let port = format!("{{ name = 'v', type = 'vtep', address = [{}] }}", addresses.join(", "));
            parse(&format!("bridge = [{{ name = 'b', port = [{port}] }}]")).and_then(Model::new)
        };
        assert!(with(7).is_ok());
        let problems = with(8).unwrap_err().to_string();
        assert!(
            problems.contains("port `v` has 8 addresses, expected at most 7; add another vtep"),
            "{problems}"
        );
    }
}
