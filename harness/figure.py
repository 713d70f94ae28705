"""Score against cost as an SVG, from a judged table: one panel a side, intervals as bars, names beside it.

Written by hand: the same records give the same bytes on every machine, so that a stale figure can be told.
Colours follow the reader's light or dark preference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from harness.page import SIDES
from harness.tables import AVERAGE
from harness.verdict import TableVerdict

WIDTH, LEFT, RIGHT = 860, 62, 190  #: pixels: all, left of a panel, right of it (for the names)
TOP, BOTTOM = 46, 48  #: above and below a panel
LINE = 15  #: from name to name
LEAST = 220  #: a panel's height at least
WHAT = {"score": "score", "retention": "percent of the teacher's score"}

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 13px; }
.note { font-size: 11px; fill: #59636e; }
.axis { stroke: #818b98; fill: none; }
.grid { stroke: #d1d9e0; fill: none; }
.lead { stroke: #afb8c1; fill: none; stroke-width: 0.7; }
.bar { stroke-width: 1.5; }
.dual { fill: #0969da; stroke: #0969da; }
.other { fill: #bc4c00; stroke: #bc4c00; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .note { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .lead { stroke: #656c76; }
  .dual { fill: #58a6ff; stroke: #58a6ff; }
  .other { fill: #f0883e; stroke: #f0883e; }
}
"""


@dataclass(frozen=True)
class Point:
    """A trained row: what it cost in seconds and what it scored in points."""

    name: str
    dual: bool  #: a dual-space method
    cost: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside, three to six of them."""
        step = _round_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def _round_step(about: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, at least ``about`` but for rounding."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= about * 0.999)


def points(result: TableVerdict, side: str) -> list[Point]:
    """The rows of a side that were trained and measured, best first."""
    found = []
    for row in result.rows.values():
        measured = row.cells[AVERAGE].measured
        if row.row.side == side and row.row.trained and measured and row.cost and row.cost.train_seconds:
            dual = row.row.method.startswith("dskd")
            found.append(
                Point(row.row.label, dual, row.cost.train_seconds, measured.mean, measured.low, measured.high)
            )
    return sorted(found, key=lambda point: (-point.mean, point.name))


def svg(result: TableVerdict) -> str:
    """The figure of a table; every side that has a trained row gets a panel."""
    panels = [(side, found) for side in result.table.sides if (found := points(result, side))]
    bodies, top = [], 0
    for side, found in panels:
        height = max(LEAST, LINE * len(found))
        bodies.append(_panel(result, side, found, top + TOP, height))
        top += TOP + height + BOTTOM
    what = WHAT[result.table.value]
    title = f"Table {result.table.id}, {result.scale}: {what} against training time, 95 % intervals"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
        f'height="{top}" role="img" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        *(line for body in bodies for line in body),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _panel(result: TableVerdict, side: str, found: Sequence[Point], top: int, height: int) -> list[str]:
    across = _axis([point.cost for point in found], LEFT, WIDTH - RIGHT - 20)
    up = _axis([value for point in found for value in (point.low, point.high)], top + height, top)
    pair = result.table.pair(result.scale, side)
    lines = [
        _text(LEFT, top - 26, f"{SIDES[side]}, {pair}", "title"),
        _text(LEFT, top - 10, _references(result, side, found), "note"),
        *_axes(across, up, f"average {WHAT[result.table.value]}"),
    ]
    heights = spread([up.at(point.mean) for point in found], top, top + height)
    for point, y in zip(found, heights, strict=True):
        lines += _mark(point, across.at(point.cost), up, y)
    return lines


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis with a little room around its values."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 1.0
    return Axis(low - room, high + room, start, end)


def _references(result: TableVerdict, side: str, found: Sequence[Point]) -> str:
    """Teacher and untrained student in words: they cost no training, and would squeeze the rest together."""
    said = []
    for row in result.rows.values():
        measured = row.cells[AVERAGE].measured
        if row.row.side == side and not row.row.trained and measured:
            said.append(f"{row.row.label} {measured.mean:.2f} [{measured.low:.2f}, {measured.high:.2f}]")
    if len({point.dual for point in found}) > 1:
        said.append("blue: dual-space methods, orange: others")
    return "; ".join(said)


def _axes(across: Axis, up: Axis, what: str) -> list[str]:
    lines = []
    for value in up.ticks():
        y = up.at(value)
        lines.append(_line(across.start, y, across.end, y, "grid"))
        lines.append(_text(across.start - 8, y + 4, f"{value:g}", anchor="end"))
    for value in across.ticks():
        x = across.at(value)
        lines.append(_line(x, up.start, x, up.start + 4, "axis"))
        lines.append(_text(x, up.start + 18, f"{value:g}", anchor="middle"))
    lines.append(_line(across.start, up.start, across.end, up.start, "axis"))
    middle = (across.start + across.end) / 2
    said = "seconds of training a seed, teacher's states ready"
    lines.append(_text(middle, up.start + 36, said, anchor="middle"))
    y = (up.start + up.end) / 2
    turn = f' transform="rotate(-90 16 {y:.1f})"'
    return [*lines, _text(16, y, what, anchor="middle", more=turn)]


def _mark(point: Point, x: float, up: Axis, label: float) -> list[str]:
    """A point with its interval, led to its name in the margin."""
    kind = "dual" if point.dual else "other"
    y, edge = up.at(point.mean), WIDTH - RIGHT
    said = f"{point.name}: {point.mean:.2f} [{point.low:.2f}, {point.high:.2f}], {point.cost:.1f} s"
    return [
        f'<path class="lead" d="M{x:.1f} {y:.1f}L{edge - 10} {label:.1f}H{edge - 2}"/>',
        f"<g><title>{escape(said)}</title>",
        _line(x, up.at(point.low), x, up.at(point.high), f"bar {kind}"),
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></g>',
        _text(edge + 2, label + 4, f"{point.mean:.2f} {_row_name(point.name)}"),
    ]


def _row_name(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def spread(wanted: Sequence[float], top: float, bottom: float, gap: float = LINE) -> list[float]:
    """Heights near the wanted ones (ascending), ``gap`` apart and between top and bottom where they fit."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max([height, top + gap / 2, *(before + gap for before in placed[-1:])]))
    limit = bottom - gap / 2
    for number in range(len(placed) - 1, -1, -1):
        placed[number] = min(placed[number], limit)
        limit = placed[number] - gap
    return placed


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", more: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}"{placed}{more}>{escape(text)}</text>'
