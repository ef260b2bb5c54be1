//! Rings whose frontend keeps track of what is in flight, and successors of those who were killed.

use super::*;
use crate::port::vhost::inflight::{self, Layout, PackedPlace, Queue, Region};
use crate::virtio::layout::PackedDescriptor;

const SIZE: u16 = 8;

struct Record {
    file: std::fs::File,
    layout: Layout,
}

impl Record {
    fn new(format: Format) -> Record {
        let format = match format {
            Format::Split => inflight::Format::Split,
            Format::Packed => inflight::Format::Packed,
        };
        let layout = Layout { format, queues: 1, size: SIZE };
        Record { file: layout.create().unwrap().0, layout }
    }

    fn queue(&self) -> Queue {
        let file = self.file.try_clone().unwrap();
        Region::map(file, 0, self.layout.bytes().unwrap(), self.layout).unwrap().queue(0, SIZE).unwrap()
    }

    fn device(&self, guest: &Guest) -> Device {
        // The base is the one of the very beginning, as of a frontend that does not know better.
        Device::of(Ring::start(Setup { inflight: Some(self.queue()), ..guest.setup() }).unwrap())
    }
}

/// Offers frame `n` in two buffers. Its name and its place.
fn offer(guest: &mut Guest, n: u16) -> (u16, u16) {
    let at = BUFFERS + 0x400 * u64::from(n % SIZE);
    guest.write(at, &headed(&numbered(n, 60)));
    let place = guest.place;
    (guest.offer(&[(at, 50), (at + 50, 22)]), place)
}

#[test]
fn a_successor_goes_on_where_its_predecessor_was() {
    for format in BOTH {
        let record = Record::new(format);
        let mut guest = Guest::new(format, SIZE, MODERN);
        for round in 0..20 {
            let mut device = record.device(&guest);
            let ids: Vec<_> = (0..3).map(|n| (offer(&mut guest, 3 * round + n).0, 0)).collect();
            let frames: Vec<_> = (0..3).map(|n| numbered(3 * round + n, 60)).collect();
            assert_eq!(device.receive(), frames, "{format:?} {round}");
            assert_eq!(guest.used(), ids);
        }
    }
}

/// The frontend gives the base of the very beginning, again and again.
#[test]
fn a_packed_ring_of_short_chains_needs_no_record() {
    let mut guest = Guest::new(Format::Packed, SIZE, MODERN);
    for round in 0..20 {
        let mut device = Device::new(&guest);
        let frames: Vec<_> = (0..3).map(|n| numbered(3 * round + n, 60)).collect();
        let offer = |(n, frame): (u64, &Vec<u8>)| {
            let at = BUFFERS + 0x400 * n;
            guest.write(at, &headed(frame));
            (guest.offer(&[(at, HEADER + 60)]), 0)
        };
        let ids: Vec<_> = (0..).zip(&frames).map(offer).collect();
        assert_eq!(device.receive(), frames, "{round}");
        assert_eq!(guest.used(), ids);
        assert_eq!(device.ring.base() & 0x7fff, u32::from(3 * (round + 1) % SIZE));
    }
}

#[test]
fn frames_over_several_chains_are_tracked_too() {
    for format in BOTH {
        let record = Record::new(format);
        let mut guest = Guest::receiving(format, SIZE, MODERN);
        for round in 0..20 {
            let mut device = record.device(&guest);
            let ids: Vec<_> = (0..6).map(|n| guest.offer(&[(BUFFERS + 100 * n, 40)])).collect();
            assert_eq!(
                device.send(&[numbered(round, 60), numbered(round, 80)]),
                (2, 0),
                "{format:?} {round}"
            );
            let lens = [40, 32, 40, 40, 12];
            assert_eq!(guest.used(), ids.iter().copied().zip(lens).collect::<Vec<_>>());
            assert_eq!(device.send(&[numbered(round, 16)]), (1, 0));
            assert_eq!(guest.used().len(), 1);
        }
    }
}

#[test]
fn chains_of_a_split_ring_that_were_left_come_first() {
    let record = Record::new(Format::Split);
    let mut guest = Guest::new(Format::Split, SIZE, MODERN);
    let mut killed = record.device(&guest);
    let [first, second] = [0, 1].map(|n| offer(&mut guest, n).0);
    assert_eq!(killed.receive().len(), 2);
    guest.used();
    drop(killed);
    let heads = [2, 3, 4].map(|n| offer(&mut guest, n).0);
    assert_eq!([first, second, heads[0]], [0, 2, 4]);
    // It took two, gave back the later one out of order, and died.
    let (mut killed, left) = inflight::Split::recover(record.queue(), 2).unwrap();
    assert_eq!(left, [0u16; 0]);
    killed.begin(heads[1]);
    killed.begin(heads[0]);
    drop(killed);
    let mut device = record.device(&guest);
    assert_eq!(device.receive(), [3, 2, 4].map(|n| numbered(n, 60)));
    assert_eq!(guest.used(), [heads[1], heads[0], heads[2]].map(|head| (head, 0)));
    let (_, left) = inflight::Split::recover(record.queue(), 5).unwrap();
    assert_eq!(left, [0u16; 0], "nothing is left");
}

#[test]
fn chains_of_a_packed_ring_that_were_left_are_there_again() {
    let record = Record::new(Format::Packed);
    let mut guest = Guest::new(Format::Packed, SIZE, MODERN);
    assert_eq!(record.device(&guest).receive().len(), 0);
    let chains = [0, 1, 2].map(|n| offer(&mut guest, n));
    let start = PackedPlace { index: 0, wrap: true };
    let (mut killed, recovered) = inflight::Packed::recover(record.queue(), start, |_| 0).unwrap();
    assert_eq!(recovered.chains, []);
    for (_, place) in &chains[..2] {
        let descriptor = |place: u16| {
            let bytes = guest.read(DESCRIPTORS + 16 * u64::from(place), 16);
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let rest = word(8);
            PackedDescriptor {
                addr: word(0),
                len: rest as u32,
                id: (rest >> 32) as u16,
                flags: (rest >> 48) as u16,
            }
        };
        killed.begin(&[descriptor(*place), descriptor(place + 1)]).unwrap();
    }
    drop(killed);
    // It had used the second, but the first, which comes last, it had not.
    guest.write(DESCRIPTORS + 16 * 2 + 8, &[0, 0, 0, 0, 1, 0, 0x80, 0x80]);
    let mut device = record.device(&guest);
    assert_eq!(device.receive(), [0, 1, 2].map(|n| numbered(n, 60)));
    assert_eq!(guest.used(), chains.map(|(id, _)| (id, 0)));
}

#[test]
fn a_record_that_is_none_is_ignored() {
    for (format, other) in [(Format::Split, Format::Packed), (Format::Packed, Format::Split)] {
        let record = Record::new(other);
        let mut guest = Guest::new(format, SIZE, MODERN);
        let mut device = record.device(&guest);
        offer(&mut guest, 0);
        assert_eq!(device.receive(), [numbered(0, 60)]);
    }
}
