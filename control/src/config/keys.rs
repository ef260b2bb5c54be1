//! Every key of the configuration file, by table. `CONFIG.md` says what each one means.

use dataplane::port::vhost::Role;
use dataplane::tables::VlanMode;
use dataplane::tunnel::Carrier;
use encap::field::EtherType;
use encap::tunnel::TunnelKind;
use tracing::Level;

use super::leaf::overlay::*;
use super::leaf::*;
use super::read::Shape::{Boolean, Integer, List, Nested, Text};
use super::read::{Entity, Key};
use super::{
    BridgeConfig, Config, FdbConfig, Idle, NeighConfig, PoolConfig, PortConfig, PortKind, RouteConfig,
    SegmentConfig, SegmentKind, SwitchConfig, XdpMode,
};

const IDLE: &[(&str, Idle)] = &[("adaptive", Idle::Adaptive), ("spin", Idle::Spin)];

const LEVEL: &[(&str, Level)] = &[
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

const PORT_KIND: &[(&str, PortKind)] = &[
    ("system", PortKind::System),
    ("afxdp", PortKind::Afxdp),
    ("afpacket", PortKind::Afpacket),
    ("internal", PortKind::Internal),
    ("patch", PortKind::Patch),
    ("vxlan", PortKind::Tunnel(TunnelKind::Vxlan)),
    ("gre", PortKind::Tunnel(TunnelKind::Gre)),
    ("geneve", PortKind::Tunnel(TunnelKind::Geneve)),
    ("vtep", PortKind::Vtep),
    ("dpdkvhostuser", PortKind::Vhost(Role::Server)),
    ("dpdkvhostuserclient", PortKind::Vhost(Role::Client)),
];

const SEGMENT_KIND: &[(&str, SegmentKind)] = &[
    ("vxlan", SegmentKind::Tunnel(TunnelKind::Vxlan)),
    ("gre", SegmentKind::Tunnel(TunnelKind::Gre)),
    ("geneve", SegmentKind::Tunnel(TunnelKind::Geneve)),
    ("vlan", SegmentKind::Vlan),
    ("flat", SegmentKind::Flat),
    ("local", SegmentKind::Local),
];

const CARRIER: &[(&str, Carrier)] = &[("switch", Carrier::Switch), ("host", Carrier::Host)];

const VLAN_MODE: &[(&str, VlanMode)] = &[
    ("access", VlanMode::Access),
    ("trunk", VlanMode::Trunk),
    ("native-tagged", VlanMode::NativeTagged),
    ("native-untagged", VlanMode::NativeUntagged),
    ("dot1q-tunnel", VlanMode::Dot1qTunnel),
];

const TPID: &[(&str, EtherType)] = &[("802.1ad", EtherType::QINQ), ("802.1q", EtherType::VLAN)];

const XDP_MODE: &[(&str, XdpMode)] =
    &[("best-effort", XdpMode::BestEffort), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];

/// The file.
pub(super) const ROOT: &[Key<Config>] = &[
    Key::new("switch", Nested, |c, v, r| r.single(v, Entity::Switch, SWITCH, &mut c.switch)),
    Key::new("pool", Nested, |c, v, r| r.single(v, Entity::Pool, POOL, &mut c.pool)),
    Key::new("route", Nested, |c, v, r| c.routes = r.each(v, Entity::Route, ROUTE)),
    Key::new("bridge", Nested, |c, v, r| c.bridges = r.each(v, Entity::Bridge, BRIDGE)),
];

/// `[switch]`
pub(crate) const SWITCH: &[Key<SwitchConfig>] = &[
    Key::new("socket", Text, |s, v, r| keep(&mut s.socket, socket_path(v, r))),
    Key::new("vhost-sock-dir", Text, |s, v, r| s.vhost_sock_dir = socket_path(v, r)),
    Key::new("cores", List, |s, v, r| s.cores = cores(v, r)),
    Key::new("idle", Text, |s, v, r| keep(&mut s.idle, choice(v, IDLE, r))),
    Key::new("flow-limit", Integer, |s, v, r| keep(&mut s.flow_limit, integer(v, 1..=8_388_608, r))),
    Key::new("mask-limit", Integer, |s, v, r| keep(&mut s.mask_limit, integer(v, 1..=4096, r))),
    Key::new("max-idle", Integer, |s, v, r| keep(&mut s.max_idle, milliseconds(v, 500..=3_600_000, r))),
    Key::new("caches", Boolean, |s, v, r| keep(&mut s.caches, boolean(v, r))),
    Key::new("log", Text, |s, v, r| keep(&mut s.log, choice(v, LEVEL, r))),
];

/// `[pool]`
pub(crate) const POOL: &[Key<PoolConfig>] = &[
    Key::new("frames", Integer, |p, v, r| keep(&mut p.frames, integer(v, 1024..=4_194_304, r))),
    Key::new("big-frames", Integer, |p, v, r| keep(&mut p.big_frames, integer(v, 16..=65_536, r))),
];

/// `[[route]]`
pub(crate) const ROUTE: &[Key<RouteConfig>] = &[
    Key::required("to", Text, |o, v, r| keep(&mut o.to, prefix(v, r))),
    Key::new("via", Text, |o, v, r| o.via = unicast(v, r)),
    Key::new("port", Text, |o, v, r| o.port = name(v, r)),
];

/// `[[bridge]]`
pub(crate) const BRIDGE: &[Key<BridgeConfig>] = &[
    Key::required("name", Text, |b, v, r| keep(&mut b.name, name(v, r))),
    Key::new("mac-aging-time", Integer, |b, v, r| keep(&mut b.mac_aging_time, seconds(v, 15..=3600, r))),
    Key::new("mac-table-size", Integer, |b, v, r| keep(&mut b.mac_table_size, integer(v, 10..=1_000_000, r))),
    Key::new("forward-bpdu", Boolean, |b, v, r| keep(&mut b.forward_bpdu, boolean(v, r))),
    Key::new("flood-vlans", List, |b, v, r| b.flood_vlans = vlans(v, r)),
    Key::new("mcast-snooping-enable", Boolean, |b, v, r| keep(&mut b.mcast_snooping_enable, boolean(v, r))),
    Key::new("mcast-snooping-table-size", Integer, |b, v, r| {
        keep(&mut b.mcast_snooping_table_size, integer(v, 10..=1_000_000, r));
    }),
    Key::new("mcast-snooping-aging-time", Integer, |b, v, r| {
        keep(&mut b.mcast_snooping_aging_time, seconds(v, 15..=3600, r));
    }),
    Key::new("mcast-snooping-disable-flood-unregistered", Boolean, |b, v, r| {
        keep(&mut b.mcast_snooping_disable_flood_unregistered, boolean(v, r));
    }),
    Key::new("datapath-id", Text, |b, v, r| b.datapath_id = datapath_id(v, r)),
    Key::new("segment", Nested, |b, v, r| {
        if let Entity::Bridge(bridge) = r.entity {
            b.segments = r.each(v, |segment| Entity::Segment(bridge, segment), SEGMENT);
        }
    }),
    Key::new("fdb", Nested, |b, v, r| {
        if let Entity::Bridge(bridge) = r.entity {
            b.fdb = r.each(v, |entry| Entity::Fdb(bridge, entry), FDB);
        }
    }),
    Key::new("neigh", Nested, |b, v, r| {
        if let Entity::Bridge(bridge) = r.entity {
            b.neighbours = r.each(v, |entry| Entity::Neigh(bridge, entry), NEIGH);
        }
    }),
    Key::new("port", Nested, |b, v, r| {
        if let Entity::Bridge(bridge) = r.entity {
            b.ports = r.each(v, |port| Entity::Port(bridge, port), PORT);
        }
    }),
];

/// An entry of `segment`.
pub(crate) const SEGMENT: &[Key<SegmentConfig>] = &[
    Key::required("name", Text, |s, v, r| keep(&mut s.name, segment_name(v, r))),
    Key::new("vlan", Integer, |s, v, r| s.vlan = vlan(v, r)),
    Key::required("type", Text, |s, v, r| keep(&mut s.kind, choice(v, SEGMENT_KIND, r))),
    Key::new("id", Integer, |s, v, r| s.id = integer(v, 0..=u32::MAX.into(), r)),
    Key::new("tunnel", Text, |s, v, r| s.tunnel = name(v, r)),
    Key::new("uplink", Text, |s, v, r| s.uplink = name(v, r)),
    Key::new("vteps", List, |s, v, r| s.vteps = vteps(v, r)),
    Key::new("learning", Boolean, |s, v, r| keep(&mut s.learning, boolean(v, r))),
    Key::new("strict-peers", Boolean, |s, v, r| keep(&mut s.strict_peers, boolean(v, r))),
];

/// An entry of `fdb`.
pub(crate) const FDB: &[Key<FdbConfig>] = &[
    Key::required("mac", Text, |f, v, r| keep(&mut f.mac, mac(v, r))),
    Key::new("vlan", Integer, |f, v, r| f.vlan = vlan(v, r)),
    Key::new("segment", Text, |f, v, r| f.segment = segment_name(v, r)),
    Key::new("port", Text, |f, v, r| f.port = name(v, r)),
    Key::new("vtep", Text, |f, v, r| f.vtep = unicast(v, r)),
];

/// An entry of `neigh`.
pub(crate) const NEIGH: &[Key<NeighConfig>] = &[
    Key::required("segment", Text, |n, v, r| keep(&mut n.segment, segment_name(v, r))),
    Key::required("address", Text, |n, v, r| keep(&mut n.address, unicast(v, r))),
    Key::required("mac", Text, |n, v, r| keep(&mut n.mac, mac(v, r))),
];

/// `[[bridge.port]]`
pub(crate) const PORT: &[Key<PortConfig>] = &[
    Key::required("name", Text, |p, v, r| keep(&mut p.name, name(v, r))),
    Key::new("type", Text, |p, v, r| keep(&mut p.kind, choice(v, PORT_KIND, r))),
    Key::new("peer", Text, |p, v, r| p.peer = name(v, r)),
    Key::new("vhost-server-path", Text, |p, v, r| p.vhost_server_path = socket_path(v, r)),
    Key::new("remote-ip", Text, |p, v, r| p.tunnel.remote = remote(v, r)),
    Key::new("local-ip", Text, |p, v, r| p.tunnel.local = unicast(v, r)),
    Key::new("key", Integer, |p, v, r| keep(&mut p.tunnel.key, tunnel_key(v, r))),
    Key::new("dst-port", Integer, |p, v, r| p.tunnel.dst_port = integer(v, 1..=65_535, r)),
    Key::new("tos", Integer, |p, v, r| p.tunnel.tos = tos(v, r)),
    Key::new("ttl", Integer, |p, v, r| p.tunnel.ttl = ttl(v, r)),
    Key::new("df-default", Boolean, |p, v, r| p.tunnel.df = boolean(v, r)),
    Key::new("csum", Boolean, |p, v, r| p.tunnel.csum = boolean(v, r)),
    Key::new("underlay", Text, |p, v, r| p.tunnel.underlay = choice(v, CARRIER, r)),
    Key::new("address", List, |p, v, r| p.addresses = cidrs(v, r)),
    Key::new("segment", Text, |p, v, r| p.segment = segment_name(v, r)),
    Key::new("tag", Integer, |p, v, r| p.tag = vlan(v, r)),
    Key::new("trunks", List, |p, v, r| p.trunks = vlans(v, r)),
    Key::new("vlan-mode", Text, |p, v, r| p.vlan_mode = choice(v, VLAN_MODE, r)),
    Key::new("cvlans", List, |p, v, r| p.cvlans = vlans(v, r)),
    Key::new("qinq-ethtype", Text, |p, v, r| keep(&mut p.qinq_ethtype, choice(v, TPID, r))),
    Key::new("priority-tags", Text, |p, v, r| keep(&mut p.priority_tags, priority_tags(v, r))),
    Key::new("protected", Boolean, |p, v, r| keep(&mut p.protected, boolean(v, r))),
    Key::new("mcast-snooping-flood", Boolean, |p, v, r| keep(&mut p.mcast_snooping_flood, boolean(v, r))),
    Key::new("mcast-snooping-flood-reports", Boolean, |p, v, r| {
        keep(&mut p.mcast_snooping_flood_reports, boolean(v, r));
    }),
    Key::new("ofport", Integer, |p, v, r| p.ofport = integer(v, 1..=65_279, r)),
    Key::new("mtu", Integer, |p, v, r| p.mtu = integer(v, 68..=65_535, r)),
    Key::new("mac", Text, |p, v, r| p.mac = mac(v, r)),
    Key::new("queues", Integer, |p, v, r| p.queues = integer(v, 1..=256, r)),
    Key::new("rxq-affinity", Text, |p, v, r| keep(&mut p.rxq_affinity, rxq_affinity(v, r))),
    Key::new("xdp-mode", Text, |p, v, r| keep(&mut p.xdp_mode, choice(v, XDP_MODE, r))),
    Key::new("upcall-rate", Integer, |p, v, r| keep(&mut p.upcall_rate, integer(v, 0..=100_000_000, r))),
];
