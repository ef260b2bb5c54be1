//! Against the kernel: each test in a network namespace of its own, with a veth pair as the cable.

use std::net::UdpSocket;
use std::time::Duration;

use encap::field::{EtherType, MacAddr};
use encap::offload::{Csum, Gso, Offload};

use super::*;
use crate::frame::FramePool;
use crate::port::memory::Delivered;
use crate::port::rig::{self, EXPERIMENTAL, RawSocket, conforms, in_namespace, ip, numbered, pool, wait};

mod away;
mod stuck;

/// A cable between `near` and `far`, both up.
fn cable() {
    ip("link add near type veth peer name far");
    ip("link set near up");
    ip("link set far up");
    let device = Netdev::open("near").unwrap();
    wait("the carrier", || device.flags().unwrap().contains(InterfaceFlags::IFF_RUNNING).then_some(()));
}

fn one(name: &str) -> PacketPort {
    open(name, 1).unwrap().pop().unwrap()
}

/// A port on `near`, who is at `far`, and frames.
struct Wired {
    port: PacketPort,
    far: RawSocket,
    pool: Arc<FramePool>,
    frames: FrameCache,
}

/// Runs a test in a namespace of its own, with a port on its cable.
fn wired(test: impl FnOnce(Wired) + Send) {
    in_namespace(|| {
        cable();
        let (port, far) = (one("near"), RawSocket::open("far"));
        let (pool, frames) = pool();
        test(Wired { port, far, pool, frames });
    });
}

/// Sets the MTU of both ends.
fn set_mtu(mtu: u32) {
    ["near", "far"].into_iter().for_each(|end| ip(&format!("link set {end} mtu {mtu}")));
}

/// A socket of the kernel's at `far`, port 9, and its MAC.
fn listener() -> (UdpSocket, MacAddr) {
    ip("address add 10.0.0.1/24 dev far");
    let socket = UdpSocket::bind("10.0.0.1:9").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (socket, Netdev::open("far").unwrap().mac().unwrap())
}

fn tagged(tags: &[VlanTag], number: u16, len: usize) -> Vec<u8> {
    let mut frame = numbered(number, len);
    for tag in tags.iter().rev() {
        frame.splice(12..12, [tag.tpid.0.to_be_bytes(), tag.tci.to_be_bytes()].concat());
    }
    frame
}

#[test]
fn it_conforms() {
    in_namespace(|| {
        cable();
        conforms(one("near"), RawSocket::open("far"), pool());
    });
}

#[test]
fn tags_are_put_back() {
    wired(|Wired { mut port, far, mut frames, .. }| {
        let [c, s] = [EtherType::VLAN, EtherType::QINQ].map(|tpid| VlanTag { tpid, tci: 0x7005 });
        let zero = VlanTag { tpid: EtherType::VLAN, tci: 0 };
        set_mtu(2000);
        for tags in [&[][..], &[c], &[s], &[zero], &[s, c], &[c, c], &[c, c, s]] {
            // 1796: fills a small frame when its tag is taken out.
            for len in [64, 1514, 1795, 1796, 1797, 1800] {
                let frame = tagged(tags, 3, len - 4 * tags.len());
                far.send(&frame);
                let ours = |bytes: &[u8]| bytes.ends_with(&frame[20..]);
                let got = wait("the frame", || rig::receive(&mut port, &mut frames, ours));
                assert_eq!(got.bytes, frame);
            }
        }
    });
}

#[test]
fn metadata_moves_with_a_tag() {
    in_namespace(|| {
        cable();
        let [mut near, mut far] = ["near", "far"].map(one);
        let (_, mut frames) = pool();
        for (len, gso) in [(1000, Gso::None), (3000, Gso::Udp { size: 1000 })] {
            let (mut frame, mut offload) =
                rig::udp_with_partial_csum(MacAddr::BROADCAST, 9, &vec![0x77; len]);
            frame.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
            offload = Offload { gso, ..offload.shifted(8).unwrap() };
            rig::send(&mut far, &mut frames, &frame, offload);
            let ours = |bytes: &[u8]| bytes.ends_with(&[0x77; 100]);
            let got = wait("the frame", || rig::receive(&mut near, &mut frames, ours));
            assert_eq!(got, Delivered { bytes: frame, offload });
        }
    });
}

