//! Tunnels over several pollers: outer frames come in by one, inner frames leave by another, and the other way round.

use dataplane::poller::Caches;
use dataplane::switch::SwitchConfig;

use super::outer::Outer;
use super::reach::{WIRES, all_talk, configs, vms};
use super::{endpoint_mac, node, v4};
use crate::fabric::Fabric;
use crate::frames::{broadcast, unicast};
use crate::rack::Rack;

fn settings(caches: Caches) -> SwitchConfig {
    SwitchConfig { caches, cores: vec![0, 1, 2], ..SwitchConfig::default() }
}

#[test]
fn everybody_hears_the_same_with_three_pollers_on_each_hypervisor() {
    let places: Vec<_> = (0..6).flat_map(|tenant| (0..3).map(move |host| (tenant, host))).collect();
    let vms = vms(&places);
    for caches in [Caches::On, Caches::Off] {
        let mut fabric = Fabric::new(&configs(&vms), &WIRES, &settings(caches));
        all_talk(&mut fabric, &vms);
        fabric.audit();
    }
}

/// A segment with a VM, and a wire.
fn rack() -> Rack {
    let segment = "{ name = 's', type = 'vxlan', id = 7, vteps = ['192.0.2.2'] }";
    let mut rack = Rack::with(&node(1, segment, "{ name = 'vm', segment = 's' }"), settings(Caches::On));
    rack.neighbour("vtep1", v4(2), endpoint_mac(2));
    rack
}

#[test]
fn whichever_pollers_have_the_wire_and_the_vm_frames_arrive() {
    let mut rack = rack();
    for (wire, vm) in [(0, 1), (1, 0), (2, 2), (1, 2)] {
        rack.switch.place(rack.id("eth1"), 0, wire).unwrap();
        rack.switch.place(rack.id("vm"), 0, vm).unwrap();
        rack.settle();
        rack.expect("eth1", &Outer::vxlan(2, 1, 7).wrap(&broadcast(2)), &[("vm", &broadcast(2))]);
        for _ in 0..3 {
            let out = rack.send("vm", &[unicast(1, 2)]);
            let (outer, inner) = Outer::open(&out["eth1"][0], 8);
            assert_eq!((outer.any_source(), inner), (Outer::vxlan(1, 2, 7), unicast(1, 2)));
        }
        rack.audit();
    }
    // All poller share what one decided: an outer and an inner flow, and that of the VM.
    assert_eq!(["eth1", "vx", "vm"].map(|port| rack.flows(port).len()), [1, 1, 1], "{rack:?}");
}

#[test]
fn frames_under_way_between_pollers_are_held_in_and_out_of_tunnels() {
    let mut rack = rack();
    rack.switch.place(rack.id("eth1"), 0, 0).unwrap();
    rack.switch.place(rack.id("vm"), 0, 1).unwrap();
    rack.settle();
    let arriving = Outer::vxlan(2, 1, 7).wrap(&broadcast(2));
    assert!((0..40).all(|_| rack.cable("eth1").inject(&arriving) && rack.cable("vm").inject(&broadcast(1))));
    rack.turn(0);
    rack.turn(0);
    let ledger = rack.audit();
    assert_eq!((ledger.rx, ledger.tx, ledger.held), (40, 0, 40), "{rack:?}");
    rack.settle();
    let ledger = rack.audit();
    assert_eq!((ledger.rx, ledger.tx, ledger.held), (80, 80, 0), "{rack:?}");
    assert_eq!((rack.cable("vm").drain().len(), rack.cable("eth1").drain().len()), (40, 40));
}
