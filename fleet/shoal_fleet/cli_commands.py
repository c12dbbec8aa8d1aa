"""`shoal send`, `cancel`, `ops`, `logs`, `bundle`, `history`: commands to nodes."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal_contract.exits import Exit
from shoal_fleet.cli_output import (
    AsJson,
    clock,
    parse_pairs,
    parse_value,
    print_json,
    print_table,
    printable,
    segment,
    target,
)
from shoal_fleet.errors import FleetError, TimedOutError, UsageError

if TYPE_CHECKING:
    from shoal_fleet.client import FleetClient

PATIENCE_S: Final = 15.0
"""How much longer than the command is valid a person waits for its last state."""

QUICK_S: Final = 20.0

Expires = Annotated[
    float, typer.Option("--expires", min=0.001, help="The command is valid for so many seconds.")
]


def send(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[NODE] OP [KEY=VALUE…]",
            help="The node (not with --group), the operation (shoal ops NODE lists them), its arguments.",
        ),
    ],
    *,
    group: Annotated[
        str | None,
        typer.Option(help="Instead of NODE: key=value[,key=value], a word for group=word, or all."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help='Instead of NODE: "site=oslo and not line=3".')
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the final state.")] = True,
    print_: Annotated[
        bool,
        typer.Option(
            "--print", help="Do not send: print topic and payload, for any MQTT 5 client."
        ),
    ] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Wait at most so many seconds.")
    ] = None,
    expires_s: Expires = 60.0,
    priority: Annotated[int, typer.Option(min=0, max=9, help="A higher one runs first.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Send a command to a node or a group and follow it. Values are JSON literals, else text."""
    receiver, (op, *pairs) = _receiver(words, group, where)
    if print_ and "node" not in receiver:
        raise UsageError("--print is for one node")
    order = {
        **receiver,
        "op": op,
        "args": {key: parse_value(value) for key, value in parse_pairs(pairs).items()},
        "expires_s": expires_s,
        "priority": priority,
        "publish": not print_,
    }
    with target(context).connect() as client:
        command = client.post("/api/commands", order)
        if wait and not print_:
            patience_s = expires_s + PATIENCE_S if timeout_s is None else timeout_s
            command = follow(client, command, timeout_s=patience_s, show=not as_json)
    if as_json:
        print_json(command)
    elif print_:
        typer.echo(f"{command['topic']} {command['payload']}")
    elif not wait:
        typer.echo(command["id"])
    elif command["group"]:
        _print_nodes(command)
    if wait and not print_:
        _finish(command, show_result=not as_json)


def _receiver(
    words: list[str], group: str | None, where: str | None
) -> tuple[dict[str, str], list[str]]:
    """Who is meant, and the words that are left: the operation and its arguments."""
    if group is not None and where is not None:
        raise UsageError("--group and --where: one of them names the nodes")
    if where is not None:
        return {"where": where}, words
    if group is not None:
        return {"group": group}, words
    if len(words) < 2:  # noqa: PLR2004 - NODE and OP
        raise UsageError("a command needs a node, or --group, and an operation")
    return {"node": words[0]}, words[1:]


def cancel(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="ID")],
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, max=60)] = 10.0,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask a node to stop a command: cancelled, too late, or refused."""
    with target(context).connect() as client:
        answer = client.post(
            f"/api/commands/{segment(command)}/cancel?wait_s={timeout_s}", timeout_s=timeout_s + 30
        )
    if as_json:
        print_json(answer)
    elif answer["answer"] is not None:
        for node, one in answer.get("nodes", {"": answer}).items():
            said = (one["answer"] or "no answer").replace("_", " ")
            typer.echo(printable(f"{node} {said} {one['reason']}".strip()))
    if answer["answer"] is None:
        raise TimedOutError(f"{command}: {answer['reason']}")
    if answer["answer"] != "cancelled":
        raise typer.Exit(Exit.FAILED)


def ops(context: typer.Context, node: str, *, as_json: AsJson = False) -> None:
    """List the operations that a node offers, with their arguments and limits."""
    found = _result(context, node, "ops.list", {})
    if as_json:
        print_json(found)
        return
    if not isinstance(found, list):
        raise FleetError(f"{node}: its list of operations is none")
    print_table(
        f"Operations of {node}",
        ("op", "scope", "arguments (limits)", "time limit", "about"),
        [
            (
                str(entry.get("name")),
                str(entry.get("scope")),
                " ".join(_argument_text(argument) for argument in entry.get("arguments", ())),
                f"{entry.get('timeout_s')} s",
                str(entry.get("about")),
            )
            for entry in found
        ],
    )


def logs(
    context: typer.Context,
    node: str,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=1000)] = 50,
    *,
    as_json: AsJson = False,
) -> None:
    """Print the newest log lines of a node's agent."""
    found = _result(context, node, "logs.tail", {"lines": lines})
    if as_json:
        print_json(found)
        return
    for line in found.get("lines", ()) if isinstance(found, dict) else ():
        typer.echo(printable(str(line)))


