//! What hostile guests do to their rings.

use proptest::prelude::*;

use super::*;
use crate::virtio::layout::{AVAIL, INDIRECT, NEXT, WRITE};

const SIZE: u16 = 8;

/// Where the ring of descriptors has its `index`.
fn place(index: u16) -> u64 {
    DESCRIPTORS + 16 * u64::from(index)
}

/// One sound frame, then what `lay` does; the fault that it is.
fn fault<T>(format: Format, lay: impl FnOnce(&mut Guest) -> T) -> Fault {
    let mut guest = Guest::new(format, SIZE, MODERN);
    let mut device = Device::new(&guest);
    guest.write(BUFFERS, &headed(&numbered(7, 60)));
    let id = guest.offer(&[(BUFFERS, HEADER + 60)]);
    lay(&mut guest);
    let (received, result) = device.try_receive();
    let fault = result.unwrap_err();
    if !matches!(fault, Fault::AvailableIndex { .. }) {
        assert_eq!(received, [(numbered(7, 60), Offload::NONE)], "the frames before it are there");
        assert_eq!(guest.used(), [(id, 0)]);
    }
    fault
}

#[test]
fn an_available_index_jumps() {
    let jump = |to| fault(Format::Split, |guest| guest.write16(AVAILABLE + 2, to));
    assert_eq!(jump(9), Fault::AvailableIndex { from: 0, to: 9, size: 8 });
    assert_eq!(jump(0xffff), Fault::AvailableIndex { from: 0, to: 0xffff, size: 8 });
    // It goes back behind what we took.
    let mut guest = Guest::new(Format::Split, SIZE, MODERN);
    let mut device = Device::new(&guest);
    (0..2).for_each(|_| assert!(guest.offer(&[(BUFFERS, HEADER + 60)]) < 64));
    assert_eq!(device.receive().len(), 2);
    guest.write16(AVAILABLE + 2, 1);
    assert_eq!(device.try_receive().1, Err(Fault::AvailableIndex { from: 2, to: 1, size: 8 }));
}

#[test]
fn a_descriptor_is_none() {
    let head = fault(Format::Split, |guest| {
        guest.write16(AVAILABLE + 4 + 2, 8);
        guest.write16(AVAILABLE + 2, 2);
    });
    assert_eq!(head, Fault::DescriptorIndex { index: 8, size: 8 });
    let next = fault(Format::Split, |guest| {
        guest.offer(&[(BUFFERS, 5), (BUFFERS, 5)]);
        guest.descriptor(place(1), (BUFFERS, 5), [NEXT, 0xffff]);
    });
    assert_eq!(next, Fault::DescriptorIndex { index: 0xffff, size: 8 });
    let in_table = fault(Format::Split, |guest| {
        guest.offer_table(&[], BORDER, &[(BUFFERS, 5), (BUFFERS, 5)]);
        guest.descriptor(BORDER, (BUFFERS, 5), [NEXT, 2]);
    });
    assert_eq!(in_table, Fault::DescriptorIndex { index: 2, size: 2 });
}

#[test]
fn a_chain_loops() {
    let split = fault(Format::Split, |guest| {
        guest.offer(&[(BUFFERS, 5), (BUFFERS, 5)]);
        guest.descriptor(place(2), (BUFFERS, 5), [NEXT, 1]);
    });
    assert_eq!(split, Fault::ChainLength(1));
    let table = fault(Format::Split, |guest| {
        guest.offer_table(&[], BORDER, &[(BUFFERS, 5), (BUFFERS, 5)]);
        guest.descriptor(BORDER + 16, (BUFFERS, 5), [NEXT, 0]);
    });
    assert_eq!(table, Fault::ChainLength(0));
    let packed = fault(Format::Packed, |guest| {
        for index in 1..SIZE {
            guest.descriptor(place(index), (BUFFERS, 5), [0, NEXT | AVAIL]);
        }
    });
    assert_eq!(packed, Fault::ChainLength(1));
    // On and on through the ring, with nothing before it.
    let mut guest = Guest::new(Format::Packed, SIZE, MODERN);
    guest.offer_raw(&[((BUFFERS, 5), NEXT); SIZE as usize]);
    assert_eq!(Device::new(&guest).try_receive().1, Err(Fault::ChainLength(0)));
}

