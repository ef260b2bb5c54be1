"""Bars, written by hand: one cluster per case, each on its own scale, the median as a bar, the best as a tick."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from .stats import number

WIDTH, LEFT, RIGHT = 860, 330, 110
BAR, GAP, HEAD = 16, 14, 44
OURS, THEIRS = "#1b6ca8", "#c9a227"


@dataclass(frozen=True)
class Bar:
    """A contestant."""

    name: str
    median: float
    best: float


@dataclass(frozen=True)
class Cluster:
    """A case."""

    title: str
    bars: list[Bar]

    def height(self) -> int:
        return BAR * (len(self.bars) + 1) + GAP


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(words)}</text>'


def bar(one: Bar, y: float, scale: float) -> list[str]:
    colour = OURS if one.name.startswith("Sluice") else THEIRS
    width, tick = one.median * scale, LEFT + one.best * scale
    return [
        text(LEFT - 8, y + BAR - 4, one.name, 'text-anchor="end"'),
        f'<rect x="{LEFT}" y="{y + 2:.0f}" width="{width:.1f}" height="{BAR - 4}" fill="{colour}"/>',
        f'<path d="M{tick:.1f} {y:.0f}v{BAR}" stroke="#222" stroke-width="2"/>',
        text(LEFT + max(width, one.best * scale) + 8, y + BAR - 4, number(one.median)),
    ]


def cluster(one: Cluster, y: float) -> list[str]:
    top = max((max(b.median, b.best) for b in one.bars), default=0) or 1
    scale = (WIDTH - LEFT - RIGHT) / top
    out = [text(8, y + BAR - 4, one.title, 'font-weight="bold"')]
    for row, b in enumerate(one.bars, start=1):
        out += bar(b, y + row * BAR, scale)
    return out


def draw(title: str, clusters: list[Cluster]) -> str:
    """The whole picture."""
    height = HEAD + sum(c.height() for c in clusters)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
           'font-size="12">', f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
           text(8, 22, f"{title}: median (bar) and best window (tick)", 'font-size="16"')]
    y = float(HEAD)
    for one in clusters:
        out += cluster(one, y)
        y += one.height()
    return "\n".join([*out, "</svg>", ""])
