//! Guests that reach each other: whole streams with their kernels' offloads, long frames, VLANs, tunnels, many queues.

use std::fs;
use std::net::Ipv4Addr;

use tempfile::TempDir;

use crate::rig::{
    MIB, Room, SLOWLY, address, assert_balance, await_reach, await_reached, count, ip, port, serve, stream,
};
use crate::support::daemon::{Daemon, bridge};
use crate::support::host::Host;
use crate::support::lab::{Seat, within};
use crate::support::peers::{Underlay, vtep};
use crate::support::vm::Vm;
use crate::support::vm::machine::{MEMORY, Machine, Memory, Nic};

/// Two frames of the usual MTU: what is longer on average was not cut.
const TWO_FRAMES: u64 = 2 * 1514;

/// What `port` sent and received since it had `(frames, bytes)`, in bytes a frame.
fn mean_length(daemon: &Daemon, port: &str, direction: &str, before: (u64, u64)) -> u64 {
    let (frames, bytes) = traffic(daemon, port, direction);
    (bytes - before.1) / (frames - before.0).max(1)
}

fn traffic(daemon: &Daemon, port: &str, direction: &str) -> (u64, u64) {
    let of = |what: &str| count(daemon, port, &format!("/{direction}/{what}"));
    (of("frames"), of("bytes"))
}

/// A stream each way, and a host's: the frames of both kernels pass uncut.
#[test]
fn two_guests_and_a_host_exchange_whole_streams_in_frames_that_nobody_cuts() {
    let Some(_seats) = Seat::take_all() else { return };
    let room = Room::new(1);
    let (left, right) = (room.listening("vm1"), room.connecting("vm2"));
    let daemon = room.start(&["p1 afpacket", &port(&left, ""), &port(&right, "")]);
    let (left, right) = (room.machine([Nic::at(left)]), room.machine([Nic::at(right), Nic::tap("tap2")]));
    let (mut left, mut right) = (left.booted(), right.booted());
    address(&mut left, "eth0", 11);
    address(&mut right, "eth0", 12);
    await_reach(&mut left, ip(12));
    let before = (traffic(&daemon, "vm1", "rx"), traffic(&daemon, "vm2", "tx"));
    stream(&mut left, &mut right, ip(12), 4 * MIB);
    let (rx, tx) = (mean_length(&daemon, "vm1", "rx", before.0), mean_length(&daemon, "vm2", "tx", before.1));
    assert!(rx > TWO_FRAMES && tx > TWO_FRAMES, "{rx} bytes a frame came, {tx} went: GSO frames were cut");
    stream(&mut right, &mut left, ip(11), 4 * MIB);

    let host = &room.site.hosts[0];
    await_reached(host, ip(11));
    serve(&mut left);
    for direction in ["", "--reverse"] {
        let line = format!("timeout 50 iperf3 -n 4M -c {} {direction}", ip(11));
        within(SLOWLY, &line, || host.ns.output(&line).status.success());
    }

    // The other card of the second guest is a TAP device, which the switch finds by its name.
    right.run("ip addr flush dev eth0 && ip link set eth0 down");
    address(&mut right, "eth1", 12);
    daemon.ask("port add br0 tap2 type=afpacket");
    await_reach(&mut right, ip(11));
    let before = traffic(&daemon, "tap2", "tx");
    stream(&mut left, &mut right, ip(12), 4 * MIB);
    let length = mean_length(&daemon, "tap2", "tx", before);
    assert!(length > TWO_FRAMES, "{length} bytes a frame: GSO frames were cut on the way to a TAP device");
    stream(&mut right, &mut left, ip(11), 4 * MIB);
    assert_balance(&daemon);
}

fn host_sends_whole(host: &Host, to: Ipv4Addr, size: usize) {
    within(SLOWLY, &format!("{size} bytes whole from {} to {to}", host.port), || host.pings_whole(to, size));
}

