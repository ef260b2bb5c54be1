//! Who tells whom, when, and what is written down.

use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::virtio::layout::{
    EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, NO_INTERRUPT, NO_NOTIFY, available_len, used_len,
};

const SIZE: u16 = 8;
const EVENTS: Features = Features(MODERN.0 | Features::EVENT_IDX.0);

fn frame_of(guest: &mut Guest) {
    guest.write(BUFFERS, &headed(&numbered(0, 60)));
    guest.offer(&[(BUFFERS, HEADER + 60)]);
}

/// Tells the device when to call: at a used entry (with its wrap counter), always, or never.
fn ask(guest: &Guest, wish: Wish) {
    let (split, packed) = match wish {
        Wish::Always => (0, (0, EVENT_ENABLE)),
        Wish::Never => (NO_INTERRUPT, (0, EVENT_DISABLE)),
        Wish::At(split, packed) => {
            guest.write16(AVAILABLE + available_len(SIZE) as u64 - 2, split);
            (0, (packed, EVENT_DESC))
        }
    };
    match guest.format {
        Format::Split => guest.write16(AVAILABLE, split),
        Format::Packed => {
            guest.write16(AVAILABLE, packed.0);
            guest.write16(AVAILABLE + 2, packed.1);
        }
    }
}

enum Wish {
    Always,
    Never,
    At(u16, u16),
}

#[test]
fn the_guest_is_called_once_per_batch_if_it_wants() {
    for format in BOTH {
        let mut guest = Guest::new(format, SIZE, MODERN);
        let mut device = Device::new(&guest);
        for (wish, calls) in [(Wish::Always, 1), (Wish::Never, 0), (Wish::Always, 1)] {
            ask(&guest, wish);
            (0..3).for_each(|_| frame_of(&mut guest));
            assert_eq!((device.receive().len(), guest.calls()), (3, calls), "{format:?}");
            assert_eq!((device.receive().len(), guest.calls()), (0, 0), "nothing was used");
        }
        assert_eq!(device.ring.calls(), 2);
    }
}

#[test]
fn the_guest_is_called_at_the_entry_it_names() {
    const WRAP: u16 = 1 << 15;
    for format in BOTH {
        let mut guest = Guest::new(format, SIZE, EVENTS);
        let mut device = Device::new(&guest);
        // Batches of three: entries 0-2, 3-5, then round the end of the ring 6, 7, 0.
        let events = [
            (Wish::At(0, WRAP), 1),
            (Wish::At(6, 6 | WRAP), 0),
            (Wish::At(8, 0), 1),
            // An entry that is past is none until the index comes round.
            (Wish::At(8, 0), 0),
            (Wish::At(14, 6), 1),
            // At the first place of the next round.
            (Wish::At(16, WRAP), 1),
            (Wish::At(17, WRAP), 0),
        ];
        for (batch, (wish, calls)) in events.into_iter().enumerate() {
            ask(&guest, wish);
            (0..3).for_each(|_| frame_of(&mut guest));
            assert_eq!((device.receive().len(), guest.calls()), (3, calls), "{format:?} {batch}");
        }
        let mut polling = Guest::new(format, SIZE, MODERN);
        frame_of(&mut polling);
        let setup = Setup { call: None, ..polling.setup() };
        assert_eq!(Device::of(Ring::start(setup).unwrap()).receive().len(), 1);
        assert_eq!(polling.calls(), 0);
    }
}

/// Would the guest kick for the chain that it offers next?
fn would_kick(guest: &Guest, chains: u16) -> bool {
    let events = guest.features.has(Features::EVENT_IDX);
    match guest.format {
        Format::Split if events => {
            let event = guest.read16(USED_PART + used_len(SIZE) as u64 - 2);
            guest.count.wrapping_sub(event).wrapping_sub(1) < chains
        }
        Format::Split => guest.read16(USED_PART) & NO_NOTIFY == 0,
        Format::Packed => {
            let (place, flags) = (guest.read16(USED_PART), guest.read16(USED_PART + 2));
            let before = Place::of(place).bits() == (guest.place | u16::from(guest.wrap) << 15);
            flags == EVENT_ENABLE && !events || flags == EVENT_DESC && events && !before
        }
    }
}

