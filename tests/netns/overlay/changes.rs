//! What changes while tenants work: VMs move, hypervisors die, segments get other numbers.

use std::net::IpAddr;

use crate::support::fabric::{BLUE, Fabric, Footing, GREEN, GREY, RED, Tenant};
use crate::support::lab::{Seat, eventually};
use crate::support::traffic::{Blast, await_ping, tcp};
use crate::support::wire::{Wire, announcement};

const KIB: usize = 1 << 10;

/// Moves a VM, which announces itself there, and no switch believes it elsewhere. Do the others of its tenant reach it within a
/// second?
fn migrate(fabric: &Fabric, tenant: &Tenant, (from, to): (u8, u8)) -> bool {
    let vm = fabric.vm(tenant, 1);
    fabric.node(from).hand_over(tenant, vm, fabric.node(to));
    Wire::of(vm).send(&announcement(vm));
    let is_reached = [2, 3].iter().all(|other| fabric.vm(tenant, *other).reaches(vm.ip));
    for node in &fabric.nodes {
        let there = node.number == to;
        let wanted = |(port, vtep): (String, Option<IpAddr>)| match vtep {
            None if there => port == vm.port,
            None => port == "provider",
            vtep => vtep == Some(fabric.node(to).address()),
        };
        eventually(&format!("hypervisor {} knows where {} is", node.number, vm.port), || {
            node.place(tenant, &vm.mac()).is_some_and(wanted)
        });
    }
    [2, 3].iter().for_each(|other| await_ping(fabric.vm(tenant, *other), vm.ip));
    is_reached
}

/// How often a VM may go round until nobody misses it: whatever else the machine does takes cores from all switches.
const ROUNDS: usize = 3;

#[test]
fn a_vm_that_moves_is_reachable_within_a_second() {
    let Some(_seat) = Seat::take() else { return };
    let fabric =
        Fabric::new(&[Footing::Vtep, Footing::Internal, Footing::Vtep], &[&RED, &GREEN, &BLUE, &GREY]);
    for tenant in [&RED, &GREEN, &BLUE, &GREY] {
        for other in [2, 3] {
            await_ping(fabric.vm(tenant, other), fabric.vm(tenant, 1).ip);
        }
        let round = || [(1, 3), (3, 2), (2, 1)].map(|way| migrate(&fabric, tenant, way));
        let rounds: Vec<_> =
            (0..ROUNDS).map(|_| round()).take_while(|round| round.contains(&false)).collect();
        assert!(rounds.len() < ROUNDS, "who of tenant {} was reached where: {rounds:?}", tenant.name);
    }
    fabric.assert_balance();
}

#[test]
fn a_hypervisor_that_dies_is_missed_by_nobody_else_and_comes_back() {
    let Some(_seat) = Seat::take() else { return };
    let mut fabric = Fabric::new(&[Footing::Vtep, Footing::Internal, Footing::Host], &[&RED, &GREEN]);
    for victim in 1..=3 {
        let others: Vec<u8> = (1..=3).filter(|n| *n != victim).collect();
        for tenant in [&RED, &GREEN] {
            let vm = |n: u8| fabric.vm(tenant, n);
            (1..=3).for_each(|n| await_ping(vm(n), vm(n % 3 + 1).ip));
        }
        let (from, to) = (fabric.vm(&RED, others[0]), fabric.vm(&RED, others[1]));
        let blast = Blast::start(from, to, 500, 200);
        blast.await_more(100);
        fabric.nodes[usize::from(victim) - 1].die();
        let (from, to) = (fabric.vm(&GREEN, others[0]), fabric.vm(&GREEN, others[1]));
        tcp(from, to, 256 * KIB);
        assert!(!from.pings(fabric.vm(&GREEN, victim).ip), "the dead hypervisor {victim} forwards");
        blast.await_more(100);
        fabric.nodes[usize::from(victim) - 1].revive();
        for tenant in [&RED, &GREEN] {
            for other in &others {
                await_ping(fabric.vm(tenant, *other), fabric.vm(tenant, victim).ip);
                await_ping(fabric.vm(tenant, victim), fabric.vm(tenant, *other).ip);
            }
        }
        let tally = blast.stop();
        assert_eq!((tally.lost(), tally.duplicated), (0, 0), "{tally:?} between hypervisors {others:?}");
    }
    fabric.assert_balance();
}

