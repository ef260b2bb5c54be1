//! Changes of the configuration while flows are cached, and `trace`, which must change nothing.

use dataplane::switch::Learn;
use flowtable::action::{Action, DropReason};
use flowtable::extract::extract;
use flowtable::key::FlowKey;

use dataplane::poller::Caches;

use crate::THREE;
use crate::frames::{broadcast, igmp, ip, tagged, unicast};
use crate::rack::{Rack, both_ways};

/// Three access ports in these VLANs, and what else the bridge has.
fn access(tags: [u16; 3], settings: &str) -> String {
    let port = |(name, tag)| format!("{{ name = '{name}', tag = {tag} }}");
    let ports: Vec<String> = ["a", "b", "c"].into_iter().zip(tags).map(port).collect();
    format!("[[bridge]]\nname = 'br0'\n{settings}\nport = [{}]", ports.join(", "))
}

#[test]
fn a_change_elsewhere_keeps_flows_and_their_counters() {
    let mut rack = Rack::new(&access([1, 1, 1], ""), Caches::On);
    rack.send("b", &[broadcast(2)]);
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    let before = rack.flows("a");
    let later = [
        access([1, 1, 1], "mac-table-size = 100"),
        access([1, 1, 7], ""),
        access([1, 1, 7], "") + "\n[[bridge]]\nname = 'br1'\nport = [{ name = 'x' }]",
        access([1, 1, 1], "forward-bpdu = true"),
    ];
    for (times, config) in later.iter().enumerate() {
        rack.apply(config);
        let after = rack.flows("a");
        assert!(before[0] == after[0], "another flow\n{rack:?}");
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        assert_eq!(after[0].totals().frames as usize, 3 * (times + 2), "{rack:?}");
    }
    rack.audit();
}

#[test]
fn a_change_holds_from_the_very_next_frame() {
    both_ways(&access([1, 1, 2], ""), |rack| {
        rack.send("b", &[broadcast(2)]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        rack.apply(&access([1, 2, 1], ""));
        rack.expect_at("a", &unicast(1, 2), &["c"]);
        rack.apply(&access([2, 2, 1], ""));
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        rack.apply(&access([3, 2, 1], ""));
        rack.expect_drop("a", &unicast(1, 2), DropReason::NoDestination);
    });
}

/// Frames that wait in the port while the change comes are already treated by the new tables.
#[test]
fn a_change_holds_for_frames_that_wait() {
    both_ways(&access([1, 1, 2], ""), |rack| {
        rack.send("b", &[broadcast(2)]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        (0..40).for_each(|_| assert!(rack.cable("a").inject(&unicast(1, 2))));
        rack.apply(&access([1, 2, 1], ""));
        let out = rack.drain();
        assert_eq!((out.len(), out["c"].len()), (1, 40), "{rack:?}");
    });
}

#[test]
fn a_protected_port_is_so_at_once_and_a_flood_reaches_a_new_port() {
    both_ways(THREE, |rack| {
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.apply(
            "bridge = [{ name = 'br0', port = [
                { name = 'a', protected = true }, { name = 'b', protected = true }, { name = 'c' }, { name = 'd' } ] }]",
        );
        rack.expect_at("a", &broadcast(1), &["c", "d"]);
        rack.expect_drop("b", &unicast(2, 1), DropReason::Protected);
        rack.apply(THREE);
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
    });
}

#[test]
fn a_bridge_that_is_removed_forgets_and_one_of_its_name_starts_anew() {
    let two = "[[bridge]]\nname = 'br1'\nport = [{ name = 'x' }, { name = 'y' }, { name = 'z' }]\n";
    both_ways(&(two.to_owned() + THREE), |rack| {
        rack.send("x", &[broadcast(1)]);
        rack.expect_at("y", &unicast(2, 1), &["x"]);
        rack.send("a", &[broadcast(1)]);
        rack.apply(THREE);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.apply(&(two.to_owned() + THREE));
        rack.expect_at("y", &unicast(2, 1), &["x", "z"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
    });
}

fn key(rack: &Rack, port: &str, frame: &[u8]) -> FlowKey {
    extract(frame, rack.id(port)).unwrap()
}

#[test]
fn a_trace_tells_what_would_happen_and_changes_nothing() {
    let mut rack = Rack::new(&access([1, 1, 2], ""), Caches::On);
    rack.send("b", &[broadcast(2)]);
    let known = rack.switch.trace(&key(&rack, "a", &unicast(1, 2)), Learn::No);
    assert_eq!(*known.decision.actions, [Action::Output(rack.id("b"))]);
    let text: Vec<&str> = known.steps.iter().map(|step| step.text.as_str()).collect();
    assert!(
        text.iter().any(|step| step.contains("`br0`")) && text.iter().any(|step| step.contains("`b`")),
        "{text:?}"
    );
    let refused = rack.switch.trace(&key(&rack, "c", &tagged(&unicast(3, 2), 1)), Learn::No);
    assert_eq!(*refused.decision.actions, [Action::Drop(DropReason::Vlan)]);
    assert_eq!(refused.steps.last().map(|step| step.text.as_str()), Some("drop: vlan"));
    assert_eq!((rack.fdb("br0").len(), rack.flows("a").len(), rack.flows("c").len()), (1, 0, 0), "{rack:?}");
    assert_eq!(rack.switch.total_stats().dropped(DropReason::Vlan), 0);
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    assert_eq!(rack.flows("a")[0].decision(), known.decision, "the same function\n{rack:?}");
}

#[test]
fn a_trace_that_learns_is_like_a_frame() {
    let mut rack = Rack::new(THREE, Caches::On);
    rack.send("b", &[broadcast(2)]);
    rack.expect_at("b", &unicast(2, 1), &["a", "c"]);
    rack.switch.trace(&key(&rack, "a", &unicast(1, 2)), Learn::Yes);
    rack.settle();
    assert_eq!(rack.fdb("br0").len(), 2, "{rack:?}");
    rack.expect_at("b", &unicast(2, 1), &["a"]);
    let report = igmp((ip(3), [239, 1, 1, 1].into()), 0x16, [239, 1, 1, 1], &[]);
    rack.switch.trace(&key(&rack, "c", &report), Learn::Yes);
    assert!(rack.mdb("br0").is_empty(), "a key has no payload to believe");
}
