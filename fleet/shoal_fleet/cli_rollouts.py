"""`shoal rollout`: bringing a release to a group in guarded waves."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal_contract.exits import Exit
from shoal_fleet.cli_output import (
    AsJson,
    clock,
    print_json,
    print_table,
    printable,
    segment,
    size,
    target,
)
from shoal_fleet.errors import FleetError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal_fleet.client import FleetClient

POLL_S: Final = 0.5
PLAN_TIMEOUT_S: Final = 900.0
"""Every base may have to be estimated first."""

rollout_app = typer.Typer(help="Roll a release out, watch it, stop it.", no_args_is_help=True)

RolloutId = Annotated[int, typer.Argument(metavar="ID")]


@rollout_app.command(
    "start", epilog="Example: shoal rollout start digits@1.1.0 --group site=oslo --wait"
)
def start(
    context: typer.Context,
    release: Annotated[str, typer.Argument(help="name@version, or the beginning of an id.")],
    group: Annotated[
        str, typer.Option(help="key=value[,key=value], or a word for group=word; none: all nodes.")
    ] = "",
    first_wave: Annotated[
        int | None, typer.Option(min=1, help="Nodes of the first wave (default: 2 %, 6 to 20).")
    ] = None,
    budget: Annotated[
        float,
        typer.Option(min=0.001, help="Nodes that a wave may break beyond what is tolerable."),
    ] = 3.0,
    factor: Annotated[
        float, typer.Option(min=1, max=100, help="How much larger than the last a wave may be.")
    ] = 8.0,
    overdue_s: Annotated[
        float,
        typer.Option("--overdue", min=1, help="No answer for so many seconds is a failure."),
    ] = 1800.0,
    *,
    hold_on_any: Annotated[
        bool,
        typer.Option("--hold-on-any", help="Wait for a person at the first failure already."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a rollout."""
    with target(context).connect() as client:
        rollout = client.post(
            "/api/rollouts",
            {
                "release": release,
                "group": group,
                "first_wave": first_wave,
                "budget": budget,
                "factor": factor,
                "overdue_s": overdue_s,
                "hold_on_any": hold_on_any,
            },
        )
        if wait:
            rollout = _watch(client, rollout["id"], quiet=as_json)
    if as_json:
        print_json(rollout)
    elif not wait:
        typer.echo(f"rollout {rollout['id']} of {rollout['title']}: {len(rollout['nodes'])} nodes")
    if wait:
        _finish(rollout)


