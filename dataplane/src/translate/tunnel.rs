//! The tunnel stage: out of outer headers and into them.
//!
//! In: a frame that the bridge of an endpoint would give to that endpoint, and that is a tunnel's, loses its outer headers;
//! what they said is in the key when it comes in again by the tunnel's listener. Out: the outer frame is walked through the
//! bridge of the endpoint like any other frame, by a key that is made up here, so the whole way is one decision.
//!
//! ECN follows RFC 6040 (normal mode). Nothing from a tunnel goes into a tunnel, in whatever bridge; nor does an outer
//! frame: tunnels are not nested.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;
use encap::ecn;
use encap::field::{EtherType, IpProto, MacAddr, VlanTag};
use encap::offsets::Fragment;
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;
use flowtable::action::{Complaint, DropReason, Effect, Encap};
use flowtable::field::{Field, L4Port, TunnelFlags};
use flowtable::id::{PortId, SegmentId};
use flowtable::key::FlowKey;
use smallvec::SmallVec;

use super::bridge::Inside;
use super::exit::Exit;
use super::vlan::Tags;
use super::{Ingress, Mapped, Steps, Walk};
use crate::segment::{Network, Segment};
use crate::tables::{PortEntry, PortKind};
use crate::tunnel::{Arrival, Carrier, Key, Tos, Tunnel};
use crate::underlay::Hop;

/// Outer time to live where the inner packet, which is no IP, has none to inherit (ip(7), `ip_default_ttl`).
const DEFAULT_TTL: u8 = 64;
/// What the host's stack is taken to carry, in bytes of IP packet, unless it told less.
const HOST_MTU: u16 = 1500;
/// Next hops that one flow has asked for, at most. Those of configured VTEPs are asked for anyway, and who has sent us
/// something is asked for again by the flow that answers it; so of many that forged frames taught, few are.
const QUESTIONS: usize = 32;

/// A tunnel port that a frame is about to leave by.
struct Mouth<'a> {
    port: PortId,
    entry: &'a PortEntry,
    tunnel: Tunnel,
    /// VNI or key.
    id: Option<u32>,
}

/// The way of an outer frame.
struct Path {
    hop: Hop,
    output: PortId,
    tags: ArrayVec<VlanTag, 2>,
    /// The longest IP packet it takes. Bytes.
    mtu: u16,
}

impl<'a, S: Steps> Walk<'a, S> {
    /// A frame that came in by a listener: with its outer headers still on (from the host's stack), or without.
    pub(super) fn leave_tunnel(&mut self, listener: PortId, kind: TunnelKind) -> Result<(), DropReason> {
        if !self.probe.is_decapped() {
            self.exits.push((Tags::default(), Exit::Inner(kind, listener)));
            return Ok(());
        }
        let (local, remote) = (self.probe.tun_dst(), self.probe.tun_src());
        let arrival = Arrival { listener, local, remote, key: self.probe.tun_key() };
        let Some(port) = self.lookout.tunnel_of(arrival) else {
            self.say(0, || {
                format!("out of {kind}{} from {remote} to {local}: no port is for that", named(arrival.key))
            });
            return Err(DropReason::UnknownSegment);
        };
        let entry = self.entry(port).ok_or(DropReason::NoPort)?;
        let PortKind::Tunnel(tunnel) = entry.kind else { return Err(DropReason::NoPort) };
        (self.in_port, self.barred) = (port, Some(DropReason::SplitHorizon));
        self.say(0, || {
            format!("out of {kind}{} from {remote}, by tunnel port `{}`", named(arrival.key), entry.name)
        });
        self.is_foreign(0, remote, Some(local))?;
        if !is_station(remote) {
            self.say(0, || format!("{remote} is nobody's address"));
            return Err(DropReason::UnknownVtep);
        }
        if kind == TunnelKind::Geneve && self.probe.tun_flags().contains(TunnelFlags::OAM) {
            self.say(0, || "a message to the endpoint itself (OAM)".into());
            return Err(DropReason::TunnelProtocol);
        }
        self.take_congestion()?;
        let mapped = match tunnel.key {
            Key::Flow => Some(self.mapped((port, tunnel), &arrival)?),
            Key::Fixed(_) | Key::Absent => None,
        };
        self.bridge(Ingress { mapped, ..Ingress::by(port, Tags::default(), 0) })
    }

