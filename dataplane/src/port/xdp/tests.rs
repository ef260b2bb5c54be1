//! AF_XDP ports on veth pairs, each test in a network namespace of its own. Needs root.

#![allow(unsafe_code)]

mod away;
mod bpf;

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use encap::checksum::{self, Sum};
use encap::field::IpProto;
use encap::gso;
use encap::offload::{Csum, Gso, Offload};
use nix::unistd::geteuid;

use self::bpf::{leave_program, tag_beside};
use super::*;
use crate::batch::BATCH;
use crate::frame::{Frame, HEADROOM, Memory, PoolConfig};
use crate::port::rig::{self, FarSide, RawSocket, in_namespace, ip, numbered, wait};

const CONFIG: PoolConfig = PoolConfig { small: 1024, big: 16, memory: Memory::Umem };
const MODES: [Mode; 2] = [Mode::Native, Mode::Generic];

fn pool() -> Arc<FramePool> {
    FramePool::new(CONFIG).unwrap()
}

/// User namespaces will not do: the kernel lets only root load an XDP program.
fn as_root(test: impl FnOnce() + Send) {
    if geteuid().is_root() {
        in_namespace(test);
    } else {
        eprintln!("skipped: needs root");
    }
}

/// A veth pair, both ends up.
fn veth(a: &str, b: &str, queues: u32) {
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    ip(&format!("link add {a} {queues} type veth peer name {b} {queues}"));
    [a, b].iter().for_each(|end| ip(&format!("link set {end} up")));
}

