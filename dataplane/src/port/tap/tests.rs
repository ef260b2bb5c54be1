//! Against the kernel: each test in a network namespace of its own.

use std::net::UdpSocket;
use std::time::Duration;

use encap::offload::{Csum, Gso, Offload};
use nix::net::if_::InterfaceFlags;

use super::*;
use crate::port::rig::{self, RawSocket, conforms, in_namespace, ip, numbered, pool, wait};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x11]);

fn config(name: &str) -> TapConfig {
    TapConfig { name: name.into(), queues: 1, mtu: None, mac: Some(MAC), admin: Admin::Up }
}

fn one(config: &TapConfig) -> TapPort {
    open(config).unwrap().pop().unwrap()
}

/// Who may not open the driver has nothing to test; a kernel without it fails the tests.
fn with_tap(test: impl FnOnce() + Send) {
    in_namespace(|| match OpenOptions::new().read(true).write(true).open(TUN) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: no permission to open {TUN}");
        }
        _ => test(),
    });
}

/// Waits until the device is gone: a process that another test is just starting may still hold the
/// descriptor between fork and exec.
fn gone(device: &Netdev) {
    let missing = NetdevError::Missing(device.name().into());
    wait("the device to go", || (device.index() == Err(missing.clone())).then_some(()));
}

#[test]
fn it_conforms() {
    with_tap(|| {
        let port = one(&config("tap0"));
        conforms(port, RawSocket::open("tap0"), pool());
    });
}

#[test]
fn the_device_is_as_asked_and_goes_with_the_port() {
    with_tap(|| {
        let asked = TapConfig { mtu: Some(9000), ..config("tap0") };
        let port = one(&asked);
        let device = Netdev::open("tap0").unwrap();
        assert_eq!(device.mtu(), Ok(9000));
        assert_eq!(device.mac(), Ok(MAC));
        assert_eq!(device.driver().unwrap(), "tun");
        assert!(device.flags().unwrap().contains(InterfaceFlags::IFF_UP));
        drop(port);
        gone(&device);
        let port = one(&TapConfig { admin: Admin::Down, ..asked });
        assert!(!device.flags().unwrap().contains(InterfaceFlags::IFF_UP));
        drop(port);
    });
}

#[test]
fn a_name_that_is_taken_is_refused() {
    with_tap(|| {
        ip("tuntap add dev old mode tap");
        ip("link add foreign type veth peer name other");
        let port = one(&config("mine"));
        for (name, kind) in [("old", "tun"), ("foreign", "veth"), ("mine", "tun")] {
            let error = open(&config(name)).unwrap_err();
            assert!(
                matches!(&error, TapError::Exists { name: n, driver } if n == name && driver == kind),
                "{error}"
            );
        }
        for queues in [0, QUEUES_MAX + 1] {
            let error = open(&TapConfig { queues, ..config("many") }).unwrap_err();
            assert!(matches!(error, TapError::Queues { .. }), "{error}");
        }
        let error = open(&TapConfig { mtu: Some(1), ..config("tiny") }).unwrap_err();
        assert!(error.to_string().starts_with("cannot set the MTU to 1 of interface tiny"), "{error}");
        wait("what was half made to go", || Netdev::open("tiny").err());
        drop(port);
    });
}

#[test]
fn jumbo_frames_cross() {
    with_tap(|| {
        let mut port = one(&TapConfig { mtu: Some(9000), ..config("tap0") });
        let far = RawSocket::open("tap0");
        let (pool, mut frames) = pool();
        for len in [1790, 1791, 1792, 1793, 1794, 9014] {
            far.send(&numbered(1, len));
            let ours = |bytes: &[u8]| bytes[12..14] == rig::EXPERIMENTAL;
            let got = wait("the frame", || rig::receive(&mut port, &mut frames, ours));
            assert_eq!(got.bytes, numbered(1, len));
            rig::send(&mut port, &mut frames, &numbered(2, len), Offload::NONE);
            assert_eq!(wait("the frame", || far.receive()), numbered(2, len));
        }
        // Long ones come some at a time, so that they are sent again while they are in the cache.
        let mut batch = Batch::new();
        for _ in 0..2 * LONG_BATCH {
            far.send(&numbered(1, 9014));
        }
        for _ in 0..2 {
            port.rx(&mut frames, &mut batch).unwrap();
            let long = batch.drain(..).map(|frame| (frame.len(), frames.free(frame)).0);
            assert_eq!(long.filter(|len| *len == 9014).count(), LONG_BATCH);
        }
        // Without big chunks, what is longer is counted and not cut.
        let all: Vec<Frame> = std::iter::from_fn(|| frames.alloc_big()).collect();
        far.send(&numbered(1, 1792));
        far.send(&numbered(1, 1793));
        far.send(&numbered(2, 60));
        wait("the last frame", || {
            port.rx(&mut frames, &mut batch).unwrap();
            (batch.len() == 2).then_some(())
        });
        assert_eq!(batch[0].bytes(), numbered(1, 1792));
        assert_eq!(batch[1].bytes(), numbered(2, 60));
        batch.drain(..).for_each(|frame| frames.free(frame));
        assert_eq!(port.counters(), Counters { rx_missed: 1, rx_errors: 0 });
        all.into_iter().for_each(|frame| frames.free(frame));
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
    });
}

