//! A fabric of our own hypervisors: daemons in namespaces, tenants whose addresses overlap, and the wires between.
//!
//! Hypervisor `n` has the addresses [`vtep`]`(n)` and [`vtep6`]`(n)` on the underlay and one VM of every tenant. All VMs
//! number `n` have the same MAC and the same IP address, whoever's they are, and one IP address that nobody else has.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::daemon::Daemon;
use super::host::{Host, Site};
use super::lab::eventually;
use super::namespace::Namespace;
use super::peers::{TENANT_MTU, Underlay, vtep};

/// How a hypervisor's tunnels reach the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footing {
    /// The switch's own stack: a `vtep` port beside the uplink, which is AF_XDP.
    Vtep,
    /// The kernel has the addresses, on an internal port beside the uplink, which is AF_PACKET.
    Internal,
    /// The kernel has the uplink and the addresses; tunnels are sockets.
    Host,
}

/// The addresses that tunnels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// [`vtep`]
    V4,
    /// [`vtep6`]
    V6,
}

impl Family {
    /// The address of hypervisor `number`.
    pub fn address(self, number: u8) -> IpAddr {
        match self {
            Family::V4 => vtep(number).into(),
            Family::V6 => vtep6(number).into(),
        }
    }
}

/// The address of hypervisor `number` on an IPv6 underlay, in a /64 (RFC 3849).
pub fn vtep6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
}

/// A tenant with one network.
#[derive(Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name, and its segment's.
    pub name: &'static str,
    /// Makes the addresses that nobody else has.
    number: u8,
    /// Keys of the segment.
    segment: &'static str,
    /// Keys of its VMs' ports.
    port: &'static str,
}

/// In VXLAN, on local VLAN 1.
pub static RED: Tenant = Tenant {
    name: "red",
    number: 1,
    segment: r#"vlan = 1, type = "vxlan", id = 5001, vteps = [VTEPS]"#,
    port: r#"type = "afxdp", tag = 1"#,
};
/// In the same VXLAN tunnel.
pub static PINK: Tenant = Tenant {
    name: "pink",
    number: 2,
    segment: r#"vlan = 2, type = "vxlan", id = 5002, vteps = [VTEPS]"#,
    port: r#"type = "afpacket", tag = 2"#,
};
/// In GRE, without a local VLAN.
pub static GREEN: Tenant = Tenant {
    name: "green",
    number: 3,
    segment: r#"type = "gre", id = 5001, vteps = [VTEPS]"#,
    port: r#"type = "afpacket", segment = "green""#,
};
/// In Geneve, with the VNI that red has in VXLAN.
pub static BLUE: Tenant = Tenant {
    name: "blue",
    number: 4,
    segment: r#"vlan = 4, type = "geneve", id = 5001, vteps = [VTEPS]"#,
    port: r#"type = "afxdp", tag = 4"#,
};
/// VLAN 101 of the provider's wire.
pub static GREY: Tenant = Tenant {
    name: "grey",
    number: 5,
    segment: r#"vlan = 5, type = "vlan", id = 101, uplink = "provider""#,
    port: r#"type = "afpacket", tag = 5"#,
};
/// Untagged on the provider's wire.
pub static WHITE: Tenant = Tenant {
    name: "white",
    number: 6,
    segment: r#"vlan = 6, type = "flat", uplink = "provider""#,
    port: r#"type = "afxdp", tag = 6"#,
};

/// One in each kind of network, two in VXLAN.
pub const EVERYBODY: [&Tenant; 6] = [&RED, &PINK, &GREEN, &BLUE, &GREY, &WHITE];

impl Tenant {
    /// The address of its VM `number` that no other VM has.
    pub fn own_ip(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, self.number, number)
    }

    /// `{ … }`: the port of its VM `number`.
    fn port(&self, number: u8) -> String {
        format!("{{ name = \"{}{number}\", {} }}", self.name, self.port)
    }

    fn segment(&self, vteps: &str) -> String {
        format!("{{ name = \"{}\", {} }}", self.name, self.segment.replace("VTEPS", vteps))
    }
}

/// Hypervisors, numbered from 1, and the wires between them.
pub struct Fabric {
    /// Carries tunnels. Port `n0` of its bridge is the first hypervisor's.
    pub underlay: Underlay,
    /// The wire of provider networks.
    pub provider: Underlay,
    /// In the order of their numbers.
    pub nodes: Vec<Node>,
    /// Kernels with an `uplink` and the addresses of the numbers that follow.
    pub strangers: Vec<Namespace>,
}

