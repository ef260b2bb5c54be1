"""Network namespaces of our own, and veth pairs between them; they go when their room closes."""

from __future__ import annotations

import os
from itertools import count

from .jobs import Failed, Room, run, wait_for

SERIAL = count()


class Namespace:
    """A network namespace; deleting it takes its interfaces along."""

    def __init__(self, room: Room, name: str) -> None:
        self.name = f"sluice-bench-{os.getpid()}-{next(SERIAL)}-{name}"
        run("ip", "netns", "add", self.name)
        room.at_end.append(lambda: run("ip", "netns", "del", self.name))
        self.ip("link", "set", "lo", "up")

    def ip(self, *argv: object) -> str:
        return run("ip", "-n", self.name, *argv)

    def run(self, *argv: object, timeout: float = 60) -> str:
        return run("ip", "netns", "exec", self.name, *argv, timeout=timeout)

    def try_to(self, *argv: object) -> bool:
        """For settings that not every kernel has."""
        try:
            self.run(*argv)
            return True
        except Failed:
            return False


def veth(near: tuple[Namespace, str], far: tuple[Namespace, str]) -> None:
    """A pair with one queue each way: then all frames of a test meet in one place, and AF_XDP sees them all."""
    (here, a), (there, b) = near, far
    queues = ("numrxqueues", 1, "numtxqueues", 1)
    here.ip("link", "add", a, *queues, "type", "veth", "peer", "name", b, "netns", there.name, *queues)
    for end, name in (near, far):
        quiet(end, name)


def quiet(end: Namespace, name: str) -> None:
    """Has the kernel say nothing of its own there."""
    end.try_to("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")


def appears(end: Namespace, name: str) -> None:
    """Waits for an interface that somebody else makes."""
    wait_for(f"interface {name}", 10, lambda: end.try_to("ip", "link", "show", name))


def offloads(end: Namespace, name: str, state: str) -> None:
    for feature in ("tso", "gso", "tx", "rx", "sg"):
        end.try_to("ethtool", "-K", name, feature, state)


def counter(end: Namespace, name: str, which: str) -> int:
    """One of the kernel's counters of an interface: rx_packets, tx_packets …"""
    return int(end.run("cat", f"/sys/class/net/{name}/statistics/{which}"))


def address(end: Namespace, name: str, mac: str) -> None:
    end.ip("link", "set", name, "address", mac)
