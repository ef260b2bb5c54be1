//! Guests with several queue pairs: every flow by one of them, in order, while the guest enables more of them or fewer.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::poller::Caches;
use dataplane::switch::SwitchConfig;
use encap::offload::Offload;
use flowtable::action::DropReason;
use proptest::prelude::*;

use super::vm::{ALL, Bay, Build, Vm};
use crate::frames::{broadcast, mac, udp};
use crate::rack::Rack;

/// Pairs of each guest.
const PAIRS: u16 = 4;
/// Flows of each guest.
const FLOWS: u16 = 32;

/// `c` is a cable.
const CONFIG: &str = r#"
    [[bridge]]
    name = "br0"
    port = [{ name = "a" }, { name = "b" }, { name = "c" }]
"#;

/// The next number of each flow, by sender.
type Numbers = BTreeMap<(u8, u16), u16>;

/// Guests of four pairs at `a` and `b`, hosts 1 and 2, one with split rings and one with packed ones, and their pollers.
struct Lab {
    rack: Rack,
    vms: [Vm; 2],
    sent: Numbers,
    taken: Numbers,
}

impl Lab {
    fn new(caches: Caches, cores: &[usize]) -> Lab {
        let config = SwitchConfig { caches, cores: vec![0, 1, 2], ..SwitchConfig::default() };
        let mut rack = Rack::with(CONFIG, config);
        let mut vm = |name, build: &Build| {
            let mut bay = Bay::new(&mut rack, name, PAIRS);
            bay.cores = cores.iter().map(|core| Some(*core)).collect();
            bay.boot(&mut rack, build)
        };
        let build = Build { size: 256, ..Build::of(ALL).pairs(PAIRS) };
        let vms = [vm("a", &build), vm("b", &build.clone().packed())];
        let mut lab = Lab { rack, vms, sent: Numbers::new(), taken: Numbers::new() };
        lab.announce();
        lab
    }

    /// The switch learns where the guests are.
    fn announce(&mut self) {
        for (vm, host) in self.vms.iter().zip(1..) {
            vm.send(&broadcast(host), Offload::NONE);
            self.rack.settle();
        }
        self.vms.iter().for_each(|vm| drop(vm.take()));
        self.rack.drain();
    }

    /// The next frame of a flow of host 1 or 2 to the other, which goes by the pair that the guest has the flow at.
    fn send(&mut self, host: u8, flow: u16, pairs: u16) {
        let number = self.sent.entry((host, flow)).or_default();
        let [[a, b], [c, d]] = [flow, *number].map(u16::to_be_bytes);
        let ends = ((mac(host), 4000 + flow), (mac(3 - host), 53));
        let frame = udp(ends.0, ends.1, &[&[0; 16][..], &[host, a, b, c, d]].concat());
        let pair = usize::from(flow % pairs);
        assert!(self.vms[usize::from(host) - 1].send_by(pair, &frame, Offload::NONE), "the ring is full");
        *number += 1;
    }

    /// All that came, each flow by one pair and in order; which.
    #[track_caller]
    fn take(&mut self) -> BTreeMap<(u8, u16), usize> {
        let mut by = BTreeMap::new();
        for (vm, pair) in self.vms.iter().flat_map(|vm| (0..usize::from(PAIRS)).map(move |pair| (vm, pair))) {
            for frame in vm.take_by(pair) {
                let [host, a, b, c, d] = *frame.bytes.last_chunk().unwrap();
                let flow = (host, u16::from_be_bytes([a, b]));
                assert_eq!(*by.entry(flow).or_insert(pair), pair, "flow {flow:?} by one pair");
                let next = self.taken.entry(flow).or_default();
                assert_eq!(*next, u16::from_be_bytes([c, d]), "flow {flow:?} in order\n{:?}", self.rack);
                *next += 1;
            }
        }
        by
    }

    /// The guest of a port uses so many of its pairs from now on, as `ethtool -L` has it; `between` happens before the switch
    /// took notice.
    fn use_pairs(&mut self, vm: usize, (old, new): (u16, u16), between: impl FnOnce(&mut Lab)) {
        for pair in usize::from(new)..usize::from(old) {
            self.vms[vm].guest.disable(pair).unwrap();
        }
        for pair in usize::from(old)..usize::from(new) {
            self.vms[vm].guest.enable(pair).unwrap();
        }
        between(self);
        let bay = &self.vms[vm].bay;
        bay.attach(&mut self.rack, new);
    }

    fn end(self) {
        let Lab { rack, vms, sent, taken } = self;
        assert_eq!(sent, taken, "every frame\n{rack:?}");
        rack.audit();
        drop(vms);
        rack.outcome();
    }
}

