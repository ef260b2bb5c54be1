use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::virtio::layout::{AVAIL, NEXT, PackedDescriptor, USED};

const SIZE: u16 = 8;
/// A region for rings up to 11; the ring has fewer.
const LAYOUT: Layout = Layout { size: 11, ..PACKED };

fn at(index: u16, wrap: bool) -> PackedPlace {
    PackedPlace { index, wrap }
}

/// A packed ring as it lies in the guest's memory, and what the driver knows.
struct Ring {
    slots: Vec<PackedDescriptor>,
    next_available: PackedPlace,
    next_used: PackedPlace,
    free: u16,
    /// Names of the chains that are not with the driver, with their lengths.
    out: Vec<(u16, u16)>,
    /// All names, in the order of making available and of getting back.
    made: Vec<u16>,
    back: Vec<u16>,
}

impl Ring {
    fn new() -> Ring {
        let slots = vec![PackedDescriptor::default(); SIZE.into()];
        let start = at(0, true);
        Ring {
            slots,
            next_available: start,
            next_used: start,
            free: SIZE,
            out: Vec::new(),
            made: Vec::new(),
            back: Vec::new(),
        }
    }

    /// Makes a chain available, if there is room.
    fn make(&mut self, count: u16) {
        if count > self.free {
            return;
        }
        let id = self.made.len() as u16;
        for i in 0..count {
            let PackedPlace { index, wrap } = self.next_available;
            let next = if i + 1 < count { NEXT } else { 0 };
            let flags = next | if wrap { AVAIL } else { USED };
            self.slots[usize::from(index)] =
                PackedDescriptor { addr: u64::from(id), len: i.into(), id, flags };
            self.next_available = self.next_available.after(1, SIZE);
        }
        self.free -= count;
        self.out.push((id, count));
        self.made.push(id);
    }

    /// Takes back what is used.
    fn collect(&mut self) {
        loop {
            let slot = self.slots[usize::from(self.next_used.index)];
            let used = if self.next_used.wrap { AVAIL | USED } else { 0 };
            if self.out.is_empty() || slot.flags & (AVAIL | USED) != used {
                return;
            }
            let chain = self.out.iter().position(|&(id, _)| id == slot.id).expect("a chain that is out");
            let (id, count) = self.out.remove(chain);
            self.back.push(id);
            self.free += count;
            self.next_used = self.next_used.after(count, SIZE);
        }
    }

    /// The chain at a place, if there is one.
    fn take(&self, mut place: PackedPlace) -> Vec<PackedDescriptor> {
        let mut chain = Vec::new();
        loop {
            let slot = self.slots[usize::from(place.index)];
            if slot.flags & (AVAIL | USED) != if place.wrap { AVAIL } else { USED } {
                return chain;
            }
            chain.push(slot);
            if slot.flags & NEXT == 0 {
                return chain;
            }
            place = place.after(1, SIZE);
        }
    }

    /// What a device has to do first: of a batch that did not reach the ring all but the first descriptor may have.
    fn restore(&mut self, from: PackedPlace, chains: &[Taken]) {
        let mut place = from;
        for &descriptor in chains.iter().flat_map(|chain| &chain.descriptors) {
            store();
            let flags = descriptor.flags & !(AVAIL | USED) | if place.wrap { AVAIL } else { USED };
            self.slots[usize::from(place.index)] = PackedDescriptor { flags, ..descriptor };
            place = place.after(1, SIZE);
        }
    }

    /// Writes used descriptors, the flags of the first one last.
    fn give_back(&mut self, from: PackedPlace, chains: &[(u16, u16)]) {
        let mut place = from;
        let mut first = None;
        for &(id, count) in chains {
            let flags = if place.wrap { AVAIL | USED } else { 0 };
            store();
            let slot = &mut self.slots[usize::from(place.index)];
            *slot = PackedDescriptor { id, flags: slot.flags, ..Default::default() };
            match first {
                None => first = Some((place, flags)),
                Some(_) => slot.flags = flags,
            }
            place = place.after(count, SIZE);
        }
        if let Some((place, flags)) = first {
            store();
            self.slots[usize::from(place.index)].flags = flags;
        }
    }
}

/// What the driver does, then which chains the device takes and which it is done with.
#[derive(Debug, Clone)]
struct Batch {
    make: Vec<u16>,
    take: usize,
    done: Vec<Index>,
}

fn batch() -> impl Strategy<Value = Batch> {
    let make = proptest::collection::vec(1u16..4, 0..6);
    (make, 0usize..6, proptest::collection::vec(any::<Index>(), 0..5)).prop_map(|(make, take, done)| Batch {
        make,
        take,
        done,
    })
}

/// A process of the device's: what it knows, and loses when it dies.
struct Device {
    packed: Packed,
    used: PackedPlace,
    next: PackedPlace,
    /// Entry, name, length.
    in_flight: Vec<(u16, u16, u16)>,
}

impl Device {
    fn start(region: &Region, ring: &mut Ring) -> Device {
        let queue = region.queue(1, SIZE).unwrap();
        let flags = |index: u16| ring.slots[usize::from(index)].flags;
        let (packed, recovered) = Packed::recover(queue, at(0, true), flags).unwrap();
        let chain = |taken: &Taken| {
            let last = taken.descriptors.last().unwrap();
            let whole = (0..).zip(&taken.descriptors).all(|(i, d)| (d.addr, d.len) == (last.id.into(), i));
            assert!(whole, "{taken:?}");
            (taken.entry, last.id, taken.descriptors.len() as u16)
        };
        let in_flight: Vec<_> = recovered.chains.iter().map(chain).collect();
        let next = in_flight.iter().fold(recovered.used, |place, &(_, _, count)| place.after(count, SIZE));
        ring.restore(recovered.used, &recovered.chains);
        // What the driver has not got back, from the oldest on, is what is in flight and then what nobody took.
        ring.collect();
        assert_eq!(recovered.used, ring.next_used, "{:?} {:?} {recovered:?}", ring.slots, ring.out);
        let names: Vec<u16> = in_flight.iter().map(|&(_, id, _)| id).collect();
        let out: Vec<u16> = ring.out.iter().map(|&(id, _)| id).collect();
        assert_eq!(names, out[..names.len()], "in order of submission");
        Device { packed, used: recovered.used, next, in_flight }
    }

