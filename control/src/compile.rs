//! From what is meant to what pollers read: `compile` is pure and total, every problem is found before it.

use std::collections::BTreeMap;

use dataplane::tables::{
    Bridge, FdbConfig, PortEntry, PortKind, SnoopingConfig, StaticEntry, Tables, VlanConfig, VlanMode,
    VlanSet,
};
use encap::field::{MacAddr, VlanId};
use flowtable::id::PortId;

use crate::config::{self, PortConfig, XdpMode};
use crate::model::{self, Model};

/// The MTU of a port for which none is requested, in bytes of layer 3, until control knows the device's and
/// writes it into the table before it publishes.
pub const DEFAULT_MTU: u16 = 1500;

/// What a model demands of the data plane.
#[derive(Debug)]
pub struct Compiled {
    /// The snapshot to publish.
    pub tables: Tables,
    /// The devices to hold open, by port; patch ports have none.
    pub attachments: BTreeMap<PortId, Attachment>,
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
    /// Receive queues.
    pub queues: u16,
    /// Where an AF_XDP port's program runs.
    pub xdp_mode: XdpMode,
    /// Queues that must be polled on a certain core: `(queue, core)`.
    pub rxq_affinity: Vec<(u16, usize)>,
}

/// How to open a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachKind {
    /// AF_XDP if possible, else AF_PACKET.
    System,
    /// AF_XDP.
    Afxdp,
    /// AF_PACKET.
    Afpacket,
    /// A TAP device we make.
    Internal,
}

/// The tables and attachments of a model. A patch port without a peer is in neither. O(ports log ports).
pub fn compile(model: &Model) -> Compiled {
    let mut tables = Tables::default();
    let mut attachments = BTreeMap::new();
    for bridge in model.bridges() {
        put(&mut tables.bridges, bridge.id.index(), bridge_entry(model, &bridge));
    }
    for port in model.ports() {
        let Some(kind) = port_kind(model, &port) else { continue };
        put(&mut tables.ports, port.id.index(), port_entry(&port, kind));
        attachments.extend(attachment(port.config).map(|attachment| (port.id, attachment)));
    }
    for (i, port) in tables.ports.iter().enumerate() {
        let bridge = port.as_ref().and_then(|port| tables.bridges[port.bridge.index()].as_mut());
        bridge.into_iter().for_each(|bridge| bridge.ports.push(PortId(i as u32)));
    }
    Compiled { tables, attachments }
}

fn put<T>(table: &mut Vec<Option<T>>, index: usize, entry: T) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(entry);
}

/// Everything but the ports.
fn bridge_entry(model: &Model, bridge: &model::Bridge) -> Bridge {
    let config = bridge.config;
    let snooping = SnoopingConfig {
        size: config.mcast_snooping_table_size,
        age: config.mcast_snooping_aging_time,
        flood_unregistered: !config.mcast_snooping_disable_flood_unregistered,
    };
    let entry = |entry: &config::FdbConfig| {
        let port = model.port(&entry.port).filter(|port| port_kind(model, port).is_some())?;
        Some(StaticEntry { vlan: entry.vlan, mac: entry.mac, port: port.id })
    };
    Bridge {
        name: config.name.clone(),
        ports: Vec::new(),
        forward_bpdu: config.forward_bpdu,
        flood_vlans: config.flood_vlans.clone(),
        fdb: FdbConfig { age: config.mac_aging_time, size: config.mac_table_size },
        snooping: config.mcast_snooping_enable.then_some(snooping),
        datapath_id: config.datapath_id.unwrap_or_else(|| derived_datapath_id(&config.name)),
        static_fdb: config.fdb.iter().filter_map(entry).collect(),
    }
}

/// A locally administered address made of the bridge's name (FNV-1a), as OVS makes one of a MAC address.
fn derived_datapath_id(name: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash & 0xfcff_ffff_ffff | 0x0200_0000_0000
}

/// `None` for a patch port whose peer does not exist.
fn port_kind(model: &Model, port: &model::Port) -> Option<PortKind> {
    match port.config.kind {
        config::PortKind::Patch => model.peer(port).map(|peer| PortKind::Patch { peer: peer.id }),
        _ => Some(PortKind::Attached),
    }
}

fn port_entry(port: &model::Port, kind: PortKind) -> PortEntry {
    let config = port.config;
    let mtu = match kind {
        PortKind::Attached => config.mtu.unwrap_or(DEFAULT_MTU),
        PortKind::Patch { .. } => u16::MAX,
    };
    PortEntry {
        name: config.name.clone(),
        bridge: port.bridge,
        ofport: port.ofport,
        kind,
        vlan: vlan_config(config),
        protected: config.protected,
        mcast_flood: config.mcast_snooping_flood,
        mcast_flood_reports: config.mcast_snooping_flood_reports,
        mtu,
        upcall_rate: config.upcall_rate,
    }
}

fn vlan_config(config: &PortConfig) -> VlanConfig {
    VlanConfig {
        mode: config.effective_vlan_mode(),
        tag: config.tag.unwrap_or(VlanId::NONE),
        trunks: carried_vlans(config),
        cvlans: or_all(&config.cvlans),
        qinq_ethtype: config.qinq_ethtype,
        priority_tags: config.priority_tags,
    }
}

/// The VLANs a port carries. A native VLAN is always among them.
pub(crate) fn carried_vlans(config: &PortConfig) -> VlanSet {
    let tag = config.tag.unwrap_or(VlanId::NONE);
    let mut vlans = match config.effective_vlan_mode() {
        VlanMode::Access | VlanMode::Dot1qTunnel => VlanSet::empty(),
        VlanMode::Trunk => return or_all(&config.trunks),
        VlanMode::NativeTagged | VlanMode::NativeUntagged => or_all(&config.trunks),
    };
    vlans.insert(tag);
    vlans
}

/// An empty set in the configuration means all VLANs.
fn or_all(vlans: &VlanSet) -> VlanSet {
    if *vlans == VlanSet::empty() { VlanSet::all() } else { vlans.clone() }
}

/// `None` for patch ports.
fn attachment(config: &PortConfig) -> Option<Attachment> {
    let kind = match config.kind {
        config::PortKind::System => AttachKind::System,
        config::PortKind::Afxdp => AttachKind::Afxdp,
        config::PortKind::Afpacket => AttachKind::Afpacket,
        config::PortKind::Internal => AttachKind::Internal,
        config::PortKind::Patch => return None,
    };
    Some(Attachment {
        name: config.name.clone(),
        kind,
        mtu: config.mtu,
        mac: config.mac,
        queues: config.queues,
        xdp_mode: config.xdp_mode,
        rxq_affinity: config.rxq_affinity.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            StaticEntry { vlan: VlanId::new(4).unwrap(), mac: MacAddr([2, 0, 0, 0, 0, 1]), port: id("nic") };
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
            (own.kind, own.mtu, own.mac),
            (AttachKind::Internal, Some(9000), Some(MacAddr([2, 0, 0, 0, 0, 10])))
        );
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