#[test]
fn the_host_leaves_checksums_to_us_and_we_to_the_host() {
    with_tap(|| {
        let mut port = one(&config("tap0"));
        let (_, mut frames) = pool();
        ip("address add 10.0.0.1/24 dev tap0");
        ip("neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0");
        let socket = UdpSocket::bind("10.0.0.1:9").unwrap();
        socket.send_to(b"from the host", "10.0.0.2:7").unwrap();
        let udp = |bytes: &[u8]| bytes.ends_with(b"from the host");
        let got = wait("the datagram", || rig::receive(&mut port, &mut frames, udp));
        assert_eq!(got.offload.csum, Csum::Partial { start: 34, offset: 6 });

        assert!(port.offloads().csum);
        // A wrong checksum field that nobody completes does not arrive: the first that does is the second.
        let (frame, _) = rig::udp_with_partial_csum(MAC, 9, b"nobody completes me");
        rig::send(&mut port, &mut frames, &frame, Offload::NONE);
        let (frame, offload) = rig::udp_with_partial_csum(MAC, 9, b"from the switch");
        rig::send(&mut port, &mut frames, &frame, offload);
        let mut buffer = [0; 64];
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from.to_string()), (&b"from the switch"[..], "10.0.0.2:4660".into()));
    });
}

#[test]
fn tcp_crosses_in_big_frames() {
    with_tap(|| {
        let (longest, gso) = rig::tcp_between(|name| Box::new(one(&TapConfig { mac: None, ..config(name) })));
        assert!(longest > 9000, "the longest GSO frame had {longest} bytes");
        assert_eq!(gso, Gso::Tcp4 { mss: 1448 });
    });
}

#[test]
fn what_found_no_room_in_the_queue_is_counted() {
    with_tap(|| {
        let mut port = one(&config("tap0"));
        let far = RawSocket::open("tap0");
        let (_, mut frames) = pool();
        assert_eq!(port.counters(), Counters::default());
        // The queue holds a thousand (`txqueuelen`).
        let sent = (0..3000).filter(|&number| far.try_send(&numbered(number, 60)).is_ok()).count();
        let mut received = 0;
        let mut batch = Batch::new();
        let missed = wait("all that had room", || {
            port.rx(&mut frames, &mut batch).unwrap();
            received += batch.iter().filter(|frame| frame.bytes()[12..14] == rig::EXPERIMENTAL).count();
            batch.drain(..).for_each(|frame| frames.free(frame));
            let missed = port.counters().rx_missed as usize;
            (received + missed == sent).then_some(missed)
        });
        assert!(received >= 500 && missed + 500 <= sent, "{received} received and {missed} missed of {sent}");
    });
}

#[test]
fn down_refuses_and_deleted_is_gone() {
    with_tap(|| {
        let mut port = one(&config("tap0"));
        let (_, mut frames) = pool();
        ip("link set tap0 down");
        let mut batch: Batch = frames.from_bytes(&numbered(0, 60)).into_iter().collect();
        assert_eq!(port.tx(&mut frames, &mut batch).unwrap(), Sent::default());
        assert!(batch.is_empty());
        ip("link set tap0 up");
        rig::send(&mut port, &mut frames, &numbered(0, 60), Offload::NONE);
        ip("link delete tap0");
        rig::goes(&mut port, &mut frames);
        assert!(matches!(port.rx(&mut frames, &mut Batch::new()), Err(PortError::Gone(_))));
    });
}

#[test]
fn each_queue_is_a_port() {
    with_tap(|| {
        let mut ports = open(&TapConfig { queues: 4, ..config("tap0") }).unwrap();
        assert_eq!(ports.len(), 4);
        let far = RawSocket::open("tap0");
        let (_, mut frames) = pool();
        for (number, port) in (0..).zip(&mut ports) {
            rig::send(port, &mut frames, &numbered(number, 60), Offload::NONE);
            assert_eq!(wait("the frame", || far.receive()), numbered(number, 60));
        }
        far.send(&numbered(9, 60));
        let got = wait("a frame on some queue", || {
            ports.iter_mut().find_map(|port| rig::receive(port, &mut frames, |f| f == numbered(9, 60)))
        });
        assert_eq!(got.bytes, numbered(9, 60));
    });
}