    fn batch(&mut self, ring: &mut Ring, batch: &Batch) {
        ring.collect();
        batch.make.iter().for_each(|&count| ring.make(count));
        for _ in 0..batch.take {
            let chain = ring.take(self.next);
            let Some(last) = chain.last() else { break };
            let entry = self.packed.begin(&chain).unwrap();
            let count = chain.len() as u16;
            self.in_flight.push((entry, last.id, count));
            self.next = self.next.after(count, SIZE);
        }
        let mut done = Vec::new();
        for index in batch.done.iter().take(self.in_flight.len()) {
            let (entry, id, count) = self.in_flight.remove(index.index(self.in_flight.len()));
            self.packed.done(entry);
            done.push((id, count));
        }
        self.packed.publish(|| ring.give_back(self.used, &done));
        self.used = done.iter().fold(self.used, |place, &(_, count)| place.after(count, SIZE));
    }
}

fn live(region: &Region, ring: &mut Ring, batches: &[Batch]) {
    let mut device = Device::start(region, ring);
    batches.iter().for_each(|batch| device.batch(ring, batch));
}

/// A last process gives all back.
fn finish(region: &Region, ring: &mut Ring) {
    let mut device = Device::start(region, ring);
    let all = Batch { make: vec![1], take: usize::from(SIZE), done: vec![] };
    device.batch(ring, &all);
    while let Some((entry, id, count)) = device.in_flight.pop() {
        device.packed.done(entry);
        device.packed.publish(|| ring.give_back(device.used, &[(id, count)]));
        device.used = device.used.after(count, SIZE);
    }
    ring.collect();
    let mut back = ring.back.clone();
    back.sort_unstable();
    assert_eq!(back, ring.made, "each chain once");
    assert_eq!(ring.free, SIZE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Processes that die after any store, one after the other: no chain is lost or given back twice.
    #[test]
    fn whatever_store_was_the_last_each_chain_is_given_back_once(
        lives in proptest::collection::vec((0u32..250, proptest::collection::vec(batch(), 0..7)), 1..6),
    ) {
        let (_, region) = region(LAYOUT);
        let mut ring = Ring::new();
        for (stores, batches) in lives {
            let _ = killed_after(stores, || live(&region, &mut ring, &batches));
        }
        finish(&region, &mut ring);
    }

    /// Whatever a frontend writes there: an error, or chains that can all be given back.
    #[test]
    fn a_hostile_region_gives_chains_that_fit_or_an_error(
        batches in proptest::collection::vec(batch(), 0..4),
        pokes in proptest::collection::vec((12u64..384, prop_oneof![0u8..12, any::<u8>()]), 0..12),
        used_flags in any::<u16>(),
    ) {
        let (file, region) = region(LAYOUT);
        live(&region, &mut Ring::new(), &batches);
        let from = LAYOUT.bytes().unwrap() / 2;
        pokes.iter().for_each(|&(at, byte)| file.write_all_at(&[byte], from + at).unwrap());
        let queue = region.queue(1, SIZE).unwrap();
        if let Ok((mut packed, recovered)) = Packed::recover(queue, at(0, true), |_| used_flags) {
            prop_assert!(recovered.used.index < SIZE);
            let count: usize = recovered.chains.iter().map(|chain| chain.descriptors.len()).sum();
            prop_assert!(count <= 11 && recovered.chains.iter().all(|chain| !chain.descriptors.is_empty()));
            recovered.chains.iter().for_each(|chain| packed.done(chain.entry));
            packed.publish(|| {});
            prop_assert!(packed.begin(&[PackedDescriptor::default(); 12]).is_none());
        }
    }
}

/// Every single store of a history with all that can happen, rather than some at random.
#[test]
fn each_store_may_be_the_last() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let history =
        proptest::collection::vec(batch(), 8).new_tree(&mut TestRunner::deterministic()).unwrap().current();
    for stores in 0.. {
        let (_, region) = region(LAYOUT);
        let mut ring = Ring::new();
        let alive = killed_after(stores, || live(&region, &mut ring, &history));
        finish(&region, &mut ring);
        if alive.is_some() {
            assert!(stores > 200, "{stores} stores");
            return;
        }
    }
}

#[test]
fn chains_that_are_none_are_not_begun() {
    let (_, region) = region(PACKED);
    let (mut packed, _) = Packed::recover(region.queue(0, SIZE).unwrap(), at(0, true), |_| 0).unwrap();
    let chain = [PackedDescriptor::default(); 9];
    assert_eq!(packed.begin(&[]), None);
    assert_eq!(packed.begin(&chain), None, "more than there are");
    assert_eq!(packed.begin(&chain[..6]), Some(0));
    assert_eq!(packed.begin(&chain[..3]), None);
    assert_eq!(packed.begin(&chain[..2]), Some(6));
    assert_eq!(packed.begin(&chain[..1]), None, "full");
    packed.done(0);
    packed.done(u16::MAX);
    packed.publish(|| {});
    assert_eq!(packed.begin(&chain[..6]), Some(0));
}
