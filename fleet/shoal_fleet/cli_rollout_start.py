"""`shoal rollout start` and `plan`: what a rollout is to be, and what it would do."""

from typing import Annotated, Any, Final

import typer

from shoal_fleet.cli_output import AsJson, print_json, print_table, printable, size, target
from shoal_fleet.cli_rollout_watch import duration, finish, follow, waves
from shoal_fleet.errors import UsageError

PLAN_TIMEOUT_S: Final = 900.0
"""Every base may have to be estimated first."""

MAX_STRATA: Final = 12

Release = Annotated[str, typer.Argument(help="name@version, or the beginning of an id.")]
Group = Annotated[
    str, typer.Option(help="key=value[,key=value], or a word for group=word; none: all nodes.")
]
Where = Annotated[
    str,
    typer.Option(help='Instead of --group: "site=oslo and hw in (rpi4, rpi5)", asked once.'),
]
FirstWave = Annotated[
    int | None, typer.Option(min=1, help="Nodes of the first wave (default: 2 %, 6 to 20).")
]
Budget = Annotated[
    float, typer.Option(min=0.001, help="Nodes that a wave may break beyond what is tolerable.")
]
Factor = Annotated[
    float, typer.Option(min=1, max=100, help="How much larger than the last a wave may be.")
]
Window = Annotated[
    str, typer.Option(help='Leases only then, by each site\'s clock: "mon-fri 01:00-05:00".')
]
Tz = Annotated[str, typer.Option(help="Time zone of nodes without the label tz.")]


def start(
    context: typer.Context,
    release: Release,
    *,
    group: Group = "",
    where: Where = "",
    first_wave: FirstWave = None,
    budget: Budget = 3.0,
    factor: Factor = 8.0,
    overdue_s: Annotated[
        float,
        typer.Option("--overdue", min=1, help="No answer for so many seconds is a failure."),
    ] = 1800.0,
    window: Window = "",
    tz: Tz = "UTC",
    priority: Annotated[
        int, typer.Option(min=0, max=9, help="Of two rollouts for a node the higher goes first.")
    ] = 4,
    hold_on_any: Annotated[
        bool,
        typer.Option("--hold-on-any", help="Wait for a person at the first failure already."),
    ] = False,
    approve: Annotated[
        str,
        typer.Option(help="start or canary: a second person approves before it, or behind it."),
    ] = "",
    override_freeze: Annotated[
        bool, typer.Option("--override-freeze", help="Emergency: go on in a frozen fleet.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a rollout."""
    if approve not in {"", "start", "canary"}:
        raise UsageError(f"--approve {approve}: it is start or canary")
    with target(context).connect() as client:
        rollout = client.post(
            "/api/rollouts",
            {
                "release": release,
                "group": group,
                "where": where,
                "first_wave": first_wave,
                "budget": budget,
                "factor": factor,
                "overdue_s": overdue_s,
                "hold_on_any": hold_on_any,
                "window": window,
                "tz": tz,
                "priority": priority,
                "approval": approve,
                "overrides_freeze": override_freeze,
            },
        )
        if wait:
            rollout = follow(client, rollout["id"], quiet=as_json)
    if as_json:
        print_json(rollout)
    elif not wait:
        typer.echo(f"rollout {rollout['id']} of {rollout['title']}: {len(rollout['nodes'])} nodes")
    if wait:
        finish(rollout)


def plan(
    context: typer.Context,
    release: Release,
    *,
    group: Group = "",
    where: Where = "",
    first_wave: FirstWave = None,
    budget: Budget = 3.0,
    factor: Factor = 8.0,
    window: Window = "",
    tz: Tz = "UTC",
    as_json: AsJson = False,
) -> None:
    """Say what a rollout would do: who is in it, its waves, the bytes for each base, the time.

    A figure with ~ is an estimate: that delta was not made yet. Nothing is sent and nothing is made.
    """
    with target(context).connect() as client:
        found = client.post(
            "/api/rollouts/plan",
            {
                "release": release,
                "group": group,
                "where": where,
                "first_wave": first_wave,
                "budget": budget,
                "factor": factor,
                "window": window,
                "tz": tz,
            },
            timeout_s=PLAN_TIMEOUT_S,
        )
    if as_json:
        print_json(found)
        return
    print_table(
        "Nodes",
        ("hardware", "site", "link", "nodes"),
        [
            (row["hardware"] or "?", row["site"] or "-", row["link"] or "-", str(row["nodes"]))
            for row in found["strata"][:MAX_STRATA]
        ],
    )
    print_table(
        "Bases",
        ("base", "release", "boards", "delta", "full", "in all", "made in", "reason"),
        [_base_row(row, found["full_bytes"]) for row in found["bases"]],
    )
    for text in _in_words(found):
        typer.echo(printable(text))


def _in_words(found: dict[str, Any]) -> list[str]:
    """The plan in lines; what is to be sent comes last."""
    freeze = found["freeze"]
    texts = [f"needs {text}" for text in found["requires"]]
    texts += [f"waits: {nodes} nodes, {why}" for why, nodes in found["waits"].items()]
    if freeze["on"]:
        texts.append(f"the fleet is frozen by {freeze['by'] or '?'}: {freeze['reason']}")
    texts.append(f"waves when nothing fails: {waves(found['waves']) or 'none, all serve it'}")
    if found["eta_s"] is None:
        texts.append("time: not known, no rollout has measured it yet")
    else:
        texts.append(
            f"time: about {duration(found['eta_s'])} while nodes are there"
            f" ({duration(found['wave_s'])} a wave)"
        )
    is_exact = all(row["is_exact"] for row in found["bases"])
    texts.append(
        f"{found['title']} to {found['boards']} boards:"
        f" {'' if is_exact else '~'}{size(found['total_bytes'])}"
        f" ({size(found['full_total_bytes'])} without deltas),"
        f" and {size(found['other_bytes'])} a board beside the model"
    )
    return texts


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
