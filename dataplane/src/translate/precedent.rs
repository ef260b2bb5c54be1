//! Precedents: a decision holds for every frame that differs from the first in nothing but who sends it and who is to get it,
//! if of these two the same is known.
//!
//! A switched flow names two stations, and there are as many flows as there are pairs; but how a frame gets from a port to
//! a port, or to an endpoint far away, is decided the same way for all of them. So what was decided for one is kept with what
//! it rested on: the bits of the key that were looked at, without the two addresses, and all that was asked of learned
//! state, with the answers. [`translate`](super::translate) is a function of these and of the tables, so a frame with the same bits, of
//! which all questions get the same answers, has the same decision, but for the sender that is learned and the bits of the
//! entries that it depends on. Addresses have no other meaning, if they are nobody's in particular: not of groups, not for
//! bridges, not ours.
//!
//! A new flow costs some 950 cycles instead of 1,340, one into a VXLAN tunnel 1,060 instead of 2,930 (bench `upcall`): the least of
//! it is the decision now.
//!
//! A list of actions that came from a precedent says of what *kind* its flows are: a keyed hash of all that such flows have in common for
//! ever. What is the same for ever is compared once, when a list is given to a flow, and not again when each of a million is to
//! follow other tables: that takes two lookups then, of the receiver and of what is taught (bench `mapping`, `renumber-all`).
//!
//! Cost: the words of the mask, and a lookup for the receiver and for the next hop; if there is no precedent a translation. What
//! is kept is bounded: who sends frames of ever new kinds makes others' precedents go, and has them decided anew.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use encap::field::MacAddr;
use flowtable::action::{Action, Effect};
use flowtable::fdb::Fdb;
use flowtable::field::Field;
use flowtable::flow::{Amendment, Birth, Decision, Flow, Home};
use flowtable::id::{BridgeId, Place, SegmentId, Station};
use flowtable::intern::Interner;
use flowtable::key::FlowKey;
use flowtable::list::List;
use flowtable::time::Instant;
use smallvec::SmallVec;

use super::asked::{Answers, Asked};
use super::settled::Settled;
pub use super::settled::Which;
use super::{Silent, View, inquire, is_for_bridges};

/// How many precedents there can be, a power of two: of some hundred VTEPs and some ports, each with a few kinds of frames.
const MOST: usize = 1024;
/// How many kinds of frames are known by the segment that they come in by, a power of two.
const KINDS: usize = 256;
/// Actions, effects and answers that all precedents may have together: a flood has one of each, and some hundred bytes, for
/// each VTEP; and the answers are as many if none of these can be reached.
const PARTS: usize = 8192;
/// The longest list that is of a kind: longer ones are shared by all that do the same, as there may be gigabytes of them.
const SHORT: usize = 4;
/// How many lists of a kind there can be of one generation. Others have none, so that who sends frames of ever new kinds has no memory
/// for each.
const OF_KINDS: usize = 2 * MOST;

/// By what kinds are hashed, for all pollers: a flow may be met by another than its own.
static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Decisions that were made, for frames to come. Those of older tables are of no use.
#[derive(Debug, Default)]
pub struct Precedents {
    /// Of the tables they are by.
    generation: Option<u64>,
    /// Link-layer addresses of ours.
    ours: Vec<MacAddr>,
    /// Where the receiver of a frame is looked for first: no more than a guess, by which a precedent is found.
    first: Vec<Option<(BridgeId, SegmentId)>>,
    cases: Vec<Option<Box<Case>>>,
    /// Parts of all cases.
    parts: usize,
    /// How many cases there ever were.
    made: u32,
    /// How many lists of a kind there are of this generation.
    of_kinds: usize,
    settled: Settled,
    interner: Interner,
}

/// One decision, and what it rested on.
#[derive(Debug)]
struct Case {
    /// No other has this number.
    number: u32,
    /// Of what kind flows by it are; never zero.
    kind: u64,
    /// The bits that were looked at, but for the two addresses: index, mask, value.
    words: SmallVec<[(usize, u64, u64); 8]>,
    /// Where the receiver was looked for, and found.
    receiver: Answers<(BridgeId, SegmentId), Option<Place>>,
    asked: Asked,
    sender: MacAddr,
    /// Segments in which it depends on the sender's entry, and on the receiver's.
    notes: [SmallVec<[SegmentId; 2]>; 2],
    decision: Decision,
}

impl Precedents {
    /// For who makes flows with this home.
    pub fn at(home: Home) -> Self {
        Precedents { interner: Interner::at(home), ..Precedents::default() }
    }

