//! What `sluice trace` tells.

use super::lab::{Draft, Lab};
use super::{FROM_2, TO_2, TO_ALL, out_of, overlay};

/// Traced where host 2 is known to be behind a VTEP.
#[track_caller]
fn told(draw: impl FnOnce(&mut Draft), frame: &str, expected: &str) {
    let lab = Lab::new(draw);
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.3", 5001)));
    assert_eq!(lab.steps(frame), expected);
}

#[test]
fn the_way_into_a_tunnel() {
    let expected = "\
bridge `int`, in by port `vm1`
VLAN 1, segment `blue`
02:00:00:00:00:02 is behind VTEP 192.0.2.3
into vxlan 5001 to 192.0.2.3, by tunnel port `vx0`
  next hop 192.0.2.3 at 02:ff:00:00:00:03
  bridge `phy`, in by port `vtep0`
  VLAN 0
  02:ff:00:00:00:03 is not known in VLAN 0: flood
  output to port `eth1`
  outer headers 192.0.2.1 > 192.0.2.3, TOS 0x00, TTL 64, DF; frames of up to 1464 bytes fit
";
    told(overlay, &format!("in_port=vm1,{TO_2}"), expected);
}

#[test]
fn where_a_tunnel_ends() {
    let cards = "dl_src=02:ff:00:00:00:02,dl_dst=02:ff:00:00:00:01";
    let expected = "\
bridge `phy`, in by port `eth1`
VLAN 0
02:ff:00:00:00:01 is behind port `vtep0`
a vxlan tunnel ends here: outer headers off, and in again by `vx0`
";
    told(overlay, &format!("in_port=eth1,{cards},udp,udp_dst=4789,nw_dst=192.0.2.1"), expected);
}

#[test]
fn the_way_out_of_a_tunnel() {
    let expected = "\
out of vxlan 5001 from 192.0.2.2, by tunnel port `vx0`
ECN 2 becomes 3, as the underlay says
bridge `int`, in by port `vx0`
VLAN 1, segment `blue`
output to port `vm1`
output to port `vm3`
";
    let marked = format!("{},{TO_ALL},tun_tos=3,ip,nw_ecn=2", out_of("vx0", "192.0.2.2", 5001));
    told(overlay, &marked, expected);
}

#[test]
fn why_a_frame_does_not_get_in() {
    let strict = |draft: &mut Draft| {
        overlay(draft);
        draft.named("blue").strict_peers = true;
    };
    let expected = "\
out of vxlan 5001 from 192.0.2.4, by tunnel port `vx0`
192.0.2.4 is none of the VTEPs of segment `blue`, which is strict
drop: unknown-vtep
";
    told(strict, &format!("{},{TO_ALL}", out_of("vx0", "192.0.2.4", 5001)), expected);
    let expected = "\
out of vxlan 5009 from 192.0.2.4, by tunnel port `vx0`
no segment has this id here
drop: unknown-segment
";
    told(overlay, &format!("{},{TO_ALL}", out_of("vx0", "192.0.2.4", 5009)), expected);
    let only = |draft: &mut Draft| {
        draft.bridge("int");
        draft.tunnel("vx0", "vxlan remote=192.0.2.3 key=5001");
    };
    let expected = "\
out of vxlan 5001 from 192.0.2.4 to 192.0.2.1: no port is for that
drop: unknown-segment
";
    told(only, &format!("{},{TO_ALL}", out_of("vx0", "192.0.2.4", 5001)), expected);
}

#[test]
fn why_a_frame_does_not_get_out() {
    let nowhere = |draft: &mut Draft| {
        overlay(draft);
        draft.underlay.neighbours.clear();
        draft.segments.clear();
        draft.segment("blue", 1, "vx0 5001 192.0.2.1 192.0.2.2 198.51.100.1");
    };
    let expected = "\
bridge `int`, in by port `vm1`
VLAN 1, segment `blue`
output to port `vm3`
into vxlan 5001 to 192.0.2.1, by tunnel port `vx0`
  192.0.2.1 is our own address
into vxlan 5001 to 192.0.2.2, by tunnel port `vx0`
  next hop 192.0.2.2, whose link-layer address is not known yet
into vxlan 5001 to 192.0.2.3, by tunnel port `vx0`
  next hop 192.0.2.3, whose link-layer address is not known yet
into vxlan 5001 to 198.51.100.1, by tunnel port `vx0`
  no route to 198.51.100.1
";
    told(nowhere, &format!("in_port=vm1,{TO_ALL}"), expected);
}

#[test]
fn the_switchs_own_answer() {
    let known = |draft: &mut Draft| {
        overlay(draft);
        let host = super::lab::mac(2);
        draft.named("blue").neighbours.insert(super::lab::ip("10.0.0.2"), host);
    };
    let expected = "\
bridge `int`, in by port `vm1`
VLAN 1, segment `blue`
the switch answers: 02:00:00:00:00:02 has the address
";
    told(known, &format!("in_port=vm1,{TO_ALL},arp,arp_op=1,arp_spa=10.0.0.1,arp_tpa=10.0.0.2"), expected);
}
