"""A private Open vSwitch: its own database, daemon and directory, so that it meets no other on the machine."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from .jobs import Failed, Place, Room, run, wait_for
from .machine import Cores

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PLAIN = "/usr/lib/openvswitch-switch/ovs-vswitchd"
DPDK = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
MAX_FLOWS = 2_000_000
IDLE_MS = 600_000
TRIES = 10


@dataclass(frozen=True)
class Huge:
    """Huge pages for a daemon with DPDK."""

    mount: Path
    mib: int


class Ovs:
    """Open vSwitch in a network namespace, with DPDK if it gets huge pages."""

    def __init__(self, room: Room, cores: Cores, netns: str, huge: Huge | None = None) -> None:
        self.room, self.cores, self.netns = room, cores, netns
        self.control = room.dir / "vswitchd.ctl"
        run("ovsdb-tool", "create", room.dir / "conf.db", SCHEMA)
        remote = f"punix:{room.dir}/db.sock"
        room.start(Place(cores.generator), "ovsdb-server", room.dir / "conf.db", f"--remote={remote}",
                   f"--unixctl={room.dir}/ovsdb.ctl", "--no-chdir", f"--log-file={room.dir}/db.log")
        wait_for("ovsdb-server", 10, (room.dir / "db.sock").exists)
        self.vsctl("--no-wait", "init")
        self.set_up(huge)
        self.job = self.daemon(DPDK if huge else PLAIN)
        if huge:
            ready = lambda: self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized").strip() == "true"
            wait_for("DPDK in Open vSwitch", 30, ready)

    def set_up(self, huge: Huge | None) -> None:
        """What must be known before the daemon starts. Flows stay while others are measured, and are
        not looked through all the time: a daemon that cannot do that in a second holds fewer from then on."""
        settings = {
            "pmd-cpu-mask": hex(1 << self.cores.switch), "n-revalidator-threads": 1, "n-handler-threads": 1,
            "flow-limit": MAX_FLOWS, "max-idle": IDLE_MS, "max-revalidator": IDLE_MS,
        }
        if huge:
            extra = f"--huge-dir={huge.mount} --file-prefix={self.room.dir.name} --no-pci --no-telemetry"
            settings |= {
                "dpdk-init": "true", "dpdk-lcore-mask": hex(1 << self.cores.generator),
                "dpdk-alloc-mem": huge.mib, "dpdk-extra": f'"{extra}"',
            }
        pairs = [f"other_config:{key}={value}" for key, value in settings.items()]
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *pairs)

    def daemon(self, binary: str):
        place = Place(self.cores.generator, self.netns)
        job = self.room.start(place, binary, self.db, f"--unixctl={self.control}", "--no-chdir",
                              f"--pidfile={self.room.dir}/vswitchd.pid", f"--log-file={self.room.dir}/vswitchd.log",
                              "-vconsole:off")

        def answers() -> bool:
            job.check()
            try:
                return bool(self.appctl("version"))
            except (OSError, Failed):
                return False

        wait_for("ovs-vswitchd", 40, answers)
        return job

    @property
    def db(self) -> str:
        return f"unix:{self.room.dir}/db.sock"

    def vsctl(self, *argv: object) -> str:
        return run("ovs-vsctl", f"--db={self.db}", "--timeout=30", *argv)

    def appctl(self, method: str, *params: object) -> str:
        """What ovs-appctl does, without a process for each call."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(60)
            client.connect(str(self.control))
            request = {"id": 0, "method": method, "params": [str(p) for p in params]}
            client.sendall(json.dumps(request).encode())
            answer = b""
            while not answer.rstrip().endswith(b"}") or not is_json(answer):
                piece = client.recv(1 << 16)
                if not piece:
                    raise Failed(f"ovs-vswitchd hung up on {method}")
                answer += piece
        reply = json.loads(answer)
        if reply.get("error"):
            raise Failed(f"ovs-vswitchd: {method}: {reply['error'].strip()}")
        return reply["result"] or ""

    def bridge(self, name: str, mac: str, fail_mode: str = "secure") -> None:
        self.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev",
                   f"fail-mode={fail_mode}", f"other_config:hwaddr={mac}", "other_config:mac-table-size=1000000")

    def port(self, bridge: str, name: str, *settings: str) -> None:
        more = ["--", "set", "interface", name, *settings] if settings else []
        self.vsctl("add-port", bridge, name, *more)
        error = self.vsctl("get", "interface", name, "error").strip()
        if error != "[]":
            raise Failed(f"Open vSwitch, port {name}: {error}")

    def flows(self, bridge: str, *flows: str) -> None:
        """Replaces all flows of the bridge."""
        file = self.room.dir / "flows"
        file.write_text("".join(f"{flow}\n" for flow in flows))
        run("ovs-ofctl", "-O", "OpenFlow13", "replace-flows", f"unix:{self.room.dir}/{bridge}.mgmt", file)

    def more_flows(self) -> None:
        """Undoes the daemon's own lowering of its limit of flows, which follows the speed of its revalidator."""
        self.appctl("upcall/set-flow-limit", MAX_FLOWS)

    def cached_flows(self) -> int:
        found = re.search(r"flows\s*:\s*\(current (\d+)", self.appctl("upcall/show"))
        return int(found[1]) if found else 0

    def window(self, seconds: float) -> dict[str, float]:
        """What the poller did meanwhile: cycles/frame, Mpps, and the share of lookups each cache answered."""
        for _ in range(TRIES):
            self.appctl("dpif-netdev/pmd-stats-clear")
            time.sleep(seconds)
            found = parse_perf(self.appctl("dpif-netdev/pmd-perf-show", "-nh"))
            # The poller clears its counters when it gets to it, which may be in the midst of our window.
            if found["cycles"] > 0:
                return found
        raise Failed("ovs-vswitchd: its poller counts no cycles")


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
        return True
    except ValueError:
        return False


def parse_perf(text: str) -> dict[str, float]:
    """Figures of pmd-perf-show."""
    rate = re.search(r"Rx packets:\s*(\d+)\s*\(([\d.]+) Kpps, ([\d.]+) cycles/pkt\)", text)
    if not rate:
        return {"frames": 0, "rate": 0, "cycles": 0}
    figures = {"frames": int(rate[1]), "rate": float(rate[2]) / 1000, "cycles": float(rate[3])}
    for name, share in re.findall(r"- (Simple Match|EMC|SMC|Megaflow) hits:\s*\d+\s*\(\s*([\d.]+) %", text):
        figures[name] = float(share)
    upcalls = re.search(r"- Upcalls:\s*\d+\s*\(\s*([\d.]+) %", text)
    if upcalls:
        figures["Upcalls"] = float(upcalls[1])
    return figures
