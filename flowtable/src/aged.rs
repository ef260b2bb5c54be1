//! Entries found by key, and those of each group from the least to the most recently seen: what the tables of learned
//! state share.
//!
//! Entries lie in a slab, found by hash; those of a group form a list through it. Finding, adding, removing and seeing
//! an entry take constant time, keeping the groups, and their owners, in the order of their size O(log groups).

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::time::Instant;

/// No slot: the end of a list.
const NONE: u32 = u32::MAX;

/// Whose list an entry is in.
pub(crate) trait Group: Copy + Ord + Hash {
    /// Who answers for several groups together.
    type Owner: Copy + Ord + Hash;

    /// Who answers for this one.
    fn owner(self) -> Self::Owner;
}

/// An entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<K, G, V> {
    pub key: K,
    pub value: V,
    /// Whose list it is in; `None`: in no list, it does not age.
    pub group: Option<G>,
    pub seen: Instant,
}

#[derive(Debug)]
struct Slot<K, G, V> {
    entry: Entry<K, G, V>,
    older: u32,
    newer: u32,
}

/// The entries of one group.
#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    len: usize,
}

const EMPTY: List = List { oldest: NONE, newest: NONE, len: 0 };

/// The groups of one owner.
#[derive(Debug)]
struct Estate<G> {
    /// Entries of all.
    len: usize,
    /// By how many entries they hold.
    groups: BTreeSet<(usize, G)>,
}

/// The entries. A `u32` is the place of one, good until that is removed.
#[derive(Debug)]
pub(crate) struct Aged<K, G: Group, V> {
    hasher: DefaultHashBuilder,
    index: HashTable<u32>,
    slots: Vec<Slot<K, G, V>>,
    free: Vec<u32>,
    lists: HashMap<G, List>,
    estates: HashMap<G::Owner, Estate<G>>,
    /// Owners by how many entries they hold.
    owners: BTreeSet<(usize, G::Owner)>,
    /// The bucket of `index` that [`Aged::step`] comes to next.
    cursor: usize,
}

impl<K: Copy + Eq + Hash, G: Group, V: Copy> Aged<K, G, V> {
    pub fn new() -> Self {
        Aged {
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            lists: HashMap::new(),
            estates: HashMap::new(),
            owners: BTreeSet::new(),
            cursor: 0,
        }
    }

