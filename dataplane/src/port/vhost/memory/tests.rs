use std::os::fd::AsRawFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

fn file(len: u64) -> File {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn spec(guest: u64, len: u64) -> RegionSpec {
    RegionSpec { guest, len, user: guest + 0x7000_0000_0000, offset: 0 }
}

fn region(guest: u64, len: u64) -> Arc<Region> {
    Region::map(file(len), spec(guest, len)).unwrap()
}

#[test]
fn an_address_is_found_up_to_the_end_of_its_region() {
    let low = region(0, 10 * PAGE);
    let high = region(1 << 32, PAGE);
    let next = region((1 << 32) + PAGE, 2 * PAGE);
    let memory = GuestMemory::new(vec![high.clone(), low.clone(), next.clone()]).unwrap();
    let guests: Vec<u64> = memory.regions().iter().map(|r| r.spec().guest).collect();
    assert_eq!(guests, [0, 1 << 32, (1 << 32) + PAGE], "by address");
    assert_eq!(memory.bytes(), 13 * PAGE);

    let base = |region: &Region, offset| region.mapping.base().as_ptr() as usize + offset;
    let at = |guest, len| memory.at(guest, len).map(|s| (s.base.as_ptr() as usize, s.len));
    assert_eq!(at(5, 100), Some((base(&low, 5), 100)));
    assert_eq!(at(10 * PAGE - 1, 100), Some((base(&low, 10 * PAGE as usize - 1), 1)));
    assert_eq!(at(10 * PAGE, 1), None);
    assert_eq!(at((1 << 32) + PAGE - 4, 8), Some((base(&high, PAGE as usize - 4), 4)), "a prefix");
    assert_eq!(at((1 << 32) + PAGE, usize::MAX), Some((base(&next, 0), 2 * PAGE as usize)));
    assert_eq!(at((1 << 32) - 1, 8), None);
    assert_eq!(at(u64::MAX, usize::MAX), None);
    assert_eq!(GuestMemory::default().at(0, 1), None);

    let user = high.spec().user;
    assert_eq!(memory.at_user(user, PAGE as usize), Some(high.mapping.base()));
    assert_eq!(memory.at_user(user, PAGE as usize + 1), None, "not contiguous in ours");
    assert_eq!(memory.at_user(user - 1, 1), None);
    assert_eq!(memory.guest_of(user + 7), Some((1 << 32) + 7));
    assert_eq!(memory.guest_of(0), None);
}

#[test]
fn what_is_written_is_in_the_file_at_an_offset_that_is_no_page() {
    use std::os::unix::fs::FileExt;
    let file = file(3 * PAGE);
    let spec = RegionSpec { offset: PAGE + 24, len: PAGE, ..spec(0x1000, PAGE) };
    let memory = GuestMemory::new(vec![Region::map(file.try_clone().unwrap(), spec).unwrap()]).unwrap();
    let span = memory.at(0x1000 + 8, 8).unwrap();
    // SAFETY: 8 bytes of the region.
    #[allow(unsafe_code)]
    unsafe {
        span.base.as_ptr().cast::<[u8; 8]>().write(*b"in guest")
    };
    let mut read = [0; 8];
    file.read_exact_at(&mut read, PAGE + 24 + 8).unwrap();
    assert_eq!(&read, b"in guest");
}

#[test]
fn regions_that_are_none_are_refused() {
    let map = |spec| Region::map(file(PAGE), spec).unwrap_err().to_string();
    assert_eq!(map(spec(16, 0)), "memory region at 0x10: it has no bytes");
    assert_eq!(
        map(spec(16, PAGE + 1)),
        "memory region at 0x10: its file has 4096 bytes and 4097 are needed; is the file as large as the frontend says?"
    );
    let wraps = |spec| assert!(map(spec).ends_with("wraps around"), "{spec:?}: {}", map(spec));
    wraps(RegionSpec { guest: u64::MAX - 4, ..spec(0, 5) });
    wraps(RegionSpec { user: u64::MAX - 4, ..spec(0, 5) });
    wraps(RegionSpec { user: 0, ..spec(1, u64::MAX) });
    let offset = |offset, len| map(RegionSpec { offset, user: 0, ..spec(0, len) });
    assert!(offset(u64::MAX, 1).ends_with("wrap around"));
    assert!(offset(u64::MAX - 1, 1).ends_with("wrap around"), "{}", offset(u64::MAX - 1, 1));
    assert!(offset(PAGE, 1).contains("4097 are needed"));
    let huge = file(1 << 62);
    let absurd = Region::map(huge, RegionSpec { user: 0, ..spec(0, 1 << 62) }).unwrap_err().to_string();
    assert!(absurd.contains("cannot map") && absurd.contains("Cannot allocate memory"), "{absurd}");
    let memory = file(PAGE);
    let unwritable = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap();
    let refused = Region::map(unwritable, spec(0, 16)).unwrap_err().to_string();
    assert!(refused.contains("open for reading and writing: Permission denied"), "{refused}");
}

#[test]
fn regions_come_and_go_but_never_overlap() {
    let memory = GuestMemory::new(vec![region(0, PAGE)]).unwrap();
    let two = memory.with(region(PAGE, PAGE)).unwrap();
    assert_eq!((memory.regions().len(), two.regions().len()), (1, 2));
    assert!(matches!(two.with(region(PAGE - 1, 1)), Err(MemoryError::Overlap(a)) if a == PAGE - 1));
    assert!(matches!(two.with(region(0, 1)), Err(MemoryError::Overlap(0))));
    let same_user = RegionSpec { user: two.regions()[0].spec().user + 1, ..spec(1 << 20, 1) };
    let same_user = Region::map(file(1), same_user).unwrap();
    assert!(matches!(two.with(same_user), Err(MemoryError::Overlap(a)) if a == 0x7000_0000_0001));

    assert!(matches!(two.without(0, PAGE - 1), Err(MemoryError::Unknown { guest: 0, len: 4095 })));
    let one = two.without(0, PAGE).unwrap();
    assert_eq!((one.at(0, 1), one.at(PAGE, 1).is_some()), (None, true));

    let full: Vec<_> = (0..SLOTS_MAX as u64).map(|i| region(i * PAGE, 1)).collect();
    let full = GuestMemory::new(full).unwrap();
    assert!(matches!(full.with(region(1 << 30, 1)), Err(MemoryError::Slots(33))));
}

proptest! {
    /// The search finds what a plain one in wide numbers finds.
    #[test]
    fn the_search_agrees_with_a_plain_one(
        lens in proptest::collection::vec((1u64..3, 0u64..3), 0..8),
        address in 0u64..40,
        within in 0u64..PAGE,
        len in 1usize..30_000,
    ) {
        let mut next = 0;
        let place = |(len, gap): (u64, u64)| {
            let guest = next + gap * PAGE;
            next = guest + len * PAGE;
            region(guest, len * PAGE)
        };
        let regions: Vec<_> = lens.into_iter().map(place).collect();
        let memory = GuestMemory::new(regions.clone()).unwrap();
        let guest = address * PAGE + within;
        let plain = regions.iter().find_map(|region| {
            let (from, to) = (region.spec().guest as u128, (region.spec().guest + region.spec().len) as u128);
            let here = guest as u128;
            (from..to).contains(&here).then(|| {
                let base = region.mapping.base().as_ptr().wrapping_add((here - from) as usize);
                (base, ((to - here) as usize).min(len))
            })
        });
        prop_assert_eq!(memory.at(guest, len).map(|span| (span.base.as_ptr(), span.len)), plain);
    }
}
