//! The switch on the underlay: an endpoint of its own, and one whose addresses the kernel holds.

use serde_json::Value;
use smoltcp::wire::{Icmpv4Packet, Ipv4Packet};

use crate::support::daemon::Daemon;
use crate::support::host::{Host, Site};
use crate::support::lab::{Seat, eventually};
use crate::support::wire::Wire;

/// Two bridges: the wire with an endpoint, and the tenants' with a tunnel to the host at the other end of the wire.
fn config(endpoint: &str) -> String {
    format!(
        "[[bridge]]\nname = \"br-phy\"\nport = [ {{ name = \"p1\", type = \"afpacket\" }}, {endpoint} ]\n\n\
         [[bridge]]\nname = \"br-int\"\n\
         port = [ {{ name = \"vx0\", type = \"vxlan\", remote-ip = \"10.9.0.1\", key = 7, underlay = \"switch\" }} ]\n"
    )
}

const VTEP: &str = "{ name = \"vtep0\", type = \"vtep\", address = [\"10.9.0.100/16\", \"2001:db8::100/64\"], mac = \"02:00:00:00:00:64\" }";
const VTEP_MAC: &str = "02:00:00:00:00:64";

fn speak_ipv6(host: &Host) {
    host.ns.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0");
    host.ns.ip("addr add 2001:db8::1/64 dev eth0 nodad");
}

fn neighbour(daemon: &Daemon, address: &str) -> Option<Value> {
    let report = daemon.ask("underlay");
    let all = report["neighbours"].as_array().expect("neighbours").clone();
    all.into_iter().find(|n| n["address"] == address)
}

/// The host's own table: who has `address`?
fn resolved(host: &Host, address: &str) -> Option<String> {
    let table = host.ns.ip_json("neigh show dev eth0");
    let entry = table.as_array()?.iter().find(|entry| entry["dst"] == address)?.clone();
    Some(entry["lladdr"].as_str()?.to_owned())
}

fn pings(host: &Host, to: &str) -> bool {
    host.ns.output(&format!("ping -n -q -c 1 -W 1 {to}")).status.success()
}

/// The shortest of many round trips, in ms.
fn round_trip(host: &Host, to: &str) -> f64 {
    let said = host.ns.sh(&format!("ping -n -q -c 20 -i 0.02 {to}"));
    let times = said.rsplit_once("= ").expect("a summary").1;
    times.split('/').next().and_then(|min| min.parse().ok()).expect("the minimum")
}

#[test]
fn a_vtep_port_is_a_host_on_its_wire() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(1);
    let host = &site.hosts[0];
    speak_ipv6(host);
    let mut daemon = Daemon::start(&site.switch, &config(VTEP));
    for address in ["10.9.0.100", "2001:db8::100"] {
        eventually(&format!("{address} answers"), || pings(host, address));
        assert_eq!(resolved(host, address).as_deref(), Some(VTEP_MAC));
        // Of the quickest of several rounds: others use the cores, too.
        let ms = (0..5).map(|_| round_trip(host, address)).find(|ms| *ms < 1.0);
        assert!(ms.is_some(), "{address} took a millisecond at least");
    }
    assert!(!pings(host, "10.9.0.101"), "nobody has this address");

    eventually("the far end of the tunnel is found", || {
        neighbour(&daemon, "10.9.0.1").is_some_and(|n| n["state"] == "reachable" && n["mac"] == host.mac())
    });
    let report = daemon.ask("underlay");
    assert_eq!(report["endpoints"][0]["port"], "vtep0");
    assert_eq!(report["endpoints"][0]["mac"], VTEP_MAC);
    assert_eq!(report["endpoints"][0]["holder"], "sluice");
    assert!(daemon.ask("ledger")["balances"].as_bool().expect("a verdict"));
    assert!(daemon.stop().success());
}

