//! Learning, filtering and forwarding (IEEE 802.1D), the limits of the table, and who is never forwarded to.

use std::time::Duration;

use encap::field::MacAddr;
use flowtable::action::DropReason;
use flowtable::fdb::Origin;

use crate::THREE;
use crate::frames::{broadcast, frame, gratuitous_arp, mac, tagged, unicast};
use crate::rack::{Rack, both_ways};

/// A bridge with these settings and three ports.
fn bridge(settings: &str) -> String {
    format!(
        "bridge = [{{ name = 'br0', {settings}, port = [{{ name = 'a' }}, {{ name = 'b' }}, {{ name = 'c' }}] }}]"
    )
}

#[test]
fn unknown_stations_flood_and_known_ones_are_reached_by_their_port_only() {
    both_ways(THREE, |rack| {
        rack.expect_at("a", &unicast(1, 2), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        rack.expect_at("c", &broadcast(3), &["a", "b"]);
        rack.expect_at("a", &unicast(1, 3), &["c"]);
    });
}

#[test]
fn nothing_goes_back_out_of_the_port_it_came_in_by() {
    both_ways(THREE, |rack| {
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("a", &broadcast(2), &["b", "c"]);
        rack.expect_drop("a", &unicast(1, 2), DropReason::NoDestination);
        rack.expect_drop("a", &unicast(1, 1), DropReason::NoDestination);
    });
}

#[test]
fn each_vlan_learns_for_itself() {
    both_ways(THREE, |rack| {
        rack.expect_at("a", &tagged(&broadcast(1), 10), &["b", "c"]);
        rack.expect_at("b", &tagged(&broadcast(1), 20), &["a", "c"]);
        rack.expect_at("c", &tagged(&unicast(3, 1), 10), &["a"]);
        rack.expect_at("c", &tagged(&unicast(3, 1), 20), &["b"]);
        rack.expect_at("c", &unicast(3, 1), &["a", "b"]);
        assert_eq!(rack.fdb("br0").len(), 5);
    });
}

#[test]
fn an_entry_goes_after_300_seconds_without_its_station() {
    both_ways(THREE, |rack| {
        rack.expect_at("b", &broadcast(2), &["a", "c"]);
        rack.wait(Duration::from_secs(299));
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        assert_eq!(rack.fdb("br0").iter().find(|e| e.station.mac == mac(2)).unwrap().age.as_secs(), 299);
        rack.wait(Duration::from_secs(2));
        rack.expect_at("a", &unicast(1, 2), &["b", "c"]);
        assert_eq!(rack.fdb("br0").len(), 1, "{rack:?}");
        rack.wait(Duration::from_secs(302));
        assert!(rack.fdb("br0").is_empty(), "{rack:?}");
    });
}

#[test]
fn frames_that_hit_the_cache_keep_their_sender_known() {
    both_ways(&bridge("mac-aging-time = 15"), |rack| {
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.expect_at("c", &broadcast(3), &["a", "b"]);
        for _ in 0..10 {
            rack.wait(Duration::from_secs(5));
            rack.send("b", &[unicast(2, 9)]);
        }
        rack.expect_at("c", &unicast(3, 2), &["b"]);
        rack.expect_at("c", &unicast(3, 1), &["a", "b"]);
    });
}

#[test]
fn a_cached_flow_to_a_station_that_aged_out_floods_again() {
    both_ways(&bridge("mac-aging-time = 15"), |rack| {
        rack.expect_at("b", &broadcast(2), &["a", "c"]);
        for _ in 0..15 {
            rack.expect_at("a", &unicast(1, 2), &["b"]);
            rack.wait(Duration::from_secs(1));
        }
        rack.wait(Duration::from_secs(1));
        rack.expect_at("a", &unicast(1, 2), &["b", "c"]);
    });
}

#[test]
fn stations_move_back_and_forth_under_cached_flows() {
    both_ways(THREE, |rack| {
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        for _ in 0..4 {
            rack.expect_at("a", &unicast(1, 2), &["b"]);
            rack.send("c", &[gratuitous_arp(2)]);
            rack.expect_at("a", &unicast(1, 2), &["c"]);
            rack.expect_at("c", &unicast(2, 1), &["a"]);
            rack.expect_at("a", &unicast(1, 2), &["c"]);
            rack.expect_at("b", &unicast(2, 1), &["a"]);
        }
        rack.expect_drop("b", &unicast(1, 2), DropReason::NoDestination);
    });
}

#[test]
fn a_full_table_takes_from_the_port_that_holds_most() {
    both_ways(&bridge("mac-table-size = 10"), |rack| {
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("c", &broadcast(2), &["a", "b"]);
        for n in 100..120 {
            rack.wait(Duration::from_secs(1));
            rack.send("b", &[broadcast(n)]);
        }
        assert_eq!(rack.fdb("br0").len(), 10, "{rack:?}");
        rack.expect_at("c", &unicast(2, 1), &["a"]);
        rack.expect_at("a", &unicast(1, 2), &["c"]);
        for n in 112..120 {
            rack.expect_at("a", &unicast(1, n), &["b"]);
        }
        rack.expect_at("a", &unicast(1, 111), &["b", "c"]);
        rack.expect_at("a", &broadcast(3), &["b", "c"]);
        rack.expect_at("c", &unicast(2, 112), &["a", "b"]);
        rack.expect_at("c", &unicast(2, 113), &["b"]);
    });
}

#[test]
fn static_entries_neither_move_nor_age() {
    let at = |port| bridge(&format!("fdb = [{{ mac = '02:00:00:00:00:09', vlan = 0, port = '{port}' }}]"));
    both_ways(&at("b"), |rack| {
        rack.expect_at("a", &unicast(1, 9), &["b"]);
        rack.expect_at("c", &broadcast(9), &["a", "b"]);
        rack.expect_at("a", &unicast(1, 9), &["b"]);
        rack.wait(Duration::from_secs(700));
        rack.expect_at("a", &unicast(1, 9), &["b"]);
        assert!(rack.fdb("br0").iter().any(|e| e.origin == Origin::Static && e.station.mac == mac(9)));
        rack.apply(&at("c"));
        rack.expect_at("a", &unicast(1, 9), &["c"]);
        rack.apply(THREE);
        rack.expect_at("a", &unicast(1, 9), &["b", "c"]);
        rack.expect_at("b", &unicast(9, 1), &["a"]);
        rack.expect_at("a", &unicast(1, 9), &["b"]);
    });
}

#[test]
fn a_static_entry_that_comes_replaces_what_was_learned() {
    both_ways(THREE, |rack| {
        rack.expect_at("b", &broadcast(9), &["a", "c"]);
        rack.expect_at("a", &unicast(1, 9), &["b"]);
        rack.apply(&bridge("fdb = [{ mac = '02:00:00:00:00:09', vlan = 0, port = 'c' }]"));
        rack.expect_at("a", &unicast(1, 9), &["c"]);
        rack.expect_at("b", &unicast(9, 1), &["a"]);
        rack.expect_at("a", &unicast(1, 9), &["c"]);
    });
}

/// Addresses that are for bridges, or for what its vendor puts in their place (ovs-vswitchd.conf.db(5),
/// `forward-bpdu`).
const RESERVED: [[u8; 6]; 13] = [
    [0x01, 0x80, 0xc2, 0, 0, 0x00],
    [0x01, 0x80, 0xc2, 0, 0, 0x01],
    [0x01, 0x80, 0xc2, 0, 0, 0x0e],
    [0x01, 0x80, 0xc2, 0, 0, 0x0f],
    [0x00, 0xe0, 0x2b, 0, 0, 0x00],
    [0x00, 0xe0, 0x2b, 0, 0, 0x04],
    [0x00, 0xe0, 0x2b, 0, 0, 0x06],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd],
    [0x01, 0x00, 0x0c, 0xcd, 0xcd, 0xcd],
    [0x01, 0x00, 0x0c, 0x00, 0x00, 0x00],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xc0],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xc7],
];
/// Their neighbours, which are not.
const ORDINARY: [[u8; 6]; 4] = [
    [0x01, 0x80, 0xc2, 0, 0, 0x10],
    [0x00, 0xe0, 0x2b, 0, 0, 0x05],
    [0x01, 0x00, 0x0c, 0xcc, 0xcd, 0xcc],
    [0x01, 0x00, 0x5e, 0, 0, 1],
];

