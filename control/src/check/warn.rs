//! What is legal, and likely not meant.

mod overlay;

use std::collections::{BTreeMap, BTreeSet};

use dataplane::tables::{VlanMode, VlanSet};
use encap::field::{EtherType, VlanId};

use super::{frames_needed, xdp_queues};
use crate::compile::vlan_config;
use crate::config::{BridgeConfig, Config, FdbConfig, PortConfig, PortKind, XdpMode, ranges};
use crate::problem::{Problem, did_you_mean};
use crate::resolve::{Names, Own};
use overlay::Overlay;

/// Frames in which an AF_XDP queue waits out a pause of its poller of half a millisecond at 1 Mframe/s.
const AMPLE_PER_XDP_QUEUE: usize = 512;

/// What is suspicious in a configuration without errors. Each names what it is about; none has a line.
/// O(VLANs · ports) at worst.
pub fn warnings(config: &Config) -> Vec<Problem> {
    let mut messages = Vec::new();
    let ports: BTreeMap<&str, &PortConfig> = config
        .bridges
        .iter()
        .flat_map(|bridge| &bridge.ports)
        .map(|port| (port.name.as_str(), port))
        .collect();
    messages.extend(pool(config));
    let own = Own::new(config);
    for bridge in &config.bridges {
        let names = Names::new(bridge);
        let carried = carried(bridge, &names);
        messages.extend(lonely_vlans(bridge, &carried));
        messages.extend(mtus(bridge));
        messages.extend(static_entries(bridge, &carried));
        let overlay = Overlay { config, bridge, names: &names, own: &own, carried: &carried };
        messages.extend(overlay.warnings());
        for port in &bridge.ports {
            messages.extend(ignored(port));
            messages.extend(patch(port, &ports));
            messages.extend(queues(port, config.switch.cores.len()));
        }
    }
    messages.into_iter().map(Problem::new).collect()
}

/// The VLANs that each port of a bridge carries there, by its name.
fn carried<'a>(bridge: &'a BridgeConfig, names: &Names<'a>) -> BTreeMap<&'a str, VlanSet> {
    let own = |port: &PortConfig| {
        let segment = port.segment.as_deref().and_then(|name| names.segment(name).ok());
        match segment.map(|segment| segment.vlan) {
            Some(None) => VlanSet::empty(),
            Some(Some(vlan)) => vlan_config(port, Some(vlan.into())).trunks,
            None if port.is_flow_based() => VlanSet::empty(),
            None => vlan_config(port, None).trunks,
        }
    };
    let mut carried: BTreeMap<_, _> =
        bridge.ports.iter().map(|port| (port.name.as_str(), own(port))).collect();
    let uplinks: BTreeSet<_> = bridge.segments.iter().filter_map(|s| s.uplink.as_deref()).collect();
    carried
        .iter_mut()
        .filter(|(name, _)| uplinks.contains(*name))
        .for_each(|(_, set)| *set = VlanSet::empty());
    for segment in &bridge.segments {
        let tunnel = || Some(names.tunnel(segment).ok()?.name.as_str());
        let outside = segment.uplink.as_deref().or_else(tunnel);
        let set = outside.and_then(|port| carried.get_mut(port));
        set.zip(segment.vlan).into_iter().for_each(|(set, vlan)| set.insert(vlan));
    }
    carried
}

fn is_empty(set: &VlanSet) -> bool {
    *set == VlanSet::empty()
}

fn pool(config: &Config) -> Option<String> {
    let (pollers, have) = (config.switch.cores.len(), config.pool.frames);
    let queues = xdp_queues(config, |kind| matches!(kind, PortKind::Afxdp | PortKind::System));
    let need = frames_needed(pollers, queues * AMPLE_PER_XDP_QUEUE);
    ((have as usize) < need).then(|| {
        format!(
            "{have} frames are few for {pollers} pollers and {queues} queues that may use AF_XDP: bursts may be \
             lost; set `frames` in [pool] to {need} or more"
        )
    })
}

/// VLANs that the configuration names and only one port of the bridge carries.
fn lonely_vlans(bridge: &BridgeConfig, carried: &BTreeMap<&str, VlanSet>) -> Vec<String> {
    let mut carriers = [0u32; 4096];
    for vlan in bridge.ports.iter().flat_map(|port| carried[port.name.as_str()].iter()) {
        carriers[usize::from(vlan.get())] += 1;
    }
    let lonely = |port: &PortConfig| {
        let set = &carried[port.name.as_str()];
        let named = port.tag.is_some() || !is_empty(&port.trunks);
        let alone = set.iter().map(|vlan| usize::from(vlan.get())).filter(|vlan| carriers[*vlan] == 1);
        let vlans = ranges(alone);
        (named && !vlans.is_empty() && *set != VlanSet::all())
            .then(|| format!("port `{}` alone carries VLAN {vlans} of bridge `{}`", port.name, bridge.name))
    };
    bridge.ports.iter().filter_map(lonely).collect()
}

