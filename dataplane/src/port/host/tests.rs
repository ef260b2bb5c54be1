//! Against the kernel: two ports on the loopback of a namespace, and its own vxlan device at the other end of a cable.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use encap::decap::decap;
use encap::field::MacAddr;
use encap::offload::{Csum, Gso, Offload};
use encap::template::{Outer, Template};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::*;
use crate::port::netdev::Netdev;
use crate::port::rig::{self, RawSocket, in_namespace, ip, numbered, pool, wait};

/// Not opened twice in a test: a process that another test has just forked may still hold what this one has closed.
const PORT: u16 = 4789;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ends(v6: bool) -> [IpAddr; 2] {
    if v6 { ["fd00::1", "fd00::2"].map(address) } else { ["10.0.0.1", "10.0.0.2"].map(address) }
}

/// Gives an interface of this namespace an IPv6 address, too.
fn with_ipv6(interface: &str, address: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0").unwrap();
    ip(&format!("address add {address}/64 dev {interface} nodad"));
    // Even so the kernel takes its time.
    wait("the address", || {
        let route = Command::new("ip").args(["-6", "route", "get", address]).output().unwrap();
        route.stdout.starts_with(b"local").then_some(())
    });
}

/// The addresses of both ends on the loopback.
fn loopback() {
    ip("address add 10.0.0.1/32 dev lo");
    ip("address add 10.0.0.2/32 dev lo");
    with_ipv6("lo", "fd00::1");
    with_ipv6("lo", "fd00::2");
}

/// A port whose complaints nobody hears.
fn open(request: Request) -> Result<HostPort, HostError> {
    super::open(request, &Arc::new(Overlong::new().unwrap()))
}

fn request(kind: TunnelKind, local: Option<IpAddr>) -> Request {
    Request { kind, dst_port: PORT, local }
}

fn outer(kind: TunnelKind, [src, dst]: [IpAddr; 2]) -> Outer {
    Outer {
        kind,
        id: Some(7),
        eth_src: MacAddr::default(),
        eth_dst: MacAddr::default(),
        tags: ArrayVec::new(),
        src,
        dst,
        tos: 0xb9,
        ttl: 33,
        df: true,
        dst_port: PORT,
        csum: false,
    }
}

/// The frame in outer headers.
fn tunnelled(outer: &Outer, inner: &[u8], entropy: u16) -> Vec<u8> {
    let template = Template::new(outer).unwrap();
    let mut frame = [&vec![0; template.len()][..], inner].concat();
    template.write(&mut frame, entropy).unwrap();
    frame
}

/// The next frames to arrive.
fn next<const N: usize>(port: &mut HostPort, frames: &mut FrameCache) -> [Vec<u8>; N] {
    let mut all = Vec::new();
    wait("frames", || {
        let mut batch = Batch::new();
        port.rx(frames, &mut batch).unwrap();
        for frame in batch.drain(..) {
            assert!(frame.unsaid && frame.offload.is_none());
            all.push(frame.bytes().to_vec());
            frames.free(frame);
        }
        (all.len() >= N).then_some(())
    });
    all.try_into().expect("no more than were sent")
}

#[test]
fn what_one_end_sends_the_other_receives() {
    in_namespace(|| {
        loopback();
        let (_, mut frames) = pool();
        let kinds = TunnelKind::ALL.into_iter().zip(PORT..);
        for (kind, dst_port, v6) in kinds.flat_map(|(kind, port)| [(kind, port, false), (kind, port, true)]) {
            let [here, there] = ends(v6);
            let request = |local| Request { dst_port, ..request(kind, Some(local)) };
            let [mut near, mut far] = [here, there].map(|local| open(request(local)).unwrap());
            for (len, tos) in [(60, 0), (1450, 0xb9), (1800, 3), (9000, 0xff), (60_000, 1)] {
                let inner = numbered(len as u16, len);
                let outer = Outer { tos, dst_port, ..outer(kind, [here, there]) };
                rig::send(&mut near, &mut frames, &tunnelled(&outer, &inner, 5), Offload::NONE);
                let [got] = next(&mut far, &mut frames);
                let said = decap(&got, kind, Offload::NONE).unwrap();
                assert_eq!(
                    (said.src.to_canonical(), said.dst.to_canonical(), said.tos, said.ttl),
                    (here, there, tos, 33),
                    "{kind} {v6}"
                );
                assert_eq!((said.id, said.csum), (Some(7), false));
                assert_eq!(got[said.inner_at..said.inner_end], inner);
            }
            assert_eq!(near.counters(), Counters::default());
            assert_eq!(far.counters(), Counters::default());
        }
    });
}

