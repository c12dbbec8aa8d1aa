"""docs/benchmarks/delta.svg: a bar a pair for our delta, a mark for the best peer's. Plain SVG, no library.

Logarithmic in bytes as a share of the new file; readable on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

ROW, BAR, GAP = 17, 5, 10
LEFT, WIDTH, RIGHT = 210, 620, 90
TOP, BOTTOM = 64, 34
LEAST_PERCENT, MOST_PERCENT = 0.03, 100.0
TICKS = (0.1, 1.0, 10.0, 100.0)
# Mid tones: they stand out against white and against GitHub's dark page alike.
STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #6e7781 }
  .title { font-size: 14px; font-weight: 600 } .strong { font-weight: 600 }
  .grid { stroke: #8c959f; stroke-opacity: .35 }
  .ours { fill: #1f883d } .peer { fill: #8c959f } .lost { fill: #cf222e }
  @media (prefers-color-scheme: dark) {
    text { fill: #b1bac4 } .grid { stroke: #6e7681 }
    .ours { fill: #3fb950 } .peer { fill: #6e7681 } .lost { fill: #f85149 }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One pair: sizes in bytes, and who the best peer was."""

    pair: str
    ours_bytes: float
    best_bytes: float
    new_bytes: float
    best: str

    @property
    def ratio(self) -> float:
        """Below 1: ours is the smaller one."""
        return self.ours_bytes / self.best_bytes


def drawn(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """The picture as SVG text: groups of bars, in the order given."""
    rows = sum(len(bars) for _, bars in groups)
    height = TOP + rows * ROW + len(groups) * (ROW + GAP) + BOTTOM
    width = LEFT + WIDTH + RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
        *_key(),
    ]
    for tick in TICKS:
        x = LEFT + _x(tick)
        lines += [
            f'<line class="grid" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - BOTTOM}"/>',
            f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{tick:g} %</text>',
        ]
    y = TOP
    for name, bars in groups:
        lines.append(
            f'<text class="strong" x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
        )
        y += ROW
        for bar in bars:
            lines += _row(bar, y)
            y += ROW
        y += GAP
    return "\n".join([*lines, "</svg>", ""])


def _key() -> list[str]:
    lines, x = [], LEFT
    for kind, text in (
        ("ours", "shoal-delta"),
        ("lost", "shoal-delta, larger than the best peer"),
        ("peer", "the best of the other tools on that pair"),
    ):
        lines += [
            f'<rect class="{kind}" x="{x}" y="31" width="14" height="8" rx="1.5"/>',
            f'<text x="{x + 19}" y="39">{text}</text>',
        ]
        x += 40 + 6 * len(text)
    return lines


def _row(bar: Bar, y: int) -> list[str]:
    ours, best = (_x(100 * size / bar.new_bytes) for size in (bar.ours_bytes, bar.best_bytes))
    kind = "lost" if bar.ratio > 1 else "ours"
    tip = f"{bar.pair}: {bar.ours_bytes:,.0f} bytes, {bar.best} {bar.best_bytes:,.0f}"
    return [
        f"<g><title>{escape(tip)}</title>",
        f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(bar.pair)}</text>',
        f'<rect class="{kind}" x="{LEFT}" y="{y + 2}" width="{ours:.1f}" height="{BAR}" rx="1.5"/>',
        f'<rect class="peer" x="{LEFT}" y="{y + 3 + BAR}" width="{best:.1f}" height="{BAR}" rx="1.5"/>',
        f'<text x="{LEFT + max(ours, best) + 6:.1f}" y="{y + 11}">{bar.ratio:.2f}</text></g>',
    ]


def _x(percent: float) -> float:
    least, most = math.log(LEAST_PERCENT), math.log(MOST_PERCENT)
    share = (math.log(min(max(percent, LEAST_PERCENT), MOST_PERCENT)) - least) / (most - least)
    return WIDTH * share
