"""How a rollout is shown while it goes on: waves and time at a terminal, one line for each change elsewhere."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import typer

from shoal_contract.exits import Exit
from shoal_fleet.cli_output import printable, size
from shoal_fleet.errors import FleetError

if TYPE_CHECKING:
    from rich.console import Group

    from shoal_fleet.client import FleetClient

POLL_S: Final = 0.5
MAX_NODES: Final = 20
MAX_WAVES: Final = 8
BAR_CELLS: Final = 24
_WAITS_FOR_A_PERSON: Final = frozenset({"held", "paused", "awaiting"})


def follow(client: "FleetClient", rollout: int, *, quiet: bool) -> dict[str, Any]:
    """The rollout when it is at its end, or waits for a person."""
    show, live = _display(quiet=quiet)
    with live:
        while True:
            found: dict[str, Any] = client.get(f"/api/rollouts/{rollout}")
            show(found)
            if found["final"] or found["status"] in _WAITS_FOR_A_PERSON:
                return found
            time.sleep(POLL_S)


def line(found: dict[str, Any]) -> str:
    """The rollout in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in found["counts"].items() if count)
    text = (
        f"rollout {found['id']} {found['title']} {found['status']}, wave {found['wave']}: {counts}"
    )
    if found["status"] == "preparing" and (progress := preparing(found)):
        text += f", {progress}"
    if found.get("frozen"):
        text += ", the fleet is frozen"
    return printable(f"{text} ({found['reason']})" if found["reason"] else text)


def preparing(found: dict[str, Any]) -> str:
    """How many of the deltas that the next wave needs are built; empty: none is needed."""
    bases = found.get("bases") or []
    if not bases:
        return ""
    return f"deltas {sum(row['is_settled'] for row in bases)} of {len(bases)}"


def finish(found: dict[str, Any]) -> None:
    """End the command as the rollout ended.

    Raises:
        FleetError: it stopped, or waits for a person.
    """
    number = found["id"]
    match found["status"]:
        case "done" if not found["counts"]["failed"]:
            return
        case "held":
            raise FleetError(
                f"rollout {number} is held: {found['reason']}"
                f" (shoal rollout resume {number}, or stop)"
            )
        case "paused":
            raise FleetError(
                f"rollout {number} is paused: {found['reason']} (shoal rollout resume {number})"
            )
        case "awaiting":
            raise FleetError(
                f"rollout {number} waits: {found['reason']} (shoal rollout approve {number})"
            )
        case "stopped":
            raise FleetError(f"rollout {number} stopped: {found['reason']}")
        case _:
            raise typer.Exit(Exit.FAILED)


def duration(seconds: float | None) -> str:
    """A length of time for people: `2 h 5 min`."""
    if seconds is None:
        return "?"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"


def waves(sizes: list[int]) -> str:
    """Sizes of waves in a line."""
    shown = ", ".join(map(str, sizes[:MAX_WAVES]))
    more = len(sizes) - MAX_WAVES
    return f"{shown} and {more} more" if more > 0 else shown


def _display(
    *, quiet: bool
) -> tuple[Callable[[dict[str, Any]], None], AbstractContextManager[object]]:
    """A live picture at a terminal, new lines elsewhere, nothing when quiet."""
    if quiet:
        return (lambda _: None), nullcontext()
    if not sys.stdout.isatty():
        shown = ""

        def show_line(found: dict[str, Any]) -> None:
            nonlocal shown
            if (text := line(found)) != shown:
                shown = text
                typer.echo(text)

        return show_line, nullcontext()
    from rich.live import Live  # noqa: PLC0415 - only at a terminal

    live = Live(refresh_per_second=4)
    return (lambda found: live.update(picture(found))), live


def picture(found: dict[str, Any]) -> "Group":
    """The rollout as a terminal shows it: the waves, what nodes wait for, who is at it or failed."""
    from rich.console import Group  # noqa: PLC0415 - only at a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(
        "wave", "", "leases", "serving", "failed", title=line(found), title_justify="left"
    )
    for row in wave_rows(found):
        table.add_row(*(Text(printable(cell)) for cell in row))
    notes = [text for text in _notes(found) if text]
    nodes = Table("node", "wave", "standing", "phase", "reason")
    at_it = [row for row in found["nodes"] if row["standing"] in {"offered", "failed"}]
    for row in at_it[:MAX_NODES]:
        cells = (row["node"], str(row["wave"]), row["standing"], row["phase"] or "-", row["reason"])
        nodes.add_row(*(Text(printable(cell)) for cell in cells))
    if len(at_it) > MAX_NODES:
        nodes.add_row(f"and {len(at_it) - MAX_NODES} more", "", "", "", "")
    return Group(table, *(Text(printable(text)) for text in notes), *([nodes] if at_it else []))


def wave_rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """A row for each wave so far, and for those to come: its number, a bar, leases, serving, failed."""
    rows = []
    for wave in range(1, found["wave"] + 1):
        nodes = [row for row in found["nodes"] if row["wave"] == wave]
        serving = sum(row["standing"] == "serving" for row in nodes)
        failed = sum(row["standing"] == "failed" for row in nodes)
        size_ = found["wave_size"] if wave == found["wave"] else len(nodes)
        done = BAR_CELLS * (serving + failed) // max(1, size_)
        bar = "█" * done + "░" * (BAR_CELLS - done)
        rows.append((str(wave), bar, str(size_), str(serving), str(failed)))
    free = max(0, found["wave_size"] - found["claimed"])
    coming = found["waves"][1:] if free and found["wave"] else found["waves"]
    for ahead, nodes_ in enumerate(coming[:MAX_WAVES], start=found["wave"] + 1):
        rows.append((str(ahead), "", f"~{nodes_}", "", ""))
    return rows


def _notes(found: dict[str, Any]) -> list[str]:
    waits = ", ".join(f"{nodes} because {why}" for why, nodes in found["waits"].items())
    eta = found["eta_s"]
    return [
        f"next wave: {found['gate']}" if found["gate"] else "",
        preparing(found),
        *(
            f"  {row['base'][:12]} on {row['nodes']}: {_delta(row)}"
            for row in found["bases"][:MAX_WAVES]
        ),
        f"waiting: {waits}" if waits else "",
        f"about {duration(eta)} while nodes are there and nothing fails" if eta else "",
    ]


def _delta(row: dict[str, Any]) -> str:
    if row["delta_bytes"] is not None:
        return f"delta of {size(row['delta_bytes'])}"
    return "full file" if row["is_settled"] else "delta is being built"
