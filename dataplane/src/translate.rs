//! The slow path: what happens to a frame with this key, decided from the published tables and what was
//! learned. Pure: same snapshot, same learned state, same key, same decision.
//!
//! One file per stage. Each stage looks at the key through a [`Probe`], so the decision's mask is exactly
//! what was looked at; it collects exits and effects and performs none of them. `sluice trace` is this
//! function with its steps kept.

mod asked;
mod bridge;
mod exit;
mod lookout;
mod neighbour;
pub mod precedent;
mod segment;
mod settled;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod vlan;

use std::net::IpAddr;

use encap::field::MacAddr;
use flowtable::action::{Action, DropReason, Effect};
use flowtable::flow::Decision;
use flowtable::id::{BridgeId, Place, PortId, SegmentId, Station};
use flowtable::key::FlowKey;
use flowtable::mask::Probe;
use flowtable::time::Instant;
use smallvec::SmallVec;

use crate::snapshot::Snapshot;
use crate::tables::{Bridge, PortEntry, PortKind};
use asked::Asked;
use exit::{Exits, emit};
use lookout::Lookout;
use vlan::Tags;

/// How many bridges a frame may pass one after the other (`resubmit` depth in OVS: 64).
const MAX_DEPTH: usize = 64;
/// How many bridge visits one decision may take in all: what bounds the cost of a patch-port loop.
const MAX_VISITS: usize = 256;

/// What a decision may look at besides the key.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Tables and learned state.
    pub snapshot: &'a Snapshot,
    /// Entries older than their age are as good as gone.
    pub now: Instant,
}

impl View<'_> {
    /// Where a station is known to live.
    #[inline]
    fn place(self, bridge: BridgeId, station: Station) -> Option<Place> {
        self.snapshot.learned(bridge)?.fdb().lookup(station, self.now)
    }
}

/// Where the steps of a decision are told.
pub trait Steps {
    /// At nesting `depth`, this was looked at or decided.
    fn step(&mut self, depth: usize, text: impl FnOnce() -> String);
}

/// Nobody listens: the steps are not even formatted.
pub struct Silent;

impl Steps for Silent {
    #[inline]
    fn step(&mut self, _depth: usize, _text: impl FnOnce() -> String) {}
}

/// Decides the fate of a frame. Cost: one lookup per bridge passed, one step per port of a flooded bridge, and one walk
/// through the underlay per VTEP the frame goes to.
pub fn translate<S: Steps>(view: View<'_>, key: &FlowKey, steps: &mut S) -> Decision {
    inquire(view, key, steps).0
}

/// As [`translate`]; and what was asked on the way.
fn inquire<S: Steps>(view: View<'_>, key: &FlowKey, steps: &mut S) -> (Decision, Asked) {
    let mut walk = Walk::new(Lookout::new(view), key, steps);
    let refused = walk.enter().err();
    walk.decide(refused)
}

/// A frame about to enter a bridge.
struct Ingress {
    port: PortId,
    tags: Tags,
    depth: usize,
    /// What the outer headers say, if it comes from a flow-based tunnel port.
    mapped: Option<Mapped>,
}

impl Ingress {
    fn by(port: PortId, tags: Tags, depth: usize) -> Self {
        Ingress { port, tags, depth, mapped: None }
    }
}

/// The segment that outer headers name, and where they come from.
#[derive(Clone, Copy)]
struct Mapped {
    segment: SegmentId,
    vtep: IpAddr,
}

/// One decision in the making.
struct Walk<'a, S> {
    lookout: Lookout<'a>,
    probe: Probe<'a>,
    steps: &'a mut S,
    in_port: PortId,
    /// Why the frame may not go into a tunnel: it came out of one, or is an outer frame already. Without this, a flood
    /// over tunnels that meet would not end.
    barred: Option<DropReason>,
    exits: Exits,
    /// What the congestion notification of the frame becomes.
    ecn: Option<u8>,
    effects: SmallVec<[Effect; 2]>,
    cacheable: bool,
    visits: usize,
    /// A limit was hit: the whole frame is dropped, as a loop would otherwise multiply it.
    too_deep: bool,
}

impl<'a, S: Steps> Walk<'a, S> {
    fn new(lookout: Lookout<'a>, key: &'a FlowKey, steps: &'a mut S) -> Self {
        Walk {
            lookout,
            probe: Probe::new(key),
            steps,
            in_port: key.in_port(),
            barred: None,
            exits: Exits::new(),
            ecn: None,
            effects: SmallVec::new(),
            cacheable: true,
            visits: 0,
            too_deep: false,
        }
    }

    fn enter(&mut self) -> Result<(), DropReason> {
        let port = self.probe.in_port();
        match self.entry(port).ok_or(DropReason::NoPort)?.kind {
            PortKind::Tunnel(tunnel) => self.leave_tunnel(port, tunnel.kind),
            PortKind::Attached | PortKind::Patch { .. } => self.bridge(Ingress::by(port, Tags::default(), 0)),
        }
    }

    /// Adds an effect, once.
    fn remember(&mut self, effect: Effect) {
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }

    fn say(&mut self, depth: usize, text: impl FnOnce() -> String) {
        self.steps.step(depth, text);
    }

    fn entry(&mut self, port: PortId) -> Option<&'a PortEntry> {
        self.lookout.port(port)
    }

    /// Is there still room to enter one more bridge?
    fn within_limits(&mut self, depth: usize) -> bool {
        self.visits += 1;
        self.too_deep |= depth >= MAX_DEPTH || self.visits > MAX_VISITS;
        !self.too_deep
    }

    fn decide(mut self, refused: Option<DropReason>) -> (Decision, Asked) {
        let reason = match (self.too_deep, self.exits.is_empty()) {
            (true, _) => Some(DropReason::TooDeep),
            (false, true) => Some(refused.unwrap_or(DropReason::NoDestination)),
            (false, false) => None,
        };
        let actions = match reason {
            Some(reason) => {
                self.say(0, || format!("drop: {}", reason.name()));
                vec![Action::Drop(reason)]
            }
            None => emit(self.ecn.map(Action::SetEcn), self.exits),
        };
        let (depends, rests_on, asked) = self.lookout.seen();
        let decision = Decision {
            in_port: self.in_port,
            mask: *self.probe.mask(),
            actions: actions.into(),
            effects: self.effects.as_slice().into(),
            depends,
            rests_on,
            cacheable: self.cacheable,
        };
        (decision, asked)
    }
}

/// Addresses of vendors' own bridge protocols, as (address, prefix length in bits): EDP and EAPS of Extreme;
/// ISL, CDP and its kin, CFM, PVST+ and Uplink Fast of Cisco (ovs-vswitchd.conf.db(5), `forward-bpdu`).
const VENDOR_RESERVED: [(u64, u32); 6] = [
    (0x00e0_2b00_0000, 48),
    (0x00e0_2b00_0004, 48),
    (0x00e0_2b00_0006, 48),
    (0x0100_0c00_0000, 48),
    (0x0100_0ccc_ccc0, 44),
    (0x0100_0ccd_cdcd, 48),
];

/// Must this bridge not forward to the address (`other_config:forward-bpdu`)?
fn is_reserved(bridge: &Bridge, mac: MacAddr) -> bool {
    !bridge.forward_bpdu && is_for_bridges(mac)
}

fn is_for_bridges(mac: MacAddr) -> bool {
    let vendor = |&(address, bits): &(u64, u32)| (mac.to_u64() ^ address) >> (48 - bits) == 0;
    mac.is_reserved() || VENDOR_RESERVED.iter().any(vendor)
}
