"""Switches between two interfaces, s0 and s1, of one namespace."""

from __future__ import annotations

import os
from pathlib import Path

from . import frames, sluice, testpmd
from .duel import Bench
from .jobs import Failed, Job, Place, Room, compiled, wait_for
from .machine import URGENT, named
from .net import Namespace, appears
from .ovs import Ovs

PORTS = ("s0", "s1")
TAPS = ("g0", "k0")
"""Interfaces that a switch makes itself."""
PLAINLY = {"afxdp": "afxdp", "system": "AF_PACKET", "afpacket": "AF_PACKET", "internal": "TAP"}
"""What the types of ports are."""
STATIONS = (frames.SENDER, frames.RECEIVER)


class Switch:
    """What stands between; `offloads` says whether TCP's may stay on with it."""

    name = "none: one veth pair"
    offloads = "on"
    huge_mib = 0

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job | None:
        """Returns when frames pass; its process, if it has one."""
        raise NotImplementedError


class Wire(Switch):
    """No switch at all: what generator, kernel and sink do by themselves."""

    def start(self, bench: Bench, room: Room, netns: Namespace) -> None:
        return None


class Bridge(Switch):
    """The kernel's. Its work is done by whoever sends, or by threads on the switch's core."""

    device = "br0"
    stations = dict(zip(PORTS, STATIONS))

    def __init__(self, threads: str = "") -> None:
        self.name = f"Linux bridge{threads}"
        self.threads = threads

    def start(self, bench: Bench, room: Room, netns: Namespace) -> None:
        netns.ip("link", "add", self.device, "type", "bridge")
        netns.try_to("ip", "link", "set", self.device, "type", "bridge", "mcast_snooping", "0")
        for port, mac in self.stations.items():
            netns.ip("link", "set", port, "master", self.device)
            netns.run("bridge", "fdb", "replace", mac.hex(":"), "dev", port, "master", "static")
        netns.ip("link", "set", self.device, "up")
        if self.threads:
            for port in PORTS:
                on_threads(netns, port, bench.cores.switch)


class BridgeHost(Bridge):
    """With the machine's own address on the bridge."""

    device = "g0"
    stations = {"s1": frames.RECEIVER}


def on_threads(netns: Namespace, device: str, core: int) -> None:
    """Has the kernel do an interface's receive work in a thread on this core."""
    before = napi_threads(device)
    netns.run("sh", "-c", f"echo 1 > /sys/class/net/{device}/threaded")
    wait_for(f"a NAPI thread of {device}", 5, lambda: napi_threads(device) - before)
    for pid in napi_threads(device) - before:
        os.sched_setaffinity(pid, {core})
        os.setpriority(os.PRIO_PROCESS, pid, URGENT)


def napi_threads(device: str) -> set[int]:
    return {int(comm.parent.name) for comm in Path("/proc").glob("[0-9]*/comm") if named(comm, f"napi/{device}-")}


class OvsNetdev(Switch):
    """Open vSwitch's userspace datapath; `kind` is afxdp, which has a poller, or system (AF_PACKET): by its main thread."""

    offloads = "off"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"OVS {PLAINLY[kind]}"
        self.ports = dict.fromkeys(PORTS, kind)

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        ovs = Ovs(room, bench.cores, netns.name)
        ovs.bridge("br0", "02:00:00:00:00:aa")
        for n, (port, kind) in enumerate(self.ports.items()):
            ovs.port("br0", port, *([] if kind == "system" else [f"type={kind}"]), f"ofport_request={n + 1}")
        ovs.flows("br0", "in_port=1,actions=output:2", "in_port=2,actions=output:1")
        if self.kind != "afxdp":
            for task in Path(f"/proc/{ovs.job.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {bench.cores.switch})
        return ovs.job


class OvsHost(OvsNetdev):
    """With an internal port (TAP) for the machine itself."""

    def __init__(self) -> None:
        super().__init__("system")
        self.name = "OVS TAP and AF_PACKET"
        self.ports = {"g0": "internal", "s1": "system"}


class Testpmd(Switch):
    """DPDK's bare forwarding between interfaces, by its driver of this name: af_xdp or af_packet."""

    offloads = "off"
    huge_mib = 256

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.name = f"testpmd {driver}, no switching"

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        return testpmd.netdevs(bench, room, netns.name, [f"net_{self.driver}{n},iface={port}" for n, port in enumerate(PORTS)])


class XdpFloor(Switch):
    """Our own bare forwarding between AF_XDP sockets: benches/xdp_floor.rs."""

    name = "xdp_floor, no switching"
    offloads = "off"

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        program = bench.sluice.parent / "examples" / "xdp_floor"
        if not program.exists():
            raise Failed(f"no {program}: cargo build --release --example xdp_floor")
        return room.start(Place(bench.cores.switch, netns.name), program, *PORTS)


class Relay(Switch):
    """A process that blocks in the kernel until a frame comes, and sends it on: relay.c."""

    name = "recv() that blocks, and send()"
    offloads = "off"
    words = PORTS

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        return room.start(Place(bench.cores.switch, netns.name), compiled(bench.dir, "relay"), *self.words)


class RelayTaps(Relay):
    """The same between two TAP devices that it makes."""

    name = "read() that blocks, and write()"
    words = ("--tap", *TAPS)


class Copier(Switch):
    """A process that does nothing but read frames of one interface and write them to another, both ways: copier.c."""

    name = "read() and write(), no switching"
    ends = ("packet:s0", "packet:s1")

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        job = room.start(Place(bench.cores.switch, netns.name), compiled(bench.dir, "copier"), *self.ends)
        for end in self.ends:
            appears(netns, end.partition(":")[2])
        return job


class CopierHost(Copier):
    """With a TAP device for the machine itself."""

    ends = ("tap:g0", "packet:s1")


class SluiceNetdev(Switch):
    """Sluice with two ports of this type; `idle` as in its configuration."""

    def __init__(self, kind: str, idle: str = "spin") -> None:
        self.idle = idle
        self.name = f"Sluice {PLAINLY[kind]}"
        self.ports = dict.fromkeys(PORTS, kind)
        if idle != "spin":
            self.name += f", {idle}"

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        ports = ",".join(f'{{ name = "{port}", type = "{kind}" }}' for port, kind in self.ports.items())
        stations = ",".join(f'{{ mac = "{mac.hex(":")}", port = "{port}" }}' for port, mac in zip(self.ports, STATIONS))
        daemon = sluice.Daemon(bench, room, netns.name)
        job = daemon.run(f'[[bridge]]\nname = "br0"\nport = [{ports}]\nfdb = [{stations}]\n', self.idle)
        daemon.await_ports(2)
        return job


class SluiceHost(SluiceNetdev):
    """With an internal port (TAP) for the machine itself."""

    def __init__(self) -> None:
        super().__init__("afpacket")
        self.name = "Sluice TAP and AF_PACKET"
        self.ports = {"g0": "internal", "s1": "afpacket"}


class SluiceTaps(SluiceNetdev):
    """With two internal ports (TAP)."""

    def __init__(self, idle: str) -> None:
        super().__init__("internal", idle)
        self.ports = dict.fromkeys(TAPS, "internal")