#[test]
fn ovs_appctl_shows_the_underlay() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(1);
    let host = &site.hosts[0];
    let text = config(VTEP) + "\n[[route]]\nto = \"198.51.100.0/24\"\nvia = \"10.9.0.254\"\n";
    let daemon = Daemon::start(&site.switch, &text);
    let known =
        |daemon: &Daemon| daemon.appctl(&["tnl/neigh/show"]).contains(&format!("{}   br-phy", host.mac()));
    eventually("the far end of the tunnel is found", || known(&daemon));
    assert_eq!(daemon.appctl(&["tnl/neigh/show"]), daemon.appctl(&["tnl/arp/show"]));

    let routes = daemon.appctl(&["ovs/route/show"]);
    for line in [
        "Route Table:",
        "Cached: 10.9.0.100/32 dev vtep0 SRC 10.9.0.100 local",
        "Cached: 10.9.0.0/16 dev vtep0 SRC 10.9.0.100",
        "Cached: 2001:db8::/64 dev vtep0 SRC 2001:db8::100",
        "User: 198.51.100.0/24 dev vtep0 GW 10.9.0.254 SRC 10.9.0.100",
    ] {
        assert!(routes.lines().any(|l| l == line), "no {line:?} in:\n{routes}");
    }
    let lookup = daemon.appctl(&["ovs/route/lookup", "198.51.100.9"]);
    assert_eq!(lookup, "src 10.9.0.100\ngateway 10.9.0.254\ndev vtep0\n");
    assert_eq!(daemon.appctl(&["ovs/route/add", "203.0.113.0/24", "br-phy", "10.9.0.253"]), "OK\n");
    assert_eq!(
        daemon.appctl(&["ovs/route/lookup", "203.0.113.9"]),
        "src 10.9.0.100\ngateway 10.9.0.253\ndev vtep0\n"
    );
    assert_eq!(daemon.appctl(&["ovs/route/del", "203.0.113.0/24"]), "OK\n");
    assert!(!daemon.appctl(&["ovs/route/show"]).contains("203.0.113.0"));
    let ports = daemon.appctl(&["tnl/ports/show"]);
    assert!(
        ports.starts_with("Listening ports:\nvxlan_sys_4789 (") && ports.ends_with(") ref_cnt=1\n"),
        "{ports}"
    );
    let verbose = daemon.appctl(&["tnl/ports/show", "-v"]);
    let expected =
        format!("eth(dst={VTEP_MAC}),eth_type(0x0800),ipv4(dst=10.9.0.100,proto=17,frag=no),udp(dst=4789)");
    assert!(verbose.contains(&expected), "{verbose}");

    let set = ["tnl/neigh/set", "br-phy", "10.9.0.9", "02:00:00:00:00:99"];
    assert_eq!(daemon.appctl(&set), "OK\n");
    eventually("what was set is shown", || daemon.appctl(&["tnl/neigh/show"]).contains("02:00:00:00:00:99"));
    assert_eq!(daemon.appctl(&["tnl/neigh/flush"]), "OK\n");
    eventually("what was set is forgotten, and the other found again", || {
        !daemon.appctl(&["tnl/neigh/show"]).contains("02:00:00:00:00:99") && known(&daemon)
    });
}

#[test]
fn a_neighbour_that_moves_is_followed_and_one_that_dies_is_forgotten() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(1);
    let host = &site.hosts[0];
    let daemon = Daemon::start(&site.switch, &config(VTEP));
    let mac_is = |mac: &str| neighbour(&daemon, "10.9.0.1").is_some_and(|n| n["mac"] == mac);
    eventually("it is found", || mac_is(&host.mac()));
    // Once a second at most a new address is believed.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    host.ns.sysctl("net/ipv4/conf/eth0/arp_notify", "1");
    host.ns.ip("link set eth0 down");
    host.ns.ip("link set eth0 address 02:00:00:00:00:55");
    host.ns.ip("link set eth0 up");
    eventually("its new address is taken", || mac_is("02:00:00:00:00:55"));
    host.ns.ip("link set eth0 down");
    eventually("it is missed", || neighbour(&daemon, "10.9.0.1").is_some_and(|n| n["mac"].is_null()));
}

