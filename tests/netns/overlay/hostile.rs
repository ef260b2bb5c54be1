//! Outer headers that lie, from a machine on the underlay that may send whatever it likes; and tunnels to ourselves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use encap::field::MacAddr;
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;

use crate::support::fabric::{BLUE, Fabric, Family, Footing, GREEN, RED, Tenant};
use crate::support::lab::{Seat, eventually};
use crate::support::peers::vtep;
use crate::support::traffic::{Blast, await_ping};
use crate::support::wire::{Wire, frame};

/// Where the IPv4 header begins, and the UDP or GRE header behind it.
const L3: usize = 14;
const L4: usize = L3 + 20;
/// Where the VXLAN or Geneve header begins.
const IN_UDP: usize = L4 + 8;

/// The machine that sends, and whom it sends to.
struct Attack {
    eth_src: MacAddr,
    eth_dst: MacAddr,
    src: IpAddr,
    dst: IpAddr,
}

impl Attack {
    /// A good frame of a tenant that the switch has, with an inner frame for nobody.
    fn good(&self, kind: TunnelKind, inner: &[u8]) -> Vec<u8> {
        self.wrapped((kind, 5001), inner)
    }

    fn wrapped(&self, (kind, id): (TunnelKind, u32), inner: &[u8]) -> Vec<u8> {
        let dst_port = match kind {
            TunnelKind::Vxlan => 4789,
            TunnelKind::Geneve => 6081,
            TunnelKind::Gre => 0,
        };
        let template = Template::new(&Outer {
            kind,
            id: Some(id),
            eth_src: self.eth_src,
            eth_dst: self.eth_dst,
            tags: Default::default(),
            src: self.src,
            dst: self.dst,
            tos: 0,
            ttl: 64,
            df: true,
            dst_port,
            csum: true,
        });
        let template = template.expect("headers that can be");
        let mut bytes = vec![0; template.len()];
        bytes.extend(inner);
        template.write(&mut bytes, 7).expect("a frame that is not too long");
        bytes
    }
}

/// The UDP checksum says that there is none.
fn unsummed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[L4 + 6..L4 + 8].fill(0);
    frame
}

