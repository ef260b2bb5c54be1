"""What came out: report.md to read, results.csv to compute with, windows.csv with every window, a plot per group."""

from __future__ import annotations

import csv
from pathlib import Path

from . import svg
from .duel import Bench
from .stats import CYCLES, RATE, Distance, Figure, Ratio, Sample, Samples, Spread, compare, number

TITLES = {
    "pipeline": "Memory to memory",
    "guests": "vhost-user to vhost-user",
    "machines": "Virtual machine to virtual machine",
    "wires": "veth to veth",
    "idle": "Idle",
}
EXPLAIN = {
    "pipeline": "Cycles of the time stamp counter that a frame costs the switch's core, from a looping capture to "
                "the sink; frames are allocated and copied in, and freed. Less is better.",
    "guests": "testpmd's virtio-user driver at both ends, on the generator's core. Loops: 512 frames circulate each way "
              "and none may be lost; ping-pong: one frame each way.",
    "machines": "QEMU without KVM: both machines on the generator's core, the switch on the other.",
    "wires": "Generator and sink on one core, the switch on the other (what the kernel does for them, wherever it does "
             "it).",
    "idle": "Two ports, no traffic.",
}


CORE_TO_CORE = ("core_to_core_before", "core_to_core_after")
"""Columns of windows.csv, in nanoseconds."""


def times(ratio: Ratio | None) -> tuple[str, str]:
    """The columns of a ratio."""
    if ratio is None:
        return "", ""
    medians, lowest, highest, bests = (f"{r:.2f}" if r < 100 else number(r) for r in (
        ratio.medians, ratio.lowest, ratio.highest, ratio.bests))
    return f"**{medians}** ({lowest}–{highest})", bests


def parts(samples: Samples, case: str):
    """(what to call it, its rows): all of a case and, if the cores were near in some turns of the first contestant and far in
    others, each by itself."""
    contestants = samples.contestants(case)
    yield "", rows(samples, case, contestants)
    found = {distance: samples.at(distance) for distance in Distance}
    if all(contestants[0] in part.contestants(case) for part in found.values()):
        for distance, part in found.items():
            yield distance.value, rows(part, case, contestants)


def rows(samples: Samples, case: str, contestants: list[str]):
    """(contestant, figure, spread, ratio to the first of them)."""
    first = contestants[0]
    for figure in samples.figures(case):
        ours = samples.by_round(case, first, figure)
        for contestant in contestants:
            spread = samples.spread(case, contestant, figure)
            if spread:
                theirs = samples.by_round(case, contestant, figure)
                ratio = compare(figure, ours, theirs) if ours and contestant != first else None
                yield contestant, figure, spread, ratio


def markdown(bench: Bench, about: dict[str, str]) -> str:
    out = ["# Sluice beside its peers", ""]
    out += [f"* {key}: {value}" for key, value in about.items()]
    out += ["", "Best / median of all windows. A ratio says how many times better the first of a case is than this one: "
            "median of the ratios of each round (lowest – highest round), then that of the best windows. *Cores near* and "
            "*far*: turns in which the hypervisor had the two cores so, told by how long a line of cache takes from one to "
            "the other.", ""]
    groups = dict.fromkeys(case.partition("/")[0] for case in [*bench.samples.cases(), *(c for c, _ in bench.notes)])
    for group in groups:
        out += [f"## {TITLES.get(group, group)}", "", EXPLAIN.get(group, ""), ""]
        if any(case.startswith(group + "/") for case in bench.samples.cases()):
            out += [f"![{group}]({group}.svg)", ""]
            out += table(bench, group)
        out += failures(bench, group)
    return "\n".join(out)