#[test]
fn an_indirect_table_is_none() {
    for format in BOTH {
        for len in [0, 8, 17, 16 * 9, u32::MAX, 0xffff_fff0] {
            let table = fault(format, |guest| guest.offer_raw(&[((BORDER, len), INDIRECT)]));
            assert_eq!(table, Fault::Indirect { len }, "{format:?}");
        }
        let inside = fault(format, |guest| {
            guest.offer_table(&[], BORDER, &[(BUFFERS, 5), (BUFFERS, 32)]);
            guest.descriptor(
                BORDER + 16,
                (BUFFERS, 32),
                if format == Format::Split { [INDIRECT, 0] } else { [0, INDIRECT] },
            );
        });
        assert_eq!(inside, Fault::Indirect { len: 32 });
        let amid = fault(format, |guest| guest.offer_raw(&[((BORDER, 32), INDIRECT), ((BUFFERS, 100), 0)]));
        assert_eq!(amid, Fault::Indirect { len: 32 });
    }
}

#[test]
fn an_address_is_not_its_own() {
    for format in BOTH {
        let at = |guest: u64, len: u32| {
            let found = fault(format, |lab| lab.offer(&[(guest, len)]));
            assert_eq!(found, Fault::Address { guest, len });
            let found = fault(format, |lab| lab.offer(&[(BUFFERS, 40), (guest, len)]));
            assert_eq!(found, Fault::Address { guest, len });
        };
        at(END, 64);
        at(END - 1, 64);
        at(u64::MAX, 64);
        at(u64::MAX - 63, 64);
        let table = |at, len| fault(format, |lab| lab.offer_raw(&[((at, len), INDIRECT)]));
        assert_eq!(table(END, 16), Fault::Address { guest: END, len: 16 });
        assert_eq!(table(END - 8, 16), Fault::Address { guest: END - 8, len: 16 });
        assert_eq!(table(u64::MAX, 16), Fault::Address { guest: u64::MAX, len: 16 });
        assert_eq!(table(u64::MAX - 15, 16), Fault::Address { guest: u64::MAX - 15, len: 16 });
    }
}

#[test]
fn a_buffer_has_the_wrong_direction() {
    for format in BOTH {
        let written = fault(format, |guest| guest.offer_raw(&[((BUFFERS, 72), WRITE)]));
        assert_eq!(written, Fault::Direction(1));
        let last = [((BUFFERS, 72), 0), ((BUFFERS, 72), WRITE)];
        assert_eq!(fault(format, |guest| guest.offer_raw(&last)), Fault::Direction(2));
        let mut guest = Guest::receiving(format, SIZE, MODERN);
        let mut device = Device::new(&guest);
        guest.offer(&[(BUFFERS, 1526)]);
        guest.offer_raw(&[((BUFFERS, 1526), 0)]);
        let (sent, stayed) =
            device.try_send(&[(numbered(0, 60), Offload::NONE), (numbered(1, 60), Offload::NONE)]);
        assert_eq!((sent, stayed), (Err(Fault::Direction(1)), 1));
        assert_eq!(guest.used(), [(0, 72)], "what was sent before it is");
    }
}

#[test]
fn memory_is_taken_away() {
    for format in BOTH {
        let mut guest = Guest::new(format, SIZE, MODERN);
        let mut device = Device::new(&guest);
        guest.offer(&[(BORDER, HEADER + 60)]);
        guest.files[1].set_len(0).unwrap();
        assert_eq!(device.try_receive().1, Err(Fault::Torn));
        // The ring itself: its index would be a fault of another kind.
        let mut guest = Guest::receiving(format, SIZE, MODERN);
        let mut device = Device::new(&guest);
        (0..SIZE).for_each(|_| assert!(guest.offer(&[(BUFFERS, 1526)]) < 64));
        let list = vec![(numbered(0, 60), Offload::NONE); usize::from(SIZE)];
        assert_eq!(device.try_send(&list).1, 0);
        guest.files[0].set_len(0).unwrap();
        assert_eq!(device.try_send(&list), (Err(Fault::Torn), usize::from(SIZE)));
    }
}

