//! Long lists of actions that are equal, kept once.
//!
//! What a segment on a thousand hypervisors floods is encapsulated a thousand times, and that for every pair of a source
//! and an unknown destination: 200 KB a flow. Any number of flows may share it, so that no guest can have gigabytes of it
//! cached.
//!
//! Cost: hashing the list; every [`MOST`] lists one look at all of them.

use std::sync::Arc;

use hashbrown::HashSet;

use crate::action::Action;

/// Lists this short are not worth the search.
const SHORT: usize = 4;
/// How many lists are remembered.
const MOST: usize = 4096;

/// The lists in use, as far as they are remembered.
#[derive(Debug, Default)]
pub struct ActionLists {
    lists: HashSet<Arc<[Action]>>,
}

impl ActionLists {
    /// The list, or one equal to it that others have already.
    pub fn share(&mut self, list: Arc<[Action]>) -> Arc<[Action]> {
        if list.len() <= SHORT {
            return list;
        }
        if let Some(known) = self.lists.get(&*list) {
            return Arc::clone(known);
        }
        if self.lists.len() >= MOST {
            self.forget();
        }
        self.lists.insert(Arc::clone(&list));
        list
    }

    /// Makes room: what nobody uses any more goes; if that is not half, all do, and are shared no further.
    fn forget(&mut self) {
        self.lists.retain(|list| Arc::strong_count(list) > 1);
        if self.lists.len() > MOST / 2 {
            self.lists.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PortId;

    fn list(n: u32, len: usize) -> Arc<[Action]> {
        (0..len).map(|_| Action::Output(PortId(n))).collect()
    }

    #[test]
    fn equal_long_lists_are_one_and_short_ones_are_left_alone() {
        let mut lists = ActionLists::default();
        let [a, b, other] =
            [(1, SHORT + 1), (1, SHORT + 1), (2, SHORT + 1)].map(|(n, len)| lists.share(list(n, len)));
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &other));
        let [a, b] = [list(1, SHORT), list(1, SHORT)].map(|list| lists.share(list));
        assert!(a == b && !Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn lists_that_nobody_uses_make_room_for_others() {
        let mut lists = ActionLists::default();
        let used = lists.share(list(0, SHORT + 1));
        (1..=2 * MOST as u32).for_each(|n| drop(lists.share(list(n, SHORT + 1))));
        assert!(lists.lists.len() <= MOST);
        assert!(Arc::ptr_eq(&used, &lists.share(list(0, SHORT + 1))));
    }

    #[test]
    fn too_many_lists_in_use_are_forgotten_but_stay_whole() {
        let mut lists = ActionLists::default();
        let used: Vec<_> = (0..=MOST as u32).map(|n| lists.share(list(n, SHORT + 1))).collect();
        assert_eq!(lists.lists.len(), 1);
        assert!(used.iter().enumerate().all(|(n, used)| *used == list(n as u32, SHORT + 1)));
    }
}
