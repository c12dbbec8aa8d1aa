"""`shoal mandate`: who else may command nodes, and what may run on them at all."""

import re
from typing import Annotated, Any, Final

import typer

from shoal_fleet.cli_output import (
    AsJson,
    ago,
    clock,
    print_json,
    print_table,
    printable,
    segment,
    target,
)
from shoal_fleet.errors import UsageError

mandate_app = typer.Typer(help="Who else may command nodes.", no_args_is_help=True)

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9})([smhd])")


@mandate_app.command(
    "grant", epilog="Example: shoal mandate grant alice KEY --op 'device.*' --group oslo --for 30d"
)
def grant(
    context: typer.Context,
    name: str,
    key: Annotated[str, typer.Argument(help="The public key, as `shoal key new` printed it.")],
    ops: Annotated[list[str], typer.Option("--op", help="A name, name.* or *; may come again.")],
    groups: Annotated[
        list[str], typer.Option("--group", help="A group, or * for all nodes; may come again.")
    ],
    *,
    may_delegate: Annotated[
        bool, typer.Option("--may-delegate", help="The holder may give mandates, never wider ones.")
    ] = False,
    lasts: Annotated[
        str | None,
        typer.Option("--for", metavar="30d", help="So long: s, m, h or d behind a number."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let the holder of a key command nodes, or change what it may."""
    body = {
        "key": key,
        "ops": ops,
        "groups": groups,
        "may_delegate": may_delegate,
        "for_s": None if lasts is None else duration_s(lasts),
    }
    with target(context).connect() as client:
        found = client.put(f"/api/mandates/{segment(name)}", body)
    _print(found, as_json=as_json)


@mandate_app.command("revoke", epilog="Example: shoal mandate revoke alice")
def revoke(context: typer.Context, name: str, *, as_json: AsJson = False) -> None:
    """Take a mandate away for good, with everything that its holder gave."""
    with target(context).connect() as client:
        found = client.delete(f"/api/mandates/{segment(name)}")
    _print(found, as_json=as_json)


@mandate_app.command("list", epilog="Example: shoal mandate list --json")
def list_mandates(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List mandates, what may run in which group, and which nodes do not hold it yet."""
    with target(context).connect() as client:
        found = client.get("/api/mandates")
    if as_json:
        print_json(found)
        return
    print_table(
        "Mandates",
        ("name", "operations", "groups", "delegates", "ends", "revoked"),
        [
            (
                one["name"],
                " ".join(one["ops"]),
                " ".join(one["groups"]),
                "yes" if one["may_delegate"] else "no",
                "-" if one["until_ms"] is None else clock(one["until_ms"]),
                "-" if one["revoked_ms"] is None else ago(one["revoked_ms"]),
            )
            for one in found["mandates"]
        ],
    )
    for group, surface in found["surfaces"].items():
        approved = "everything" if surface["approved"] is None else " ".join(surface["approved"])
        denied = " ".join(surface["denied"])
        typer.echo(f"group {group}: approved {approved or 'nothing'}, denied {denied or 'nothing'}")
    nodes = found["nodes"].items()
    held = sum(state["state"] == "held" for _, state in nodes)
    typer.echo(f"{held} of {len(nodes)} nodes that were told hold it")
    for node, state in nodes:
        if state["state"] != "held":
            typer.echo(printable(f"  {node}: {state['state']} {state['reason']}".rstrip()))


@mandate_app.command("approve", epilog="Example: shoal mandate approve oslo 'device.*' ping")
def approve(
    context: typer.Context,
    group: str,
    ops: Annotated[list[str] | None, typer.Argument(help="Nothing: no operation at all.")] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--everything", help="Whatever is not denied.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say which operations may run on a group's nodes (*: on all), whoever asks for them."""
    if everything and ops:
        raise UsageError("--everything and operations")
    _set(context, group, {"approved": None if everything else ops or []}, as_json=as_json)


@mandate_app.command("deny", epilog="Example: shoal mandate deny '*' agent.restart")
def deny(
    context: typer.Context,
    group: str,
    ops: Annotated[list[str] | None, typer.Argument(help="Nothing: none is denied.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say which operations run on no node of a group (*: on none), whoever asks for them."""
    _set(context, group, {"denied": ops or []}, as_json=as_json)


def duration_s(text: str) -> int:
    """Seconds of `90s`, `30m`, `12h`, `30d`.

    Raises:
        UsageError: it is none of these.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no time: a number and s, m, h or d")
    return int(found[1]) * _UNITS[found[2]]


def _set(
    context: typer.Context, group: str, change: dict[str, list[str] | None], *, as_json: bool
) -> None:
    with target(context).connect() as client:
        surfaces = client.get("/api/mandates")["surfaces"]
        held = surfaces.get(group, {"approved": None, "denied": []})
        found = client.put(f"/api/surfaces/{segment(group)}", {**held, **change})
    if as_json:
        print_json(found)
        return
    approved = (
        "everything" if found["approved"] is None else " ".join(found["approved"]) or "nothing"
    )
    typer.echo(
        f"group {group}: approved {approved}, denied {' '.join(found['denied']) or 'nothing'}"
    )


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if found["revoked_ms"] is not None:
        typer.echo(f"{found['name']}: revoked; nodes are told as soon as they are there")
        return
    ends = "for good" if found["until_ms"] is None else f"until {clock(found['until_ms'])}"
    typer.echo(f"{found['name']}: {' '.join(found['ops'])} in {' '.join(found['groups'])}, {ends}")
