//! The slow path: what happens to a frame with this key, decided from the published tables and what was
//! learned. Pure: same snapshot, same learned state, same key, same decision.
//!
//! One file per stage. Each stage looks at the key through a [`Probe`], so the decision's mask is exactly
//! what was looked at; it collects outputs and effects and performs none of them. `sluice trace` is this
//! function with its steps kept.

mod bridge;
pub mod vlan;

use encap::field::MacAddr;
use flowtable::action::{Action, DropReason, Effect};
use flowtable::flow::Decision;
use flowtable::id::PortId;
use flowtable::key::FlowKey;
use flowtable::mask::Probe;
use flowtable::time::Instant;

use crate::snapshot::Snapshot;
use crate::tables::{Bridge, PortEntry, PortKind};
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

/// Decides the fate of a frame. Cost: one lookup per bridge passed, and one step per port of a flooded bridge.
pub fn translate<S: Steps>(view: View<'_>, key: &FlowKey, steps: &mut S) -> Decision {
    let mut walk = Walk::new(view, key, steps);
    let in_port = walk.probe.in_port();
    let refused = match view.snapshot.tables.port(in_port) {
        Some(_) => walk.bridge(Ingress { port: in_port, tags: Tags::default(), depth: 0 }).err(),
        None => Some(DropReason::NoPort),
    };
    walk.decide(refused)
}

/// A frame about to enter a bridge.
struct Ingress {
    port: PortId,
    tags: Tags,
    depth: usize,
}

/// One decision in the making.
struct Walk<'a, S> {
    view: View<'a>,
    probe: Probe<'a>,
    steps: &'a mut S,
    outputs: Vec<(Tags, PortId)>,
    effects: Vec<Effect>,
    depends: u64,
    cacheable: bool,
    visits: usize,
    /// A limit was hit: the whole frame is dropped, as a loop would otherwise multiply it.
    too_deep: bool,
}

impl<'a, S: Steps> Walk<'a, S> {
    fn new(view: View<'a>, key: &'a FlowKey, steps: &'a mut S) -> Self {
        Walk {
            view,
            probe: Probe::new(key),
            steps,
            outputs: Vec::new(),
            effects: Vec::new(),
            depends: 0,
            cacheable: true,
            visits: 0,
            too_deep: false,
        }
    }

    fn say(&mut self, depth: usize, text: impl FnOnce() -> String) {
        self.steps.step(depth, text);
    }

    fn entry(&self, port: PortId) -> Option<&'a PortEntry> {
        self.view.snapshot.tables.port(port)
    }

    /// Sends the frame, tagged as it is inside the bridge, to a port; into the next bridge if it is a patch.
    fn output(&mut self, from: &Ingress, port: PortId) -> Result<(), vlan::Refused> {
        let Some(entry) = self.entry(port) else { return Ok(()) };
        let tags = from.tags.leave(&entry.vlan, &mut self.probe)?;
        match entry.kind {
            PortKind::Attached => {
                self.say(from.depth, || format!("output to port `{}`", entry.name));
                self.outputs.push((tags, port));
            }
            PortKind::Patch { peer } => {
                self.say(from.depth, || format!("through patch port `{}`", entry.name));
                // A frame that dies in the next bridge dies there alone: the other outputs stand.
                let _ = self.bridge(Ingress { port: peer, tags, depth: from.depth + 1 });
            }
        }
        Ok(())
    }

    /// Is there still room to enter one more bridge?
    fn within_limits(&mut self, depth: usize) -> bool {
        self.visits += 1;
        self.too_deep |= depth >= MAX_DEPTH || self.visits > MAX_VISITS;
        !self.too_deep
    }

    fn decide(mut self, refused: Option<DropReason>) -> Decision {
        let reason = match (self.too_deep, self.outputs.is_empty()) {
            (true, _) => Some(DropReason::TooDeep),
            (false, true) => Some(refused.unwrap_or(DropReason::NoDestination)),
            (false, false) => None,
        };
        let actions = match reason {
            Some(reason) => {
                self.say(0, || format!("drop: {}", reason.name()));
                vec![Action::Drop(reason)]
            }
            None => emit(self.outputs),
        };
        Decision {
            mask: *self.probe.mask(),
            actions: actions.into(),
            effects: self.effects.into(),
            depends: self.depends,
            cacheable: self.cacheable,
        }
    }
}

/// Turns outputs into actions. Sorted so that tags only ever come off the original frame, each once.
fn emit(mut outputs: Vec<(Tags, PortId)>) -> Vec<Action> {
    outputs.sort();
    outputs.dedup();
    let mut actions = Vec::with_capacity(outputs.len() + 2);
    let mut current = Tags::default();
    for (tags, port) in outputs {
        current.become_(&tags, &mut actions);
        actions.push(Action::Output(port));
        current = tags;
    }
    actions
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
    let vendor = |&(address, bits): &(u64, u32)| (mac.to_u64() ^ address) >> (48 - bits) == 0;
    !bridge.forward_bpdu && (mac.is_reserved() || VENDOR_RESERVED.iter().any(vendor))
}