#[test]
fn reserved_addresses_are_forwarded_only_if_the_operator_says_so() {
    both_ways(THREE, |rack| {
        for address in RESERVED {
            rack.expect_drop("a", &frame(mac(1), MacAddr(address)), DropReason::Reserved);
        }
        assert!(rack.fdb("br0").is_empty(), "nothing is learned from them\n{rack:?}");
        for address in ORDINARY {
            rack.expect_at("a", &frame(mac(1), MacAddr(address)), &["b", "c"]);
        }
        rack.apply(&bridge("forward-bpdu = true"));
        for address in RESERVED {
            rack.expect_at("a", &frame(mac(1), MacAddr(address)), &["b", "c"]);
        }
    });
}

#[test]
fn a_group_is_nobodys_source() {
    both_ways(THREE, |rack| {
        for source in [MacAddr::BROADCAST, MacAddr([0x01, 0, 0x5e, 0, 0, 1]), MacAddr([3, 0, 0, 0, 0, 0])] {
            rack.expect_drop("a", &frame(source, mac(2)), DropReason::SourceMulticast);
            rack.expect_drop(
                "a",
                &tagged(&frame(source, MacAddr::BROADCAST), 10),
                DropReason::SourceMulticast,
            );
        }
        assert!(rack.fdb("br0").is_empty(), "{rack:?}");
    });
}

