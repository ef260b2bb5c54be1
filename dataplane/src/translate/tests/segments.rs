//! One segment has many names: a local VLAN, a VLAN of a provider's wire, untagged, none at all.

use super::{FROM_2, Lab, TO_2, TO_ALL};
use crate::tables::PriorityTags;

/// Two VLANs and an untagged network of a provider, a segment without local VLAN, one without wire.
fn provider() -> Lab {
    Lab::new(|draft| {
        draft.bridge("int");
        draft.port("eth2");
        draft.port("eth3");
        draft.access("a1", 1);
        draft.access("b1", 2);
        draft.access("c1", 3);
        draft.port("t");
        draft.joined("r1", 4096);
        draft.joined("r2", 4096);
        draft.segment("a", 1, "eth2 101");
        draft.segment("b", 2, "eth2 102");
        draft.segment("c", 3, "eth3 0");
        draft.segment("local", 4, "local");
        draft.segment("r", 4096, "eth2 103");
    })
}

/// A frame to everybody, by a port, with these tags.
fn to_all(port: &str, tags: &str) -> String {
    format!("in_port={port},{TO_ALL}{tags}")
}

#[test]
fn a_provider_vlan_is_a_local_vlan_is_untagged_at_the_port() {
    let lab = provider();
    let cases = [
        ("a1", "", "push_vlan(vid=1,pcp=0),t,pop_vlan,push_vlan(vid=101,pcp=0),eth2"),
        ("eth2", ",dl_vlan=101", "set(vlan(vid=1)),t,pop_vlan,a1"),
        ("eth2", ",dl_vlan=102", "set(vlan(vid=2)),t,pop_vlan,b1"),
        ("t", ",dl_vlan=1", "set(vlan(vid=101)),eth2,pop_vlan,a1"),
        ("t", ",dl_vlan=2", "set(vlan(vid=102)),eth2,pop_vlan,b1"),
    ];
    for (port, tags, expected) in cases {
        assert_eq!(lab.brief(&to_all(port, tags)), expected, "{port} {tags}");
    }
}

#[test]
fn the_priority_stays_where_there_is_a_tag_for_it() {
    let lab = provider();
    // Only the VLAN id of the tag is set.
    assert_eq!(lab.brief(&to_all("eth2", ",dl_vlan=101,dl_vlan_pcp=5")), "set(vlan(vid=1)),t,pop_vlan,a1");
    assert_eq!(
        lab.brief(&to_all("a1", ",dl_vlan=0,dl_vlan_pcp=5")),
        "set(vlan(vid=1)),t,set(vlan(vid=101)),eth2"
    );
    assert_eq!(lab.brief(&to_all("r1", ",dl_vlan=0,dl_vlan_pcp=5")), "set(vlan(vid=103)),eth2,pop_vlan,r2");
}

#[test]
fn an_uplink_carries_mapped_vlans_only() {
    let lab = provider();
    for tags in ["", ",dl_vlan=1", ",dl_vlan=4", ",dl_vlan=104", ",dl_vlan=0,dl_vlan_pcp=3"] {
        assert_eq!(lab.brief(&to_all("eth2", tags)), "drop(vlan)", "in{tags}");
    }
    for tags in [",dl_vlan=4", ",dl_vlan=5", ",dl_vlan=101", ""] {
        assert_eq!(lab.brief(&to_all("t", tags)), "drop(no-destination)", "out{tags}");
    }
}

#[test]
fn a_flat_network_is_untagged_on_its_wire() {
    let lab = provider();
    assert_eq!(lab.brief(&to_all("c1", "")), "eth3,push_vlan(vid=3,pcp=0),t");
    assert_eq!(lab.brief(&to_all("eth3", "")), "c1,push_vlan(vid=3,pcp=0),t");
    assert_eq!(lab.brief(&to_all("eth3", ",dl_vlan=3")), "drop(vlan)");
    assert_eq!(lab.brief(&to_all("t", ",dl_vlan=3")), "pop_vlan,eth3,c1");
}

/// Or else it would come out as another segment's: VLAN hopping.
#[test]
fn a_second_tag_does_not_reach_a_flat_wire() {
    let lab = provider();
    assert_eq!(lab.brief(&to_all("t", ",dl_vlan=3,dl_vlan1=101")), "drop(no-destination)");
    assert_eq!(lab.brief(&to_all("eth3", ",dl_vlan=0,dl_vlan1=101")), "set(vlan(vid=3)),t");
    // Inside a provider's VLAN it is the tenant's own.
    assert_eq!(lab.brief(&to_all("t", ",dl_vlan=1,dl_vlan1=7")), "set(vlan(vid=101)),eth2");
}

#[test]
fn a_flat_wire_has_priority_tags_if_it_wants() {
    let mut lab = provider();
    let tagged = to_all("t", ",dl_vlan=3,dl_vlan_pcp=5");
    assert_eq!(lab.brief(&tagged), "pop_vlan,eth3,c1");
    lab.change(|draft| draft.entry("eth3").vlan.priority_tags = PriorityTags::IfNonzero);
    assert_eq!(lab.brief(&tagged), "set(vlan(vid=0)),eth3,pop_vlan,c1");
}

#[test]
fn a_segment_without_local_vlan_is_among_the_ports_that_joined_it() {
    let lab = provider();
    assert_eq!(lab.brief(&to_all("r1", "")), "r2,push_vlan(vid=103,pcp=0),eth2");
    assert_eq!(lab.brief(&to_all("eth2", ",dl_vlan=103")), "pop_vlan,r1,r2");
    assert_eq!(lab.brief(&to_all("r1", ",dl_vlan=103")), "drop(vlan)");
    assert_eq!(lab.send(&format!("in_port=r2,{TO_ALL}")), "r1,push_vlan(vid=103,pcp=0),eth2");
    let back = "dl_src=02:00:00:00:00:02,dl_dst=02:00:00:00:00:01";
    assert_eq!(lab.brief(&format!("in_port=r1,{back}")), "r2");
}

#[test]
fn tenants_may_have_the_same_addresses() {
    let lab = provider();
    let from = |port: &str, tags: &str| lab.send(&format!("in_port={port}{tags},{FROM_2}"));
    from("a1", "");
    from("eth2", ",dl_vlan=102");
    from("r2", "");
    assert_eq!(lab.brief(&format!("in_port=eth2,dl_vlan=101,{TO_2}")), "pop_vlan,a1");
    assert_eq!(lab.brief(&format!("in_port=b1,{TO_2}")), "push_vlan(vid=102,pcp=0),eth2");
    assert_eq!(lab.brief(&format!("in_port=eth2,dl_vlan=103,{TO_2}")), "pop_vlan,r2");
    assert_eq!(lab.brief(&format!("in_port=eth3,{TO_2}")), "c1,push_vlan(vid=3,pcp=0),t");
}
