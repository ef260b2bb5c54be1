//! Guests that break the rules next to guests that do not.

use dataplane::poller::Caches;
use dataplane::virtio::driver::raw::Raw;
use dataplane::virtio::driver::{Buffer, Form};
use dataplane::virtio::features::Features;
use dataplane::virtio::layout::{AVAIL, Descriptor, INDIRECT, NEXT, PackedDescriptor, WRITE};
use encap::offload::Offload;
use flowtable::action::DropReason;

use super::talk::Talk;
use super::vm::{ALL, Bay, Build, SIZE, Vm};
use super::{plain, vm};
use crate::frames::{broadcast, unicast};
use crate::rack::{Rack, STEP, both_ways};

/// `x` and `y` are honest.
const CONFIG: &str = r#"
    [[bridge]]
    name = "br0"
    port = [{ name = "x" }, { name = "y" }, { name = "evil" }]
"#;

/// No guest has memory there.
const NOWHERE: u64 = 0xdead_0000_0000;

/// What a guest does, and what of it must be found in the reason for its reset.
type Attack = (&'static str, fn(&Vm));

/// Nothing was received or sent yet: all begins at the first place of a ring.
fn split(place: &Raw, list: &[Descriptor]) {
    (0..).zip(list).for_each(|(at, descriptor)| place.set_descriptor(at, *descriptor));
    place.set_available(0, 0);
    place.set_available_index(1);
}

fn packed(place: &Raw, list: &[PackedDescriptor]) {
    for (at, descriptor) in list.iter().enumerate().rev() {
        place.set_packed(at as u16, PackedDescriptor { flags: descriptor.flags | AVAIL, ..*descriptor });
    }
}

fn entry(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { addr, len, flags, next }
}

fn packed_entry(addr: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor { addr, len, id: 0, flags }
}

fn transmit(vm: &Vm) -> Raw {
    vm.pair(0).transmit.ring.raw()
}

fn receive(vm: &Vm) -> Raw {
    vm.pair(0).receive.ring.raw()
}

/// Somewhere that the guest may have buffers.
fn somewhere(vm: &Vm) -> u64 {
    vm.guest.memory().take(4096, 64).unwrap()
}

fn send_chain(vm: &Vm, chain: &[Buffer], form: Form) {
    let mut pair = vm.pair(0);
    pair.transmit.ring.add(chain, form).unwrap();
    pair.transmit.publish();
}

/// What both formats have.
const BOTH: &[Attack] = &[
    ("100 bytes at 0xdead00000000 are outside", |vm| {
        send_chain(vm, &[Buffer::read(NOWHERE, 100)], Form::Direct);
    }),
    ("100 bytes at 0xdead00000000 are outside", |vm| {
        send_chain(vm, &[Buffer::read(somewhere(vm), 100), Buffer::read(NOWHERE, 100)], Form::Direct);
    }),
    ("are outside the guest's memory", |vm| {
        send_chain(vm, &[Buffer::read(u64::MAX - 50, 100)], Form::Direct);
    }),
    ("are outside the guest's memory", |vm| {
        send_chain(vm, &[Buffer::read(somewhere(vm), 20), Buffer::read(NOWHERE, 100)], Form::Indirect);
    }),
    ("has the wrong direction", |vm| {
        send_chain(vm, &[Buffer::write(somewhere(vm), 100)], Form::Direct);
    }),
    ("shrank under us", |vm| vm.guest.memory().regions()[0].truncate(0).unwrap()),
];

const SPLIT: &[Attack] = &[
    // In tables of packed rings DPDK's own driver does that, and is forgiven.
    ("has the wrong direction", |vm| {
        send_chain(vm, &[Buffer::read(somewhere(vm), 20), Buffer::write(somewhere(vm), 100)], Form::Indirect);
    }),
    ("available index jumped from 0 to 129", |vm| transmit(vm).set_available_index(SIZE + 1)),
    ("available index jumped from 0 to 65535", |vm| transmit(vm).set_available_index(u16::MAX)),
    // It stood at the end of the ring.
    ("available index jumped", |vm| receive(vm).set_available_index(0x8000)),
    ("descriptor 9999 of 128", |vm| {
        transmit(vm).set_available(0, 9999);
        transmit(vm).set_available_index(1);
    }),
    ("descriptor 128 of 128", |vm| split(&transmit(vm), &[entry(somewhere(vm), 100, NEXT, SIZE)])),
    ("longer than its ring", |vm| split(&transmit(vm), &[entry(somewhere(vm), 1, NEXT, 0)])),
    ("longer than its ring", |vm| {
        let ends = [1, 0].map(|next| entry(somewhere(vm), 1, NEXT, next));
        split(&transmit(vm), &ends);
    }),
    ("indirect descriptor of 15 bytes", |vm| split(&transmit(vm), &[entry(somewhere(vm), 15, INDIRECT, 0)])),
    ("indirect descriptor of 0 bytes", |vm| split(&transmit(vm), &[entry(somewhere(vm), 0, INDIRECT, 0)])),
    ("indirect descriptor of 65536 bytes", |vm| {
        split(&transmit(vm), &[entry(somewhere(vm), 65_536, INDIRECT, 0)]);
    }),
    ("indirect descriptor of 16 bytes", |vm| {
        split(&transmit(vm), &[entry(somewhere(vm), 16, INDIRECT | NEXT, 1)]);
    }),
    ("16 bytes at 0xdead00000000", |vm| split(&transmit(vm), &[entry(NOWHERE, 16, INDIRECT, 0)])),
    ("indirect descriptor of 16 bytes, or inside another", |vm| {
        let at = somewhere(vm);
        vm.guest.memory().block_at(at, 16).unwrap().put(0, entry(at, 16, INDIRECT, 0));
        split(&transmit(vm), &[entry(at, 16, INDIRECT, 0)]);
    }),
    ("longer than its ring", |vm| {
        let at = somewhere(vm);
        vm.guest.memory().block_at(at, 16).unwrap().put(0, entry(at, 1, NEXT, 0));
        split(&transmit(vm), &[entry(at, 16, INDIRECT, 0)]);
    }),
    ("at 0xdead00000000 are outside", |vm| {
        receive(vm).set_descriptor(receive_head(vm), entry(NOWHERE, 2048, WRITE, 0));
    }),
    ("has the wrong direction", |vm| {
        receive(vm).set_descriptor(receive_head(vm), entry(somewhere(vm), 2048, 0, 0));
    }),
    ("longer than its ring", |vm| {
        let head = receive_head(vm);
        receive(vm).set_descriptor(head, entry(somewhere(vm), 0, WRITE | NEXT, head));
    }),
];

/// The first of the receive buffers.
fn receive_head(vm: &Vm) -> u16 {
    receive(vm).driver.get(4)
}

const PACKED: &[Attack] = &[
    ("longer than its ring", |vm| {
        packed(&transmit(vm), &[packed_entry(somewhere(vm), 1, NEXT); SIZE as usize]);
    }),
    ("indirect descriptor of 15 bytes", |vm| {
        packed(&transmit(vm), &[packed_entry(somewhere(vm), 15, INDIRECT)]);
    }),
    ("indirect descriptor of 65536 bytes", |vm| {
        packed(&transmit(vm), &[packed_entry(somewhere(vm), 65_536, INDIRECT)]);
    }),
    ("16 bytes at 0xdead00000000", |vm| packed(&transmit(vm), &[packed_entry(NOWHERE, 16, INDIRECT)])),
    ("indirect descriptor of 16 bytes, or inside another", |vm| {
        let at = somewhere(vm);
        vm.guest.memory().block_at(at, 16).unwrap().put(0, packed_entry(at, 16, INDIRECT));
        packed(&transmit(vm), &[packed_entry(at, 16, INDIRECT)]);
    }),
    ("indirect descriptor of 16 bytes", |vm| {
        packed(&transmit(vm), &[packed_entry(somewhere(vm), 16, INDIRECT | NEXT)]);
    }),
    ("at 0xdead00000000 are outside", |vm| packed(&receive(vm), &[packed_entry(NOWHERE, 2048, WRITE)])),
    ("has the wrong direction", |vm| packed(&receive(vm), &[packed_entry(somewhere(vm), 2048, 0)])),
];

/// Plays attacks of guests of this kind: each is found out, and nobody else notices.
fn attacks(build: &Build, list: &[Attack]) {
    for caches in [Caches::On, Caches::Off] {
        let mut rack = Rack::new(CONFIG, caches);
        let mut talk = Talk::new(&mut rack);
        for (reason, attack) in list {
            let evil = Vm::new(&mut rack, "evil", build);
            attack(&evil);
            talk.beat(&mut rack);
            talk.shout(&mut rack);
            talk.beat(&mut rack);
            let said = evil.bay.reset(&mut rack, 1);
            assert!(said.contains(reason), "{said}, not {reason}");
            talk.shout(&mut rack);
            talk.beat(&mut rack);
            rack.audit();
            drop(evil);
            rack.plug("evil", |port| Box::new(port));
        }
        drop(talk.end(&mut rack));
        rack.outcome();
    }
}

#[test]
fn faults_of_any_ring() {
    attacks(&Build::of(ALL), BOTH);
    attacks(&Build::of(ALL).packed(), BOTH);
}

#[test]
fn faults_of_split_rings() {
    attacks(&Build::of(ALL), SPLIT);
}

#[test]
fn faults_of_packed_rings() {
    attacks(&Build::of(ALL).packed(), PACKED);
}

/// Chains that no frame fits, longer than their memory even, are the guest's loss and no more.
#[test]
fn chains_without_a_frame_are_counted() {
    both_ways(CONFIG, |rack| {
        let mut talk = Talk::new(rack);
        let vm = Vm::new(rack, "evil", &Build::of(ALL));
        for len in [1, 12, 25, 80_000, u32::MAX] {
            send_chain(&vm, &[Buffer::read(somewhere(&vm), len)], Form::Direct);
        }
        talk.beat(rack);
        vm.send(&broadcast(3), Offload::NONE);
        talk.beat(rack);
        rack.wait(STEP);
        let stats = rack.stats("evil");
        assert_eq!((stats.rx_frames, stats.rx_errors), (1, 5), "{rack:?}");
        assert_eq!(vm.bay.status().resets, 0);
        drop(talk.end(rack));
    });
}

#[test]
fn a_guest_that_was_reset_boots_again_and_is_served() {
    let mut rack = Rack::new(CONFIG, Caches::On);
    let mut talk = Talk::new(&mut rack);
    let mut vm = Vm::new(&mut rack, "evil", &Build::of(ALL).without_inflight());
    for resets in 1..=2 {
        transmit(&vm).set_available_index(0x4000);
        rack.settle();
        vm.bay.reset(&mut rack, resets);
        talk.beat(&mut rack);
        vm.pair(0).reset();
        let line = vm.bay.dial();
        vm.guest.reconnect(line).unwrap();
        vm.bay.attach(&mut rack, 1);
        vm.send(&broadcast(3), Offload::NONE);
        talk.shout(&mut rack);
        assert_eq!(vm.take(), [plain(&broadcast(1))], "{rack:?}");
        talk.beat(&mut rack);
    }
    assert_eq!(rack.stats("evil").rx_frames, 2);
    talk.end(&mut rack);
}

#[test]
fn a_guest_that_stops_reading_loses_its_own_frames_and_no_others() {
    both_ways(CONFIG, |rack| {
        for build in [Build::of(ALL), Build::of(ALL | Features::IN_ORDER).packed()] {
            let mut talk = Talk::new(rack);
            let lazy = Vm::new(rack, "evil", &build);
            lazy.send(&broadcast(3), Offload::NONE);
            rack.settle();
            let before = rack.stats("evil");
            let all = usize::from(SIZE) * 3;
            for _ in 0..all {
                talk.shout(rack);
            }
            talk.beat(rack);
            let after = rack.stats("evil");
            let lost = after.dropped(DropReason::TxFull) - before.dropped(DropReason::TxFull);
            assert_eq!((after.tx_frames - before.tx_frames, lost), (SIZE.into(), 2 * u64::from(SIZE)));
            assert_eq!(lazy.take().len(), usize::from(SIZE), "what it had room for");
            talk.shout(rack);
            assert_eq!(lazy.take(), [plain(&broadcast(1))], "and it is served again");
            assert_eq!(lazy.bay.status().resets, 0);
            drop(talk.end(rack));
            ["x", "y", "evil"].into_iter().for_each(|port| rack.plug(port, |port| Box::new(port)));
        }
    });
}

/// A frontend that hangs in the middle of a message, or talks nonsense, harms the port it is at.
#[test]
fn frontends_that_hang_or_rave_harm_nobody_else() {
    let mut rack = Rack::new(CONFIG, Caches::On);
    let mut talk = Talk::new(&mut rack);
    let evil = Vm::new(&mut rack, "evil", &Build::of(ALL));
    evil.guest.wire().send(&[1, 0, 0, 0, 1, 0], &[]).unwrap();
    talk.beat(&mut rack);
    // While it hangs, its guest is still served.
    evil.send(&unicast(3, 1), Offload::NONE);
    talk.shout(&mut rack);
    assert_eq!(evil.take(), [plain(&broadcast(1))]);
    let said = evil.bay.reset(&mut rack, 1);
    assert!(said.contains("in the middle of a message"), "{said}");
    talk.beat(&mut rack);
    let vm::Vm { bay, guest } = evil;
    drop(guest);
    rave(&bay, &mut rack, &mut talk);
    talk.end(&mut rack);
}

fn rave(bay: &Bay, rack: &mut Rack, talk: &mut Talk) {
    let line = dataplane::virtio::driver::wire::Wire::new(bay.dial());
    line.send(&[0xff; 4096], &[]).unwrap();
    talk.beat(rack);
    bay.reset(rack, 2);
    assert_eq!(rack.stats("evil").rx_frames, 1);
}