#[test]
fn checksums_are_completed_by_the_kernel() {
    wired(|Wired { mut port, mut frames, .. }| {
        let (socket, mac) = listener();
        // What nobody completes does not arrive: the first that does is the second.
        let (frame, _) = rig::udp_with_partial_csum(mac, 9, b"nobody completes me");
        rig::send(&mut port, &mut frames, &frame, Offload::NONE);
        let (frame, offload) = rig::udp_with_partial_csum(mac, 9, b"complete me");
        rig::send(&mut port, &mut frames, &frame, offload);
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"complete me");
    });
}

#[test]
fn tcp_crosses_in_big_frames() {
    in_namespace(|| {
        let (longest, gso) = rig::tcp_between(|name| {
            ip(&format!("link add {name} type veth peer name switch"));
            ip(&format!("link set {name} up"));
            ip("link set switch up");
            Box::new(one("switch"))
        });
        assert!(longest > 9000, "the longest GSO frame had {longest} bytes");
        assert_eq!(gso, Gso::Tcp4 { mss: 1448 });
    });
}

#[test]
fn udp_is_cut_by_the_kernel() {
    wired(|Wired { mut port, mut frames, .. }| {
        if !port.offloads().uso {
            eprintln!("skipped: this kernel does not cut UDP (Linux 6.2 does)");
            return;
        }
        let (socket, mac) = listener();
        let payload: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
        let (frame, mut offload) = rig::udp_with_partial_csum(mac, 9, &payload);
        offload.gso = Gso::Udp { size: 1000 };
        rig::send(&mut port, &mut frames, &frame, offload);
        for part in payload.chunks(1000) {
            let mut buffer = [0; 3000];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], part);
        }
    });
}

#[test]
fn what_the_kernel_refuses_is_freed_and_the_rest_goes() {
    wired(|Wired { mut port, far, pool, mut frames }| {
        let lie = Offload { csum: Csum::Partial { start: 500, offset: 6 }, gso: Gso::None };
        let mut batch = Batch::new();
        for (number, len, offload) in [
            (0, 60, Offload::NONE),
            (1, 1519, Offload::NONE),
            (2, 60, lie),
            (3, 4, Offload::NONE),
            (4, 60, Offload::NONE),
        ] {
            let mut frame = frames.from_bytes(&numbered(number, len.max(16))[..len]).unwrap();
            frame.offload = offload;
            batch.push(frame);
        }
        assert_eq!(port.tx(&mut frames, &mut batch).unwrap(), Sent { frames: 2, bytes: 120 });
        assert!(batch.is_empty());
        for number in [0, 4] {
            assert_eq!(wait("the frame", || far.receive()), numbered(number, 60));
        }
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
    });
}

#[test]
fn what_the_kernel_skips_is_not_counted() {
    wired(|Wired { mut port, far, mut frames, .. }| {
        let mut batch = Batch::new();
        for (len, start) in
            [(14, None), (16, Some(14)), (24, Some(19)), (24, Some(20)), (60, Some(14)), (61, None)]
        {
            let mut frame = frames.from_bytes(&numbered(0, 61)[..len]).unwrap();
            frame.offload.csum = start.map_or(Csum::None, |start| Csum::Partial { start, offset: 0 });
            batch.push(frame);
        }
        let sent = port.tx(&mut frames, &mut batch).unwrap();
        let mut arrived = Vec::new();
        wait("the last one", || {
            arrived
                .extend(far.receive().filter(|frame| frame[12..14] == EXPERIMENTAL).map(|frame| frame.len()));
            (arrived.last() == Some(&61)).then_some(())
        });
        assert_eq!(sent.frames as usize, arrived.len(), "{arrived:?}");
    });
}

/// All that has arrived of our frames.
fn drain(port: &mut PacketPort, frames: &mut FrameCache) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut batch = Batch::new();
    loop {
        port.rx(frames, &mut batch).unwrap();
        if batch.is_empty() {
            return all;
        }
        for frame in batch.drain(..) {
            if frame.bytes()[12..14] == EXPERIMENTAL {
                all.push(frame.bytes().to_vec());
            }
            frames.free(frame);
        }
    }
}

/// The next `count` of our frames.
fn gather(port: &mut PacketPort, frames: &mut FrameCache, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    wait("the frames", || {
        got.append(&mut drain(port, frames));
        (got.len() >= count).then_some(())
    });
    got
}

