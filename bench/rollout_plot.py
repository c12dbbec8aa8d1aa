"""build/rollout.svg: boards broken by a bad release against hours until a good one is through. Plain SVG, no library.

Both axes are logarithmic; down and left is better. Readable on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

LEFT, TOP, WIDTH, HEIGHT = 70, 50, 560, 360
HOURS, BROKEN = (0.1, 1.0, 10.0, 100.0), (1.0, 10.0, 100.0, 1000.0)
MOST_HOURS, MOST_BROKEN = 400.0, 2000.0
COLOURS = ("#1f883d", "#0969da", "#bf8700", "#8250df", "#cf222e")
AXES = "boards broken (up), hours until 85 % have a good release (right); down and left is better"
STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #6e7781 }
  .title { font-size: 14px; font-weight: 600 }
  .grid { stroke: #8c959f; stroke-opacity: .35 }
  @media (prefers-color-scheme: dark) { text { fill: #b1bac4 } .grid { stroke: #6e7681 } }
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of somebody; hours may be infinite: it never got through."""

    whose: str
    broken: float
    hours: float
    is_default: bool


def drawn(points: Sequence[Point]) -> str:
    """The picture as SVG text: full dots are defaults, rings are other settings."""
    title = "A release that silently bricks 10 % of 10,000 boards"
    width, height = LEFT + WIDTH + 160, TOP + HEIGHT + 50
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
        f'<text x="{LEFT}" y="38">{AXES}</text>',
    ]
    for hours in HOURS:
        x = _x(hours)
        lines.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{TOP + HEIGHT}"/>')
        lines.append(
            f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{hours:g} h</text>'
        )
    for broken in BROKEN:
        y = _y(broken)
        lines.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{LEFT + WIDTH}" y2="{y}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{broken:g}</text>')
    everybody = list(dict.fromkeys(point.whose for point in points))
    for number, whose in enumerate(everybody):
        colour = COLOURS[number % len(COLOURS)]
        y = TOP + 16 + number * 20
        lines.append(f'<circle cx="{LEFT + WIDTH + 24}" cy="{y - 4}" r="5" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + WIDTH + 36}" y="{y}">{escape(whose)}</text>')
    for point in points:
        colour = COLOURS[everybody.index(point.whose) % len(COLOURS)]
        fill = colour if point.is_default else "none"
        lines.append(
            f'<circle cx="{_x(point.hours)}" cy="{_y(point.broken)}" r="5" fill="{fill}"'
            f' stroke="{colour}" stroke-width="1.5"/>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _x(hours: float) -> float:
    share = math.log(min(hours, MOST_HOURS) / HOURS[0]) / math.log(MOST_HOURS / HOURS[0])
    return round(LEFT + WIDTH * share, 1)


def _y(broken: float) -> float:
    lowest, highest = BROKEN[0], MOST_BROKEN
    share = math.log(min(max(broken, lowest), highest) / lowest) / math.log(highest / lowest)
    return round(TOP + HEIGHT * (1 - share), 1)
