use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

fn file(len: u64, flags: MFdFlags) -> File {
    let file = File::from(memfd_create("torn", flags | MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn mapping(len: u64) -> (File, Mapping) {
    let file = file(len, MFdFlags::empty());
    let mapping = Mapping::new(file.try_clone().unwrap(), 0, len).unwrap();
    (file, mapping)
}

fn read(mapping: &Mapping, at: usize) -> u8 {
    assert!(at < mapping.len());
    // SAFETY: in the mapping.
    unsafe { mapping.base().as_ptr().add(at).read_volatile() }
}

fn write(mapping: &Mapping, at: usize, value: u8) {
    assert!(at < mapping.len());
    // SAFETY: in the mapping.
    unsafe { mapping.base().as_ptr().add(at).write_volatile(value) }
}

#[test]
fn a_file_cut_short_reads_zeros_and_takes_writes() {
    let (file, mapping) = mapping(8 * PAGE);
    (0..8).for_each(|page| write(&mapping, page * 4096, 1));
    file.set_len(2 * PAGE).unwrap();
    assert_eq!((read(&mapping, 0), mapping.is_torn()), (1, false), "what is left is as it was");
    assert_eq!(read(&mapping, 2 * 4096), 0);
    assert!(mapping.is_torn());
    assert_eq!(read(&mapping, 0), 0, "nothing is the frontend's any more");
    (0..8).for_each(|page| write(&mapping, page * 4096, page as u8));
    assert!((0..8).all(|page| read(&mapping, page * 4096) == page as u8));
}

#[test]
fn threads_survive_that_files_shrink_while_others_are_mapped_and_unmapped() {
    let (file, shared) = mapping(64 * PAGE);
    let (left_file, left_alone) = mapping(PAGE);
    write(&left_alone, 0, 7);
    thread::scope(|scope| {
        for thread in 0..4 {
            let shared = &shared;
            scope.spawn(move || {
                // Until it is torn, and then once more over all of it.
                while !shared.is_torn() {
                    write(shared, 63 * 4096 + thread, 1);
                    read(shared, 17 * 4096);
                }
                (0..64).for_each(|page| write(shared, page * 4096 + thread, 1));
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..300 {
                    let (file, mine) = mapping(4 * PAGE);
                    write(&mine, 0, 9);
                    file.set_len(if round % 3 == 0 { 4 * PAGE } else { PAGE }).unwrap();
                    assert_eq!(read(&mine, 3 * 4096), 0);
                    assert_eq!(mine.is_torn(), round % 3 != 0);
                }
            });
        }
        file.set_len(0).unwrap();
    });
    assert!(shared.is_torn() && !left_alone.is_torn());
    assert_eq!((read(&left_alone, 0), left_file.metadata().unwrap().len()), (7, PAGE));
}

/// Are all pages of the range mapped, or none of them? `None`: some.
fn are_mapped(pages: Pages) -> Option<bool> {
    let is_mapped = |address| {
        let mut core = 0;
        // SAFETY: one page is asked about, and one byte written.
        unsafe { libc::mincore(address as *mut _, 4096, &mut core) == 0 }
    };
    let mapped = (pages.start..pages.start + pages.len).step_by(4096).filter(|&at| is_mapped(at)).count();
    match mapped {
        0 => Some(false),
        all if all * 4096 == pages.len => Some(true),
        _ => None,
    }
}

/// Without huge pages in this kernel's pool, the first touch of one faults; with some, the one behind the end.
#[test]
fn a_torn_mapping_is_unmapped_like_any_other() {
    // In a process of its own: here other tests map something at an address as soon as it is free.
    if !alone("a_torn_mapping_is_unmapped_like_any_other") {
        return;
    }
    let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    for (flags, page) in [(MFdFlags::empty(), PAGE), (huge, HUGE)] {
        let file = file(3 * page, flags);
        let mapping = Mapping::new(file.try_clone().unwrap(), page + 8, page).unwrap();
        let pages = mapping.entry.get().unwrap();
        assert_eq!((pages.len as u64, pages.page as u64, pages.start as u64 % page), (2 * page, page, 0));
        assert_eq!(mapping.base().as_ptr() as usize, pages.start + 8);
        file.set_len(0).unwrap();
        write(&mapping, page as usize - 1, 5);
        assert!(mapping.is_torn());
        assert_eq!((read(&mapping, page as usize - 1), read(&mapping, 0)), (5, 0));
        assert_eq!((are_mapped(pages), any_torn()), (Some(true), true));
        drop(mapping);
        assert_eq!((are_mapped(pages), any_torn()), (Some(false), false));
        assert!(TABLE.find(pages.start).is_none());
    }
}

#[test]
fn the_table_grows_and_keeps_entries_apart() {
    let table: &'static Chunk = Box::leak(Box::new(Chunk::new()));
    let entry = |i: usize| table.enter(i * 0x1000, 0x1000, 0x1000);
    let entries: Vec<_> = (1..=3 * CHUNK).map(entry).collect();
    let at = |address| table.find(address).map(|(entry, pages)| (ptr::from_ref(entry), pages.start));
    for (i, &entry) in (1..).zip(&entries) {
        assert_eq!(at(i * 0x1000 + 0xfff), Some((ptr::from_ref(entry), i * 0x1000)));
    }
    assert_eq!((at(0xfff), at((3 * CHUNK + 1) * 0x1000)), (None, None));
    table.remove(entries[100]);
    assert_eq!(at(101 * 0x1000), None);
    assert!(ptr::eq(entry(1000), entries[100]), "used again");
    assert_eq!(table.entries().count(), 3 * CHUNK);
}

#[test]
fn the_handler_finds_a_mapping_while_others_come_and_go() {
    let table: &'static Chunk = Box::leak(Box::new(Chunk::new()));
    let come_and_go = table.enter(0x1000, 0x1000, 0x1000);
    table.enter(0x10_0000, 0x1000, 0x1000);
    table.remove(come_and_go);
    let done = Arc::new(AtomicBool::new(false));
    let other = thread::spawn({
        let done = Arc::clone(&done);
        move || {
            // Two ranges, such that parts of the one and the other together have what is looked for.
            while !done.load(Ordering::Relaxed) {
                for (start, len) in [(0x8_0000, 0x1000), (0x20_0000, 0x10_0000)] {
                    table.remove(table.enter(start, len, 0x1000));
                }
            }
        }
    });
    for _ in 0..200_000 {
        assert_eq!(table.find(0x10_0800).map(|(_, pages)| pages.start), Some(0x10_0000));
    }
    done.store(true, Ordering::Relaxed);
    other.join().unwrap();
}

/// What a child of the tests does, if it is one.
const CHILD: &str = "SLUICE_TEST_SIGBUS";

/// Runs a test of this file in a process of its own, which finds `what` in its environment.
fn child(test: &str, what: &str) -> std::process::Output {
    let name = format!("port::vhost::fault::tests::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture"]).env(CHILD, what).output().unwrap()
}

/// True in a child; else it runs the test in one.
fn alone(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let output = child(test, test);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    false
}

/// Touches memory that is not a [`Mapping`], with the handler installed.
fn die(what: &str) {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    let (guarded_file, guarded) = mapping(PAGE);
    guarded_file.set_len(0).unwrap();
    assert_eq!((read(&guarded, 0), guarded.is_torn()), (0, true), "the handler is there");
    match what {
        "touch" => {
            let file = file(PAGE, MFdFlags::empty());
            let plain =
                MmapRegion::<()>::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 4096).unwrap();
            file.set_len(0).unwrap();
            // SAFETY: it is mapped; that the file is gone is what kills.
            unsafe { plain.as_ptr().read_volatile() };
        }
        "raise" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).unwrap(),
        _ => unreachable!("{what}"),
    }
}

#[test]
fn a_sigbus_elsewhere_still_kills() {
    if let Ok(what) = std::env::var(CHILD) {
        return die(&what);
    }
    for what in ["touch", "raise"] {
        let status = child("a_sigbus_elsewhere_still_kills", what).status;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{what}: {status}");
    }
}

#[test]
fn what_others_serve_is_not_mapped() {
    let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = File::from(std::os::fd::OwnedFd::from(ours));
    assert!(matches!(Mapping::new(socket, 0, PAGE), Err(MappingError::Foreign)));
}
