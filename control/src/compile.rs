//! From what is meant to what pollers read: `compile` is pure and total, every problem is found before it.

mod overlay;

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane::port::{host, vhost};
use dataplane::tables::{
    Bridge, FdbConfig, PortEntry, PortKind, SnoopingConfig, Tables, VlanConfig, VlanMode, VlanSet,
};
use dataplane::tunnel::Tunnels;
use dataplane::underlay::Route;
use encap::field::{MacAddr, VlanId};
use flowtable::id::{PortId, SegmentId};
use flowtable::lpm::Prefix;

use crate::config::{self, PortConfig, XdpMode};
use crate::model::{self, Model};
use crate::resolve::vhost_socket;
use overlay::Overlay;

pub use overlay::Endpoint;

/// The MTU of a port for which none is requested, in bytes of layer 3, until control knows the device's and
/// writes it into the table before it publishes.
pub const DEFAULT_MTU: u16 = 1500;

/// What a model demands of the data plane.
#[derive(Debug)]
pub struct Compiled {
    /// The snapshot to publish, but for the underlay, of which only what follows is configured.
    pub tables: Tables,
    /// The devices to hold open, by port; patch ports have none, and most tunnel ports.
    pub attachments: BTreeMap<PortId, Attachment>,
    /// Ports whose addresses in the underlay are configured.
    pub endpoints: BTreeMap<PortId, Endpoint>,
    /// Configured routes, and the networks of those addresses; each prefix once.
    pub routes: Vec<(Prefix, Route)>,
}

/// A device to hold open. Unequal to its predecessor: close that one and open this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Of the netdev.
    pub name: String,
    /// How to open it.
    pub kind: AttachKind,
    /// The MTU to set, in bytes of layer 3; `None`: leave it.
    pub mtu: Option<u16>,
    /// The address to set, for internal ports.
    pub mac: Option<MacAddr>,
    /// Receive queues; of a VM's card at most.
    pub queues: u16,
    /// Where an AF_XDP port's program runs.
    pub xdp_mode: XdpMode,
    /// Queues that must be polled on a certain core: `(queue, core)`.
    pub rxq_affinity: Vec<(u16, usize)>,
}

/// How to open a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachKind {
    /// AF_XDP if possible, else AF_PACKET.
    System,
    /// AF_XDP.
    Afxdp,
    /// AF_PACKET.
    Afpacket,
    /// A TAP device we make.
    Internal,
    /// Memory, with our own stack at the other end.
    Vtep,
    /// Sockets of the host's stack.
    HostTunnel(host::Request),
    /// A VM's card. A relative path is one in the directory of the control socket.
    Vhost(vhost::Request),
}

impl AttachKind {
    /// Is it attached to an interface of the kernel, whose name it has?
    pub fn has_netdev(&self) -> bool {
        !matches!(self, AttachKind::Vtep | AttachKind::HostTunnel(_) | AttachKind::Vhost(_))
    }
}

/// All that a model demands. A patch port without a peer is in nothing. O(n log n) in ports, segments and entries.
pub fn compile(model: &Model) -> Compiled {
    let mut tables = Tables::default();
    let mut attachments = BTreeMap::new();
    let overlay = Overlay::new(model);
    let host_listeners = overlay.host_listeners();
    for bridge in model.bridges() {
        put(&mut tables.bridges, bridge.id.index(), bridge_entry(&overlay, &bridge));
    }
    for port in model.ports() {
        let Some(kind) = port_kind(&overlay, &port) else { continue };
        put(&mut tables.ports, port.id.index(), port_entry(&overlay, &port, kind));
        let wanted = attach_kind(model, port.config, host_listeners.get(&port.id).copied());
        attachments.extend(wanted.map(|kind| (port.id, attachment(port.config, kind))));
    }
    for (i, port) in tables.ports.iter().enumerate() {
        let bridge = port.as_ref().and_then(|port| tables.bridges[port.bridge.index()].as_mut());
        bridge.into_iter().for_each(|bridge| bridge.ports.push(PortId(i as u32)));
    }
    tables.segments = Arc::new(overlay.segments());
    tables.tunnels = Arc::new(tunnels(&tables));
    Compiled { tables, attachments, endpoints: overlay::endpoints(model), routes: overlay::routes(model) }
}

fn tunnels(tables: &Tables) -> Tunnels {
    let tunnel = |(i, port): (usize, &Option<PortEntry>)| match port.as_ref()?.kind {
        PortKind::Tunnel(tunnel) => Some((PortId(i as u32), tunnel)),
        PortKind::Attached | PortKind::Patch { .. } => None,
    };
    Tunnels::new(tables.ports.iter().enumerate().filter_map(tunnel))
}

