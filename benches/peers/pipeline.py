"""Memory to memory: what one lookup and what hangs on it costs the core that does it.

Open vSwitch's frames come from DPDK's net_pcap with infinite_rx, an allocation and a copy for each, and leave
through net_null, which frees them. `sluice pktgen --tx memory:a` does the same work with the same capture, in
the same process and thread as the switch. Both count cycles of the time stamp counter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import frames, sluice
from .duel import Bench, Case, Contestant
from .frames import Traffic
from .jobs import Failed, Room, wait_for
from .net import Namespace
from .ovs import Huge, Ovs
from .stats import CYCLES, RATE

BUFFERS = 250_000
"""Frames that a pool of Open vSwitch's has room for, 262,144 less those on their way."""
POOLS = ((1500, 768), (2500, 1024), (3500, 1280), (4500, 1536))
"""A port's pool goes by its MTU: so many more frames for each of these, with so many MiB."""
SPARE_MIB = 192
SOME = 10_000
"""Flows that are set up in no time."""


@dataclass(frozen=True)
class Job:
    """What is done to the frames: `work` is port, learned, known, push, retag, encap or decap, these two in a `tunnel`."""

    work: str
    traffic: Traffic
    tunnel: str = "vxlan"

    @property
    def name(self) -> str:
        kind = "pairs" if self.traffic.kind == "pairs" else "flows"
        tunnel = "" if self.tunnel == "vxlan" else f"-{self.tunnel}"
        return f"pipeline/{self.work}{tunnel}/{self.traffic.flows}-{kind}"


def split(traffic: Traffic) -> list[range]:
    """The flows in as many parts as pools hold them; all of a station are in one part."""
    step = traffic.flows
    if traffic.flows > BUFFERS:
        across = frames.side(traffic.flows)
        step = BUFFERS // across * across
    return [range(n, min(n + step, traffic.flows)) for n in range(0, traffic.flows, step)]


def hexed(mac: bytes) -> str:
    return mac.hex(":")


def known(traffic: Traffic) -> list[str]:
    """What NORMAL does for stations that it knows, as flow rules: a daemon that learns looks all its flows through
    again, and holds no million of them then. The rule about a sender makes each pair a flow of its own, as learning does."""
    towards = [f"dl_dst={hexed(mac)},actions=output:2" for mac in frames.receivers(traffic)]
    return ["priority=65000,dl_src=02:ff:ff:ff:ff:ff,actions=drop", *towards]


class OvsPipeline(Contestant):
    """Open vSwitch between net_pcap and net_null; `cache` is emc or smc."""

    def __init__(self, bench: Bench, job: Job, cache: str = "emc") -> None:
        super().__init__("OVS-DPDK" if cache == "emc" else "OVS-DPDK, SMC")
        self.bench, self.work, self.cache = bench, job, cache
        self.parts = split(job.traffic)
        self.huge_mib = SPARE_MIB + sum(mib for _, mib in POOLS[:len(self.parts)])

    def start(self) -> None:
        room = self.room = Room("ovs")
        self.netns = Namespace(room, "sw")
        self.ovs = Ovs(room, self.bench.cores, self.netns.name, Huge(self.bench.huge, self.huge_mib))
        if self.cache == "smc":
            self.ovs.vsctl("set", "Open_vSwitch", ".", "other_config:emc-insert-inv-prob=0",
                           "other_config:smc-enable=true")
        self.ovs.bridge("br0", "02:00:00:00:00:aa")
        tunnel = self.work.work in ("encap", "decap")
        if tunnel:
            self.underlay()
        self.ports(tunnel)
        self.warm()

    def underlay(self) -> None:
        """The endpoint is the bridge of the wire, and the other one its neighbour."""
        self.ovs.bridge("brphy", hexed(frames.VTEP), fail_mode="standalone")
        self.netns.ip("addr", "add", "10.0.0.1/24", "dev", "brphy")
        self.netns.ip("link", "set", "brphy", "up")
        self.ovs.port("br0", "tunnel", f"type={self.work.tunnel}", "options:remote_ip=10.0.0.2", f"options:key={frames.VNI}",
                      "ofport_request=3")

    def ports(self, tunnel: bool) -> None:
        ovs, work = self.ovs, self.work.work
        into, out = ("brphy" if work == "decap" else "br0"), ("brphy" if work == "encap" else "br0")
        ovs.port(out, "p1", "type=dpdk", "options:dpdk-devargs=net_null0,no-rx=1", "ofport_request=2")
        ovs.flows("br0", *{
            "port": ["in_port=1,actions=output:2"],
            "learned": ["actions=NORMAL"],
            "known": known(self.work.traffic),
            "push": ["in_port=1,actions=push_vlan:0x8100,mod_vlan_vid:200,output:2"],
            "retag": [f"in_port=1,dl_vlan={frames.VLAN},actions=mod_vlan_vid:200,output:2"],
            "encap": ["in_port=1,actions=output:3"],
            "decap": ["in_port=3,actions=output:2"],
        }[work])
        self.teach()
        ovs.more_flows()
        for n, part in enumerate(self.parts):
            capture = self.bench.capture(self.work.traffic, part)
            ovs.port(into, f"in{n}", "type=dpdk", f"ofport_request={1 if n == 0 else 10 + n}",
                     f"mtu_request={POOLS[n][0]}",
                     f"options:dpdk-devargs=net_pcap{n},rx_pcap={capture},infinite_rx=1")

    def teach(self) -> None:
        """Where stations and the other endpoint are, as a live bridge would have learned."""
        if self.work.work == "learned":
            for mac in frames.receivers(self.work.traffic):
                self.ovs.appctl("fdb/add", "br0", "p1", 0, hexed(mac))
        if self.work.work == "encap":
            self.ovs.appctl("tnl/neigh/set", "brphy", "10.0.0.2", hexed(frames.FAR))

    def warm(self) -> None:
        """Until no flow is new, or no more get in."""
        def calm() -> bool:
            self.ovs.more_flows()
            return self.ovs.window(0.5).get("Upcalls", 0) < 0.05

        try:
            wait_for("the flows of Open vSwitch", 60 + self.work.traffic.flows / 4000, calm)
        finally:
            self.note = f"{self.ovs.cached_flows():,} flows in its table"

    def measure(self, windows: int, seconds: float) -> list[dict]:
        self.ovs.more_flows()
        time.sleep(0.2)
        found = []
        for _ in range(windows):
            perf = self.ovs.window(seconds)
            caches = [f"{k} {v:.0f} %" for k, v in perf.items() if k[0].isupper() and v >= 0.5]
            self.note = f"{', '.join(caches)}; {self.ovs.cached_flows():,} flows"
            found.append({CYCLES: perf["cycles"], RATE: perf["rate"]})
        return found


