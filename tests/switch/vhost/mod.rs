//! VMs on vhost-user ports in the whole switch, in shared memory: sessions and rings are the real ones on both sides, and
//! only the hypervisor is missing.

mod giants;
mod hostile;
mod life;
mod offload;
mod queues;
mod talk;
mod tunnel;
mod vm;

use std::collections::BTreeMap;

use dataplane::port::Offloads;
use dataplane::port::memory::Delivered;
use encap::offload::Offload;

use self::vm::Vm;
use crate::rack::Rack;

/// What a card takes that takes everything.
const ALL: Offloads = Offloads { csum: true, tso: true, uso: true };

/// Everything that comes out, by port.
type All = BTreeMap<String, Vec<Delivered>>;

/// VMs by the names of their ports.
type Vms = BTreeMap<&'static str, Vm>;

/// Gives a port a cable to what takes such frames.
fn offload(rack: &mut Rack, port: &str, takes: Offloads) {
    rack.plug(port, |mut port| {
        port.set_offloads(takes);
        Box::new(port)
    });
}

/// What came out of cables and to VMs.
#[track_caller]
fn drain(rack: &mut Rack, vms: &Vms) -> All {
    let mut out = rack.drain();
    for (port, vm) in vms {
        let frames = vm.take();
        if !frames.is_empty() {
            out.insert((*port).to_owned(), frames);
        }
    }
    out
}

/// Sends a frame of a VM; all that comes of it.
#[track_caller]
fn send(rack: &mut Rack, vms: &Vms, from: &str, frame: &[u8], work: Offload) -> All {
    vms[from].send(frame, work);
    rack.settle();
    drain(rack, vms)
}

/// A frame on which nothing is left to do.
fn plain(bytes: &[u8]) -> Delivered {
    Delivered { bytes: bytes.to_vec(), offload: Offload::NONE }
}
