"""Between two virtual machines with whole kernels: TCP by vhost-user ports, and by what a Linux bridge has for a machine, TAP.

QEMU emulates the machines' processors, so this needs no KVM, and the machines are by far the slowest of all that take part:
what is compared is what a switch and the way to it leave of a core for them. Without vhost-net QEMU itself carries frames
between a TAP device and its guest; by vhost-user the switch does.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from . import frames, sluice
from .duel import Bench, Case, Contestant
from .jobs import Failed, Job, Place, Room, run, wait_for
from .net import Namespace
from .ovs import Huge, Ovs
from .stats import GOODPUT
from .switches import PORTS, Bridge, SluiceNetdev

SET_UP = Path(__file__).resolve().parents[2] / "tests" / "setup" / "vm.sh"
"""Makes the kernel and the file system of a machine."""
MIB = 256
OVS_MIB = 1024
STATIONS = (frames.SENDER, frames.RECEIVER)
END = "\x1e"
"""Ends an answer; its status follows."""
BOOT = 120
"""Seconds that two of them may take on a core."""


class Machine:
    """One with a card at `netdev`, and with root's shell."""

    def __init__(self, bench: Bench, room: Room, number: int) -> None:
        self.bench, self.room, self.number = bench, room, number
        self.read = 0

    def start(self, netns: Namespace, netdev: list[object]) -> None:
        files = self.bench.sluice.parents[1] / "tmp" / "vm"
        run(SET_UP, files, timeout=600)
        # Without KVM, QEMU 7.2 crashes when a guest unmasks a vector of a card at vhost-user: all have INTx.
        mac = STATIONS[self.number].hex(":")
        card = f"virtio-net-pci,netdev=n,mac={mac},romfile=,vectors=0"
        self.job: Job = self.room.start(
            Place(self.bench.cores.generator, netns.name), "qemu-system-x86_64", "-nodefaults", "-no-user-config",
            "-display", "none", "-action", "reboot=shutdown", "-machine", "q35,memory-backend=ram", "-accel", "tcg",
            "-cpu", "max", "-m", MIB, "-object", f"memory-backend-memfd,id=ram,size={MIB}M,share=on",
            "-kernel", files / "kernel", "-initrd", files / "initramfs",
            "-append", "panic=-1 mitigations=off cryptomgr.notests quiet",
            "-chardev", "stdio,id=commands,signal=off", "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=commands", *netdev, "-device", card)

    def booted(self) -> None:
        self.answer(BOOT)

    def ask(self, line: str, seconds: float = 30) -> str:
        """What a line of shell prints; it must succeed."""
        self.job.tell(line)
        said, status = self.answer(seconds)
        if status != "0":
            raise Failed(f"{line}: status {status}: {said[-300:]}")
        return said

    def can(self, line: str) -> bool:
        """Does a line of shell succeed?"""
        self.job.tell(line)
        return self.answer(30)[1] == "0"

    def answer(self, seconds: float) -> tuple[str, str]:
        found = ["", ""]

        def whole() -> bool:
            self.job.check()
            text = self.job.log.read_text(errors="replace")
            said, end, status = text[self.read:].partition(END)
            found[:] = said, status.strip()
            if end and status.endswith("\n"):
                self.read = len(text)
                return True
            return False

        wait_for(f"an answer of machine {self.number}", seconds, whole)
        return found[0], found[1]


