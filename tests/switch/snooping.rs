//! Multicast snooping (RFC 4541; ovs-vswitchd.conf.db(5), `mcast_snooping_enable`): who gets which group.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flowtable::action::DropReason;

use crate::frames::{broadcast, igmp, ip, link_local, mld, multicast, multicast6, tagged, unicast};
use crate::rack::{Rack, both_ways};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x101);
/// All hosts, all routers, IGMPv3 routers.
const HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
const V3_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);
const HOSTS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ROUTERS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MLD2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// A snooping bridge with three hosts, 1 to 3, on `a` to `c`, and a router, 9, on `r`.
fn config(settings: &str, c: &str) -> String {
    format!(
        "[[bridge]]\nname = 'br0'\nmcast-snooping-enable = true\n{settings}\n
         port = [{{ name = 'a' }}, {{ name = 'b' }}, {{ name = 'c'{c} }}, {{ name = 'r' }}]"
    )
}

fn plain() -> String {
    config("", "")
}

fn report(host: u8, group: Ipv4Addr) -> Vec<u8> {
    igmp((ip(host), group), 0x16, group.octets(), &[])
}

fn leave(host: u8, group: Ipv4Addr) -> Vec<u8> {
    igmp((ip(host), ROUTERS), 0x17, group.octets(), &[])
}

fn query(host: u8) -> Vec<u8> {
    igmp((ip(host), HOSTS), 0x11, [0; 4], &[])
}

/// A version 3 report about one group without sources: 4 is "from now on all but", 3 "from now on none but".
fn report_v3(host: u8, kind: u8, group: Ipv4Addr) -> Vec<u8> {
    let record = [&[kind, 0, 0, 0][..], &group.octets()].concat();
    igmp((ip(host), V3_ROUTERS), 0x22, [0, 0, 0, 1], &record)
}

fn query6(host: u8) -> Vec<u8> {
    mld((link_local(host), HOSTS6), 130, [0; 4], &[0; 16])
}

fn report6(host: u8, group: Ipv6Addr) -> Vec<u8> {
    mld((link_local(host), group), 131, [0; 4], &group.octets())
}

fn done6(host: u8, group: Ipv6Addr) -> Vec<u8> {
    mld((link_local(host), ROUTERS6), 132, [0; 4], &group.octets())
}

fn report6_v2(host: u8, kind: u8, group: Ipv6Addr) -> Vec<u8> {
    let record = [&[kind, 0, 0, 0][..], &group.octets()].concat();
    mld((link_local(host), MLD2_ROUTERS), 143, [0, 0, 0, 1], &record)
}

/// A router asks, and everybody hears it.
#[track_caller]
fn with_router(rack: &mut Rack) {
    rack.expect_at("r", &query(9), &["a", "b", "c"]);
    rack.expect_at("r", &query6(9), &["a", "b", "c"]);
}

#[test]
fn without_snooping_every_group_floods() {
    both_ways(
        "bridge = [{ name = 'br0', port = [{ name = 'a' }, { name = 'b' }, { name = 'c' }] }]",
        |rack| {
            rack.expect_at("b", &report(2, GROUP), &["a", "c"]);
            rack.expect_at("a", &multicast(1, GROUP), &["b", "c"]);
            assert!(rack.mdb("br0").is_empty());
        },
    );
}

#[test]
fn reports_go_to_routers_only() {
    both_ways(&plain(), |rack| {
        rack.expect_drop("b", &report(2, GROUP), DropReason::NoDestination);
        with_router(rack);
        rack.expect_at("b", &report(2, GROUP), &["r"]);
        rack.expect_at("b", &igmp((ip(2), GROUP), 0x12, GROUP.octets(), &[]), &["r"]);
        rack.expect_at("b", &report_v3(2, 4, GROUP), &["r"]);
        rack.expect_at("b", &report6(2, GROUP6), &["r"]);
        rack.expect_at("b", &report6_v2(2, 4, GROUP6), &["r"]);
        rack.expect_at("b", &leave(2, GROUP), &["r"]);
        rack.expect_at("b", &done6(2, GROUP6), &["r"]);
        rack.expect_drop("r", &report(9, GROUP), DropReason::NoDestination);
    });
}

