//! The only window of a decision on the tables and on what was learned: it notes what was looked at.
//!
//! As the probe does for the frame, this one does for everything else. What a decision looked at and did not find, it looked
//! at too. So a decision holds until something changes that is noted here, see [`crate::changes`].

use std::net::IpAddr;

use encap::field::{MacAddr, VlanId};
use encap::tunnel::TunnelKind;
use flowtable::fdb::Fdb;
use flowtable::grounds::{Ground, Grounds};
use flowtable::id::{BridgeId, Place, PortId, SegmentId, Station};
use flowtable::mcast::{Group, McastTable};
use flowtable::vteps::Vteps;

use super::View;
use super::asked::Asked;
use crate::segment::{Segment, Segments};
use crate::tables::{Bridge, PortEntry};
use crate::tunnel::Arrival;
use crate::underlay::{Endpoint, Hop};

/// The window.
pub(super) struct Lookout<'a> {
    view: View<'a>,
    /// Learned entries looked up.
    depends: u64,
    /// Configuration looked at.
    rests_on: Grounds,
    /// What was asked of learned state, with the answers.
    asked: Asked,
}

impl<'a> Lookout<'a> {
    /// Nobody has looked yet.
    pub fn new(view: View<'a>) -> Self {
        Lookout { view, depends: 0, rests_on: Grounds::NONE, asked: Asked::default() }
    }

    /// A window on the same things that nobody has looked through.
    pub fn afresh(&self) -> Self {
        Lookout::new(self.view)
    }

    /// Notes what the decision on another frame, the outer one of this, looked at.
    pub fn join(&mut self, other: Lookout<'_>) {
        self.depends |= other.depends;
        self.rests_on |= other.rests_on;
        self.asked.join((other.asked, other.depends));
    }

    /// What was looked at: learned entries, and configuration; and what was asked.
    pub fn seen(self) -> (u64, Grounds, Asked) {
        (self.depends, self.rests_on, self.asked)
    }

