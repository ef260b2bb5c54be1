//! DPDK's driver at the other end, in every shape of its rings: every byte of every frame, and a load that loses nothing.

use std::path::PathBuf;
use std::time::Instant;

use crate::rig::{Room, SLOWLY, assert_balance, count, port};
use crate::support::daemon::Daemon;
use crate::support::dpdk::{Card, Shape, Testpmd, write_capture};
use crate::support::frames::{mac, udp};
use crate::support::lab::{Seat, within};

/// Frames in a test.
const FRAMES: u32 = 3000;
/// Every how many frames one may be a jumbo, where buffers are mergeable.
const JUMBOS: u32 = 12;
/// Descriptors of the sender's rings and, for each queue, of the receiver's.
///
/// However slow the switch is, there is room in the receiver's rings. By one queue: testpmd sends no burst of 32
/// before it has room for the last one, and takes 32 buffers whenever it sends; so 64 + 2 * 32 frames are under way,
/// and what jumbos need more than one buffer of 2 KiB for is 500. By several queues, whose flows may all arrive by one of
/// them: there is room for all frames at once.
const SENDER: u16 = 64;
const RECEIVER: u16 = 1024;
/// Without FCS.
const SHORTEST: u64 = 60;
const USUAL: u16 = 1514;
const JUMBO: u16 = 9014;
/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 42;

/// How the driver lays out its rings, and what its log calls that.
struct Path {
    /// Properties of virtio-user.
    properties: &'static str,
    /// Part of what it logs about its receive function.
    says: &'static str,
    longest: u16,
}

/// Of the driver's receive functions each; the vectors of packed rings need AVX-512 and no mergeable buffers, those of
/// split rings no order either (DPDK's guide to virtio, "Virtio paths Selection and Usage").
const PATHS: [Path; 9] = [
    Path { properties: "mrg_rxbuf=0,in_order=0", says: "standard Rx path", longest: USUAL },
    Path { properties: "mrg_rxbuf=1,in_order=0", says: "mergeable buffer Rx path", longest: JUMBO },
    Path { properties: "mrg_rxbuf=0,in_order=1", says: "inorder Rx path", longest: USUAL },
    Path { properties: "mrg_rxbuf=1,in_order=1", says: "inorder Rx path", longest: JUMBO },
    Path { properties: "mrg_rxbuf=0,in_order=0,vectorized=1", says: "vectorized Rx path", longest: USUAL },
    Path {
        properties: "packed_vq=1,mrg_rxbuf=0,in_order=0",
        says: "packed ring standard Rx path",
        longest: USUAL,
    },
    Path {
        properties: "packed_vq=1,mrg_rxbuf=1,in_order=0",
        says: "packed ring mergeable buffer Rx path",
        longest: JUMBO,
    },
    Path {
        properties: "packed_vq=1,mrg_rxbuf=1,in_order=1",
        says: "packed ring mergeable buffer Rx path",
        longest: JUMBO,
    },
    Path {
        properties: "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
        says: "packed ring vectorized Rx path",
        longest: USUAL,
    },
];

/// Who makes the sockets.
#[derive(Debug, Clone, Copy)]
enum Role {
    /// testpmd does.
    Client,
    /// The switch does.
    Server,
}

/// A switch with two ports, and a card of testpmd's at each.
struct Bench {
    room: Room,
    daemon: Daemon,
    cards: [Card; 2],
}

impl Bench {
    fn new(role: Role, shape: Shape, properties: &str) -> Bench {
        let room = Room::new(0);
        let sockets = ["vm1", "vm2"].map(|name| match role {
            Role::Client => room.listening(name),
            Role::Server => room.connecting(name),
        });
        let settings = format!("queues = {}; mtu = {}", shape.queues, shape.longest - 14);
        let ports = [0, 1].map(|i| port(&sockets[i], &settings));
        let daemon = room.start(&[&ports[0], &ports[1]]);
        let [first, second] = sockets;
        let card = |socket, size| Card { socket, size, properties: properties.into() };
        let receiver = RECEIVER * u16::from(shape.queues);
        Bench { room, daemon, cards: [card(first, SENDER), card(second, receiver)] }
    }

    fn await_up(&self, queues: u8) {
        for name in ["vm1", "vm2"] {
            within(SLOWLY, &format!("{name} has its pairs"), || {
                count(&self.daemon, name, "/vhost/pairs") == u64::from(queues)
            });
        }
    }
}

/// Random bytes (xorshift64*), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Datagrams of one flow, of random length, numbered, the rest random.
fn frames(queue: u8, Shape { queues, longest }: Shape) -> Vec<Vec<u8>> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(queue));
    let one = |number: u32| {
        let longest = if number.is_multiple_of(JUMBOS) { longest } else { USUAL };
        let length = SHORTEST + random.next() % (u64::from(longest) + 1 - SHORTEST);
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend(std::iter::repeat_with(|| random.next() as u8).take(length as usize - HEADERS - 4));
        udp((mac(1), 4000 + u16::from(queue)), (mac(2), 53), &payload)
    };
    (0..FRAMES / u32::from(queues)).map(one).collect()
}