#[test]
fn a_group_goes_to_its_members_and_to_routers() {
    both_ways(&plain(), |rack| {
        let (v4, v6) = (multicast(1, GROUP), multicast6(1, GROUP6));
        rack.expect_at("a", &v4, &["b", "c", "r"]);
        rack.expect_at("a", &v6, &["b", "c", "r"]);
        rack.send("b", &[report(2, GROUP), report6(2, GROUP6)]);
        rack.expect_at("a", &v4, &["b"]);
        rack.expect_at("a", &v6, &["b"]);
        with_router(rack);
        rack.expect_at("a", &v4, &["b", "r"]);
        rack.expect_at("a", &v6, &["b", "r"]);
        rack.send("c", &[report(3, GROUP), report6(3, GROUP6)]);
        rack.expect_at("a", &v4, &["b", "c", "r"]);
        rack.expect_at("b", &multicast(2, GROUP), &["c", "r"]);
        rack.expect_at("r", &multicast(9, GROUP), &["b", "c"]);
        rack.send("b", &[leave(2, GROUP), done6(2, GROUP6)]);
        rack.expect_at("a", &v4, &["c", "r"]);
        rack.expect_at("a", &v6, &["c", "r"]);
        rack.send("c", &[leave(3, GROUP), done6(3, GROUP6)]);
        rack.expect_at("a", &v4, &["b", "c", "r"]);
        rack.expect_at("a", &v6, &["b", "c", "r"]);
    });
}

#[test]
fn every_version_of_a_report_is_understood() {
    both_ways(&plain(), |rack| {
        with_router(rack);
        let (v4, v6) = (multicast(1, GROUP), multicast6(1, GROUP6));
        let v1 = igmp((ip(2), GROUP), 0x12, GROUP.octets(), &[]);
        for join in [v1, report(2, GROUP), report_v3(2, 2, GROUP), report_v3(2, 4, GROUP)] {
            rack.send("b", &[join]);
            rack.expect_at("a", &v4, &["b", "r"]);
            rack.send("b", &[report_v3(2, 3, GROUP)]);
            rack.expect_at("a", &v4, &["b", "c", "r"]);
        }
        for join in [report6(2, GROUP6), report6_v2(2, 2, GROUP6), report6_v2(2, 4, GROUP6)] {
            rack.send("b", &[join]);
            rack.expect_at("a", &v6, &["b", "r"]);
            rack.send("b", &[report6_v2(2, 3, GROUP6)]);
            rack.expect_at("a", &v6, &["b", "c", "r"]);
        }
    });
}

#[test]
fn one_report_may_name_several_groups() {
    both_ways(&plain(), |rack| {
        let group = |n| Ipv4Addr::new(239, 1, 1, n);
        let record = |n: u8| [&[4, 0, 0, 0][..], &group(n).octets()].concat();
        let sources = [&[1, 0, 0, 2][..], &group(3).octets(), &[10, 0, 0, 8, 10, 0, 0, 9]].concat();
        let body = [record(1), sources, record(2)].concat();
        rack.send("b", &[igmp((ip(2), V3_ROUTERS), 0x22, [0, 0, 0, 3], &body)]);
        for n in 1..=3 {
            rack.expect_at("a", &multicast(1, group(n)), &["b"]);
        }
        rack.expect_at("a", &multicast(1, group(4)), &["b", "c", "r"]);
    });
}