/// What `ip link` says.
fn show(interface: &str) -> String {
    let output = Command::new("ip").args(["-d", "link", "show", "dev", interface]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn request(interface: &str, mode: Option<Mode>) -> Request<'_> {
    Request { interface, queues: 1, mode, patience: PATIENCE }
}

fn error(pool: &Arc<FramePool>, request: Request<'_>) -> OpenError {
    open(pool, request).err().expect("an error")
}

/// A port of one queue, and a stock from its pool.
struct Side {
    port: XdpPort,
    frames: FrameCache,
}

impl Side {
    fn open(interface: &str, mode: Mode) -> Side {
        Side::on(&pool(), interface, mode)
    }

    fn on(pool: &Arc<FramePool>, interface: &str, mode: Mode) -> Side {
        let mut opened = open(pool, request(interface, Some(mode))).unwrap();
        assert_eq!((opened.mode, opened.zero_copy, opened.ports.len()), (mode, false, 1));
        let (port, frames) = (opened.ports.remove(0), FrameCache::new(pool.clone()));
        let mut side = Side { port, frames };
        assert_eq!(side.receive(&[]), None, "stocked, and nothing came");
        side
    }

    fn receive(&mut self, wanted: &[u8]) -> Option<()> {
        rig::receive(&mut self.port, &mut self.frames, |frame| frame == wanted).map(drop)
    }

    fn send(&mut self, bytes: &[u8]) {
        rig::send(&mut self.port, &mut self.frames, bytes, Default::default());
    }

    /// Frames of these lengths arrive and leave whole.
    fn exchanges(&mut self, peer: &str, lengths: &[usize]) {
        let mut far = RawSocket::open(peer);
        for (number, &len) in lengths.iter().enumerate() {
            let frame = numbered(number as u16, len);
            far.send(&frame);
            wait("a frame to arrive", || self.receive(&frame));
            self.send(&frame);
            assert_eq!(wait("a frame to leave", || FarSide::receive(&mut far)), frame);
        }
    }

    /// Everything that was lent comes back.
    fn close(mut self) {
        let pool = self.frames.pool().clone();
        self.port.close(&mut self.frames);
        drop(self);
        rig::wait_for_chunks(&pool);
    }
}

#[test]
fn it_conforms_in_both_modes() {
    for mode in MODES {
        as_root(|| {
            veth("va", "vb", 1);
            let Side { port, frames } = Side::open("va", mode);
            rig::conforms(port, RawSocket::open("vb"), (frames.pool().clone(), frames));
        });
    }
}

#[test]
fn many_frames_go_round_the_rings() {
    as_root(|| {
        veth("va", "vb", 1);
        let (mut side, mut far) = (Side::open("va", Mode::Native), RawSocket::open("vb"));
        for round in 0..100 {
            let numbers = round * BATCH as u16..(round + 1) * BATCH as u16;
            let bytes: Vec<_> = numbers.map(|n| numbered(n, 100)).collect();
            let mut batch: Batch = bytes.iter().map(|b| side.frames.from_bytes(b).unwrap()).collect();
            assert_eq!(side.port.tx(&mut side.frames, &mut batch).unwrap().frames as usize, BATCH);
            assert_eq!(side.receive(&[]), None);
            assert_eq!(side.receive(&[]), None, "who was asked twice holds nothing back");
            bytes
                .iter()
                .for_each(|b| assert_eq!(wait("a frame to leave", || FarSide::receive(&mut far)), *b));
            bytes.iter().for_each(|b| far.send(b));
            wait("the last to arrive", || side.receive(&bytes[BATCH - 1]));
        }
        assert_eq!(side.port.counters(), Counters::default());
        side.close();
    });
}

/// Full batches that go out, one after the other.
fn send_full(side: &mut Side, batches: u16) {
    for batch in 0..batches {
        let numbers = batch * BATCH as u16..(batch + 1) * BATCH as u16;
        let mut batch: Batch = numbers.map(|n| side.frames.from_bytes(&numbered(n, 60)).unwrap()).collect();
        assert_eq!(side.port.tx(&mut side.frames, &mut batch).unwrap().frames as usize, BATCH);
    }
}

/// So many frames, and no more, are at the other end. The kernel brings them there before it returns from sending, as a rule.
#[track_caller]
fn arrived(far: &mut RawSocket, count: usize) {
    let mut got = 0;
    let mut look = || {
        let looks = 2 * 4 * BATCH; // some find what hosts say of themselves
        got += (0..looks).filter_map(|_| FarSide::receive(far)).count();
        got
    };
    wait("what was sent", || (look() >= count).then_some(()));
    assert_eq!(look(), count);
}

#[test]
fn full_batches_leave_together() {
    as_root(|| {
        veth("va", "vb", 1);
        let (mut side, mut far) = (Side::open("va", Mode::Native), RawSocket::open("vb"));
        if !side.port.queue().unwrap().rings().sends_all {
            return eprintln!("skipped: needs Linux 6.17");
        }
        send_full(&mut side, 1);
        arrived(&mut far, 0);
        send_full(&mut side, 1);
        arrived(&mut far, 2 * BATCH);
        send_full(&mut side, 1);
        side.send(&numbered(0, 60));
        arrived(&mut far, BATCH + 1);
        send_full(&mut side, 1);
        assert!(!side.port.arm());
        arrived(&mut far, BATCH);
        send_full(&mut side, 1);
        let pool = side.frames.pool().clone();
        side.port.close(&mut side.frames);
        drop(side);
        rig::wait_for_chunks(&pool);
        arrived(&mut far, BATCH);
    });
}

#[test]
fn a_frame_whose_head_moved_leaves_whole() {
    as_root(|| {
        veth("va", "vb", 1);
        let (mut side, mut far) = (Side::open("va", Mode::Native), RawSocket::open("vb"));
        let moves = [(60, 4, 0), (1510, 4, 0), (1514, 0, 4), (64, 0, 46), (60, HEADROOM, 0), (1200, 200, 4)];
        for (len, push, pull) in moves {
            let mut frame = side.frames.from_bytes(&numbered(1, len)).unwrap();
            frame.push_front(push).unwrap();
            frame.pull_front(pull).unwrap();
            let bytes = numbered(2, frame.len());
            frame.bytes_mut().copy_from_slice(&bytes);
            let mut batch = Batch::from_iter([frame]);
            assert_eq!(side.port.tx(&mut side.frames, &mut batch).unwrap().frames, 1);
            assert_eq!(wait("a frame to leave", || FarSide::receive(&mut far)), bytes);
        }
        side.close();
    });
}

#[test]
fn jumbo_frames_pass_both_ways() {
    for mode in MODES {
        as_root(|| {
            veth("va", "vb", 1);
            ["va", "vb"].iter().for_each(|end| ip(&format!("link set {end} mtu 9000")));
            let mut side = Side::open("va", mode);
            side.exchanges("vb", &[9014, 1792, 1793, 3584, 3585, 60, 8000]);
            side.close();
        });
    }
}

#[test]
fn a_port_can_be_opened_again_at_once() {
    as_root(|| {
        veth("va", "vb", 1);
        let shared = pool();
        for round in 0..20 {
            let pool = if round % 2 == 0 { shared.clone() } else { pool() };
            let mut side = Side::on(&pool, "va", MODES[round / 2 % 2]);
            side.exchanges("vb", &[60 + round]);
            side.close();
        }
    });
}

#[test]
fn the_first_interface_of_a_pool_can_go_before_the_others() {
    as_root(|| {
        ["1", "2", "3"].iter().for_each(|n| veth(&format!("va{n}"), &format!("vb{n}"), 1));
        let pool = pool();
        let mut first = Side::on(&pool, "va1", Mode::Native);
        let mut second = Side::on(&pool, "va2", Mode::Generic);
        first.exchanges("vb1", &[60]);
        first.port.close(&mut first.frames);
        drop(first);
        second.exchanges("vb2", &[60]);
        let mut first = Side::on(&pool, "va1", Mode::Generic);
        first.exchanges("vb1", &[60]);
        // The second now carries the memory for all. It is removed, but not closed yet:
        ip("link del va2");
        let mut third = Side::on(&pool, "va3", Mode::Native);
        third.exchanges("vb3", &[60]);
        first.exchanges("vb1", &[60]);
        for mut side in [second, first, third] {
            side.port.close(&mut side.frames);
        }
        rig::wait_for_chunks(&pool);
        Side::on(&pool, "va1", Mode::Native).close();
    });
}

#[test]
fn two_queues_share_an_interface() {
    as_root(|| {
        veth("va", "vb", 2);
        let pool = pool();
        let Opened { mut ports, mode, .. } =
            open(&pool, Request { queues: 2, ..request("va", None) }).unwrap();
        assert_eq!((ports.len(), mode), (2, Mode::Native));
        let (mut frames, mut far) = (FrameCache::new(pool.clone()), RawSocket::open("vb"));
        let mut got = [0; 2];
        let mut batch = Batch::new();
        ports.iter_mut().for_each(|p| p.rx(&mut frames, &mut batch).unwrap());
        (0..64).for_each(|flow| {
            far.send(&rig::udp_with_partial_csum(encap::field::MacAddr([2; 6]), flow, b"").0)
        });
        wait("frames on both queues", || {
            for (port, got) in ports.iter_mut().zip(&mut got) {
                port.rx(&mut frames, &mut batch).unwrap();
                *got += batch.len();
                batch.drain(..).for_each(|f| frames.free(f));
            }
            (got[0] + got[1] == 64 && got[0] * got[1] > 0).then_some(())
        });
        for port in &mut ports {
            rig::send(port, &mut frames, &numbered(7, 60), Default::default());
            assert_eq!(wait("a frame to leave", || FarSide::receive(&mut far)), numbered(7, 60));
        }
        ports.iter_mut().for_each(|p| p.close(&mut frames));
        drop((ports, frames));
        rig::wait_for_chunks(&pool);
    });
}

#[test]
fn a_removed_interface_is_gone() {
    for mode in MODES {
        as_root(|| {
            veth("va", "vb", 1);
            let mut side = Side::open("va", mode);
            side.exchanges("vb", &[60]);
            let far = RawSocket::open("vb");
            (0..100).for_each(|n| far.send(&numbered(n, 100)));
            ip("link del va");
            wait("reception to notice", || {
                let mut batch = Batch::new();
                let error = side.port.rx(&mut side.frames, &mut batch).err();
                batch.drain(..).for_each(|f| side.frames.free(f));
                error
            });
            rig::goes(&mut side.port, &mut side.frames);
            side.close();
        });
    }
}

#[test]
fn an_interface_set_down_is_gone_for_the_sender_too() {
    as_root(|| {
        veth("va", "vb", 1);
        let mut side = Side::open("va", Mode::Native);
        ip("link set va down");
        rig::goes(&mut side.port, &mut side.frames);
        side.close();
    });
}

#[test]
fn a_tag_beside_the_frame_is_put_back() {
    as_root(|| {
        veth("va", "vb", 1);
        tag_beside("vb", 0x600a);
        let (mut side, far) = (Side::open("va", Mode::Native), RawSocket::open("vb"));
        for len in [60, 1514] {
            let mut frame = numbered(1, len);
            far.send(&frame);
            frame.splice(12..12, [0x81, 0x00, 0x60, 0x0a]);
            wait("the frame with its tag", || side.receive(&frame));
        }
        side.close();
    });
}

#[test]
fn a_foreign_program_is_refused_and_stays() {
    for foreign in [libbpf_sys::XDP_FLAGS_DRV_MODE, libbpf_sys::XDP_FLAGS_SKB_MODE] {
        as_root(move || {
            veth("va", "vb", 1);
            leave_program(c"others", "va", foreign);
            let pool = pool();
            for mode in [None, Some(Mode::Native), Some(Mode::Generic)] {
                let error = error(&pool, request("va", mode));
                assert!(matches!(&error, OpenError::Foreign { name, .. } if name == "others"), "{error}");
                assert!(error.to_string().contains("ip link set dev va xdp off"));
            }
            assert!(show("va").contains("name others"));
            ip("link set dev va xdp off");
            ip("link set dev va xdpgeneric off");
            Side::on(&pool, "va", Mode::Native).close();
        });
    }
}

#[test]
fn a_program_that_a_predecessor_left_is_replaced() {
    for left in [libbpf_sys::XDP_FLAGS_DRV_MODE, libbpf_sys::XDP_FLAGS_SKB_MODE] {
        as_root(move || {
            veth("va", "vb", 1);
            leave_program(c"sluice_xsk", "va", left);
            let mut side = Side::open("va", Mode::Native);
            side.exchanges("vb", &[60]);
            side.close();
            assert!(!show("va").contains("prog/xdp"));
        });
    }
}

/// Not a test: what `a_killed_process_leaves_nothing` kills.
#[test]
#[ignore = "run by a_killed_process_leaves_nothing"]
fn child_that_holds_a_port() {
    let _side = Side::open("va", Mode::Native);
    println!("open");
    // Until it is killed, or who started it is gone.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

#[test]
fn a_killed_process_leaves_nothing() {
    as_root(|| {
        veth("va", "vb", 1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "port::xdp::tests::child_that_holds_a_port", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("open")));
        let error = error(&pool(), request("va", None)).to_string();
        assert!(
            error.contains("XDP program sluice_xsk (id ") && error.contains("in use by another process"),
            "{error}"
        );
        child.kill().unwrap();
        let mut side = Side::open("va", Mode::Native); // at once, while the kernel still tidies up
        side.exchanges("vb", &[60]);
        side.close();
        child.wait().unwrap();
        assert!(!show("va").contains("prog/xdp"));
    });
}

#[test]
fn what_is_wrong_is_said() {
    as_root(|| {
        veth("va", "vb", 1);
        let plain = FramePool::new(PoolConfig { memory: Memory::Plain, ..CONFIG }).unwrap();
        let says = |pool: &Arc<FramePool>, request| error(pool, request).to_string();
        assert!(says(&plain, request("va", None)).contains("va: no memory to share with the kernel"));
        assert!(says(&pool(), request("vx", None)).contains("interface vx does not exist"));
        let two = Request { queues: 2, ..request("va", None) };
        assert!(says(&pool(), two).contains("va has 1 receive and 1 transmit queues, but 2 asked for"));
        let tiny = FramePool::new(PoolConfig { small: 64, ..CONFIG }).unwrap();
        assert!(says(&tiny, request("va", None)).contains("enough for 0 AF_XDP queues"));
        ip("link set va down");
        assert!(says(&pool(), request("va", None)).contains("va is down; set it up: ip link set dev va up"));
        // The peer sends on more queues than this end receives on: the driver refuses native mode.
        ip("link add vc numtxqueues 2 numrxqueues 1 type veth peer name vd numtxqueues 2 numrxqueues 2");
        ip("link set vc up");
        let refused = says(&pool(), request("vc", Some(Mode::Native)));
        assert!(refused.contains("attach the XDP program in native mode: No space left"), "{refused}");
        let opened = open(&pool(), request("vc", None)).unwrap();
        assert_eq!(opened.mode, Mode::Generic);
        assert_eq!(opened.native_refused.unwrap().to_string(), refused);
    });
}

/// The frame that arrives when a host at 10.0.0.1 behind `vb` sends a datagram.
fn from_host(side: &mut Side, payload: &[u8], segment: Option<i32>) -> Option<Frame> {
    ip("address add 10.0.0.1/24 dev vb");
    ip("neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev vb");
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    if let Some(size) = segment {
        let value = std::ptr::from_ref(&size).cast();
        // SAFETY: UDP_SEGMENT (udp(7)) takes an int.
        assert_eq!(0, unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4)
        });
    }
    socket.send_to(payload, "10.0.0.2:9").unwrap();
    wait("a datagram, or its loss", || {
        let mut batch = Batch::new();
        side.port.rx(&mut side.frames, &mut batch).unwrap();
        let found = batch.iter().position(|frame| frame.bytes()[12..14] == [8, 0]).map(|at| batch.remove(at));
        batch.drain(..).for_each(|frame| side.frames.free(frame));
        if side.port.counters().rx_errors != 0 { Some(None) } else { found.map(Some) }
    })
}

