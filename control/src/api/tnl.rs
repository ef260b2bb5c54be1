//! Open vSwitch's verbs about the underlay, `tnl/...` and `ovs/route/...`, in the words of its version 3.1
//! (lib/tnl-neigh-cache.c, lib/ovs-router.c, lib/tnl-ports.c).
//!
//! Where it names a bridge, whose local port has the addresses, any port with addresses of ours may be named.

use std::net::IpAddr;

use encap::field::MacAddr;
use encap::tunnel::TunnelKind;

use super::{Answer, entries, verbs};
use crate::config::RouteConfig;
use crate::daemon::Running;
use crate::edit::Change;
use crate::service::{Listener, RouteEntry};

pub(super) fn neigh_show(running: &mut Running, _: &[&str]) -> Answer {
    Ok(neigh_text(&running.service.known_neighbours()).into())
}

fn neigh_text(known: &[(IpAddr, MacAddr, String)]) -> String {
    let line = |(address, mac, bridge): &(IpAddr, MacAddr, String)| {
        format!("{:<46}{mac}   {bridge}\n", address.to_string())
    };
    let lines: String = known.iter().map(line).collect();
    let rule = "=".repeat(74);
    format!("{:<46}{:<20}Bridge\n{rule}\n{lines}", "IP", "MAC")
}

pub(super) fn neigh_set(running: &mut Running, params: &[&str]) -> Answer {
    let address = params[1].parse().map_err(|_| "bad IP address".to_owned())?;
    let mac = params[2].parse().map_err(|_| "bad MAC address".to_owned())?;
    running.service.set_neighbour(params[0], address, mac)?;
    Ok("OK\n".into())
}

pub(super) fn neigh_flush(running: &mut Running, _: &[&str]) -> Answer {
    running.service.flush_neighbours();
    Ok("OK\n".into())
}

pub(super) fn ports_show(running: &mut Running, params: &[&str]) -> Answer {
    let listeners = running.service.listeners();
    let lines: String = match params {
        ["-v"] => {
            let own = running.service.own_addresses();
            let own: Vec<(IpAddr, MacAddr)> =
                own.into_iter().map(|(address, (_, mac))| (address, mac)).collect();
            listeners.iter().map(|listener| listening_text(listener, &own)).collect()
        }
        _ => listeners.iter().map(|l| format!("{} ({}) ref_cnt={}\n", device(l), l.port, l.ports)).collect(),
    };
    Ok(format!("Listening ports:\n{lines}").into())
}

/// What Open vSwitch calls the device behind such tunnels.
fn device(listener: &Listener) -> String {
    match listener.kind {
        TunnelKind::Vxlan => format!("vxlan_sys_{}", listener.dst_port),
        TunnelKind::Geneve => format!("genev_sys_{}", listener.dst_port),
        TunnelKind::Gre => "gre_sys".to_owned(),
    }
}

/// What it listens to, on each address.
fn listening_text(listener: &Listener, own: &[(IpAddr, MacAddr)]) -> String {
    let Listener { port, kind, dst_port, .. } = listener;
    let device = device(listener);
    let line = |(address, mac): &(IpAddr, MacAddr)| {
        let (eth_type, ip) = if address.is_ipv4() { ("0x0800", "ipv4") } else { ("0x86dd", "ipv6") };
        let (proto, udp) = match kind {
            TunnelKind::Gre => (47, String::new()),
            TunnelKind::Vxlan | TunnelKind::Geneve => (17, format!(",udp(dst={dst_port})")),
        };
        format!(
            "{device} ({port}) : eth(dst={mac}),eth_type({eth_type}),{ip}(dst={address},proto={proto},frag=no){udp}\n"
        )
    };
    own.iter().map(line).collect()
}

pub(super) fn route_show(running: &mut Running, _: &[&str]) -> Answer {
    let service = &running.service;
    let own = service.own_addresses();
    let local = own.iter().map(|(address, (port, _))| {
        let len = if address.is_ipv4() { 32 } else { 128 };
        format!("Cached: {address}/{len} dev {} SRC {address} local\n", service.port_name(*port))
    });
    let routes = service.route_entries();
    let routes = routes.iter().map(|entry| route_text(entry, &service.port_name(entry.route.endpoint)));
    Ok(format!("Route Table:\n{}", local.chain(routes).collect::<String>()).into())
}

fn route_text(entry: &RouteEntry, device: &str) -> String {
    let origin = if entry.configured { "User" } else { "Cached" };
    let gateway = entry.route.via.map_or_else(String::new, |via| format!(" GW {via}"));
    let source = entry.source.map_or_else(String::new, |source| format!(" SRC {source}"));
    format!("{origin}: {} dev {device}{gateway}{source}\n", entry.to)
}