    /// Segments, for their names only.
    pub fn names(&self) -> &'a Segments {
        &self.view.snapshot.tables.segments
    }

    #[inline]
    pub fn port(&mut self, port: PortId) -> Option<&'a PortEntry> {
        self.rests_on.add(Ground::Port(port));
        self.view.snapshot.tables.port(port)
    }

    /// A bridge. Its ports are for [`Lookout::members`].
    #[inline]
    pub fn bridge(&mut self, id: BridgeId) -> Option<&'a Bridge> {
        self.rests_on.add(Ground::Bridge(id));
        self.view.snapshot.tables.bridge(id)
    }

    /// The ports of a bridge.
    pub fn members(&mut self, id: BridgeId) -> &'a [PortId] {
        self.rests_on.add(Ground::Members(id));
        self.view.snapshot.tables.bridge(id).map_or(&[], |bridge| &bridge.ports)
    }

    #[inline]
    pub fn segment(&mut self, bridge: BridgeId, id: SegmentId) -> Option<&'a Segment> {
        self.rests_on.add(Ground::Segment(bridge, id));
        self.view.snapshot.tables.segments.get(bridge, id)
    }

    /// The segment that a flow-based tunnel port carries under this VNI or key.
    pub fn in_tunnel(&mut self, port: PortId, key: u32) -> Option<&'a Segment> {
        self.rests_on.add(Ground::Number(port, key));
        self.found(self.view.snapshot.tables.segments.in_tunnel(port, key))
    }

    /// The segment that is this VLAN on the wire behind an uplink.
    pub fn on_wire(&mut self, uplink: PortId, vlan: VlanId) -> Option<&'a Segment> {
        self.rests_on.add(Ground::Number(uplink, vlan.get().into()));
        self.found(self.view.snapshot.tables.segments.on_wire(uplink, vlan))
    }

    fn found(&mut self, segment: Option<&'a Segment>) -> Option<&'a Segment> {
        segment.inspect(|segment| self.rests_on.add(Ground::Segment(segment.bridge, segment.id)))
    }

    #[inline]
    pub fn is_uplink(&mut self, port: PortId) -> bool {
        self.rests_on.add(Ground::Port(port));
        self.view.snapshot.tables.segments.is_uplink(port)
    }

    /// The tunnel port by which a frame with these outer headers comes in.
    pub fn tunnel_of(&mut self, arrival: Arrival) -> Option<PortId> {
        self.rests_on.add(Ground::Routes);
        self.view.snapshot.tables.tunnels.find(arrival)
    }

    /// Who takes frames of this kind and UDP port.
    pub fn listener(&mut self, kind: TunnelKind, dst_port: u16) -> Option<PortId> {
        self.rests_on.add(Ground::Routes);
        self.view.snapshot.tables.tunnels.listener(kind, dst_port)
    }

    /// A port's addresses of ours.
    #[inline]
    pub fn endpoint(&mut self, port: PortId) -> Option<&'a Endpoint> {
        self.rests_on.add(Ground::Endpoints);
        self.view.snapshot.tables.underlay.endpoints.get(&port)
    }

    /// The ports of ours with this link-layer address.
    pub fn endpoints_at(&mut self, mac: MacAddr) -> impl Iterator<Item = PortId> + use<'a> {
        self.rests_on.add(Ground::Endpoints);
        let endpoints = self.view.snapshot.tables.underlay.endpoints.iter();
        endpoints.filter(move |(_, endpoint)| endpoint.mac == mac).map(|(port, _)| *port)
    }

    /// Is the address one of ours?
    pub fn is_ours(&mut self, address: IpAddr) -> bool {
        self.rests_on.add(Ground::Endpoints);
        self.view.snapshot.tables.underlay.owner(address).is_some()
    }

    /// The way to another endpoint.
    pub fn hop(&mut self, remote: IpAddr, local: Option<IpAddr>) -> Option<Hop> {
        let hop = self.view.snapshot.tables.underlay.hop(remote, local);
        let hosts = [Some(remote), hop.map(|hop| hop.address)].into_iter().flatten().map(Ground::Host);
        self.rests_on |= hosts.chain([Ground::Endpoints, Ground::Routes]).collect();
        hop
    }

    /// The longest packet on the way to another endpoint, if it was told.
    pub fn path_mtu(&mut self, remote: IpAddr) -> Option<u16> {
        self.rests_on.add(Ground::Host(remote));
        self.view.snapshot.tables.underlay.path_mtus.get(&remote).copied()
    }

    /// What is about to be learned of a station depends on what is known of it, and on its segment: what is learned there is
    /// forgotten with it.
    #[inline]
    pub fn note_station(&mut self, bridge: BridgeId, station: Station) {
        self.depends |= Fdb::dependency(station);
        self.rests_on.add(Ground::Segment(bridge, station.segment));
        self.asked.note(station);
    }

    /// Where a station is known to live.
    #[inline]
    pub fn station(&mut self, bridge: BridgeId, station: Station) -> Option<Place> {
        self.note_station(bridge, station);
        self.rests_on.add(Ground::Bridge(bridge));
        let place = self.view.place(bridge, station);
        self.asked.station((bridge, station), place);
        place
    }

    /// The endpoints that have sent into a segment.
    pub fn vteps(&mut self, bridge: BridgeId, segment: SegmentId) -> Vec<IpAddr> {
        self.depends |= Vteps::dependency(segment);
        self.rests_on.add(Ground::Segment(bridge, segment));
        self.rests_on.add(Ground::Bridge(bridge));
        let learned = self.view.snapshot.learned(bridge);
        let vteps = learned.map_or_else(Vec::new, |learned| learned.vteps().of(segment, self.view.now));
        self.asked.vteps((bridge, segment), &vteps);
        vteps
    }

    /// The ports with multicast routers.
    pub fn queriers(&mut self, bridge: BridgeId, segment: SegmentId) -> Vec<PortId> {
        self.depends |= McastTable::querier_dependency(segment);
        self.asked.once();
        self.rests_on.add(Ground::Bridge(bridge));
        let learned = self.view.snapshot.learned(bridge);
        learned.map_or_else(Vec::new, |learned| learned.mcast().queriers(segment, self.view.now))
    }

    /// The ports with members of a group; `None`: nobody has reported it.
    pub fn members_of(&mut self, bridge: BridgeId, segment: SegmentId, group: Group) -> Option<Vec<PortId>> {
        self.depends |= McastTable::dependency(segment, group);
        self.asked.once();
        self.rests_on.add(Ground::Bridge(bridge));
        self.view.snapshot.learned(bridge)?.mcast().lookup(segment, group, self.view.now)
    }
}