#[test]
fn a_checksum_that_the_peer_left_to_its_card_is_found() {
    for mode in MODES {
        as_root(|| {
            veth("va", "vb", 1);
            let mut side = Side::open("va", mode);
            let mut frame = from_host(&mut side, b"unfinished", None).unwrap();
            assert_eq!(
                frame.offload,
                Offload { csum: Csum::Partial { start: 34, offset: 6 }, gso: Gso::None }
            );
            assert!(frame.unsaid, "and so may be one inside");
            let csum = frame.offload.csum;
            checksum::complete_partial(frame.bytes_mut(), csum).unwrap();
            let pseudo = Sum::pseudo_header(&frame.bytes()[26..34], IpProto::UDP, frame.len() - 34);
            assert!((pseudo + Sum::of(&frame.bytes()[34..])).verifies());
            side.frames.free(frame);
            side.close();
        });
    }
}

#[test]
fn datagrams_that_the_peer_left_uncut_are_errors() {
    as_root(|| {
        veth("va", "vb", 1);
        let mut side = Side::open("va", Mode::Generic);
        assert!(from_host(&mut side, &[7; 20_000], Some(1000)).is_none());
        side.close();
    });
}

/// A port that does in software what its frames leave to do, as the switch would.
struct Finishing(XdpPort);

