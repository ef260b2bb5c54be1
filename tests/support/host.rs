//! Hosts: a namespace each, plugged into the switch's namespace by a veth pair.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::daemon::{Daemon, bridge};
use super::namespace::Namespace;
use super::traffic::{await_ping, tcp};

/// A switch's namespace and the hosts around it: host number `i` is plugged into port `p<i>`.
pub struct Site {
    /// Where the daemon runs.
    pub switch: Namespace,
    /// Each with a port of the switch.
    pub hosts: Vec<Host>,
}

impl Site {
    /// A site of `n` hosts, 10.9.0.1 to 10.9.0.`n`.
    pub fn new(n: u8) -> Site {
        Site::numbered(1..=n)
    }

    /// A site of hosts with these numbers, so that several sites can be joined.
    pub fn numbered(numbers: RangeInclusive<u8>) -> Site {
        let switch = Namespace::new();
        let hosts = numbers.map(|i| Host::plug(&switch, &format!("p{i}"), i)).collect();
        Site { switch, hosts }
    }

    /// Lays a cable to another switch; both ends are called `name`.
    pub fn join(&self, other: &Site, name: &str) {
        self.switch.ip(&format!("link add {name} type veth peer name {name} netns {}", other.switch.path()));
        self.switch.ip(&format!("link set {name} up"));
        other.switch.ip(&format!("link set {name} up"));
    }

    /// Starts the switch with one bridge and these ports (see [`bridge`]).
    pub fn start(&self, ports: &[&str]) -> Daemon {
        Daemon::start(&self.switch, &bridge(ports))
    }

    /// Asserts that every host reaches every other, with whole TCP streams both ways.
    pub fn assert_mesh(&self, bytes: usize) {
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| to.ip != from.ip) {
                await_ping(from, to.ip);
                tcp(from, to, bytes);
            }
        }
    }
}

/// A host with one interface, `eth0`.
pub struct Host {
    /// Where it lives.
    pub ns: Namespace,
    /// The name of the interface's other end, in the switch's namespace.
    pub port: String,
    /// The address of `eth0`, in a /16.
    pub ip: Ipv4Addr,
}

impl Host {
    /// A host whose `eth0` has address 10.9.0.`number`; the other end of the cable is `port` in `switch`.
    pub fn plug(switch: &Namespace, port: &str, number: u8) -> Host {
        let host = Host { ns: Namespace::new(), port: port.into(), ip: Ipv4Addr::new(10, 9, 0, number) };
        host.cable(switch);
        host
    }

    /// Makes the cable, as [`Host::plug`] does; again, after it was cut.
    pub fn cable(&self, switch: &Namespace) {
        let mac = format!("02:00:0a:09:00:{:02x}", self.ip.octets()[3]);
        switch.ip(&format!(
            "link add {} type veth peer name eth0 address {mac} netns {}",
            self.port,
            self.ns.path()
        ));
        self.ns.ip(&format!("addr add {}/16 dev eth0", self.ip));
        self.ns.ip("link set eth0 up");
        switch.ip(&format!("link set {} up", self.port));
    }

    /// Cuts the cable: both ends vanish.
    pub fn cut(&self, switch: &Namespace) {
        switch.ip(&format!("link del {}", self.port));
    }

    /// The MTU of both ends.
    pub fn set_mtu(&self, switch: &Namespace, mtu: u16) {
        self.ns.ip(&format!("link set eth0 mtu {mtu}"));
        switch.ip(&format!("link set {} mtu {mtu}", self.port));
    }

    /// The address of `eth0`.
    pub fn mac(&self) -> String {
        self.ns.ip_json("link show dev eth0")[0]["address"].as_str().expect("an address").to_owned()
    }

    /// Is `to` there? One echo request, up to one second.
    pub fn pings(&self, to: Ipv4Addr) -> bool {
        self.ns.output(&format!("ping -n -q -c 1 -W 1 {to}")).status.success()
    }

    /// Is one of many echo requests answered within a second? The first may be lost while the way is being found.
    pub fn reaches(&self, to: Ipv4Addr) -> bool {
        self.ns.output(&format!("ping -n -q -c 1 -w 1 -i 0.05 {to}")).status.success()
    }

    /// One echo request of `size` bytes of payload that must not be fragmented.
    pub fn pings_whole(&self, to: Ipv4Addr, size: usize) -> bool {
        self.ns.output(&format!("ping -n -q -c 1 -W 1 -M do -s {size} {to}")).status.success()
    }
}