fn put<T>(table: &mut Vec<Option<T>>, index: usize, entry: T) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(entry);
}

/// Everything but the ports.
fn bridge_entry(overlay: &Overlay, bridge: &model::Bridge) -> Bridge {
    let config = bridge.config;
    let snooping = SnoopingConfig {
        size: config.mcast_snooping_table_size,
        age: config.mcast_snooping_aging_time,
        flood_unregistered: !config.mcast_snooping_disable_flood_unregistered,
    };
    Bridge {
        name: config.name.clone(),
        ports: Vec::new(),
        forward_bpdu: config.forward_bpdu,
        flood_vlans: config.flood_vlans.clone(),
        fdb: FdbConfig { age: config.mac_aging_time, size: config.mac_table_size },
        snooping: config.mcast_snooping_enable.then_some(snooping),
        datapath_id: config.datapath_id.unwrap_or_else(|| derived_datapath_id(&config.name)),
        static_fdb: config.fdb.iter().filter_map(|entry| overlay.static_entry(bridge.id, entry)).collect(),
    }
}

/// A locally administered address made of the bridge's name, as OVS makes one of a MAC address.
fn derived_datapath_id(name: &str) -> u64 {
    local_address(name)
}

/// The bits of a locally administered unicast MAC address, made of a name (FNV-1a).
fn local_address(name: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash & 0xfcff_ffff_ffff | 0x0200_0000_0000
}

/// `None` for a patch port whose peer does not exist.
fn port_kind(overlay: &Overlay, port: &model::Port) -> Option<PortKind> {
    match port.config.kind {
        config::PortKind::Patch => overlay.model().peer(port).map(|peer| PortKind::Patch { peer: peer.id }),
        config::PortKind::Tunnel(kind) => Some(PortKind::Tunnel(overlay.tunnel(port.config, kind))),
        _ => Some(PortKind::Attached),
    }
}

fn port_entry(overlay: &Overlay, port: &model::Port, kind: PortKind) -> PortEntry {
    let config = port.config;
    let segment = overlay.joined(config).map(|segment| segment.id);
    let mtu = match kind {
        PortKind::Attached => config.mtu.unwrap_or(DEFAULT_MTU),
        PortKind::Patch { .. } | PortKind::Tunnel(_) => u16::MAX,
    };
    PortEntry {
        name: config.name.clone(),
        bridge: port.bridge,
        ofport: port.ofport,
        kind,
        vlan: vlan_config(config, segment),
        segment: segment.filter(|segment| segment.vlan().is_none()),
        protected: config.protected,
        mcast_flood: config.mcast_snooping_flood,
        mcast_flood_reports: config.mcast_snooping_flood_reports,
        mtu,
        upcall_rate: config.upcall_rate,
    }
}

/// The VLAN settings of a port: its own, or those of an access port of the segment it joined.
pub(crate) fn vlan_config(config: &PortConfig, joined: Option<SegmentId>) -> VlanConfig {
    let mode = joined.map_or_else(|| config.effective_vlan_mode(), |_| VlanMode::Access);
    let tag = joined.map_or(config.tag, SegmentId::vlan).unwrap_or(VlanId::NONE);
    // A native VLAN is always carried.
    let (mut trunks, has_tag) = match mode {
        VlanMode::Access | VlanMode::Dot1qTunnel => (VlanSet::empty(), true),
        VlanMode::Trunk => (or_all(&config.trunks), false),
        VlanMode::NativeTagged | VlanMode::NativeUntagged => (or_all(&config.trunks), true),
    };
    if has_tag {
        trunks.insert(tag);
    }
    VlanConfig {
        mode,
        tag,
        trunks,
        cvlans: or_all(&config.cvlans),
        qinq_ethtype: config.qinq_ethtype,
        priority_tags: config.priority_tags,
    }
}

/// An empty set in the configuration means all VLANs.
fn or_all(vlans: &VlanSet) -> VlanSet {
    if *vlans == VlanSet::empty() { VlanSet::all() } else { vlans.clone() }
}

fn vhost_request(model: &Model, config: &PortConfig, role: vhost::Role) -> Option<vhost::Request> {
    let path = vhost_socket(&model.config().switch, config)?;
    let (pairs, mtu) = (config.effective_queues(), config.mtu.unwrap_or(DEFAULT_MTU));
    Some(vhost::Request { name: config.name.clone(), path, role, pairs, mtu })
}

