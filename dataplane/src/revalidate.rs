//! After a change: which cached decisions still hold, found out within a budget per turn.
//!
//! Each poller looks after the flows it installed. Two things ask for another look. A new generation of the
//! tables: until a flow is confirmed for it no cache follows the flow (the generations differ), so nothing
//! stale is ever done; revalidating in the background merely saves the next frame the trouble. Most flows are confirmed at
//! sight, as they rest on nothing that was changed (see [`crate::changes`]). A change of
//! learned state: only flows that looked the changed entry up (by [`Flow::depends`]) are translated again.
//!
//! The same rounds expire unused flows, and keep learned entries young while a cached flow uses them.

use std::time::Duration;

use flowtable::action::Effect;
use flowtable::flow::{Birth, DEAD, Decision, Flow};
use flowtable::id::Place;
use flowtable::key::FlowKey;
use flowtable::megaflow::{Inserted, Removed};
use flowtable::time::Instant;

use crate::shared::Shared;
use crate::translate::View;
use crate::translate::precedent::Precedents;

/// Flows looked at per turn while frames flow: 32 translations take about as long as one batch of misses.
const BUSY_STEP: usize = 32;
/// Flows looked at per turn otherwise.
const IDLE_STEP: usize = 1024;
/// How often unused flows are looked for, and used learned entries refreshed.
const ROUND: Duration = Duration::from_secs(1);

/// How much time a turn can spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Frames are flowing.
    Busy,
    /// Nothing else to do.
    Idle,
}

/// What one round over the flows does. Both at once if both are due: neither can keep the other from its turn.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Translate again what is of another generation or depends on these bits.
    changed: Option<u64>,
    /// Expire and refresh.
    upkeep: bool,
}

/// What becomes of a flow.
#[expect(clippy::large_enum_variant, reason = "lives for a moment, on the stack")]
enum Verdict {
    Keep,
    Remove,
    /// It is decided otherwise now, and what it taught is known: it need not wait for a frame.
    Replace(Decision),
}

/// The flows one poller installed, and how far it is in looking at them.
pub struct Revalidator {
    flows: Vec<Flow>,
    precedents: Precedents,
    /// Dependency bits that changed since the running round began.
    waiting: Option<u64>,
    running: Option<(Round, usize)>,
    last_upkeep: Instant,
    max_idle: Duration,
}

impl Revalidator {
    /// With no flows yet; a flow unused for `max_idle` will go.
    pub fn new(max_idle: Duration) -> Self {
        Revalidator {
            flows: Vec::new(),
            precedents: Precedents::default(),
            waiting: None,
            running: None,
            last_upkeep: Instant::ZERO,
            max_idle,
        }
    }

    /// What happens to a frame, as [`translate`](crate::translate::translate) decides it.
    pub fn decide(&mut self, view: View<'_>, key: &FlowKey) -> Decision {
        self.precedents.decide(view, key)
    }

    /// Makes a flow, puts it into the table, and takes charge of it. Says whether there was room for it.
    pub fn install(
        &mut self,
        key: &FlowKey,
        decision: Decision,
        view: View<'_>,
        shared: &Shared,
    ) -> (Flow, bool) {
        let flow = self.make(key, decision, (view.snapshot.generation, view.now), shared);
        let installed = insert(&flow, shared);
        if installed {
            self.flows.push(flow.clone());
        }
        (flow, installed)
    }

    fn make(
        &mut self,
        key: &FlowKey,
        decision: Decision,
        (generation, now): (u64, Instant),
        shared: &Shared,
    ) -> Flow {
        let birth = Birth { generation, pollers: shared.wakers.len(), now };
        self.precedents.flow(key, decision, birth)
    }

    /// Puts a flow with another decision, but the same mask, in the place of one. If there is no room for it just now, the
    /// old one is dead.
    fn replace(&mut self, at: usize, decision: Decision, generation: u64, shared: &Shared) {
        let old = self.flows[at].clone();
        let new = self.make(&old.key(), decision, (generation, old.last_use()), shared);
        if insert(&new, shared) {
            self.flows[at] = new;
        } else {
            shared.megaflows.remove(&old);
        }
    }

    /// Learned entries with these dependency bits changed, or (zero bits) the tables did.
    pub fn note(&mut self, bits: u64) {
        self.waiting = Some(self.waiting.unwrap_or(0) | bits);
    }

    /// Is a change still to be looked at, or a round to be finished?
    pub fn is_behind(&self) -> bool {
        self.waiting.is_some() || self.running.is_some()
    }

    /// Is there anything to come back for?
    pub fn has_flows(&self) -> bool {
        !self.flows.is_empty()
    }