#[test]
fn a_batch_keeps_the_order_of_each_flow() {
    in_namespace(|| {
        loopback();
        let (pool, mut frames) = pool();
        let [here, there] = ends(false);
        let [mut near, mut far] =
            [here, there].map(|local| open(request(TunnelKind::Vxlan, Some(local))).unwrap());
        assert!(rig::receive(&mut far, &mut frames, |_| true).is_none());
        let outer = outer(TunnelKind::Vxlan, [here, there]);
        let flow = |number: u16| number % 12;
        let mut batch: Batch = (0..BATCH as u16)
            .map(|n| frames.from_bytes(&tunnelled(&outer, &numbered(n, 100), flow(n))).unwrap())
            .collect();
        let sent = near.tx(&mut frames, &mut batch).unwrap();
        assert_eq!((sent, batch.len()), (Sent { frames: 32, bytes: 32 * 150 }, 0));
        let mut ports = [const { Vec::new() }; 12];
        let mut numbers = [const { Vec::new() }; 12];
        for got in next::<BATCH>(&mut far, &mut frames) {
            let number = u16::from_be_bytes([got[50 + 14], got[50 + 15]]);
            numbers[usize::from(flow(number))].push(number);
            ports[usize::from(flow(number))].push([got[34], got[35]]);
        }
        assert!(numbers.iter().all(|flow| flow.is_sorted()), "{numbers:?}");
        assert!(ports.iter().all(|flow| flow.iter().all(|port| *port == flow[0])), "{ports:?}");
        let mut distinct = ports.concat();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), EXITS);
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
    });
}

#[test]
fn a_full_batch_is_left_alone_and_the_descriptor_wakes() {
    in_namespace(|| {
        loopback();
        let (_, mut frames) = pool();
        for v6 in [false, true] {
            let ends = ends(v6);
            let dst_port = 5000 + u16::from(v6);
            let mut near = open(Request { dst_port, ..request(TunnelKind::Geneve, None) }).unwrap();
            let mut far = open(request(TunnelKind::Geneve, Some(ends[1]))).unwrap();
            let readable = |port: &HostPort| {
                let fd = rig::descriptor(port);
                nix::poll::poll(&mut [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)], 0u8).unwrap()
                    == 1
            };
            assert!(!readable(&far));
            let sent = tunnelled(&outer(TunnelKind::Geneve, ends), &numbered(1, 60), 0);
            rig::send(&mut near, &mut frames, &sent, Offload::NONE);
            wait("the descriptor", || readable(&far).then_some(()));
            let mut full: Batch = (0..BATCH).map(|_| frames.alloc().unwrap()).collect();
            far.rx(&mut frames, &mut full).unwrap();
            full.drain(..).for_each(|frame| frames.free(frame));
            let [got] = next(&mut far, &mut frames);
            assert!(got.ends_with(&numbered(1, 60)));
        }
    });
}

#[test]
fn what_is_too_long_or_goes_nowhere_is_refused_alone() {
    in_namespace(|| {
        loopback();
        ip("link set lo mtu 1500");
        let (pool, mut frames) = pool();
        for (kind, v6) in [(TunnelKind::Vxlan, false), (TunnelKind::Gre, false), (TunnelKind::Vxlan, true)] {
            let [here, there] = ends(v6);
            let overlong = Arc::new(Overlong::new().unwrap());
            let mut near = super::open(request(kind, Some(here)), &overlong).unwrap();
            let mut far = open(request(kind, Some(there))).unwrap();
            let good = outer(kind, [here, there]);
            let nowhere =
                Outer { dst: if v6 { address("2001:db8::1") } else { address("192.0.2.1") }, ..good.clone() };
            let foreign = Outer { src: nowhere.dst, ..good.clone() };
            let inners =
                [numbered(1, 60), numbered(2, 1490), numbered(3, 60), numbered(4, 60), numbered(5, 60)];
            let outers = [&good, &good, &nowhere, &foreign, &good];
            let mut batch: Batch = outers
                .iter()
                .zip(&inners)
                .map(|(outer, inner)| frames.from_bytes(&tunnelled(outer, inner, 0)).unwrap())
                .collect();
            // No tunnelled frame at all.
            batch.push(frames.from_bytes(&numbered(6, 60)).unwrap());
            assert_eq!(near.tx(&mut frames, &mut batch).unwrap().frames, 2, "{kind} {v6}");
            assert!(batch.is_empty());
            let [first, last] = next(&mut far, &mut frames);
            assert!(first.ends_with(&inners[0]) && last.ends_with(&inners[4]));
            assert_eq!(overlong.take(), [there].into(), "{kind} {v6}");
            assert!(overlong.take().is_empty());
            assert_eq!((path_mtu(there), path_mtu(nowhere.dst)), (Some(1500), None));
        }
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
    });
}

#[test]
fn without_a_source_the_route_says() {
    in_namespace(|| {
        loopback();
        let (_, mut frames) = pool();
        for (any, v6) in [("0.0.0.0", false), ("::", true)] {
            let [here, there] = ends(v6);
            let [mut near, mut far] =
                [here, there].map(|local| open(request(TunnelKind::Vxlan, Some(local))).unwrap());
            let outer = outer(TunnelKind::Vxlan, [address(any), there]);
            rig::send(&mut near, &mut frames, &tunnelled(&outer, &numbered(1, 60), 0), Offload::NONE);
            let [got] = next(&mut far, &mut frames);
            assert_eq!(decap(&got, TunnelKind::Vxlan, Offload::NONE).unwrap().src.to_canonical(), here);
        }
    });
}