#[test]
fn a_guest_takes_the_ports_mtu_and_sends_jumbo_frames() {
    let Some(_seat) = Seat::take() else { return };
    let room = Room::new(1);
    room.site.hosts[0].set_mtu(&room.site.switch, 9000);
    let socket = room.listening("vm1");
    let daemon = room.start(&["p1 afpacket", &port(&socket, "mtu = 9000")]);
    let mut vm = room.machine([Nic::at(socket).with("host_mtu=9000")]).booted();
    assert_eq!(vm.run("cat /sys/class/net/eth0/mtu").trim(), "9000");
    address(&mut vm, "eth0", 11);
    await_reach(&mut vm, ip(1));
    host_sends_whole(&room.site.hosts[0], ip(11), 9000 - 28);
    vm.run(&format!("ping -n -q -c 1 -w 20 -M do -s {} {}", 9000 - 28, ip(1)));
    // QEMU does not start a card whose MTU its port has not.
    daemon.ask("port set vm1 mtu=1500");
    daemon.await_log("`host_mtu` of the VM's device");
}

#[test]
fn a_guest_on_a_trunk_tags_its_frames_itself() {
    let Some(_seat) = Seat::take() else { return };
    let room = Room::new(2);
    let socket = room.connecting("vm1");
    let daemon =
        room.start(&["p1 afpacket tag = 10", "p2 afxdp tag = 20", &port(&socket, "trunks = [10, 20]")]);
    room.site.hosts[0].set_mtu(&room.site.switch, 3000);
    let mut vm = room.machine([Nic::at(socket)]).booted();
    vm.run("ip link set eth0 up && iperf3 -s -D");
    for (host, vlan) in room.site.hosts.iter().zip([10, 20]) {
        vm.run(&format!("ip link add link eth0 name v{vlan} type vlan id {vlan}"));
        address(&mut vm, &format!("v{vlan}"), 11);
        await_reach(&mut vm, host.ip);
        for direction in ["", "--reverse"] {
            let line = format!("timeout 50 iperf3 -n 1M -c {} {direction}", ip(11));
            within(SLOWLY, &line, || host.ns.output(&line).status.success());
        }
        let longer = host.pings_whole(ip(11), 2500);
        assert!(!longer, "{} sent 2500 bytes to a guest that takes 1500", host.port);
        vm.run(&format!("ip link del v{vlan}"));
        assert!(!host.pings(ip(11)), "{} is reached without its VLAN", host.port);
    }
    within(SLOWLY, "what is too long is counted", || daemon.port("vm1")["drops"].to_string().contains("mtu"));
    assert_balance(&daemon);
}

/// A hypervisor with one guest of a VXLAN tenant.
fn hypervisor(room: &Room, number: u8) -> (Daemon, Vm) {
    let socket = if number == 1 { room.listening("vm1") } else { room.connecting("vm1") };
    let guest = port(&socket, "mtu = 1450; tag = 1");
    let tenant = format!(
        "segment = [{{ name = \"blue\", vlan = 1, type = \"vxlan\", id = 5001, vteps = [\"{}\"] }}]",
        vtep(3 - number)
    );
    let tenants = bridge(&["vxlan0 vxlan remote-ip = \"flow\"; key = \"flow\"", &guest]).replacen(
        "name = \"br0\"\n",
        &format!("name = \"br-int\"\n{tenant}\n"),
        1,
    );
    let own = format!("vtep0 vtep address = [\"{}/24\"]", vtep(number));
    let daemon = room.start_with(&format!("{}\n{tenants}", bridge(&["uplink afpacket", &own])));
    (daemon, room.machine([Nic::at(socket).with("host_mtu=1450")]))
}

#[test]
fn guests_behind_two_switches_reach_each_other_in_a_vxlan_segment() {
    let Some(_seats) = Seat::take_all() else { return };
    let (near, far) = (Room::new(0), Room::new(0));
    let _underlay = Underlay::between(&[&near.site.switch, &far.site.switch]);
    let ((near_daemon, near), (far_daemon, far)) = (hypervisor(&near, 1), hypervisor(&far, 2));
    let (mut near, mut far) = (near.booted(), far.booted());
    address(&mut near, "eth0", 11);
    address(&mut far, "eth0", 12);
    await_reach(&mut near, ip(12));
    stream(&mut near, &mut far, ip(12), 2 * MIB);
    stream(&mut far, &mut near, ip(11), 2 * MIB);
    assert_balance(&near_daemon);
    assert_balance(&far_daemon);
}

/// Receive queues of the guest that have had frames.
fn queues_in_use(vm: &mut Vm) -> usize {
    let said = vm.run("ethtool -S eth0 | grep -E 'rx_queue_[0-9]+_packets: [1-9]' | wc -l");
    said.trim().parse().expect("a number")
}