/// A route of Open vSwitch's is one of the configuration: it is still there after a restart.
pub(super) fn route_add(running: &mut Running, params: &[&str]) -> Answer {
    let invalid = || "Invalid 'ip/plen' parameter".to_owned();
    let to = entries::prefix(params[0]).map_err(|_| invalid())?;
    let gateway = |text: &&str| text.parse().map_err(|_| "Invalid pkt_mark or IP gateway".to_owned());
    let via = params.get(2).map(gateway).transpose()?;
    let service = &running.service;
    let port = service.endpoint_named(params[1], via.unwrap_or(to.address()));
    let port = service.port_name(port.map_err(|_| "Error while inserting route.".to_owned())?);
    verbs::edit(running, Change::AddRoute(RouteConfig { to, via, port: Some(port) }))?;
    Ok("OK\n".into())
}

pub(super) fn route_del(running: &mut Running, params: &[&str]) -> Answer {
    let to = entries::prefix(params[0]).map_err(|_| "Invalid parameters".to_owned())?;
    if running.service.model().config().routes.iter().all(|route| route.to != to) {
        return Err("Not found".to_owned());
    }
    verbs::edit(running, Change::DelRoute(to))?;
    Ok("OK\n".into())
}

pub(super) fn route_lookup(running: &mut Running, params: &[&str]) -> Answer {
    let address = host(params[0]).ok_or_else(|| "Invalid parameters".to_owned())?;
    let (hop, via, device) = running.service.way_to(address).ok_or_else(|| "Not found".to_owned())?;
    let gateway = via.map_or_else(|| "::".to_owned(), |via| via.to_string());
    Ok(format!("src {}\ngateway {gateway}\ndev {device}\n", hop.source).into())
}

/// An address, with or without the length that makes it one.
fn host(text: &str) -> Option<IpAddr> {
    let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { "32" } else { "128" };
    len.is_none_or(|len| len == width).then_some(address)
}

#[cfg(test)]
mod tests {
    use dataplane::underlay::Route;
    use flowtable::id::PortId;
    use flowtable::lpm::Prefix;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// What Open vSwitch 3.1 prints for the same entries.
    #[test]
    fn neighbours_read_as_in_open_vswitch() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let known = [(ip("2001:db8::2"), mac(3), "br0".into()), (ip("192.0.2.2"), mac(2), "br0".into())];
        let expected = "\
IP                                            MAC                 Bridge
==========================================================================
2001:db8::2                                   02:00:00:00:00:03   br0
192.0.2.2                                     02:00:00:00:00:02   br0
";
        assert_eq!(neigh_text(&known), expected);
    }

    #[test]
    fn listeners_read_as_in_open_vswitch() {
        let own = [
            (ip("192.0.2.1"), MacAddr([0x7e, 0xc7, 0x19, 0x41, 0x51, 0x40])),
            (ip("2001:db8::1"), MacAddr([0x7e, 0xc7, 0x19, 0x41, 0x51, 0x40])),
        ];
        let listener = |port, kind, dst_port| Listener { port: PortId(port), kind, dst_port, ports: 1 };
        assert_eq!(
            listening_text(&listener(4, TunnelKind::Geneve, 6082), &own[..1]),
            "genev_sys_6082 (4) : eth(dst=7e:c7:19:41:51:40),eth_type(0x0800),\
             ipv4(dst=192.0.2.1,proto=17,frag=no),udp(dst=6082)\n"
        );
        assert_eq!(
            listening_text(&listener(5, TunnelKind::Gre, 0), &own[1..]),
            "gre_sys (5) : eth(dst=7e:c7:19:41:51:40),eth_type(0x86dd),ipv6(dst=2001:db8::1,proto=47,frag=no)\n"
        );
    }

    #[test]
    fn routes_read_as_in_open_vswitch() {
        let to = |text: &str, len| Prefix::new(ip(text), len).unwrap();
        let route = |via: Option<&str>| Route { endpoint: PortId(1), via: via.map(ip), source: None };
        let entry = |to, via, configured| RouteEntry {
            to,
            route: route(via),
            source: Some(ip("192.0.2.1")),
            configured,
        };
        assert_eq!(
            route_text(&entry(to("20.0.0.0", 8), Some("192.0.2.254"), true), "br0"),
            "User: 20.0.0.0/8 dev br0 GW 192.0.2.254 SRC 192.0.2.1\n"
        );
        assert_eq!(
            route_text(&entry(to("192.0.2.0", 24), None, false), "br0"),
            "Cached: 192.0.2.0/24 dev br0 SRC 192.0.2.1\n"
        );
    }

    #[test]
    fn a_host_may_have_its_length() {
        assert_eq!(host("192.0.2.1"), Some(ip("192.0.2.1")));
        assert_eq!(host("192.0.2.1/32"), Some(ip("192.0.2.1")));
        assert_eq!(host("2001:db8::1/128"), Some(ip("2001:db8::1")));
        assert_eq!((host("192.0.2.0/24"), host("2001:db8::/32"), host("x")), (None, None, None));
    }
}