fn changed(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Frames that are to be dropped, by reason.
fn lies(attack: &Attack) -> Vec<(&'static str, Vec<u8>)> {
    let inner = frame(66, 67, &[], &[0x5a; 64]);
    let vxlan = unsummed(attack.good(TunnelKind::Vxlan, &inner));
    let geneve = unsummed(attack.good(TunnelKind::Geneve, &inner));
    let gre = attack.good(TunnelKind::Gre, &inner);
    let udp = |frame: &[u8], at: usize, bytes: &[u8]| changed(frame, IN_UDP + at, bytes);
    let mut lies = vec![
        ("tunnel-checksum", changed(&attack.good(TunnelKind::Vxlan, &inner), 80, b"?")),
        ("tunnel-checksum", changed(&attack.good(TunnelKind::Geneve, &inner), 80, b"?")),
        ("tunnel-checksum", changed(&gre, 80, b"?")),
        // IPv4 with a checksum that is not its own.
        ("tunnel-checksum", changed(&vxlan, L3 + 10, &[0xde, 0xad])),
        // A UDP length beyond the packet, and one that has no room for its own header.
        ("tunnel-malformed", changed(&vxlan, L4 + 4, &[0xff, 0xff])),
        ("tunnel-malformed", changed(&vxlan, L4 + 4, &[0, 7])),
        // VXLAN without the I flag, with that of GPE, of group policy (RFC 7348 section 5).
        ("tunnel-protocol", udp(&vxlan, 0, &[0])),
        ("tunnel-protocol", udp(&vxlan, 0, &[0x0c])),
        ("tunnel-protocol", udp(&vxlan, 0, &[0x88])),
        // Geneve of version 1, with another payload than Ethernet.
        ("tunnel-protocol", udp(&geneve, 0, &[0x40])),
        ("tunnel-protocol", udp(&geneve, 2, &[0x08, 0x00])),
        // 252 bytes of options in a packet without; and one option that is longer than all.
        ("tunnel-malformed", udp(&geneve, 0, &[0x3f])),
        ("tunnel-malformed", udp(&geneve, 0, &[1, 0, 0x65, 0x58, 0, 0x13, 0x89, 0, 1, 2, 3, 0x1f])),
        // An unknown option that is critical (RFC 8926 section 3.5).
        ("tunnel-option", udp(&geneve, 0, &[1, 0x40, 0x65, 0x58, 0, 0x13, 0x89, 0, 1, 2, 0x83, 0])),
        // GRE of version 1, with routing, ERSPAN.
        ("tunnel-protocol", changed(&gre, L4, &[0xa0, 1])),
        ("tunnel-protocol", changed(&gre, L4, &[0xe0, 0])),
        ("tunnel-protocol", changed(&gre, L4 + 2, &[0x88, 0xbe])),
        // Numbers that no tenant has, and our own address as the sender's.
        ("unknown-segment", attack.wrapped((TunnelKind::Vxlan, 77), &inner)),
        ("unknown-segment", attack.wrapped((TunnelKind::Gre, 77), &inner)),
        ("tunnel-loop", Attack { src: attack.dst, ..*attack }.good(TunnelKind::Vxlan, &inner)),
    ];
    // Headers that end early: the packet is as long as its IP header says.
    for (whole, headers) in [(&vxlan, 50), (&geneve, 50), (&gre, 46)] {
        for len in L4 + 8..headers {
            lies.push(("tunnel-malformed", truncated(whole, len)));
        }
    }
    lies
}

/// The frame up to `len`; IP and UDP lengths agree with that.
fn truncated(whole: &[u8], len: usize) -> Vec<u8> {
    let mut frame = whole[..len].to_vec();
    frame[L3 + 2..L3 + 4].copy_from_slice(&((len - L3) as u16).to_be_bytes());
    if frame[L3 + 9] == 17 {
        frame[L4 + 4..L4 + 6].copy_from_slice(&((len - L4) as u16).to_be_bytes());
    }
    frame[L3 + 10..L3 + 12].fill(0);
    let sum = encap::checksum::Sum::of(&frame[L3..L4]);
    frame[L3 + 10..L3 + 12].copy_from_slice(&sum.checksum());
    frame
}

/// Ten frames in each other, all for this endpoint: the outermost headers come off, and what is inside is for nobody.
fn nested(attack: &Attack, kind: TunnelKind) -> Vec<u8> {
    (0..10).fold(frame(66, 67, &[], b"the innermost"), |inner, _| attack.good(kind, &inner))
}

/// Drops of all ports by reason.
fn drops(fabric: &Fabric, number: u8) -> BTreeMap<String, u64> {
    let mut drops = BTreeMap::new();
    for entry in fabric.node(number).daemon.ask("drops").as_array().expect("drops") {
        let reason = entry["reason"].as_str().expect("a reason").to_owned();
        *drops.entry(reason).or_default() += entry["frames"].as_u64().expect("a count");
    }
    drops
}

/// What the underlay believes the MAC address of a hypervisor to be.
fn mac_of(fabric: &Fabric, number: u8) -> MacAddr {
    let stranger = &fabric.strangers[0];
    let address = vtep(number);
    eventually("the endpoint answers a ping", || {
        stranger.output(&format!("ping -n -q -c 1 -w 1 -i 0.05 {address}")).status.success()
    });
    let neighbour = stranger.ip_json(&format!("neigh show {address}"));
    neighbour[0]["lladdr"].as_str().expect("an address").parse().expect("a MAC address")
}

const ROUNDS: u64 = 20;

fn assert_unmoved(fabric: &Fabric, number: u8) {
    let attack = Attack {
        eth_src: MacAddr([2, 0, 0, 0, 0, 0x66]),
        eth_dst: mac_of(fabric, number),
        src: vtep(3).into(),
        dst: vtep(number).into(),
    };
    let lies = lies(&attack);
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    lies.iter().for_each(|(reason, _)| *expected.entry(reason).or_default() += ROUNDS);
    let before = drops(fabric, number);

    let blasts = [&RED, &GREEN, &BLUE].map(|tenant: &Tenant| {
        Blast::start(fabric.vm(tenant, 3 - number), fabric.vm(tenant, number), 200, 200)
    });
    let mut wire = Wire::on(&fabric.strangers[0], "uplink");
    for _ in 0..ROUNDS {
        lies.iter().for_each(|(_, lie)| wire.send(lie));
        for kind in [TunnelKind::Vxlan, TunnelKind::Gre, TunnelKind::Geneve] {
            wire.send(&nested(&attack, kind));
        }
        // Somebody claims to be the endpoint itself.
        let forged = Attack { eth_src: attack.eth_dst, eth_dst: MacAddr([0xff; 6]), ..attack };
        wire.send(&forged.good(TunnelKind::Vxlan, &frame(66, 67, &[], b"forged")));
        // One after the other: more at once than a ring holds would be about rings.
        blasts.iter().for_each(|blast| blast.await_more(5));
    }
    for blast in blasts {
        let tally = blast.stop();
        assert_eq!((tally.lost(), tally.duplicated), (0, 0), "{tally:?}");
    }
    let counted = |(reason, least): (&&str, &u64)| {
        let count = |drops: &BTreeMap<String, u64>| drops.get(*reason).copied().unwrap_or(0);
        eventually(&format!("{least} frames are dropped for {reason}"), || {
            count(&drops(fabric, number)) - count(&before) >= *least
        });
    };
    expected.iter().for_each(counted);
}

#[test]
fn hostile_outer_headers_are_counted_and_disturb_nobody() {
    let Some(_seat) = Seat::take() else { return };
    let tenants = [&RED, &GREEN, &BLUE];
    let fabric = Fabric::beside(1, (Family::V4, &[Footing::Vtep, Footing::Internal]), &tenants);
    // A hub: a bridge would believe that the attacker is whom it claims to be, and send it all.
    fabric.underlay.ns.ip("link set underlay type bridge ageing_time 0");
    for tenant in tenants {
        await_ping(fabric.vm(tenant, 1), fabric.vm(tenant, 2).ip);
    }
    assert_unmoved(&fabric, 1);
    assert_unmoved(&fabric, 2);
    fabric.assert_balance();
}

#[test]
fn a_tunnel_to_ourselves_is_refused_or_explained() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Vtep, Footing::Internal], &[&RED]);
    let add = |number: u8, remote: u8| {
        let remote = vtep(remote);
        let line = format!("tunnel add br-int loop0 type=gre remote-ip={remote} key=9 tag=1 underlay=switch");
        fabric.node(number).daemon.ctl(&line.split(' ').collect::<Vec<_>>())
    };
    let said = add(1, 1).expect_err("a tunnel loop");
    assert!(said.contains("is our own address, of port `vtep0`: a tunnel loop"), "{said}");
    // One that only the kernel has, and not from the beginning.
    add(2, 99).expect("nothing is wrong with the configuration");
    fabric.node(2).ns.ip(&format!("addr add {}/24 dev host0", vtep(99)));
    let vm = fabric.vm(&RED, 2);
    let flow = format!("in_port={},dl_src={},dl_dst=ff:ff:ff:ff:ff:ff", vm.port, vm.mac());
    eventually("the switch knows the address for its own", || {
        let explained = fabric.node(2).daemon.ctl(&["trace", "br-int", &flow]).expect("a trace").to_string();
        explained.contains("192.0.2.99 is our own address")
    });
    await_ping(vm, fabric.vm(&RED, 1).ip);
    fabric.assert_balance();
}