impl Fabric {
    /// A fabric over IPv4.
    pub fn new(footings: &[Footing], tenants: &[&'static Tenant]) -> Fabric {
        Fabric::over(Family::V4, footings, tenants)
    }

    /// A fabric with a hypervisor for each footing, in which every tenant has a VM on each.
    pub fn over(family: Family, footings: &[Footing], tenants: &[&'static Tenant]) -> Fabric {
        Fabric::beside(0, (family, footings), tenants)
    }

    /// As [`Fabric::over`]; the next numbers are `strangers`, which every segment has as VTEPs, too.
    pub fn beside(
        strangers: u8,
        (family, footings): (Family, &[Footing]),
        tenants: &[&'static Tenant],
    ) -> Fabric {
        let spaces: Vec<Namespace> = footings.iter().map(|_| Namespace::new()).collect();
        let all: Vec<&Namespace> = spaces.iter().collect();
        let (underlay, provider) = (Underlay::between(&all), Underlay::cabled("provider", &all));
        let first = footings.len() as u8 + 1;
        // A hub: it would take VMs of different tenants with the same address for one.
        provider.ns.ip("link set underlay type bridge ageing_time 0");
        let numbers = 1..first + strangers;
        let vteps: Vec<IpAddr> = numbers.clone().map(|n| family.address(n)).collect();
        let plan = |number, footing| Plan { number, footing, family, tenants, vteps: &vteps };
        let strangers = (first..first + strangers).map(|number| stranger(&underlay, number)).collect();
        let places = numbers.zip(footings).zip(spaces);
        let nodes = places.map(|((number, footing), ns)| Node::start(ns, &plan(number, *footing))).collect();
        Fabric { underlay, provider, nodes, strangers }
    }

    /// The VM of a tenant on the hypervisor of this number.
    pub fn vm(&self, tenant: &Tenant, number: u8) -> &Host {
        self.node(number).vm(tenant)
    }

    /// The hypervisor of this number.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// Every frame on every hypervisor is accounted for.
    pub fn assert_balance(&self) {
        self.nodes.iter().for_each(Node::assert_balance);
    }
}

fn stranger(underlay: &Underlay, number: u8) -> Namespace {
    let ns = Namespace::new();
    underlay.plug(&ns, (&format!("far{number}"), "uplink"));
    give_addresses(&ns, "uplink", number);
    ns
}

/// What a hypervisor is to be.
struct Plan<'a> {
    number: u8,
    footing: Footing,
    family: Family,
    tenants: &'a [&'static Tenant],
    vteps: &'a [IpAddr],
}

impl Plan<'_> {
    fn text(&self) -> String {
        let mut ports = String::new();
        let mut line = |entry: &str| writeln!(ports, "  {entry},").expect("a string grows");
        let has = |word: &str| self.tenants.iter().any(|tenant| tenant.segment.contains(word));
        if has("provider") {
            line(r#"{ name = "provider", type = "afpacket" }"#);
        }
        for kind in ["vxlan", "gre", "geneve"].into_iter().filter(|kind| has(&format!("\"{kind}\""))) {
            line(&self.tunnel(kind));
        }
        self.tenants.iter().for_each(|tenant| line(&tenant.port(self.number)));
        let own = self.family.address(self.number);
        let others = self.vteps.iter().filter(|vtep| **vtep != own);
        let vteps: Vec<String> = others.map(|vtep| format!("\"{vtep}\"")).collect();
        let segments: String =
            self.tenants.iter().map(|tenant| format!("  {},\n", tenant.segment(&vteps.join(", ")))).collect();
        let underlay = self.footing.bridge(self.number);
        format!("{underlay}\n[[bridge]]\nname = \"br-int\"\nsegment = [\n{segments}]\nport = [\n{ports}]\n")
    }

    fn tunnel(&self, kind: &str) -> String {
        let (own, carrier) = (self.family.address(self.number), self.footing.carrier());
        format!(
            "{{ name = \"{kind}0\", type = \"{kind}\", remote-ip = \"flow\", key = \"flow\", local-ip = \"{own}\", \
             underlay = \"{carrier}\" }}"
        )
    }
}

impl Footing {
    /// `underlay` of the tunnel ports.
    pub fn carrier(self) -> &'static str {
        match self {
            Footing::Vtep | Footing::Internal => "switch",
            Footing::Host => "host",
        }
    }

    /// The bridge of the uplink and the addresses of hypervisor `number`, `br-phy`; none if the kernel has both.
    pub fn bridge(self, number: u8) -> String {
        let (kind, own) = match self {
            Footing::Vtep => {
                let addresses = format!("\"{}/24\", \"{}/64\"", vtep(number), vtep6(number));
                ("afxdp", format!("name = \"vtep0\", type = \"vtep\", address = [{addresses}]"))
            }
            Footing::Internal => ("afpacket", "name = \"host0\", type = \"internal\"".to_owned()),
            Footing::Host => return String::new(),
        };
        let uplink = format!("name = \"uplink\", type = \"{kind}\"");
        format!("[[bridge]]\nname = \"br-phy\"\nport = [\n  {{ {uplink} }},\n  {{ {own} }},\n]\n")
    }

    /// Gives hypervisor `number` those addresses that the kernel is to have.
    pub fn address(self, ns: &Namespace, number: u8) {
        let device = match self {
            Footing::Vtep => return,
            Footing::Internal => "host0",
            Footing::Host => "uplink",
        };
        eventually(&format!("{device} appears"), || ns.has_link(device));
        give_addresses(ns, device, number);
    }
}

