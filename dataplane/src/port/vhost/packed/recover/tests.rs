mod histories;

use super::*;

/// The place that is so many places behind the beginning of all.
fn at(place: u32, size: u16) -> Place {
    let size = u32::from(size);
    Place { index: (place % size) as u16, wrap: (place / size).is_multiple_of(2) }
}

/// A ring of chains of one place: as many were used, and then as many made available, in all.
fn ring(size: u16, used: u32, made: u32) -> Vec<PackedDescriptor> {
    let mut ring = vec![PackedDescriptor::default(); size.into()];
    for place in 0..made {
        let (here, slot) = (at(place, size), &mut ring[(place % u32::from(size)) as usize]);
        slot.flags = if place < used { here.used() } else { here.available() };
        slot.id = (place % u32::from(size)) as u16;
    }
    ring
}

const OURS: Claim = Claim { base: Place { index: 0, wrap: true }, gaps: false };

/// All states of small rings, with all bases: only what cannot be told from a right base is left as it is.
#[test]
fn the_place_is_found_whatever_the_base() {
    let mut found = 0;
    for size in 1..=7u16 {
        let round = u32::from(size);
        for (used, ahead) in (0..4 * round).flat_map(|used| (0..=round).map(move |ahead| (used, ahead))) {
            for unshown in (0..=ahead).filter(|&unshown| unshown != 1) {
                let mut ring = ring(size, used + unshown, used + ahead);
                if unshown > 0 {
                    ring[(used % round) as usize].flags = at(used, size).available();
                }
                let next = used + unshown;
                for (base, gaps) in (0..2 * round).flat_map(|base| [(base, false), (base, true)]) {
                    let said = (base + 8 * round - next) % (2 * round);
                    let is_doubt = said == 0 || said <= ahead - unshown && (said == 1 || gaps);
                    let expected = Left { place: at(used, size), unshown: unshown as u16 };
                    let claim = Claim { base: at(base, size), gaps };
                    let left = left(&ring, claim);
                    assert_eq!(left, (!is_doubt).then_some(expected), "{ring:?} {claim:?}");
                    found += u32::from(!is_doubt);
                }
            }
        }
    }
    assert!(found > 10_000, "{found}");
}

#[test]
fn a_ring_that_nobody_has_used_begins_at_its_beginning() {
    for size in [3, 64, 32_768] {
        for made in [0, 1, u32::from(size)] {
            assert_eq!(left(&ring(size, 0, made), OURS), None);
            let base = Place { index: size / 2, wrap: false };
            let expected = Left { place: OURS.base, unshown: 0 };
            assert_eq!(left(&ring(size, 0, made), Claim { base, ..OURS }), Some(expected));
        }
    }
}

#[test]
fn a_long_ring_that_was_left_in_its_third_round_is_found() {
    let ring = ring(32_768, 2 * 32_768 + 77, 3 * 32_768 + 77);
    assert_eq!(left(&ring, OURS), Some(Left { place: at(77, 32_768), unshown: 0 }));
}

/// Of each of these a little less would be clear.
#[test]
fn what_is_not_clear_leaves_the_base() {
    let clear = || ring(8, 4, 8);
    let spoiled = |spoil: fn(&mut [PackedDescriptor])| {
        let mut ring = clear();
        spoil(&mut ring);
        left(&ring, OURS)
    };
    assert!(spoiled(|_| {}).is_some());
    assert_eq!(spoiled(|ring| ring[5].flags |= NEXT), None, "a chain goes on");
    assert_eq!(spoiled(|ring| ring[5].id = ring[7].id), None, "an id twice");
    assert!(spoiled(|ring| ring[2].id = ring[7].id).is_some(), "an id again");
    assert!(spoiled(|ring| ring[6].flags = 0).is_none(), "the driver is writing");
    assert!(spoiled(|ring| ring[7].flags = 0).is_some(), "the driver is about to write");
    assert!(spoiled(|ring| ring[2].flags = AVAIL).is_some(), "a batch of two was not shown");
    let two = |ring: &mut [PackedDescriptor]| (ring[0].flags, ring[2].flags) = (AVAIL, AVAIL);
    assert_eq!(spoiled(two), None, "two places left out");
    assert_eq!(spoiled(|ring| (ring[1].flags, ring[2].flags) = (AVAIL, AVAIL)), None, "two in a row");
    assert_eq!(left(&[], OURS), None);
}