#[test]
fn unregistered_groups_go_to_routers_only_if_so_configured() {
    both_ways(&config("mcast-snooping-disable-flood-unregistered = true", ""), |rack| {
        let sent = multicast(1, GROUP);
        rack.expect_drop("a", &sent, DropReason::NoDestination);
        with_router(rack);
        rack.expect_at("a", &sent, &["r"]);
        rack.send("b", &[report(2, GROUP)]);
        rack.expect_at("a", &sent, &["b", "r"]);
        rack.expect_at("a", &broadcast(1), &["b", "c", "r"]);
        rack.expect_at("a", &unicast(1, 7), &["b", "c", "r"]);
        rack.apply(&plain());
        rack.expect_at("a", &multicast(1, Ipv4Addr::new(239, 9, 9, 9)), &["b", "c", "r"]);
    });
}

#[test]
fn link_local_groups_always_flood() {
    both_ways(&config("mcast-snooping-disable-flood-unregistered = true", ""), |rack| {
        for last in [1, 5, 251, 255] {
            let group = Ipv4Addr::new(224, 0, 0, last);
            rack.expect_at("a", &multicast(1, group), &["b", "c", "r"]);
            rack.send("b", &[report(2, group)]);
            rack.expect_at("a", &multicast(1, group), &["b", "c", "r"]);
        }
        rack.expect_at("a", &multicast6(1, HOSTS6), &["b", "c", "r"]);
        rack.expect_drop("a", &multicast(1, Ipv4Addr::new(224, 0, 1, 1)), DropReason::NoDestination);
    });
}

#[test]
fn memberships_and_routers_age() {
    both_ways(&config("mcast-snooping-aging-time = 20", ""), |rack| {
        let sent = multicast(1, GROUP);
        with_router(rack);
        rack.send("b", &[report(2, GROUP)]);
        rack.wait(Duration::from_secs(15));
        rack.send("c", &[report(3, GROUP)]);
        rack.expect_at("a", &sent, &["b", "c", "r"]);
        rack.wait(Duration::from_secs(5));
        rack.expect_at("a", &sent, &["b", "c", "r"]);
        rack.wait(Duration::from_secs(1));
        rack.expect_at("a", &sent, &["c", "r"]);
        rack.wait(Duration::from_secs(15));
        rack.expect_at("a", &sent, &["b", "c", "r"]);
        rack.send("b", &[report(2, GROUP)]);
        for _ in 0..8 {
            rack.wait(Duration::from_secs(18));
            rack.expect_at("b", &report(2, GROUP), &["r"]);
        }
        rack.expect_at("a", &sent, &["b", "r"]);
        rack.send("b", &[report(2, GROUP)]);
        rack.wait(Duration::from_secs(1));
        rack.expect_at("a", &sent, &["b"]);
        rack.expect_drop("b", &report(2, GROUP), DropReason::NoDestination);
    });
}

#[test]
fn a_full_table_forgets_the_group_reported_longest_ago() {
    both_ways(&config("mcast-snooping-table-size = 10", ""), |rack| {
        let group = |n| Ipv4Addr::new(239, 1, 2, n);
        for n in 0..12 {
            rack.wait(Duration::from_millis(500));
            rack.send("b", &[report(2, group(n)), report(2, group(0))]);
        }
        rack.expect_at("a", &multicast(1, group(0)), &["b"]);
        rack.expect_at("a", &multicast(1, group(2)), &["b", "c", "r"]);
        rack.expect_at("a", &multicast(1, group(3)), &["b"]);
        assert_eq!(rack.mdb("br0").len(), 10, "{rack:?}");
    });
}

#[test]
fn flood_ports_get_all_groups_and_report_ports_all_reports() {
    both_ways(
        &config("mcast-snooping-disable-flood-unregistered = true", ", mcast-snooping-flood = true"),
        |rack| {
            with_router(rack);
            rack.expect_at("a", &multicast(1, GROUP), &["c", "r"]);
            rack.expect_at("b", &report(2, GROUP), &["r"]);
            rack.expect_at("a", &multicast(1, GROUP), &["b", "c", "r"]);
        },
    );
    both_ways(&config("", ", mcast-snooping-flood-reports = true"), |rack| {
        with_router(rack);
        rack.expect_at("b", &report(2, GROUP), &["c", "r"]);
        rack.expect_at("b", &report6(2, GROUP6), &["c", "r"]);
        rack.expect_at("a", &multicast(1, GROUP), &["b", "r"]);
    });
}

