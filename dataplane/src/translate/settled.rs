//! What was found out lately of stations, for as long as nothing else was learned: the precedent for frames to one, and whether
//! what frames teach is known.
//!
//! When a segment is renumbered all of its flows are to be decided anew, a million perhaps between two thousand stations. Each
//! station is looked for once then, and not with each flow: bench `mapping`, `renumber-all`. What is remembered of a station lies in one cache
//! line. Where there are more stations than room, or somebody learns all the time, it costs what looking costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use encap::field::MacAddr;
use flowtable::action::Effect;
use flowtable::list::List;
use flowtable::prefetch;
use flowtable::time::Instant;

use super::View;
use super::precedent::spread;
use crate::revalidate::is_known_learning;

/// How many things of a kind are remembered: a power of two.
const MOST: usize = 4096;
/// Things that share a line.
const WAYS: usize = 4;
/// How much older what is learned may seem than it is: nothing beside its age.
const SLACK: Duration = Duration::from_millis(250);

/// Something that was found out at a moment. None is the moment zero.
#[derive(Debug, Default)]
struct Found<T> {
    moment: u32,
    it: T,
}

/// Things that may lie in the same line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set<T>([Found<T>; WAYS]);

/// What holds since a moment, and no longer than that.
#[derive(Debug)]
struct Memory<T>(Vec<Set<T>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Memory(Vec::new())
    }
}

impl<T: Default> Memory<T> {
    fn index(hash: u64) -> usize {
        hash as usize % (MOST / WAYS)
    }

    fn prefetch(&self, hash: u64) {
        self.0.get(Self::index(hash)).into_iter().for_each(|set| prefetch(set));
    }

    /// What was found out at this moment, and `is` it. All are looked at, whichever it is: nobody guesses which, and a wrong guess takes
    /// more time.
    #[inline]
    fn get(&self, (hash, moment): (u64, u32), is: impl Fn(&T) -> bool) -> Option<&T> {
        let Set(ways) = self.0.get(Self::index(hash))?;
        let at = ways
            .iter()
            .zip(0..)
            .fold(WAYS, |at, (found, way)| if (found.moment == moment) & is(&found.it) { way } else { at });
        ways.get(at).map(|found| &found.it)
    }

    /// The same, to be changed.
    fn get_mut(&mut self, (hash, moment): (u64, u32), is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let Set(ways) = self.0.get_mut(Self::index(hash))?;
        ways.iter_mut().find(|found| found.moment == moment && is(&found.it)).map(|found| &mut found.it)
    }

    /// Remembers, in the place of something older if there is any.
    fn put(&mut self, (hash, moment): (u64, u32), it: T) {
        self.0.resize_with(MOST / WAYS, Set::default);
        let Set(ways) = &mut self.0[Self::index(hash)];
        let older = ways.iter().position(|found| found.moment != moment);
        ways[older.unwrap_or((hash >> 32) as usize % WAYS)] = Found { moment, it };
    }
}

/// A precedent: where it is, and its number, as another may come there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Which {
    pub(super) number: u32,
    pub(super) at: u16,
}

/// The precedent for frames to somebody, in few bytes.
#[derive(Debug, Default)]
struct Receiver {
    number: u32,
    at: u16,
    mac: MacAddr,
}

/// What was found out since something else was learned.
#[derive(Debug)]
pub(super) struct Settled {
    moment: u32,
    receivers: Memory<Receiver>,
    /// What lists are marked with of which all is known: no other poller's, and no other moment's.
    mark: u64,
    refreshed: Memory<Refreshed>,
}

/// Until when what a list of effects teaches was kept young. The list is known by where it lies, and not kept: of another that
/// comes to lie there this holds wrongly for [`SLACK`] at most.
#[derive(Debug, Default)]
struct Refreshed {
    address: u64,
    used: Instant,
}

const _: () = assert!(size_of::<Set<Receiver>>() == 64);

/// Marks that were given.
static MARKS: AtomicU64 = AtomicU64::new(1);

impl Default for Settled {
    fn default() -> Self {
        Settled { moment: 1, receivers: Memory::default(), mark: mark(), refreshed: Memory::default() }
    }
}

impl Settled {
    /// What was found out holds no more.
    pub fn forget(&mut self) {
        self.mark = mark();
        self.moment = self.moment.checked_add(1).unwrap_or_else(|| {
            *self = Settled::default();
            self.moment
        });
    }

    /// Asks for the memory that the questions about a flow take.
    pub fn prefetch(&self, (receiver, kind): (MacAddr, u64), effects: Option<&List<Effect>>) {
        self.receivers.prefetch(to(receiver, kind));
        effects.into_iter().for_each(|effects| prefetch(effects.mark()));
    }