fn mtus(bridge: &BridgeConfig) -> Option<String> {
    let mtus: BTreeSet<u16> = bridge.ports.iter().filter_map(|port| port.mtu).collect();
    let (low, high) = (mtus.first()?, mtus.last()?);
    (low != high).then(|| {
        format!("ports of bridge `{}` have MTUs from {low} to {high}; longer frames are dropped", bridge.name)
    })
}

fn static_entries(bridge: &BridgeConfig, carried: &BTreeMap<&str, VlanSet>) -> Vec<String> {
    let message = |entry: &FdbConfig| {
        let (mac, port, vlan) = (entry.mac, entry.port.as_ref()?, entry.vlan.unwrap_or(VlanId::NONE));
        let off = entry.segment.is_none() && !carried.get(port.as_str())?.contains(vlan);
        off.then(|| format!("static entry {mac} is in VLAN {vlan}, which port `{port}` does not carry"))
    };
    let (have, size) = (bridge.fdb.len(), bridge.mac_table_size);
    let full = (have >= size).then(|| {
        format!(
            "bridge `{}` has {have} static entries and room for {size}; nothing can be learned, set `mac-table-size`",
            bridge.name
        )
    });
    bridge.fdb.iter().filter_map(message).chain(full).collect()
}

/// Settings that have no effect on this port, or less than it seems.
fn ignored(port: &PortConfig) -> Vec<String> {
    let mode = port.effective_vlan_mode();
    let single = matches!(mode, VlanMode::Access | VlanMode::Dot1qTunnel);
    let native = matches!(mode, VlanMode::NativeTagged | VlanMode::NativeUntagged);
    let xdp = matches!(port.kind, PortKind::System | PortKind::Afxdp);
    let has_mac = matches!(port.kind, PortKind::Internal | PortKind::Vtep);
    let has_mtu = !matches!(port.kind, PortKind::Patch | PortKind::Tunnel(_));
    let has_queues = has_mtu && port.kind != PortKind::Vtep;
    let tunnel = mode == VlanMode::Dot1qTunnel;
    let cases = [
        (single && !is_empty(&port.trunks), "ignores `trunks`: it is no trunk"),
        (!tunnel && !is_empty(&port.cvlans), "ignores `cvlans`: it is no dot1q-tunnel"),
        (!tunnel && port.qinq_ethtype != EtherType::QINQ, "ignores `qinq-ethtype`: it is no dot1q-tunnel"),
        (native && port.tag.is_none(), "has no `tag`: its native VLAN is VLAN 0"),
        (port.mac.is_some() && !has_mac, "ignores `mac`: it is no internal port"),
        (port.xdp_mode != XdpMode::BestEffort && !xdp, "ignores `xdp-mode`: it does not use AF_XDP"),
        (port.mtu.is_some() && !has_mtu, "ignores `mtu`: it is no device"),
        (port.effective_queues() > 1 && !has_queues, "ignores `queues`: it is no device"),
    ];
    let message = |(_, what): &(bool, &str)| format!("port `{}` {what}", port.name);
    cases.iter().filter(|(holds, _)| *holds).map(message).collect()
}

fn patch(port: &PortConfig, ports: &BTreeMap<&str, &PortConfig>) -> Option<String> {
    let name = &port.name;
    let peer_name = port.peer.as_ref().filter(|_| port.kind == PortKind::Patch)?;
    let Some(peer) = ports.get(peer_name.as_str()) else {
        let hint = did_you_mean(peer_name, ports.keys().copied().filter(|other| other != name));
        return Some(format!("patch port `{name}` leads nowhere: there is no port `{peer_name}`{hint}"));
    };
    let listed = |port: &PortConfig| port.effective_vlan_mode() == VlanMode::Trunk && !is_empty(&port.trunks);
    let in_common = || port.trunks.iter().any(|vlan| peer.trunks.contains(vlan));
    let apart = name < peer_name && listed(port) && listed(peer) && !in_common();
    apart.then(|| format!("patch ports `{name}` and `{peer_name}` have no VLAN in common"))
}