#[test]
fn the_guest_kicks_only_an_armed_ring() {
    for format in BOTH {
        for features in [MODERN, EVENTS] {
            let mut guest = Guest::new(format, SIZE, features);
            let mut device = Device::new(&guest);
            // With EVENT_IDX the very first chain may kick, whatever we do.
            frame_of(&mut guest);
            device.receive();
            for round in 0..30 {
                assert!(!device.ring.arm(), "nothing is there");
                frame_of(&mut guest);
                assert!(would_kick(&guest, 1), "{format:?} {round}");
                assert!(device.ring.arm(), "a chain came before we armed");
                device.ring.disarm();
                frame_of(&mut guest);
                assert!(!would_kick(&guest, 1), "{format:?} {round}");
                assert_eq!(device.receive().len(), 2);
                assert!(!would_kick(&guest, 0));
            }
        }
    }
}

#[test]
fn a_successor_goes_on_where_the_ring_was() {
    for format in BOTH {
        let mut guest = Guest::new(format, SIZE, MODERN);
        let mut ring = guest.ring();
        for n in 0..40u16 {
            let base = ring.base();
            let expected = match format {
                Format::Split => u32::from(n * 2),
                Format::Packed => {
                    let place = (n * 2 % SIZE) | (u16::from(n / 4 % 2 == 0) << 15);
                    u32::from(place) << 16 | u32::from(place)
                }
            };
            assert_eq!(base, expected, "{format:?}");
            let mut device = Device::of(Ring::start(Setup { base, ..guest.setup() }).unwrap());
            (0..2).for_each(|_| frame_of(&mut guest));
            assert_eq!(device.receive().len(), 2, "{format:?} {n}");
            assert_eq!(guest.used().len(), 2);
            ring = device.ring;
        }
    }
}

#[test]
fn what_is_written_is_logged() {
    /// Pages of the guest's memory, one bit each.
    const LOG: u64 = END / 4096 / 8;
    for format in BOTH {
        let file = std::fs::File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(LOG).unwrap();
        let take = || {
            let mut bytes = [0; LOG as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            file.write_all_at(&[0; LOG as usize], 0).unwrap();
            (0..8 * LOG).filter(|page| bytes[*page as usize / 8] >> (page % 8) & 1 == 1).collect::<Vec<_>>()
        };
        let mut guest = Guest::receiving(format, SIZE, EVENTS);
        let mut setup = guest.setup();
        setup.parts.log = Some(USED_PART);
        setup.log = Some(DirtyLog::map(file.try_clone().unwrap(), 0, LOG).unwrap());
        let mut device = Device::of(Ring::start(setup).unwrap());
        let ring = if format == Format::Split { USED_PART } else { DESCRIPTORS } / 4096;
        // One plain chain, of which a part is written; one of two buffers; two chains for a frame, over a border of pages.
        guest.offer(&[(BUFFERS + 4000, 3000)]);
        guest.offer(&[(BORDER, 100), (BORDER + 0x5000, 3000)]);
        guest.offer(&[(BORDER + 0x8000 - 6, 100)]);
        guest.offer(&[(BORDER + 0xa000, 100)]);
        let page = |address: u64| address / 4096;
        assert_eq!(device.send(&[numbered(0, 60)]), (1, 0));
        assert_eq!(take(), [ring, page(BUFFERS)], "{format:?}");
        assert_eq!(device.send(&[numbered(0, 90)]), (1, 0));
        assert_eq!(take(), [ring, page(BORDER), page(BORDER + 0x5000)]);
        assert_eq!(device.send(&[numbered(0, 100)]), (1, 0));
        let frame = [page(BORDER + 0x7000), page(BORDER + 0x8000), page(BORDER + 0xa000)];
        assert_eq!(take(), [&[ring], &frame[..]].concat());
        device.ring.arm();
        assert_eq!(take(), [page(USED_PART)]);
        // Of a transmit ring only the ring is written.
        assert_eq!(device.send(&[numbered(0, 60)]), (0, 1));
        assert_eq!(take(), [0u64; 0]);
    }
}
