//! A driver, and devices that are killed one after the other.

mod resumed;

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::super::*;
use super::at;
use crate::port::vhost::chain::Direction;
use crate::port::vhost::memory::Region;
use crate::virtio::driver::memory::SharedMemory;
use crate::virtio::driver::{Buffer, DriverRing, Form, Shape, Token};

/// What a device says that it wrote.
const WRITTEN: u32 = 7;

struct History {
    memory: SharedMemory,
    guest: Arc<GuestMemory>,
    driver: DriverRing,
    device: Packed,
    buffers: u64,
    /// Chains that the driver has not got back, and those of them that are to come empty.
    sent: VecDeque<(Token, bool)>,
    /// Chains made, and chains that devices are done with.
    made: u32,
    done: u32,
    back: u32,
}

impl History {
    fn new(size: u16, features: Features) -> History {
        let memory = SharedMemory::of_len(1 << 20).unwrap();
        let regions = memory
            .regions()
            .iter()
            .map(|region| Region::map(region.file().try_clone().unwrap(), region.spec()));
        let guest = Arc::new(GuestMemory::new(regions.collect::<Result<_, _>>().unwrap()).unwrap());
        let features = features | Features::RING_PACKED;
        let driver = DriverRing::new(&memory, Shape { size, table: 4, features }).unwrap();
        let buffers = memory.take(4096, 16).unwrap();
        let device = start(&memory, &guest, &driver, at(0, size));
        History { memory, guest, driver, device, buffers, sent: VecDeque::new(), made: 0, done: 0, back: 0 }
    }

    /// Makes a chain available, if there is room.
    fn make(&mut self, len: u8, form: Form) {
        let chain: Vec<_> = (0..u64::from(len)).map(|n| Buffer::write(self.buffers + 64 * n, 64)).collect();
        if let Ok(token) = self.driver.add(&chain, form) {
            self.driver.publish();
            self.sent.push_back((token, false));
            self.made += 1;
        }
    }

    /// Takes back what was used: in order, once, and written unless it was lost.
    fn collect(&mut self) {
        while let Some(used) = self.driver.used() {
            let (token, is_empty) = self.sent.pop_front().expect("a chain that is out");
            assert_eq!((used.token, used.written == 0), (token, is_empty));
            self.back += 1;
        }
        assert!(self.back <= self.done);
    }

    /// The device uses some chains, and has not shown that. Returns the slots of each.
    fn use_some(&mut self, most: u32) -> Vec<u16> {
        let mut pieces = Pieces::new(Arc::clone(&self.guest), Direction::ToGuest);
        let mut slots = Vec::new();
        for _ in 0..most {
            pieces.begin(0);
            let Some(chain) = self.device.walk(&mut self.device.cursor(), &mut pieces).unwrap() else {
                break;
            };
            self.device.give_back(chain, WRITTEN);
            slots.push(chain.slots);
        }
        slots
    }

    fn serve(&mut self, most: u32) {
        self.done += self.use_some(most).len() as u32;
        self.device.publish(None);
    }

    /// Is killed with so many chains given back and not shown, and after it several that die while they look for its place.
    fn kill_with(&mut self, given: u32, base: u32, tries: &[u32]) {
        let (begun, size) = (self.done, self.device.size);
        let given = self.use_some(given).len() as u32;
        // One store less than chains: the first is in nobody's sight.
        let unshown = if given > 1 { given } else { 0 };
        self.done += unshown;
        for n in begun..self.done {
            self.sent[(n - self.back) as usize].1 = true;
        }
        let base = self.stale(base, begun);
        for &stores in tries {
            self.device = start(&self.memory, &self.guest, &self.driver, at(begun, size));
            for _ in 0..unshown.min(stores) {
                let id = self.device.descriptor(self.device.next.index).id;
                self.device.give_back(Chain { id, slots: 1, len: 0 }, 0);
            }
        }
        self.device = start(&self.memory, &self.guest, &self.driver, at(base, size));
        self.device.find_place(None);
        assert_eq!(
            self.device.next,
            at(self.done, size),
            "base {base}, killed at {begun}, {unshown} unshown"
        );
    }

