//! Tunnel ports, and which of them a decapsulated frame came in by (`tnl_find` of Open vSwitch; ovs-vswitchd.conf.db(5),
//! Interface table, *Tunnel Options*).

use std::collections::HashMap;
use std::net::IpAddr;

use encap::tunnel::TunnelKind;
use flowtable::id::PortId;

/// A tunnel port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// VXLAN, GRE or Geneve.
    pub kind: TunnelKind,
    /// The UDP port frames are sent to and listened on (`dst_port`); 0 for GRE.
    pub dst_port: u16,
    /// The first of the tunnel ports with this kind and UDP port: what the key of a decapsulated frame names.
    pub listener: PortId,
    /// The other end (`remote_ip`); `None`: every segment has its own (`flow`).
    pub remote: Option<IpAddr>,
    /// Our end (`local_ip`); `None`: what the route says.
    pub local: Option<IpAddr>,
    /// Whose frames it carries (`key`).
    pub key: Key,
    /// Outer DSCP and ECN.
    pub tos: Tos,
    /// Outer time to live, 1 to 255; `None`: that of the inner packet (`inherit`).
    pub ttl: Option<u8>,
    /// Is the outer IPv4 packet not to be fragmented (`df_default`)?
    pub df: bool,
    /// Do outer headers carry a checksum (`csum`)?
    pub csum: bool,
    /// Who carries outer frames?
    pub carrier: Carrier,
}

/// The key of a tunnel port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// GRE without a key.
    Absent,
    /// This VNI or key, both ways.
    Fixed(u32),
    /// That of the segment.
    Flow,
}

/// The outer DSCP of a tunnel port. ECN follows RFC 6040 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tos {
    /// This TOS byte; its ECN bits are of no meaning.
    Fixed(u8),
    /// That of the inner packet, 0 if it is no IP.
    Inherit,
}

/// Who carries a tunnel's outer frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// This switch: an endpoint's port, and the bridge that it is in.
    Switch,
    /// The IP stack of the host: the listener's queue is its sockets.
    Host,
}

/// What the outer headers of a frame must say to have come in by a port. `None`: whatever they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Match {
    listener: PortId,
    local: Option<IpAddr>,
    remote: Option<IpAddr>,
    key: Key,
}

/// What the outer headers of a frame say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The listener that took it.
    pub listener: PortId,
    /// Our address.
    pub local: IpAddr,
    /// The sender's.
    pub remote: IpAddr,
    /// VNI or key.
    pub key: Option<u32>,
}

/// Ports by something.
type Index<K> = HashMap<K, PortId, foldhash::fast::RandomState>;

/// All tunnel ports, by what comes in by them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    by_match: Index<Match>,
    listeners: Index<(TunnelKind, u16)>,
}

impl Tunnels {
    /// The tunnels of these ports. Of two that match the same the first counts (control refuses them).
    pub fn new(ports: impl IntoIterator<Item = (PortId, Tunnel)>) -> Self {
        let mut tunnels = Tunnels::default();
        for (port, tunnel) in ports {
            let Tunnel { listener, local, remote, key, .. } = tunnel;
            tunnels.by_match.entry(Match { listener, local, remote, key }).or_insert(port);
            tunnels.listeners.insert((tunnel.kind, tunnel.dst_port), listener);
        }
        tunnels
    }

    /// The listener for this kind and UDP port (0 for GRE), if there is one.
    #[inline]
    pub fn listener(&self, kind: TunnelKind, dst_port: u16) -> Option<PortId> {
        self.listeners.get(&(kind, dst_port)).copied()
    }

    /// The port a frame came in by: a fixed key before a flow's, a fixed remote and then a fixed local address before
    /// any. At most eight lookups.
    pub fn find(&self, arrival: Arrival) -> Option<PortId> {
        let Arrival { listener, local, remote, key } = arrival;
        let exact = key.map_or(Key::Absent, Key::Fixed);
        [exact, Key::Flow].into_iter().find_map(|key| {
            [Some(remote), None].into_iter().find_map(|remote| {
                let find = |local| self.by_match.get(&Match { listener, local, remote, key }).copied();
                find(Some(local)).or_else(|| find(None))
            })
        })
    }
}
