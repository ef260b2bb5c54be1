//! What flows have in common, kept once: masks, lists of actions, effects.
//!
//! What a segment on a thousand hypervisors floods is encapsulated a thousand times, and that for every pair of a source
//! and an unknown destination: 200 KB a flow. Any number of flows may share it, so that no guest can have gigabytes of it
//! cached. And all flows of a station teach the same, and what goes to one port with a tag does the same.
//!
//! Cost: hashing the lists; every [`MOST`] lists, or [`ITEMS`] of theirs, one look at all of them. The mask of the flow before costs a comparison.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::action::{Action, Effect};
use crate::flow::{Birth, Decision, Flow, Home, Parts, Shape};
use crate::key::FlowKey;
use crate::list::List;
use crate::mask::Mask;

/// How many lists of a kind are remembered, and masks.
const MOST: usize = 4096;

/// What lists of a kind may hold together before it is looked who uses them: one that floods to a thousand hypervisors is 200 KB.
const ITEMS: usize = 16_384;

/// How many lists are known by their address.
const KNOWN: usize = 64;

/// Makes flows that share what is equal. Each poller has one.
#[derive(Debug, Default)]
pub struct Interner {
    actions: Lists<Action>,
    /// Lists that are shared, by their address: hashing one that leads into a tunnel takes a hundred cycles.
    known: Vec<Option<List<Action>>>,
    effects: Lists<Effect>,
    shapes: HashMap<Mask, Arc<Shape>>,
    /// That of the flow before: most come one behind the other.
    last: Option<Arc<Shape>>,
    /// Who may amend the flows.
    home: Option<Home>,
}

impl Interner {
    /// One whose flows can be amended there.
    pub fn at(home: Home) -> Self {
        Interner { home: Some(home), ..Interner::default() }
    }

    /// A flow for `key` under `decision`, valid for the generation of its birth (not [`crate::flow::DEAD`]).
    ///
    /// # Panics
    /// Without pollers, or with more than [`crate::flow::MAX_POLLERS`].
    pub fn flow(&mut self, key: &FlowKey, decision: Decision, birth: Birth) -> Flow {
        let Decision { actions, mask, effects, depends, rests_on, in_port, cacheable: _ } = decision;
        let parts = Parts {
            shape: self.shape(&mask, birth.pollers),
            actions: self.actions(actions),
            effects: (!effects.is_empty()).then(|| self.effects.share(effects)),
            depends,
            rests_on,
            in_port,
        };
        Flow::assemble(key, parts, birth)
    }

    /// The list, or one equal to it that flows have already. One of a [kind](List::kind) stays the one it is.
    pub fn actions(&mut self, list: List<Action>) -> List<Action> {
        if list.kind() != 0 {
            return list;
        }
        self.known.resize(KNOWN, None);
        let at = |list: &List<Action>| list.as_ptr().addr() / 64 % KNOWN;
        let known = self.known[at(&list)].as_ref();
        if known.is_some_and(|known| known.is_same(&list)) {
            return list;
        }
        let shared = self.actions.share(list);
        self.known[at(&shared)] = Some(shared.clone());
        shared
    }

    fn shape(&mut self, mask: &Mask, pollers: usize) -> Arc<Shape> {
        if let Some(last) = self.last.as_ref().filter(|last| last.is_of(mask, pollers)) {
            return Arc::clone(last);
        }
        if self.shapes.len() >= MOST {
            self.shapes.clear();
        }
        let known = self.shapes.get(mask).filter(|shape| shape.is_of(mask, pollers)).cloned();
        let shape = known.unwrap_or_else(|| {
            let new = Arc::new(Shape::new(mask, pollers).at(self.home.clone()));
            self.shapes.insert(*mask, Arc::clone(&new));
            new
        });
        self.last = Some(Arc::clone(&shape));
        shape
    }
}

/// The lists in use, as far as they are remembered.
#[derive(Debug)]
struct Lists<T> {
    known: HashSet<List<T>>,
    /// How long all of them are together.
    items: usize,
    /// How long they may become until it is looked which are in use: twice as long as those that were, for these take no more room
    /// by being known.
    limit: usize,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Lists { known: HashSet::new(), items: 0, limit: ITEMS }
    }
}

