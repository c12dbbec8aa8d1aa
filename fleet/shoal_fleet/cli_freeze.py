"""`shoal freeze`: a time in which no rollout goes on."""

import re
import time
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from shoal_fleet.cli_output import AsJson, clock, print_json, printable, target
from shoal_fleet.errors import UsageError

freeze_app = typer.Typer(help="Let no rollout open a wave or give a lease.", no_args_is_help=True)

_UNIT_S: Final = {"min": 60, "h": 3600, "d": 86400}
_LENGTH = re.compile(r"(\d{1,5})\s*(min|h|d)")


@freeze_app.command(
    "on", epilog="Example: shoal freeze on --until 2026-12-27T08:00 --reason Christmas"
)
def on(
    context: typer.Context,
    until: Annotated[
        str, typer.Option(help="A moment by this machine's clock, or a length: 90min, 12h, 3d.")
    ] = "",
    reason: Annotated[str, typer.Option(help="For those who wonder.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Freeze the fleet, until then or until it is ended."""
    body = {"reason": reason, "until_ms": parse_until(until, now_s=time.time()) if until else None}
    with target(context).connect() as client:
        found = client.post("/api/freeze", body)
    _show(found, as_json=as_json)


@freeze_app.command("off", epilog="Example: shoal freeze off")
def off(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Let rollouts go on."""
    with target(context).connect() as client:
        found = client.delete("/api/freeze")
    _show(found, as_json=as_json)


@freeze_app.command("show", epilog="Example: shoal freeze show")
def show(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Whether the fleet is frozen, by whom and why."""
    with target(context).connect() as client:
        found = client.get("/api/freeze")
    _show(found, as_json=as_json)


def parse_until(text: str, *, now_s: float) -> int:
    """A moment in Unix milliseconds: `2026-12-27T08:00` by this machine's clock, or `12h` from now.

    Raises:
        UsageError: it is neither.
    """
    if (length := _LENGTH.fullmatch(text.strip())) is not None:
        return round((now_s + int(length[1]) * _UNIT_S[length[2]]) * 1000)
    try:
        return round(datetime.fromisoformat(text.strip()).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError, OSError) as exc:
        raise UsageError(f"{text!r} is no moment: 2026-12-27T08:00, or 12h") from exc


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if not found["on"]:
        typer.echo("the fleet is not frozen")
        return
    until = f"until {clock(found['until_ms'])}" if found["until_ms"] else "until it is ended"
    who = f" by {found['by']}" if found["by"] else ""
    why = f": {found['reason']}" if found["reason"] else ""
    typer.echo(printable(f"the fleet is frozen {until}{who}{why}"))
