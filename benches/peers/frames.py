"""Frames for the contestants, as captures: whoever is measured in memory gets the very same file.

Flows are shuffled, by a fixed seed, so that no prefetcher guesses the next one. A short list is repeated, so
that one pass over the file is never tiny.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass
from pathlib import Path

SENDER = bytes.fromhex("020000000001")
RECEIVER = bytes.fromhex("020000000002")
VTEP = bytes.fromhex("0200000000bb")
"""Our tunnel endpoint, 10.0.0.1."""
FAR = bytes.fromhex("020000000099")
"""The other one, 10.0.0.2."""
VNI = 42
"""Of all kinds of tunnels."""
TUNNELS = ("vxlan", "gre", "geneve")
VLAN = 100
SHORTEST = 60
PASS = 256


@dataclass(frozen=True)
class Traffic:
    """What a capture holds: `kind` is tuples, pairs, vlan, vxlan, gre or geneve."""

    kind: str
    flows: int
    size: int = SHORTEST

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.flows}-{self.size}"


def side(flows: int) -> int:
    """Stations on either side so that each flow has a pair of its own."""
    return math.isqrt(flows - 1) + 1


def station(port: int, n: int) -> bytes:
    """The address of station `n` behind port 0 or 1."""
    return struct.pack("!BBI", 2, 0x0A + port, n)


def receivers(traffic: Traffic) -> list[bytes]:
    """All addresses that frames are for: what a bridge must have learned beforehand."""
    if traffic.kind == "pairs":
        return [station(1, n) for n in range(side(traffic.flows))]
    return [RECEIVER]


def senders(traffic: Traffic) -> list[bytes]:
    """All addresses that frames are from."""
    if traffic.kind == "pairs":
        return [station(0, n) for n in range(-(-traffic.flows // side(traffic.flows)))]
    return [SENDER]


def checksum(header: bytes) -> int:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def ipv4(src: bytes, dst: bytes, payload: int, protocol: int = 17) -> bytes:
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + payload, 0, 0x4000, 64, protocol, 0, src, dst)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:]


def datagram(addresses: bytes, flow: int, size: int) -> bytes:
    """A frame of UDP: `addresses` is all that stands before the EtherType; `flow` makes address and port."""
    payload = max(size - len(addresses) - 2 - 20, 8)
    source = struct.pack("!I", 0x0A010000 + (flow >> 8))
    udp = struct.pack("!HHHH", 1024 + (flow & 0xFF), 5789, payload, 0)
    packet = ipv4(source, bytes((10, 2, 0, 1)), payload) + udp
    return (addresses + b"\x08\x00" + packet).ljust(size, b"\0")


def in_tunnel(kind: str, inner: bytes, flow: int) -> bytes:
    """As the other endpoint sends it to ours: RFC 7348, RFC 2890 with a key, RFC 8926 without options."""
    addresses = VTEP + FAR + b"\x08\x00"
    ends = (bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)))
    if kind == "gre":
        body = struct.pack("!HHI", 0x2000, 0x6558, VNI) + inner
        return addresses + ipv4(*ends, len(body), 47) + body
    first, port = {"vxlan": (0x08000000, 4789), "geneve": (0x00006558, 6081)}[kind]
    body = struct.pack("!II", first, VNI << 8) + inner
    udp = struct.pack("!HHHH", 49152 + flow * 7919 % 16384, port, 8 + len(body), 0) + body
    return addresses + ipv4(*ends, len(udp)) + udp


def frame(traffic: Traffic, flow: int) -> bytes:
    """Frame of one flow."""
    if traffic.kind == "pairs":
        across = side(traffic.flows)
        addresses = station(1, flow % across) + station(0, flow // across)
        return datagram(addresses, flow, traffic.size)
    tag = struct.pack("!HH", 0x8100, VLAN) if traffic.kind == "vlan" else b""
    plain = datagram(RECEIVER + SENDER + tag, flow, traffic.size)
    return in_tunnel(traffic.kind, plain, flow) if traffic.kind in TUNNELS else plain


def frames(traffic: Traffic, flows: range) -> list[bytes]:
    """One pass over these flows, shuffled."""
    order = list(flows)
    random.Random(1).shuffle(order)
    once = [frame(traffic, flow) for flow in order]
    return once * max(1, PASS // len(once))


def write(traffic: Traffic, path: Path, flows: range | None = None) -> Path:
    """A capture of the traffic, or of some of its flows."""
    with path.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for one in frames(traffic, flows or range(traffic.flows)):
            out.write(struct.pack("<IIII", 0, 0, len(one), len(one)) + one)
    return path
