//! A port with several queues: every flow leaves by one of them, in order, and flows are spread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataplane::poller::Caches;
use dataplane::port::Port;
use dataplane::port::memory::{Peer, pair};
use dataplane::switch::SwitchConfig;
use encap::offload::{Gso, Offload};
use proptest::prelude::*;

use crate::THREE;
use crate::frames::{broadcast, mac, partial, tcp, udp, unicast};
use crate::rack::{CABLE, Rack};

/// Queues of port `b`.
const QUEUES: usize = 4;
/// Flows that are spread.
const FLOWS: u16 = 64;

/// Two pollers, `a` at the first and `c` at the second, and four queues of `b`, each where `cores` says.
struct Lab {
    rack: Rack,
    queues: Vec<Peer>,
}

impl Lab {
    fn new(caches: Caches, cores: [usize; QUEUES]) -> Lab {
        let config = SwitchConfig { caches, cores: vec![0, 1], ..SwitchConfig::default() };
        let mut rack = Rack::with(THREE, config);
        let (a, b, c) = (rack.id("a"), rack.id("b"), rack.id("c"));
        let pool = Arc::clone(rack.pollers[0].wires.frames.pool());
        let (ends, queues): (Vec<_>, Vec<_>) = (0..QUEUES).map(|_| pair(&pool, CABLE)).unzip();
        let ends = ends.into_iter().map(|end| Box::new(end) as Box<dyn Port>).collect();
        drop(rack.take_cable("b"));
        rack.switch.attach(b, ends, &cores.map(Some));
        rack.settle();
        rack.switch.place(a, 0, 0).unwrap();
        rack.switch.place(c, 0, 1).unwrap();
        rack.settle();
        let mut lab = Lab { rack, queues };
        assert!(lab.queues[0].inject(&broadcast(2)));
        lab.rack.settle();
        lab.rack.drain();
        lab
    }

    /// Lets all that was injected through; what came out of each queue.
    fn drain(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.rack.settle();
        let bytes = |queue: &mut Peer| queue.drain().into_iter().map(|delivered| delivered.bytes).collect();
        self.queues.iter_mut().map(bytes).collect()
    }

    /// The queue that a frame of `a` leaves by.
    fn queue_of(&mut self, frame: &[u8], work: Offload) -> (usize, usize) {
        assert!(self.rack.cable("a").inject_offload(frame, work));
        let out = self.drain();
        let used: Vec<_> = out.iter().enumerate().filter(|(_, frames)| !frames.is_empty()).collect();
        assert_eq!(used.len(), 1, "by one queue\n{:?}", self.rack);
        (used[0].0, used[0].1.len())
    }

    fn end(self) {
        let Lab { rack, queues } = self;
        rack.audit();
        drop(queues);
        rack.outcome();
    }
}

/// Frame `number` of a flow of port `a` (host 1) or `c` (host 3).
fn frame(host: u8, flow: u16, number: u16) -> Vec<u8> {
    let [[a, b], [c, d]] = [flow, number].map(u16::to_be_bytes);
    udp((mac(host), 4000 + flow), (mac(2), 53), &[b"sixteen byteload", &[host, a, b, c, d][..]].concat())
}

/// What [`frame`] wrote: the flow, and the number.
fn read(frame: &[u8]) -> ((u8, u16), u16) {
    let [host, a, b, c, d] = *frame.last_chunk().unwrap();
    ((host, u16::from_be_bytes([a, b])), u16::from_be_bytes([c, d]))
}

/// Sends frames of flows in any order by `a` and `c`, so many between two turns: each flow leaves by one queue, in order.
/// The queues of each flow.
fn play(lab: &mut Lab, flows: &[(u8, u16)], step: usize) -> BTreeMap<(u8, u16), usize> {
    let mut numbers = BTreeMap::<(u8, u16), u16>::new();
    let (mut queues, mut next) = (BTreeMap::new(), BTreeMap::<(u8, u16), u16>::new());
    let before = lab.rack.stats("b");
    let mut bytes = 0;
    for flows in flows.chunks(step) {
        for &(host, flow) in flows {
            let number = numbers.entry((host, flow)).or_default();
            let frame = frame(host, flow, *number);
            *number += 1;
            bytes += frame.len() as u64;
            assert!(lab.rack.cable(if host == 1 { "a" } else { "c" }).inject(&frame));
        }
        for (queue, frames) in lab.drain().into_iter().enumerate() {
            for (flow, number) in frames.iter().map(|frame| read(frame)) {
                assert_eq!(*queues.entry(flow).or_insert(queue), queue, "flow {flow:?} by one queue");
                assert_eq!(*next.entry(flow).or_default(), number, "flow {flow:?} in order");
                next.insert(flow, number + 1);
            }
        }
    }
    assert_eq!(next, numbers, "every frame");
    let after = lab.rack.stats("b");
    let sent = (after.tx_frames - before.tx_frames, after.tx_bytes - before.tx_bytes);
    assert_eq!(sent, (flows.len() as u64, bytes));
    queues
}

