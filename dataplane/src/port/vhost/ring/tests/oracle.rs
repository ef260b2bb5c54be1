//! The split ring against rust-vmm's: the same memory, the same chains.

use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::layout::{INDIRECT, NEXT};

const SIZE: u16 = 64;

/// A chain to lay: the lengths of its buffers, and how many of them lie in the ring itself.
type Shape = (Vec<u32>, usize);

/// The guest's memory once more, as rust-vmm sees it.
fn theirs(guest: &Guest) -> GuestMemoryMmap {
    let file = |index: usize| Some(FileOffset::new(guest.files[index].try_clone().unwrap(), 0));
    let (low, high) = (BORDER as usize, (END - BORDER) as usize);
    let ranges = [(GuestAddress(0), low, file(0)), (GuestAddress(BORDER), high, file(1))];
    GuestMemoryMmap::from_ranges_with_files(&ranges).unwrap()
}

/// Links the buffers through these places of a table.
fn link(buffers: &[Buffer], places: &[u16], last: Option<Buffer>) -> Vec<(u16, RawDescriptor)> {
    let end = buffers.len() + usize::from(last.is_some());
    let lay = |(index, &(addr, len)): (usize, &Buffer)| {
        let table = if index == buffers.len() { INDIRECT } else { 0 };
        let (next, more) = if index + 1 < end { (places[index + 1], NEXT) } else { (0, 0) };
        (places[index], RawDescriptor::from(Descriptor::new(addr, len, table | more, next)))
    };
    buffers.iter().chain(&last).enumerate().map(lay).collect()
}

/// Lays chains of these shapes over descriptors in this order, and makes them available.
fn lay(memory: &GuestMemoryMmap, mock: &MockSplitQueue<GuestMemoryMmap>, shapes: &[Shape], order: &[u16]) {
    let (mut free, mut at, mut table) = (order, BUFFERS, BORDER + 0x2_0000);
    for ((lens, direct), index) in shapes.iter().zip(0u16..) {
        let mut buffers = Vec::new();
        for &len in lens {
            buffers.push((at, len));
            at += u64::from(len);
        }
        let (direct, indirect) = buffers.split_at((*direct).min(lens.len()));
        // A table in its own order, from its first entry on.
        let places: Vec<u16> = (0..indirect.len() as u16).collect();
        for (place, descriptor) in link(indirect, &places, None).into_iter().take(indirect.len()) {
            memory.write_obj(descriptor, GuestAddress(table + 16 * u64::from(place))).unwrap();
        }
        let refers = (!indirect.is_empty()).then_some((table, 16 * indirect.len() as u32));
        table += 16 * indirect.len() as u64;
        let taken;
        (taken, free) = free.split_at(direct.len() + usize::from(refers.is_some()));
        for (place, descriptor) in link(direct, taken, refers) {
            mock.desc_table().store(place, descriptor).unwrap();
        }
        mock.avail().ring().ref_at(index.into()).unwrap().store(taken[0]);
    }
    mock.avail().idx().store(shapes.len() as u16);
}

/// The heads and frames of all chains, as rust-vmm's queue reads them.
fn expected(memory: &GuestMemoryMmap, queue: &mut Queue) -> (Vec<u16>, Vec<Vec<u8>>) {
    let (mut heads, mut frames) = (Vec::new(), Vec::new());
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        heads.push(chain.head_index());
        let mut bytes = Vec::new();
        for descriptor in chain.readable() {
            let mut part = vec![0; descriptor.len() as usize];
            memory.read_slice(&mut part, descriptor.addr()).unwrap();
            bytes.extend(part);
        }
        frames.extend(bytes.get(NET_HEADER..).filter(|frame| frame.len() >= 14).map(<[u8]>::to_vec));
    }
    (heads, frames)
}

proptest! {
    #[test]
    fn both_see_the_same_chains(
        shapes in proptest::collection::vec((proptest::collection::vec(0u32..800, 1..5), 0usize..5), 1..13),
        order in Just((0..SIZE).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let guest = Guest::new(Format::Split, SIZE, MODERN);
        let memory = theirs(&guest);
        let mock = MockSplitQueue::create(&memory, GuestAddress(DESCRIPTORS), SIZE);
        // Headers leave nothing to do, wherever they are; frames begin with their address.
        lay(&memory, &mock, &shapes, &order);
        let (heads, frames) = expected(&memory, &mut mock.create_queue().unwrap());
        let mut setup = guest.setup();
        let user = setup.parts.descriptors - DESCRIPTORS;
        setup.parts.available = mock.avail_addr().0 + user;
        setup.parts.used = mock.used_addr().0 + user;
        let mut device = Device::of(Ring::start(setup).unwrap());
        let count = frames.len();
        prop_assert_eq!(device.receive(), frames);
        prop_assert_eq!(device.counters.rx_errors as usize, heads.len() - count);
        prop_assert_eq!(mock.used().idx().load() as usize, heads.len());
        for (place, head) in heads.iter().enumerate() {
            let element = mock.used().ring().ref_at(place).unwrap().load();
            prop_assert_eq!((element.id(), element.len()), (u32::from(*head), 0));
        }
    }
}
