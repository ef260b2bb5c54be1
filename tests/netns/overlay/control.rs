//! The operator of an overlay: commands, what they show, and the way to endpoints that are not next door.

use std::net::Ipv4Addr;

use crate::rig::assert_reach;
use crate::support::daemon::Daemon;
use crate::support::fabric::{Fabric, Family, Footing, GREEN, Node, RED};
use crate::support::host::Host;
use crate::support::lab::{Seat, eventually};
use crate::support::namespace::Namespace;
use crate::support::peers::{TENANT_MTU, vtep};
use crate::support::traffic::{assert_apart, await_ping};

fn text(daemon: &Daemon, verb: &str) -> String {
    daemon.ask(verb).to_string()
}

/// What would happen to a frame that a VM sends to a MAC address.
fn trace(node: &Node, vm: &Host, to: &str) -> String {
    let flow = format!("in_port={},dl_src={},dl_dst={to},dl_type=0x0800", vm.port, vm.mac());
    node.daemon.ctl(&["trace", "br-int", &flow]).expect("a trace").to_string()
}

fn assert_answers_as_open_vswitch(node: &Node, device: &str, other: Ipv4Addr) {
    let neighbours = node.daemon.appctl(&["tnl/neigh/show"]);
    let found =
        neighbours.lines().any(|line| line.starts_with(&format!("{other} ")) && line.ends_with("br-phy"));
    assert!(found && neighbours.starts_with("IP "), "{neighbours}");
    let routes = node.daemon.appctl(&["ovs/route/show"]);
    let connected = format!("192.0.2.0/24 dev {device} SRC {}", node.address());
    assert!(routes.starts_with("Route Table:\n") && routes.contains(&connected), "{routes}");
    let ports = node.daemon.appctl(&["tnl/ports/show"]);
    for port in ["vxlan_sys_4789 (", "gre_sys ("] {
        assert!(ports.contains(port), "{port} is not in: {ports}");
    }
}

#[test]
fn an_operator_adds_watches_and_removes_a_tenant() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Vtep, Footing::Internal], &[&RED, &GREEN]);
    let (near, far) = (fabric.vm(&RED, 1), fabric.vm(&RED, 2));
    await_ping(near, far.ip);
    await_ping(fabric.vm(&GREEN, 1), fabric.vm(&GREEN, 2).ip);

    assert_answers_as_open_vswitch(fabric.node(1), "vtep0", vtep(2));
    assert_answers_as_open_vswitch(fabric.node(2), "host0", vtep(1));
    let explained = trace(fabric.node(1), near, &far.mac());
    for word in [
        "segment `red`",
        "vxlan 5001",
        "192.0.2.2",
        "tnl_push(tnl_port(vxlan0)",
        "vni=0x1389",
        "out_port(uplink)",
    ] {
        assert!(explained.contains(word), "{word} is not in: {explained}");
    }
    let busy = |tunnel: &serde_json::Value| tunnel["rx"]["frames"] != 0 && tunnel["tx"]["frames"] != 0;
    eventually("all tunnels have counted", || {
        fabric.node(1).daemon.ask("tunnel show").as_array().expect("tunnels").iter().all(busy)
    });

    // The red VMs become another tenant's, in a tunnel that did not exist.
    for (node, vm, other) in [(1, near, 2), (2, far, 1)] {
        let daemon = &fabric.node(node).daemon;
        daemon.ask(&format!(
            "tunnel add br-int geneve0 type=geneve remote-ip=flow key=flow local-ip={} underlay=switch",
            vtep(node)
        ));
        daemon
            .ask(&format!("segment add br-int violet vlan=9 type=geneve id=900 vteps=[\"{}\"]", vtep(other)));
        daemon.ask(&format!("port set {} tag=9", vm.port));
    }
    assert_reach(near, far);
    assert!(trace(fabric.node(1), near, &far.mac()).contains("geneve"), "another way than by geneve");
    let fdb = text(&fabric.node(1).daemon, "fdb show br-int");
    assert!(fdb.contains("violet") && fdb.contains(&far.mac()), "{fdb}");
    assert_eq!(fabric.node(1).daemon.ask("segment show br-int").as_array().map(Vec::len), Some(3));
    for verb in ["segment del violet", "tunnel del geneve0"] {
        fabric.node(1).daemon.ask(verb);
    }
    assert_apart(near, far.ip);
    let said =
        fabric.node(1).daemon.ctl(&["segment", "set", "green", "id=5001", "vlan=1"]).expect_err("taken");
    assert!(said.contains("red"), "nobody says who has VLAN 1: {said}");
    fabric.assert_balance();
}

