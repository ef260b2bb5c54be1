"""Contestants who take turns: A B A B, and B A B A every other round, so that a noisy neighbour meets both.

All of a case are started first and warmed up. Then each is resumed for its turn of a few windows, measured and
stopped again (SIGSTOP), a second or two at a time, many rounds. One that cannot start, or fails on the way, is
left out from then on, with its reason in the report.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import frames
from .frames import Traffic
from .jobs import Failed, Room, compiled, run
from .machine import Cores, before_others
from .stats import Figure, Sample, Samples

CROSSING = ("guests", "machines", "wires")
"""Groups of cases whose frames go from one core to the other."""


@dataclass
class Bench:
    """What all cases share."""

    cores: Cores
    sluice: Path
    dir: Path
    rounds: int = 6
    windows: int = 4
    seconds: float = 0.4
    huge: Path = Path()
    """Where huge pages are mounted."""
    samples: Samples = field(default_factory=Samples)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    """By case and contestant: what it had to say."""

    def capture(self, traffic: Traffic, flows: range | None = None) -> Path:
        """A capture, written once."""
        flows = flows or range(traffic.flows)
        path = self.dir / f"{traffic.name}-{flows.start}-{flows.stop}.pcap"
        return path if path.exists() else frames.write(traffic, path, flows)


class Contestant:
    """One of a case. `start` makes `room` and all in it, and returns when it is warm."""

    huge_mib = 0
    room: Room | None = None
    note = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> None:
        raise NotImplementedError

    def measure(self, windows: int, seconds: float) -> list[dict[Figure, float]]:
        """So many windows, each with its figures."""
        raise NotImplementedError

    def pause(self) -> None:
        self.room.pause()

    def resume(self) -> None:
        self.room.resume()

    def close(self) -> None:
        if self.room:
            self.room.close()


@dataclass
class Case:
    """A question and who answers it; the first contestant is the one all others are compared with."""

    name: str
    figure: Figure
    contestants: list[Contestant]
    rounds: int | None = None
    """Rounds, for those that are long; None: as the bench has it."""

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    def huge_mib(self) -> int:
        return sum(c.huge_mib for c in self.contestants)


def say(text: str) -> None:
    print(f"# {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def play(bench: Bench, case: Case) -> None:
    """All rounds of a case; leaves nothing running."""
    say(case.name)
    try:
        playing = []
        for c in case.contestants:
            if attempt(bench, case, c, c.start) is not None:
                playing.append(c)
                c.pause()
        for number in range(min(case.rounds or bench.rounds, bench.rounds)):
            for c in list(playing) if number % 2 == 0 else playing[::-1]:
                if attempt(bench, case, c, lambda: turn(bench, case, c, number)) is None:
                    playing.remove(c)
    finally:
        for c in case.contestants:
            c.close()
    for c in case.contestants:
        if c.note:
            bench.notes.setdefault((case.name, c.name), c.note)


def attempt(bench: Bench, case: Case, contestant: Contestant, act) -> bool | None:
    """True if it worked; else None, and why is noted."""
    try:
        act()
        return True
    except Failed as error:
        say(f"{contestant.name} is out: {error}")
        bench.notes[case.name, contestant.name] = f"failed: {' '.join(str(error).split())[:200]}"
        contestant.close()
        contestant.room = None
        return None


def core_to_core(bench: Bench, case: Case) -> float | None:
    """Latency between both cores now, in nanoseconds; None: it does not matter to the case."""
    if case.group not in CROSSING:
        return None
    return float(run(compiled(bench.dir, "core_to_core"), bench.cores.generator, bench.cores.switch))


def turn(bench: Bench, case: Case, contestant: Contestant, number: int) -> None:
    """Its windows of one round."""
    with before_others():
        before = core_to_core(bench, case)
        contestant.resume()
        try:
            found = contestant.measure(bench.windows, bench.seconds)
        finally:
            contestant.pause()
        after = core_to_core(bench, case)
    times = (before, after) if before and after else None
    for window, figures in enumerate(found):
        for figure, value in figures.items():
            bench.samples.append(Sample(case.name, contestant.name, number, window, figure, value, times))
    values = " ".join(f"{figures[case.figure]:.4g}" for figures in found if case.figure in figures)
    say(f"  round {number + 1} {contestant.name}: {values} {case.figure.unit}")
