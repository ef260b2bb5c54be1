//! Frames in chains of every shape.

use encap::offload::{Csum, Gso};
use proptest::prelude::*;

use super::*;
use crate::frame::{BIG, HEADROOM};

/// Lays buffers of these lengths one behind the other so that one may lie across the border of the regions, and gives the
/// address where they begin.
fn row(lens: &[u32], before_border: u32) -> (u64, Vec<Buffer>) {
    let begin = BORDER - u64::from(before_border);
    let mut at = begin;
    let lay = |&len: &u32| {
        let buffer = (at, len);
        at += u64::from(len);
        buffer
    };
    (begin, lens.iter().map(lay).collect())
}

/// Lengths that add up to `sum`, some of them zero.
fn cut(sum: u32, cuts: &[u32]) -> Vec<u32> {
    let mut places: Vec<u32> = cuts.iter().map(|cut| cut % (sum + 1)).collect();
    places.extend([0, sum]);
    places.sort_unstable();
    places.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn frame(len: u32) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
}

/// Offers the buffers: some as they are, the others, if any, in a table that lies across the border of the regions.
fn offer(guest: &mut Guest, buffers: &[Buffer], direct: usize) -> u16 {
    let (first, table) = buffers.split_at(direct.min(buffers.len()));
    match table {
        [] => guest.offer(first),
        _ => guest.offer_table(first, TABLE, table),
    }
}

