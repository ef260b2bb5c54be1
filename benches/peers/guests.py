"""Between two virtual machines: vhost-user ports, with DPDK's own virtio driver as both guests."""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import frames, sluice, testpmd
from .duel import Bench, Case, Contestant
from .jobs import Room, compiled, run, wait_for
from .net import Namespace
from .ovs import Huge, Ovs
from .sluice import SELDOM_PPS, SELDOM_SECONDS
from .stats import GOODPUT, LATENCY, P50, P99, RATE, Figure

OVS_MIB = 1024
"""It asks for 262,144 buffers, and takes what there is."""
IN_FLIGHT = 16
"""Bursts of 32 that circulate each way."""
VLAN = 200


@dataclass(frozen=True)
class Load:
    """What circulates: bytes of a frame without FCS, how many bursts of how many frames each card sends at first, and
    what the guests do with what they get."""

    size: int
    bursts: int = IN_FLIGHT
    burst: int = 32
    way: str = "io"

    @property
    def pingpong(self) -> bool:
        return self.burst == 1


ONE = Load(60, 1, 1)
SHORT, LONG = Load(60), Load(1514)
MIRROR = Load(60, way="mirror")
ONE_SIDED = Load(60, 2 * IN_FLIGHT, way="mirror")
"""Half of them are lost at first: a trunk takes no untagged frame. So as many circulate as of `MIRROR`."""


class Pair(Contestant):
    """A switch between two guests."""

    switch_mib = 0

    def __init__(self, bench: Bench, name: str, load: Load) -> None:
        super().__init__(name)
        self.bench, self.load = bench, load
        self.huge_mib = testpmd.Guests.MIB + self.switch_mib

    def start(self) -> None:
        room = self.room = Room("vhost")
        self.sockets = (room.dir / "vh0", room.dir / "vh1")
        self.netns = Namespace(room, "sw")
        self.guests = testpmd.Guests(self.bench, room, self.sockets, self.load.way)
        self.connect()
        self.guests.await_cards()
        self.ready()
        time.sleep(0.5)
        self.guests.circulate(self.load.bursts, self.load.burst, self.load.size)
        wait_for(f"frames through {self.name}", 10, lambda: self.guests.window(0.2) > 0)

    def connect(self) -> None:
        """Starts the switch, which connects to both sockets."""
        raise NotImplementedError

    def ready(self) -> None:
        """Waits until its ports are up."""

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        self.guests.window(0.2)
        found = []
        for _ in range(windows):
            rate = self.guests.window(seconds)
            if self.load.pingpong:
                found.append({LATENCY: 2e6 / rate if rate else float("inf")})
            elif self.load.size <= 60:
                found.append({RATE: rate / 1e6})
            else:
                found.append({GOODPUT: rate * self.load.size * 8 / 1e9})
        return found


class Floor(Pair):
    """testpmd's bare forwarding between vhost ports."""

    switch_mib = 256

    def connect(self) -> None:
        testpmd.vhost_floor(self.bench, self.room, self.sockets)


class OvsPair(Pair):
    """Open vSwitch with dpdkvhostuserclient ports."""

    switch_mib = OVS_MIB
    RULES = {
        "port rules": ["in_port=1,actions=output:2", "in_port=2,actions=output:1"],
        "NORMAL": ["actions=NORMAL"],
        "VLAN push and pop": [f"in_port=1,vlan_tci=0,actions=push_vlan:0x8100,mod_vlan_vid:{VLAN},output:2",
                              f"in_port=2,dl_vlan={VLAN},actions=pop_vlan,output:1"],
    }

    def __init__(self, bench: Bench, load: Load, rules: str) -> None:
        super().__init__(bench, f"OVS-DPDK, {rules}", load)
        self.rules = self.RULES[rules]

    def connect(self) -> None:
        ovs = self.ovs = Ovs(self.room, self.bench.cores, self.netns.name, Huge(self.bench.huge, OVS_MIB))
        ovs.bridge("br0", "02:00:00:00:00:aa")
        for n, path in enumerate(self.sockets):
            ovs.port("br0", f"vh{n}", "type=dpdkvhostuserclient", f"options:vhost-server-path={path}",
                     f"ofport_request={n + 1}")
        ovs.flows("br0", *self.rules)


