//! What happens in the life of a VM, while others exchange frames and lose none: its driver starts anew, the switch does, memory
//! comes and goes, it moves to another port.

use std::collections::BTreeSet;

use ::vhost::vhost_user::message::VhostUserProtocolFeatures;
use dataplane::poller::Caches;
use dataplane::virtio::driver::Buffer;
use dataplane::virtio::driver::Form;
use dataplane::virtio::driver::memory::{Layout, PAGE, Region, SharedMemory};
use encap::offload::Offload;
use flowtable::id::Place;
use proptest::prelude::*;

use super::giants::tcp4;
use super::plain;
use super::talk::Talk;
use super::vm::{ALL, Bay, Build, Vm};
use crate::frames::{broadcast, gratuitous_arp, mac, unicast};
use crate::rack::{Rack, both_ways};

/// `x` and `y` talk; `m` and `n` are where things happen.
const CONFIG: &str = r#"
    [[bridge]]
    name = "br0"
    port = [{ name = "x" }, { name = "y" }, { name = "m" }, { name = "n" }]
"#;

/// The VM at `m`, host 3, sends a frame and gets one.
#[track_caller]
fn lives(rack: &mut Rack, talk: &mut Talk, vm: &Vm, port: &str) {
    vm.send(&unicast(3, 1), Offload::NONE);
    let before = rack.stats(port).rx_frames;
    rack.settle();
    assert_eq!(rack.stats(port).rx_frames, before + 1, "{rack:?}");
    talk.shout(rack);
    assert_eq!(vm.take(), [plain(&broadcast(1))], "{rack:?}");
}

fn builds() -> [Build; 3] {
    [Build::of(ALL), Build::of(ALL).packed(), Build::of(ALL).without_inflight()]
}

#[test]
fn a_guest_restarts_its_driver() {
    both_ways(CONFIG, |rack| {
        let mut talk = Talk::new(rack);
        for build in builds() {
            let mut vm = Vm::new(rack, "m", &build);
            for _ in 0..3 {
                lives(rack, &mut talk, &vm, "m");
                // What is in its rings is forgotten with them.
                vm.send(&broadcast(3), Offload::NONE);
                vm.guest.reboot().unwrap();
                vm.bay.attach(rack, 1);
                lives(rack, &mut talk, &vm, "m");
                talk.beat(rack);
            }
            assert_eq!(vm.bay.status().resets, 0);
            drop(vm);
            rack.plug("m", |port| Box::new(port));
        }
        drop(talk.end(rack));
    });
}

/// A guest is paused and goes on: nothing in its rings is lost.
#[test]
fn rings_stop_and_go_on_where_they_were() {
    both_ways(CONFIG, |rack| {
        let mut talk = Talk::new(rack);
        for build in builds() {
            let mut vm = Vm::new(rack, "m", &build);
            lives(rack, &mut talk, &vm, "m");
            for _ in 0..3 {
                let bases = vm.guest.stop_pair(0).unwrap();
                vm.bay.attach(rack, 0);
                (0..10).for_each(|_| vm.send(&unicast(3, 1), Offload::NONE));
                talk.beat(rack);
                let before = rack.stats("m").rx_frames;
                vm.guest.start_pair(0, Some(bases)).unwrap();
                vm.bay.attach(rack, 1);
                assert_eq!(rack.stats("m").rx_frames, before + 10);
                lives(rack, &mut talk, &vm, "m");
            }
            drop(vm);
            rack.plug("m", |port| Box::new(port));
        }
        drop(talk.end(rack));
    });
}

