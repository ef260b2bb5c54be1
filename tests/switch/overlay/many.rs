//! As many segments as a big hypervisor has: four times what VLANs could tell apart.

use std::fmt::Write;
use std::time::{Duration, Instant};

use dataplane::poller::Caches;
use flowtable::action::DropReason;

use super::outer::Outer;
use super::{endpoint_mac, node, v4};
use crate::frames::{broadcast, tagged};
use crate::rack::Rack;

const SEGMENTS: usize = 16_000;
/// Every how many segments there are four with a VM.
const SAMPLE: usize = 1000;
/// What a change may take an unoptimised build on a loaded machine: forty times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is added to the ids of a segment that is renumbered.
const RENUMBERED: usize = 1_000_000;

/// The segments, the first 4,000 with a local VLAN; `renumbered` has another id, and ids of different kinds are equal.
fn config(renumbered: Option<usize>) -> String {
    let mut segments = String::new();
    let mut ports = String::from("{ name = 'eth2' },");
    for n in 0..SEGMENTS {
        let id = n + if renumbered == Some(n) { RENUMBERED } else { 0 };
        let network = match n % 4 {
            0 => format!("type = 'vxlan', id = {id}, vteps = ['192.0.2.2']"),
            1 => format!("type = 'gre', id = {id}, vteps = ['192.0.2.2']"),
            2 => format!("type = 'geneve', id = {id}, vteps = ['192.0.2.2']"),
            _ if n / 4 > 0 => format!("type = 'vlan', id = {}, uplink = 'eth2'", n / 4),
            _ => "type = 'local'".to_owned(),
        };
        let vlan = if n < 4000 { format!("vlan = {n}, ") } else { String::new() };
        writeln!(segments, "{{ name = 's{n}', {vlan}{network} }},").unwrap();
        if n % SAMPLE < 4 {
            writeln!(ports, "{{ name = 'vm{n}', segment = 's{n}' }},").unwrap();
        }
    }
    node(1, &segments, &ports)
}

/// Does segment `n`, whose id is `id`, work in both directions?
fn check(rack: &mut Rack, n: usize, id: u32) {
    let vm = format!("vm{n}");
    let (here, there) = (broadcast(1), broadcast(2));
    let (out, back) = match n % 4 {
        0 => (Outer::vxlan(1, 2, id), Outer::vxlan(2, 1, id)),
        1 => (Outer::gre(1, 2, Some(id)), Outer::gre(2, 1, Some(id))),
        2 => (Outer::geneve(1, 2, id), Outer::geneve(2, 1, id)),
        _ if n < 4 => return,
        _ => {
            let vlan = (n / 4) as u16;
            rack.expect(&vm, &here, &[("eth2", &tagged(&here, vlan))]);
            return rack.expect("eth2", &tagged(&there, vlan), &[(&vm, &there)]);
        }
    };
    let sent = rack.send(&vm, std::slice::from_ref(&here));
    assert_eq!(sent.keys().collect::<Vec<_>>(), ["eth1"]);
    let (outer, inner) = Outer::open(&sent["eth1"][0], 8);
    assert_eq!((outer.any_source(), inner), (out, here), "{vm}");
    rack.expect("eth1", &back.wrap(&there), &[(&vm, &there)]);
}

/// How long something took, which is told.
fn timed<R>(what: &str, work: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = work();
    let took = begun.elapsed();
    eprintln!("{what}: {took:?}");
    assert!(took < PATIENCE, "{what} took {took:?}");
    result
}

#[test]
fn sixteen_thousand_segments_work_and_one_changes_alone() {
    let text = config(None);
    let mut rack = timed("read, compile and publish 16,000 segments", || Rack::new(&text, Caches::On));
    timed("publish 16,000 segments once more", || rack.neighbour("vtep1", v4(2), endpoint_mac(2)));
    let sample: Vec<usize> = (0..SEGMENTS).filter(|n| n % SAMPLE < 4).collect();
    sample.iter().for_each(|n| check(&mut rack, *n, *n as u32));
    let flows = rack.switch.flows().len();
    let changed = config(Some(8001));
    timed("change one of 16,000 segments", || rack.apply(&changed));
    let stale = Outer::gre(2, 1, Some(8001)).wrap(&broadcast(2));
    rack.expect_drop("eth1", &stale, DropReason::UnknownSegment);
    check(&mut rack, 8001, (8001 + RENUMBERED) as u32);
    assert!(rack.switch.flows().len() <= flows + 1, "{flows} flows before");
    sample.iter().filter(|n| **n != 8001).for_each(|n| check(&mut rack, *n, *n as u32));
    rack.audit();
}