#[test]
fn a_ring_is_not_where_the_frontend_says() {
    for format in BOTH {
        let guest = Guest::new(format, SIZE, MODERN);
        let start = |change: fn(&mut Setup)| {
            let mut setup = guest.setup();
            change(&mut setup);
            let user = setup.parts;
            (Ring::start(setup).err(), user)
        };
        assert_eq!(start(|_| {}).0, None);
        for size in [0, 32_769, u16::MAX] {
            let mut setup = guest.setup();
            setup.size = size;
            assert_eq!(Ring::start(setup).err(), Some(SetupError::Size(size)));
        }
        let (error, parts) = start(|setup| setup.parts.descriptors += 8);
        assert_eq!(error, Some(SetupError::Address(parts.descriptors)));
        let (error, parts) = start(|setup| setup.parts.available += 1);
        assert_eq!(error, Some(SetupError::Address(parts.available)));
        let (error, parts) = start(|setup| setup.parts.used += 2);
        assert_eq!(error, Some(SetupError::Address(parts.used)));
        // Across the border of two regions, or outside.
        let (error, parts) = start(|setup| setup.parts.descriptors += BORDER - DESCRIPTORS - 64);
        assert_eq!(error, Some(SetupError::Address(parts.descriptors)));
        let (error, parts) = start(|setup| setup.parts.used = 64);
        assert_eq!(error, Some(SetupError::Address(parts.used)));
    }
    let guest = Guest::new(Format::Split, 6, MODERN);
    assert_eq!(Ring::start(guest.setup()).err(), Some(SetupError::Size(6)));
    let mut setup = Guest::new(Format::Packed, 6, MODERN).setup();
    setup.base = 6;
    assert_eq!(Ring::start(setup).err(), Some(SetupError::Base(6)));
}

/// Bytes that look like rings more often than not.
fn noise() -> impl Strategy<Value = Vec<[u64; 2]>> {
    let addr = prop_oneof![0u64..END + 0x1000, BUFFERS..BORDER, any::<u64>(), Just(DESCRIPTORS)];
    let len = prop_oneof![0u64..200, 0u64..0x2_0000, Just(16u64), Just(64), any::<u32>().prop_map(u64::from)];
    let word = (len, 0u64..16, 0u64..16, any::<u8>()).prop_map(|(len, low, high, bits)| {
        // Either half of the last four bytes may be flags.
        let flags = |low: u64| low & 7 | (u64::from(bits) & 0b11) << 7 & 0x80 | (u64::from(bits) & 4) << 13;
        len | flags(low) << 32 | flags(high) << 48
    });
    proptest::collection::vec((addr, word).prop_map(|(addr, word)| [addr, word]), 64)
}

proptest! {
    #[test]
    fn no_ring_is_so_broken_that_it_breaks_us(
        noise in noise(),
        direction in prop_oneof![Just(0u16), Just(WRITE)],
        index in 0u16..12,
        heads in proptest::collection::vec(0u16..9, 16),
        mergeable: bool,
    ) {
        for format in BOTH {
            let guest = Guest::new(format, SIZE, if mergeable { MODERN } else { SINGLE });
            let mut device = Device::new(&guest);
            let bytes: Vec<u8> = noise.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
            guest.write(DESCRIPTORS, &bytes);
            let heads: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
            guest.write(AVAILABLE + 4, &heads);
            guest.write16(AVAILABLE + 2, index);
            // Whatever comes of it: each call ends, and each frame is one.
            for _ in 0..4 {
                if direction == 0 {
                    let (frames, result) = device.try_receive();
                    prop_assert!(frames.iter().all(|(bytes, _)| bytes.len() >= 14));
                    if result.is_err() { break }
                } else if device.try_send(&vec![(numbered(0, 300), Offload::NONE); 32]).0.is_err() {
                    break;
                }
            }
            device.ring.arm();
            device.ring.disarm();
        }
    }
}

#[test]
fn a_chain_of_a_great_ring_is_no_longer_than_others_take() {
    for format in BOTH {
        let chain = |before: &[Buffer]| {
            let mut guest = Guest::new(format, 1024, MODERN);
            let mut buffers = vec![(BUFFERS, 0); 1024];
            buffers[0].1 = HEADER + 60;
            guest.offer_table(before, BORDER, &buffers);
            Device::new(&guest).try_receive()
        };
        let (frames, result) = chain(&[]);
        assert_eq!((frames.len(), result), (1, Ok(())));
        assert_eq!(chain(&[(BUFFERS, 0)]).1, Err(Fault::ChainLength(1023)));
    }
}

#[test]
fn a_frame_is_not_worth_looking_at_every_buffer_that_a_guest_can_name() {
    for format in BOTH {
        // Chains that hold one byte each, somewhere in a thousand buffers.
        let mut guest = Guest::receiving(format, 1024, MODERN);
        let mut device = Device::new(&guest);
        let mut buffers = vec![(BUFFERS, 0); 1000];
        buffers[0].1 = 1;
        (0..100).for_each(|_| assert!(guest.offer_table(&[], BORDER, &buffers) < 1024));
        let frame = (numbered(0, 60), Offload::NONE);
        let none = (Ok(Sent::default()), 1);
        assert_eq!(device.try_send(&[frame.clone(), frame]), none, "the first is given up, the second waits");
        assert_eq!(guest.used(), []);
    }
}