/// Gives a device the addresses of hypervisor `number` and sets it up.
pub fn give_addresses(ns: &Namespace, device: &str, number: u8) {
    ns.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0");
    let (v4, v6) = (vtep(number), vtep6(number));
    ns.ip_batch(&format!(
        "addr replace {v4}/24 dev {device}\naddr replace {v6}/64 dev {device} nodad\nlink set {device} up"
    ));
}

/// Starts a switch as hypervisor `number` at a site with an `uplink`: the underlay as [`Footing::bridge`] has it, and the
/// site's hosts on `br-int`. Each of `ports` is an entry: `{ name = "p1", tag = 10 }`.
pub fn hypervisor(site: &Site, number: u8, (footing, ports): (Footing, &[&str])) -> Daemon {
    site.hosts.iter().for_each(|host| host.set_mtu(&site.switch, TENANT_MTU));
    if footing == Footing::Host {
        footing.address(&site.switch, number);
    }
    let (underlay, ports) = (footing.bridge(number), ports.join(",\n  "));
    let text = format!("{underlay}\n[[bridge]]\nname = \"br-int\"\nport = [\n  {ports},\n]\n");
    let daemon = Daemon::start(&site.switch, &text);
    if footing == Footing::Internal {
        footing.address(&site.switch, number);
    }
    daemon
}

/// A hypervisor.
pub struct Node {
    /// From 1.
    pub number: u8,
    /// Where it lives.
    pub ns: Namespace,
    /// Its switch.
    pub daemon: Daemon,
    footing: Footing,
    family: Family,
    vms: Vec<(&'static Tenant, Host)>,
}

impl Node {
    fn start(ns: Namespace, plan: &Plan) -> Node {
        let Plan { number, footing, family, tenants, .. } = *plan;
        let boot = |tenant: &'static Tenant| {
            let vm = Host::plug(&ns, &format!("{}{number}", tenant.name), number);
            vm.set_mtu(&ns, TENANT_MTU);
            vm.ns.ip(&format!("addr add {}/16 dev eth0", tenant.own_ip(number)));
            (tenant, vm)
        };
        let vms = tenants.iter().map(|tenant| boot(tenant)).collect();
        if footing == Footing::Host {
            footing.address(&ns, number);
        }
        let daemon = Daemon::start(&ns, &plan.text());
        if footing == Footing::Internal {
            footing.address(&ns, number);
        }
        Node { number, ns, daemon, footing, family, vms }
    }

    /// The VM that this tenant had here from the beginning.
    pub fn vm(&self, tenant: &Tenant) -> &Host {
        let found = self.vms.iter().find(|(owner, _)| *owner == tenant);
        &found.expect("a VM of every tenant").1
    }

    /// Its address on the underlay.
    pub fn address(&self) -> IpAddr {
        self.family.address(self.number)
    }

    /// SIGKILL to its switch. VMs go on.
    pub fn die(&mut self) {
        self.daemon.kill9();
    }

    /// Starts its switch again.
    pub fn revive(&mut self) {
        self.daemon.restart(&self.ns);
        self.footing.address(&self.ns, self.number);
    }

    /// Gives a VM's port away: the cable's end moves to another hypervisor, whose switch takes it. As an operator
    /// does it, so the VM keeps its end, its addresses and whatever runs on it.
    pub fn hand_over(&self, tenant: &Tenant, vm: &Host, to: &Node) {
        self.daemon.ask(&format!("port del {}", vm.port));
        self.ns.ip(&format!("link set {} netns {}", vm.port, to.ns.path()));
        let settings = tenant.port.replace(" = ", "=").replace('"', "").replace(", ", " ");
        to.ns.ip(&format!("link set {} mtu {TENANT_MTU} up", vm.port));
        to.daemon.ask(&format!("port add br-int {} {settings}", vm.port));
        eventually(&format!("{} is up", vm.port), || to.daemon.port(&vm.port)["state"] == "up");
    }

    /// Where the switch believes a MAC address of a tenant to be: the port, and the VTEP behind a tunnel's.
    pub fn place(&self, tenant: &Tenant, mac: &str) -> Option<(String, Option<IpAddr>)> {
        let fdb = self.daemon.ask("fdb show br-int");
        let entries = fdb.as_array().expect("entries");
        let entry = entries.iter().find(|entry| entry["segment"] == tenant.name && entry["mac"] == mac)?;
        let port = entry["port"].as_str().expect("a port").to_owned();
        Some((port, entry["vtep"].as_str().map(|vtep| vtep.parse().expect("an address"))))
    }

    /// Every frame is accounted for.
    pub fn assert_balance(&self) {
        eventually("the books balance and nothing is held", || {
            let ledger = self.daemon.ask("ledger");
            assert_eq!(ledger["balances"], true, "hypervisor {}: {ledger}", self.number);
            ledger["held"] == 0
        });
    }
}