/// All flows of both senders, by turns, so many times.
fn all_flows(times: usize) -> Vec<(u8, u16)> {
    let once = (0..FLOWS).flat_map(|flow| [(1, flow), (3, flow)]);
    std::iter::repeat_n(once, times).flatten().collect()
}

#[test]
fn flows_are_spread_over_the_queues_of_a_poller() {
    for caches in [Caches::On, Caches::Off] {
        for cores in [[0; QUEUES], [1; QUEUES], [0, 1, 0, 1], [0, 1, 1, 1]] {
            let mut lab = Lab::new(caches, cores);
            let queues = play(&mut lab, &all_flows(5), 100);
            for (host, core) in [(1, 0), (3, 1)] {
                let own: Vec<usize> = (0..QUEUES).filter(|queue| cores[*queue] == core).collect();
                let open = if own.is_empty() { (0..QUEUES).collect() } else { own };
                for &queue in &open {
                    let flows = queues.iter().filter(|((h, _), q)| *h == host && **q == queue).count();
                    let even = usize::from(FLOWS) / open.len();
                    assert!(flows > even / 3 && flows < even * 3, "{flows} by queue {queue} at {cores:?}");
                }
                let used: BTreeSet<_> =
                    queues.iter().filter(|((h, _), _)| *h == host).map(|(_, q)| *q).collect();
                assert_eq!(used, open.into_iter().collect(), "those of the sender's poller, at {cores:?}");
            }
            assert_eq!(play(&mut lab, &all_flows(2), 7), queues, "and stays so");
            lab.end();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_flow_keeps_its_queue_and_its_order(
        flows in prop::collection::vec((prop_oneof![Just(1u8), Just(3u8)], 0..8u16), 1..400),
        cores in prop::array::uniform4(0..2usize),
        step in 1..200usize,
    ) {
        let mut lab = Lab::new(Caches::On, cores);
        play(&mut lab, &flows, step);
        lab.end();
    }
}

#[test]
fn queues_that_move_take_their_flows_along() {
    let mut lab = Lab::new(Caches::On, [0; QUEUES]);
    let b = lab.rack.id("b");
    for (queue, core) in [(1, 1), (3, 1), (0, 1), (2, 1), (1, 0), (0, 0)] {
        lab.rack.switch.place(b, queue, core).unwrap();
        lab.rack.settle();
        play(&mut lab, &all_flows(2), 100);
    }
    lab.end();
}

#[test]
fn fragments_leave_by_one_queue() {
    let mut lab = Lab::new(Caches::On, [0; QUEUES]);
    let mut used = BTreeSet::new();
    for host in 10..40 {
        let mut queues = BTreeSet::new();
        // More fragments, at 0; more, at 1480; the last, at 2960. Only the first has ports, which `unicast` writes to all.
        for field in [0x2000_u16, 0x20b9, 0x0172] {
            let mut fragment = unicast(host, 2);
            fragment[20..22].copy_from_slice(&field.to_be_bytes());
            fragment[34] = field as u8;
            queues.insert(lab.queue_of(&fragment, Offload::NONE));
        }
        assert_eq!(queues.len(), 1, "host {host}");
        used.extend(queues);
    }
    assert_eq!(used.len(), QUEUES);
    lab.end();
}

#[test]
fn segments_leave_where_the_whole_frame_does() {
    let mut lab = Lab::new(Caches::On, [0; QUEUES]);
    let mut used = BTreeSet::new();
    for port in 0..40 {
        let segment = tcp((1, 40_000 + port), (2, 80), b"sixteen byteload");
        let (queue, _) = lab.queue_of(&segment, Offload::NONE);
        let (whole, csum) = partial(tcp((1, 40_000 + port), (2, 80), &[7; 5000]), 16);
        let work = Offload { csum, gso: Gso::Tcp4 { mss: 1000 } };
        assert_eq!(lab.queue_of(&whole, work), (queue, 5));
        used.insert(queue);
    }
    assert_eq!(used.len(), QUEUES);
    lab.end();
}