def bundle(
    context: typer.Context,
    node: str,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it here; else NODE.tar.gz.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Fetch a node's diagnostic bundle (configuration, facts, newest log lines) for a bug report."""
    found = _result(context, node, "diag.bundle", {})
    path = output or Path(f"{node}.tar.gz")
    try:
        data = bytes.fromhex(found["bundle"])
        path.write_bytes(data)
    except (TypeError, KeyError, ValueError) as exc:
        raise FleetError(f"{node}: its bundle is none") from exc
    except OSError as exc:
        raise FleetError(f"{path}: {exc.strerror}") from exc
    if as_json:
        print_json({"file": str(path), "size_bytes": len(data)})
    else:
        typer.echo(f"{path}: {len(data)} bytes")


def history(
    context: typer.Context,
    node: Annotated[str | None, typer.Argument()] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    *,
    as_json: AsJson = False,
) -> None:
    """List the newest commands and what became of them."""
    with target(context).connect() as client:
        found = client.get("/api/commands", node=node, limit=limit)
    if as_json:
        print_json(found)
        return
    print_table(
        "Commands",
        ("id", "node", "group", "op", "sent", "state", "reason"),
        [
            (
                row["id"],
                row["node"],
                row["group"],
                row["op"],
                clock(row["issued_ms"]),
                row["state"],
                printable(row["reason"]),
            )
            for row in found
        ],
    )


def follow(
    client: "FleetClient", command: dict[str, Any], *, timeout_s: float, show: bool
) -> dict[str, Any]:
    """The command in its final state; each state on the way is printed.

    Raises:
        TimedOutError: it has none after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    shown = 0
    while True:
        for step in command["history"][shown:]:
            if show and step["state"] != "sent":
                who = f"{step['node']} " if command["group"] else ""
                typer.echo(printable(f"{who}{step['state']} {step['reason']}".rstrip()), err=True)
        shown = len(command["history"])
        progress = command.get("progress", 0)
        if show and progress and not command["final"]:
            typer.echo(printable(f"{progress} % {command['reason']}".rstrip()), err=True)
        if command["final"]:
            return command
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimedOutError(
                f"command {command['id']} is {command['state']} after {timeout_s:g} s"
            )
        command = client.wait_for_command(
            command["id"], seen=shown, timeout_s=left_s, progress=progress
        )


def _result(context: typer.Context, node: str, op: str, args: dict[str, Any]) -> Any:
    with target(context).connect() as client:
        command = client.post(
            "/api/commands", {"node": node, "op": op, "args": args, "expires_s": QUICK_S}
        )
        command = follow(client, command, timeout_s=QUICK_S + PATIENCE_S, show=False)
    _finish(command, show_result=False)
    return command["result"]


def _print_nodes(command: dict[str, Any]) -> None:
    print_table(
        f"{command['op']} in {command['group']}",
        ("node", "state", "result or reason"),
        [
            (
                node,
                one["state"],
                one["reason"] if one["result"] is None else json.dumps(one["result"]),
            )
            for node, one in command["nodes"].items()
        ],
    )


def _finish(command: dict[str, Any], *, show_result: bool) -> None:
    if command["group"]:
        if command["state"] != "succeeded":
            states = ", ".join(f"{count} {state}" for state, count in command["states"].items())
            raise FleetError(f"{command['op']} in {command['group']}: {states}")
        return
    match command["state"]:
        case "succeeded":
            if show_result and command["result"] is not None:
                indent = 2 if sys.stdout.isatty() else None
                typer.echo(json.dumps(command["result"], indent=indent, ensure_ascii=False))
        case "expired":
            raise TimedOutError(f"{command['op']} expired: {command['reason']}")
        case state:
            raise FleetError(f"{command['op']} {state}: {printable(command['reason'])}")


def _argument_text(argument: dict[str, Any]) -> str:
    """`name=type`, its limits behind it, in brackets where it may be left out."""
    low, high = argument.get("minimum"), argument.get("maximum")
    limits = "" if low is None and high is None else f"({_limit(low)}..{_limit(high)})"
    text = f"{argument.get('name')}={argument.get('type')}{limits}"
    return text if argument.get("required") else f"[{text}]"


def _limit(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
