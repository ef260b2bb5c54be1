"""Tests of what needs no switch: `PYTHONPATH=benches python3 -m unittest peers.test_pure`."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

from . import frames, ovs, pipeline, report
from .duel import Bench
from .frames import Traffic
from .machine import Cores
from .stats import CYCLES, RATE, Distance, Sample, Samples, compare, spread

PERF = """\
  Rx packets:        7120864  (7114 Kpps, 365 cycles/pkt)
  Datapath passes:   7120864  (1.00 passes/pkt)
  - PHWOL hits:            0  (  0.0 %)
  - Simple Match hits:     0  (  0.0 %)
  - EMC hits:        7049655  ( 99.0 %)
  - SMC hits:              0  (  0.0 %)
  - Megaflow hits:     71209  (  1.0 %, 1.00 subtbl lookups/hit)
  - Upcalls:              10  (  0.0 %, 0.0 us/upcall)
"""


class Statistics(unittest.TestCase):
    def test_less_is_better_of_cycles_and_more_of_rates(self):
        self.assertEqual(spread(CYCLES, [3.0, 1.0, 2.0]).best, 1.0)
        self.assertEqual(spread(RATE, [3.0, 1.0, 2.0]).best, 3.0)
        self.assertEqual(spread(RATE, [3.0, 1.0, 2.0, 4.0]).median, 2.5)

    def test_a_ratio_above_one_means_that_the_first_is_ahead(self):
        ours, theirs = {0: [100.0, 110.0], 1: [200.0]}, {0: [210.0, 210.0], 1: [300.0], 2: [1.0]}
        found = compare(CYCLES, ours, theirs)
        self.assertEqual((found.lowest, found.highest, found.medians, found.bests), (1.5, 2.0, 1.75, 2.1))
        self.assertEqual(compare(RATE, {0: [3.0]}, {0: [2.0]}).medians, 1.5)

    def test_rounds_in_which_they_did_not_meet_do_not_count(self):
        self.assertIsNone(compare(CYCLES, {0: [1.0]}, {1: [1.0]}))

    def test_one_who_does_nothing_is_infinitely_worse(self):
        self.assertEqual(compare(RATE, {0: [1.0]}, {0: [0.0]}).medians, float("inf"))
        self.assertEqual(compare(RATE, {0: [0.0]}, {0: [1.0]}).medians, 0.0)


class Distances(unittest.TestCase):
    CASE = "guests/loop-60"

    def samples(self, *turns: tuple[str, int, float, tuple[float, float]]) -> Samples:
        return Samples(Sample(self.CASE, who, number, 0, RATE, value, times) for who, number, value, times in turns)

    def test_a_turn_is_near_or_far_if_it_was_so_before_and_after(self):
        times = [(26.0, 27.0), (50.0, 26.0), (150.0, 160.0), (26.0, 150.0), (150.0, 26.0)]
        found = self.samples(*(("Sluice", 0, 1.0, t) for t in times)).distances()
        self.assertEqual(found, [Distance.NEAR, Distance.NEAR, Distance.FAR, None, None])

    def test_a_case_is_told_apart_if_it_had_both(self):
        near, far = (26.0, 26.0), (150.0, 150.0)
        both = self.samples(("a", 0, 8.0, near), ("b", 0, 4.0, near), ("b", 1, 3.0, far), ("a", 1, 3.0, far))
        ratios = {name: list(found)[1][3].medians for name, found in report.parts(both, self.CASE)}
        self.assertEqual(ratios, {"": 1.5, "near": 2.0, "far": 1.0})
        self.assertEqual([name for name, _ in report.parts(self.samples(("a", 0, 8.0, near)), self.CASE)], [""])


class Frames(unittest.TestCase):
    def test_every_flow_is_another_frame_of_the_right_length(self):
        for kind, length in (("tuples", 60), ("pairs", 60), ("vlan", 60), ("vxlan", 110), ("gre", 102), ("geneve", 110)):
            made = {frames.frame(Traffic(kind, 1000), flow) for flow in range(1000)}
            self.assertEqual((len(made), {len(f) for f in made}), (1000, {length}), kind)

    def test_ipv4_headers_sum_to_nothing(self):
        one = frames.frame(Traffic("tuples", 1), 0)
        self.assertEqual(frames.checksum(one[14:34]), 0)

    def test_stations_of_a_capture_are_the_known_ones(self):
        traffic = Traffic("pairs", 1000)
        made = [frames.frame(traffic, flow) for flow in range(1000)]
        self.assertEqual({f[:6] for f in made}, set(frames.receivers(traffic)))

    def test_parts_are_whole_and_no_station_is_in_two(self):
        traffic = Traffic("pairs", 1_000_000)
        parts = pipeline.split(traffic)
        self.assertEqual([n for part in parts for n in (part.start, part.stop)],
                         [0, 250_000, 250_000, 500_000, 500_000, 750_000, 750_000, 1_000_000])
        senders = [{frames.frame(traffic, flow)[6:12] for flow in (part.start, part.stop - 1)} for part in parts]
        self.assertEqual(len(set().union(*senders)), 8)

    def test_a_capture_has_a_header_and_all_frames(self):
        with tempfile.TemporaryDirectory() as directory:
            path = frames.write(Traffic("tuples", 300), Path(directory) / "a.pcap")
            self.assertEqual(path.stat().st_size, 24 + 300 * 76)


class Report(unittest.TestCase):
    def bench(self) -> Bench:
        bench = Bench(Cores(1, 0), Path("sluice"), Path("/nowhere"))
        for number, (ours, theirs) in enumerate(((80.0, 120.0), (90.0, 160.0))):
            for name, value in (("Sluice", ours), ("OVS <DPDK>", theirs)):
                bench.samples.append(Sample("pipeline/port/1-flows", name, number, 0, CYCLES, value, (26.0, 27.5)))
        bench.notes["pipeline/port/1-flows", "other"] = "failed: not there"
        return bench

    def test_the_table_has_ratios_and_those_who_failed(self):
        text = report.markdown(self.bench(), {"kernel": "6"})
        self.assertIn("| port/1-flows | Sluice | cycles, cycles/frame | 80 / 85 |  |  |  |", text)
        self.assertIn("| 120 / 140 | **1.64** (1.50–1.78) | 1.50 |", text)
        self.assertIn("* pipeline/port/1-flows: other failed: not there", text)

    def test_the_plot_is_well_formed(self):
        ElementTree.fromstring(report.plot(self.bench(), "pipeline"))

    def test_all_files_are_written(self):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "bench"
            report.write(self.bench(), {}, out)
            self.assertEqual({p.name for p in out.iterdir()}, 
                             {"report.md", "results.csv", "windows.csv", "notes.csv", "pipeline.svg"})
            self.assertEqual(len((out / "windows.csv").read_text().splitlines()), 5)


    def test_what_was_written_is_read_again(self):
        with tempfile.TemporaryDirectory() as directory:
            report.write(self.bench(), {}, Path(directory))
            again = Bench(Cores(1, 0), Path("sluice"), Path("/nowhere"))
            report.read(again, Path(directory), set())
            self.assertEqual((again.samples, again.notes), (self.bench().samples, self.bench().notes))
            none = Bench(Cores(1, 0), Path("sluice"), Path("/nowhere"))
            report.read(none, Path(directory), {"pipeline/port/1-flows"})
            self.assertEqual((none.samples, none.notes), ([], {}))


class PmdPerf(unittest.TestCase):
    def test_figures_are_read(self):
        found = ovs.parse_perf(PERF)
        self.assertEqual((found["cycles"], found["rate"], found["EMC"]), (365.0, 7.114, 99.0))
        self.assertEqual((found["Megaflow"], found["Upcalls"]), (1.0, 0.0))

    def test_no_frames_are_no_figures(self):
        self.assertEqual(ovs.parse_perf("  Rx packets:  0\n")["cycles"], 0)


if __name__ == "__main__":
    unittest.main()
