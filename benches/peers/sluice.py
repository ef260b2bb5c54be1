"""Sluice itself: its configurations, the daemon, and its generator."""

from __future__ import annotations

import json

from . import frames
from .duel import Bench
from .frames import Traffic
from .jobs import Failed, Job, Place, Room, run, wait_for
from .stats import P50, P99, Figure

MANY = 2_000_000
"""Megaflows: more than any case has."""
SELDOM_PPS, SELDOM_SECONDS = 20, 3.0
"""So seldom that whoever sleeps when idle is asleep when a frame comes; and for so long, so that some come."""


def hexed(mac: bytes) -> str:
    return mac.hex(":")


def known(traffic: Traffic, where: str) -> str:
    """The stations that frames are for, as a live bridge would have learned them."""
    return ", ".join(f'{{ mac = "{hexed(mac)}", {where} }}' for mac in frames.receivers(traffic))


def underlay(wire: str) -> str:
    """The bridge of the wire, with our endpoint."""
    return f'''
[[bridge]]
name = "br-phy"
port = [
  {{ name = "{wire}", upcall-rate = 0 }},
  {{ name = "vtep0", type = "vtep", mac = "{hexed(frames.VTEP)}", address = ["10.0.0.1/24"] }},
]
'''


def overlay(kind: str, traffic: Traffic, port: str, where: str) -> str:
    """The bridge of the tenants, with `port` in the one that is in a tunnel of this kind."""
    return f'''
[[bridge]]
name = "br-int"
segment = [{{ name = "blue", vlan = 1, type = "{kind}", id = {frames.VNI}, vteps = ["10.0.0.2"] }}]
fdb = [{known(traffic, f'segment = "blue", {where}')}]
port = [
  {{ name = "tunnel", type = "{kind}", remote-ip = "flow", key = "flow", local-ip = "10.0.0.1" }},
  {{ name = "{port}", tag = 1, upcall-rate = 0 }},
]
'''


def bridge(traffic: Traffic, where: str, ports: tuple[str, str], segment: str = "") -> str:
    """One bridge with ports a and b."""
    listed = ", ".join(f'{{ name = "{name}", upcall-rate = 0{more} }}' for name, more in zip("ab", ports))
    return f'''
[[bridge]]
name = "br0"
mac-table-size = 1000000
{segment}
fdb = [{known(traffic, where)}]
port = [{listed}]
'''


def pipeline(work: str, traffic: Traffic, tunnel: str = "vxlan") -> str:
    """The configuration under which ports a and b do this work; `tunnel` is what encap and decap are about."""
    head = f"[switch]\nflow-limit = {MANY}\nmax-idle = 600000\n"
    if work == "push":
        return head + bridge(traffic, 'vlan = 200, port = "b"', (", tag = 200", ", trunks = [200]"))
    if work == "retag":
        segment = f'segment = [{{ name = "prov", vlan = {frames.VLAN}, type = "vlan", id = 200, uplink = "b" }}]'
        known_at = f'vlan = {frames.VLAN}, port = "b"'
        return head + bridge(traffic, known_at, (f", trunks = [{frames.VLAN}]", ""), segment)
    if work == "encap":
        return head + underlay("b") + overlay(tunnel, traffic, "a", 'vtep = "10.0.0.2"')
    if work == "decap":
        return head + underlay("a") + overlay(tunnel, traffic, "b", 'port = "b"')
    return head + bridge(traffic, 'port = "b"', ("", ""))


def pktgen(bench: Bench, argv: list[object], netns: str | None = None) -> dict:
    """Runs the generator to its end; its result."""
    # It pins itself to the core that it is told.
    front = ["taskset", "-c", f"{bench.cores.switch},{bench.cores.generator}"]
    if netns:
        front = ["ip", "netns", "exec", netns, *front]
    text = run(*front, bench.sluice, "--json", "pktgen", *argv, timeout=600)
    return json.loads(text)


def delays(found: dict) -> tuple[dict[Figure, float], str]:
    """Latency as the generator found it, and what is to be said of it."""
    figures = {P50: found["latency_us"]["p50"], P99: found["latency_us"]["p99"]}
    return figures, f"{found['lost'] / max(1, found['sent']):.2%} lost"


class Daemon:
    """`sluice run` on the switch's core."""

    def __init__(self, bench: Bench, room: Room, netns: str) -> None:
        self.bench, self.room, self.netns = bench, room, netns
        self.socket = room.dir / "sluice.sock"

    def run(self, bridges: str, idle: str = "spin") -> Job:
        """Starts it with these bridges."""
        config = self.room.dir / "sluice.toml"
        config.write_text(f'[switch]\nsocket = "{self.socket}"\ncores = [{self.bench.cores.switch}]\n'
                          f'idle = "{idle}"\n{bridges}')
        place = Place(self.bench.cores.switch, self.netns, also=self.bench.cores.generator)
        self.job = self.room.start(place, self.bench.sluice, "run", "--config", config)

        def up() -> bool:
            self.job.check()
            return self.socket.exists()

        wait_for("sluice", 20, up)
        return self.job

    def ask(self, *argv: object):
        return json.loads(run(self.bench.sluice, "--socket", self.socket, "--json", *argv))

    def await_ports(self, count: int) -> None:
        """Until so many ports are up."""
        last = []

        def ready() -> bool:
            self.job.check()
            try:
                last[:] = self.ask("port", "show")
            except Failed:
                return False
            return sum(port.get("state") == "up" for port in last) >= count

        try:
            wait_for("ports of sluice", 20, ready)
        except Failed as error:
            raise Failed(f"{error}: {json.dumps(last)[:400]}") from error
