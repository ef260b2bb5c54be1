//! Frames, and what changes while they flow.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use super::guest::{FEATURES, Guest, SIZE, dial, info};
use super::*;
use crate::port::rig::numbered;
use crate::virtio::driver::memory::{Layout, Region};
use crate::virtio::features::Features;

/// A port and a guest that run.
fn pair(features: Features) -> (Bench, Guest) {
    let mut bench = Bench::new(Role::Server);
    let guest = Guest::up(dial(&bench.path), features);
    bench.attach(1);
    (bench, guest)
}

/// One frame each way.
fn flows(bench: &mut Bench, guest: &mut Guest, number: u16) {
    guest.send(&numbered(number, 80));
    assert_eq!(bench.rx(), numbered(number, 80));
    assert!(bench.tx(&numbered(number + 1, 90)), "the guest has buffers");
    assert_eq!(guest.receive(), Some(numbered(number + 1, 90)));
}

#[test]
fn frames_cross_and_the_status_says_how() {
    for features in [FEATURES, FEATURES | Features::RING_PACKED] {
        let (mut bench, mut guest) = pair(features);
        (0..10).for_each(|number| flows(&mut bench, &mut guest, 2 * number));
        let status = bench.port.status();
        assert_eq!((status.connected, status.pairs, status.connections, status.resets), (true, 1, 1, 0));
        assert_eq!((status.features, &status.rings[..], status.memory), (features, &[SIZE; 2][..], 4 << 20));
        assert_eq!(status.protocol_features, offer::PROTOCOL.bits());
    }
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    let (mut bench, mut guest) = pair(FEATURES);
    flows(&mut bench, &mut guest, 0);
    assert_eq!([guest.stop(0), guest.stop(1)], [1, 1]);
    bench.attach(0);
    guest.send(&numbered(8, 70));
    for ring in 0..2 {
        guest.start(ring, 1);
    }
    bench.attach(1);
    assert_eq!(bench.rx(), numbered(8, 70));
    flows(&mut bench, &mut guest, 2);
}

#[test]
fn memory_comes_and_goes_while_frames_flow() {
    let (mut bench, mut guest) = pair(FEATURES);
    let epoch = bench.port.status().epoch;
    flows(&mut bench, &mut guest, 0);
    let more = Region::new(Layout { guest: 1 << 40, len: 1 << 20, offset: 0 }).unwrap();
    // QEMU says everything once for each queue pair.
    guest.frontend.add_mem_region(&info(&more)).unwrap();
    guest.frontend.add_mem_region(&info(&more)).unwrap();
    wait("memory", || (bench.port.status().memory == 5 << 20).then_some(()));
    flows(&mut bench, &mut guest, 2);
    guest.frontend.remove_mem_region(&info(&more)).unwrap();
    flows(&mut bench, &mut guest, 4);
    guest.share();
    flows(&mut bench, &mut guest, 6);
    assert_eq!(bench.port.status().epoch, epoch, "its queues stay attached");
    guest.frontend.remove_mem_region(&info(&more)).unwrap();
    assert_eq!(bench.port.status().memory, 4 << 20);
    flows(&mut bench, &mut guest, 8);
}

/// QEMU does it in this order when a region grows or moves.
#[test]
fn a_ring_waits_while_its_memory_is_away() {
    let (mut bench, mut guest) = pair(FEATURES);
    flows(&mut bench, &mut guest, 0);
    let home = info(&guest.memory.regions()[0].clone());
    guest.frontend.remove_mem_region(&home).unwrap();
    bench.attach(0);
    guest.frontend.add_mem_region(&home).unwrap();
    bench.attach(1);
    flows(&mut bench, &mut guest, 2);
    assert_eq!(bench.port.status().resets, 0);
}

/// DPDK's virtio-user says that each ring begins at 0, and cloud-hypervisor where the guest is, whatever was used.
#[test]
fn a_successor_goes_on_whatever_base_it_is_told() {
    for base in [0, 64, 7000] {
        let (mut bench, mut guest) = pair(FEATURES);
        (0..5).for_each(|number| flows(&mut bench, &mut guest, 2 * number));
        bench.port = open(&bench.path.with_extension("next"), Role::Server);
        guest.dial(dial(&bench.path.with_extension("next")));
        guest.negotiate();
        guest.share();
        (0..2).for_each(|ring| guest.start(ring, base));
        bench.attach(1);
        (5..10).for_each(|number| flows(&mut bench, &mut guest, 2 * number));
    }
}

#[test]
fn a_guest_has_as_many_regions_as_we_say() {
    let (mut bench, mut guest) = pair(FEATURES);
    let slots = guest.frontend.get_max_mem_slots().unwrap();
    let region = |slot| Region::new(Layout { guest: slot << 40, len: 4096, offset: 0 }).unwrap();
    let more: Vec<_> = (1..=slots).map(region).collect();
    for (region, slot) in more.iter().zip(1..) {
        assert_eq!(guest.frontend.add_mem_region(&info(region)).is_ok(), slot < slots, "{slot}");
    }
    flows(&mut bench, &mut guest, 0);
}