    /// The precedent for frames of some kind to this receiver.
    #[inline]
    pub fn precedent(&self, (receiver, kind): (MacAddr, u64)) -> Option<Which> {
        let at = (to(receiver, kind), self.moment);
        let &Receiver { number, at, .. } = self.receivers.get(at, |known| known.mac == receiver)?;
        Some(Which { number, at })
    }

    pub fn settle(&mut self, (receiver, kind): (MacAddr, u64), which: Which) {
        let Which { number, at } = which;
        self.receivers.put((to(receiver, kind), self.moment), Receiver { number, at, mac: receiver });
    }

    /// Is what a flow teaches known, and all of it where stations live?
    #[inline]
    pub fn is_known(&self, view: View<'_>, effects: Option<&List<Effect>>) -> bool {
        let Some(effects) = effects else { return true };
        if effects.mark().load(Ordering::Relaxed) == self.mark {
            return true;
        }
        let known = effects.iter().all(|effect| is_known_learning(effect, view));
        if known {
            effects.mark().store(self.mark, Ordering::Relaxed);
        }
        known
    }

    /// Was what a flow teaches, which was used then, kept young by another that was used hardly earlier? If not, it is to be, now.
    pub fn is_refreshed(&mut self, effects: &List<Effect>, used: Instant) -> bool {
        let at = (address(effects), self.moment);
        let is = |known: &Refreshed| known.address == at.0;
        match self.refreshed.get_mut(at, is) {
            Some(known) if used.since(known.used) < SLACK => true,
            Some(known) => {
                known.used = used;
                false
            }
            None => {
                self.refreshed.put(at, Refreshed { address: at.0, used });
                false
            }
        }
    }
}

fn mark() -> u64 {
    MARKS.fetch_add(1, Ordering::Relaxed)
}

fn to(receiver: MacAddr, kind: u64) -> u64 {
    spread(receiver.to_u64() ^ spread(kind))
}

fn address(effects: &List<Effect>) -> u64 {
    spread(effects.as_ptr().addr() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_settled_holds_until_something_is_learned() {
        let mut settled = Settled::default();
        let [a, b] = [1, 2].map(|n| (MacAddr::from_u64(n), 7));
        let which = Which { number: 9, at: 3 };
        assert_eq!(settled.precedent((MacAddr::default(), 0)), None, "nothing is there to begin with");
        settled.settle(a, which);
        assert_eq!((settled.precedent(a), settled.precedent(b)), (Some(which), None));
        settled.forget();
        assert_eq!(settled.precedent(a), None);
    }

    #[test]
    fn there_is_no_moment_twice() {
        let mut settled = Settled { moment: u32::MAX - 1, ..Settled::default() };
        let a = (MacAddr::from_u64(1), 7);
        for _ in 0..4 {
            settled.settle(a, Which::default());
            assert!(settled.precedent(a).is_some());
            settled.forget();
            assert_eq!(settled.precedent(a), None);
        }
    }

    #[test]
    fn what_was_used_later_is_kept_young_again() {
        let mut settled = Settled::default();
        let [a, b] = [1, 2].map(|n| {
            let address = std::net::IpAddr::from([192, 0, 2, n]);
            List::from([Effect::Resolve { endpoint: flowtable::id::PortId(1), address }])
        });
        let at = |n: u32| Instant::ZERO + SLACK * n;
        let mut ask = |effects: &List<Effect>, used| settled.is_refreshed(effects, at(used));
        assert_eq!(
            [ask(&a, 5), ask(&b, 3), ask(&a, 4), ask(&a, 5), ask(&b, 4)],
            [false, false, true, true, false]
        );
        assert_eq!([ask(&a, 7), ask(&a, 6)], [false, true]);
        settled.forget();
        assert!(!settled.is_refreshed(&a, Instant::ZERO));
    }

    #[test]
    fn as_much_is_remembered_as_there_is_room_for() {
        let mut settled = Settled::default();
        let all = || (0..MOST as u64 / 4).map(|n| (MacAddr::from_u64(n), 7));
        all().zip(0..).for_each(|(to, at)| settled.settle(to, Which { number: 1, at }));
        let right =
            all().zip(0..).filter(|(to, at)| settled.precedent(*to).is_some_and(|w| w.at == *at)).count();
        let wrong =
            all().zip(0..).filter(|(to, at)| settled.precedent(*to).is_some_and(|w| w.at != *at)).count();
        assert!(right > MOST / 4 * 9 / 10 && wrong == 0, "{right}");
    }
}
