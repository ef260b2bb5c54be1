//! Mappings that change while stations are known: what was learned of another network is forgotten, all else stays.

use encap::field::MacAddr;
use flowtable::id::{BridgeId, SegmentId, Station};

use super::lab::{Draft, Lab, ip};
use super::{FROM_2, TO_2, TO_ALL, out_of, overlay};
use crate::segment::Network;

/// Host 2 is in blue behind a VTEP, in red behind another, and local in green.
fn taught() -> Lab {
    let lab = Lab::new(overlay);
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.4", 5001)));
    lab.send(&format!("{},{FROM_2}", out_of("gre0", "192.0.2.4", 7)));
    lab.send(&format!("in_port=vm3,{}", FROM_2.replace("00:02,", "00:03,")));
    lab
}

/// Who is known: stations of blue and red behind VTEPs, the one of blue here; VTEPs learned in blue and red.
fn known(lab: &Lab) -> (bool, bool, bool, usize, usize) {
    let learned = lab.snapshot.learned(BridgeId(1)).unwrap();
    let fdb = learned.fdb();
    let has = |segment, last| {
        let mac = MacAddr([2, 0, 0, 0, 0, last]);
        fdb.lookup(Station { segment: SegmentId(segment), mac }, lab.now).is_some()
    };
    let vteps = |segment| learned.vteps().of(SegmentId(segment), lab.now).len();
    (has(1, 2), has(2, 2), has(1, 3), vteps(1), vteps(2))
}

const ALL: (bool, bool, bool, usize, usize) = (true, true, true, 1, 1);
const WITHOUT_BLUE: (bool, bool, bool, usize, usize) = (false, true, true, 0, 1);

type Change = fn(&mut Draft);

fn tunnel(draft: &mut Draft, segment: &str, change: impl FnOnce(&mut u32, &mut Vec<std::net::IpAddr>)) {
    let Network::Tunnel { id, vteps, .. } = &mut draft.named(segment).network else { panic!("{segment}") };
    change(id, vteps);
}

#[test]
fn a_renumbered_segment_forgets_who_was_beyond_this_switch() {
    let mut lab = taught();
    assert_eq!(known(&lab), ALL);
    lab.change(|draft| tunnel(draft, "blue", |id, _| *id = 5002));
    assert_eq!(known(&lab), WITHOUT_BLUE);
    assert_eq!(
        lab.brief(&format!("in_port=vm1,{TO_2}")),
        "vx0:5002>192.0.2.2@eth1,vx0:5002>192.0.2.3@eth1,vm3",
        "never the old id"
    );
    assert_eq!(lab.brief(&format!("{},{TO_ALL}", out_of("vx0", "192.0.2.2", 5001))), "drop(unknown-segment)");
}

#[test]
fn what_makes_it_another_network_makes_it_forget() {
    let changes: [(&str, Change); 5] = [
        ("gone", |draft| drop(draft.segments.remove(0))),
        ("local", |draft| draft.named("blue").network = Network::Local),
        ("smaller", |draft| tunnel(draft, "blue", |_, vteps| vteps.truncate(1))),
        ("unlearned", |draft| draft.named("blue").learning = false),
        ("strict", |draft| draft.named("blue").strict_peers = true),
    ];
    for (what, change) in changes {
        let mut lab = taught();
        lab.change(change);
        assert_eq!(known(&lab), WITHOUT_BLUE, "{what}");
    }
}

#[test]
fn what_leaves_it_the_same_network_leaves_it_its_stations() {
    let mut lab = taught();
    lab.change(|draft| {
        tunnel(draft, "blue", |_, vteps| vteps.push(ip("192.0.2.9")));
        let blue = draft.named("blue");
        blue.name = "azure".into();
        blue.neighbours.insert(ip("10.0.0.2"), MacAddr([2, 0, 0, 0, 0, 2]));
        let Network::Tunnel { peers, .. } = &mut blue.network else { panic!("azure") };
        peers.clear(); // of no meaning without strict peers
        draft.segment("more", 9, "gre0 9");
    });
    assert_eq!(known(&lab), ALL);
}

#[test]
fn a_strict_segment_keeps_what_its_peers_taught() {
    let mut lab = Lab::new(|draft| {
        overlay(draft);
        draft.named("blue").strict_peers = true;
    });
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.3", 5001)));
    let to_2 = format!("in_port=vm1,{TO_2}");
    lab.change(|draft| tunnel(draft, "blue", |_, vteps| vteps.push(ip("192.0.2.9"))));
    assert_eq!(lab.brief(&to_2), "vx0:5001>192.0.2.3@eth1");
    lab.change(|draft| {
        let Network::Tunnel { peers, .. } = &mut draft.named("blue").network else { panic!("blue") };
        peers.retain(|peer| *peer != ip("192.0.2.3"));
    });
    assert_ne!(lab.brief(&to_2), "vx0:5001>192.0.2.3@eth1", "it may not send any more");
}

#[test]
fn a_provider_segment_forgets_who_is_on_its_wire() {
    let mut lab = Lab::new(|draft| {
        draft.bridge("int");
        draft.port("eth2");
        draft.access("vm1", 1);
        draft.access("vm3", 1);
        draft.segment("a", 1, "eth2 101");
        draft.segment("b", 2, "eth2 102");
    });
    lab.send(&format!("in_port=eth2,dl_vlan=101,{FROM_2}"));
    lab.send(&format!("in_port=eth2,dl_vlan=102,{FROM_2}"));
    lab.send(&format!("in_port=vm3,{}", FROM_2.replace("00:02,", "00:03,")));
    lab.change(|draft| draft.segments.truncate(0));
    let fdb = lab.snapshot.learned(BridgeId(0)).unwrap().fdb();
    let left: Vec<MacAddr> = fdb.entries(lab.now).map(|entry| entry.station.mac).collect();
    assert_eq!(left, [MacAddr([2, 0, 0, 0, 0, 3])]);
}

/// A poller may learn by the old tables once more while the new ones are being published.
#[test]
fn what_is_learned_in_between_is_forgotten_too() {
    let mut lab = taught();
    let before = std::mem::take(&mut lab.snapshot.tables);
    lab.snapshot.tables = before.clone();
    lab.change(|draft| tunnel(draft, "blue", |id, _| *id = 5002));
    let learned = lab.snapshot.learned(BridgeId(1)).unwrap();
    let station = Station { segment: SegmentId(1), mac: MacAddr([2, 0, 0, 0, 0, 2]) };
    let place = flowtable::id::Place::Vtep { tunnel: lab.id("vx0"), address: ip("192.0.2.4") };
    let bits = learned.fdb().learn(station, place, lab.now)
        | learned.vteps().learn(SegmentId(1), ip("192.0.2.4"), lab.now);
    assert_eq!(crate::learn::forget_changed(&before, &lab.snapshot), bits);
    assert_eq!(known(&lab), WITHOUT_BLUE);
}

#[test]
fn a_port_that_leads_elsewhere_takes_what_was_behind_it() {
    let mut lab = taught();
    lab.change(|draft| {
        let crate::tables::PortKind::Tunnel(tunnel) = &mut draft.entry("vx0").kind else { panic!("vx0") };
        tunnel.dst_port = 8472;
    });
    assert!(!known(&lab).0);
}
