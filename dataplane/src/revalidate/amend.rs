//! Flows that the tables moved are amended where they lie: by the frame that comes first, or in the background.
//!
//! A poller amends only what it installed. What is learned while it does so it is told of, and looks at all of these again.
//!
//! The frame that comes first has to wait for it, whatever the pace of the background: with a million flows in turn that is every
//! frame for the first tenth of a second. In that forwarding falls by a third, and by 2 to 9 % in all of the round; with another look at all
//! that a flow has in common with its precedent, instead of at its kind, it was a half, and a quarter (bench `mapping`, `renumber-all`). To amend few
//! flows at sight, and have frames go by the precedent until the background comes, makes the dip hardly less deep but
//! longer. A frame that meets another poller's flow does that.

use flowtable::flow::{Amendment, DEAD, Decision, Flow};
use flowtable::key::FlowKey;
use flowtable::megaflow::Reader;

use super::is_moved_by_tables;
use crate::translate::View;
use crate::translate::precedent::{Precedents, Which};

/// By what flows are amended.
pub struct By<'a> {
    /// What was decided for other frames.
    pub precedents: &'a mut Precedents,
    /// The poller's, which owns what it amends.
    pub reader: &'a Reader,
}

impl By<'_> {
    /// The precedent that a flow of an older generation, and of the frame with this key, follows today, if the tables alone moved it
    /// and there is one. Cost: two lookups in what was settled; where that does not suffice, comparing some words, and a lookup for each
    /// station.
    #[inline]
    pub fn precedent(&mut self, view: View<'_>, (flow, kind): (&Flow, u64), key: &FlowKey) -> Option<Which> {
        let (from, to) = (flow.generation(), view.snapshot.generation);
        if from == DEAD || from >= to {
            return None;
        }
        self.precedents.followed(view, (flow, kind), key)
    }

    /// Has the flow do what this precedent says. False if another poller has to, or did.
    pub fn follow(&mut self, view: View<'_>, (flow, key): (&Flow, &FlowKey), which: Which) -> bool {
        let (from, to) = (flow.generation(), view.snapshot.generation);
        from < to
            && self.reader.owns(flow)
            && self
                .precedents
                .amendment(which, key)
                .is_some_and(|now| self.reader.amend(flow, (from, to), now))
    }

    /// The same by a decision that was made for the flow just now, when it was of generation `from`.
    pub fn decision(&mut self, view: View<'_>, (flow, from): (&Flow, u64), today: &Decision) -> bool {
        let to = view.snapshot.generation;
        let same = is_moved_by_tables(flow, today, view)
            && (flow.in_port(), flow.effects()) == (today.in_port, &*today.effects);
        if !same || from >= to || !self.reader.owns(flow) {
            return false;
        }
        let Decision { actions, depends, rests_on, .. } = today;
        let actions = self.precedents.share(actions.clone());
        self.reader.amend(flow, (from, to), Amendment { actions, depends: *depends, rests_on: *rests_on })
    }
}
