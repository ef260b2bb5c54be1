"""Between two veth pairs, g0–s0 and s1–k0: what the kernel's interfaces and the switch do together.

The generator and all it costs, the kernel's share included, is on one core; the switch's process on the other. In
which of the two the kernel handles what passes between them is the kernel's choice, as it is in use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from . import blast, frames, sluice
from .duel import Bench, Case, Contestant
from .jobs import Failed, Place, Room, wait_for
from .net import Namespace, address, appears, offloads, quiet, veth
from .stats import GOODPUT, P50, RATE, Figure
from .switches import (
    TAPS, Bridge, BridgeHost, Copier, CopierHost, OvsHost, OvsNetdev, Relay, RelayTaps, SluiceHost, SluiceNetdev,
    SluiceTaps, Switch, Testpmd, Wire, XdpFloor,
)

MACS = {"g0": frames.SENDER.hex(":"), "k0": frames.RECEIVER.hex(":")}
RATE_PPS = 100_000
"""At which latency is measured."""
AGAIN = 2
"""How often a trial that lost frames is made again."""
SEARCHED = Figure("throughput at no loss", "Mpps", less_is_better=False)


class Between(Contestant):
    """A switch between two veth pairs whose far ends are in one namespace, or each in its own."""

    figure: Figure
    """By which the contestants are compared."""
    apart = False
    """Are the far ends in different namespaces?"""
    offloads = "off"
    gro = "on"

    def __init__(self, bench: Bench, switch: Switch) -> None:
        super().__init__(switch.name)
        self.bench, self.switch = bench, switch
        self.huge_mib = switch.huge_mib

    def start(self) -> None:
        room = self.room = Room("wire")
        self.near = Namespace(room, "near")
        self.far = Namespace(room, "far") if self.apart else self.near
        middle = Namespace(room, "sw")
        self.cable(middle)
        self.switch.start(self.bench, room, middle)
        self.prepare()

    def cable(self, middle: Namespace) -> None:
        ends = [(self.near, "g0"), (self.far, "k0")]
        if isinstance(self.switch, Wire):
            veth(*ends)
        else:
            near, far = ends
            veth(near, (middle, "s0"))
            veth(far, (middle, "s1"))
            ends += [(middle, "s0"), (middle, "s1")]
        for end, name in ends:
            if name in MACS:
                address(end, name, MACS[name])
            offloads(end, name, self.offloads)
            end.ip("link", "set", name, "up")
        # What a veth gets by XDP needs its NAPI, which GRO starts; the other end hears of it only while both are up.
        for end, name in ends:
            end.try_to("ethtool", "-K", name, "gro", self.gro)

    def prepare(self) -> None:
        """Starts what makes the traffic."""
        raise NotImplementedError


class Forward(Between):
    """As many of the shortest frames as it takes, when more are offered."""

    figure = RATE

    def prepare(self) -> None:
        blast.sink(self.room, self.far, "k0")
        self.generator = blast.start(self.bench, self.room, self.near, "g0")
        time.sleep(1)
        wait_for(f"frames through {self.name}", 10, lambda: self.rate(0.2) > 0)

    def arrived(self) -> int:
        self.generator.check()
        lines = Path(f"/proc/{self.generator.pid}/net/dev").read_text().splitlines()
        return int(next(line.split()[2] for line in lines if line.strip().startswith("k0:")))

    def rate(self, seconds: float) -> float:
        before, start = self.arrived(), time.perf_counter()
        time.sleep(seconds)
        return (self.arrived() - before) / (time.perf_counter() - start)

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        time.sleep(0.2)
        return [{RATE: self.rate(seconds) / 1e6} for _ in range(windows)]


class Generated(Between):
    """`sluice pktgen` on AF_XDP sockets of both far ends."""

    kind = "afxdp"

    def prepare(self) -> None:
        """The generator is started for each turn."""

    def pktgen(self, *argv: object) -> dict:
        macs = ("--src-mac", MACS["g0"], "--dst-mac", MACS["k0"])
        return sluice.pktgen(self.bench, ["--tx", f"{self.kind}:g0", "--rx", f"{self.kind}:k0", *macs,
                                          "--core", self.bench.cores.generator, *argv], self.near.name)


class Search(Generated):
    """RFC 2544, section 26.1: the highest rate at which no frame of a trial is lost, made up to three times."""

    figure = SEARCHED

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        found = self.pktgen("--search", "--trial", max(0.5, seconds), "--precision", 0.02, "--again", AGAIN)
        trials = found["trials"]
        flat_out = sum(trial["lost"] > 0 for trial in trials if trial["wished_pps"] is None)
        self.note = f"{len(trials)} trials" if flat_out == AGAIN + 1 else "all that the generator offers"
        return [{SEARCHED: (found["throughput_pps"] or 0) / 1e6}]


class Delay(Generated):
    """Latency at a fixed rate that every contestant should carry."""

    figure = P50
    pps = RATE_PPS
    least_seconds = 1.0

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        turns = []
        for _ in range(windows):
            found = self.pktgen("--ratep", self.pps, "--time", max(self.least_seconds, seconds))
            figures, self.note = sluice.delays(found)
            turns.append(figures)
        return turns


class FirstFrame(Delay):
    """Latency of a frame that finds everybody but the generator asleep."""

    pps = sluice.SELDOM_PPS
    least_seconds = sluice.SELDOM_SECONDS


class FirstByTap(FirstFrame):
    """The same by the switch's own interfaces, at whose other end the generator has packet sockets."""

    kind = "afpacket"

    def start(self) -> None:
        room = self.room = Room("taps")
        self.near = self.far = Namespace(room, "sw")
        self.switch.start(self.bench, room, self.near)
        for name in TAPS:
            appears(self.near, name)
            quiet(self.near, name)
            address(self.near, name, MACS[name])
            self.near.ip("link", "set", name, "up")