#[test]
fn what_overflows_the_ring_is_counted() {
    wired(|Wired { mut port, far, mut frames, .. }| {
        for _ in 0..2 {
            let before = port.counters().rx_missed;
            (0..2000).for_each(|number| far.send(&numbered(number, 1514)));
            let (mut received, mut missed) = (0, 0);
            wait("all", || {
                received += drain(&mut port, &mut frames).len();
                missed = (port.counters().rx_missed - before) as usize;
                (received + missed == 2000).then_some(())
            });
            assert!(received >= 500 && missed >= 500, "{received} received, {missed} missed");
            assert_eq!(port.counters().rx_missed, before + missed as u64, "losses are counted once");
        }
        far.send(&numbered(1, 60));
        assert_eq!(wait("the last", || drain(&mut port, &mut frames).pop()), numbered(1, 60), "it goes on");
        assert!(port.inward.is_some(), "a full ring is not a stuck one");
    });
}

#[test]
fn long_frames_keep_their_place() {
    wired(|Wired { mut port, far, pool, mut frames }| {
        set_mtu(9000);
        let lens = [60, 9014, 1514, 1792, 1793, 1972, 1973, 60, 2048, 3000, 3000, 64];
        let sent: Vec<_> = (0..200).map(|n| numbered(n, lens[usize::from(n) % lens.len()])).collect();
        sent.iter().for_each(|frame| far.send(frame));
        let got = gather(&mut port, &mut frames, sent.len());
        assert!(got == sent, "out of order, or changed");
        // And the other way, where they leave by ring and call in turn.
        port.counters(); // the MTU is another
        for part in sent.chunks(20) {
            let mut batch: Batch = part.iter().map(|bytes| frames.from_bytes(bytes).unwrap()).collect();
            assert_eq!(port.tx(&mut frames, &mut batch).unwrap().frames, 20);
            for bytes in part {
                assert_eq!(&wait("the frame", || far.receive()), bytes);
            }
        }
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
    });
}

#[test]
fn without_frames_short_ones_wait_and_long_ones_are_lost() {
    wired(|Wired { mut port, far, mut frames, .. }| {
        set_mtu(9000);
        let big: Vec<Frame> = std::iter::from_fn(|| frames.alloc_big()).collect();
        let small: Vec<Frame> = std::iter::from_fn(|| frames.alloc()).collect();
        for (number, len) in [(0, 60), (1, 1900), (2, 60), (3, 9000), (4, 1792)] {
            far.send(&numbered(number, len));
        }
        assert_eq!(drain(&mut port, &mut frames), Vec::<Vec<u8>>::new());
        small.into_iter().for_each(|frame| frames.free(frame));
        let got = gather(&mut port, &mut frames, 3);
        assert_eq!(got, [numbered(0, 60), numbered(2, 60), numbered(4, 1792)]);
        assert_eq!(port.counters(), Counters { rx_missed: 2, rx_errors: 0 });
        big.into_iter().for_each(|frame| frames.free(frame));
        far.send(&numbered(5, 9000));
        assert_eq!(wait("it goes on", || drain(&mut port, &mut frames).pop()), numbered(5, 9000));
    });
}

#[test]
fn what_a_busy_queue_has_no_room_for_stays() {
    wired(|Wired { mut port, far, mut frames, .. }| {
        // Some 400 frames wait, for a third of a second: more than the ring has slots.
        let qdisc = "qdisc add dev near root tbf rate 600kbit burst 1600 limit 24000";
        let tc = std::process::Command::new("tc").args(qdisc.split(' ')).status().unwrap();
        assert!(tc.success());
        let mut sent = Vec::new();
        let mut left = 0;
        for number in 0..40u16 {
            let numbers = number * 32..(number + 1) * 32;
            let mut batch: Batch =
                numbers.clone().map(|n| frames.from_bytes(&numbered(n, 60)).unwrap()).collect();
            let count = port.tx(&mut frames, &mut batch).unwrap().frames as usize;
            assert_eq!(count + batch.len(), 32);
            sent.extend(numbers.take(count));
            left += batch.len();
            batch.drain(..).for_each(|frame| frames.free(frame));
        }
        assert!(sent.len() > 128 && left > 128, "{} sent, {left} left", sent.len());
        for number in sent {
            assert_eq!(wait("the frame", || far.receive()), numbered(number, 60));
        }
        assert_eq!(far.receive(), None);
    });
}