/// `None` for patch ports and for tunnel ports without sockets of their own.
fn attach_kind(model: &Model, config: &PortConfig, sockets: Option<host::Request>) -> Option<AttachKind> {
    match config.kind {
        config::PortKind::System => Some(AttachKind::System),
        config::PortKind::Afxdp => Some(AttachKind::Afxdp),
        config::PortKind::Afpacket => Some(AttachKind::Afpacket),
        config::PortKind::Internal => Some(AttachKind::Internal),
        config::PortKind::Vtep => Some(AttachKind::Vtep),
        config::PortKind::Tunnel(_) => sockets.map(AttachKind::HostTunnel),
        config::PortKind::Vhost(role) => vhost_request(model, config, role).map(AttachKind::Vhost),
        config::PortKind::Patch => None,
    }
}

/// What has no netdev has an MTU and a MAC address that are in the tables.
fn attachment(config: &PortConfig, kind: AttachKind) -> Attachment {
    let netdev = kind.has_netdev();
    let has_queues = netdev || matches!(kind, AttachKind::Vhost(_));
    Attachment {
        name: config.name.clone(),
        kind,
        mtu: config.mtu.filter(|_| netdev),
        mac: config.mac.filter(|_| netdev),
        queues: if has_queues { config.effective_queues() } else { 1 },
        xdp_mode: config.xdp_mode,
        rxq_affinity: config.rxq_affinity.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dataplane::tables::StaticEntry;
    use encap::field::EtherType;

    use super::*;
    use crate::config::parse;

    fn compiled(text: &str) -> (Model, Compiled) {
        let model = Model::new(parse(text).unwrap()).unwrap();
        let compiled = compile(&model);
        (model, compiled)
    }

    fn vlan_of(settings: &str) -> VlanConfig {
        let (model, compiled) =
            compiled(&format!("bridge = [{{ name = 'b', port = [{{ name = 'p', {settings} }}] }}]"));
        compiled.tables.port(model.port("p").unwrap().id).unwrap().vlan.clone()
    }

    fn numbers(vlans: &VlanSet) -> Vec<u16> {
        vlans.iter().map(VlanId::get).collect()
    }

    const TWO_BRIDGES: &str = r#"
        [[bridge]]
        name = "a"
        mac-aging-time = 20
        mcast-snooping-enable = true
        fdb = [{ mac = "02:00:00:00:00:01", vlan = 4, port = "nic" }, { mac = "02:00:00:00:00:02", port = "alone" }]
        port = [
            { name = "a", type = "internal", mac = "02:00:00:00:00:0a", mtu = 9000 },
            { name = "pa", type = "patch", peer = "pb" },
            { name = "alone", type = "patch", peer = "nobody" },
            { name = "nic", type = "afxdp", queues = 2, xdp-mode = "native", upcall-rate = 7, protected = true },
        ]
        [[bridge]]
        name = "b"
        datapath-id = "00000000000000ff"
        port = [{ name = "pb", type = "patch", peer = "pa" }]
    "#;

    #[test]
    fn bridges_and_ports_are_where_their_ids_say() {
        let (model, compiled) = compiled(TWO_BRIDGES);
        let id = |name: &str| model.port(name).unwrap().id;
        let a = compiled.tables.bridge(model.bridge("a").unwrap().id).unwrap();
        let mut ports = vec![id("a"), id("pa"), id("nic")];
        ports.sort();
        assert_eq!(a.ports, ports);
        assert_eq!(a.fdb, FdbConfig { age: Duration::from_secs(20), size: 8192 });
        let snooping = SnoopingConfig { size: 2048, age: Duration::from_secs(300), flood_unregistered: true };
        assert_eq!(a.snooping, Some(snooping));
        let entry =
            StaticEntry { segment: SegmentId(4), mac: MacAddr([2, 0, 0, 0, 0, 1]), place: id("nic").into() };
        assert_eq!(a.static_fdb, [entry]);
        let b = compiled.tables.bridge(model.bridge("b").unwrap().id).unwrap();
        assert_eq!((b.datapath_id, b.snooping, b.name.as_str()), (0xff, None, "b"));
        let nic = compiled.tables.port(id("nic")).unwrap();
        assert_eq!(
            (nic.mtu, nic.upcall_rate, nic.protected, nic.kind),
            (DEFAULT_MTU, 7, true, PortKind::Attached)
        );
        let own = compiled.tables.port(id("a")).unwrap();
        assert_eq!(
            (own.ofport, own.mtu, own.bridge),
            (crate::model::LOCAL, 9000, model.bridge("a").unwrap().id)
        );
    }

    #[test]
    fn patch_ports_lead_to_each_other_or_are_left_out() {
        let (model, compiled) = compiled(TWO_BRIDGES);
        let id = |name: &str| model.port(name).unwrap().id;
        assert_eq!(compiled.tables.port(id("pa")).unwrap().kind, PortKind::Patch { peer: id("pb") });
        assert_eq!(compiled.tables.port(id("pb")).unwrap().kind, PortKind::Patch { peer: id("pa") });
        assert_eq!(compiled.tables.port(id("alone")), None);
        let names: Vec<&str> =
            compiled.attachments.values().map(|attachment| attachment.name.as_str()).collect();
        assert_eq!(names, ["a", "nic"]);
    }

    #[test]
    fn attachments_say_how_to_open_a_device() {
        let (model, compiled) = compiled(TWO_BRIDGES);
        let nic = Attachment {
            name: "nic".into(),
            kind: AttachKind::Afxdp,
            mtu: None,
            mac: None,
            queues: 2,
            xdp_mode: XdpMode::Native,
            rxq_affinity: vec![],
        };
        assert_eq!(compiled.attachments[&model.port("nic").unwrap().id], nic);
        let own = &compiled.attachments[&model.port("a").unwrap().id];
        assert_eq!(
            (own.kind.clone(), own.mtu, own.mac),
            (AttachKind::Internal, Some(9000), Some(MacAddr([2, 0, 0, 0, 0, 10])))
        );
    }

    #[test]
    fn a_vm_is_reached_by_the_socket_that_is_configured() {
        let request = |switch: &str, port: &str| {
            let (model, compiled) = compiled(&format!(
                "switch = {{ {switch} }}\nbridge = [{{ name = 'b', port = [{{ name = 'p', {port} }}] }}]"
            ));
            let id = model.port("p").unwrap().id;
            assert!(!compiled.attachments[&id].kind.has_netdev());
            match compiled.attachments[&id].kind.clone() {
                AttachKind::Vhost(request) => {
                    (request, compiled.attachments[&id].queues, compiled.tables.port(id).unwrap().mtu)
                }
                other => panic!("{other:?}"),
            }
        };
        let server = |path: &str, pairs, mtu| vhost::Request {
            name: "p".into(),
            path: path.into(),
            role: vhost::Role::Server,
            pairs,
            mtu,
        };
        assert_eq!(request("", "type = 'dpdkvhostuser'"), (server("p", 16, 1500), 16, 1500));
        let elsewhere =
            request("vhost-sock-dir = '/run/vm'", "type = 'dpdkvhostuser', queues = 2, mtu = 9000");
        assert_eq!(elsewhere, (server("/run/vm/p", 2, 9000), 2, 9000));
        let client = vhost::Request { role: vhost::Role::Client, ..server("/run/q/net0", 16, 1500) };
        let settings = "type = 'dpdkvhostuserclient', vhost-server-path = '/run/q/net0'";
        assert_eq!(request("vhost-sock-dir = '/run/vm'", settings), (client, 16, 1500));
    }

    #[test]
    fn vlan_modes_default_as_in_open_vswitch() {
        let plain = vlan_of("");
        assert_eq!((plain.mode, plain.tag, plain.trunks), (VlanMode::Trunk, VlanId::NONE, VlanSet::all()));
        let access = vlan_of("tag = 5, trunks = [6]");
        assert_eq!((access.mode, access.tag.get(), numbers(&access.trunks)), (VlanMode::Access, 5, vec![5]));
        let trunk = vlan_of("trunks = [6, '8-9']");
        assert_eq!(
            (trunk.mode, trunk.tag.get(), numbers(&trunk.trunks)),
            (VlanMode::Trunk, 0, vec![6, 8, 9])
        );
        let native = vlan_of("tag = 5, trunks = [6], vlan-mode = 'native-untagged'");
        assert_eq!((native.mode, numbers(&native.trunks)), (VlanMode::NativeUntagged, vec![5, 6]));
        assert_eq!(vlan_of("tag = 5, vlan-mode = 'native-tagged'").trunks, VlanSet::all());
        let tunnel = vlan_of("tag = 5, vlan-mode = 'dot1q-tunnel'");
        assert_eq!((tunnel.cvlans, tunnel.qinq_ethtype), (VlanSet::all(), EtherType::QINQ));
        assert_eq!(numbers(&vlan_of("tag = 5, vlan-mode = 'dot1q-tunnel', cvlans = [7]").cvlans), [7]);
    }

    #[test]
    fn derived_datapath_ids_are_local_unicast_addresses() {
        let ids = ["br0", "br1", "br-int"].map(derived_datapath_id);
        assert!(ids.iter().all(|id| id >> 40 & 3 == 2 && id >> 48 == 0), "{ids:x?}");
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    }

    #[test]
    fn compiling_again_changes_nothing() {
        let (model, first) = compiled(TWO_BRIDGES);
        let again = compile(&model.change(model.config().clone()).unwrap());
        assert_eq!((first.tables.bridges, first.tables.ports), (again.tables.bridges, again.tables.ports));
        assert_eq!(first.attachments, again.attachments);
    }
}