    /// Refuses an endpoint that is ourselves.
    fn is_foreign(&mut self, depth: usize, remote: IpAddr, local: Option<IpAddr>) -> Result<(), DropReason> {
        if local != Some(remote) && !self.lookout.is_ours(remote) {
            return Ok(());
        }
        self.say(depth, || format!("{remote} is our own address"));
        Err(DropReason::TunnelLoop)
    }

    /// The segment that the outer headers name.
    fn mapped(&mut self, (port, tunnel): (PortId, Tunnel), arrival: &Arrival) -> Result<Mapped, DropReason> {
        let segment = arrival.key.and_then(|id| self.lookout.in_tunnel(port, id));
        let Some(Segment { network: Network::Tunnel { peers, .. }, name, id, strict_peers, .. }) = segment
        else {
            self.say(0, || "no segment has this id here".into());
            return Err(DropReason::UnknownSegment);
        };
        // The one remote endpoint of a port is a peer of all its segments.
        if *strict_peers && tunnel.remote.is_none() && peers.binary_search(&arrival.remote).is_err() {
            self.say(0, || {
                format!("{} is none of the VTEPs of segment `{name}`, which is strict", arrival.remote)
            });
            return Err(DropReason::UnknownVtep);
        }
        Ok(Mapped { segment: *id, vtep: arrival.remote })
    }

    /// What the underlay says of congestion, the inner packet must say too.
    fn take_congestion(&mut self) -> Result<(), DropReason> {
        let outer = self.probe.tun_ecn();
        if outer == ecn::NOT_ECT || !self.carries_ip() {
            return Ok(());
        }
        let inner = self.probe.ip_ecn();
        let Ok(ecn) = ecn::inner(outer, inner) else {
            self.say(0, || "the underlay is congested, and the inner packet's ends do not know ECN".into());
            return Err(DropReason::Congestion);
        };
        if ecn != inner {
            self.say(0, || format!("ECN {inner} becomes {ecn}, as the underlay says"));
            self.ecn = Some(ecn);
        }
        Ok(())
    }

    fn carries_ip(&mut self) -> bool {
        matches!(self.probe.eth_type(), EtherType::IPV4 | EtherType::IPV6)
    }

    /// The listener for a frame that the bridge gives to `port`, if a tunnel that ends there is what it belongs to. A fragment
    /// does not: nobody puts it together here.
    pub(super) fn terminates(&mut self, port: PortId) -> Option<(TunnelKind, PortId)> {
        let endpoint = self.lookout.endpoint(port)?;
        // The address last: most of what is for the host itself is told by less.
        let door = self.door()?;
        let address: IpAddr = match self.probe.eth_type() {
            EtherType::IPV4 => self.probe.ip_dst().into(),
            _ => self.probe.ipv6_dst().into(),
        };
        let whole = self.probe.ip_frag() == Fragment::No;
        (whole && endpoint.addresses.contains(&address)).then_some(door)
    }

    /// The tunnel that protocol and UDP port belong to, and its listener.
    fn door(&mut self) -> Option<(TunnelKind, PortId)> {
        if !self.carries_ip() {
            return None;
        }
        let (kinds, port) = match self.probe.ip_proto() {
            IpProto::GRE => (&[TunnelKind::Gre][..], 0),
            IpProto::UDP => (&[TunnelKind::Vxlan, TunnelKind::Geneve][..], self.probe.l4_dst().0),
            _ => return None,
        };
        kinds.iter().find_map(|kind| Some((*kind, self.lookout.listener(*kind, port)?)))
    }

    /// Sends a frame into a tunnel: to `vtep` only, or wherever the port leads.
    pub(super) fn enter_tunnel(
        &mut self,
        inside: &Inside<'a>,
        (port, tunnel): (PortId, Tunnel),
        vtep: Option<IpAddr>,
    ) -> Result<(), DropReason> {
        let entry = self.entry(port).ok_or(DropReason::NoPort)?;
        let tags = self.part(inside.tagged(), (port, entry)).map_err(DropReason::from)?;
        let segment = self.lookout.segment(entry.bridge, inside.segment);
        let id = match (tunnel.key, segment.map(|segment| &segment.network)) {
            (Key::Absent, _) => None,
            (Key::Fixed(key), _) => Some(key),
            (Key::Flow, Some(Network::Tunnel { id, .. })) => Some(*id),
            (Key::Flow, _) => return Err(DropReason::UnknownSegment),
        };
        let mouth = Mouth { port, entry, tunnel, id };
        let remotes = match vtep.or(tunnel.remote) {
            Some(remote) => SmallVec::from([remote]),
            None => self.vteps(entry, inside.segment, segment),
        };
        // Of many, those that can be reached get it.
        let mut result = Err(DropReason::NoDestination);
        for remote in remotes {
            result = result.or(self.encap(inside, &mouth, (&tags, remote)));
        }
        result
    }