impl<T: Hash + Eq> Lists<T> {
    /// The list, or one equal to it that others have already.
    fn share(&mut self, list: impl Borrow<[T]> + Into<List<T>>) -> List<T> {
        if let Some(known) = self.known.get(list.borrow()) {
            return known.clone();
        }
        let list = list.into();
        if self.known.len() >= MOST || self.items + list.len() > self.limit {
            self.forget();
        }
        self.items += list.len();
        self.known.insert(list.clone());
        list
    }

    /// Makes room: what nobody uses any more goes; if that is not half of the lists, all do, and are shared no further.
    fn forget(&mut self) {
        self.known.retain(List::is_shared);
        if self.known.len() > MOST / 2 {
            self.known.clear();
        }
        self.items = self.known.iter().map(|list| list.len()).sum();
        self.limit = ITEMS.max(2 * self.items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PortId;
    use crate::time::Instant;

    fn list(n: u32) -> List<Action> {
        [Action::PopVlan, Action::Output(PortId(n))].into()
    }

    fn flow(interner: &mut Interner, actions: List<Action>, pollers: usize) -> Flow {
        let endpoint = PortId(1);
        let decision = Decision {
            actions,
            mask: Mask::EXACT,
            effects: Box::new([Effect::Resolve { endpoint, address: [192, 0, 2, 1].into() }]),
            depends: 0,
            rests_on: Default::default(),
            in_port: PortId(0),
            cacheable: true,
        };
        interner.flow(&FlowKey::default(), decision, Birth { generation: 1, pollers, now: Instant::ZERO })
    }

    #[test]
    fn flows_share_what_is_equal_and_nothing_else() {
        let mut interner = Interner::default();
        let [a, b, other] = [1, 1, 2].map(|n| flow(&mut interner, list(n), 1));
        assert!(a.actions().is_same(&b.actions()) && a.actions() != other.actions());
        assert!(std::ptr::eq(a.effects(), b.effects()) && std::ptr::eq(a.mask(), other.mask()));
        let more = flow(&mut interner, list(1), 2);
        assert!(!std::ptr::eq(a.mask(), more.mask()), "its counters are for others");
        more.stats(1).add(1, 1, 0, Instant::ZERO);
    }

    #[test]
    fn lists_that_nobody_uses_make_room_for_others() {
        let mut lists = Lists::<Action>::default();
        let used = lists.share(list(0));
        (1..=2 * MOST as u32).for_each(|n| drop(lists.share(list(n))));
        assert!(lists.known.len() <= MOST);
        assert!(used.is_same(&lists.share(list(0))));
    }

    #[test]
    fn long_lists_that_nobody_uses_take_little_room() {
        let mut lists = Lists::<Action>::default();
        let long = |n: u32| (n..n + 1000).map(|n| Action::Output(PortId(n))).collect::<Vec<_>>();
        let used = lists.share(long(0));
        for n in 1..1000 {
            drop(lists.share(long(n)));
            assert!(lists.known.iter().map(|list| list.len()).sum::<usize>() <= ITEMS);
        }
        assert!(used.is_same(&lists.share(long(0))));
    }

    #[test]
    fn long_lists_in_use_stay_shared() {
        let mut lists = Lists::<Action>::default();
        let long = |n: u32| (n..n + 1000).map(|n| Action::Output(PortId(n))).collect::<Vec<_>>();
        let used: Vec<_> = (0..40).map(|n| lists.share(long(n))).collect();
        assert!(used.iter().zip(0..).all(|(used, n)| used.is_same(&lists.share(long(n)))));
    }

    #[test]
    fn too_many_lists_in_use_are_forgotten_but_stay_whole() {
        let mut lists = Lists::<Action>::default();
        let used: Vec<_> = (0..=MOST as u32).map(|n| lists.share(list(n))).collect();
        assert_eq!(lists.known.len(), 1);
        assert!(used.iter().enumerate().all(|(n, used)| *used == list(n as u32)));
    }
}
