//! The slow path on tables made by hand, in flow text: what a frame says in, what happens to it out.
//!
//! Every decision is asked for three times: for the frame, for its key under the decision's mask (what revalidation
//! has), and, in [`megaflow`], for other frames that agree under the mask.

mod arriving;
mod changes;
mod churn;
mod lab;
mod leaving;
mod megaflow;
mod precedents;
mod renumbering;
mod responder;
mod segments;
mod tracing;
mod underlay;

use lab::{Draft, Lab};

/// From host 1 to host 2.
const TO_2: &str = "dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02";
/// From host 1 to everybody.
const TO_ALL: &str = "dl_src=02:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff";

/// From host 2 to everybody.
const FROM_2: &str = "dl_src=02:00:00:00:00:02,dl_dst=ff:ff:ff:ff:ff:ff";

/// Out of a tunnel with this VNI or key, from this VTEP to ours.
fn out_of(listener: &str, vtep: &str, id: u32) -> String {
    let ours = if vtep.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
    format!("in_port={listener},tun_id={id},tun_src={vtep},tun_dst={ours},tun_flags=key")
}

/// An uplink with our endpoint, and a bridge of VMs with one segment for each kind of tunnel.
fn overlay(draft: &mut Draft) {
    draft.bridge("phy");
    draft.port("eth1");
    draft.endpoint("vtep0", &["192.0.2.1/24", "2001:db8::1/64"]);
    for other in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::2"] {
        draft.neighbour("vtep0", other);
    }
    draft.bridge("int");
    draft.access("vm1", 1);
    draft.access("vm2", 2);
    draft.access("vm3", 1);
    draft.access("vm4", 3);
    draft.tunnel("vx0", "vxlan key=flow");
    draft.tunnel("gre0", "gre key=flow");
    draft.tunnel("gnv0", "geneve key=flow");
    draft.segment("blue", 1, "vx0 5001 192.0.2.2 192.0.2.3");
    draft.segment("red", 2, "gre0 7 192.0.2.2");
    draft.segment("green", 3, "gnv0 9 2001:db8::2");
}