/// Where tables are: no multiple of 16, and in front of the buffers, which begin at most 0x8000 before the border.
const TABLE: u64 = BUFFERS + 4;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_frame_is_the_same_however_it_is_cut(
        len in prop_oneof![14u32..300, 1500u32..9000, Just(65_550)],
        cuts in proptest::collection::vec(any::<u32>(), 0..12),
        direct in 0usize..14,
        before in 0u32..0x4000,
    ) {
        for format in BOTH {
            let mut guest = Guest::new(format, 32, SINGLE);
            let mut device = Device::new(&guest);
            let frame = frame(len);
            let (begin, buffers) = row(&cut(HEADER + len, &cuts), before);
            // Twice as many chains as the ring has entries, so that chains lie across its end.
            for _ in 0..10 {
                guest.write(begin, &headed(&frame));
                let id = offer(&mut guest, &buffers, direct);
                prop_assert_eq!(device.receive(), [frame.clone()]);
                prop_assert_eq!(guest.used(), [(id, 0)]);
            }
        }
    }

    #[test]
    fn a_frame_goes_into_chains_of_any_shape(
        len in prop_oneof![14u32..300, 1500u32..9000, Just(65_550)],
        spare in 0u32..3000,
        cuts in proptest::collection::vec(any::<u32>(), 0..12),
        direct in 0usize..14,
        before in 0u32..0x4000,
        merge: bool,
    ) {
        for format in BOTH {
            let mut guest = Guest::receiving(format, 32, if merge { MODERN } else { SINGLE });
            let mut device = Device::new(&guest);
            let frame = frame(len);
            let mut lens = cut(HEADER + len, &cuts);
            // No driver has chains of nothing; and each is needed.
            lens.retain(|&len| !merge || len > 0);
            *lens.last_mut().unwrap() += spare;
            let (begin, buffers) = row(&lens, before);
            for _ in 0..10 {
                let room = HEADER + len + spare;
                guest.write(begin, &vec![0xee; room as usize]);
                let chains: Vec<_> = match merge {
                    true => buffers.iter().map(|&buffer| (guest.offer(&[buffer]), buffer.1)).collect(),
                    false => vec![(offer(&mut guest, &buffers, direct), room)],
                };
                prop_assert_eq!(device.send(std::slice::from_ref(&frame)), (1, 0));
                let mut bytes = headed(&frame);
                bytes[10] = chains.len() as u8;
                bytes.resize(room as usize, 0xee);
                let got = guest.read(begin, bytes.len());
                let differ = got.iter().zip(&bytes).position(|(got, expected)| got != expected);
                prop_assert_eq!(differ, None, "{:?}", format);
                let last = chains.len() - 1;
                let written = |n, len| if n == last { len - spare } else { len };
                let expected = chains.iter().enumerate().map(|(n, &(id, len))| (id, written(n, len)));
                prop_assert_eq!(guest.used(), expected.collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_legacy_driver_has_headers_of_ten_bytes() {
    for (features, header) in [(Features::NONE, 10), (Features::MRG_RXBUF, 12), (Features::VERSION_1, 12)] {
        let mut guest = Guest::new(Format::Split, 8, features);
        guest.write(BUFFERS + header, &numbered(3, 60));
        guest.offer(&[(BUFFERS, header as u32), (BUFFERS + header, 60)]);
        assert_eq!(Device::new(&guest).receive(), [numbered(3, 60)]);

        let mut guest = Guest::receiving(Format::Split, 8, features);
        guest.offer(&[(BUFFERS, 1526)]);
        assert_eq!(Device::new(&guest).send(&[numbered(3, 60)]), (1, 0));
        assert_eq!(guest.used(), [(0, header as u32 + 60)]);
        assert_eq!(guest.read(BUFFERS + header, 60), numbered(3, 60));
    }
}

#[test]
fn a_frame_that_needs_more_chains_than_there_are_stays_whole() {
    for format in BOTH {
        let mut guest = Guest::receiving(format, 8, MODERN);
        let mut device = Device::new(&guest);
        let list = [numbered(0, 60), numbered(1, 1000), numbered(2, 60)];
        (0..5).for_each(|n| assert!(guest.offer(&[(BUFFERS + 200 * n, 200)]) < 64));
        // The first takes one; the second would take six.
        assert_eq!(device.send(&list), (1, 2), "{format:?}");
        assert_eq!(guest.used(), [(0, 72)]);
        (5..8).for_each(|n| assert!(guest.offer(&[(BUFFERS + 200 * n, 200)]) < 64));
        assert_eq!(device.send(&list[1..]), (2, 0));
        let lens: Vec<_> = guest.used().iter().map(|used| used.1).collect();
        assert_eq!(lens, [200, 200, 200, 200, 200, 12, 72]);
        assert_eq!(guest.read16(BUFFERS + 200 + 10), 6, "num_buffers");
    }
}

#[test]
fn a_frame_that_never_fits_blocks_nothing() {
    for format in BOTH {
        // Mergeable, and the whole ring is too small; not mergeable, and the next chain is.
        for (features, buffers, len) in [(MODERN, 8, 20), (SINGLE, 1, 100)] {
            let mut guest = Guest::receiving(format, 8, features);
            let mut device = Device::new(&guest);
            (0..buffers).for_each(|n| assert!(guest.offer(&[(BUFFERS + 200 * n, len)]) < 64));
            assert_eq!(device.send(&[numbered(0, 400), numbered(1, 60)]), (1, 0), "{format:?}");
            assert_eq!(
                guest.used().last(),
                Some(&(if buffers == 8 { 3 } else { 0 }, if buffers == 8 { 12 } else { 72 }))
            );
        }
    }
}

#[test]
fn broken_frames_are_given_back_and_counted() {
    let short = [(BUFFERS, HEADER + 13)];
    let less = [(BUFFERS, 11)];
    let none = [(BUFFERS, 0)];
    let long = [(BUFFERS, HEADER), (BUFFERS, (BIG - HEADROOM) as u32), (BUFFERS, 1)];
    let longest = [(0, u32::MAX), (BUFFERS, u32::MAX)];
    let lying = [(BUFFERS + 0x2000, HEADER + 60)];
    for format in BOTH {
        let mut guest = Guest::new(format, 64, MODERN);
        let mut device = Device::new(&guest);
        guest.write(BUFFERS + 0x2000, &[4]);
        let chains: [&[Buffer]; 6] = [&short, &less, &none, &long, &longest, &lying];
        let mut ids: Vec<_> = chains.iter().map(|chain| (guest.offer(chain), 0)).collect();
        guest.write(BUFFERS + 0x3000, &headed(&numbered(9, 60)));
        ids.push((guest.offer(&[(BUFFERS + 0x3000, HEADER + 60)]), 0));
        assert_eq!(device.receive(), [numbered(9, 60)], "{format:?}");
        assert_eq!(guest.used(), ids);
        assert_eq!(device.counters, Counters { rx_missed: 0, rx_errors: 6 });
    }
}

#[test]
fn what_is_left_to_do_crosses_in_both_directions() {
    let offload = Offload { csum: Csum::Partial { start: 34, offset: 16 }, gso: Gso::Tcp4 { mss: 1460 } };
    let frame = frame(9000);
    for format in BOTH {
        for cuts in [&[][..], &[30, 4000]] {
            let (begin, buffers) = row(&cut(HEADER + 9000, cuts), 0x2000);
            let mut guest = Guest::receiving(format, 8, MODERN);
            guest.offer(&buffers);
            let (sent, stayed) = Device::new(&guest).try_send(&[(frame.clone(), offload)]);
            assert_eq!((sent, stayed), (Ok(Sent { frames: 1, bytes: 9000 }), 0));
            let bytes = guest.read(begin, HEADER as usize + 9000);
            assert_eq!(bytes[..12], [1, 1, 50, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0]);

            let mut guest = Guest::new(format, 8, MODERN);
            guest.write(begin, &bytes);
            guest.offer(&buffers);
            assert_eq!(Device::new(&guest).try_receive(), (vec![(frame.clone(), offload)], Ok(())));
        }
    }
}

#[test]
fn chains_stay_where_there_is_no_frame() {
    for format in BOTH {
        let mut guest = Guest::new(format, 16, MODERN);
        let mut device = Device::new(&guest);
        guest.write(BUFFERS, &headed(&numbered(0, 60)));
        (0..4).for_each(|_| assert!(guest.offer(&[(BUFFERS, HEADER + 60)]) < 64));
        (0..2).for_each(|_| assert!(guest.offer(&[(BUFFERS, HEADER), (BUFFERS + 12, 60)]) < 64));
        let mut hoard: Vec<_> = std::iter::from_fn(|| device.frames.alloc()).collect();
        for left in [3, 2, 1] {
            device.frames.free(hoard.pop().unwrap());
            let mut batch = Batch::new();
            device.ring.receive(&mut device.frames, &mut batch, &mut device.counters).unwrap();
            assert_eq!((batch.len(), guest.used().len()), (1, 1), "{left}");
            hoard.extend(batch);
        }
        hoard.into_iter().for_each(|frame| device.frames.free(frame));
        assert_eq!(device.receive().len(), 3);
        assert_eq!(device.counters, Counters::default());
    }
}

#[test]
fn a_batch_of_long_chains_ends_early() {
    for format in BOTH {
        let mut guest = Guest::new(format, 1024, MODERN);
        let mut device = Device::new(&guest);
        guest.write(BUFFERS, &headed(&numbered(0, 60)));
        let mut table = vec![(BUFFERS, 0); 999];
        table.push((BUFFERS, HEADER + 60));
        guest.offer_table(&[], BORDER, &table);
        (0..9).for_each(|_| {
            assert!(guest.offer_raw(&[((BORDER, 16_000), crate::virtio::layout::INDIRECT)]) < 64)
        });
        let received: Vec<_> = (0..5).map(|_| device.receive().len()).collect();
        assert_eq!(received, [3, 3, 3, 1, 0], "{format:?}");
    }
}
