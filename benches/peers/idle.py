"""What a switch costs that has nothing to do: processor time and memory with two ports and no traffic."""

from __future__ import annotations

import time

from .duel import Bench, Case, Contestant
from .jobs import Job, Room
from .net import Namespace, veth
from .ovs import Huge, Ovs
from .stats import CPU, RESIDENT, Figure
from .switches import OvsNetdev, SluiceNetdev, Switch

SETTLE = 3.0
"""Seconds after the start, or after a pause, that do not count."""


class OvsDpdk(Switch):
    """With two vhost-user ports to which nobody connects."""

    name = "OVS-DPDK, vhost-user"
    huge_mib = 1024

    def start(self, bench: Bench, room: Room, netns: Namespace) -> Job:
        ovs = Ovs(room, bench.cores, netns.name, Huge(bench.huge, self.huge_mib))
        ovs.bridge("br0", "02:00:00:00:00:aa")
        for n in (0, 1):
            ovs.port("br0", f"vh{n}", "type=dpdkvhostuserclient", f"options:vhost-server-path={room.dir}/vh{n}")
        return ovs.job


class Idler(Contestant):
    """A switch between two interfaces on which nothing happens."""

    def __init__(self, bench: Bench, switch: Switch) -> None:
        super().__init__(switch.name)
        self.bench, self.switch, self.huge_mib = bench, switch, switch.huge_mib

    def start(self) -> None:
        self.room = Room("idle")
        netns, other = Namespace(self.room, "sw"), Namespace(self.room, "far")
        for n in (0, 1):
            veth((netns, f"s{n}"), (other, f"x{n}"))
            netns.ip("link", "set", f"s{n}", "up")
            other.ip("link", "set", f"x{n}", "up")
        self.job = self.switch.start(self.bench, self.room, netns)
        time.sleep(SETTLE)

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        time.sleep(SETTLE)
        before, start = self.job.cpu_seconds(), time.perf_counter()
        time.sleep(max(3.0, windows * seconds))
        share = 100 * (self.job.cpu_seconds() - before) / (time.perf_counter() - start)
        return [{CPU: share, RESIDENT: self.job.resident_mib()}]


def cases(bench: Bench) -> list[Case]:
    switches = [SluiceNetdev("afxdp", "adaptive"), SluiceNetdev("afpacket", "adaptive"), OvsNetdev("afxdp"),
                OvsNetdev("system"), OvsDpdk()]
    return [Case("idle/two-ports", CPU, [Idler(bench, switch) for switch in switches], rounds=2)]