    /// What [`translate`](super::translate) decides.
    pub fn decide(&mut self, view: View<'_>, key: &FlowKey) -> Decision {
        self.follow(view);
        let (from, to) = (key.eth_src(), key.eth_dst());
        if from == to || [from, to].iter().any(|mac| self.is_special(*mac)) {
            return inquire(view, key, &mut Silent).0;
        }
        if let Some(case) = self.find(view, key).and_then(|which| self.case(which)) {
            return case.decide(key);
        }
        self.inquire(view, key)
    }

    /// The precedent that a flow with this key follows today, if it is moved by the tables alone: if it is for the same frames as it was, and
    /// teaches the same, which is known (compare [`is_moved_by_tables`]). Not of all such flows: of those that a precedent is for.
    /// `kind` is [what its list is for](Reader::kind).
    ///
    /// [`is_moved_by_tables`]: crate::revalidate::is_moved_by_tables
    /// [`Reader::kind`]: flowtable::megaflow::Reader::kind
    #[inline]
    pub fn followed(&mut self, view: View<'_>, (flow, kind): (&Flow, u64), key: &FlowKey) -> Option<Which> {
        self.follow(view);
        let which = self.settle(view, kind, key)?;
        let case = self.case(which)?;
        let same = case.kind == kind || case.makes(flow, key);
        (same && self.settled.is_known(view, flow.taught())).then_some(which)
    }

    /// What such a flow does today.
    pub fn amendment(&self, which: Which, key: &FlowKey) -> Option<Amendment> {
        let case = self.case(which)?;
        let Decision { actions, rests_on, .. } = &case.decision;
        Some(Amendment { actions: actions.clone(), depends: case.depends(key), rests_on: *rests_on })
    }

    /// What is done by a precedent, if it is still there.
    #[inline]
    pub fn actions(&self, which: Which) -> Option<&[Action]> {
        self.case(which).map(|case| &*case.decision.actions)
    }

    /// Asks for the memory that [`Precedents::followed`] takes.
    pub fn prefetch(&self, (flow, kind): (&Flow, u64), key: &FlowKey) {
        self.settled.prefetch(receiver(kind, key), flow.taught());
    }

    /// The list, or one equal to it that flows have already.
    pub fn share(&mut self, actions: List<Action>) -> List<Action> {
        self.interner.actions(actions)
    }

    /// Was what a flow teaches, which was used then, kept young by another that was used hardly earlier? If not, it is to be, now.
    pub fn is_refreshed(&mut self, effects: &List<Effect>, used: Instant) -> bool {
        self.settled.is_refreshed(effects, used)
    }

    /// Something that was learned is not so any more: nothing is settled.
    pub fn unsettle(&mut self) {
        self.settled.forget();
    }

    /// A flow for `key` under `decision`.
    pub fn flow(&mut self, key: &FlowKey, decision: Decision, birth: Birth) -> Flow {
        self.interner.flow(key, decision, birth)
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.cases.iter().flatten().count()
    }

    /// The precedent for such a frame, of a flow of this kind if that is not zero.
    #[inline]
    fn settle(&mut self, view: View<'_>, kind: u64, key: &FlowKey) -> Option<Which> {
        let settled = self.settled.precedent(receiver(kind, key));
        match settled.and_then(|which| self.case(which)) {
            Some(case) if case.kind == kind => settled,
            known => {
                let like = known.is_some_and(|case| case.is_like(key));
                self.compare(view, (key, kind), settled.filter(|_| like))
            }
        }
    }

    /// The same if the kind does not say which; `settled` is one that there is for like frames.
    fn compare(
        &mut self,
        view: View<'_>,
        (key, kind): (&FlowKey, u64),
        settled: Option<Which>,
    ) -> Option<Which> {
        let (from, mac) = (key.eth_src(), key.eth_dst());
        if from == mac || self.is_special(from) {
            return None;
        }
        if settled.is_some() {
            return settled;
        }
        if self.is_special(mac) {
            return None;
        }
        let which = self.find(view, key)?;
        self.settled.settle(receiver(kind, key), which);
        Some(which)
    }

    #[inline]
    fn case(&self, Which { number, at }: Which) -> Option<&Case> {
        self.cases.get(usize::from(at))?.as_deref().filter(|case| case.number == number)
    }

    /// Decides without a precedent; it is one from now on, if it can be.
    fn inquire(&mut self, view: View<'_>, key: &FlowKey) -> Decision {
        let (mut decision, asked) = inquire(view, key, &mut Silent);
        match Case::new(key, &decision, asked) {
            Some(case) => {
                let case = self.list(Case { kind: case.kind(&self.ours), ..case });
                decision.actions = case.decision.actions.clone();
                self.keep(key, case);
            }
            None => decision.actions = self.interner.actions(decision.actions),
        }
        decision
    }