#[test]
fn what_overflows_the_buffer_is_counted() {
    in_namespace(|| {
        loopback();
        let (_, mut frames) = pool();
        let [here, there] = ends(false);
        let [mut near, mut far] =
            [here, there].map(|local| open(request(TunnelKind::Vxlan, Some(local))).unwrap());
        let frame = tunnelled(&outer(TunnelKind::Vxlan, [here, there]), &numbered(1, 9000), 0);
        (0..3000).for_each(|_| rig::send(&mut near, &mut frames, &frame, Offload::NONE));
        let mut received = 0;
        while rig::receive(&mut far, &mut frames, |_| true).is_some() {
            received += 1;
        }
        assert!(received > 0);
        // `receive` frees all but the first of a batch.
        assert!(far.counters().rx_missed > 0);
    });
}

#[test]
fn what_is_wrong_is_said() {
    in_namespace(|| {
        loopback();
        let _first = open(request(TunnelKind::Vxlan, None)).unwrap();
        let say = |request| open(request).map(drop).unwrap_err().to_string();
        let taken = say(request(TunnelKind::Vxlan, Some(ends(false)[0])));
        assert!(taken.starts_with("UDP port 4789 is taken; remove the vxlan device"), "{taken}");
        let missing = say(request(TunnelKind::Gre, Some(address("192.0.2.1"))));
        assert!(missing.starts_with("the host has no address 192.0.2.1"), "{missing}");
    });
}

/// The other end of the cable: a vxlan device of the kernel, with a station that sends back what it gets.
fn kernel_end(v6: bool, ready: mpsc::Sender<MacAddr>) {
    let [there, here] = if v6 { ["fd01::1", "fd01::2"] } else { ["10.1.0.1", "10.1.0.2"] };
    ip("link set lo up");
    ip("link set far up");
    ip("address add 10.1.0.2/24 dev far");
    with_ipv6("far", "fd01::2");
    ip(&format!("link add vx type vxlan id 7 local {here} remote {there} dstport {PORT} tos 0xb8 ttl 33"));
    ip("address add 10.0.0.1/24 dev vx");
    ip("link set vx up");
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev vx");
    let socket = UdpSocket::bind("10.0.0.1:9").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    ready.send(Netdev::open("vx").unwrap().mac().unwrap()).unwrap();
    let mut buffer = [0; 2000];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..len], from),
        (&b"across the kernel"[..], SocketAddr::from(([10, 0, 0, 2], 0x1234)))
    );
    socket.send_to(&buffer[..len], from).unwrap();
}

#[test]
fn the_vxlan_device_of_the_kernel_understands_us_and_we_it() {
    for v6 in [false, true] {
        in_namespace(move || {
            ip("link add near type veth peer name far");
            let (tid, other) = mpsc::channel();
            let (go, moved) = mpsc::channel();
            let (ready, mac) = mpsc::channel();
            let kernel = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                tid.send(gettid()).unwrap();
                moved.recv().unwrap();
                kernel_end(v6, ready);
            });
            ip(&format!("link set far netns {}", other.recv().unwrap()));
            ip("link set near up");
            ip("address add 10.1.0.1/24 dev near");
            with_ipv6("near", "fd01::1");
            go.send(()).unwrap();
            let mac = mac.recv().unwrap();
            let mut port = open(request(TunnelKind::Vxlan, None)).unwrap();
            let (_, mut frames) = pool();
            let (mut inner, offload) = rig::udp_with_partial_csum(mac, 9, b"across the kernel");
            encap::checksum::complete_partial(&mut inner, offload.csum).unwrap();
            let ends = if v6 { ["fd01::1", "fd01::2"] } else { ["10.1.0.1", "10.1.0.2"] }.map(address);
            let wire = RawSocket::open("near");
            // Over IPv6 the device takes no datagram without a checksum, unless told to.
            let outer = Outer { csum: v6, ..outer(TunnelKind::Vxlan, ends) };
            rig::send(&mut port, &mut frames, &tunnelled(&outer, &inner, 3), Offload::NONE);
            let on_wire =
                wait("our frame on the wire", || wire.receive().filter(|frame| frame.ends_with(&inner)));
            // The kernel leaves the outer checksum to the veth.
            let left = if v6 { Csum::Partial { start: 54, offset: 6 } } else { Csum::None };
            let left = Offload { csum: left, gso: Gso::None };
            let said = decap(&on_wire, TunnelKind::Vxlan, left).unwrap();
            assert_eq!((said.tos, said.ttl, said.csum, said.df), (0xb9, 33, v6, !v6));
            let answer = wait("the answer", || {
                let ours = |frame: &[u8]| frame.ends_with(b"across the kernel");
                rig::receive(&mut port, &mut frames, ours).map(|answer| answer.bytes)
            });
            let said = decap(&answer, TunnelKind::Vxlan, Offload::NONE).unwrap();
            assert_eq!(
                (said.src.to_canonical(), said.dst.to_canonical(), said.tos, said.ttl),
                (ends[1], ends[0], 0xb8, 33)
            );
            kernel.join().unwrap();
        });
    }
}
