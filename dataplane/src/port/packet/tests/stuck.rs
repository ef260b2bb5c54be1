//! Rings that the kernel lets get stuck.

use std::fs::File;
use std::io::Write;

use nix::sys::resource::{UsageWho, getrusage};

use super::*;

/// What a guest writes into its TAP device for a frame.
fn plain(number: u16) -> Vec<u8> {
    [&[0; vnet::LEN][..], &numbered(number, 60)].concat()
}

/// The same of a datagram with UDP fragmentation offload (`VIRTIO_NET_HDR_GSO_UDP`), as old guests send, which the kernel takes
/// but cannot tell of.
fn unspeakable() -> Vec<u8> {
    let (datagram, _) = rig::udp_with_partial_csum(MacAddr::BROADCAST, 9, &[0; 3000]);
    let mut header = [1, 3, 42, 0, 0, 0, 34, 0, 6, 0];
    header[4..6].copy_from_slice(&1400u16.to_ne_bytes());
    [&header[..], &datagram].concat()
}

/// Runs a test in a namespace of its own, with a TAP device `near`.
fn tapped(test: impl FnOnce(&File) + Send) {
    in_namespace(|| {
        ip("tuntap add dev near mode tap vnet_hdr");
        ip("link set near up");
        test(&rig::tap("near"));
    });
}

#[test]
fn a_ring_that_the_kernel_lets_get_stuck_is_given_up() {
    tapped(|mut tap| {
        let mut port = one("near");
        let (_, mut frames) = pool();
        tap.write_all(&plain(1)).unwrap();
        assert_eq!(wait("a frame", || drain(&mut port, &mut frames).pop()), numbered(1, 60));
        tap.write_all(&unspeakable()).unwrap();
        let mut number = 1;
        let mut got = Vec::new();
        wait("frames, in order again", || {
            port.counters();
            number += 1;
            tap.write_all(&plain(number)).unwrap();
            got.append(&mut drain(&mut port, &mut frames));
            (got.len() > 10).then_some(())
        });
        assert!(got.is_sorted());
        assert!(port.counters().rx_missed > 0);
        // Offloads and long frames as ever.
        let (mut datagram, offload) = rig::udp_with_partial_csum(MacAddr::BROADCAST, 9, &[1; 3000]);
        datagram.splice(12..12, [0x81, 0, 0, 6]);
        let header = vnet::emit(&offload.shifted(4).unwrap(), &datagram);
        tap.write_all(&[&header[..], &datagram].concat()).unwrap();
        let got = wait("the datagram", || rig::receive(&mut port, &mut frames, |f| f.ends_with(&[1; 3000])));
        assert_eq!(got, Delivered { bytes: datagram, offload: offload.shifted(4).unwrap() });
    });
}

/// The kernel lets a ring go behind a grace period, in which a poller's other ports would wait.
#[test]
fn nobody_waits_for_a_ring_that_is_given_up() {
    let naps = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches();
    tapped(|mut tap| {
        let mut give_up = || {
            let mut port = one("near");
            tap.write_all(&unspeakable()).unwrap();
            wait("a ring that is given up", || {
                tap.write_all(&plain(1)).unwrap();
                let before = naps();
                port.counters();
                port.inward.is_none().then(|| naps() - before)
            })
        };
        // Other threads of this process may keep us from making one.
        let fewest = (0..10).map(|_| give_up()).find(|naps| *naps == 0);
        assert_eq!(fewest, Some(0), "each time the thread went to sleep");
    });
}