def table(bench: Bench, group: str) -> list[str]:
    lines = ["| case | contestant | figure | best / median | ratio | of bests | |",
             "| --- | --- | --- | ---: | ---: | ---: | --- |"]
    for case in (c for c in bench.samples.cases() if c.startswith(group + "/")):
        shown = bench.samples.figures(case)
        for distance, found in parts(bench.samples, case):
            name = case.partition("/")[2] + (distance and f", cores {distance}")
            for contestant, figure, spread, ratio in found:
                if figure == RATE and CYCLES in shown:
                    continue  # the same in other words
                medians, bests = times(ratio)
                lines.append(f"| {name} | {contestant} | {figure.name}, {figure.unit} | "
                             f"{number(spread.best)} / {number(spread.median)} | {medians} | {bests} | "
                             f"{bench.notes.get((case, contestant), '')} |")
    return [*lines, ""]


def failures(bench: Bench, group: str) -> list[str]:
    measured = {(s.case, s.contestant) for s in bench.samples}
    lines = [f"* {case}: {contestant} {why}" for (case, contestant), why in bench.notes.items()
             if case.startswith(group + "/") and (case, contestant) not in measured]
    return ["Not measured:", "", *lines, ""] if lines else []


def write_csv(path: Path, head: list[str], lines) -> None:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(head)
        writer.writerows(lines)


def summary(bench: Bench):
    """Rows of results.csv."""
    for case in bench.samples.cases():
        for distance, found in parts(bench.samples, case):
            for contestant, figure, spread, ratio in found:
                ratios = [ratio.medians, ratio.lowest, ratio.highest, ratio.bests] if ratio else [""] * 4
                yield [case, contestant, figure.name, figure.unit, spread.best, spread.median, spread.worst, spread.windows,
                       *ratios, distance]


def windows(bench: Bench):
    """Rows of windows.csv."""
    for s in bench.samples:
        better = "less" if s.figure.less_is_better else "more"
        yield [s.case, s.contestant, s.round, s.window, s.figure.name, s.figure.unit, better, s.value,
               *(s.core_to_core or ("", ""))]


def read(bench: Bench, out: Path, again: set[str]) -> None:
    """What an earlier run left there, but for the cases that are measured again."""
    for row in lines_of(out / "windows.csv"):
        if row["case"] not in again:
            figure = Figure(row["figure"], row["unit"], row["better"] == "less")
            times = [float(row[name]) for name in CORE_TO_CORE if row.get(name)]
            bench.samples.append(Sample(row["case"], row["contestant"], int(row["round"]), int(row["window"]), figure,
                                        float(row["value"]), tuple(times) or None))
    for row in lines_of(out / "notes.csv"):
        if row["case"] not in again:
            bench.notes[row["case"], row["contestant"]] = row["note"]


def lines_of(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plot(bench: Bench, group: str) -> str:
    """Clusters of bars, one cluster per case and figure of the group."""
    clusters = []
    for case in (c for c in bench.samples.cases() if c.startswith(group + "/")):
        by_figure: dict[Figure, list[tuple[str, Spread]]] = {}
        for contestant, figure, spread, _ in rows(bench.samples, case, bench.samples.contestants(case)):
            by_figure.setdefault(figure, []).append((contestant, spread))
        main = next(iter(by_figure))
        bars = [svg.Bar(name, spread.median, spread.best) for name, spread in by_figure[main]]
        clusters.append(svg.Cluster(f"{case.partition('/')[2]}, {main.unit}", bars))
    return svg.draw(TITLES.get(group, group), clusters)


def write(bench: Bench, about: dict[str, str], out: Path) -> None:
    """All files; called after every case, so that an interrupted run has what it measured."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown(bench, about))
    head_of_results = "case,contestant,figure,unit,best,median,worst,windows,ratio_of_medians,lowest,highest,ratio_of_bests,cores"
    write_csv(out / "results.csv", head_of_results.split(","), summary(bench))
    head_of_windows = ["case", "contestant", "round", "window", "figure", "unit", "better", "value", *CORE_TO_CORE]
    write_csv(out / "windows.csv", head_of_windows, windows(bench))
    write_csv(out / "notes.csv", ["case", "contestant", "note"], ([*key, note] for key, note in bench.notes.items()))
    for group in dict.fromkeys(case.partition("/")[0] for case in bench.samples.cases()):
        (out / f"{group}.svg").write_text(plot(bench, group))