class SluicePair(Pair):
    """Sluice with two ports of the same kind."""

    PORTS = {"": ("", ""), ", VLAN push and pop": (f", tag = {VLAN}", f", trunks = [{VLAN}]")}

    def __init__(self, bench: Bench, load: Load, work: str = "") -> None:
        super().__init__(bench, f"Sluice{work}", load)
        self.vlans = self.PORTS[work]

    def connect(self) -> None:
        ports = ",".join(f'{{ name = "vh{n}", type = "dpdkvhostuserclient", vhost-server-path = "{path}"{vlan} }}'
                         for n, (path, vlan) in enumerate(zip(self.sockets, self.vlans)))
        self.daemon = sluice.Daemon(self.bench, self.room, self.netns.name)
        self.daemon.run(f'[[bridge]]\nname = "br0"\nport = [{ports}]\n')

    def ready(self) -> None:
        self.daemon.await_ports(2)


class First(Contestant):
    """Latency of a frame that finds the switch asleep: our own driver (`sluice pktgen`) is both guests, and never sleeps."""

    def __init__(self, bench: Bench) -> None:
        super().__init__("Sluice, adaptive")
        self.bench = bench

    def start(self) -> None:
        room = self.room = Room("first")
        netns = Namespace(room, "sw")
        self.sockets = [room.dir / f"vh{n}" for n in (0, 1)]
        ports = ",".join(f'{{ name = "{path.name}", type = "dpdkvhostuserclient", vhost-server-path = "{path}" }}'
                         for path in self.sockets)
        stations = ",".join(f'{{ mac = "{mac.hex(":")}", port = "{path.name}" }}'
                            for mac, path in zip((frames.SENDER, frames.RECEIVER), self.sockets))
        sluice.Daemon(self.bench, room, netns.name).run(
            f'[[bridge]]\nname = "br0"\nport = [{ports}]\nfdb = [{stations}]\n', "adaptive")

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        ends = [f"vhost-user:{path},server" for path in self.sockets]
        found = []
        for _ in range(windows):
            said = sluice.pktgen(self.bench, [
                "--tx", ends[0], "--rx", ends[1], "--ratep", SELDOM_PPS, "--time", max(SELDOM_SECONDS, seconds),
                "--core", self.bench.cores.generator])
            figures, self.note = sluice.delays(said)
            found.append(figures)
        return found


class Kick(Contestant):
    """What a guest's kick costs whoever sleeps on it, and nothing else: wake.c."""

    def __init__(self, bench: Bench) -> None:
        super().__init__("read() that blocks on an eventfd")
        self.bench = bench

    def start(self) -> None:
        self.room = Room("wake")
        self.program = compiled(self.bench.dir, "wake")

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        cores = self.bench.cores
        count = round(SELDOM_PPS * max(SELDOM_SECONDS, seconds))
        lines = [run(self.program, cores.generator, cores.switch, SELDOM_PPS, count) for _ in range(windows)]
        return [dict(zip((P50, P99), map(float, line.split()))) for line in lines]


def cases(bench: Bench) -> list[Case]:
    found = []
    for name, load, figure in (("loop-60", SHORT, RATE), ("loop-1514", LONG, GOODPUT), ("ping-pong", ONE, LATENCY)):
        found.append(Case(f"guests/{name}", figure, [
            SluicePair(bench, load), Floor(bench, "testpmd, no switching", load),
            OvsPair(bench, load, "port rules"), OvsPair(bench, load, "NORMAL")]))
    push = "VLAN push and pop"
    found.append(Case("guests/mirror-60-vlan", RATE, [
        SluicePair(bench, ONE_SIDED, f", {push}"), SluicePair(bench, MIRROR), OvsPair(bench, ONE_SIDED, push),
        OvsPair(bench, MIRROR, "NORMAL")]))
    found.append(Case("guests/first-frame", P50, [First(bench), Kick(bench)]))
    return found
