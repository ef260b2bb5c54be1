"""`make bench`, or `PYTHONPATH=benches python3 -m peers`: the command line.

Exit status 0: all was measured; 1: something stands in the way, or a contestant fell out; 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import guests, idle, machine, machines, pipeline, report, wires
from .duel import Bench, Case, play, say
from .jobs import Failed

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (pipeline, guests, machines, wires, idle)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers", description="Sluice beside its peers, measured side by side.")
    parser.add_argument("--only", action="append", metavar="TEXT",
                        help="cases whose name has this in it; may be given several times")
    parser.add_argument("--without", action="append", default=[], metavar="TEXT",
                        help="leave out cases and contestants whose name has this in it")
    parser.add_argument("--list", action="store_true", help="name the cases, and who takes part, and do nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant (default 6)")
    parser.add_argument("--windows", type=int, metavar="N", help="windows of a turn (default 4)")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a window (default 0.4)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 windows, and no case with 100,000 flows or more")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "bench", metavar="DIR",
                        help="where report.md, the tables and the plots go (default target/bench)")
    parser.add_argument("--add", action="store_true", help="keep what is there already of other cases")
    parser.add_argument("--sluice", type=Path, default=ROOT / "target" / "release" / "sluice", metavar="FILE",
                        help="the executable (default target/release/sluice)")
    return parser.parse_args()


def bench_of(args: argparse.Namespace, scratch: Path) -> Bench:
    rounds, windows = (2, 2) if args.quick else (6, 4)
    return Bench(cores=machine.Cores.choose(), sluice=args.sluice.resolve(), dir=scratch,
                 rounds=args.rounds or rounds, windows=args.windows or windows, seconds=args.seconds or 0.4)


def chosen(args: argparse.Namespace, bench: Bench) -> list[Case]:
    """The cases that the command line names, with the contestants that it leaves in."""
    cases = [case for group in GROUPS for case in group.cases(bench)]
    if args.only:
        cases = [case for case in cases if any(text in case.name for text in args.only)]
    if args.quick:
        cases = [case for case in cases if "000-" not in case.name or "/1000-" in case.name]
    for case in cases:
        case.contestants = [c for c in case.contestants if not any(text in c.name for text in args.without)]
    return [case for case in cases if case.contestants and not any(text in case.name for text in args.without)]


def check(args: argparse.Namespace) -> None:
    """Ends here if something is missing, and says what to do."""
    wrong = machine.missing()
    if not args.sluice.exists():
        wrong.append(f"no {args.sluice}: cargo build --release")
    if wrong:
        raise Failed("\n".join(wrong))


def compare(args: argparse.Namespace, bench: Bench, cases: list[Case]) -> int:
    """Plays all cases; what was measured is written after each."""
    about = machine.about()
    about["method"] = f"{bench.rounds} rounds of {bench.windows} windows of {bench.seconds:g} s each, in turns"
    noise = machine.noise(bench.cores)
    about["noise before"] = "; ".join(f"core {core}: {words}" for core, words in noise.items())
    if args.add:
        report.read(bench, args.out, {case.name for case in cases})
    for case in cases:
        try:
            with machine.huge_pages(case.huge_mib(), bench.dir) as bench.huge:
                play(bench, case)
        except Failed as error:
            say(str(error))
            bench.notes |= {(case.name, c.name): f"failed: {error}" for c in case.contestants}
        report.write(bench, about, args.out)
    noise = machine.noise(bench.cores)
    about["noise after"] = "; ".join(f"core {core}: {words}" for core, words in noise.items())
    report.write(bench, about, args.out)
    print((args.out / "report.md").read_text())
    say(f"written to {args.out}")
    return 1 if any(note.startswith("failed") for note in bench.notes.values()) else 0


def main() -> int:
    args = arguments()
    # Everything that was started is stopped on the way out.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    scratch = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    try:
        bench = bench_of(args, scratch)
        cases = chosen(args, bench)
        if args.list or not cases:
            for case in cases:
                print(case.name, " | ".join(c.name for c in case.contestants), sep=": ")
            return 0 if cases else 2
        check(args)
        os.sched_setaffinity(0, {bench.cores.generator})
        return compare(args, bench, cases)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