impl Port for Finishing {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.0.rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        for mut frame in batch.drain(..) {
            let csum = frame.offload.csum;
            let mut whole = Batch::new();
            if frame.offload.gso == Gso::None {
                checksum::complete_partial(frame.bytes_mut(), csum).unwrap();
                whole.push(frame);
            } else {
                let segments = gso::segments(frame.bytes(), frame.offload).unwrap();
                for i in 0..segments.count() {
                    let mut segment = frames.alloc_for(segments.frame_len(i)).unwrap();
                    segment.set_len(segments.frame_len(i));
                    segments.write(i, segment.bytes_mut());
                    if whole.is_full() {
                        self.0.tx(frames, &mut whole)?;
                    }
                    whole.push(segment);
                }
                frames.free(frame);
            }
            self.0.tx(frames, &mut whole)?;
            whole.drain(..).for_each(|frame| frames.free(frame));
        }
        Ok(Sent::default())
    }

    fn close(&mut self, frames: &mut FrameCache) {
        self.0.close(frames);
    }
}

#[test]
fn tcp_passes_between_hosts_with_all_their_offloads() {
    for mode in MODES {
        as_root(|| {
            let pool = FramePool::new(PoolConfig { small: 4096, ..CONFIG }).unwrap();
            let mut frames = FrameCache::new(pool.clone());
            let longest = rig::tcp_carried(&mut frames, |name| {
                veth(name, "switch", 1);
                let mut opened = open(&pool, request("switch", Some(mode))).unwrap();
                Box::new(Finishing(opened.ports.remove(0)))
            });
            match mode {
                Mode::Native => assert_eq!(longest, (0, Gso::None), "the driver has the peer cut"),
                Mode::Generic => assert_eq!(longest.1, Gso::Tcp4 { mss: 1448 }),
            }
            drop(frames);
            rig::wait_for_chunks(&pool);
        });
    }
}
