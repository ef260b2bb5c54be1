mod packed;
mod split;

use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::*;

thread_local! {
    /// Stores that this thread may still do before its process "dies".
    static STORES: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The process died.
struct Killed;

/// Called in front of each store that outlives the process.
pub fn store() {
    match STORES.get() {
        Some(0) => resume_unwind(Box::new(Killed)), // without the noise of a panic
        Some(left) => STORES.set(Some(left - 1)),
        None => {}
    }
}

/// Does it until that many stores were done. `None`: it was killed.
fn killed_after<R>(stores: u32, f: impl FnOnce() -> R) -> Option<R> {
    STORES.set(Some(stores));
    let outcome = catch_unwind(AssertUnwindSafe(f));
    STORES.set(None);
    match outcome {
        Ok(value) => Some(value),
        Err(killed) if killed.is::<Killed>() => None,
        Err(failed) => resume_unwind(failed),
    }
}

fn region(layout: Layout) -> (File, Region) {
    let (file, bytes) = layout.create().unwrap();
    let region = Region::map(file.try_clone().unwrap(), 0, bytes, layout).unwrap();
    (file, region)
}

const SPLIT: Layout = Layout { format: Format::Split, queues: 2, size: 8 };
const PACKED: Layout = Layout { format: Format::Packed, ..SPLIT };

#[test]
fn the_places_of_queues_are_as_large_as_those_of_others() {
    // DPDK: 16 bytes and 16 per entry, 29 and 32 per entry, each rounded up to 64.
    assert_eq!(SPLIT.bytes().unwrap(), 2 * 192);
    assert_eq!(PACKED.bytes().unwrap(), 2 * 320);
    assert_eq!(Layout { queues: 1, size: 1024, ..SPLIT }.bytes().unwrap(), 16 * 1024 + 64);
    assert_eq!(Layout { queues: 1, size: 1024, ..PACKED }.bytes().unwrap(), 32 * 1024 + 64);
    let wrong = |layout: Layout| layout.bytes().unwrap_err().to_string();
    assert_eq!(wrong(Layout { queues: 34, ..SPLIT }), "inflight region of 34 queues, expected 1 to 33");
    assert!(wrong(Layout { queues: 0, ..SPLIT }).contains("of 0 queues"));
    assert!(wrong(Layout { size: 0, ..SPLIT }).contains("of 0 entries"));
    assert!(wrong(Layout { size: 32_769, ..PACKED }).contains("of 32769 entries"));
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let (file, bytes) = SPLIT.create().unwrap();
    assert!(file.set_len(bytes - 1).is_err(), "sealed");
    let map = |offset, len| Region::map(file.try_clone().unwrap(), offset, len, SPLIT);
    assert!(matches!(map(0, bytes - 1), Err(InflightError::Short { have: 383, need: 384 })));
    assert!(matches!(map(4, bytes), Err(InflightError::Offset(4))));
    assert!(matches!(map(8, bytes), Err(InflightError::Map(MappingError::Short { .. }))));
    assert!(matches!(map(u64::MAX - 7, u64::MAX), Err(InflightError::Map(MappingError::Wraps { .. }))));
    let region = map(0, u64::MAX).unwrap();
    assert!(matches!(region.queue(2, 8), Err(InflightError::Queue { queue: 2, size: 8 })));
    assert!(matches!(region.queue(1, 9), Err(InflightError::Queue { queue: 1, size: 9 })));
    let other = Packed::recover(region.queue(0, 8).unwrap(), PackedPlace::default(), |_| 0);
    assert!(matches!(other, Err(InflightError::Format(Format::Split))));
    Split::recover(region.queue(0, 8).unwrap(), 0).unwrap();

    file.write_all_at(&[4], 10).unwrap();
    let size = Split::recover(region.queue(0, 8).unwrap(), 0);
    assert!(matches!(size, Err(InflightError::Entries { have: 4, expected: 8 })));
    file.write_all_at(&[9], 8).unwrap();
    assert!(matches!(Split::recover(region.queue(0, 8).unwrap(), 0), Err(InflightError::Version(9))));
    assert!(Split::recover(region.queue(1, 8).unwrap(), 0).is_ok(), "the other queue has a place of its own");
}