#[test]
fn a_ring_is_disabled_and_enabled() {
    let (mut bench, mut guest) = pair(FEATURES);
    guest.frontend.set_vring_enable(1, false).unwrap();
    bench.attach(0);
    guest.send(&numbered(0, 60));
    guest.frontend.set_vring_enable(1, true).unwrap();
    bench.attach(1);
    assert_eq!(bench.rx(), numbered(0, 60));
}

/// And begins at the beginning if nothing else is said.
fn without_protocol_features(features: Features) {
    let mut bench = Bench::new(Role::Server);
    let mut guest = Guest::new(dial(&bench.path), features);
    guest.frontend.set_owner().unwrap();
    guest.frontend.get_features().unwrap();
    guest.frontend.set_features(features.0).unwrap();
    guest.share();
    guest.fill();
    for ring in 0..2 {
        guest.place(ring, None);
        guest.frontend.set_vring_kick(ring, &guest.kicks[ring]).unwrap();
    }
    bench.attach(1);
    flows(&mut bench, &mut guest, 0);
}

#[test]
fn without_protocol_features_a_ring_runs_as_soon_as_it_can_be_kicked() {
    let features = FEATURES.without(Features::PROTOCOL_FEATURES);
    without_protocol_features(features);
    without_protocol_features(features | Features::RING_PACKED);
}

#[test]
fn a_poller_sleeps_until_the_guest_kicks() {
    let (mut bench, mut guest) = pair(FEATURES);
    assert!(!bench.queues[0].arm());
    assert!(!bench.wakes());
    guest.send(&numbered(0, 60));
    assert!(bench.wakes());
    bench.queues[0].disarm();
    assert!(!bench.wakes());
    assert_eq!(bench.rx(), numbered(0, 60));
    // Nobody kicks who is not asked to.
    guest.send(&numbered(1, 60));
    assert!(!bench.wakes());
    assert!(bench.queues[0].arm(), "there is a frame");
    bench.queues[0].disarm();
    assert_eq!(bench.rx(), numbered(1, 60));
}

#[test]
fn a_poller_that_sleeps_is_woken_when_its_ring_is_another() {
    let (mut bench, mut guest) = pair(FEATURES);
    assert!(!bench.queues[0].arm());
    let call = vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    guest.frontend.set_vring_call(1, &call).unwrap();
    assert!(bench.wakes(), "the ring started anew, and is not armed");
    assert!(!bench.queues[0].arm());
    let fd = rig::descriptor(&bench.queues[0]).as_raw_fd();
    guest.kicks[1] = vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    guest.frontend.set_vring_kick(1, &guest.kicks[1]).unwrap();
    assert_eq!(rig::descriptor(&bench.queues[0]).as_raw_fd(), fd);
    bench.queues[0].disarm();
    assert!(!bench.queues[0].arm() && !bench.wakes());
    guest.send(&numbered(0, 60));
    assert!(bench.wakes(), "by the new eventfd");
}

#[test]
fn queues_of_before_are_dead() {
    let (mut bench, mut guest) = pair(FEATURES);
    let mut old = std::mem::take(&mut bench.queues);
    bench.attach(1);
    guest.send(&numbered(0, 60));
    assert!(rig::receive(&mut old[0], &mut bench.frames, |_| true).is_none());
    assert_eq!(bench.rx(), numbered(0, 60));
}

#[test]
fn an_announcement_enters_as_if_the_guest_had_sent_it() {
    let (mut bench, mut guest) = pair(FEATURES);
    assert!(!bench.queues[0].arm());
    guest.say(19, u64::from_le_bytes([2, 0, 0, 0, 0, 7, 0, 0]));
    assert!(guest.was_done());
    assert!(bench.wakes());
    assert_eq!(bench.rx(), announce::rarp(encap::field::MacAddr([2, 0, 0, 0, 0, 7])));
    guest.say(19, u64::MAX);
    assert!(!guest.was_done(), "of a group");
    flows(&mut bench, &mut guest, 0);
}

#[test]
fn an_mtu_beyond_ours_is_refused_and_the_session_goes_on() {
    let (mut bench, mut guest) = pair(FEATURES);
    for (mtu, fits) in [(1500, true), (1400, true), (1501, false), (67, false), (9000, false)] {
        guest.say(20, mtu);
        assert_eq!(guest.was_done(), fits, "{mtu}");
    }
    flows(&mut bench, &mut guest, 0);
    assert_eq!(bench.port.status().resets, 0);
}

