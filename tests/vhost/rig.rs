//! What these tests have in common: a directory of sockets, machines with addresses, and traffic between them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::daemon::{Daemon, bridge};
use crate::support::host::{Host, Site};
use crate::support::lab::within;
use crate::support::vm::Vm;
use crate::support::vm::machine::{Machine, Nic, Socket};

/// How long emulated machines may take to find each other, or to move some MiB, on two loaded cores.
pub const SLOWLY: Duration = Duration::from_secs(60);
pub const MIB: usize = 1 << 20;

/// A switch with hosts around it, and the sockets of its vhost-user ports.
pub struct Room {
    /// Where the sockets are.
    pub dir: TempDir,
    /// Hosts 10.9.0.1 and so on, at `p1` and so on.
    pub site: Site,
}

impl Room {
    /// A room with so many hosts.
    pub fn new(hosts: u8) -> Room {
        Room { dir: TempDir::with_prefix("sluice-test-vhost-").expect("a directory"), site: Site::new(hosts) }
    }

    /// The socket of port `name`, if QEMU makes it.
    pub fn listening(&self, name: &str) -> Socket {
        Socket::Listening(self.path(name))
    }

    /// The socket of port `name`, if the switch makes it.
    pub fn connecting(&self, name: &str) -> Socket {
        Socket::Connecting(self.path(name))
    }

    /// A file beside the sockets.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the switch with one bridge and these ports (see [`bridge`] and [`port`]).
    pub fn start(&self, ports: &[&str]) -> Daemon {
        self.start_with(&bridge(ports))
    }

    /// Starts the switch with these bridges.
    pub fn start_with(&self, bridges: &str) -> Daemon {
        let sockets = format!("vhost-sock-dir = \"{}\"", self.dir.path().display());
        Daemon::start_with(&self.site.switch, &sockets, bridges)
    }

    /// Starts a machine, which need not have booted.
    pub fn machine(&self, nics: impl Into<Vec<Nic>>) -> Vm {
        Vm::start(&self.site.switch, Machine::new(nics))
    }
}

/// The vhost-user port at a socket, as [`bridge`] wants it.
pub fn port(socket: &Socket, settings: &str) -> String {
    let name = socket.path().file_name().expect("a name").to_str().expect("a plain name");
    match socket {
        Socket::Listening(path) => {
            format!("{name} dpdkvhostuserclient vhost-server-path = \"{}\"; {settings}", path.display())
        }
        Socket::Connecting(_) => format!("{name} dpdkvhostuser {settings}"),
    }
}

/// The address of machine or host `number`.
pub fn ip(number: u8) -> Ipv4Addr {
    [10, 9, 0, number].into()
}

/// Gives an interface of a machine the address of `number`, and sets it up.
pub fn address(vm: &mut Vm, interface: &str, number: u8) {
    vm.run(&format!("ip addr add {}/16 dev {interface} && ip link set {interface} up", ip(number)));
}

/// Waits until a machine reaches `to`.
pub fn await_reach(vm: &mut Vm, to: Ipv4Addr) {
    within(SLOWLY, &format!("a machine reaches {to}"), || {
        vm.try_run(&format!("ping -n -q -c 1 -w 2 -i 0.1 {to}")).is_ok()
    });
}

/// Waits until a host reaches a machine.
pub fn await_reached(host: &Host, to: Ipv4Addr) {
    within(SLOWLY, &format!("{} reaches {to}", host.port), || host.reaches(to));
}

/// Sends random bytes from machine to machine over TCP and compares all of them.
pub fn stream(from: &mut Vm, to: &mut Vm, ip: Ipv4Addr, bytes: usize) {
    // Busybox's nc hangs up when its own input ends: it gets one that does not.
    to.run("rm -f /tmp/got /tmp/done /tmp/quiet; mkfifo /tmp/quiet");
    to.run("(nc -l -p 5000 <>/tmp/quiet >/tmp/got; touch /tmp/done) >/dev/null 2>&1 &");
    within(SLOWLY, "a machine listens", || to.run("ss -Hltn sport = :5000").contains("LISTEN"));
    let sent = from.run(&format!(
        "head -c {bytes} /dev/urandom >/tmp/sent; timeout 50 nc {ip} 5000 </tmp/sent; md5sum </tmp/sent"
    ));
    within(SLOWLY, "the stream ends", || to.try_run("test -e /tmp/done").is_ok());
    assert_eq!(to.run("md5sum </tmp/got"), sent, "{} bytes of {bytes}", to.run("wc -c </tmp/got").trim());
}

/// Waits until the machine's iperf3 listens.
pub fn serve(vm: &mut Vm) {
    vm.run("iperf3 -s -D");
    within(SLOWLY, "iperf3 listens", || vm.run("ss -Hltn sport = :5201").contains("LISTEN"));
}

/// A counter of `sluice port show`: `count(&daemon, "vm1", "/rx/frames")`.
pub fn count(daemon: &Daemon, port: &str, pointer: &str) -> u64 {
    let shown = daemon.port(port);
    shown.pointer(pointer).and_then(|n| n.as_u64()).unwrap_or_else(|| panic!("no {pointer} in {shown}"))
}

/// Asserts that the switch's books balance.
pub fn assert_balance(daemon: &Daemon) {
    within(SLOWLY, "the books balance", || daemon.ask("ledger")["balances"] == true);
}