class SluicePipeline(Contestant):
    """`sluice pktgen` with the switch in its own process: anew for each window, so that none has the luck of where its
    memory happens to be."""

    def __init__(self, bench: Bench, job: Job) -> None:
        super().__init__("Sluice")
        self.bench, self.work = bench, job

    def start(self) -> None:
        self.room = Room("sluice")
        self.config = self.room.dir / "sluice.toml"
        self.config.write_text(sluice.pipeline(self.work.work, self.work.traffic, self.work.tunnel))

    def window(self, seconds: float) -> dict:
        found = sluice.pktgen(self.bench, [
            "--tx", "memory:a", "--rx", "memory:b", "--no-announce", "--config", self.config,
            "--pcap", self.bench.capture(self.work.traffic), "--time", seconds, "--windows", seconds,
            "--core", self.bench.cores.switch])
        if found["received"] < 0.999 * found["sent"]:
            raise Failed(f"sluice pktgen: {found['lost']} of {found['sent']} frames lost")
        self.note = f"{found['upcalls']} upcalls" if found["upcalls"] else ""
        return {CYCLES: found["cycles_per_frame"]["median"], RATE: found["rx_mpps"]}

    def measure(self, windows: int, seconds: float) -> list[dict]:
        if self.work.traffic.flows > SOME:
            return [self.window(windows * seconds)]  # for setting flows up takes far longer than measuring
        return [self.window(seconds) for _ in range(windows)]


def case(bench: Bench, job: Job, caches: tuple[str, ...] = ("emc",)) -> Case:
    contestants = [SluicePipeline(bench, job), *(OvsPipeline(bench, job, cache) for cache in caches)]
    return Case(job.name, CYCLES, contestants)


def cases(bench: Bench) -> list[Case]:
    few, some, many = 1, 1_000, 100_000
    udp = lambda n: Traffic("tuples", n)
    found = []
    for work, kind in (("port", "tuples"), ("learned", "tuples"), ("push", "tuples"), ("retag", "vlan"),
                       ("encap", "tuples"), ("decap", "vxlan")):
        found += [case(bench, Job(work, Traffic(kind, n))) for n in (few, some)]
    for tunnel in ("gre", "geneve"):
        found += [case(bench, Job("encap", udp(n), tunnel)) for n in (few, some)]
        found += [case(bench, Job("decap", Traffic(tunnel, n), tunnel)) for n in (few, some)]
    both = ("emc", "smc")
    found.append(case(bench, Job("port", udp(many)), both))
    found.append(case(bench, Job("learned", udp(many)), both))
    found.append(case(bench, Job("learned", Traffic("pairs", some))))
    found.append(case(bench, Job("learned", Traffic("pairs", many)), both))
    found.append(case(bench, Job("known", Traffic("pairs", 1_000_000))))
    return found