/// The frames of one flow, in the order in which they came, whatever queues they came by.
fn of_flow(arrived: &[Vec<Vec<u8>>], queue: u8) -> Vec<&Vec<u8>> {
    let port = (4000 + u16::from(queue)).to_be_bytes();
    arrived.iter().flatten().filter(|frame| frame.get(34..36) == Some(&port)).collect()
}

/// Sends captures through the switch and compares what comes out.
fn assert_every_byte(role: Role, queues: u8, path: &Path) {
    let what = format!("{role:?}, {queues} queues, {}", path.properties);
    let shape = Shape { queues, longest: path.longest };
    let bench = Bench::new(role, shape, path.properties);
    let sent: Vec<_> = (0..queues).map(|queue| frames(queue, shape)).collect();
    let captures: Vec<PathBuf> = (0..queues).map(|queue| bench.room.path(&format!("in{queue}"))).collect();
    captures.iter().zip(&sent).for_each(|(path, frames)| write_capture(path, frames));

    let mut testpmd = Testpmd::relay(&bench.cards, shape, &captures);
    // Without AVX-512 packed rings have no vectors, and DPDK takes another of these paths.
    let lacks = path.says.contains("packed ring vec") && !std::arch::is_x86_feature_detected!("avx512f");
    assert!(lacks || testpmd.log().contains(path.says), "{what}: no {:?} in:\n{}", path.says, testpmd.log());
    bench.await_up(queues);
    // A frame that its ring has no room for is tried again, for ten seconds.
    testpmd.tell("set burst tx delay 10 retry 1000000");
    testpmd.tell("set fwd io retry");
    testpmd.tell("start");
    let all = u64::from(FRAMES);
    let begun = Instant::now();
    while testpmd.count(2).rx < all {
        let ports = || bench.daemon.ask("port show");
        assert!(begun.elapsed() < SLOWLY, "{what}: {:?} of {all} arrived\n{:#}", testpmd.count(2), ports());
    }
    let arrived = testpmd.finish(queues);
    assert_eq!(arrived.iter().map(Vec::len).sum::<usize>() as u64, all, "{what}: frames nobody sent");
    for (queue, sent) in (0..queues).zip(&sent) {
        let arrived = of_flow(&arrived, queue);
        assert_eq!(arrived.len(), sent.len(), "{what}: frames of queue {queue}");
        let wrong = arrived.iter().zip(sent).position(|(got, sent)| *got != sent);
        assert_eq!(wrong, None, "{what}: the first frame of queue {queue} that differs");
    }
    assert_balance(&bench.daemon);
}

#[test]
fn every_byte_of_every_frame_passes_in_every_shape_of_ring() {
    let Some(_seat) = Seat::take() else { return };
    PATHS.iter().for_each(|path| assert_every_byte(Role::Client, 1, path));
}

#[test]
fn every_byte_of_every_frame_passes_by_sockets_of_the_switch() {
    let Some(_seat) = Seat::take() else { return };
    PATHS.iter().for_each(|path| assert_every_byte(Role::Server, 1, path));
}

#[test]
fn every_byte_of_every_frame_passes_by_four_queues() {
    let Some(_seat) = Seat::take() else { return };
    PATHS.iter().for_each(|path| assert_every_byte(Role::Client, 4, path));
}

/// Frames go round and round, both ways; when they are caught at last, none is missing.
fn assert_no_loss_under_load(queues: u8, properties: &str) {
    let shape = Shape { queues, longest: USUAL };
    let mut bench = Bench::new(Role::Client, shape, properties);
    // Each ring has room for all that goes round one way: 4 bursts of 32 by each queue.
    bench.cards.iter_mut().for_each(|card| card.size = RECEIVER);
    let mut testpmd = Testpmd::mirror(&bench.cards, shape);
    bench.await_up(queues);
    testpmd.tell("start tx_first 4");
    within(SLOWLY, "a hundred thousand frames go round", || testpmd.count(0).rx >= 100_000);
    testpmd.tell("stop");
    testpmd.tell("set fwd rxonly");
    testpmd.tell("start");
    within(SLOWLY, &format!("{properties}, {queues} queues: all frames are caught"), || {
        let [first, second] = [0, 1].map(|port| testpmd.count(port));
        first.rx == second.tx && second.rx == first.tx
    });
    for name in ["vm1", "vm2"] {
        let shown = bench.daemon.port(name);
        assert!(shown["drops"].as_object().is_some_and(|drops| drops.is_empty()), "{shown}");
    }
    assert_balance(&bench.daemon);
}

#[test]
fn frames_that_go_round_and_round_are_never_lost() {
    let Some(_seat) = Seat::take() else { return };
    for queues in [1, 4] {
        for properties in [
            "mrg_rxbuf=1,in_order=0",
            "packed_vq=1,mrg_rxbuf=1,in_order=1",
            "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
        ] {
            assert_no_loss_under_load(queues, properties);
        }
    }
}
