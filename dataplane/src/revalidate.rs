//! After a change: which cached decisions still hold, found out within a budget per turn.
//!
//! Each poller looks after the flows it installed. Two things ask for another look. A new generation of the
//! tables: until a flow is confirmed for it no cache follows the flow (the generations differ), so nothing
//! stale is ever done; revalidating in the background merely saves the next frame the trouble. Most flows are confirmed at
//! sight, as they rest on nothing that was changed (see [`crate::changes`]); the others are amended where they lie, if they are for the
//! same frames as before (see [`amend`]). A change of
//! learned state: only flows that looked the changed entry up (by [`Flow::depends`]) are translated again.
//!
//! The same rounds expire unused flows, and keep learned entries young while a cached flow uses them.

pub mod amend;

use std::time::Duration;

use arrayvec::ArrayVec;
use flowtable::action::{Action, Effect};
use flowtable::flow::{Birth, DEAD, Decision, Flow, FlowRef};
use flowtable::id::Place;
use flowtable::key::FlowKey;
use flowtable::megaflow::{Inserted, Reader, Removed};
use flowtable::time::Instant;

use self::amend::By;
use crate::batch::BATCH;
use crate::shared::Shared;
use crate::stats::cycles;
use crate::translate::View;
use crate::translate::precedent::{Precedents, Which};

/// Flows looked at per turn while frames flow, at least: as long as one frame takes, if they are merely confirmed.
const BUSY_STEP: usize = 4;
/// In what time a round is to be through while frames flow, however many flows there are: the longer, the less each turn
/// takes from the frames (bench `mapping`). It takes longer if flows took more time than frames otherwise.
const SOON: Duration = Duration::from_millis(700);
/// Flows looked at per turn at most: with each translated again, what a batch of misses takes eight times.
const BUSY_MOST: usize = 256;
/// Flows looked at per turn otherwise.
const IDLE_STEP: usize = 1024;
/// How far ahead a flow's memory is asked for.
const AHEAD: usize = 8;
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

/// One round over the flows, and what it does. Both at once if both are due: neither can keep the other from its turn.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Translate again what is of another generation or depends on these bits.
    changed: Option<u64>,
    /// Expire and refresh.
    upkeep: bool,
    /// The flow that is next.
    at: usize,
    /// When it is to be through.
    end: Instant,
    /// When it went on the last time.
    last: Instant,
    /// How many flows it looked at then, and in how many cycles.
    took: (usize, u64),
    /// When it had done so, by the time stamp counter.
    done: u64,
}

/// A turn in which a round goes on.
#[derive(Debug, Clone, Copy)]
struct Turn {
    now: Instant,
    pace: Pace,
    /// When flows begin to be looked at, by the time stamp counter.
    begin: u64,
}

impl Round {
    /// One that does nothing yet.
    fn begin(now: Instant) -> Round {
        Round { changed: None, upkeep: false, at: 0, end: now + SOON, last: now, took: (0, 0), done: 0 }
    }

    /// How many of so many flows to look at now, to be through in time.
    fn steps(&self, flows: usize, turn: Turn) -> usize {
        let left = flows.saturating_sub(self.at);
        let (passed, time) = (turn.now.since(self.last).as_nanos(), self.end.since(self.last).as_nanos());
        let due = (left as u128 * passed).checked_div(time).unwrap_or(u128::MAX);
        match turn.pace {
            Pace::Busy => {
                due.max(BUSY_STEP as u128).min(self.fair(turn)).clamp(1, BUSY_MOST as u128) as usize
            }
            Pace::Idle => IDLE_STEP,
        }
    }

    /// How many flows take as long as all else did since the last ones. More are due the longer a turn takes, and a turn takes
    /// the longer the more are looked at: without this limit costly ones leave nothing to the frames.
    fn fair(&self, turn: Turn) -> u128 {
        let (flows, cycles) = self.took;
        let others = u128::from(turn.begin.wrapping_sub(self.done));
        (others * flows as u128).checked_div(cycles.into()).unwrap_or(u128::MAX)
    }
}

/// What becomes of a flow.
#[expect(clippy::large_enum_variant, reason = "lives for a moment, on the stack")]
enum Verdict {
    Keep,
    Remove,
    /// It is decided otherwise now, and what it taught is known: it need not wait for a frame.
    Replace(Decision),
}

/// The flow table, and what else the pollers share.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// All of it.
    pub shared: &'a Shared,
    /// The poller's reader of the table.
    pub reader: &'a Reader,
}