@rollout_app.command("plan", epilog="Example: shoal rollout plan digits@1.1.0 --group site=oslo")
def plan(
    context: typer.Context,
    release: Annotated[str, typer.Argument(help="name@version, or the beginning of an id.")],
    group: Annotated[
        str, typer.Option(help="key=value[,key=value], or a word for group=word; none: all nodes.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Say what a rollout would cost: for each base the boards, the bytes a board and in all.

    A figure with ~ is an estimate: that delta was not made yet. Nothing is sent and nothing is made.
    """
    with target(context).connect() as client:
        found = client.get(
            f"/api/releases/{segment(release)}/cost", group=group, timeout_s=PLAN_TIMEOUT_S
        )
    if as_json:
        print_json(found)
        return
    print_table(
        "Bases",
        ("base", "release", "boards", "delta", "full", "in all", "made in", "reason"),
        [_base_row(row, found["full_bytes"]) for row in found["bases"]],
    )
    is_exact = all(row["is_exact"] for row in found["bases"])
    typer.echo(
        printable(
            f"{found['title']} to {found['boards']} boards:"
            f" {'' if is_exact else '~'}{size(found['total_bytes'])}"
            f" ({size(found['full_total_bytes'])} without deltas),"
            f" and {size(found['other_bytes'])} a board beside the model"
        )
    )


@rollout_app.command("watch", epilog="Example: shoal rollout watch 3")
def watch(
    context: typer.Context,
    rollout: Annotated[int | None, typer.Argument(metavar="[ID]")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Watch a rollout (the newest one) until it is done, held or stopped."""
    with target(context).connect() as client:
        if rollout is None:
            found = client.get("/api/rollouts")
            if not found:
                raise FleetError("there is no rollout yet")
            rollout = found[0]["id"]
        last = _watch(client, int(rollout), quiet=as_json)
    if as_json:
        print_json(last)
    _finish(last)


@rollout_app.command("list", epilog="Example: shoal rollout list")
def list_rollouts(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the rollouts, newest first."""
    with target(context).connect() as client:
        found = client.get("/api/rollouts")
    if as_json:
        print_json(found)
        return
    print_table(
        "Rollouts",
        ("id", "release", "group", "status", "wave", "serving", "failed", "started", "reason"),
        [
            (
                str(row["id"]),
                row["title"],
                row["group"] or "all",
                row["status"],
                str(row["wave"]),
                str(row["counts"]["serving"]),
                str(row["counts"]["failed"]),
                clock(row["created_ms"]),
                row["reason"],
            )
            for row in found
        ],
    )


@rollout_app.command("show", epilog="Example: shoal rollout show 3")
def show(context: typer.Context, rollout: RolloutId, *, as_json: AsJson = False) -> None:
    """Show a rollout: its nodes, and every decision with its reason."""
    with target(context).connect() as client:
        found = client.get(f"/api/rollouts/{rollout}")
    if as_json:
        print_json(found)
        return
    typer.echo(_line(found))
    for delta in found["deltas"]:
        typer.echo(
            f"delta from {delta['base'][:12]}: {size(delta['size_bytes'])}"
            f" of {size(found['full_bytes'])}"
        )
    print_table(
        "Nodes",
        ("node", "standing", "wave", "phase", "reason"),
        [
            (row["node"], row["standing"], str(row["wave"]), row["phase"] or "-", row["reason"])
            for row in found["nodes"]
        ],
    )
    for entry in found["decisions"]:
        typer.echo(printable(f"{clock(entry['at_ms'])} {entry['text']}"))


@rollout_app.command("resume", epilog="Example: shoal rollout resume 3")
def resume(context: typer.Context, rollout: RolloutId, *, as_json: AsJson = False) -> None:
    """Go on with a rollout that is held."""
    with target(context).connect() as client:
        found = client.post(f"/api/rollouts/{rollout}/resume")
    print_json(found) if as_json else typer.echo(_line(found))


@rollout_app.command("stop", epilog="Example: shoal rollout stop 3 --back")
def stop(
    context: typer.Context,
    rollout: RolloutId,
    *,
    back: Annotated[
        bool, typer.Option("--back", help="Nodes that serve it go back to what they had, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """End a rollout: nodes that are not through go back to what they had."""
    with target(context).connect() as client:
        found = client.post(f"/api/rollouts/{rollout}/stop", {"back": back})
    print_json(found) if as_json else typer.echo(_line(found))


def _base_row(row: dict[str, Any], full_bytes: int) -> tuple[str, ...]:
    mark = "" if row["is_exact"] else "~"
    return (
        row["base"][:12] or "-",
        row["title"] or "-",
        str(row["boards"]),
        "-" if row["delta_bytes"] is None else mark + size(row["delta_bytes"]),
        size(full_bytes),
        mark + size(row["total_bytes"]),
        f"~{row['make_s']:g} s" if row["make_s"] else "-",
        row["reason"],
    )


def _watch(client: "FleetClient", rollout: int, *, quiet: bool) -> dict[str, Any]:
    show, live = _display(quiet=quiet)
    with live:
        while True:
            found: dict[str, Any] = client.get(f"/api/rollouts/{rollout}")
            show(found)
            if found["final"] or found["status"] == "held":
                return found
            time.sleep(POLL_S)


def _display(
    *, quiet: bool
) -> tuple[Callable[[dict[str, Any]], None], AbstractContextManager[object]]:
    """A live table at a terminal, new lines elsewhere, nothing when quiet."""
    if quiet:
        return (lambda _: None), nullcontext()
    if not sys.stdout.isatty():
        shown = ""

        def show_line(found: dict[str, Any]) -> None:
            nonlocal shown
            if (line := _line(found)) != shown:
                shown = line
                typer.echo(line)

        return show_line, nullcontext()
    from rich.live import Live  # noqa: PLC0415 - only at a terminal

    live = Live(refresh_per_second=4)
    return (lambda found: live.update(_table(found))), live


def _table(found: dict[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415 - only at a terminal
    from rich.text import Text  # noqa: PLC0415

    table = Table("node", "wave", "standing", "phase", "reason", title=_line(found))
    for row in found["nodes"][:40]:
        cells = (row["node"], str(row["wave"]), row["standing"], row["phase"] or "-", row["reason"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if len(found["nodes"]) > 40:  # noqa: PLR2004 - what fits on a screen
        table.add_row(f"and {len(found['nodes']) - 40} more", "", "", "", "")
    return table


def _line(found: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in found["counts"].items() if count)
    text = (
        f"rollout {found['id']} {found['title']} {found['status']}, wave {found['wave']}: {counts}"
    )
    return printable(f"{text} ({found['reason']})" if found["reason"] else text)


def _finish(found: dict[str, Any]) -> None:
    match found["status"]:
        case "done" if not found["counts"]["failed"]:
            return
        case "held":
            raise FleetError(
                f"rollout {found['id']} is held: {found['reason']}"
                f" (shoal rollout resume {found['id']}, or stop)"
            )
        case "stopped":
            raise FleetError(f"rollout {found['id']} stopped: {found['reason']}")
        case _:
            raise typer.Exit(Exit.FAILED)