    /// The case with the list that flows will share.
    fn list(&mut self, mut case: Case) -> Case {
        let actions = &mut case.decision.actions;
        if actions.len() <= SHORT && self.of_kinds < OF_KINDS {
            self.of_kinds += 1;
            *actions = List::of_kind(case.kind, actions);
        } else {
            *actions = self.interner.actions(actions.clone());
        }
        case
    }

    /// Starts anew, if there are other tables.
    fn follow(&mut self, view: View<'_>) {
        if self.generation == Some(view.snapshot.generation) {
            return;
        }
        let endpoints = view.snapshot.tables.underlay.endpoints.values();
        self.ours = endpoints.map(|endpoint| endpoint.mac).collect();
        self.ours.sort_unstable(); // or else the same ones made other kinds
        self.of_kinds = 0;
        self.generation = Some(view.snapshot.generation);
        self.settled.forget();
        self.clear();
    }

    fn clear(&mut self) {
        self.first.clear();
        self.first.resize(KINDS, None);
        self.cases.clear();
        self.cases.resize_with(MOST, || None);
        self.parts = 0;
    }

    /// Does the address mean more to a bridge than the station that has it?
    fn is_special(&self, mac: MacAddr) -> bool {
        mac.is_multicast() || is_for_bridges(mac) || self.ours.contains(&mac)
    }

    fn find(&self, view: View<'_>, key: &FlowKey) -> Option<Which> {
        let (bridge, segment) = self.first[first(key)]?;
        let place = view.place(bridge, Station { segment, mac: key.eth_dst() });
        let at = slot(key, place);
        let case = self.cases[at].as_ref()?;
        let which = Which { number: case.number, at: at as u16 };
        case.holds(view, key, ((bridge, segment), place)).then_some(which)
    }

    /// Keeps a case as a precedent.
    fn keep(&mut self, key: &FlowKey, case: Case) {
        self.made = self.made.checked_add(1).unwrap_or_else(|| {
            self.clear();
            self.settled.forget();
            0
        });
        let (number, parts) = (self.made, case.parts());
        let &((bridge, segment), place) = case.receiver.first().expect("a case has one");
        if self.parts + parts > PARTS {
            self.clear();
        }
        self.first[first(key)] = Some((bridge, segment));
        self.parts += parts;
        let at = slot(key, place);
        let old = self.cases[at].replace(Box::new(Case { number, ..case }));
        self.parts -= old.map_or(0, |old| old.parts());
    }
}

impl Case {
    /// `None` if something was asked that cannot be asked again, or nobody looked for the receiver.
    fn new(key: &FlowKey, decision: &Decision, asked: Asked) -> Option<Case> {
        let (from, to) = (key.eth_src(), key.eth_dst());
        let known = asked.notes.iter().all(|station| [from, to].contains(&station.mac))
            && asked.own.iter().all(|((_, station), _)| station.mac == to);
        if !known || !asked.is_repeatable() || asked.own.is_empty() {
            return None;
        }
        let of = |mac| asked.notes.iter().filter(move |s| s.mac == mac).map(|s| s.segment).collect();
        let addresses = addresses();
        let looked = decision.mask.nonzero().map(|(i, mask)| (i, mask & !addresses.words()[i]));
        Some(Case {
            number: 0,
            kind: 0,
            words: looked
                .filter(|(_, mask)| *mask != 0)
                .map(|(i, mask)| (i, mask, key.words()[i] & mask))
                .collect(),
            receiver: asked.own.iter().map(|((b, station), place)| ((*b, station.segment), *place)).collect(),
            sender: from,
            notes: [of(from), of(to)],
            asked,
            decision: decision.clone(),
        })
    }

    /// Of what kind its flows are: a hash of all that is the same for them as long as they live, whatever tables they follow and wherever
    /// receivers are; and of who is special. So if it is the same for a flow and a case, the flow has the bits that were looked
    /// at, would be of the same mask and port, and teach the same of its sender.
    fn kind(&self, ours: &[MacAddr]) -> u64 {
        let Decision { mask, effects, in_port, cacheable, .. } = &self.decision;
        let taught = |effect: &Effect| {
            let anybodys = self.taught_by(MacAddr::default(), *effect);
            (anybodys == self.taught_by(MacAddr([0xff; 6]), *effect), anybodys)
        };
        let taught: SmallVec<[_; 2]> = effects.iter().map(taught).collect();
        SECRET.hash_one((mask, &self.words, in_port, cacheable, taught, ours)).max(1)
    }

    /// How much there is to keep, beside what each has.
    fn parts(&self) -> usize {
        let Decision { actions, effects, .. } = &self.decision;
        actions.len().max(effects.len()).max(self.receiver.len() + self.asked.answers())
    }

