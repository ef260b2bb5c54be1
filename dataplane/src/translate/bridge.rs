//! The bridge stage: IEEE 802.1D/Q learning, filtering and forwarding, as `NORMAL` does it in Open vSwitch
//! (ovs-vswitchd.conf.db(5), tables Bridge and Port; RFC 4541 for snooping).

use encap::field::{EtherType, IpProto, MacAddr};
use flowtable::action::{DropReason, Effect};
use flowtable::id::{BridgeId, Place, PortId, SegmentId, Station};
use flowtable::mcast::Group;

use super::exit::Exit;
use super::vlan::{Refused, Tags};
use super::{Ingress, Mapped, Steps, Walk, is_reserved};
use crate::segment::Segments;
use crate::tables::{Bridge, PortEntry, PortKind, SnoopingConfig};

/// A frame inside a bridge, past its ingress checks.
pub(super) struct Inside<'a> {
    pub(super) ingress: Ingress,
    pub(super) segment: SegmentId,
    entry: &'a PortEntry,
    bridge: &'a Bridge,
}

impl Inside<'_> {
    /// Its segment, and its tags.
    pub(super) fn tagged(&self) -> (SegmentId, &Tags) {
        (self.segment, &self.ingress.tags)
    }
}

/// Who gets a multicast frame.
enum Audience {
    /// Every port of the VLAN.
    All,
    /// These ports, and those that are set to get all multicast.
    Ports(Vec<PortId>),
    /// A membership report: these ports, and those that are set to get all reports.
    Queriers(Vec<PortId>),
}

impl<'a, S: Steps> Walk<'a, S> {
    /// Passes the frame through the bridge of the port it enters by.
    pub(super) fn bridge(&mut self, ingress: Ingress) -> Result<(), DropReason> {
        let inside = self.admit(ingress)?;
        let dst = self.probe.eth_dst();
        if is_reserved(inside.bridge, dst) {
            self.say(inside.ingress.depth, || format!("{dst} is reserved for bridges"));
            return Err(DropReason::Reserved);
        }
        self.learn(&inside);
        if let Some(mac) = self.answer(&inside) {
            let in_port = self.in_port;
            self.say(inside.ingress.depth, || format!("the switch answers: {mac} has the address"));
            self.exits.push((Tags::default(), Exit::Answer(mac, in_port)));
            return Ok(());
        }
        if dst.is_multicast() {
            let audience = self.audience(&inside);
            return self.multicast(&inside, &audience);
        }
        self.unicast(&inside)
    }