/// An endpoint in another network, behind a router whose further link carries packets of so many bytes.
fn endpoint_behind(router: &Namespace, mtu: u16) -> Host {
    let far = Namespace::new();
    router.ip(&format!("link add further mtu {mtu} type veth peer name eth0 netns {}", far.path()));
    router.ip_batch("addr add 198.51.100.1/24 dev further\nlink set further up");
    router.sysctl("net/ipv4/ip_forward", "1");
    far.ip_batch(&format!(
        "addr add 198.51.100.2/24 dev eth0\n\
         link set eth0 up\n\
         route add default via 198.51.100.1\n\
         link add vx0 mtu {TENANT_MTU} type vxlan id 5001 local 198.51.100.2 remote {} dstport 4789 dev eth0\n\
         addr add 10.9.0.9/16 dev vx0\n\
         link set vx0 up",
        vtep(1)
    ));
    Host { ns: far, port: "vx0".into(), ip: [10, 9, 0, 9].into() }
}

/// Reached by the route that `add` makes, and not before.
fn assert_routed_to(fabric: &Fabric, far: &Host, add: impl Fn(&Node)) {
    let (node, vm) = (fabric.node(1), fabric.vm(&RED, 1));
    node.daemon.ask("segment set red vteps=[\"198.51.100.2\"]");
    assert!(!vm.pings(far.ip), "there is no route");
    eventually("that is counted", || text(&node.daemon, "drops").contains("no-route"));
    add(node);
    await_ping(vm, far.ip);
    let routes = node.daemon.appctl(&["ovs/route/show"]);
    assert!(routes.contains("198.51.100.0/24") && routes.contains("GW 192.0.2.2"), "{routes}");
}

/// The switch's own stack hears what the router says, and tells the VM.
#[test]
fn a_configured_route_leads_to_endpoints_behind_a_router() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::beside(1, (Family::V4, &[Footing::Vtep]), &[&RED]);
    let far = endpoint_behind(&fabric.strangers[0], 1300);
    assert_routed_to(&fabric, &far, |node| {
        node.daemon.ask("route add 198.51.100.0/24 via=192.0.2.2");
        let shown = text(&node.daemon, "route show");
        assert!(shown.contains("198.51.100.0/24") && shown.contains("configured"), "{shown}");
    });
    let vm = fabric.vm(&RED, 1);
    // 1300 bytes, less IPv4, UDP, VXLAN and inner Ethernet.
    eventually("the router's word reaches the VM", || {
        let output = vm.ns.output(&format!("ping -n -c 1 -W 1 -M do -s 1300 {}", far.ip));
        String::from_utf8_lossy(&output.stdout).contains("mtu = 1250")
    });
    assert!(vm.pings_whole(far.ip, 1250 - 28), "what fits does not pass");
    assert_reach(vm, &far);
    fabric.assert_balance();
}

#[test]
fn a_route_of_the_kernel_leads_to_endpoints_behind_a_router() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::beside(1, (Family::V4, &[Footing::Internal]), &[&RED]);
    let far = endpoint_behind(&fabric.strangers[0], 1500);
    assert_routed_to(&fabric, &far, |node| {
        node.ns.ip("route add 198.51.100.0/24 via 192.0.2.2");
        eventually("the switch has the kernel's route", || {
            text(&node.daemon, "route show").contains("198.51.100.0/24")
        });
    });
    assert_reach(fabric.vm(&RED, 1), &far);
    fabric.assert_balance();
}
