"""DPDK's testpmd: guests at two vhost-user sockets, and the bare forwarders that do no switching."""

from __future__ import annotations

import re
import time
from pathlib import Path

from .duel import Bench
from .jobs import Job, Place, Room, wait_for

RING = 1024
BUFFERS = 16384


def start(bench: Bench, room: Room, place: Place, words: tuple[list[object], list[object]]) -> Job:
    """One forwarding thread on the place's core, with these words for DPDK and for testpmd; what it prints comes line by
    line."""
    core, (eal, options) = place.core, words
    return room.start(
        place, "stdbuf", "-oL", "dpdk-testpmd", "--lcores", f"0@{core},1@{core}", "--no-pci", "--no-telemetry",
        f"--huge-dir={bench.huge}", f"--file-prefix={room.dir.name}-{len(room.jobs)}", *eal, "--", "-i",
        "--nb-cores=1", f"--total-num-mbufs={BUFFERS}", "--no-mlockall", "--no-lsc-interrupt", *options)


def await_prompt(job: Job) -> None:
    def prompt() -> bool:
        job.check()
        return job.said("testpmd> ") > 0

    wait_for("testpmd", 40, prompt)


class Guests:
    """Two virtio-user cards and one driver for both: what comes by one leaves by the other (io), or goes back to its
    sender by the same card (mirror)."""

    WAYS = {"io": ["--forward-mode=io"], "mirror": ["--forward-mode=macswap", "--port-topology=loop"]}

    MIB = 192

    def __init__(self, bench: Bench, room: Room, sockets: tuple[Path, Path], way: str) -> None:
        """The sockets are theirs; they wait for the switch to connect."""
        macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
        eal: list[object] = ["-m", self.MIB, "--single-file-segments"]
        for n, (path, mac) in enumerate(zip(sockets, macs)):
            eal += ["--vdev", f"net_virtio_user{n},path={path},mac={mac},queues=1,queue_size={RING},server=1"]
        options = [*self.WAYS[way], f"--txd={RING}", f"--rxd={RING}", "--burst=32", f"--eth-peer=0,{macs[1]}",
                   f"--eth-peer=1,{macs[0]}"]
        self.job = start(bench, room, Place(bench.cores.generator), (eal, options))
        wait_for("sockets of testpmd", 30, sockets[0].exists)

    def await_cards(self) -> None:
        await_prompt(self.job)

    def circulate(self, bursts: int, burst: int, size: int) -> None:
        """Sends so many frames of so many bytes by each card; from then on they go round."""
        self.job.tell(f"set txpkts {size}")
        self.job.tell(f"set burst {burst}")
        self.job.tell(f"start tx_first {bursts}")

    def received(self) -> float:
        """Frames a second by both cards since the last question."""
        asked = self.job.said("Tx-pps")
        self.job.tell("show port stats all")
        wait_for("testpmd's counters", 10, lambda: self.job.said("Tx-pps") >= asked + 2)
        rates = re.findall(r"Rx-pps:\s*(\d+)", self.job.log.read_text(errors="replace"))
        return sum(float(rate) for rate in rates[-2:])

    def window(self, seconds: float) -> float:
        """Frames a second in a window from now on."""
        time.sleep(seconds)
        return self.received()


def vhost_floor(bench: Bench, room: Room, sockets: tuple[Path, Path]) -> Job:
    """Bare forwarding between two vhost ports that connect to these sockets."""
    eal: list[object] = ["-m", 256]
    for n, path in enumerate(sockets):
        eal += ["--vdev", f"net_vhost{n},iface={path},client=1"]
    job = start(bench, room, Place(bench.cores.switch), (eal, ["--forward-mode=io"]))
    await_prompt(job)
    job.tell("start")
    return job


def netdevs(bench: Bench, room: Room, netns: str, devices: list[str]) -> Job:
    """Bare forwarding between two interfaces, by these drivers."""
    eal: list[object] = ["-m", 256]
    for device in devices:
        eal += ["--vdev", device]
    job = start(bench, room, Place(bench.cores.switch, netns), (eal, ["--forward-mode=io"]))
    await_prompt(job)
    job.tell("start")
    return job
