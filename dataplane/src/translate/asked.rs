//! What a decision asked of learned state, and the answers: what must be the same for another frame to be decided alike (see
//! [`super::precedent`]).

use std::net::IpAddr;

use flowtable::id::{BridgeId, Place, SegmentId, Station};
use smallvec::SmallVec;

use super::View;

/// What was asked, and the answers: most often one.
pub(super) type Answers<Q, A> = SmallVec<[(Q, A); 1]>;

/// Questions with their answers. The order is of no meaning: if all answers are the same, so was the way.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Where stations live that the frame names.
    pub own: Answers<(BridgeId, Station), Option<Place>>,
    /// Where stations live that it does not name: next hops.
    others: Answers<(BridgeId, Station), Option<Place>>,
    /// Who has sent into a segment.
    vteps: Answers<(BridgeId, SegmentId), Vec<IpAddr>>,
    /// Stations that the frame names on whose entries the decision depends.
    pub notes: SmallVec<[Station; 4]>,
    /// Dependency bits of all but these.
    pub depends: u64,
    /// There was a question that is not among these.
    once: bool,
}

impl Asked {
    /// Where a station lives that the frame names.
    #[inline]
    pub fn station(&mut self, who: (BridgeId, Station), place: Option<Place>) {
        self.own.push((who, place));
    }

    /// The decision depends on the entry of a station that the frame names.
    #[inline]
    pub fn note(&mut self, station: Station) {
        self.notes.push(station);
    }

    /// Who has sent into a segment.
    pub fn vteps(&mut self, (bridge, segment): (BridgeId, SegmentId), vteps: &[IpAddr]) {
        self.depends |= flowtable::vteps::Vteps::dependency(segment);
        self.vteps.push(((bridge, segment), vteps.into()));
    }

    /// Something that is not asked again: there is no second frame for this decision.
    pub fn once(&mut self) {
        self.once = true;
    }

    /// What was asked for another frame, which this one does not name, and what that depends on.
    pub fn join(&mut self, (other, depends): (Asked, u64)) {
        self.others.extend(other.own);
        self.others.extend(other.others);
        self.vteps.extend(other.vteps);
        self.depends |= depends;
        self.once |= other.once;
    }

    /// Can all of it be asked again?
    pub fn is_repeatable(&self) -> bool {
        !self.once
    }

    /// How many answers there are that have nothing to do with what the frame names.
    pub fn answers(&self) -> usize {
        self.others.len() + self.vteps.iter().map(|(_, addresses)| addresses.len()).sum::<usize>()
    }

    /// Are the answers that have nothing to do with what the frame names the same as they were?
    pub fn holds(&self, view: View<'_>) -> bool {
        let vteps = |(bridge, segment), addresses: &[IpAddr]| match view.snapshot.learned(bridge) {
            Some(learned) => learned.vteps().are(segment, view.now, addresses),
            None => addresses.is_empty(),
        };
        self.others.iter().all(|&((bridge, station), place)| view.place(bridge, station) == place)
            && self.vteps.iter().all(|(who, addresses)| vteps(*who, addresses))
    }
}