    /// Is the frame decided so? `first` is where its receiver was found in the first place.
    fn holds(&self, view: View<'_>, key: &FlowKey, first: ((BridgeId, SegmentId), Option<Place>)) -> bool {
        let place = |(bridge, segment)| view.place(bridge, Station { segment, mac: key.eth_dst() });
        let (known, more) = self.receiver.split_first().expect("kept only if it was looked for");
        *known == first
            && self.is_like(key)
            && more.iter().all(|&(whence, answer)| place(whence) == answer)
            && self.asked.holds(view)
    }

    /// Has the frame, the two addresses apart, the bits that were looked at?
    #[inline]
    fn is_like(&self, key: &FlowKey) -> bool {
        self.words.iter().all(|&(i, mask, value)| key.words()[i] & mask == value)
    }

    /// Does it decide about a flow with this key but for what is done with the frames?
    fn makes(&self, flow: &Flow, key: &FlowKey) -> bool {
        let Decision { mask, in_port, cacheable, .. } = &self.decision;
        *cacheable
            && *in_port == flow.in_port()
            && self.teaches(key.eth_src(), flow.effects())
            && mask == flow.mask()
    }

    /// Does a frame of this sender's teach just this?
    fn teaches(&self, sender: MacAddr, effects: &[Effect]) -> bool {
        let own = &self.decision.effects;
        own.len() == effects.len()
            && own.iter().zip(effects).all(|(own, effect)| self.taught_by(sender, *own) == *effect)
    }

    /// Which learned entries the decision depends on for a frame with this key.
    fn depends(&self, key: &FlowKey) -> u64 {
        let of = |(segments, mac): (&[SegmentId], MacAddr)| {
            segments.iter().fold(0, |bits, &segment| bits | Fdb::dependency(Station { segment, mac }))
        };
        let [sender, receiver] = &self.notes;
        self.asked.depends | of((sender, key.eth_src())) | of((receiver, key.eth_dst()))
    }

    fn decide(&self, key: &FlowKey) -> Decision {
        let Decision { actions, mask, effects, rests_on, in_port, cacheable, .. } = &self.decision;
        Decision {
            actions: actions.clone(),
            mask: *mask,
            effects: effects.iter().map(|effect| self.taught_by(key.eth_src(), *effect)).collect(),
            depends: self.depends(key),
            rests_on: *rests_on,
            in_port: *in_port,
            cacheable: *cacheable,
        }
    }

    /// The effect of a frame of this sender's. What outer frames teach is of ours, so it is not this case's sender.
    fn taught_by(&self, sender: MacAddr, effect: Effect) -> Effect {
        match effect {
            Effect::Learn { bridge, station, place } if station.mac == self.sender => {
                Effect::Learn { bridge, station: Station { mac: sender, ..station }, place }
            }
            other => other,
        }
    }
}

/// All bits of both addresses.
fn addresses() -> FlowKey {
    let all = MacAddr([0xff; 6]);
    FlowKey::default().with(Field::EthSrc, all).with(Field::EthDst, all)
}

/// The kind of a frame by what tells its segment: port, tag, VNI.
fn first(key: &FlowKey) -> usize {
    let words = key.words();
    spread(words[0] ^ words[15].rotate_left(16)) as usize % KINDS
}

/// Where a precedent for such a frame with its receiver there would be.
fn slot(key: &FlowKey, place: Option<Place>) -> usize {
    let there = match place {
        None => 0,
        Some(Place::Port(port)) => 1 + u64::from(port.0),
        Some(Place::Vtep { tunnel, address }) => u64::from(tunnel.0) << 48 ^ number(address),
    };
    spread(kind_of(key) ^ spread(there.rotate_left(32))) as usize % MOST
}

/// To whom, and in a frame of what kind, as far as it is known: what the precedent for a flow of this kind, if not zero, is found by.
#[inline]
fn receiver(kind: u64, key: &FlowKey) -> (MacAddr, u64) {
    (key.eth_dst(), if kind == 0 { kind_of(key) } else { kind })
}

/// What most often tells decisions apart, beside the two addresses: port, tags, EtherType, congestion; outer addresses and VNI.
fn kind_of(key: &FlowKey) -> u64 {
    let words = key.words();
    let outer = words[15] ^ words[16].rotate_left(24) ^ words[17].rotate_left(48);
    words[0] ^ words[1] << 48 ^ (words[4] >> 8 & 0xff) << 20 ^ spread(outer)
}

fn number(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits() as u64 ^ (v6.to_bits() >> 64) as u64,
    }
}

/// The upper half of a product with the golden ratio: every bit reaches it.
pub(super) fn spread(word: u64) -> u64 {
    let product = u128::from(word) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}