/// The port is removed and made again, as when the switch restarts: the guest notices nothing, and every frame that it has
/// sent leaves once.
#[test]
fn the_port_is_made_anew_and_the_guest_goes_on() {
    both_ways(CONFIG, |rack| {
        let mut talk = Talk::new(rack);
        for build in builds() {
            let Vm { mut guest, mut bay } = Vm::new(rack, "m", &build);
            for _ in 0..3 {
                drop(bay);
                talk.beat(rack);
                let vm = Vm { guest, bay: Bay::new(rack, "m", 1) };
                (0..10).for_each(|_| vm.send(&unicast(3, 1), Offload::NONE));
                (guest, bay) = (vm.guest, vm.bay);
                let before = rack.stats("m").rx_frames;
                guest.reconnect(bay.dial()).unwrap();
                bay.attach(rack, 1);
                assert_eq!(rack.stats("m").rx_frames, before + 10);
                let vm = Vm { guest, bay };
                lives(rack, &mut talk, &vm, "m");
                (guest, bay) = (vm.guest, vm.bay);
            }
            drop((guest, bay));
            rack.plug("m", |port| Box::new(port));
        }
        drop(talk.end(rack));
    });
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The guest sends so many frames.
    Send(u8),
    /// Others send so many to the guest.
    Deliver(u8),
    /// A turn of the poller.
    Turn,
    /// The guest takes what has come.
    Take,
    /// The switch ends, and another begins.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..60u8).prop_map(Step::Send),
        3 => (1..20u8).prop_map(Step::Deliver),
        3 => Just(Step::Turn),
        2 => Just(Step::Take),
        1 => Just(Step::Restart),
    ]
}

/// A frame with a number, of host `from`.
fn numbered(from: u8, to: u8, number: u32) -> Vec<u8> {
    let mut frame = unicast(from, to);
    frame.extend(number.to_be_bytes());
    frame
}

/// What the guest of a switch that ends now and then has sent and got, in numbers of frames.
struct Story {
    rack: Rack,
    vm: Option<Vm>,
    sent: u32,
    arrived: u32,
    delivered: u32,
    taken: u32,
}

impl Story {
    fn new(build: &Build) -> Story {
        let mut rack = Rack::new(CONFIG, Caches::On);
        let vm = Some(Vm::new(&mut rack, "m", build));
        let mut story = Story { rack, vm, sent: 0, arrived: 0, delivered: 0, taken: 0 };
        story.teach();
        story
    }

    fn vm(&self) -> &Vm {
        self.vm.as_ref().expect("there is one but while it changes hands")
    }

    /// The switch learns where the guest, host 3, is, and host 1.
    fn teach(&mut self) {
        assert!(self.rack.cable("x").inject(&broadcast(1)));
        assert!(self.rack.cable("n").inject(&gratuitous_arp(9)));
        self.rack.settle();
        self.collect();
    }

    /// All that came out at the port of host 1 is the next of the guest's.
    fn collect(&mut self) {
        for got in self.rack.drain_port("x").into_iter().filter(|got| got.bytes[6..12] == mac(3).0) {
            assert_eq!(got.bytes, numbered(3, 1, self.arrived), "in order, once\n{:?}", self.rack);
            self.arrived += 1;
        }
    }

    fn take(&mut self) {
        for got in self.vm().take().into_iter().filter(|got| got.bytes[..6] == mac(3).0) {
            assert_eq!(got.bytes, numbered(1, 3, self.taken), "in order, once");
            self.taken += 1;
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Send(count) => {
                for _ in 0..count {
                    let frame = numbered(3, 1, self.sent);
                    self.sent += u32::from(self.vm().send_by(0, &frame, Offload::NONE));
                }
            }
            Step::Deliver(count) => {
                // As many as have room: those that do not are lost, which is not what this is about.
                self.take();
                self.rack.settle();
                for _ in 0..count {
                    let frame = numbered(1, 3, self.delivered);
                    assert!(self.rack.cable("x").inject(&frame));
                    self.delivered += 1;
                }
                self.rack.settle();
            }
            Step::Turn => _ = self.rack.turn(0),
            Step::Take => self.take(),
            Step::Restart => self.restart(),
        }
        self.collect();
    }

