//! The bridge stage: IEEE 802.1D/Q learning, filtering and forwarding, as `NORMAL` does it in Open vSwitch
//! (ovs-vswitchd.conf.db(5), tables Bridge and Port; RFC 4541 for snooping).

use encap::field::{EtherType, IpProto};
use flowtable::action::{DropReason, Effect};
use flowtable::fdb::Fdb;
use flowtable::id::{PortId, SegmentId, Station};
use flowtable::mcast::{Group, McastTable};

use super::vlan::Refused;
use super::{Ingress, Steps, Walk, is_reserved};
use crate::tables::{Bridge, PortEntry, SnoopingConfig};

/// A frame inside a bridge, past its ingress checks.
struct Inside<'a> {
    ingress: Ingress,
    entry: &'a PortEntry,
    bridge: &'a Bridge,
    segment: SegmentId,
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
        let bridge = self.view.snapshot.tables.bridge(entry.bridge).ok_or(DropReason::NoPort)?;
        self.say(depth, || format!("bridge `{}`, in by port `{}`", bridge.name, entry.name));
        if self.probe.eth_src_is_multicast() {
            self.say(depth, || "the source is a group address".into());
            return Err(DropReason::SourceMulticast);
        }
        let tags = ingress.tags.enter(&entry.vlan, &mut self.probe).map_err(|refused| {
            self.steps
                .step(depth, || format!("the port does not carry this frame's VLAN ({:?})", entry.vlan.mode));
            reason(refused)
        })?;
        let vlan = tags.vlan(&mut self.probe);
        self.say(depth, || format!("VLAN {vlan}"));
        Ok(Inside { ingress: Ingress { tags, ..ingress }, entry, bridge, segment: vlan.into() })
    }

    /// Notes where the source lives, unless the VLAN only floods.
    fn learn(&mut self, inside: &Inside<'a>) {
        if self.floods(inside) {
            return;
        }
        let station = Station { segment: inside.segment, mac: self.probe.eth_src() };
        let (port, bridge) = (inside.ingress.port, inside.entry.bridge);
        self.depends |= Fdb::dependency(station);
        self.effects.push(Effect::Learn { bridge, station, port });
    }

    /// Is the VLAN in `flood_vlans`?
    fn floods(&mut self, inside: &Inside<'a>) -> bool {
        let vlan = inside.ingress.tags.vlan(&mut self.probe);
        inside.bridge.flood_vlans.contains(vlan)
    }

    fn unicast(&mut self, inside: &Inside<'a>) -> Result<(), DropReason> {
        let (depth, segment) = (inside.ingress.depth, inside.segment);
        let dst = self.probe.eth_dst();
        let learned = match self.floods(inside) {
            true => None,
            false => {
                let station = Station { segment, mac: dst };
                self.depends |= Fdb::dependency(station);
                let learned = self.view.snapshot.learned(inside.entry.bridge);
                learned.and_then(|l| l.fdb().lookup(station, self.view.now))
            }
        };
        let Some(port) = learned else {
            self.say(depth, || format!("{dst} is not learned in VLAN {segment}: flood"));
            return self.multicast(inside, &Audience::All);
        };
        let entry = self.entry(port).filter(|e| e.bridge == inside.entry.bridge);
        let entry = entry.ok_or(DropReason::PortDown)?;
        self.say(depth, || format!("{dst} is learned on port `{}`", entry.name));
        if port == inside.ingress.port {
            return Err(DropReason::NoDestination);
        }
        if entry.protected && inside.entry.protected {
            return Err(DropReason::Protected);
        }
        self.output(&inside.ingress, port).map_err(reason)
    }

    /// Sends to everybody in the audience but the ingress port and, from a protected port, other protected ones.
    fn multicast(&mut self, inside: &Inside<'a>, audience: &Audience) -> Result<(), DropReason> {
        for &port in &inside.bridge.ports {
            let Some(entry) = self.entry(port) else { continue };
            let hidden = port == inside.ingress.port || entry.protected && inside.entry.protected;
            if !hidden && audience.includes(port, entry) {
                // A port that does not carry the VLAN is simply not part of the flood.
                let _ = self.output(&inside.ingress, port);
            }
        }
        Ok(())
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
        self.depends |= McastTable::querier_dependency(inside.segment);
        let Some(learned) = self.view.snapshot.learned(inside.entry.bridge) else { return Vec::new() };
        learned.mcast().queriers(inside.segment, self.view.now)
    }

    fn members(&mut self, inside: &Inside<'a>, snooping: &SnoopingConfig, group: Group) -> Audience {
        let segment = inside.segment;
        self.depends |= McastTable::dependency(segment, group);
        let learned = self.view.snapshot.learned(inside.entry.bridge);
        let members = learned.and_then(|l| l.mcast().lookup(segment, group, self.view.now));
        let known = members.is_some();
        self.say(inside.ingress.depth, || {
            format!(
                "group {group} in VLAN {segment} {}",
                if known { "has members" } else { "is not registered" }
            )
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

fn reason(refused: Refused) -> DropReason {
    match refused {
        Refused::Vlan => DropReason::Vlan,
        Refused::CustomerVlan => DropReason::CustomerVlan,
        Refused::TooDeep => DropReason::TooDeep,
    }
}
