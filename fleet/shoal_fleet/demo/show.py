"""Shows a running demo: a live view at a terminal, one line an act elsewhere."""

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from shoal_fleet.demo.facts import Facts, table
from shoal_fleet.demo.site import MODEL
from shoal_fleet.demo.story import Progress


class View:
    """Renders the progress of a story."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._spinner = Spinner("dots")
        self._began_s = time.monotonic()

    def __rich__(self) -> RenderableType:
        """The acts so far, the one that runs, and the boards."""
        progress = self._progress
        lines = _acts(progress)
        if progress.act:
            note = f"  {progress.note}" if progress.note else ""
            self._spinner.update(text=Text.assemble((progress.act, "bold"), (note, "cyan")))
            lines.append(self._spinner)
        if progress.rollout is not None:
            lines.append(_rollout(progress.rollout))
        if progress.nodes:
            lines.append(_boards(progress.nodes))
        lines.append(Text(f"{time.monotonic() - self._began_s:.0f} s", style="dim"))
        return Group(*lines)


@contextmanager
def live(console: Console, progress: Progress) -> Iterator[None]:
    """Show `progress` until the context is left: live at a terminal, else a line when an act ends."""
    if console.is_terminal:
        with Live(View(progress), console=console, refresh_per_second=8):
            yield
        return
    began_s = time.monotonic()

    def say(act: str) -> None:
        console.print(f"{time.monotonic() - began_s:4.0f} s  {act}", highlight=False, markup=False)

    progress.on_begin = say
    yield


def picture(progress: Progress, facts: Facts) -> str:
    """An SVG of the finished run, as a terminal would show it."""
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo", "bold"))
    console.print(*_acts(progress), sep="\n")
    console.print(_boards(progress.nodes), table(facts), sep="\n")
    # No web fonts: the picture loads nothing.
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="shoal"), flags=re.DOTALL)


def _acts(progress: Progress) -> list[RenderableType]:
    return [Text.assemble(("  ✓ ", "green"), act) for act in progress.acts if act]


def _rollout(rollout: dict[str, Any]) -> RenderableType:
    counts = rollout["counts"]
    total = sum(counts.values())
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        f"    wave {rollout['wave']}",
        ProgressBar(total=max(1, total), completed=counts.get("succeeded", 0), width=30),
        ", ".join(f"{name} {count}" for name, count in counts.items() if count),
    )
    return grid


def _boards(nodes: list[dict[str, Any]]) -> RenderableType:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("board", "", "model", "doing", "free disk", "temperature", "neighbours"):
        table.add_column(heading)
    for node in nodes:
        reported = node["reported"]
        if reported is None:
            continue
        model = next((m for m in reported["models"] if m["model"] == MODEL), None)
        hardware = reported["hardware"]
        free, degrees = hardware["disk_free_bytes"], hardware["temperature_c"]
        table.add_row(
            node["node"],
            Text("online", "green") if node["online"] else Text("cut off", "red"),
            f"{MODEL} {model['version']}" if model and model["version"] else "none",
            f"{model['phase']} {model['reason']}".strip()[:40] if model else "",
            f"{free / 1e9:.0f} GB" if free is not None else "-",
            f"{degrees:.0f} °C" if degrees is not None else "-",
            str(len(reported["peers"])),
        )
    return table