    /// Who gets what everybody in a segment gets: those configured, and those learned.
    fn vteps(
        &mut self,
        entry: &PortEntry,
        id: SegmentId,
        segment: Option<&Segment>,
    ) -> SmallVec<[IpAddr; 1]> {
        let Some(Segment { network: Network::Tunnel { vteps, .. }, learning, .. }) = segment else {
            return SmallVec::new();
        };
        let mut all = SmallVec::from_slice(vteps);
        if *learning {
            all.extend(self.lookout.vteps(entry.bridge, id));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn encap(
        &mut self,
        inside: &Inside<'a>,
        mouth: &Mouth<'a>,
        (tags, remote): (&Tags, IpAddr),
    ) -> Result<(), DropReason> {
        let depth = inside.ingress.depth;
        let Mouth { port, entry, tunnel, id } = *mouth;
        self.say(depth, || {
            format!("into {}{} to {remote}, by tunnel port `{}`", tunnel.kind, named(id), entry.name)
        });
        let depth = depth + 1;
        self.is_foreign(depth, remote, tunnel.local)?;
        let (tos, ttl) = (self.outer_tos(tunnel.tos), self.outer_ttl(tunnel.ttl));
        let paths = match tunnel.carrier {
            Carrier::Host => SmallVec::from([self.host_path(mouth, remote)]),
            Carrier::Switch => self.paths(depth, mouth, remote)?,
        };
        for Path { hop, output, tags: outer_tags, mtu } in paths {
            let outer = Outer {
                kind: tunnel.kind,
                id,
                eth_src: hop.mac,
                eth_dst: hop.neighbour.unwrap_or_default(),
                tags: outer_tags,
                src: hop.source,
                dst: remote,
                tos,
                ttl,
                df: tunnel.df,
                dst_port: tunnel.dst_port,
                csum: tunnel.csum,
            };
            let template = Template::new(&outer).map_err(|error| {
                self.say(depth, || error.to_string());
                DropReason::NoRoute
            })?;
            let frame_max = mtu.saturating_sub(template.l3_len() as u16);
            self.say(depth, || described(&outer, frame_max));
            let complaint = self.complaint(tags);
            let encap = Encap { tunnel: port, template, output, frame_max, complaint };
            self.exits.push((tags.clone(), Exit::Tunnel(Box::new(encap))));
        }
        Ok(())
    }

    /// How the sender of too long a frame is told. One behind a tunnel is not.
    fn complaint(&mut self, tags: &Tags) -> Option<Complaint> {
        let port = self.in_port;
        self.entry(port).filter(|entry| matches!(entry.kind, PortKind::Attached))?;
        tags.undo(&mut self.probe).map(|(pop, push)| Complaint { port, pop, push })
    }

    /// DSCP as configured, ECN as RFC 6040 section 4.1 copies it.
    fn outer_tos(&mut self, tos: Tos) -> u8 {
        let ip = self.carries_ip();
        let dscp = match tos {
            Tos::Fixed(tos) => tos & !3,
            Tos::Inherit if ip => self.probe.ip_dscp().get() << 2,
            Tos::Inherit => 0,
        };
        dscp | if ip { ecn::outer(self.probe.ip_ecn()) } else { ecn::NOT_ECT }
    }

    fn outer_ttl(&mut self, ttl: Option<u8>) -> u8 {
        match ttl {
            Some(ttl) => ttl,
            None if self.carries_ip() => self.probe.ip_ttl(),
            None => DEFAULT_TTL,
        }
    }

    /// Through the host's stack, which finds its way by itself.
    fn host_path(&mut self, mouth: &Mouth<'_>, remote: IpAddr) -> Path {
        let any = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let path_mtu = self.lookout.path_mtu(remote);
        let (source, endpoint) = (mouth.tunnel.local.unwrap_or(any), mouth.tunnel.listener);
        let hop =
            Hop { endpoint, mac: MacAddr::default(), source, address: remote, neighbour: None, path_mtu };
        let configured = Some(mouth.entry.mtu).filter(|mtu| *mtu != u16::MAX);
        let mtu = [path_mtu, configured].into_iter().flatten().min().unwrap_or(HOST_MTU);
        Path { hop, output: endpoint, tags: ArrayVec::new(), mtu }
    }

    /// Through the endpoint's bridge: usually one way, more if that bridge has not learned where the next hop is.
    fn paths(
        &mut self,
        depth: usize,
        mouth: &Mouth<'_>,
        remote: IpAddr,
    ) -> Result<SmallVec<[Path; 1]>, DropReason> {
        let Some(hop) = self.lookout.hop(remote, mouth.tunnel.local) else {
            let from = mouth.tunnel.local.map_or(String::new(), |local| format!(" from {local}"));
            self.say(depth, || format!("no route to {remote}{from}"));
            return Err(DropReason::NoRoute);
        };
        let Some(neighbour) = hop.neighbour else {
            self.say(depth, || {
                format!("next hop {}, whose link-layer address is not known yet", hop.address)
            });
            if self.effects.len() < QUESTIONS {
                self.remember(Effect::Resolve { endpoint: hop.endpoint, address: hop.address });
            }
            return Err(DropReason::NoNeighbour);
        };
        self.say(depth, || format!("next hop {} at {neighbour}", hop.address));
        let key = outer_key(&hop, neighbour, mouth.tunnel, remote);
        let mut outer = Walk::new(self.lookout.afresh(), &key, &mut *self.steps);
        outer.barred = Some(DropReason::TunnelLoop);
        let result = outer.bridge(Ingress::by(hop.endpoint, Tags::default(), depth));
        let Walk { exits, effects, lookout, too_deep, .. } = outer;
        self.lookout.join(lookout);
        self.too_deep |= too_deep;
        // Many outer frames teach the same: where the endpoint is.
        effects.into_iter().for_each(|effect| self.remember(effect));
        result?;
        let mut limit = |port: PortId| self.lookout.port(port).map_or(u16::MAX, |entry| entry.mtu);
        let to_path = |(tags, exit): (Tags, Exit)| {
            // What would need yet other headers does not leave: tunnels are not nested.
            let Exit::Port(output) = exit else { return None };
            let tags = outer_tags(&tags)?;
            let mtu = limit(output).min(limit(hop.endpoint)).min(hop.path_mtu.unwrap_or(u16::MAX));
            Some(Path { hop, output, tags, mtu })
        };
        let paths: SmallVec<[Path; 1]> = exits.into_iter().filter_map(to_path).collect();
        if paths.is_empty() { Err(DropReason::TunnelLoop) } else { Ok(paths) }
    }
}

/// The tags of an outer frame: only such as came on top of none.
fn outer_tags(tags: &Tags) -> Option<ArrayVec<VlanTag, 2>> {
    let mut outer = ArrayVec::new();
    tags.added()?.try_for_each(|tag| outer.try_push(tag).ok())?;
    Some(outer)
}

/// Can one host have this address (RFC 1122 section 3.2.1.3)? Nobody answers to another.
fn is_station(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(broadcast || address.is_unspecified() || address.is_multicast())
}

/// A VNI or key behind the kind of its tunnel.
fn named(id: Option<u32>) -> String {
    id.map_or(String::new(), |id| format!(" {id}"))
}

/// The outer headers, for people.
fn described(outer: &Outer, frame_max: u16) -> String {
    let Outer { src, dst, tos, ttl, .. } = outer;
    let df = if outer.df { ", DF" } else { "" };
    let csum = if outer.csum { ", checksum" } else { "" };
    format!(
        "outer headers {src} > {dst}, TOS {tos:#04x}, TTL {ttl}{df}{csum}; frames of up to {frame_max} bytes fit"
    )
}

/// The key of an outer frame, as far as a bridge looks at it.
fn outer_key(hop: &Hop, neighbour: MacAddr, tunnel: Tunnel, remote: IpAddr) -> FlowKey {
    let key = FlowKey::default()
        .with(Field::InPort, hop.endpoint)
        .with(Field::EthSrc, hop.mac)
        .with(Field::EthDst, neighbour);
    let key = match (hop.source, remote) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            key.with(Field::EthType, EtherType::IPV4).with(Field::Ipv4Src, src).with(Field::Ipv4Dst, dst)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            key.with(Field::EthType, EtherType::IPV6).with(Field::Ipv6Src, src).with(Field::Ipv6Dst, dst)
        }
        _ => key,
    };
    match tunnel.kind {
        TunnelKind::Gre => key.with(Field::IpProto, IpProto::GRE),
        TunnelKind::Vxlan | TunnelKind::Geneve => {
            key.with(Field::IpProto, IpProto::UDP).with(Field::L4Dst, L4Port(tunnel.dst_port))
        }
    }
}
