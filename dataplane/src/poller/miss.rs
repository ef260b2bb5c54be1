//! Frames whose flow no cache knows: translated, and what came of it remembered.

use std::slice::from_ref;

use flowtable::action::{Action, DropReason};
use flowtable::flow::{DEAD, Decision, Flow, FlowRef};
use flowtable::key::FlowKey;

use super::hits::Count;
use super::{Arrival, Caches, Poller};
use crate::batch::Batch;
use crate::execute::{Origin, execute};
use crate::frame::Frame;
use crate::revalidate::{is_moved_by_tables, is_still_so};
use crate::stats::cycles;
use crate::translate::{Silent, View, translate};
use crate::upcall;
use crate::wires::Wires;

/// What the caches know of a frame's flow.
#[expect(clippy::large_enum_variant, reason = "lives for a moment, on the stack")]
enum Known {
    /// A flow, to be followed.
    Flow(Flow),
    /// A flow that does not hold any more, and the decision of today.
    Stale(Flow, Decision),
    /// A flow that was removed, but the table could not let go of it then.
    Dead(Flow),
    /// A flow by newer tables than ours, for as long as this turn takes.
    Ahead,
    /// Nothing.
    Nothing,
}

impl Poller {
    /// A frame that no cache knew when its batch was classified.
    pub(super) fn miss(&mut self, arrival: Arrival, key: &FlowKey, frame: Frame) {
        let snapshot = self.subscriber.current().clone();
        let view = View { snapshot: &snapshot, now: arrival.now };
        if self.caches == Caches::Off {
            return self.upcall(arrival, (key, frame), view, Known::Nothing);
        }
        let known = match self.known(key, view) {
            Known::Flow(flow) => return self.follow((&flow, view), arrival, key, frame),
            known => known,
        };
        // Nobody pays for the operator's change of a flow that is there.
        let is_free = match &known {
            Known::Stale(flow, today) => is_moved_by_tables(flow, today, view),
            Known::Ahead => true,
            _ => false,
        };
        if is_free {
            return self.upcall(arrival, (key, frame), view, known);
        }
        let rate = snapshot.tables.port(arrival.port).map_or(0, |p| p.upcall_rate);
        if self.wires.may_upcall(arrival.place, rate, arrival.now) {
            return self.upcall(arrival, (key, frame), view, known);
        }
        if let Known::Stale(flow, _) | Known::Dead(flow) = known {
            // Else the next frame were translated, too, before it is seen that the budget is spent.
            self.shared.megaflows.remove(&flow);
        }
        self.wires.drop_frame(arrival.port, frame, DropReason::UpcallBudget);
    }

    /// The flow that an earlier frame of the batch, or another poller, has installed since; or one of an older
    /// generation, translated again if what has changed since concerns it.
    fn known(&mut self, key: &FlowKey, view: View<'_>) -> Known {
        let Some(flow) = self.reader.lookup(key).map(FlowRef::share) else { return Known::Nothing };
        if view.snapshot.holds(&flow) {
            return Known::Flow(flow);
        }
        let (from, to) = (flow.generation(), view.snapshot.generation);
        if from == DEAD {
            return Known::Dead(flow); // what it costs to decide anew is budgeted
        }
        if from > to {
            return Known::Ahead;
        }
        self.counters.revalidated.add(1);
        let decision = self.revalidator.decide(view, key);
        let holds = is_still_so(&flow, &decision, view, &self.reader) && flow.confirm(from, to);
        // Another poller may have confirmed or amended it meanwhile: then it holds, too.
        let holds = holds || self.revalidator.amend((&flow, from), &decision, view, &self.reader);
        match holds || view.snapshot.holds(&flow) {
            true => Known::Flow(flow),
            false => Known::Stale(flow, decision),
        }
    }

    /// Translates, unless that was done, learns, remembers and executes.
    fn upcall(&mut self, arrival: Arrival, (key, frame): (&FlowKey, Frame), view: View<'_>, known: Known) {
        let begin = cycles();
        self.counters.upcalls.add(1);
        let is_ahead = matches!(known, Known::Ahead);
        let (stale, decision) = match known {
            Known::Stale(flow, decision) => (Some(flow), decision),
            Known::Dead(flow) => (Some(flow), self.decision(view, key)),
            Known::Flow(_) | Known::Ahead | Known::Nothing => (None, self.decision(view, key)),
        };
        self.shared.changed(upcall::apply(&decision.effects, view.snapshot, frame.bytes(), view.now));
        self.shared.resolve(&decision.effects);
        let kept = self.caches == Caches::On && decision.cacheable && !is_ahead;
        if let Some(flow) = stale.filter(|flow| !kept || *flow.mask() != decision.mask) {
            // With another mask the new one would not take its place, but be hidden by it.
            self.shared.megaflows.remove(&flow);
        }
        if kept {
            let (flow, installed) = self.revalidator.install(key, decision, view, &self.shared);
            self.counters.not_installed.add(u64::from(!installed));
            self.follow((&flow, view), arrival, key, frame);
        } else {
            let origin = Origin { port: decision.in_port, keys: from_ref(key) };
            execute_one(&decision.actions, (origin, arrival), frame, &mut self.wires);
        }
        self.counters.perf.upcall_cycles.add(cycles().wrapping_sub(begin));
    }

    /// What happens to the frame. Without caches nobody remembers what happened to others.
    fn decision(&mut self, view: View<'_>, key: &FlowKey) -> Decision {
        match self.caches {
            Caches::On => self.revalidator.decide(view, key),
            Caches::Off => translate(view, key, &mut Silent),
        }
    }

    fn follow(&mut self, (flow, view): (&Flow, View<'_>), arrival: Arrival, key: &FlowKey, frame: Frame) {
        let Count { frames, bytes, tcp_flags } = Count::of(from_ref(&frame), from_ref(key));
        flow.stats(self.index).add(frames, bytes, tcp_flags, arrival.now);
        let origin = Origin { port: flow.in_port(), keys: from_ref(key) };
        match self.reader.actions_at(flow, view.snapshot.generation) {
            Some(actions) => execute_one(actions, (origin, arrival), frame, &mut self.wires),
            // It was removed just now, or somebody has newer tables.
            None => {
                let decision = self.decision(view, key);
                execute_one(&decision.actions, (origin, arrival), frame, &mut self.wires);
            }
        }
    }
}

fn execute_one(
    actions: &[Action],
    (origin, arrival): (Origin<'_>, Arrival),
    frame: Frame,
    wires: &mut Wires,
) {
    arrival.account(origin.port, &Count::of(from_ref(&frame), origin.keys), wires);
    execute(actions, origin, &mut Batch::from_iter([frame]), wires);
}
