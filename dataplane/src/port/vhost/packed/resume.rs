//! Where a packed ring goes on after a switch that was killed, by what that one wrote down ([`super::super::places`]).
//!
//! The record is the last batch, from where to where. Its first place was written last: if it is used, or the driver has
//! it back and wrote it again, the batch was shown and the next place is where it ends; else where it begins. What was written
//! down may be of another ring at the same address: the guest can have started its driver again meanwhile. So the ring must agree: the
//! place is within the driver's last round, what lies there is available, and what lies before it is a chain that is used. In
//! a ring that was begun anew nothing is used, but for memory that is zero before the very first place. (One case is given up: the
//! ring is full to the last place, the driver is about to go from its end to its beginning, and there lies the rest of the chain.)
//!
//! From there on come chains that the guest was not shown. Some may be used all the same:
//! * those of a batch that was cut off while it was written;
//! * those that QEMU used. While it has no backend it serves kicks itself, from where it believes the ring to be, which is a place from
//!   long ago (`virtio_net_drop_tx_queue_data` of hw/net/virtio-net.c). If the driver has come around to there, QEMU drops
//!   all chains from there on, in the middle of what the driver waits for.
//!
//! All chains up to the last of them go back empty, since a part of a frame over several may be missing, and a driver drops an empty
//! one. How long a used chain is, its last descriptor tells: the device left that one as it was, and it has the id of
//! the chain (virtio 1.2 section 2.8.6), which no other chain has before the driver has seen it used.
//!
//! Costs a few steps per entry, once, when a ring starts.

use super::recover::{is_used, oldest};
use super::{Chain, Chains, DirtyLog, Packed, Place};
use crate::port::vhost::places::LastBatch;
use crate::virtio::layout::{NEXT, PackedDescriptor};

/// Where a ring begins (virtio 1.2 section 2.8.1).
const BEGIN: u16 = 0x8000;

/// A chain that the guest was not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hidden {
    id: u16,
    slots: u16,
    is_used: bool,
}

impl Packed {
    /// Goes on where the last batch ends, or where it begins if it was not shown. False, and nothing done, if the ring disagrees.
    pub(super) fn resume(&mut self, last: LastBatch, log: Option<&DirtyLog>) -> bool {
        let ring = self.look();
        let Some((place, hidden)) = find(&ring, last) else { return false };
        let said = std::mem::replace(&mut self.next, place);
        for &Hidden { id, slots, .. } in &hidden {
            self.give_back(Chain { id, slots, len: 0 }, 0);
        }
        self.publish(log);
        if self.next != said {
            tracing::info!(
                "vhost: packed ring goes on at {}, not at {said} as its frontend says; {} chains go back empty",
                self.next,
                hidden.len()
            );
        }
        true
    }
}

/// The place, and the chains behind it up to the last that is used.
fn find(ring: &[PackedDescriptor], last: LastBatch) -> Option<(Place, Vec<Hidden>)> {
    let (size, oldest) = (ring.len() as u16, oldest(ring)?);
    let (new, old) = ring.split_at(oldest.index.into());
    let lap = [old, new].concat();
    let [from, to] = [last.from, last.to].map(|bits| Place::of(bits).since(oldest, size));
    let is_shown = lap.get(usize::from(from)).is_none_or(is_used);
    let at = if is_shown { to } else { from };
    let (past, future) = lap.split_at_checked(at.into())?;
    let is_here = !future.first().is_some_and(is_used) && ends_used(past, oldest);
    is_here.then(|| (oldest.behind(at, size), hidden(future)))
}

/// Is the last chain used, as far as it is there?
fn ends_used(past: &[PackedDescriptor], oldest: Place) -> bool {
    let Some((end, before)) = past.split_last() else { return true };
    if is_used(end) || end.flags & NEXT != 0 {
        return is_used(end);
    }
    match before.iter().rev().find(|slot| is_used(slot) || slot.flags & NEXT == 0) {
        // Memory that nobody has written looks used, and has the id of a driver's first chain.
        Some(head) => is_used(head) && head.id == end.id && !is_blank(head),
        // The first places of the chain are the driver's again, or this is the beginning of a ring that was begun anew and is full.
        None => oldest != Place::of(BEGIN),
    }
}

fn is_blank(slot: &PackedDescriptor) -> bool {
    (slot.addr, slot.len, slot.id, slot.flags) == (0, 0, 0, 0)
}

/// Chains up to the last that is used.
fn hidden(mut future: &[PackedDescriptor]) -> Vec<Hidden> {
    let mut chains = Vec::new();
    while let Some((head, rest)) = future.split_first() {
        let tail = |slots: &[PackedDescriptor]| {
            slots
                .iter()
                .position(|slot| is_used(slot) || slot.flags & NEXT == 0)
                .filter(|&at| !is_used(&slots[at]))
        };
        let (id, slots) = if is_used(head) {
            let tail = tail(rest).filter(|&at| rest[at].id == head.id);
            (head.id, tail.map_or(1, |at| at + 2))
        } else {
            let Some(tail) = tail(future) else { break };
            (future[tail].id, tail + 1)
        };
        chains.push(Hidden { id, slots: slots as u16, is_used: is_used(head) });
        future = &future[slots..];
    }
    let end = chains.iter().rposition(|chain| chain.is_used).map_or(0, |at| at + 1);
    chains.truncate(end);
    chains
}