#[test]
fn flows_are_spread_over_the_pairs_of_a_guest_and_keep_theirs() {
    for caches in [Caches::On, Caches::Off] {
        for cores in [[0; 4], [0, 1, 0, 1], [2, 1, 0, 0], [1, 2, 2, 2]] {
            let mut lab = Lab::new(caches, &cores);
            let mut flows = BTreeMap::new();
            for _ in 0..6 {
                for flow in 0..FLOWS {
                    lab.send(1, flow, PAIRS);
                    lab.send(2, flow, PAIRS);
                }
                lab.rack.settle();
                for (flow, pair) in lab.take() {
                    assert_eq!(*flows.entry(flow).or_insert(pair), pair, "and stays so");
                }
            }
            // A poller spreads over its own pairs if it has any: those flows that come in there.
            let used: BTreeSet<usize> = flows.values().copied().collect();
            assert_eq!(used, (0..usize::from(PAIRS)).collect(), "{cores:?}");
            lab.end();
        }
    }
}

#[test]
fn a_guest_with_fewer_pairs_than_the_port_has_is_served() {
    let mut rack = Rack::new(CONFIG, Caches::On);
    let vm = Bay::new(&mut rack, "a", 16).boot(&mut rack, &Build::of(ALL).pairs(2));
    vm.send(&broadcast(1), Offload::NONE);
    rack.settle();
    assert_eq!(rack.drain().len(), 2);
    assert!(rack.cable("b").inject(&broadcast(2)));
    rack.settle();
    assert_eq!(vm.take().len(), 1);
    rack.audit();
}

#[derive(Debug, Clone)]
enum Step {
    /// Frames of flows of host 1 or 2.
    Send(Vec<(u8, u16)>),
    /// Turns of pollers.
    Turn(Vec<usize>),
    /// Guests take what has come.
    Take,
    /// A guest uses so many pairs.
    Pairs(usize, u16),
    /// A queue of a port moves to another poller.
    Place(usize, u16, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let flow = (1..3u8, 0..FLOWS);
    prop_oneof![
        4 => prop::collection::vec(flow, 1..40).prop_map(Step::Send),
        2 => prop::collection::vec(0..3usize, 1..6).prop_map(Step::Turn),
        2 => Just(Step::Take),
        1 => (0..2usize, 1..=PAIRS).prop_map(|(vm, pairs)| Step::Pairs(vm, pairs)),
        1 => (0..2usize, 0..PAIRS, 0..3usize).prop_map(|(vm, queue, core)| Step::Place(vm, queue, core)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// No frame is lost, none overtakes another of its flow, while pairs come and go and queues move: when the guests are
    /// quiet in that moment, as `ethtool -L` sees to.
    #[test]
    fn pairs_come_and_go_while_frames_flow(steps in prop::collection::vec(step(), 1..40)) {
        let mut lab = Lab::new(Caches::On, &[0, 1, 2, 0]);
        let mut pairs = [PAIRS; 2];
        for step in steps {
            match step {
                Step::Send(flows) => flows.iter().for_each(|(host, flow)| {
                    lab.send(*host, *flow, pairs[usize::from(*host) - 1]);
                }),
                Step::Turn(pollers) => pollers.iter().for_each(|poller| _ = lab.rack.turn(*poller)),
                Step::Take => {
                    lab.rack.settle();
                    lab.take();
                }
                Step::Pairs(vm, new) => {
                    lab.rack.settle();
                    lab.take();
                    lab.use_pairs(vm, (pairs[vm], new), |_| ());
                    pairs[vm] = new;
                }
                Step::Place(vm, queue, core) => {
                    // What another poller sends goes by other pairs, and between pairs there is no order.
                    lab.rack.settle();
                    lab.take();
                    let port = lab.rack.id(["a", "b"][vm]);
                    let placed = lab.rack.switch.place(port, queue, core);
                    prop_assert_eq!(placed.is_ok(), queue < pairs[vm]);
                    lab.rack.settle();
                    lab.take();
                }
            }
        }
        lab.rack.settle();
        lab.take();
        lab.end();
    }
}

/// What a guest sends while its queues change waits in its rings, of a pair that it no longer uses until it uses it again. What
/// others send to it meanwhile is lost, and counted, until control has attached its queues.
#[test]
fn what_is_sent_while_pairs_change_waits_or_is_counted() {
    for caches in [Caches::On, Caches::Off] {
        let mut lab = Lab::new(caches, &[0, 1, 2, 0]);
        for (old, new) in [(4, 2), (2, 1), (1, 4), (4, 1), (1, 3), (3, 4)] {
            let before = lab.rack.stats("a");
            lab.use_pairs(0, (old, new), |lab| {
                for flow in 0..FLOWS {
                    // By pairs of before, some of which are disabled by now.
                    lab.send(1, flow, old);
                    lab.send(2, flow, PAIRS);
                }
                lab.rack.settle();
            });
            let after = lab.rack.stats("a");
            let lost = after.dropped(DropReason::TxFull) - before.dropped(DropReason::TxFull);
            assert_eq!((lost, after.tx_frames), (FLOWS.into(), before.tx_frames), "{:?}", lab.rack);
            let numbers = lab.sent.iter().filter(|((host, _), _)| *host == 2);
            lab.taken.extend(numbers.map(|(flow, number)| (*flow, *number)));
            // With all pairs in use again, what waits comes out.
            lab.use_pairs(0, (new, PAIRS), |_| ());
            lab.rack.settle();
            lab.take();
            lab.use_pairs(0, (PAIRS, new), |_| ());
        }
        lab.end();
    }
}