    fn restart(&mut self) {
        let Vm { mut guest, bay } = self.vm.take().expect("there is one");
        // What the old switch had taken in, it sent on.
        self.collect();
        drop(bay);
        self.rack.audit();
        self.rack = Rack::new(CONFIG, Caches::On);
        let bay = Bay::new(&mut self.rack, "m", 1);
        guest.reconnect(bay.dial()).unwrap();
        bay.attach(&mut self.rack, 1);
        self.vm = Some(Vm { guest, bay });
        self.teach();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// With chains tracked or not: each frame crosses once, in order, whenever the switch ends, and no slot is lost.
    #[test]
    fn a_switch_that_restarts_goes_on_where_the_last_one_ended(
        kind in 0..3usize,
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut story = Story::new(&builds()[kind]);
        steps.into_iter().for_each(|step| story.play(step));
        story.rack.settle();
        story.collect();
        story.take();
        prop_assert_eq!((story.arrived, story.taken), (story.sent, story.delivered));
        // All slots are there.
        story.vm().pair(0).reclaim();
        prop_assert!(story.vm().pair(0).transmit.ring.is_idle());
        prop_assert_eq!(story.vm().pair(0).receive.ring.free(), 0);
        story.rack.audit();
    }
}

#[test]
fn memory_comes_and_goes_while_frames_flow() {
    both_ways(CONFIG, |rack| {
        let mut talk = Talk::new(rack);
        let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        for protocol in [VhostUserProtocolFeatures::all(), VhostUserProtocolFeatures::all() - slots] {
            let mut vm = Vm::new(rack, "m", &Build { protocol, ..Build::of(ALL) });
            let epoch = vm.bay.status().epoch;
            for place in 0..3 {
                let guest = 0x1_0000_0000 + (place << 30);
                let more = Region::new(Layout { guest, len: 1 << 20, offset: PAGE }).unwrap();
                vm.guest.add_region(more).unwrap();
                lives(rack, &mut talk, &vm, "m");
                // A frame that lies there, and is not where it was told.
                let memory = vm.guest.memory().clone();
                memory.write(guest + 100, &[&[0; 12], &unicast(3, 1)[..]].concat());
                sends_from(&vm, guest + 100, 12 + unicast(3, 1).len());
                let before = rack.stats("m").rx_frames;
                rack.settle();
                assert_eq!(rack.stats("m").rx_frames, before + 1, "{rack:?}");
                vm.pair(0).reclaim();
            }
            for left in (1..4).rev() {
                talk.beat(rack);
                vm.bay.until("memory", |status| status.memory == bytes_of(vm.guest.memory()));
                vm.guest.remove_region(left).unwrap();
                lives(rack, &mut talk, &vm, "m");
            }
            let status = vm.bay.until("memory", |status| status.memory == bytes_of(vm.guest.memory()));
            assert_eq!((status.resets, status.epoch), (0, epoch), "its queues stay attached");
            drop(vm);
            rack.plug("m", |port| Box::new(port));
        }
        drop(talk.end(rack));
    });
}

fn bytes_of(memory: &SharedMemory) -> u64 {
    memory.regions().iter().map(|region| region.spec().len).sum()
}

/// The guest sends a frame with its header from an address. The ring must be idle, and is after.
fn sends_from(vm: &Vm, addr: u64, len: usize) {
    let mut pair = vm.pair(0);
    pair.reclaim();
    pair.transmit.ring.add(&[Buffer::read(addr, len as u32)], Form::Direct).unwrap();
    pair.transmit.publish();
}

/// Memory that is taken away while chains lie in it is the guest's fault.
#[test]
fn memory_that_is_taken_away_too_early_resets_the_port() {
    let mut rack = Rack::new(CONFIG, Caches::On);
    let mut talk = Talk::new(&mut rack);
    let mut vm = Vm::new(&mut rack, "m", &Build::of(ALL));
    let guest = 0x2_0000_0000;
    vm.guest.add_region(Region::new(Layout { guest, len: 1 << 20, offset: 0 }).unwrap()).unwrap();
    sends_from(&vm, guest, 100);
    vm.guest.remove_region(1).unwrap();
    talk.beat(&mut rack);
    let said = vm.bay.reset(&mut rack, 1);
    assert!(said.contains("100 bytes at 0x200000000 are outside"), "{said}");
    talk.end(&mut rack);
}

/// All of the guest's memory.
fn snapshot(memory: &SharedMemory) -> Vec<u8> {
    let region = memory.regions()[0].spec();
    let mut bytes = vec![0; region.len as usize];
    memory.read(region.guest, &mut bytes);
    bytes
}

/// Whatever the switch wrote into the guest's memory while it turned is in the log.
#[track_caller]
fn is_logged(rack: &mut Rack, vm: &Vm) -> usize {
    let begin = vm.guest.memory().regions()[0].spec().guest;
    let before = snapshot(vm.guest.memory());
    rack.settle();
    let after = snapshot(vm.guest.memory());
    let logged: BTreeSet<u64> = vm.guest.dirty().expect("it migrates").take().into_iter().collect();
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
    let changed: Vec<u64> =
        pages.filter(|(_, (a, b))| a != b).map(|(page, _)| begin + (page * PAGE) as u64).collect();
    let missing: Vec<_> = changed.iter().filter(|page| !logged.contains(page)).collect();
    assert!(missing.is_empty(), "{missing:x?} are not in the log: {logged:x?}");
    changed.len()
}

#[test]
fn a_guest_migrates_from_one_port_to_another() {
    let small = |build: Build| Build { size: 32, ..build };
    for build in builds().map(small) {
        both_ways(CONFIG, |rack| {
            let mut talk = Talk::new(rack);
            let mut vm = Vm::new(rack, "m", &build);
            let there = Bay::new(rack, "n", 1);
            vm.send(&broadcast(3), Offload::NONE);
            rack.settle();
            assert_eq!(place(rack), Place::Port(rack.id("m")));
            vm.guest.log().unwrap();
            let giant = tcp4(20_000, 1448, 0);
            let mut changed = 0;
            for round in 0..8 {
                (0..round).for_each(|_| vm.send(&unicast(3, 1), Offload::NONE));
                talk.call_out();
                vm.send(&giant.frame, giant.work);
                changed += is_logged(rack, &vm);
                talk.clear();
                talk.beat(rack);
                vm.take();
            }
            assert!(changed >= 24, "{changed} pages: both used rings and a frame each time");
            // Over: the guest is paused there, and goes on here.
            vm.guest.stop_pair(0).unwrap();
            vm.guest.end_log().unwrap();
            vm.bay.attach(rack, 0);
            (0..5).for_each(|_| vm.send(&unicast(3, 1), Offload::NONE));
            talk.beat(rack);
            vm.guest.reconnect(there.dial()).unwrap();
            let before = rack.stats("n").rx_frames;
            there.attach(rack, 1);
            assert_eq!(rack.stats("n").rx_frames, before + 5);
            let old = std::mem::replace(&mut vm.bay, there);
            old.until("end", |status| !status.connected);
            vm.guest.send_rarp(mac(3)).unwrap();
            rack.settle();
            assert_eq!(rack.stats("n").rx_frames, before + 6, "the announcement\n{rack:?}");
            assert_eq!(place(rack), Place::Port(rack.id("n")));
            talk.clear();
            lives(rack, &mut talk, &vm, "n");
            assert_eq!(old.status().resets + vm.bay.status().resets, 0);
            drop(talk.end(rack));
        });
    }
}

/// Where the switch thinks host 3 is.
fn place(rack: &Rack) -> Place {
    let entries = rack.fdb("br0");
    entries.iter().find(|entry| entry.station.mac == mac(3)).expect("it is known").place
}

/// The announcement alone moves the station, before the guest says anything.
#[test]
fn an_announcement_moves_the_station() {
    both_ways(CONFIG, |rack| {
        let talk = Talk::new(rack);
        let old = Vm::new(rack, "m", &Build::of(ALL));
        old.send(&broadcast(3), Offload::NONE);
        rack.settle();
        let new = Vm::new(rack, "n", &Build::of(ALL).packed());
        assert_eq!(place(rack), Place::Port(rack.id("m")));
        new.guest.send_rarp(mac(3)).unwrap();
        rack.settle();
        assert_eq!(place(rack), Place::Port(rack.id("n")));
        let rarp = old.take().pop().expect("all hear of it").bytes;
        assert_eq!(
            (rarp.len(), &rarp[..6], &rarp[6..12], &rarp[12..14]),
            (60, &[0xff; 6][..], &mac(3).0[..], &[0x80, 0x35][..])
        );
        talk.clear();
        drop(talk.end(rack));
    });
}