class Tcp(Between):
    """iperf3 over one connection from k0 to g0, with the offloads that the switch gets on with."""

    figure = GOODPUT
    apart = True
    way: tuple[str, ...] = ("-R",)
    """The client, at g0, receives."""
    congestion: tuple[str, ...] = ()
    """None: the machine's own."""

    def __init__(self, bench: Bench, switch: Switch) -> None:
        super().__init__(bench, switch)
        # Without the others GRO makes frames that no AF_PACKET socket can send again.
        self.offloads = self.gro = switch.offloads
        self.note = f"offloads {self.offloads}"

    def prepare(self) -> None:
        for end, name, own, other in ((self.near, "g0", 1, "k0"), (self.far, "k0", 2, "g0")):
            end.ip("addr", "add", f"10.9.0.{own}/24", "dev", name)
            end.ip("neigh", "replace", f"10.9.0.{3 - own}", "lladdr", MACS[other], "dev", name, "nud", "permanent")
        self.server = self.room.start(Place(self.bench.cores.generator, self.far.name), "iperf3", "-s",
                                     "--forceflush", "-B", "10.9.0.2")
        wait_for("iperf3 -s", 10, lambda: self.server.said("listening"))
        self.iperf(1, 1.0)

    def iperf(self, windows: int, seconds: float) -> list[float]:
        """Gbit/s at g0's end, window by window."""
        pinned = ("taskset", "-c", self.bench.cores.generator, "timeout", 20 + windows * seconds)
        text = self.near.run(*pinned, "iperf3", "-c", "10.9.0.2", "-J", *self.way, *self.congestion, "-i", seconds, "-t",
                             max(1, round(windows * seconds + 0.5)))
        found = json.loads(text)
        if "error" in found:
            raise Failed(f"iperf3: {found['error']}")
        return [i["sum"]["bits_per_second"] / 1e9 for i in found["intervals"]][:windows]

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        return [{GOODPUT: value} for value in self.iperf(windows, seconds)]


class HostTcp(Tcp):
    """The same, to the machine that the switch runs on: g0 is an interface of the switch's own."""

    def start(self) -> None:
        room = self.room = Room("host")
        self.near, self.far = Namespace(room, "sw"), Namespace(room, "far")
        veth((self.far, "k0"), (self.near, "s1"))
        address(self.far, "k0", MACS["k0"])
        self.up((self.far, "k0"), (self.near, "s1"))
        self.switch.start(self.bench, room, self.near)
        address(self.near, "g0", MACS["g0"])
        self.up((self.near, "g0"))
        self.prepare()

    def up(self, *ends: tuple[Namespace, str]) -> None:
        for end, name in ends:
            offloads(end, name, self.offloads)
            end.ip("link", "set", name, "up")


class FromHostTcp(HostTcp):
    """From that machine: g0 sends."""

    way = ()


class TcpCubic(Tcp):
    """With what most kernels have by default."""

    congestion = ("-C", "cubic")


class HostCubic(HostTcp):
    """The same."""

    congestion = TcpCubic.congestion


class FromHostCubic(FromHostTcp):
    """The same."""

    congestion = TcpCubic.congestion


def netdevs() -> list[Switch]:
    """The switches proper."""
    return [SluiceNetdev("afxdp"), SluiceNetdev("afpacket"), Bridge(), OvsNetdev("afxdp"), OvsNetdev("system")]


def case(bench: Bench, name: str, test: type[Between], switches: Iterable[Switch]) -> Case:
    rounds = 3 if test is Search else None
    return Case(f"wires/{name}", test.figure, [test(bench, switch) for switch in switches], rounds)


def cases(bench: Bench) -> list[Case]:
    bare = [XdpFloor(), Testpmd("af_xdp"), Testpmd("af_packet"), Bridge(", threads on the switch's core")]
    asleep = [SluiceNetdev(kind, "adaptive") for kind in ("afxdp", "afpacket")]

    def whole() -> list[Switch]:
        """Those with all offloads."""
        return [SluiceNetdev("afpacket"), Bridge(), Copier()]

    def whole_host() -> list[Switch]:
        """The same with the machine itself."""
        return [SluiceHost(), BridgeHost(), CopierHost()]

    return [
        case(bench, "forward-60", Forward, [*netdevs(), *bare, Wire()]),
        case(bench, "rfc2544-60", Search, [*netdevs(), *bare, Wire()]),
        case(bench, "latency-100kpps", Delay, [*netdevs(), SluiceNetdev("afxdp", "adaptive"), Wire()]),
        case(bench, "first-frame", FirstFrame, [*asleep, Relay()]),
        case(bench, "first-frame-tap", FirstByTap, [SluiceTaps("adaptive"), RelayTaps()]),
        case(bench, "tcp", Tcp, [*whole(), SluiceNetdev("afxdp"), OvsNetdev("afxdp"), OvsNetdev("system")]),
        case(bench, "tcp-cubic", TcpCubic, whole()),
        case(bench, "tcp-host", HostTcp, [*whole_host(), OvsHost()]),
        case(bench, "tcp-from-host", FromHostTcp, whole_host()),
        case(bench, "tcp-host-cubic", HostCubic, whole_host()),
        case(bench, "tcp-from-host-cubic", FromHostCubic, whole_host()),
    ]
