//! What was found out lately of stations, for as long as nothing else was learned: the precedent for frames to one, and whether
//! what frames teach is known.
//!
//! When a segment is renumbered all of its flows are to be decided anew, a million perhaps between two thousand stations. Each
//! station is looked for once then, and not with each flow. Where many stations are, or somebody learns all the time, it is
//! no worse than looking.

use encap::field::MacAddr;
use flowtable::action::Effect;
use flowtable::list::List;

use super::View;
use super::precedent::spread;
use crate::revalidate::is_known_learning;

/// How many receivers, and how many senders, are remembered: a power of two.
const MOST: usize = 4096;

/// Frames of a kind to a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct To {
    pub mac: MacAddr,
    pub kind: u64,
}

/// What holds for a while, of which each thing has two places to be.
#[derive(Debug)]
struct Memory<T>(Vec<Option<(u64, T)>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Memory(Vec::new())
    }
}

impl<T> Memory<T> {
    /// What was remembered since `moment`, and `is` it.
    #[inline]
    fn get(&self, (hash, moment): (u64, u64), is: impl Fn(&T) -> bool) -> Option<&T> {
        let at = hash as usize % MOST;
        let of = |at: usize| self.0.get(at)?.as_ref().filter(|(since, it)| *since == moment && is(it));
        of(at).or_else(|| of(at ^ 1)).map(|(_, it)| it)
    }

    /// Remembers, in the place of something older if that is there.
    fn put(&mut self, (hash, moment): (u64, u64), it: T) {
        self.0.resize_with(MOST, || None);
        let at = hash as usize % MOST;
        let is_new = |at: usize| self.0[at].as_ref().is_some_and(|(since, _)| *since == moment);
        let at = if is_new(at) { at ^ 1 } else { at };
        self.0[at] = Some((moment, it));
    }
}

/// What was found out since something else was learned.
#[derive(Debug, Default)]
pub(super) struct Settled {
    moment: u64,
    /// Where the precedent is, and its number.
    receivers: Memory<(To, (u32, u64))>,
    taught: Memory<List<Effect>>,
}

impl Settled {
    /// What was found out holds no more.
    pub fn forget(&mut self) {
        self.moment += 1;
    }

    /// The precedent for such frames: where it was, and its number.
    #[inline]
    pub fn get(&self, to: To) -> Option<(usize, u64)> {
        let (_, (at, number)) = self.receivers.get((to.hash(), self.moment), |(known, _)| *known == to)?;
        Some((*at as usize, *number))
    }

    pub fn put(&mut self, to: To, (at, number): (usize, u64)) {
        self.receivers.put((to.hash(), self.moment), (to, (at as u32, number)));
    }

    /// Is what a flow teaches known, and all of it where stations live?
    #[inline]
    pub fn is_known(&mut self, view: View<'_>, effects: Option<&List<Effect>>) -> bool {
        let Some(effects) = effects else { return true };
        let at = (spread(effects.as_ptr().addr() as u64), self.moment);
        if self.taught.get(at, |known| known.is_same(effects)).is_some() {
            return true;
        }
        let known = effects.iter().all(|effect| is_known_learning(effect, view));
        if known {
            self.taught.put(at, effects.clone());
        }
        known
    }
}

impl To {
    #[inline]
    fn hash(self) -> u64 {
        spread(self.mac.to_u64() ^ spread(self.kind))
    }
}
