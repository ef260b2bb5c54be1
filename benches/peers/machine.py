"""The machine: which cores, how noisy, huge pages; everything that is changed is changed back."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from .jobs import Failed, run

PAGES = Path("/proc/sys/vm/nr_hugepages")
PAGE_MIB = 2
SPARE = 32
"""Pages over what is asked for: allocators round up."""


@dataclass(frozen=True)
class Cores:
    """Who runs where: one core for whoever is measured, one for generator, sink and everything else."""

    switch: int
    generator: int

    @staticmethod
    def choose() -> Cores:
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise Failed("one core for the switch and one for the generator: this process may use one only")
        return Cores(switch=allowed[-1], generator=allowed[0])


PROGRAMS = {
    "ovs-vsctl": "openvswitch-switch", "ovsdb-server": "openvswitch-common", "dpdk-testpmd": "dpdk-dev",
    "ethtool": "ethtool", "iperf3": "iperf3", "ip": "iproute2", "clang": "clang",
    "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk": "openvswitch-switch-dpdk", "qemu-system-x86_64": "qemu-system-x86",
}


def missing() -> list[str]:
    """What stands in the way, each with its cure."""
    wrong = []
    if os.geteuid():
        wrong.append("only root may make namespaces and lock memory: run it with sudo")
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            wrong.append(f"no {program}: apt-get install {package} (or tests/setup/packages.sh bench)")
    return wrong


def about() -> dict[str, str]:
    """What a reader must know of the machine."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.M)
    memory = int(re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)[1])
    return {
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "virtual": "yes" if re.search(r"^flags.*\bhypervisor\b", info, re.M) else "no",
        "memory": f"{memory / 2**20:.1f} GiB",
        "kernel": platform.release(),
        "Open vSwitch": version("ovs-vswitchd", "--version"),
        "DPDK": version("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", "--version", line=1),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def version(program: str, *argv: str, line: int = 0) -> str:
    try:
        return run(program, *argv).splitlines()[line].strip()
    except (Failed, IndexError):
        return "not there"


def _spin(core: int, samples: int, out) -> None:
    os.sched_setaffinity(0, {core})
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        total = 0
        for i in range(100_000):
            total += i
        times.append(time.perf_counter() - start)
    out.send(times)


def noise(cores: Cores, samples: int = 100) -> dict[int, str]:
    """The same work again and again on both cores at once; how much longer than the best the others took."""
    context, found = get_context("fork"), {}
    probes = []
    for core in (cores.switch, cores.generator):
        ours, theirs = context.Pipe()
        process = context.Process(target=_spin, args=(core, samples, theirs), daemon=True)
        process.start()
        probes.append((core, process, ours))
    for core, process, pipe in probes:
        times = sorted(pipe.recv())
        process.join()
        late = times[len(times) * 9 // 10]
        found[core] = f"median {median(times) / times[0]:.2f}, p90 {late / times[0]:.2f} times the best"
    return found


@contextmanager
def huge_pages(mib: int, parent: Path):
    """A private hugetlbfs with so much memory; gives the pages back that it took."""
    before = int(PAGES.read_text())
    need = mib // PAGE_MIB + SPARE if mib else 0
    mount = parent / "huge"
    mount.mkdir(parents=True, exist_ok=True)
    if before < need:
        PAGES.write_text(str(need))
    try:
        if int(PAGES.read_text()) < need:
            raise Failed(f"huge pages: {mib} MiB wanted, {int(PAGES.read_text()) * PAGE_MIB} to be had; "
                         "free memory or reserve them at boot (hugepages= on the kernel's command line)")
        run("mount", "-t", "hugetlbfs", "nodev", mount)
        try:
            yield mount
        finally:
            run("umount", mount)
    finally:
        mount.rmdir()
        if before < need:
            PAGES.write_text(str(before))


URGENT = -20
KERNELS = ("ksoftirqd/", "rcu_preempt", "rcu_sched")
"""Threads of the kernel's: what interrupts leave to be done, and what waits until nobody looks at a thing any more."""


@contextmanager
def before_others():
    """Whoever is measured meanwhile, and whoever generates, goes before all else on the machine. So do those of the
    kernel's threads that all of them wait for: else they would be last, and everybody with them."""
    threads = [int(comm.parent.name) for comm in Path("/proc").glob("[0-9]*/comm") if named(comm, KERNELS)]
    before: dict[int, int] = {}
    try:
        for pid in (0, *threads):
            before[pid] = os.getpriority(os.PRIO_PROCESS, pid)
            os.setpriority(os.PRIO_PROCESS, pid, URGENT)
        yield
    finally:
        for pid, own in before.items():
            with suppress(ProcessLookupError):  # a core that was taken away, with its threads
                os.setpriority(os.PRIO_PROCESS, pid, own)


def named(comm: Path, name: str | tuple[str, ...]) -> bool:
    """Does the name of a thread begin so?"""
    try:
        return comm.read_text().startswith(name)
    except OSError:
        return False  # it ended