/// The number that frames of a kind of tunnel carry: 24 bits behind outer Ethernet, IPv4 and UDP and four bytes (RFC
/// 7348 section 5, RFC 8926 section 3.4), or 32 bits behind four bytes of GRE (RFC 2890 section 2).
fn id(frame: &[u8], udp_port: Option<u16>) -> Option<u32> {
    let word = |at: usize| frame.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let is_ipv4 = frame.get(12..15) == Some(&[0x08, 0x00, 0x45]);
    match (udp_port, frame.get(23)?) {
        (Some(port), 17) if is_ipv4 && frame.get(36..38) == Some(&port.to_be_bytes()) => Some(word(46)? >> 8),
        (None, 47) if is_ipv4 => word(38),
        _ => None,
    }
}

/// Bytes of a datagram of a blast.
const SIZE: usize = 100;

/// Is this a frame of a blast, with a datagram that was sent after so many? What the wire still held is older.
fn is_after(frame: &[u8], sent: u64) -> bool {
    let number = frame.last_chunk::<SIZE>().and_then(|datagram| datagram.first_chunk());
    number.is_some_and(|number| u64::from_be_bytes(*number) > sent)
}

/// What some frames have that the first hypervisor sends with datagrams after so many.
fn on_wire<T>(wire: &mut Wire, sent: u64, read: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
    let mut all = Vec::new();
    eventually("frames on the wire", || {
        let frames = wire.seen();
        all.extend(frames.iter().filter(|frame| is_after(frame, sent)).filter_map(|frame| read(frame)));
        all.len() >= 20
    });
    all
}

/// Gives the segment other numbers, one after the other, on both sides, while datagrams flow.
fn renumber(fabric: &Fabric, tenant: &Tenant, udp_port: Option<u16>) {
    let blast = Blast::start(fabric.vm(tenant, 1), fabric.vm(tenant, 2), 1000, SIZE);
    blast.await_more(100);
    for number in [6001, 6002, 6003] {
        let change = format!("segment set {} id={number}", tenant.name);
        fabric.node(1).daemon.ask(&change);
        // It is the command's return that counts.
        let sent = blast.sent();
        let mut wire = Wire::on(&fabric.underlay.ns, "n0");
        let ids = on_wire(&mut wire, sent, |frame| id(frame, udp_port));
        assert!(ids.iter().all(|id| *id == number), "after `{change}` frames left with {ids:?}");
        fabric.node(2).daemon.ask(&change);
        blast.await_more(100);
    }
    let tally = blast.stop();
    assert_eq!(tally.duplicated, 0, "{tally:?}");
    let said = fabric.node(2).daemon.ask("drops").to_string();
    assert!(said.contains("unknown-segment"), "frames with unknown numbers are not counted: {said}");
}

#[test]
fn segments_are_renumbered_under_load() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Vtep, Footing::Host], &[&RED, &GREEN, &BLUE]);
    for (tenant, udp_port) in [(&RED, Some(4789)), (&GREEN, None), (&BLUE, Some(6081))] {
        await_ping(fabric.vm(tenant, 1), fabric.vm(tenant, 2).ip);
        renumber(&fabric, tenant, udp_port);
        await_ping(fabric.vm(tenant, 2), fabric.vm(tenant, 1).ip);
    }
    fabric.assert_balance();
}

/// The provider's VLAN changes on both sides, and nobody hears the tenant in the old one.
#[test]
fn a_provider_vlan_is_renumbered_under_load() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Vtep, Footing::Vtep], &[&GREY]);
    let blast = Blast::start(fabric.vm(&GREY, 1), fabric.vm(&GREY, 2), 1000, SIZE);
    blast.await_more(100);
    for vlan in [102_u8, 103] {
        fabric.node(1).daemon.ask(&format!("segment set grey id={vlan}"));
        let sent = blast.sent();
        let mut wire = Wire::on(&fabric.provider.ns, "n0");
        let tags = on_wire(&mut wire, sent, |frame| (frame[12..14] == [0x81, 0]).then_some(frame[15]));
        assert!(tags.iter().all(|tag| *tag == vlan), "frames left with VLANs {tags:?}, not {vlan}");
        fabric.node(2).daemon.ask(&format!("segment set grey id={vlan}"));
        blast.await_more(100);
    }
    assert_eq!(blast.stop().duplicated, 0);
    await_ping(fabric.vm(&GREY, 1), fabric.vm(&GREY, 2).ip);
    fabric.assert_balance();
}