    /// Goes on for one turn. Returns how many flows were translated again. A flow that the table
    /// cannot let go of now, since another poller writes, is dead and stays in our care until the next round.
    pub fn advance(&mut self, view: View<'_>, pace: Pace, shared: &Shared) -> u64 {
        let Some((round, mut at)) = self.running.take().or_else(|| self.next_round(view.now)) else {
            return 0;
        };
        let mut translated = 0;
        for _ in 0..if pace == Pace::Busy { BUSY_STEP } else { IDLE_STEP } {
            let Some(flow) = self.flows.get(at) else { return translated };
            let verdict = match flow.generation() {
                DEAD => Verdict::Remove,
                _ if round.upkeep && self.is_unused(flow, view.now) => Verdict::Remove,
                _ if round.changed.is_some_and(|bits| is_touched(flow, view, bits)) => {
                    translated += 1;
                    recheck(flow, view, &mut self.precedents)
                }
                _ => Verdict::Keep,
            };
            match verdict {
                Verdict::Keep => {
                    if round.upkeep {
                        refresh(flow, view, shared);
                    }
                    at += 1;
                }
                Verdict::Replace(decision) => {
                    self.replace(at, decision, view.snapshot.generation, shared);
                    at += 1;
                }
                Verdict::Remove => match shared.megaflows.remove(flow) {
                    Removed::Busy => at += 1,
                    Removed::Removed | Removed::Absent => drop(self.flows.swap_remove(at)),
                },
            }
        }
        self.running = Some((round, at));
        translated
    }

    fn next_round(&mut self, now: Instant) -> Option<(Round, usize)> {
        let upkeep = !self.flows.is_empty() && now.since(self.last_upkeep) >= ROUND;
        if upkeep {
            self.last_upkeep = now;
        }
        let changed = self.waiting.take();
        (upkeep || changed.is_some()).then_some((Round { changed, upkeep }, 0))
    }

    fn is_unused(&self, flow: &Flow, now: Instant) -> bool {
        now.since(flow.last_use()) > self.max_idle
    }
}

fn is_touched(flow: &Flow, view: View<'_>, bits: u64) -> bool {
    !view.snapshot.holds(flow) || flow.depends() & bits != 0
}

fn insert(flow: &Flow, shared: &Shared) -> bool {
    let inserted = shared.megaflows.insert(flow.clone());
    matches!(inserted, Inserted::Installed | Inserted::Replaced(_) | Inserted::Evicted(_))
}

/// Translates the flow again. It stays, counters and all, if the decision is the same.
///
/// Its masked key serves as the frame: a decision that looks at nothing else cannot tell them apart, and one
/// that does has another mask.
fn recheck(flow: &Flow, view: View<'_>, precedents: &mut Precedents) -> Verdict {
    let today = precedents.decide(view, &flow.key());
    let known = today.effects.iter().all(|effect| is_known(effect, view));
    if known && flow.is_by(&today) {
        flow.confirm(view.snapshot.generation);
        return Verdict::Keep;
    }
    // With another mask it were for other frames than this flow's, and a question is asked when there is a frame for it.
    let quiet = today.effects.iter().all(|effect| matches!(effect, Effect::Learn { .. }));
    let same = today.mask == *flow.mask() && today.cacheable;
    // A station that moved may be on its way back: what was learned is asked when there is a frame for it, too.
    let by_tables = flow.generation() != view.snapshot.generation;
    if by_tables && known && quiet && same { Verdict::Replace(today) } else { Verdict::Remove }
}

/// Would the flow be made just like this, by the decision of today?
pub fn is_still_so(flow: &Flow, today: &Decision, view: View<'_>) -> bool {
    flow.is_by(today) && flow.effects().iter().all(|effect| is_known(effect, view))
}

/// Is what the flow taught still what we know? If not, its next frame must teach it again.
fn is_known(effect: &Effect, view: View<'_>) -> bool {
    match *effect {
        Effect::Learn { bridge, station, place } => view.snapshot.learned(bridge).is_some_and(|learned| {
            let fdb = learned.fdb();
            fdb.lookup(station, view.now) == Some(place) || fdb.is_static(station)
        }),
        Effect::Snoop { .. } | Effect::Resolve { .. } => true,
    }
}

/// Keeps the learned entries of a used flow young, and its questions open. Never moves an entry: that takes a frame that
/// was translated.
fn refresh(flow: &Flow, view: View<'_>, shared: &Shared) {
    let used = flow.last_use();
    if view.now.since(used) > ROUND + ROUND {
        return;
    }
    for effect in flow.effects().iter().filter(|effect| is_known(effect, view)) {
        if let Effect::Learn { bridge, station, place } = *effect
            && let Some(learned) = view.snapshot.learned(bridge)
        {
            learned.fdb().refresh(station, used);
            if let Place::Vtep { address, .. } = place {
                learned.vteps().refresh(station.segment, address, used);
            }
        }
    }
    shared.resolve(flow.effects());
}