#[test]
fn the_configuration_space_can_be_read() {
    let (_bench, mut guest) = pair(FEATURES);
    // The library's frontend counts from 0x100, as virtio-mmio does.
    let flags = VhostUserConfigFlags::empty();
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 2);
    assert_eq!(guest.frontend.get_max_mem_slots().unwrap(), memory::SLOTS_MAX as u64);
    let (_, space) = guest.frontend.get_config(0x100, 12, flags, &[0; 12]).unwrap();
    assert_eq!(space, [0; 12], "there is nothing at 0x100 of a network card's");
    assert!(guest.frontend.set_config(0x100, flags, &[0; 4]).is_err(), "nothing of it can be written");
}

#[test]
fn while_a_guest_migrates_writes_are_logged() {
    let (mut bench, mut guest) = pair(FEATURES);
    flows(&mut bench, &mut guest, 0);
    let log = File::from(memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap());
    // A bit for each page below 4 GiB.
    log.set_len(1 << 17).unwrap();
    let region = VhostUserDirtyLogRegion { mmap_size: 1 << 17, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    guest.frontend.set_log_base(0, Some(region)).unwrap();
    let marked = || {
        let mut bits = vec![0; 1 << 17];
        log.read_exact_at(&mut bits, 0).unwrap();
        bits.iter().map(|byte: &u8| byte.count_ones()).sum::<u32>()
    };
    flows(&mut bench, &mut guest, 2);
    assert_eq!(marked(), 0, "not before the features say so");
    guest.frontend.set_features((FEATURES | Features::LOG_ALL).0).unwrap();
    for ring in 0..2 {
        let used = guest.rings[ring].places().device;
        guest.place(ring, Some(used));
    }
    flows(&mut bench, &mut guest, 4);
    let pages = marked();
    assert!(pages >= 2, "{pages} pages: a frame, and used rings");
    assert_eq!(bench.port.status().epoch, bench.epoch, "its queues stay attached");
    guest.frontend.set_features(FEATURES.0).unwrap();
    log.write_all_at(&vec![0; 1 << 17], 0).unwrap();
    flows(&mut bench, &mut guest, 6);
    assert_eq!(marked(), 0, "migration was cancelled");
}

#[test]
fn a_device_that_was_reset_starts_again() {
    let (mut bench, mut guest) = pair(FEATURES);
    flows(&mut bench, &mut guest, 0);
    guest.frontend.reset_device().unwrap();
    bench.attach(0);
    assert_eq!(bench.port.status().memory, 4 << 20, "memory is not the guest's driver's");
    guest.frontend.set_features(FEATURES.0).unwrap();
    guest.rings.iter_mut().for_each(|ring| ring.reset());
    guest.fill();
    (0..2).for_each(|ring| guest.start(ring, 0));
    bench.attach(1);
    flows(&mut bench, &mut guest, 2);
    guest.frontend.reset_owner().unwrap();
    bench.attach(0);
    assert!(bench.port.status().connected);
}

#[test]
fn a_successor_goes_on_with_the_inflight_region() {
    for features in [FEATURES, FEATURES | Features::RING_PACKED] {
        let mut bench = Bench::new(Role::Server);
        let mut guest = Guest::new(dial(&bench.path), features);
        guest.negotiate();
        let asked = VhostUserInflight { num_queues: 2, queue_size: SIZE, ..Default::default() };
        let (given, region) = guest.frontend.get_inflight_fd(&asked).unwrap();
        assert!(given.mmap_size > 0 && region.metadata().unwrap().len() >= given.mmap_size);
        guest.frontend.set_inflight_fd(&given, region.as_raw_fd()).unwrap();
        guest.run();
        bench.attach(1);
        (0..5).for_each(|number| flows(&mut bench, &mut guest, 2 * number));
        // The switch dies without a word; the next has the region, and where the guest's rings are.
        let base = [guest.rings[0].base() as u16, guest.rings[1].base() as u16];
        bench.port = open(&bench.path.with_extension("next"), Role::Server);
        guest.dial(dial(&bench.path.with_extension("next")));
        guest.negotiate();
        guest.frontend.set_inflight_fd(&given, region.as_raw_fd()).unwrap();
        guest.share();
        (0..2).for_each(|ring| guest.start(ring, base[ring]));
        bench.attach(1);
        (5..10).for_each(|number| flows(&mut bench, &mut guest, 2 * number));
    }
}

#[test]
fn an_inflight_region_that_is_none_is_refused() {
    let (mut bench, mut guest) = pair(FEATURES);
    let file = File::from(memfd_create(c"small", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(100).unwrap();
    let given = VhostUserInflight { mmap_size: 100, num_queues: 2, queue_size: SIZE, ..Default::default() };
    assert!(guest.frontend.set_inflight_fd(&given, file.as_raw_fd()).is_err());
    flows(&mut bench, &mut guest, 0);
}