#[test]
fn damaged_messages_are_forwarded_but_not_believed() {
    both_ways(&plain(), |rack| {
        with_router(rack);
        let damage = |mut frame: Vec<u8>| {
            *frame.last_mut().unwrap() ^= 1;
            frame
        };
        rack.expect_at("b", &damage(report(2, GROUP)), &["r"]);
        rack.expect_at("b", &damage(report6(2, GROUP6)), &["r"]);
        rack.expect_at(
            "b",
            &igmp((ip(2), V3_ROUTERS), 0x22, [0, 0, 0, 9], &[4, 0, 0, 0, 239, 1, 1, 1]),
            &["r"],
        );
        rack.expect_at("a", &multicast(1, GROUP), &["b", "c", "r"]);
        rack.expect_at("a", &multicast6(1, GROUP6), &["b", "c", "r"]);
        rack.expect_at("c", &damage(query(3)), &["a", "b", "r"]);
        assert!(rack.mdb("br0").iter().all(|entry| entry.group.is_none() && entry.port == rack.id("r")));
    });
}

#[test]
fn queries_without_a_source_are_other_switches_and_no_routers() {
    both_ways(&plain(), |rack| {
        let nobody = igmp((Ipv4Addr::UNSPECIFIED, HOSTS), 0x11, [0; 4], &[]);
        rack.expect_at("c", &nobody, &["a", "b", "r"]);
        let nobody = mld((Ipv6Addr::UNSPECIFIED, HOSTS6), 130, [0; 4], &[0; 16]);
        rack.expect_at("c", &nobody, &["a", "b", "r"]);
        assert!(rack.mdb("br0").is_empty(), "{rack:?}");
    });
}

#[test]
fn each_vlan_has_its_own_members_and_routers() {
    both_ways(&plain(), |rack| {
        rack.expect_at("r", &tagged(&query(9), 10), &["a", "b", "c"]);
        rack.expect_at("b", &tagged(&report(2, GROUP), 10), &["r"]);
        rack.expect_at("a", &tagged(&multicast(1, GROUP), 10), &["b", "r"]);
        rack.expect_at("a", &tagged(&multicast(1, GROUP), 20), &["b", "c", "r"]);
        rack.expect_drop("b", &tagged(&report(2, GROUP), 20), DropReason::NoDestination);
        rack.expect_at("a", &tagged(&multicast(1, GROUP), 20), &["b"]);
    });
}

#[test]
fn membership_messages_are_never_cached_and_groups_are() {
    both_ways(&plain(), |rack| {
        with_router(rack);
        rack.expect_at("b", &report(2, GROUP), &["r"]);
        assert!(rack.switch.flows().is_empty(), "{rack:?}");
        rack.expect_at("a", &multicast(1, GROUP), &["b", "r"]);
        assert!(rack.flows("a").iter().all(|flow| flow.totals().frames == 3), "{rack:?}");
    });
}

#[test]
fn a_port_that_goes_takes_its_memberships_along() {
    both_ways(&plain(), |rack| {
        with_router(rack);
        rack.send("b", &[report(2, GROUP)]);
        rack.send("c", &[report(3, GROUP)]);
        rack.expect_at("a", &multicast(1, GROUP), &["b", "c", "r"]);
        rack.apply("bridge = [{ name = 'br0', mcast-snooping-enable = true, port = [{ name = 'a' }, { name = 'b' }, { name = 'r' }] }]");
        rack.expect_at("a", &multicast(1, GROUP), &["b", "r"]);
        rack.apply(&plain());
        rack.expect_at("a", &multicast(1, GROUP), &["b", "r"]);
    });
}
