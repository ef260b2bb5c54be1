"""What windows of measurement say: best, median, and the ratio of two contestants who took turns.

A ratio is always "how many times better the first is", so above 1 the first is ahead, whatever the unit. It is
taken round by round, because both contestants of a round met about the same neighbours; the median of those
is what a goal is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from statistics import median


@dataclass(frozen=True)
class Figure:
    """A thing that is measured."""

    name: str
    unit: str
    less_is_better: bool = True

    def best(self, values: list[float]) -> float:
        return min(values) if self.less_is_better else max(values)

    def advantage(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is; infinite if they have nothing to show, 0 if we have not."""
        above, below = (theirs, ours) if self.less_is_better else (ours, theirs)
        if below:
            return above / below
        return float("inf") if above else 1.0


CYCLES = Figure("cycles", "cycles/frame")
RATE = Figure("rate", "Mpps", less_is_better=False)
GOODPUT = Figure("goodput", "Gbit/s", less_is_better=False)
LATENCY = Figure("one way", "µs")
P50 = Figure("p50", "µs")
P99 = Figure("p99", "µs")
CPU = Figure("cpu", "%")
RESIDENT = Figure("resident", "MiB")


@dataclass(frozen=True)
class Sample:
    """One window of one contestant."""

    case: str
    contestant: str
    round: int
    window: int
    figure: Figure
    value: float
    core_to_core: tuple[float, float] | None = None
    """Latency between both cores before and after the turn, in nanoseconds; None: no matter."""


@dataclass(frozen=True)
class Spread:
    """What several windows say together."""

    best: float
    median: float
    worst: float
    windows: int


@dataclass(frozen=True)
class Ratio:
    """Of two contestants."""

    medians: float
    """The median of the ratios of medians of each round."""
    lowest: float
    highest: float
    bests: float
    """The ratio of the best windows of all rounds."""


def spread(figure: Figure, values: list[float]) -> Spread:
    ordered = sorted(values, reverse=not figure.less_is_better)
    return Spread(ordered[0], median(ordered), ordered[-1], len(ordered))


def compare(figure: Figure, ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> Ratio | None:
    """Ratio of two contestants, each given as windows by round; None if they never met in a round."""
    rounds = [r for r in ours if r in theirs]
    if not rounds:
        return None
    ratios = [figure.advantage(median(ours[r]), median(theirs[r])) for r in rounds]
    bests = [figure.best([v for r in rounds for v in side[r]]) for side in (ours, theirs)]
    return Ratio(median(ratios), min(ratios), max(ratios), figure.advantage(*bests))


class Distance(Enum):
    """How far apart the two cores were in a turn: where a hypervisor runs virtual ones is its own affair, and changes."""

    NEAR = "near"
    """As near as they ever were, or at most twice as far: they share a cache."""
    FAR = "far"


def number(value: float) -> str:
    """For people: three digits that count."""
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Samples(list):
    """All that was measured, in the order of measurement."""

    def cases(self) -> list[str]:
        return list(dict.fromkeys(s.case for s in self))

    def contestants(self, case: str) -> list[str]:
        return list(dict.fromkeys(s.contestant for s in self if s.case == case))

    def figures(self, case: str) -> list[Figure]:
        return list(dict.fromkeys(s.figure for s in self if s.case == case))

    def distances(self) -> list[Distance | None]:
        """Of each sample; None: they were moved meanwhile, or it does not matter."""
        nearest = min((t for s in self if s.core_to_core for t in s.core_to_core), default=0.0)

        def distance(times: tuple[float, float] | None) -> Distance | None:
            if times is None or min(times) <= 2 * nearest < max(times):
                return None
            return Distance.NEAR if max(times) <= 2 * nearest else Distance.FAR

        return [distance(s.core_to_core) for s in self]

    def at(self, distance: Distance) -> Samples:
        """Those of turns in which the cores were so far apart."""
        return Samples(s for s, found in zip(self, self.distances()) if found is distance)

    def by_round(self, case: str, contestant: str, figure: Figure) -> dict[int, list[float]]:
        rounds: dict[int, list[float]] = {}
        for s in self:
            if (s.case, s.contestant, s.figure) == (case, contestant, figure):
                rounds.setdefault(s.round, []).append(s.value)
        return rounds

    def spread(self, case: str, contestant: str, figure: Figure) -> Spread | None:
        values = [v for window in self.by_round(case, contestant, figure).values() for v in window]
        return spread(figure, values) if values else None