#[test]
fn addresses_routes_and_neighbours_of_the_kernel_are_seen() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(1);
    let host = &site.hosts[0];
    let daemon = Daemon::start(&site.switch, &config("{ name = \"phy0\", type = \"internal\" }"));
    eventually("phy0 appears", || site.switch.has_link("phy0"));
    assert_eq!(daemon.ask("underlay")["endpoints"].as_array().map(Vec::len), Some(0));

    site.switch.ip("addr add 10.9.0.100/16 dev phy0");
    site.switch.ip("route add 198.51.100.0/24 via 10.9.0.1 dev phy0");
    eventually("the kernel's address makes an endpoint", || {
        let report = daemon.ask("underlay");
        report["endpoints"][0]["port"] == "phy0" && report["endpoints"][0]["holder"] == "kernel"
    });
    let lookup = "src 10.9.0.100\ngateway 10.9.0.1\ndev phy0\n";
    eventually("the kernel's route is known", || {
        let output = std::process::Command::new("ovs-appctl")
            .arg("-t")
            .arg(daemon.socket())
            .args(["ovs/route/lookup", "198.51.100.9"])
            .output();
        output.is_ok_and(|output| output.stdout == lookup.as_bytes())
    });
    eventually("the kernel looks for the far end of the tunnel, though nobody sends", || {
        neighbour(&daemon, "10.9.0.1").is_some_and(|n| n["mac"] == host.mac())
    });
    assert!(daemon.appctl(&["tnl/neigh/show"]).contains(&host.mac()));

    site.switch.ip("addr del 10.9.0.100/16 dev phy0");
    eventually("the endpoint goes with its address", || {
        daemon.ask("underlay")["endpoints"].as_array().is_some_and(Vec::is_empty)
    });
    eventually("and so do its routes", || !daemon.appctl(&["ovs/route/show"]).contains("phy0"));
}

/// A kernel's vxlan device at the far end of the wire, and a tenant at this one; nobody was told of the other.
fn overlay(endpoint: &str) -> (Site, Daemon) {
    overlay_of(&format!(
        "[[bridge]]\nname = \"br-phy\"\nport = [ {{ name = \"p1\", type = \"afpacket\" }}, {endpoint} ]\n\n\
         [[bridge]]\nname = \"br-int\"\n\
         segment = [ {{ name = \"blue\", vlan = 1, type = \"vxlan\", id = 7 }} ]\n\
         port = [\n\
           {{ name = \"p2\", type = \"afpacket\", tag = 1 }},\n\
           {{ name = \"vx0\", type = \"vxlan\", remote-ip = \"flow\", key = \"flow\", underlay = \"switch\" }},\n\
         ]\n"
    ))
}

fn overlay_of(bridges: &str) -> (Site, Daemon) {
    let site = Site::new(2);
    let daemon = Daemon::start(&site.switch, bridges);
    let (far, tenant) = (&site.hosts[0], &site.hosts[1]);
    far.ns.ip("link add vx type vxlan id 7 remote 10.9.0.100 dstport 4789 dev eth0");
    far.ns.ip("addr add 10.77.0.1/24 dev vx");
    far.ns.ip("link set vx up mtu 1400");
    tenant.ns.ip("addr add 10.77.0.2/24 dev eth0");
    (site, daemon)
}

#[test]
fn an_endpoint_that_was_learned_is_resolved_on_demand() {
    let Some(_seat) = Seat::take() else { return };
    let (site, daemon) = overlay(VTEP);
    assert_eq!(neighbour(&daemon, "10.9.0.1"), None, "nobody asked");
    eventually("the tenant answers through the tunnel", || pings(&site.hosts[0], "10.77.0.2"));
    assert!(neighbour(&daemon, "10.9.0.1").is_some_and(|n| n["mac"] == site.hosts[0].mac()));
}

