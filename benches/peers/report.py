"""What came out: report.md to read, results.csv to compute with, windows.csv with every window, a plot per group."""

from __future__ import annotations

import csv
from pathlib import Path

from . import svg
from .duel import Bench
from .stats import CYCLES, RATE, Figure, Ratio, Sample, Spread, compare, number

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


def times(ratio: Ratio | None) -> tuple[str, str]:
    """The columns of a ratio."""
    if ratio is None:
        return "", ""
    medians, lowest, highest, bests = (f"{r:.2f}" if r < 100 else number(r) for r in (
        ratio.medians, ratio.lowest, ratio.highest, ratio.bests))
    return f"**{medians}** ({lowest}–{highest})", bests


def rows(bench: Bench, case: str):
    """(contestant, figure, spread, ratio to the first) of a case."""
    samples = bench.samples
    for figure in samples.figures(case):
        first = samples.contestants(case)[0]
        ours = samples.by_round(case, first, figure)
        for contestant in samples.contestants(case):
            spread = samples.spread(case, contestant, figure)
            if spread:
                theirs = samples.by_round(case, contestant, figure)
                ratio = compare(figure, ours, theirs) if ours and contestant != first else None
                yield contestant, figure, spread, ratio


def markdown(bench: Bench, about: dict[str, str]) -> str:
    out = ["# Sluice beside its peers", ""]
    out += [f"* {key}: {value}" for key, value in about.items()]
    out += ["", "Best / median of all windows. A ratio says how many times better the first of a case is than this one: "
            "median of the ratios of each round (lowest – highest round), then that of the best windows.", ""]
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
        for contestant, figure, spread, ratio in rows(bench, case):
            if figure == RATE and CYCLES in shown:
                continue  # the same in other words
            medians, bests = times(ratio)
            name = case.partition("/")[2]
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
        for contestant, figure, spread, ratio in rows(bench, case):
            ratios = [ratio.medians, ratio.lowest, ratio.highest, ratio.bests] if ratio else [""] * 4
            yield [case, contestant, figure.name, figure.unit, spread.best, spread.median, spread.worst, spread.windows,
                   *ratios]


def windows(bench: Bench):
    """Rows of windows.csv."""
    for s in bench.samples:
        better = "less" if s.figure.less_is_better else "more"
        yield [s.case, s.contestant, s.round, s.window, s.figure.name, s.figure.unit, better, s.value]


def read(bench: Bench, out: Path, again: set[str]) -> None:
    """What an earlier run left there, but for the cases that are measured again."""
    for row in lines_of(out / "windows.csv"):
        if row["case"] not in again:
            figure = Figure(row["figure"], row["unit"], row["better"] == "less")
            bench.samples.append(Sample(row["case"], row["contestant"], int(row["round"]), int(row["window"]), figure,
                                        float(row["value"])))
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
        for contestant, figure, spread, _ in rows(bench, case):
            by_figure.setdefault(figure, []).append((contestant, spread))
        main = next(iter(by_figure))
        bars = [svg.Bar(name, spread.median, spread.best) for name, spread in by_figure[main]]
        clusters.append(svg.Cluster(f"{case.partition('/')[2]}, {main.unit}", bars))
    return svg.draw(TITLES.get(group, group), clusters)


def write(bench: Bench, about: dict[str, str], out: Path) -> None:
    """All files; called after every case, so that an interrupted run has what it measured."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown(bench, about))
    head = "case,contestant,figure,unit,best,median,worst,windows,ratio_of_medians,lowest,highest,ratio_of_bests"
    write_csv(out / "results.csv", head.split(","), summary(bench))
    write_csv(out / "windows.csv", "case,contestant,round,window,figure,unit,better,value".split(","), windows(bench))
    write_csv(out / "notes.csv", ["case", "contestant", "note"], ([*key, note] for key, note in bench.notes.items()))
    for group in dict.fromkeys(case.partition("/")[0] for case in bench.samples.cases()):
        (out / f"{group}.svg").write_text(plot(bench, group))