class Machines(Contestant):
    """A switch between two machines."""

    def __init__(self, bench: Bench, name: str) -> None:
        super().__init__(name)
        self.bench = bench

    def start(self) -> None:
        room = self.room = Room("machines")
        self.netns = Namespace(room, "sw")
        self.machines = [Machine(self.bench, room, number) for number in range(2)]
        self.connect()
        for number, machine in enumerate(self.machines):
            machine.booted()
            machine.ask(f"ip addr add 10.9.0.{number + 1}/24 dev eth0 && ip link set eth0 up")
        self.ready()
        near, far = self.machines
        far.ask("iperf3 -s -D")
        wait_for("machines that reach each other", 30, lambda: near.can("ping -qc 1 -W 1 10.9.0.2"))
        self.iperf(1, 1.0)

    def connect(self) -> None:
        """Starts the switch and the machines."""
        raise NotImplementedError

    def ready(self) -> None:
        """Waits until all ports are up."""

    def iperf(self, windows: int, seconds: float) -> list[float]:
        """Gbit/s that arrived, window by window."""
        length = max(1, round(windows * seconds + 0.5))
        text = self.machines[0].ask(f"iperf3 -c 10.9.0.2 -R -J -i {seconds} -t {length}", 30 + length)
        found = json.loads(text)
        if "error" in found:
            raise Failed(f"iperf3: {found['error']}")
        return [i["sum"]["bits_per_second"] / 1e9 for i in found["intervals"]][:windows]

    def measure(self, windows: int, seconds: float) -> list[dict]:
        # The machines' clocks have jumped over the others' turns.
        time.sleep(0.3)
        return [{GOODPUT: value} for value in self.iperf(windows, max(1.0, seconds))]


class ByTap(Machines):
    """By TAP devices, with a switch that takes interfaces."""

    def __init__(self, bench: Bench, switch: Bridge | SluiceNetdev) -> None:
        super().__init__(bench, f"{switch.name}, TAP")
        self.switch = switch

    def connect(self) -> None:
        for name in PORTS:
            self.netns.ip("tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr")
            self.netns.ip("link", "set", name, "up")
        for name, machine in zip(PORTS, self.machines):
            machine.start(self.netns, ["-netdev", f"tap,id=n,ifname={name},script=no,downscript=no,vhost=off"])
        self.switch.start(self.bench, self.room, self.netns)


class ByVhostUser(Machines):
    """By vhost-user ports; QEMU makes the sockets, and the switch connects."""

    def connect(self) -> None:
        self.sockets = [self.room.dir / f"vh{number}" for number in range(2)]
        for path, machine in zip(self.sockets, self.machines):
            machine.start(self.netns, ["-chardev", f"socket,id=c,path={path},server=on,wait=off",
                                       "-netdev", "vhost-user,id=n,chardev=c"])
            wait_for("a socket of QEMU", 20, path.exists)
        self.switch()

    def switch(self) -> None:
        """Starts the switch."""
        raise NotImplementedError


class SluiceMachines(ByVhostUser):
    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, "Sluice vhost-user")

    def switch(self) -> None:
        ports = ",".join(f'{{ name = "vh{n}", type = "dpdkvhostuserclient", vhost-server-path = "{path}" }}'
                         for n, path in enumerate(self.sockets))
        self.daemon = sluice.Daemon(self.bench, self.room, self.netns.name)
        self.daemon.run(f'[[bridge]]\nname = "br0"\nport = [{ports}]\n')

    def ready(self) -> None:
        self.daemon.await_ports(2)


class OvsMachines(ByVhostUser):
    """As its documentation has it: a segment of a guest is cut by the guest."""

    huge_mib = OVS_MIB

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, "OVS-DPDK, NORMAL")
        self.note = "offloads off"

    def switch(self) -> None:
        ovs = Ovs(self.room, self.bench.cores, self.netns.name, Huge(self.bench.huge, OVS_MIB))
        ovs.bridge("br0", "02:00:00:00:00:aa")
        for n, path in enumerate(self.sockets):
            ovs.port("br0", f"vh{n}", "type=dpdkvhostuserclient", f"options:vhost-server-path={path}")
        ovs.flows("br0", "actions=NORMAL")


def cases(bench: Bench) -> list[Case]:
    taps = [ByTap(bench, Bridge()), ByTap(bench, SluiceNetdev("afpacket"))]
    return [Case("machines/tcp", GOODPUT, [SluiceMachines(bench), *taps, OvsMachines(bench)])]