#[test]
fn an_endpoint_that_was_learned_is_resolved_by_the_kernel() {
    let Some(_seat) = Seat::take() else { return };
    let (site, daemon) = overlay("{ name = \"phy0\", type = \"internal\" }");
    eventually("phy0 appears", || site.switch.has_link("phy0"));
    site.switch.ip("addr add 10.9.0.100/16 dev phy0");
    eventually("the tenant answers through the tunnel", || pings(&site.hosts[0], "10.77.0.2"));
    assert!(neighbour(&daemon, "10.9.0.1").is_some_and(|n| n["mac"] == site.hosts[0].mac()));
}

/// What a router says that could not pass on a packet of 1,500 bytes from 10.9.0.100 to 10.9.0.1, UDP port 4789.
fn too_big(from: &Host, mtu: u16) -> Vec<u8> {
    let quoted_ip = [0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 63, 17, 0, 0, 10, 9, 0, 100, 10, 9, 0, 1];
    let quoted_udp = [0xc0, 0, 0x12, 0xb5, 0x05, 0xc8, 0, 0];
    let [high, low] = mtu.to_be_bytes();
    let mut icmp = [&[3, 4, 0, 0, 0, 0, high, low][..], &quoted_ip, &quoted_udp].concat();
    Icmpv4Packet::new_unchecked(&mut icmp).fill_checksum();
    let len = (20 + icmp.len()) as u8;
    let mut ip =
        [&[0x45, 0, 0, len, 0, 0, 0, 0, 64, 1, 0, 0, 10, 9, 0, 1, 10, 9, 0, 100][..], &icmp].concat();
    Ipv4Packet::new_unchecked(&mut ip).fill_checksum();
    let octets =
        |mac: &str| mac.split(':').map(|o| u8::from_str_radix(o, 16).expect("hex")).collect::<Vec<_>>();
    [octets(VTEP_MAC), octets(&from.mac()), vec![0x08, 0x00], ip].concat()
}

#[test]
fn a_router_that_carries_less_is_heard() {
    let Some(_seat) = Seat::take() else { return };
    let (site, daemon) = overlay(VTEP);
    let far = &site.hosts[0];
    let paths = |daemon: &Daemon| daemon.ask("underlay")["paths"].clone();
    let mut wire = Wire::of(far);
    wire.send(&too_big(far, 1300));
    eventually("what came behind it is answered", || pings(far, "10.9.0.100"));
    assert_eq!(paths(&daemon), serde_json::json!([]), "nothing was ever sent there");
    eventually("the tenant answers through the tunnel", || pings(far, "10.77.0.2"));
    eventually("the path's MTU is known", || {
        wire.send(&too_big(far, 1300));
        paths(&daemon) == serde_json::json!([{ "to": "10.9.0.1", "mtu": 1300 }])
    });
}

#[test]
fn the_path_mtu_that_the_hosts_stack_finds_is_told_to_senders() {
    let Some(_seat) = Seat::take() else { return };
    let (site, daemon) = overlay_of(
        "[[bridge]]\nname = \"br-int\"\n\
         segment = [ { name = \"blue\", vlan = 1, type = \"vxlan\", id = 7, vteps = [\"10.9.0.1\"] } ]\n\
         port = [\n\
           { name = \"p2\", type = \"afpacket\", tag = 1 },\n\
           { name = \"vx0\", type = \"vxlan\", remote-ip = \"flow\", key = \"flow\", underlay = \"host\" },\n\
         ]\n",
    );
    let tenant = &site.hosts[1];
    site.switch.ip("addr add 10.9.0.100/16 dev p1");
    eventually("the other end answers through the tunnel", || pings(tenant, "10.77.0.1"));
    site.switch.ip("link set p1 mtu 1300");
    eventually("the tenant is told what is left behind the outer headers", || {
        let said = tenant.ns.output("ping -n -c 1 -W 1 -M do -s 1300 10.77.0.1").stdout;
        String::from_utf8_lossy(&said).contains("mtu = 1250")
    });
    let paths = daemon.ask("underlay")["paths"].clone();
    assert_eq!(paths, serde_json::json!([{ "to": "10.9.0.1", "mtu": 1300 }]));
}
