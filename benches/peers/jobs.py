"""Processes that are started, pinned, paused and, whatever happens, stopped by pid.

A contestant that waits for its turn is stopped with SIGSTOP: it keeps its memory, flows and connections and
takes no cycle from the one that is measured. Should this program be killed, the kernel kills what it started.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A contestant or the machine did not do its part; the message says what a person can do."""


def wait_for(what: str, seconds: float, condition: Callable[[], object]) -> None:
    """Looks ten times a second until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: not after {seconds:g} s")
        time.sleep(0.1)


def follow(pid: int | str = "self") -> None:
    """Gives a process's session the priority that this process has: the kernel shares a core among sessions first
    (autogroup, sched(7)), and nice is worth something within one only."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError:
        pass  # a kernel that does not share so, or one that ended


def run(*argv: object, timeout: float = 60) -> str:
    """What a command prints; `Failed` with what it says on standard error."""
    words = [str(a) for a in argv]
    try:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 start_new_session=True, preexec_fn=follow)
    except OSError as error:
        raise Failed(f"{' '.join(words[:6])}: {error}") from error
    with child:
        try:
            said, wrong = child.communicate(timeout=timeout)
        except BaseException as error:
            # A session of its own hears no Ctrl-C; what the command started goes with it.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{' '.join(words[:6])}: {error}") from error
            raise
    if child.returncode:
        raise Failed(f"{' '.join(words)[:200]}: {(wrong or said).strip()[-600:]}")
    return said


def compiled(out: Path, name: str, *libraries: str) -> Path:
    """A program of ours in C, compiled into a directory, once."""
    program = out / name
    if not program.exists():
        run("clang", "-O2", "-pthread", "-o", program, HERE / f"{name}.c", *libraries)
    return program


@dataclass
class Place:
    """Where a process runs."""

    core: int
    netns: str | None = None
    also: int | None = None
    """Another core, for threads that do not pin themselves."""

    def prepare(self) -> None:
        """Between fork and exec."""
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {self.core} if self.also is None else {self.core, self.also})

    def command(self, argv: tuple[object, ...]) -> list[str]:
        front = ["ip", "netns", "exec", self.netns] if self.netns else []
        return front + [str(a) for a in argv]


class Job:
    """A process in the background; what it prints is in its log."""

    def __init__(self, place: Place, log: Path, argv: tuple[object, ...]) -> None:
        self.log = log
        self.name = Path(str(argv[0])).name
        # Open vSwitch looks for its files here, and not where the machine's own has them.
        here = dict.fromkeys(("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"), str(log.parent))
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                place.command(argv), stdin=subprocess.PIPE, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=place.prepare, env={**os.environ, **here})

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def check(self) -> None:
        if not self.alive():
            raise Failed(f"{self.name} ended with status {self.process.returncode}: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace").strip()[-600:]

    def said(self, text: str) -> int:
        return self.log.read_text(errors="replace").count(text)

    def tell(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        if self.alive():
            self.process.send_signal(number)

    def stop(self, patience: float = 6) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self) -> float:
        """Used so far, by all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Resident memory, huge pages included."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        sizes = {k: v.split()[0] for k, _, v in (line.partition(":") for line in lines) if v.strip()}
        return (int(sizes["VmRSS"]) + int(sizes.get("HugetlbPages", 0))) / 1024


class Room:
    """A directory and the processes that live in it; both go when it is closed, the youngest first."""

    def __init__(self, name: str) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=f"sluice-bench-{name}-"))
        self.jobs: list[Job] = []
        self.at_end: list[Callable[[], object]] = []

    def start(self, place: Place, *argv: object) -> Job:
        log = self.dir / f"{len(self.jobs)}-{Path(str(argv[0])).name}.log"
        try:
            job = Job(place, log, argv)
        except OSError as error:
            raise Failed(f"{argv[0]}: {error}") from error
        self.jobs.append(job)
        return job

    def pause(self) -> None:
        for job in self.jobs:
            job.signal(signal.SIGSTOP)

    def resume(self) -> None:
        for job in self.jobs:
            job.check()
            follow(job.pid)
            job.signal(signal.SIGCONT)

    def close(self) -> None:
        for job in self.jobs:
            job.signal(signal.SIGCONT)
        while self.jobs:
            self.jobs.pop().stop()
        while self.at_end:
            try:
                self.at_end.pop()()
            except (Failed, OSError) as error:
                print(f"# while cleaning up: {error}", flush=True)
        shutil.rmtree(self.dir, ignore_errors=True)
