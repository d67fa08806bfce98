"""Two figures of each cell as an SVG: what is kept against what it costs.

Colours follow the reader's light or dark scheme; a file opened by itself shows the light one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bitgate.metric import number

WIDTH, HEIGHT = 760, 460  #: of the picture, in pixels
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 40, 56  #: margins of the axes
CHARACTER = 6.2  #: width of one at 11 pixels, nearly
LINE = 13.0  #: height of a label
MARGIN = 0.06  #: of what is shown, left free on each side


@dataclass(frozen=True)
class Point:
    """A cell: where it stands, the interval of each figure (the figure itself where exact)."""

    name: str
    x: float
    y: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    #: no other is at least as good in both figures
    on_front: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis says, and, with `scale`, by how much its figures are multiplied for reading."""

    title: str
    logarithmic: bool = False
    scale: float = 1.0


STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}"
    ".a{stroke:#888;fill:none}.g{stroke:#ddd}.e{stroke:#7a8aa0}.p{fill:#7a8aa0}"
    ".f{fill:#c2410c}.l{stroke:#c2410c;fill:none;stroke-dasharray:4 3}.b{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#333}.b{fill:#15181d}"
    ".p{fill:#93a4bd}.e{stroke:#93a4bd}.f{fill:#fb923c}.l{stroke:#fb923c}}"
)


def scatter(title: str, points: Sequence[Point], x: Axis, y: Axis) -> str:
    """The picture; `points` are finite, and above 0 where their axis is logarithmic.

    Raises:
        ValueError: if there are no points.
    """
    if not points:
        raise ValueError("no points")
    across = _place(x, [v for p in points for v in (p.x, *p.x_ends)], LEFT, WIDTH - RIGHT)
    up = _place(y, [v for p in points for v in (p.y, *p.y_ends)], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="b" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="t" x="{LEFT}" y="22">{escape(title)}</text>',
        *_x_axis(x, across),
        *_y_axis(y, up),
    ]
    edge = sorted((p for p in points if p.on_front), key=lambda p: p.x)
    if len(edge) > 1:
        line = " ".join(f"{across.at(p.x):.1f},{up.at(p.y):.1f}" for p in edge)
        parts.append(f'<polyline class="l" points="{line}"/>')
    for p in points:
        parts += _point(p, across, up)
    parts += _labels([(p, across.at(p.x), up.at(p.y)) for p in points])
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Place:
    """From a figure to a pixel."""

    at: Callable[[float], float]
    ticks: Sequence[float]


def _place(axis: Axis, values: Sequence[float], first: float, last: float) -> _Place:
    change: Callable[[float], float] = math.log10 if axis.logarithmic else float
    shown = [change(value * axis.scale) for value in values]
    low, high = min(shown), max(shown)
    room = (high - low or abs(high) or 1.0) * MARGIN
    low, high = low - room, high + room

    def at(value: float) -> float:
        return first + (change(value * axis.scale) - low) / (high - low) * (last - first)

    ticks = _log_ticks(low, high) if axis.logarithmic else _ticks(low, high)
    return _Place(at, [tick / axis.scale for tick in ticks])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between, five or so."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, given logarithms; over many decades only the powers."""
    digits = (1, 2, 5) if high - low < 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [d * 10.0**power for power in powers for d in digits]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def _x_axis(axis: Axis, place: _Place) -> list[str]:
    bottom = HEIGHT - BOTTOM
    out = [f'<path class="a" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']
    for tick in place.ticks:
        at = place.at(tick)
        out.append(f'<path class="g" d="M{at:.1f} {TOP}V{bottom}"/>')
        out.append(
            f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{number(tick * axis.scale)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    title = f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(axis.title)}</text>'
    return [*out, title]


def _y_axis(axis: Axis, place: _Place) -> list[str]:
    out = [f'<path class="a" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}"/>']
    for tick in place.ticks:
        at = place.at(tick)
        out.append(f'<path class="g" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        out.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">'
            f"{number(tick * axis.scale)}</text>"
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 18 {middle})" text-anchor="middle"'
    return [*out, f'<text x="18" y="{middle}" {turned}>{escape(axis.title)}</text>']


def _point(p: Point, across: _Place, up: _Place) -> list[str]:
    x, y = across.at(p.x), up.at(p.y)
    out = []
    if p.x_ends[0] < p.x_ends[1]:
        low, high = map(across.at, p.x_ends)
        out.append(f'<path class="e" d="M{low:.1f} {y:.1f}H{high:.1f}"/>')
    if p.y_ends[0] < p.y_ends[1]:
        low, high = map(up.at, p.y_ends)
        out.append(f'<path class="e" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
    mark = "f" if p.on_front else "p"
    out.append(f'<circle class="{mark}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return out


def _labels(placed: Sequence[tuple[Point, float, float]]) -> list[str]:
    """Beside each point, where nothing else stands: tried around it, nearer places first."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in placed]
    out = []
    for p, x, y in placed:
        wide = CHARACTER * len(p.name)
        tries = [
            (x + 8 if right else x - 8 - wide, y + down * LINE)
            for down in (0.0, -1, 1, -2, 2, -3, 3, -4, 4)
            for right in (True, False)
        ]
        boxes = [(left, mid - 6, left + wide, mid + 6) for left, mid in tries]
        inside = [b for b in boxes if b[0] > LEFT and b[2] < WIDTH and TOP < b[1] < HEIGHT - BOTTOM]
        free = [b for b in inside if not any(_overlap(b, other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        out.append(f'<text x="{box[0]:.1f}" y="{box[1] + 10:.1f}">{escape(p.name)}</text>')
    return out


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
