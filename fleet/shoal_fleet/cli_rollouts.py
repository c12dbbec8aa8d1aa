"""`shoal rollout`: bringing a release to nodes in guarded waves, and every decision with its reason."""

from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import AsJson, clock, print_json, print_table, printable, size, target
from shoal_fleet.cli_rollout_start import plan, start
from shoal_fleet.cli_rollout_watch import finish, follow, line
from shoal_fleet.errors import FleetError

rollout_app = typer.Typer(help="Roll a release out, watch it, stop it.", no_args_is_help=True)

RolloutId = Annotated[int, typer.Argument(metavar="ID")]

rollout_app.command(
    "start", epilog="Example: shoal rollout start digits@1.1.0 --group site=oslo --wait"
)(start)
rollout_app.command(
    "plan", epilog="Example: shoal rollout plan digits@1.1.0 --where 'site=oslo and not spare'"
)(plan)


@rollout_app.command("watch", epilog="Example: shoal rollout watch 3")
def watch(
    context: typer.Context,
    rollout: Annotated[int | None, typer.Argument(metavar="[ID]")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Watch a rollout (the newest one) until it is at its end, or waits for a person."""
    with target(context).connect() as client:
        if rollout is None:
            found = client.get("/api/rollouts")
            if not found:
                raise FleetError("there is no rollout yet")
            rollout = found[0]["id"]
        last = follow(client, int(rollout), quiet=as_json)
    if as_json:
        print_json(last)
    finish(last)


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
                row["where"] or row["group"] or "all",
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
    typer.echo(line(found))
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


@rollout_app.command("explain", epilog="Example: shoal rollout explain 3")
def explain(context: typer.Context, rollout: RolloutId, *, as_json: AsJson = False) -> None:
    """Say every decision with its reason and figures, in order, and what stands in the way now."""
    with target(context).connect() as client:
        found = client.get(f"/api/rollouts/{rollout}")
    if as_json:
        print_json({key: found[key] for key in _EXPLAINED})
        return
    typer.echo(line(found))
    print_table(
        "Decisions",
        ("at", "decision", "reason", "figures", "by"),
        [
            (
                clock(entry["at_ms"]),
                entry["deed"] or "-",
                entry["text"],
                " ".join(f"{key}={value}" for key, value in entry["figures"].items()),
                entry["by"],
            )
            for entry in found["decisions"]
        ],
    )
    if found["gate"]:
        typer.echo(printable(f"next wave: {found['gate']}"))
    for why, nodes in found["waits"].items():
        typer.echo(printable(f"{nodes} wait: {why}"))


@rollout_app.command(
    "pause", epilog="Example: shoal rollout pause 3 --reason 'visitors in the hall'"
)
def pause(
    context: typer.Context,
    rollout: RolloutId,
    reason: Annotated[str, typer.Option(help="For the record.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Offer it to nobody until it is resumed; who has it keeps it."""
    _ask(context, f"/api/rollouts/{rollout}/pause", {"reason": reason}, as_json=as_json)


@rollout_app.command("approve", epilog="Example: shoal rollout approve 3")
def approve(context: typer.Context, rollout: RolloutId, *, as_json: AsJson = False) -> None:
    """Agree to a rollout that somebody else has started."""
    _ask(context, f"/api/rollouts/{rollout}/approve", None, as_json=as_json)


@rollout_app.command("back", epilog="Example: shoal rollout back 3")
def back(context: typer.Context, rollout: RolloutId, *, as_json: AsJson = False) -> None:
    """Let every node that serves it go back to what it had, of a rollout that is done, too."""
    _ask(context, f"/api/rollouts/{rollout}/back", None, as_json=as_json)


@rollout_app.command("resume", epilog="Example: shoal rollout resume 3")
def resume(context: typer.Context, rollout: RolloutId, *, as_json: AsJson = False) -> None:
    """Go on with a rollout that is held or paused."""
    _ask(context, f"/api/rollouts/{rollout}/resume", None, as_json=as_json)


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
    _ask(context, f"/api/rollouts/{rollout}/stop", {"back": back}, as_json=as_json)


_EXPLAINED = ("id", "title", "status", "reason", "wave", "decisions", "gate", "waits")


def _ask(context: typer.Context, path: str, body: dict[str, Any] | None, *, as_json: bool) -> None:
    with target(context).connect() as client:
        found = client.post(path, body)
    print_json(found) if as_json else typer.echo(line(found))