fn streams(host: &Host, vm: &mut Vm) {
    for direction in ["", "--reverse"] {
        let line = format!("timeout 50 iperf3 -n 4M -P 8 -c {} {direction}", ip(11));
        within(SLOWLY, &line, || host.ns.output(&line).status.success());
    }
    await_reach(vm, host.ip);
}

#[test]
fn a_guest_with_four_queues_uses_them_and_changes_their_number_while_it_runs() {
    let Some(_seats) = Seat::take_all() else { return };
    let room = Room::new(1);
    let socket = room.listening("vm1");
    let daemon = room.start(&["p1 afpacket", &port(&socket, "queues = 4")]);
    let mut machine = Machine::new([Nic::at(socket).queues(4)]);
    machine.cpus = 2;
    let mut vm = Vm::start(&room.site.switch, machine).booted();
    address(&mut vm, "eth0", 11);
    await_reach(&mut vm, ip(1));
    serve(&mut vm);
    for pairs in [4, 2, 1, 3] {
        // It says so if there are that many already.
        let _ = vm.try_run(&format!("ethtool -L eth0 combined {pairs}"));
        within(SLOWLY, &format!("{pairs} pairs"), || count(&daemon, "vm1", "/vhost/pairs") == pairs);
        streams(&room.site.hosts[0], &mut vm);
    }
    let used = queues_in_use(&mut vm);
    assert!(used >= 3, "{used} of 4 queues have had frames");
    assert_balance(&daemon);
}

/// Rings of another format, and without the features that most guests have.
#[test]
fn a_guest_with_packed_rings_exchanges_streams() {
    let Some(_seat) = Seat::take() else { return };
    for properties in
        ["packed=on", "packed=on,mrg_rxbuf=off,event_idx=off", "mrg_rxbuf=off,indirect_desc=off"]
    {
        let room = Room::new(1);
        let socket = room.connecting("vm1");
        let daemon = room.start(&["p1 afpacket", &port(&socket, "")]);
        let mut vm = room.machine([Nic::at(socket).with(properties)]).booted();
        address(&mut vm, "eth0", 11);
        await_reach(&mut vm, ip(1));
        serve(&mut vm);
        streams(&room.site.hosts[0], &mut vm);
        let obtained = daemon.port("vm1")["obtained"].to_string();
        assert!(
            obtained.contains(if properties.contains("packed") { "packed" } else { "split" }),
            "{obtained}"
        );
        assert_balance(&daemon);
    }
}

/// Streams to and from a guest with its memory in another place than a memfd of small pages, as in all other tests.
fn lives_in(memory: Memory) {
    let room = Room::new(1);
    let socket = room.listening("vm1");
    let daemon = room.start(&["p1 afpacket", &port(&socket, "")]);
    let mut machine = Machine::new([Nic::at(socket)]);
    machine.memory = memory;
    let mut vm = Vm::start(&room.site.switch, machine).booted();
    address(&mut vm, "eth0", 11);
    await_reach(&mut vm, ip(1));
    serve(&mut vm);
    streams(&room.site.hosts[0], &mut vm);
    assert_balance(&daemon);
}

#[test]
fn a_guest_whose_memory_is_a_file_exchanges_streams() {
    let Some(_seat) = Seat::take() else { return };
    let directory = TempDir::with_prefix("sluice-test-memory-").expect("a directory");
    lives_in(Memory::File(directory.path().into()));
}

/// Pages of 2 MiB that are reserved until this is dropped.
struct HugePages(u32);

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

impl HugePages {
    /// Reserves so many more; `None` if the kernel has none.
    fn reserve(more: u32) -> Option<HugePages> {
        let read = || fs::read_to_string(HUGE_PAGES).ok()?.trim().parse::<u32>().ok();
        let before = read()?;
        let pages = HugePages(before);
        fs::write(HUGE_PAGES, (before + more).to_string()).ok()?;
        (read()? >= before + more).then_some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, self.0.to_string());
    }
}

#[test]
fn a_guest_whose_memory_is_huge_pages_exchanges_streams() {
    let Some(_seat) = Seat::take() else { return };
    let Some(_pages) = HugePages::reserve(MEMORY / 2) else {
        eprintln!("skipped: no {MEMORY} MiB of huge pages");
        return;
    };
    lives_in(Memory::Huge);
}
