"""The generator that saturates: blast.c and blast.bpf.c, compiled for a run."""

from __future__ import annotations

import platform
from pathlib import Path

from . import frames, jobs
from .duel import Bench
from .jobs import Job, Place, Room, run
from .net import Namespace

HERE = Path(__file__).parent


def compiled(room: Room, out: int = 0) -> Path:
    """The programs; frames leave by the interface with this index."""
    path = room.dir / f"blast-{out}.o"
    run("clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{platform.machine()}-linux-gnu", f"-DOUT={out}",
        "-c", HERE / "blast.bpf.c", "-o", path)
    return path


def start(bench: Bench, room: Room, netns: Namespace, device: str) -> Job:
    """Offers as many of the shortest frames as can be, to 02:00:00:00:00:02."""
    index = int(netns.run("cat", f"/sys/class/net/{device}/ifindex"))
    frame = room.dir / "frame"
    frame.write_bytes(frames.frame(frames.Traffic("tuples", 1), 0))
    return room.start(Place(bench.cores.generator, netns.name), jobs.compiled(bench.dir, "blast", "-lbpf"), compiled(room, index), frame)


def sink(room: Room, netns: Namespace, device: str) -> None:
    """Has all that arrives dropped and counted, by the interface itself."""
    netns.ip("link", "set", "dev", device, "xdpdrv", "obj", compiled(room), "program", "sink")