/// The flows one poller installed, and how far it is in looking at them.
pub struct Revalidator {
    flows: Vec<Flow>,
    precedents: Precedents,
    /// Dependency bits that changed since the running round began.
    waiting: Option<u64>,
    running: Option<Round>,
    last_upkeep: Instant,
    max_idle: Duration,
    /// Flows translated again so far.
    translated: u64,
}

impl Revalidator {
    /// With no flows yet, for who has this reader; a flow unused for `max_idle` will go.
    pub fn new(max_idle: Duration, reader: &Reader) -> Self {
        Revalidator {
            flows: Vec::new(),
            precedents: Precedents::at(reader.home()),
            waiting: None,
            running: None,
            last_upkeep: Instant::ZERO,
            max_idle,
            translated: 0,
        }
    }

    /// What happens to a frame, as [`translate`](crate::translate::translate) decides it.
    pub fn decide(&mut self, view: View<'_>, key: &FlowKey) -> Decision {
        self.precedents.decide(view, key)
    }

    /// Amends flows of older generations that were found for frames. Gives those that are of this one then, and those that another
    /// poller has to amend with the precedent that they [follow](Revalidator::actions).
    #[cold]
    pub fn follow_each<'r>(
        &mut self,
        (stale, keys): (&[(usize, FlowRef<'r>)], &[FlowKey]),
        view: View<'_>,
        reader: &Reader,
        mut found: impl FnMut(usize, FlowRef<'r>, Option<Which>),
    ) {
        let mut by = By { precedents: &mut self.precedents, reader };
        let kinds: ArrayVec<u64, BATCH> = stale.iter().map(|(_, flow)| reader.kind(flow)).collect();
        for ((place, flow), kind) in stale.iter().zip(&kinds) {
            by.precedents.prefetch((flow, *kind), &keys[*place]);
        }
        for (&(place, flow), &kind) in stale.iter().zip(&kinds) {
            if flow.generation() == view.snapshot.generation {
                found(place, flow, None); // an earlier frame had it amended
                continue;
            }
            let key = &keys[place];
            let Some(which) = by.precedent(view, (&flow, kind), key) else { continue };
            let amended = by.follow(view, (&flow, key), which);
            found(place, flow, (!amended).then_some(which));
        }
    }

    /// What is done by a precedent that a flow follows.
    #[inline]
    pub fn actions(&self, which: Which) -> Option<&[Action]> {
        self.precedents.actions(which)
    }

    /// Amends a flow, which was of generation `from`, by a decision that was made for it just now.
    pub fn amend(&mut self, flow: (&Flow, u64), today: &Decision, view: View<'_>, reader: &Reader) -> bool {
        By { precedents: &mut self.precedents, reader }.decision(view, flow, today)
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
        if bits != 0 {
            self.precedents.unsettle();
        }
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
    pub fn advance(&mut self, view: View<'_>, pace: Pace, site: Site<'_>) -> u64 {
        let Some(mut round) = self.round(view.now) else { return 0 };
        let (before, turn) = (self.translated, Turn { now: view.now, pace, begin: cycles() });
        let steps = round.steps(self.flows.len(), turn);
        for _ in 0..steps {
            let Some(verdict) = self.look(round, view, site.reader) else { return self.translated - before };
            round.at = self.carry_out(verdict, round, view, site.shared);
        }
        let done = cycles();
        self.running =
            Some(Round { last: view.now, took: (steps, done.wrapping_sub(turn.begin)), done, ..round });
        self.translated - before
    }

    /// What is to become of the flow at this place; `None` behind the last.
    fn look(&mut self, round: Round, view: View<'_>, reader: &Reader) -> Option<Verdict> {
        let flow = self.flows.get(round.at)?;
        self.flows.get(round.at + AHEAD).into_iter().for_each(|next| FlowRef::from(next).prefetch_as(flow));
        Some(match flow.generation() {
            DEAD => Verdict::Remove,
            _ if round.upkeep && view.now.since(flow.last_use()) > self.max_idle => Verdict::Remove,
            _ if round.changed.is_some_and(|bits| is_touched(flow, view, bits)) => {
                self.translated += 1;
                recheck(flow, view, By { precedents: &mut self.precedents, reader })
            }
            _ => Verdict::Keep,
        })
    }

    /// Does it; the place of the flow to be looked at next.
    fn carry_out(&mut self, verdict: Verdict, round: Round, view: View<'_>, shared: &Shared) -> usize {
        let at = round.at;
        match verdict {
            Verdict::Keep if round.upkeep => self.refresh(at, view, shared),
            Verdict::Keep => {}
            Verdict::Replace(decision) => self.replace(at, decision, view.snapshot.generation, shared),
            Verdict::Remove => {
                if self.let_go(at, shared) {
                    return at;
                }
            }
        }
        at + 1
    }

    /// Keeps the learned entries of a used flow young, and its questions open. All flows of a station have the same: it is looked
    /// for where one was used later than those before.
    fn refresh(&mut self, at: usize, view: View<'_>, shared: &Shared) {
        let flow = &self.flows[at];
        let (used, Some(effects)) = (flow.last_use(), flow.taught()) else { return };
        if view.now.since(used) <= ROUND + ROUND && !self.precedents.is_refreshed(effects, used) {
            effects
                .iter()
                .filter(|effect| is_known(effect, view))
                .for_each(|effect| keep_young(effect, used, view));
            shared.resolve(effects);
        }
    }

    /// Lets go of a flow, and has another in its place; false if the table cannot do so now. A dead one that nobody else holds
    /// any more is in no table: another has taken its place, and nothing needs to be looked for.
    fn let_go(&mut self, at: usize, shared: &Shared) -> bool {
        let flow = &self.flows[at];
        let alone = flow.generation() == DEAD && flow.shares() == 1;
        if !alone && shared.megaflows.remove(flow) == Removed::Busy {
            return false;
        }
        let gone = self.flows.swap_remove(at);
        let next = self.flows.len().wrapping_sub(AHEAD);
        self.flows.get(next).into_iter().for_each(|next| FlowRef::from(next).prefetch_as(&gone));
        true
    }

    /// The round to go on with. A change does not wait until all flows were seen to that merely are due to be: such a round
    /// begins anew, with both to do.
    fn round(&mut self, now: Instant) -> Option<Round> {
        match self.running.take() {
            Some(round) if round.changed.is_some() || self.waiting.is_none() => Some(round),
            broken_off => self.next_round(now, broken_off),
        }
    }

    fn next_round(&mut self, now: Instant, broken_off: Option<Round>) -> Option<Round> {
        let is_due = !self.flows.is_empty() && now.since(self.last_upkeep) >= ROUND;
        if is_due {
            self.last_upkeep = now;
        }
        let (changed, upkeep) = (self.waiting.take(), is_due || broken_off.is_some());
        (upkeep || changed.is_some()).then_some(Round { changed, upkeep, ..Round::begin(now) })
    }
}

fn is_touched(flow: &Flow, view: View<'_>, bits: u64) -> bool {
    !view.snapshot.holds(flow) || bits != 0 && flow.depends() & bits != 0
}

fn insert(flow: &Flow, shared: &Shared) -> bool {
    let inserted = shared.megaflows.insert(flow.clone());
    matches!(inserted, Inserted::Installed | Inserted::Replaced(_) | Inserted::Evicted(_))
}

/// Translates the flow again. It stays, counters and all, if the decision is the same, or is another by the tables alone.
///
/// Its masked key serves as the frame: a decision that looks at nothing else cannot tell them apart, and one
/// that does has another mask.
fn recheck(flow: &Flow, view: View<'_>, mut by: By<'_>) -> Verdict {
    let (key, from) = (flow.key(), flow.generation());
    if from > view.snapshot.generation {
        return Verdict::Keep; // another poller has newer tables already
    }
    if by.reader.owns(flow)
        && let Some(which) = by.precedent(view, (flow, by.reader.kind(flow)), &key)
        && by.follow(view, (flow, &key), which)
    {
        return Verdict::Keep;
    }
    let today = by.precedents.decide(view, &key);
    let known = today.effects.iter().all(|effect| is_known(effect, view));
    if known && flow.is_by(&today, by.reader) {
        flow.confirm(from, view.snapshot.generation);
        return Verdict::Keep;
    }
    if by.decision(view, (flow, from), &today) {
        return Verdict::Keep;
    }
    // A question is asked when there is a frame for it.
    if is_moved_by_tables(flow, &today, view) { Verdict::Replace(today) } else { Verdict::Remove }
}

/// Is it the tables alone by which the decision is another now, for the same frames, and is what it teaches known? A station
/// that moved may be on its way back: what was learned is asked when there is a frame for it. With another mask it were for
/// other frames than this flow's.
pub fn is_moved_by_tables(flow: &Flow, today: &Decision, view: View<'_>) -> bool {
    let by_tables = ![DEAD, view.snapshot.generation].contains(&flow.generation());
    let teaches = |effect| is_known_learning(effect, view);
    by_tables && today.cacheable && today.mask == *flow.mask() && today.effects.iter().all(teaches)
}

/// Is it where a station lives, and known?
pub fn is_known_learning(effect: &Effect, view: View<'_>) -> bool {
    matches!(effect, Effect::Learn { .. }) && is_known(effect, view)
}

/// Would the flow be made just like this, by the decision of today?
pub fn is_still_so(flow: &Flow, today: &Decision, view: View<'_>, reader: &Reader) -> bool {
    flow.is_by(today, reader) && flow.effects().iter().all(|effect| is_known(effect, view))
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

/// Keeps a learned entry young. Never moves one: that takes a frame that was translated.
fn keep_young(effect: &Effect, used: Instant, view: View<'_>) {
    if let Effect::Learn { bridge, station, place } = *effect
        && let Some(learned) = view.snapshot.learned(bridge)
    {
        learned.fdb().refresh(station, used);
        if let Place::Vtep { address, .. } = place {
            learned.vteps().refresh(station.segment, address, used);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flowtable::megaflow::{Limits, Megaflows};

    use super::*;

    const TURN: Duration = Duration::from_micros(10);

    fn began(now: Instant) -> Round {
        Round { changed: Some(0), ..Round::begin(now) }
    }

    fn busy(now: Instant) -> Turn {
        Turn { now, pace: Pace::Busy, begin: now.as_nanos() }
    }

    /// How long a round over so many flows takes a poller that is busy with frames for so long in each turn, and in how many
    /// turns: if a flow takes so many nanoseconds, each a cycle.
    fn taken(flows: usize, cost: u64, frames: Duration) -> (Duration, u32) {
        let (mut now, mut turns, mut round) = (Instant::ZERO, 0, began(Instant::ZERO));
        while round.at < flows {
            let turn = busy(now + frames);
            let steps = round.steps(flows, turn);
            now = turn.now + Duration::from_nanos(cost) * steps as u32;
            (round.at, round.last) = (round.at + steps, turn.now);
            (round.took, round.done) = ((steps, cost * steps as u64), now.as_nanos());
            turns += 1;
        }
        (now.since(Instant::ZERO), turns)
    }

    #[test]
    fn few_flows_are_looked_at_at_once_and_many_in_time() {
        assert_eq!(taken(800, 0, TURN), (TURN * 200, 200));
        for cost in [0, 100, 300] {
            let (time, _) = taken(1_000_000, cost, TURN);
            assert!((SOON - 10 * TURN..=SOON + 10 * TURN).contains(&time), "{cost}: {time:?}");
        }
    }

    #[test]
    fn flows_that_cost_much_take_no_more_time_than_frames() {
        for (cost, frames) in [(400, TURN), (900, TURN), (900, TURN / 4), (5_000, TURN), (100_000, TURN * 10)]
        {
            let (time, turns) = taken(1_000_000, cost, frames);
            let flows = Duration::from_nanos(cost) * 1_000_000;
            assert!(frames * turns * 2 >= time.mul_f64(0.99), "{cost}: {:?} of {time:?}", frames * turns);
            assert!(time <= flows * 3, "{cost}: {time:?}");
        }
    }

    #[test]
    fn who_is_late_hurries_within_bounds() {
        let round = began(Instant::ZERO);
        let late = Instant::ZERO + SOON + SOON;
        assert_eq!(round.steps(1_000_000, busy(late)), BUSY_MOST);
        assert_eq!(Round { last: late, ..round }.steps(10, busy(late)), BUSY_MOST);
        assert_eq!(round.steps(10, Turn { pace: Pace::Idle, ..busy(Instant::ZERO) }), IDLE_STEP);
        // Whatever the counter says, it goes on.
        assert_eq!(Round { took: (8, u64::MAX), ..round }.steps(10, busy(late)), 1);
        assert_eq!(
            Round { took: (usize::MAX, 1), done: 1, ..round }.steps(10, busy(Instant::ZERO)),
            BUSY_STEP
        );
    }

    #[test]
    fn a_change_breaks_off_what_is_merely_due_and_no_other_change() {
        let table = Arc::new(Megaflows::new(Limits { flows: 1, masks: 1 }));
        let mut revalidator = Revalidator::new(ROUND, &table.reader());
        let upkeep = Round { changed: None, upkeep: true, at: 7, ..began(Instant::ZERO) };
        revalidator.running = Some(upkeep);
        assert_eq!(revalidator.round(Instant::ZERO).map(|round| round.at), Some(7));
        revalidator.running = Some(upkeep);
        revalidator.note(1);
        let round = revalidator.round(Instant::ZERO).unwrap();
        assert_eq!((round.changed, round.upkeep, round.at), (Some(1), true, 0));
        revalidator.running = Some(Round { at: 7, ..round });
        revalidator.note(2);
        assert_eq!(revalidator.round(Instant::ZERO).map(|round| round.at), Some(7));
        assert!(revalidator.is_behind());
    }
}