#[test]
fn our_own_frames_do_not_come_back() {
    in_namespace(|| {
        cable();
        for queues in [1, 2] {
            let mut ports = open("near", queues).unwrap();
            let far = RawSocket::open("far");
            let (_, mut frames) = pool();
            rig::send(&mut ports[0], &mut frames, &numbered(1, 60), Offload::NONE);
            assert_eq!(wait("the frame", || far.receive()), numbered(1, 60));
            for port in &mut ports {
                assert_eq!(rig::receive(port, &mut frames, |f| f[12..14] == EXPERIMENTAL), None);
            }
        }
    });
}

#[test]
fn queues_share_what_arrives() {
    in_namespace(|| {
        cable();
        let mut ports = open("near", 4).unwrap();
        let far = RawSocket::open("far");
        let (_, mut frames) = pool();
        (0..200).for_each(|number| {
            let (frame, _) = rig::udp_with_partial_csum(MacAddr::BROADCAST, number, b"share");
            far.send(&frame);
        });
        let mut got = [0; 4];
        wait("all frames", || {
            for (port, got) in ports.iter_mut().zip(&mut got) {
                let mut batch = Batch::new();
                port.rx(&mut frames, &mut batch).unwrap();
                *got += batch.iter().filter(|frame| frame.bytes().ends_with(b"share")).count();
                batch.drain(..).for_each(|frame| frames.free(frame));
            }
            (got.iter().sum::<usize>() >= 200).then_some(())
        });
        assert_eq!(got.iter().sum::<usize>(), 200, "each frame once: {got:?}");
        assert!(got.iter().filter(|&&n| n > 0).count() > 1, "all on one queue: {got:?}");
    });
}

#[test]
fn down_or_deleted_is_gone() {
    wired(|Wired { mut port, mut frames, .. }| {
        ip("link set near down");
        let error = port.rx(&mut frames, &mut Batch::new()).unwrap_err();
        assert!(error.to_string().starts_with("interface is gone or down"), "{error}");
        rig::goes(&mut port, &mut frames);
        assert!(matches!(open("near", 1), Err(PacketError::Down { .. })));
        ip("link set near up");
        let mut port = one("near");
        rig::receive(&mut port, &mut frames, |_| true);
        ip("link set near down");
        // A ring says nothing, but whoever woke us may have meant that, and twice a second we ask.
        port.disarm();
        assert!(port.rx(&mut frames, &mut Batch::new()).is_err());
        ip("link set near up");
        let mut port = one("near");
        rig::receive(&mut port, &mut frames, |_| true);
        ip("link set near down");
        port.counters();
        assert!(port.rx(&mut frames, &mut Batch::new()).is_err());
        ip("link set near up");
        let mut port = one("near");
        ip("link delete near");
        assert!(port.rx(&mut frames, &mut Batch::new()).is_err());
        rig::goes(&mut port, &mut frames);
        let error = open("near", 1).unwrap_err();
        assert!(matches!(error, PacketError::Device(NetdevError::Missing(_))), "{error}");
    });
}

#[test]
fn down_is_told_by_a_long_frame_too() {
    wired(|Wired { mut port, far, mut frames, .. }| {
        set_mtu(9000);
        far.send(&numbered(1, 60));
        far.send(&numbered(2, 9000));
        // The queue that the long frame waits in has the error in front of it, and forgets it once it was told.
        ip("link set near down");
        let mut batch = Batch::new();
        assert!(port.rx(&mut frames, &mut batch).is_err());
        assert!(batch.iter().any(|frame| frame.bytes() == numbered(1, 60)), "what came before is not lost");
        frames.free_all(&mut batch);
        assert_eq!(port.counters().rx_missed, 0);
    });
}

#[test]
fn what_is_no_ethernet_is_refused() {
    in_namespace(|| {
        assert!(matches!(open("lo", 1), Err(PacketError::Device(NetdevError::NotEthernet { .. }))));
        cable();
        assert!(matches!(open("near", 0), Err(PacketError::Queues { queues: 0, .. })));
    });
}
