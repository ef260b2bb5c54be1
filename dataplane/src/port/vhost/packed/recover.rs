//! Where a packed ring was left by a switch that was killed, by what is in the ring: for where nothing was written down
//! ([`super::resume`]), or of another ring.
//!
//! QEMU has no inflight region for network devices, and of a packed ring it does not know where its backend was: after a lost
//! connection it gives a base from long ago (`virtio_queue_packed_restore_last_avail_idx` of hw/virtio/virtio.c is empty;
//! for split rings it looks at the used index). But if every chain takes one place, as those of Linux do (receive buffers
//! that can be merged, and transmit chains in indirect tables), then the ring tells. The driver writes the AVAIL bit of every
//! place in each round, so this bit turns over where the driver is: that is the ring's oldest place. From there on come the
//! places that are used (virtio 1.2 section 2.8.1: both bits alike), and then those that are available, the first of which
//! is where the device was.
//!
//! A batch shows its first place last ([`super`]). If the device died before, one place is available, with used ones behind it:
//! the driver has seen none of them. They all go back empty, since a part of a frame over several chains may be
//! missing, and a driver drops an empty one.
//!
//! Chains of several places leave all but their first as they were, which may look like anything. So the base counts unless
//! the ring refutes it, whatever the chains: it lies outside of the last round of the driver's; a place behind it is used
//! already; or places before it were not used, and are not the rest of a chain either. That rest has NEXT, but for its last place:
//! a base just one place further than the ring says is not refuted. With IN_ORDER a device need not write each used
//! descriptor: then no base further on is. And the ring counts only if it is clear: no chain goes on, and
//! no two have the same id. What is not clear, such as a ring that its driver is writing to, leaves the base. A base that we found
//! ourselves, as when a ring of ours starts again, is not doubted. (A driver that is writing a whole round as one batch, and has
//! yet to write its first place, would mislead us; those of Linux and DPDK show each chain at once.)
//!
//! Costs a few steps per entry, once, when a ring starts.

use std::fmt;

use super::{Chain, Chains, DirtyLog, Packed, Place};
use crate::virtio::layout::{AVAIL, NEXT, PackedDescriptor, USED};

/// Where a ring was left, if it is not the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    /// The first place that the driver does not know to be used.
    place: Place,
    /// Places of a batch that was not shown to the driver, from there on.
    unshown: u16,
}

/// What counts against the ring's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    /// What the frontend says.
    base: Place,
    /// May used descriptors have been left out (IN_ORDER)?
    gaps: bool,
}

/// How often a ring is read whose driver writes past its end meanwhile.
const LOOKS: usize = 4;

impl Packed {
    /// What is in the ring.
    pub(super) fn look(&self) -> Vec<PackedDescriptor> {
        let look = |_| {
            let mut ring: Vec<_> = (0..self.size).rev().map(|index| self.descriptor(index)).collect();
            // A driver that goes on meanwhile goes forward, and so was not further at a place read later.
            ring.reverse();
            ring
        };
        let mut looks = (0..LOOKS).map(look);
        let first = looks.next().unwrap_or_default();
        if oldest(&first).is_some() {
            first
        } else {
            looks.find(|ring| oldest(ring).is_some()).unwrap_or(first)
        }
    }

    /// Goes on where a switch that was killed was, if the ring proves that this is not where the frontend says.
    pub(super) fn find_place(&mut self, log: Option<&DirtyLog>) {
        let ring = self.look();
        let Some(left) = left(&ring, Claim { base: self.next, gaps: self.in_order }) else { return };
        tracing::info!(
            "vhost: packed ring goes on at {}, not at {} as its frontend says; {} chains go back empty",
            left.place,
            self.next,
            left.unshown
        );
        self.next = left.place;
        for _ in 0..left.unshown {
            let id = self.descriptor(self.next.index).id;
            self.give_back(Chain { id, slots: 1, len: 0 }, 0);
        }
        self.publish(log);
    }
}

/// Where the ring says that it was left; `None` if it says nothing, or nothing against the base.
fn left(ring: &[PackedDescriptor], claim: Claim) -> Option<Left> {
    let size = ring.len() as u16;
    let oldest = oldest(ring)?;
    let (new, old) = ring.split_at(oldest.index.into());
    let lap = [old, new].concat();
    let used = lap.iter().take_while(|slot| is_used(slot)).count();
    let batch = lap[used..].iter().skip(1).take_while(|slot| is_used(slot)).count();
    let unshown = if batch > 0 { batch + 1 } else { 0 };
    if lap[used + unshown..].iter().any(is_used) || !are_chains(&lap[used..]) {
        return None;
    }
    let next = (used + unshown) as u16;
    let furthest = if claim.gaps { size } else { next + 1 };
    let said = claim.base.since(oldest, size);
    let is_left = said > size || !(next..=furthest).contains(&said);
    is_left.then(|| Left { place: oldest.behind(used as u16, size), unshown: unshown as u16 })
}

/// The place that the driver wrote first of all that are there, in the round in which it did.
pub(super) fn oldest(ring: &[PackedDescriptor]) -> Option<Place> {
    let wrap = |slot: &PackedDescriptor| slot.flags & AVAIL != 0;
    let first = wrap(ring.first()?);
    let turn = ring.iter().position(|slot| wrap(slot) != first).unwrap_or(0);
    let oldest = Place { index: turn as u16, wrap: wrap(&ring[turn]) };
    ring[turn..].iter().all(|slot| wrap(slot) == oldest.wrap).then_some(oldest)
}

pub(super) fn is_used(slot: &PackedDescriptor) -> bool {
    (slot.flags & AVAIL != 0) == (slot.flags & USED != 0)
}

/// Can they all be chains of one place that the driver has not got back?
fn are_chains(slots: &[PackedDescriptor]) -> bool {
    let mut ids: Vec<_> = slots.iter().map(|slot| slot.id).collect();
    ids.sort_unstable();
    ids.windows(2).all(|pair| pair[0] != pair[1]) && slots.iter().all(|slot| slot.flags & NEXT == 0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (wrap counter {})", self.index, u8::from(self.wrap))
    }
}

impl Place {
    /// Places from `oldest` to this in a ring of `size`; more than `size` if this lies before it.
    pub(super) fn since(self, oldest: Place, size: u16) -> u16 {
        let round = if self.wrap == oldest.wrap { 0 } else { u32::from(size) };
        let (here, there) = (u32::from(self.index) + round, u32::from(oldest.index));
        // Two rounds are as none.
        let places = if here < there { here + 2 * u32::from(size) - there } else { here - there };
        places.min(u32::from(size) + 1) as u16
    }
}

#[cfg(test)]
mod tests;