/// The queue pairs of a guest are for its processors, not for our pollers.
fn queues(port: &PortConfig, pollers: usize) -> Option<String> {
    let queues = port.effective_queues();
    let netdev =
        !matches!(port.kind, PortKind::Patch | PortKind::Tunnel(_) | PortKind::Vtep | PortKind::Vhost(_));
    (usize::from(queues) > pollers && netdev)
        .then(|| format!("port `{}` has {queues} queues for {pollers} pollers; more gain nothing", port.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, parse_on};

    #[track_caller]
    fn warns(text: &str, expected: &[&str]) {
        let config =
            parse_on(text, &Machine { cores: vec![0, 1] }).unwrap_or_else(|problems| panic!("{problems}"));
        let messages: Vec<String> = warnings(&config).into_iter().map(|problem| problem.message).collect();
        assert_eq!(messages, expected, "\n{text}");
    }

    fn one_bridge(ports: &[&str]) -> String {
        let port = |port: &&str| format!("[[bridge.port]]\n{}\n", port.replace("; ", "\n"));
        format!("[[bridge]]\nname = 'b'\n{}", ports.iter().map(port).collect::<String>())
    }

    #[test]
    fn a_sound_file_gives_none() {
        warns("", &[]);
        warns(
            &one_bridge(&["name='u'; trunks=[10, 20]", "name='a'; tag=10", "name='c'; tag=20; mtu=1500"]),
            &[],
        );
        warns(&one_bridge(&["name='u'", "name='a'; tag=10"]), &[]);
    }

    #[test]
    fn vlans_that_one_port_carries() {
        warns(
            &one_bridge(&["name='a'; tag=10", "name='c'; trunks=[20, '30-32']", "name='d'; tag=20"]),
            &[
                "port `a` alone carries VLAN 10 of bridge `b`",
                "port `c` alone carries VLAN 30-32 of bridge `b`",
            ],
        );
    }

    #[test]
    fn settings_without_effect() {
        warns(
            &one_bridge(&[
                "name='a'; tag=10; trunks=[10]; cvlans=[3]; qinq-ethtype='802.1q'; mac='02:00:00:00:00:01'",
                "name='c'; type='afpacket'; xdp-mode='native'; vlan-mode='native-tagged'",
                "name='d'; type='patch'; peer='e'; mtu=1500; queues=2",
            ]),
            &[
                "port `a` ignores `trunks`: it is no trunk",
                "port `a` ignores `cvlans`: it is no dot1q-tunnel",
                "port `a` ignores `qinq-ethtype`: it is no dot1q-tunnel",
                "port `a` ignores `mac`: it is no internal port",
                "port `c` has no `tag`: its native VLAN is VLAN 0",
                "port `c` ignores `xdp-mode`: it does not use AF_XDP",
                "port `d` ignores `mtu`: it is no device",
                "port `d` ignores `queues`: it is no device",
                "patch port `d` leads nowhere: there is no port `e`",
            ],
        );
    }

    #[test]
    fn a_vm_has_as_many_queues_as_it_likes() {
        warns(
            &one_bridge(&[
                "name='a'; type='dpdkvhostuser'; xdp-mode='native'; mac='02:00:00:00:00:01'",
                "name='c'; type='dpdkvhostuserclient'; vhost-server-path='/tmp/c'; queues=4; mtu=9000",
            ]),
            &[
                "port `a` ignores `mac`: it is no internal port",
                "port `a` ignores `xdp-mode`: it does not use AF_XDP",
            ],
        );
    }

    #[test]
    fn patch_ports_that_carry_nothing() {
        let trunks = |there: &str| {
            format!(
                "[[bridge]]\nname='x'\nport=[{{ name='px', type='patch', peer='py', trunks=[1, 2] }}, {{ name='ux' }}]\n\
                 [[bridge]]\nname='y'\nport=[{{ name='py', type='patch', peer='px', trunks={there} }}, {{ name='uy' }}]\n"
            )
        };
        warns(&trunks("[2, 3]"), &[]);
        warns(&trunks("[3]"), &["patch ports `px` and `py` have no VLAN in common"]);
    }

    #[test]
    fn mtus_that_differ() {
        warns(
            &one_bridge(&["name='a'; mtu=1500", "name='c'; mtu=9000", "name='d'"]),
            &["ports of bridge `b` have MTUs from 1500 to 9000; longer frames are dropped"],
        );
    }

    #[test]
    fn queues_and_frames() {
        warns(
            &one_bridge(&["name='a'; queues=16"]),
            &[
                "16384 frames are few for 1 pollers and 16 queues that may use AF_XDP: bursts may be lost; \
                 set `frames` in [pool] to 17408 or more",
                "port `a` has 16 queues for 1 pollers; more gain nothing",
            ],
        );
    }

    #[test]
    fn static_entries_out_of_reach() {
        warns(
            "bridge=[{ name='b', port=[{ name='a', tag=1 }, { name='c', tag=1 }], \
             fdb=[{ mac='02:00:00:00:00:01', vlan=2, port='a' }] }]",
            &["static entry 02:00:00:00:00:01 is in VLAN 2, which port `a` does not carry"],
        );
    }
}