#[test]
fn flood_vlans_learn_nothing() {
    both_ways(&bridge("flood-vlans = [5]"), |rack| {
        rack.expect_at("a", &tagged(&broadcast(1), 5), &["b", "c"]);
        rack.expect_at("a", &tagged(&broadcast(1), 6), &["b", "c"]);
        rack.expect_at("b", &tagged(&unicast(2, 1), 5), &["a", "c"]);
        rack.expect_at("b", &tagged(&unicast(2, 1), 6), &["a"]);
        assert!(rack.fdb("br0").iter().all(|entry| entry.station.segment.0 == 6), "{rack:?}");
        rack.apply(&bridge("flood-vlans = [6]"));
        rack.expect_at("b", &tagged(&unicast(2, 1), 6), &["a", "c"]);
        rack.expect_at("a", &tagged(&broadcast(1), 5), &["b", "c"]);
        rack.expect_at("b", &tagged(&unicast(2, 1), 5), &["a"]);
    });
}

#[test]
fn protected_ports_see_only_the_others() {
    let config = r#"
        [[bridge]]
        name = "br0"
        port = [{ name = "a", protected = true }, { name = "b", protected = true }, { name = "c" }]
    "#;
    both_ways(config, |rack| {
        rack.expect_at("a", &broadcast(1), &["c"]);
        rack.expect_at("b", &broadcast(2), &["c"]);
        rack.expect_drop("a", &unicast(1, 2), DropReason::Protected);
        rack.expect_at("c", &unicast(3, 1), &["a"]);
        rack.expect_at("c", &broadcast(3), &["a", "b"]);
        rack.expect_at("a", &unicast(1, 3), &["c"]);
        rack.apply(THREE);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
    });
}

#[test]
fn a_flush_forgets_stations_and_cached_flows_to_them() {
    both_ways(THREE, |rack| {
        let known = |rack: &mut Rack| {
            rack.send("a", &[broadcast(1)]);
            rack.send("b", &[broadcast(2)]);
            rack.expect_at("a", &unicast(1, 2), &["b"]);
            rack.expect_at("b", &unicast(2, 1), &["a"]);
        };
        known(rack);
        let bridge = rack.bridge("br0");
        assert_eq!(rack.switch.fdb_flush(bridge, Some(rack.id("b"))), 1);
        rack.settle();
        rack.expect_at("a", &unicast(1, 2), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        known(rack);
        assert_eq!(rack.switch.fdb_flush(bridge, None), 2);
        rack.settle();
        rack.expect_at("a", &unicast(1, 2), &["b", "c"]);
        known(rack);
    });
}