    /// Ingress checks: limits, source address, VLAN.
    fn admit(&mut self, ingress: Ingress) -> Result<Inside<'a>, DropReason> {
        let depth = ingress.depth;
        if !self.within_limits(depth) {
            return Err(DropReason::TooDeep);
        }
        let entry = self.entry(ingress.port).ok_or(DropReason::NoPort)?;
        let bridge = self.lookout.bridge(entry.bridge).ok_or(DropReason::NoPort)?;
        self.say(depth, || format!("bridge `{}`, in by port `{}`", bridge.name, entry.name));
        if self.probe.eth_src_is_multicast() {
            self.say(depth, || "the source is a group address".into());
            return Err(DropReason::SourceMulticast);
        }
        let (segment, tags) = self.join(&ingress, entry).map_err(|refused| {
            self.steps
                .step(depth, || format!("the port does not carry this frame's VLAN ({:?})", entry.vlan.mode));
            DropReason::from(refused)
        })?;
        let names = self.lookout.names();
        self.say(depth, || called(names, entry.bridge, segment));
        Ok(Inside { ingress: Ingress { tags, ..ingress }, segment, entry, bridge })
    }

    /// The switch's own answer, to a sender on this switch.
    fn answer(&mut self, inside: &Inside<'a>) -> Option<MacAddr> {
        let segment = self.lookout.segment(inside.entry.bridge, inside.segment)?;
        let port = inside.ingress.port;
        let here = inside.ingress.depth == 0 && self.barred.is_none() && !self.lookout.is_uplink(port);
        if here { self.known_neighbour(segment) } else { None }
    }

    /// Notes where the source lives, unless the VLAN only floods. Nobody else is believed to have an address of ours.
    fn learn(&mut self, inside: &Inside<'a>) {
        if self.is_anonymous(inside) {
            return;
        }
        let mac = self.probe.eth_src();
        if self.endpoint(inside, mac).is_some() {
            return;
        }
        let station = Station { segment: inside.segment, mac };
        let (port, bridge) = (inside.ingress.port, inside.entry.bridge);
        let place = match inside.ingress.mapped {
            Some(Mapped { vtep, .. }) => Place::Vtep { tunnel: port, address: vtep },
            None => Place::Port(port),
        };
        self.lookout.note_station(bridge, station);
        self.effects.push(Effect::Learn { bridge, station, place });
    }

    /// Is nothing learned from this frame: is the VLAN in `flood_vlans`, or the segment's tunnel not learned from?
    fn is_anonymous(&mut self, inside: &Inside<'a>) -> bool {
        let segment = self.lookout.segment(inside.entry.bridge, inside.segment);
        let tunnelled = inside.ingress.mapped.is_some();
        self.floods(inside) || tunnelled && segment.is_some_and(|segment| !segment.learning)
    }

    /// Is the VLAN in `flood_vlans`?
    fn floods(&self, inside: &Inside<'a>) -> bool {
        inside.segment.vlan().is_some_and(|vlan| inside.bridge.flood_vlans.contains(vlan))
    }

    fn unicast(&mut self, inside: &Inside<'a>) -> Result<(), DropReason> {
        let (depth, segment) = (inside.ingress.depth, inside.segment);
        let dst = self.probe.eth_dst();
        let Some(place) = self.endpoint(inside, dst).or_else(|| self.place(inside, dst)) else {
            let names = self.lookout.names();
            let called = || called(names, inside.entry.bridge, segment);
            self.say(depth, || format!("{dst} is not known in {}: flood", called()));
            return self.multicast(inside, &Audience::All);
        };
        let port = place.port();
        let entry = self.entry(port).filter(|e| e.bridge == inside.entry.bridge);
        let entry = entry.ok_or(DropReason::PortDown)?;
        self.say(depth, || match place {
            Place::Port(_) => format!("{dst} is behind port `{}`", entry.name),
            Place::Vtep { address, .. } => format!("{dst} is behind VTEP {address}"),
        });
        match (self.barred, entry.kind) {
            (Some(reason), PortKind::Tunnel(_)) => return Err(reason),
            _ if port == inside.ingress.port => return Err(DropReason::NoDestination),
            _ if entry.protected && inside.entry.protected => return Err(DropReason::Protected),
            _ => {}
        }
        match self.terminates(port) {
            Some((kind, listener)) => {
                self.part(inside.tagged(), (port, entry)).map_err(DropReason::from)?;
                let again = self.entry(listener).map_or("", |entry| &entry.name);
                self.say(depth, || {
                    format!("a {kind} tunnel ends here: outer headers off, and in again by `{again}`")
                });
                self.exits.push((Tags::default(), Exit::Inner(kind, listener)));
                Ok(())
            }
            None => self.output(inside, place),
        }
    }

    /// Where an address was learned, or is configured, to be.
    fn place(&mut self, inside: &Inside<'a>, mac: MacAddr) -> Option<Place> {
        if self.floods(inside) {
            return None;
        }
        let station = Station { segment: inside.segment, mac };
        self.lookout.station(inside.entry.bridge, station)
    }

    /// The port of ours with this address, if it carries the segment: that need not be learned.
    fn endpoint(&mut self, inside: &Inside<'a>, mac: MacAddr) -> Option<Place> {
        let ports = self.lookout.endpoints_at(mac).filter(|port| {
            let entry = self.entry(*port).filter(|entry| entry.bridge == inside.entry.bridge);
            entry.is_some_and(|entry| self.part(inside.tagged(), (*port, entry)).is_ok())
        });
        // Of several the first, whatever the order of the map.
        ports.min().map(Place::Port)
    }

    /// Sends the frame where it lives: by a port, into the next bridge if that is a patch, into a tunnel.
    fn output(&mut self, inside: &Inside<'a>, place: Place) -> Result<(), DropReason> {
        let (port, depth) = (place.port(), inside.ingress.depth);
        let Some(entry) = self.entry(port) else { return Ok(()) };
        if let PortKind::Tunnel(tunnel) = entry.kind {
            let vtep = match place {
                Place::Vtep { address, .. } => Some(address),
                Place::Port(_) => None,
            };
            return self.enter_tunnel(inside, (port, tunnel), vtep);
        }
        let tags = self.part(inside.tagged(), (port, entry)).map_err(DropReason::from)?;
        if let PortKind::Patch { peer } = entry.kind {
            self.say(depth, || format!("through patch port `{}`", entry.name));
            // A frame that dies in the next bridge dies there alone: a reason counts only if nothing leaves at all.
            return self.bridge(Ingress::by(peer, tags, depth + 1));
        }
        self.say(depth, || format!("output to port `{}`", entry.name));
        self.exits.push((tags, Exit::Port(port)));
        Ok(())
    }

    /// Sends to everybody in the audience but the ingress port and, from a protected port, other protected ones.
    fn multicast(&mut self, inside: &Inside<'a>, audience: &Audience) -> Result<(), DropReason> {
        let mut result = Ok(());
        for &port in self.lookout.members(inside.entry.bridge) {
            let Some(entry) = self.entry(port) else { continue };
            let barred = matches!(entry.kind, PortKind::Tunnel(_)) && self.barred.is_some();
            let hidden = barred || port == inside.ingress.port || entry.protected && inside.entry.protected;
            if !hidden && audience.includes(port, entry) {
                match self.output(inside, Place::Port(port)) {
                    // A port that does not carry the VLAN is simply not part of the flood.
                    Ok(()) | Err(DropReason::Vlan | DropReason::CustomerVlan) => {}
                    Err(reason) => result = Err(reason),
                }
            }
        }
        result
    }

    /// Who gets this multicast frame. Without snooping: all.
    fn audience(&mut self, inside: &Inside<'a>) -> Audience {
        let Some(snooping) = &inside.bridge.snooping else { return Audience::All };
        // A broadcast is for all, whatever the IP address says: no one reports a group for it.
        if self.floods(inside) || self.probe.eth_dst().is_broadcast() {
            return Audience::All;
        }
        match self.probe.eth_type() {
            EtherType::IPV4 if self.probe.ip_proto() == IpProto::IGMP => self.igmp(inside),
            EtherType::IPV6 if self.probe.ip_proto() == IpProto::ICMPV6 && self.is_mld() => self.mld(inside),
            EtherType::IPV4 => {
                let dst = self.probe.ip_dst();
                // 224.0.0.0/24 is link-local and always flooded (RFC 4541 section 2.1.2).
                let local = dst.octets()[..3] == [224, 0, 0];
                if local { Audience::All } else { self.members(inside, snooping, dst.into()) }
            }
            EtherType::IPV6 => {
                let dst = self.probe.ipv6_dst();
                // All-nodes is always flooded (RFC 4541 section 3).
                let all_nodes = dst == std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                if all_nodes { Audience::All } else { self.members(inside, snooping, dst.into()) }
            }
            _ => Audience::All,
        }
    }

    /// IGMP message types (RFC 3376 section 4): 0x11 is a query, 0x12, 0x16, 0x22 reports, 0x17 a leave.
    fn igmp(&mut self, inside: &Inside<'a>) -> Audience {
        let kind = self.probe.igmp_type();
        self.snoop(inside);
        if matches!(kind, 0x12 | 0x16 | 0x17 | 0x22) { self.queriers(inside) } else { Audience::All }
    }

    /// MLD message types (RFC 3810 section 5): 130 is a query, 131 and 143 reports, 132 a done.
    fn mld(&mut self, inside: &Inside<'a>) -> Audience {
        let kind = self.probe.icmpv6_type();
        self.snoop(inside);
        if kind == 130 { Audience::All } else { self.queriers(inside) }
    }

    fn is_mld(&mut self) -> bool {
        matches!(self.probe.icmpv6_type(), 130..=132 | 143)
    }

    /// Every such frame must be read, so the decision is not cached.
    fn snoop(&mut self, inside: &Inside<'a>) {
        let (bridge, port) = (inside.entry.bridge, inside.ingress.port);
        self.cacheable = false;
        self.effects.push(Effect::Snoop { bridge, segment: inside.segment, port });
        self.say(inside.ingress.depth, || "a membership message: snooped".into());
    }

    fn queriers(&mut self, inside: &Inside<'a>) -> Audience {
        Audience::Queriers(self.mrouters(inside))
    }

    fn mrouters(&mut self, inside: &Inside<'a>) -> Vec<PortId> {
        self.lookout.queriers(inside.entry.bridge, inside.segment)
    }

    fn members(&mut self, inside: &Inside<'a>, snooping: &SnoopingConfig, group: Group) -> Audience {
        let segment = inside.segment;
        let members = self.lookout.members_of(inside.entry.bridge, segment, group);
        let known = members.is_some();
        let names = self.lookout.names();
        self.say(inside.ingress.depth, || {
            let called = called(names, inside.entry.bridge, segment);
            format!("group {group} in {called} {}", if known { "has members" } else { "is not registered" })
        });
        match members {
            None if snooping.flood_unregistered => Audience::All,
            members => {
                let mut ports = self.mrouters(inside);
                ports.extend(members.into_iter().flatten());
                Audience::Ports(ports)
            }
        }
    }
}

impl Audience {
    fn includes(&self, port: PortId, entry: &PortEntry) -> bool {
        match self {
            Audience::All => true,
            Audience::Ports(ports) => entry.mcast_flood || ports.contains(&port),
            Audience::Queriers(ports) => entry.mcast_flood_reports || ports.contains(&port),
        }
    }
}

/// How people call a segment.
fn called(segments: &Segments, bridge: BridgeId, segment: SegmentId) -> String {
    let name = segments.get(bridge, segment).map(|segment| &segment.name);
    match (segment.vlan(), name) {
        (Some(vlan), None) => format!("VLAN {vlan}"),
        (Some(vlan), Some(name)) => format!("VLAN {vlan}, segment `{name}`"),
        (None, Some(name)) => format!("segment `{name}`"),
        (None, None) => format!("segment {segment}"),
    }
}

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Vlan => DropReason::Vlan,
            Refused::CustomerVlan => DropReason::CustomerVlan,
            Refused::TooDeep => DropReason::TooDeep,
        }
    }
}
