//! Honest VMs that exchange frames, and notice each that is missing.

use encap::offload::Offload;

use super::vm::{ALL, Build, Vm};
use super::{Vms, plain};
use crate::frames::{broadcast, mac, udp};
use crate::rack::Rack;

/// Frames that each sends at a time: more than a batch.
const BEAT: u16 = 40;

/// Two VMs on ports `x` and `y` of the rack, hosts 1 and 2; one has split rings, the other packed ones.
pub struct Talk {
    vms: [Vm; 2],
    next: u16,
}

impl Talk {
    /// They boot, and the switch knows where they are.
    pub fn new(rack: &mut Rack) -> Talk {
        let vms = [Vm::new(rack, "x", &Build::of(ALL)), Vm::new(rack, "y", &Build::of(ALL).packed())];
        for (vm, host) in vms.iter().zip(1..) {
            vm.send(&broadcast(host), Offload::NONE);
            rack.settle();
        }
        vms.iter().for_each(|vm| drop(vm.take()));
        Talk { vms, next: 0 }
    }

    fn frame(from: u8, to: u8, number: u16) -> Vec<u8> {
        let ends = ((mac(from), 4000 + number % 8), (mac(to), 53));
        udp(ends.0, ends.1, &[&[from; 16][..], &number.to_be_bytes()].concat())
    }

    /// Each sends to the other, and gets all of it in order, besides what is broadcast.
    #[track_caller]
    pub fn beat(&mut self, rack: &mut Rack) {
        let numbers = self.next..self.next + BEAT;
        for number in numbers.clone() {
            self.vms[0].send(&Talk::frame(1, 2, number), Offload::NONE);
            self.vms[1].send(&Talk::frame(2, 1, number), Offload::NONE);
        }
        rack.settle();
        for (vm, (from, to)) in self.vms.iter().zip([(2, 1), (1, 2)]) {
            let ends = [mac(to).0, mac(from).0].concat();
            let got = vm.take().into_iter().filter(|got| got.bytes[..12] == ends);
            let sent = numbers.clone().map(|number| plain(&Talk::frame(from, to, number)));
            assert!(got.eq(sent), "frames for host {to} are missing\n{rack:?}");
        }
        self.next = (self.next + BEAT) % 60_000;
    }

    /// A frame for all, by the first: the second gets it, and those who are not honest have to do something about it.
    #[track_caller]
    pub fn shout(&mut self, rack: &mut Rack) {
        self.vms[0].send(&broadcast(1), Offload::NONE);
        rack.settle();
        assert_eq!(self.vms[1].take().pop(), Some(plain(&broadcast(1))));
    }

    /// The same, which nobody has received yet.
    pub fn call_out(&mut self) {
        self.vms[0].send(&broadcast(1), Offload::NONE);
    }

    /// They take whatever came.
    pub fn clear(&self) {
        self.vms.iter().for_each(|vm| drop(vm.take()));
    }

    /// They were never reset, and nothing of theirs was lost.
    #[track_caller]
    pub fn end(mut self, rack: &mut Rack) -> Vms {
        self.beat(rack);
        let [x, y] = self.vms;
        for (vm, port) in [(&x, "x"), (&y, "y")] {
            let status = vm.bay.status();
            assert_eq!((status.resets, status.connections, status.pairs), (0, 1, 1), "{port}");
            let stats = rack.stats(port);
            assert_eq!(
                (stats.drops.iter().sum::<u64>(), stats.rx_missed, stats.rx_errors),
                (0, 0, 0),
                "{port}"
            );
        }
        rack.audit();
        [("x", x), ("y", y)].into()
    }
}