    #[inline]
    pub fn find(&self, key: K) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.index.find(hash, |&at| self.get(at).key == key).copied()
    }

    #[inline]
    pub fn get(&self, at: u32) -> &Entry<K, G, V> {
        &self.slots[at as usize].entry
    }

    /// All entries with their places, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Entry<K, G, V>)> {
        self.index.iter().map(|&at| (at, self.get(at)))
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Groups with an entry, in no order.
    pub fn groups(&self) -> impl Iterator<Item = G> {
        self.lists.keys().copied()
    }

    /// How many entries a group has.
    pub fn held(&self, group: G) -> usize {
        self.list(group).len
    }

    /// The entry of a group that was seen longest ago.
    pub fn oldest(&self, group: G) -> Option<u32> {
        self.lists.get(&group).map(|list| list.oldest)
    }

    /// Of the owner that holds most, the group that holds most.
    pub fn largest(&self) -> Option<G> {
        let (_, owner) = self.owners.last()?;
        self.estates.get(owner)?.groups.last().map(|(_, group)| *group)
    }

    /// Some group of an owner, if it has one.
    pub fn group_of(&self, owner: G::Owner) -> Option<G> {
        self.estates.get(&owner)?.groups.last().map(|(_, group)| *group)
    }

    /// The entries of a group, the least recently seen first.
    pub fn members(&self, group: G) -> impl Iterator<Item = &Entry<K, G, V>> {
        let slot = |at: u32| self.slots.get(at as usize);
        std::iter::successors(slot(self.list(group).oldest), move |s| slot(s.newer)).map(|s| &s.entry)
    }

    /// The next entry in a round through all, if there is one at the next place: O(1).
    pub fn step(&mut self) -> Option<u32> {
        self.cursor = if self.cursor + 1 < self.index.num_buckets() { self.cursor + 1 } else { 0 };
        self.index.get_bucket(self.cursor).copied()
    }

    /// In how many [`Aged::step`]s a round is complete.
    pub fn round(&self) -> usize {
        self.index.num_buckets()
    }

    /// Adds an entry with a key that no other has, as the most recent one of its group.
    pub fn insert(&mut self, entry: Entry<K, G, V>) {
        let slot = Slot { entry, older: NONE, newer: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash = |at: &u32| hasher.hash_one(slots[*at as usize].entry.key);
        self.index.insert_unique(hash(&at), at, hash);
        self.link(at);
    }

    pub fn remove(&mut self, at: u32) {
        self.unlink(at);
        let hash = self.hasher.hash_one(self.get(at).key);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == at) {
            entry.remove();
        }
        self.free.push(at);
    }

    /// Puts an entry with the same key in the place of another, as the most recent one of its group.
    pub fn replace(&mut self, at: u32, entry: Entry<K, G, V>) {
        self.unlink(at);
        self.slots[at as usize].entry = entry;
        self.link(at);
    }

    /// Notes that an entry was seen. Its group holds as many as before.
    pub fn touch(&mut self, at: u32, seen: Instant) {
        let entry = &mut self.slots[at as usize].entry;
        entry.seen = seen;
        let Some(group) = entry.group else { return };
        let list = self.detach(self.list(group), at);
        let list = self.append(list, at);
        self.lists.insert(group, list);
    }

    fn list(&self, group: G) -> List {
        self.lists.get(&group).copied().unwrap_or(EMPTY)
    }

    fn link(&mut self, at: u32) {
        if let Some(group) = self.get(at).group {
            let list = self.append(self.list(group), at);
            self.store(group, list);
        }
    }

    fn unlink(&mut self, at: u32) {
        if let Some(group) = self.get(at).group {
            let list = self.detach(self.list(group), at);
            self.store(group, list);
        }
    }

    fn append(&mut self, list: List, at: u32) -> List {
        self.slots[at as usize].older = list.newest;
        self.slots[at as usize].newer = NONE;
        let oldest = match list.newest {
            NONE => at,
            newest => {
                self.slots[newest as usize].newer = at;
                list.oldest
            }
        };
        List { oldest, newest: at, len: list.len + 1 }
    }

    fn detach(&mut self, list: List, at: u32) -> List {
        let Slot { older, newer, .. } = self.slots[at as usize];
        let mut list = List { len: list.len - 1, ..list };
        match older {
            NONE => list.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => list.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        list
    }

    fn store(&mut self, group: G, list: List) {
        let old = match list.len {
            0 => self.lists.remove(&group),
            _ => self.lists.insert(group, list),
        };
        let (old, new, owner) = (old.map_or(0, |l| l.len), list.len, group.owner());
        let estate = self.estates.entry(owner).or_insert_with(|| Estate { len: 0, groups: BTreeSet::new() });
        self.owners.remove(&(estate.len, owner));
        estate.groups.remove(&(old, group));
        estate.len = estate.len + new - old;
        if new > 0 {
            estate.groups.insert((new, group));
        }
        match estate.len {
            0 => drop(self.estates.remove(&owner)),
            len => drop(self.owners.insert((len, owner))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Two groups have one owner.
    impl Group for u8 {
        type Owner = u8;

        fn owner(self) -> u8 {
            self / 2
        }
    }

    fn keys(aged: &Aged<u32, u8, ()>, group: u8) -> Vec<u32> {
        aged.members(group).map(|e| e.key).collect()
    }

    proptest! {
        /// Against a list of all in the order in which they were seen.
        #[test]
        fn every_group_is_in_order_and_the_largest_is_known(
            steps in proptest::collection::vec((0u32..12, 0u8..4, 0u8..4), 1..100),
        ) {
            let mut aged = Aged::new();
            let mut model: Vec<(u32, u8)> = Vec::new();
            for (i, (key, group, what)) in steps.into_iter().enumerate() {
                let seen = Instant::ZERO + Duration::from_secs(i as u64);
                let entry = Entry { key, value: (), group: Some(group), seen };
                let known = model.iter().position(|(k, _)| *k == key).map(|i| model.remove(i));
                match (aged.find(key), what) {
                    (None, 0) => {}
                    (None, _) => {
                        aged.insert(entry);
                        model.push((key, group));
                    }
                    (Some(at), 0) => aged.remove(at),
                    (Some(at), 1) => {
                        aged.touch(at, seen);
                        model.extend(known);
                    }
                    (Some(at), _) => {
                        aged.replace(at, entry);
                        model.push((key, group));
                    }
                }
                prop_assert_eq!(aged.len(), model.len());
                for group in 0..4 {
                    let expected: Vec<u32> = model.iter().filter(|e| e.1 == group).map(|e| e.0).collect();
                    prop_assert_eq!(aged.oldest(group).map(|at| aged.get(at).key), expected.first().copied());
                    prop_assert_eq!(aged.held(group), expected.len());
                    prop_assert_eq!(keys(&aged, group), expected);
                }
                let owned = |owner: u8| aged.held(2 * owner) + aged.held(2 * owner + 1);
                let largest = aged.largest();
                let most = aged.groups().map(|g| owned(g.owner())).max();
                prop_assert_eq!(largest.map(|g| owned(g.owner())), most);
                prop_assert!(largest.is_none_or(|g| aged.held(g) >= aged.held(g ^ 1)));
                for owner in 0..2 {
                    prop_assert_eq!(aged.group_of(owner).is_some(), owned(owner) > 0);
                }
                let mut round: Vec<u32> = (0..aged.round()).filter_map(|_| aged.step()).collect();
                round.sort_unstable();
                let mut all: Vec<u32> = aged.iter().map(|(at, _)| at).collect();
                all.sort_unstable();
                prop_assert_eq!(round, all);
            }
        }
    }

    #[test]
    fn an_entry_without_a_group_is_in_no_list() {
        let mut aged: Aged<u32, u8, ()> = Aged::new();
        aged.insert(Entry { key: 1, value: (), group: None, seen: Instant::ZERO });
        let at = aged.find(1).expect("it is there");
        aged.touch(at, Instant::ZERO);
        assert_eq!((aged.len(), aged.largest(), aged.groups().count()), (1, None, 0));
        aged.remove(at);
        assert_eq!(aged.find(1), None);
    }
}
