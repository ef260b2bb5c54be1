//! What a hostile guest does to its rings.

use dataplane::virtio::driver::DriverRing;
use dataplane::virtio::driver::frontend::Frontend;
use dataplane::virtio::driver::queue::Queue;
use dataplane::virtio::driver::user::lock;
use dataplane::virtio::features::Features;
use dataplane::virtio::layout::{AVAIL, Descriptor, INDIRECT, NEXT, PackedDescriptor, WRITE};

use crate::driven::SIZE;

/// Which ring of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one the guest receives by.
    Receive,
    /// The one it sends by.
    Transmit,
}

/// How a ring is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// Every descriptor of the ring becomes this one; `next` of split rings.
    Descriptors { addr: Address, len: u32, flags: u16, next: Next },
    /// A table of two descriptors with these flags, and of this many bytes.
    Table { flags: u16, bytes: u32 },
    /// Split rings: the available index goes this far.
    Jump(u16),
    /// Split rings: chains begin at a descriptor that is none.
    Heads(u16),
}

/// Where a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Where the rings are.
    Inside,
    /// Where nothing is, or half of it.
    At(u64),
}

/// Where a chain goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At the same descriptor.
    Same,
    /// At this one.
    To(u16),
}

/// A breach and what the switch says of it.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    pub name: &'static str,
    pub breach: Breach,
    pub says: &'static str,
}

const fn descriptors(
    name: &'static str,
    (addr, len): (Address, u32),
    flags: u16,
    says: &'static str,
) -> Attack {
    Attack { name, breach: Breach::Descriptors { addr, len, flags, next: Next::Same }, says }
}

const OUTSIDE: &str = "outside the guest's memory";

/// Of both formats.
const ATTACKS: [Attack; 11] = [
    descriptors("address outside", (Address::At(0xdead_0000), 2048), 0, OUTSIDE),
    descriptors("address that wraps", (Address::At(u64::MAX - 7), 2048), 0, OUTSIDE),
    descriptors("address 0", (Address::At(0), 2048), 0, OUTSIDE),
    descriptors("chain that loops", (Address::Inside, 1), NEXT, "longer than its ring"),
    descriptors("wrong direction", (Address::Inside, 2048), WRITE, "wrong direction"),
    descriptors("odd indirect table", (Address::Inside, 17), INDIRECT, "indirect descriptor of 17"),
    descriptors("empty indirect table", (Address::Inside, 0), INDIRECT, "indirect descriptor of 0"),
    descriptors("huge indirect table", (Address::Inside, 0xffff_fff0), INDIRECT, ""),
    descriptors("indirect table outside", (Address::At(0xdead_0000), 32), INDIRECT, OUTSIDE),
    Attack {
        name: "nested indirect table",
        breach: Breach::Table { flags: INDIRECT, bytes: 32 },
        says: "indirect descriptor",
    },
    descriptors("indirect amid a chain", (Address::Inside, 32), INDIRECT | NEXT, "indirect descriptor"),
];

/// Of split rings only.
const SPLIT_ATTACKS: [Attack; 5] = [
    Attack { name: "index that jumps", breach: Breach::Jump(SIZE + 7), says: "available index jumped" },
    // Behind all that the switch may have taken, whether it has looked at the ring before or not.
    Attack {
        name: "index that goes back",
        breach: Breach::Jump((SIZE + 1).wrapping_neg()),
        says: "available index jumped",
    },
    Attack { name: "head that is none", breach: Breach::Heads(SIZE), says: "descriptor 256 of 256" },
    Attack {
        name: "next that is none",
        breach: Breach::Descriptors { addr: Address::Inside, len: 1, flags: NEXT, next: Next::To(u16::MAX) },
        says: "descriptor 65535 of 256",
    },
    Attack {
        name: "indirect table that loops",
        breach: Breach::Table { flags: NEXT, bytes: 32 },
        says: "longer than its ring",
    },
];

/// All that rings of this format can be broken by.
pub fn attacks(features: Features) -> Vec<Attack> {
    let split = if features.has(Features::RING_PACKED) { &[][..] } else { &SPLIT_ATTACKS };
    ATTACKS.iter().chain(split).copied().collect()
}

impl Attack {
    /// Breaks one ring of a guest that runs.
    pub fn play(&self, guest: &Frontend, side: Side) {
        let pair = lock(&guest.pairs()[0]);
        let queue = if side == Side::Receive { &pair.receive } else { &pair.transmit };
        match self.breach {
            Breach::Descriptors { addr, len, flags, next } => {
                let inside = queue.ring.places().descriptors;
                let addr = if let Address::At(addr) = addr { addr } else { inside };
                overwrite(queue, side, |place| Descriptor {
                    addr,
                    len,
                    flags,
                    next: if let Next::To(next) = next { next } else { place },
                });
            }
            Breach::Table { flags, bytes } => {
                let addr = table(queue, flags | writable(side));
                overwrite(queue, side, |_| Descriptor { addr, len: bytes, flags: INDIRECT, next: 0 });
            }
            Breach::Jump(by) => {
                let raw = queue.ring.raw();
                raw.set_available_index(raw.available_index().wrapping_add(by));
            }
            Breach::Heads(head) => {
                (0..SIZE).for_each(|place| queue.ring.raw().set_available(place, head));
                offer_one(queue, side);
            }
        }
        queue.ring_bell();
    }
}

fn writable(side: Side) -> u16 {
    if side == Side::Receive { WRITE } else { 0 }
}

/// Two descriptors that refer to themselves, in either format (`flags` and `next`, or `id` and `flags`).
fn table(queue: &Queue, flags: u16) -> u64 {
    let at = queue.memory().take(32, 16).expect("room for a table");
    let shift = if matches!(queue.ring, DriverRing::Split(_)) { 32 } else { 48 };
    for place in [0, 16] {
        let words = [at, u64::from(flags) << shift | 16];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        queue.memory().write(at + place, &bytes);
    }
    at
}

/// All descriptors of the ring become hostile; of the receive ring all are with the device, of the other one is offered.
fn overwrite(queue: &Queue, side: Side, hostile: impl Fn(u16) -> Descriptor) {
    let raw = queue.ring.raw();
    for place in 0..SIZE {
        let Descriptor { addr, len, flags, next } = hostile(place);
        let flags = flags ^ writable(side);
        match &queue.ring {
            DriverRing::Split(_) => raw.set_descriptor(place, Descriptor { addr, len, flags, next }),
            DriverRing::Packed(_) => {
                raw.set_packed(place, PackedDescriptor { addr, len, id: place, flags: flags | AVAIL });
            }
        }
    }
    if matches!(queue.ring, DriverRing::Split(_)) {
        offer_one(queue, side);
    }
}

fn offer_one(queue: &Queue, side: Side) {
    let raw = queue.ring.raw();
    if side == Side::Transmit {
        raw.set_available_index(raw.available_index().wrapping_add(1));
    }
}