    /// The base, or if it might be right as far as anyone knows, the right one.
    fn stale(&self, base: u32, right: u32) -> u32 {
        let rounds = 2 * u32::from(self.device.size);
        let further = (base % rounds + rounds - self.done % rounds) % rounds;
        let most = if self.device.in_order { self.made - self.done } else { 1.min(self.made - self.done) };
        if further <= most { right } else { base }
    }

    /// A last device uses the rest, and each chain has come back.
    fn finish(&mut self) {
        while self.back < self.made {
            self.serve(u32::MAX);
            self.collect();
        }
        assert!(self.sent.is_empty() && self.driver.is_idle());
    }
}

fn start(memory: &SharedMemory, guest: &GuestMemory, driver: &DriverRing, base: Place) -> Packed {
    let (places, Shape { size, features, .. }) = (driver.places(), driver.shape());
    let user = |guest| memory.user_of(guest).unwrap();
    let (descriptors, used) = (user(places.descriptors), user(places.device));
    let parts = Parts { descriptors, available: user(places.driver), used, log: None };
    Packed::start(guest, parts, (size, base), features).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Make(u8, Form),
    Collect,
    Serve(u32),
    /// Chains given back before, the base, and stores of those that die, too.
    Kill(u32, u32, Vec<u32>),
}

fn step(form: impl Strategy<Value = (u8, Form)>) -> impl Strategy<Value = Step> {
    let base = prop_oneof![Just(0u32), any::<u32>()];
    prop_oneof![
        8 => form.prop_map(|(len, form)| Step::Make(len, form)),
        2 => Just(Step::Collect),
        3 => (0u32..40).prop_map(Step::Serve),
        1 => (0u32..40, base, prop::collection::vec(0u32..40, 0..3)).prop_map(|(given, base, tries)| {
            Step::Kill(given, base, tries)
        }),
    ]
}

fn features() -> impl Strategy<Value = Features> {
    prop_oneof![Just(Features::EVENT_IDX), Just(Features::IN_ORDER)]
}

fn one_slot() -> impl Strategy<Value = (u8, Form)> {
    prop_oneof![Just((1, Form::Direct)), (1u8..4).prop_map(|len| (len, Form::Indirect))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever store was the last, and wherever the frontend says that it was.
    #[test]
    fn each_chain_of_one_place_comes_back_once_and_in_order(
        size in 2u32..7, features in features(), steps in prop::collection::vec(step(one_slot()), 0..400),
    ) {
        let mut history = History::new(1 << size, features);
        for step in steps {
            match step {
                Step::Make(len, form) => history.make(len, form),
                Step::Collect => history.collect(),
                Step::Serve(most) => history.serve(most),
                Step::Kill(given, base, tries) => history.kill_with(given, base, &tries),
            }
        }
        history.finish();
    }

    /// Between batches the base is never doubted. Amid one, only if the ring is right.
    #[test]
    fn a_right_base_counts_whatever_the_chains(
        size in 1u32..7, features in features(),
        steps in prop::collection::vec(step((1u8..4, Just(Form::Direct))), 0..300), last in 0u32..5,
    ) {
        let mut history = History::new(1 << size, features);
        for step in steps {
            match step {
                Step::Make(len, form) => history.make(len, form),
                Step::Collect => history.collect(),
                Step::Serve(most) => history.serve(most),
                Step::Kill(..) => {
                    let base = history.device.next;
                    history.device = start(&history.memory, &history.guest, &history.driver, base);
                    history.device.find_place(None);
                    prop_assert_eq!(history.device.next, base);
                }
            }
        }
        let base = history.device.next;
        let slots = history.use_some(last);
        let end = history.device.next;
        history.device = start(&history.memory, &history.guest, &history.driver, base);
        history.device.find_place(None);
        let next = history.device.next;
        prop_assert!(next == base || next == end && slots.len() > 1 && slots.iter().all(|&slots| slots == 1));
    }
}
