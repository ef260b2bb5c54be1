//! Hypervisors that somebody else wrote, and the network between hypervisors: Open vSwitch on its userspace datapath
//! and Linux's vxlan device. (A third is a whole kernel: [`super::vm`].)

use std::net::Ipv4Addr;
use std::path::Path;

use super::host::Site;
use super::namespace::Namespace;
use super::ovs::Ovs;

/// The MTU of hosts whose frames cross an underlay of 1500: what Geneve with options over IPv4 leaves, and some.
pub const TENANT_MTU: u16 = 1400;

/// The address of hypervisor `number` on the underlay, in a /24 (RFC 5737).
pub fn vtep(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// The network between hypervisors: a Linux bridge that knows no VLANs and forwards tags as they are.
pub struct Underlay {
    /// Where the bridge lives. Its name is `underlay`.
    pub ns: Namespace,
}

impl Underlay {
    /// A bridge and cables to `nodes`; the ends there are called `uplink`, are up and have no address.
    pub fn between(nodes: &[&Namespace]) -> Underlay {
        Underlay::cabled("uplink", nodes)
    }

    /// As [`Underlay::between`], with another name for the ends of the cables.
    pub fn cabled(end: &str, nodes: &[&Namespace]) -> Underlay {
        let underlay = Underlay { ns: Namespace::new() };
        underlay.ns.ip_batch("link add underlay type bridge\nlink set underlay up");
        // Where the kernel has br_netfilter, bridges drop damaged IP packets. A network does not.
        if Path::new("/proc/sys/net/bridge").exists() {
            for look in ["iptables", "ip6tables"] {
                underlay.ns.sysctl(&format!("net/bridge/bridge-nf-call-{look}"), "0");
            }
        }
        nodes.iter().enumerate().for_each(|(i, node)| underlay.plug(node, (&format!("n{i}"), end)));
        underlay
    }

    /// Lays a cable: its ends are called so here and there.
    pub fn plug(&self, node: &Namespace, (here, there): (&str, &str)) {
        self.ns.ip(&format!("link add {here} type veth peer name {there} netns {}", node.path()));
        self.take(here);
        node.ip(&format!("link set {there} up"));
    }

    /// Plugs in an interface of the bridge's namespace: a machine's TAP device.
    pub fn take(&self, interface: &str) {
        self.ns.ip_batch(&format!("link set {interface} master underlay\nlink set {interface} up"));
    }
}

/// Makes the kernel finish checksums and segments before they leave by `interface`. Open vSwitch's userspace
/// datapath, whose sockets see frames as their sender left them, would deliver or encapsulate them unfinished: on
/// every interface by which a kernel sends to it, those of its hosts and those of kernels that encapsulate.
pub fn finish_checksums(namespace: &Namespace, interface: &str) {
    namespace.sh(&format!("ethtool -K {interface} tx off"));
}

/// Starts Open vSwitch at a site with an `uplink`, as Neutron lays it out: the hosts are on `br-int`; `br-phy` has
/// the uplink and [`vtep`]`(number)`, so tunnel ports on `br-int` use it. Each of `ports` is the port of a host and
/// columns of it: `p1 tag=10`.
pub fn open_vswitch(site: &Site, number: u8, ports: &[&str]) -> Ovs {
    let ovs = site.switch.run(|| Ovs::start(&[])).unwrap_or_else(|e| panic!("{e}"));
    // With an address that is not the uplink's, the kernel, which sees the uplink's frames too, ignores them.
    let own = format!("other_config:hwaddr=02:00:c0:00:02:{number:02x}");
    let mut line = "add-br br-int -- set bridge br-int datapath_type=netdev".to_owned();
    line += &format!(" -- add-br br-phy -- set bridge br-phy datapath_type=netdev {own}");
    line += " -- add-port br-phy uplink";
    for port in ports {
        line += &format!(" -- add-port br-int {port}");
    }
    vsctl(&ovs, &line);
    site.switch.ip_batch(&format!("addr add {}/24 dev br-phy\nlink set br-phy up", vtep(number)));
    for host in &site.hosts {
        host.set_mtu(&site.switch, TENANT_MTU);
        finish_checksums(&host.ns, "eth0");
    }
    ovs
}

/// `ovs-vsctl LINE`, which must succeed.
pub fn vsctl(ovs: &Ovs, line: &str) {
    ovs.vsctl(line).unwrap_or_else(|e| panic!("{e}"));
}

/// Adds a port to `br-int`: of kind `vxlan`, `gre` or `geneve`, named after it, to [`vtep`]`(remote)`. More settings
/// are `options:key=7`, `options:csum=true` …
pub fn open_vswitch_tunnel(ovs: &Ovs, kind: &str, remote: u8, settings: &str) {
    let interface = format!("interface {kind}0 type={kind} options:remote_ip={}", vtep(remote));
    vsctl(ovs, &format!("add-port br-int {kind}0 -- set {interface} {settings}"));
}

/// Makes `vx0`, Linux's own VXLAN device, in a namespace with an `uplink`, which gets [`vtep`]`(number)`.
pub fn vxlan_device(node: &Namespace, number: u8, remote: u8, vni: u32) {
    let (local, remote) = (vtep(number), vtep(remote));
    let ends = format!("local {local} remote {remote} dstport 4789 dev uplink");
    node.ip_batch(&format!(
        "addr add {local}/24 dev uplink\nlink add vx0 type vxlan id {vni} {ends}\nlink set vx0 up"
    ));
}

/// Joins a site's hosts and more interfaces by a Linux bridge.
pub fn linux_bridge(site: &Site, interfaces: &[&str]) {
    let hosts = site.hosts.iter().map(|host| host.port.as_str());
    let mut lines = "link add br0 type bridge\nlink set br0 up".to_owned();
    for interface in hosts.chain(interfaces.iter().copied()) {
        lines += &format!("\nlink set {interface} master br0");
    }
    site.switch.ip_batch(&lines);
}
