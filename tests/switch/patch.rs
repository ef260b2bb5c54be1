//! Patch ports: several bridges, one decision; VLANs rewritten between them; loops.

use flowtable::action::{Action, DropReason};

use crate::frames::{broadcast, tagged, unicast, with_tag};
use crate::rack::both_ways;
use encap::field::EtherType;

/// VLANs 1 and 2 of `int` are 101 and 102 on the provider's wire, as OpenStack Neutron maps them.
const MAPPED: &str = r#"
    [[bridge]]
    name = "int"
    port = [
        { name = "a", tag = 1 },
        { name = "b", tag = 2 },
        { name = "t", trunks = [1, 2] },
        { name = "int1", type = "patch", peer = "ex1", tag = 1, priority-tags = "if-nonzero" },
        { name = "int2", type = "patch", peer = "ex2", tag = 2 },
    ]
    [[bridge]]
    name = "ex"
    port = [
        { name = "wire" },
        { name = "ex1", type = "patch", peer = "int1", tag = 101, priority-tags = "if-nonzero" },
        { name = "ex2", type = "patch", peer = "int2", tag = 102 },
    ]
"#;

#[test]
fn a_local_vlan_is_another_on_the_wire() {
    both_ways(MAPPED, |rack| {
        let sent = broadcast(1);
        rack.expect("a", &sent, &[("t", &tagged(&sent, 1)), ("wire", &tagged(&sent, 101))]);
        let sent = broadcast(2);
        rack.expect("b", &sent, &[("t", &tagged(&sent, 2)), ("wire", &tagged(&sent, 102))]);
        let reply = unicast(3, 1);
        rack.expect("wire", &tagged(&reply, 101), &[("a", &reply)]);
        rack.expect("a", &unicast(1, 3), &[("wire", &tagged(&unicast(1, 3), 101))]);
        rack.expect_drop("wire", &tagged(&reply, 103), DropReason::NoDestination);
    });
}

#[test]
fn the_priority_survives_a_mapping_that_keeps_priority_tags() {
    both_ways(MAPPED, |rack| {
        let sent = broadcast(1);
        let [kept, lost] = [tagged(&sent, 0xb000 | 1), tagged(&sent, 0xb000 | 2)];
        rack.expect("t", &kept, &[("a", &sent), ("wire", &tagged(&sent, 0xb000 | 101))]);
        rack.expect("t", &lost, &[("b", &sent), ("wire", &tagged(&sent, 102))]);
        rack.expect("wire", &tagged(&sent, 0xb000 | 101), &[("a", &sent), ("t", &kept)]);
    });
}

#[test]
fn a_path_through_bridges_is_one_lookup() {
    both_ways(MAPPED, |rack| {
        rack.send("wire", &[tagged(&broadcast(3), 101)]);
        rack.expect("a", &unicast(1, 3), &[("wire", &tagged(&unicast(1, 3), 101))]);
        for flow in rack.flows("a") {
            let actions = flow.actions();
            let outputs = actions.iter().filter(|action| matches!(action, Action::Output(_)));
            assert_eq!((outputs.count(), flow.totals().frames), (1, 3), "{rack:?}");
        }
    });
}

/// A customer's bridge whose frames, tagged or not, travel inside the provider's VLAN 100.
const TUNNELLED: &str = r#"
    [[bridge]]
    name = "customer"
    port = [{ name = "a", tag = 5 }, { name = "t" }, { name = "up", type = "patch", peer = "down" }]
    [[bridge]]
    name = "provider"
    port = [
        { name = "wire" },
        { name = "other", vlan-mode = "dot1q-tunnel", tag = 100 },
        { name = "down", type = "patch", peer = "up", vlan-mode = "dot1q-tunnel", tag = 100 },
    ]
"#;

#[test]
fn customer_tags_travel_inside_the_service_tag() {
    both_ways(TUNNELLED, |rack| {
        let sent = broadcast(1);
        let customer = tagged(&sent, 5);
        let service = with_tag(&customer, EtherType::QINQ, 100);
        rack.expect("a", &sent, &[("t", &customer), ("other", &customer), ("wire", &service)]);
        rack.expect("wire", &service, &[("a", &sent), ("t", &customer), ("other", &customer)]);
        let plain = with_tag(&sent, EtherType::QINQ, 100);
        rack.expect("t", &sent, &[("other", &sent), ("wire", &plain)]);
        rack.expect("wire", &plain, &[("other", &sent), ("t", &sent)]);
        let double = tagged(&tagged(&sent, 0x6009), 7);
        let triple = with_tag(&double, EtherType::QINQ, 100);
        rack.expect("t", &double, &[("other", &double), ("wire", &triple)]);
    });
}

/// Two bridges joined twice, by the second pair in VLAN 5 only.
fn joined_twice(second: &str) -> String {
    let port = |name: &str, peer: &str, more: &str| {
        format!("{{ name = '{name}', type = 'patch', peer = '{peer}'{more} }}")
    };
    let bridge = |name: &str, own: &str, patches: [String; 2]| {
        format!(
            "[[bridge]]\nname = '{name}'\nport = [{{ name = '{own}' }}, {}, {}]\n",
            patches[0], patches[1]
        )
    };
    bridge("one", "a", [port("p1", "q1", ""), port("p2", "q2", second)])
        + &bridge("two", "b", [port("q1", "p1", ""), port("q2", "p2", second)])
}

#[test]
fn a_loop_of_patch_ports_ends_and_heals() {
    both_ways(&joined_twice(""), |rack| {
        rack.expect_drop("a", &broadcast(1), DropReason::TooDeep);
        rack.expect_drop("b", &broadcast(2), DropReason::TooDeep);
        rack.apply(&joined_twice(", trunks = [5]"));
        rack.expect_at("a", &broadcast(1), &["b"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        rack.expect_drop("a", &tagged(&broadcast(1), 5), DropReason::TooDeep);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
    });
}

/// A row of bridges with a port at either end.
fn row(bridges: usize) -> String {
    let mut text = String::new();
    for i in 0..bridges {
        let mut ports = Vec::new();
        if i > 0 {
            ports.push(format!("{{ name = 'w{i}', type = 'patch', peer = 'e{}' }}", i - 1));
        }
        if i + 1 < bridges {
            ports.push(format!("{{ name = 'e{i}', type = 'patch', peer = 'w{}' }}", i + 1));
        }
        ports.extend((i == 0).then(|| "{ name = 'a' }".into()));
        ports.extend((i + 1 == bridges).then(|| "{ name = 'b' }".into()));
        text += &format!("[[bridge]]\nname = 'br{i}'\nport = [{}]\n", ports.join(", "));
    }
    text
}

#[test]
fn a_row_of_bridges_is_passed_up_to_the_limit() {
    both_ways(&row(64), |rack| {
        rack.expect_at("a", &broadcast(1), &["b"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
    });
    both_ways(&row(65), |rack| rack.expect_drop("a", &broadcast(1), DropReason::TooDeep));
}

#[test]
fn a_patch_port_without_peer_leads_nowhere() {
    let config = r#"
        [[bridge]]
        name = "br0"
        port = [{ name = "a" }, { name = "b" }, { name = "p", type = "patch", peer = "nobody" }]
    "#;
    both_ways(config, |rack| rack.expect_at("a", &broadcast(1), &["b"]));
}
