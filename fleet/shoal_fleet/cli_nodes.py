"""`shoal nodes`, `shoal want`, `shoal readings`: what there is and what runs where."""

from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import (
    AsJson,
    ago,
    clock,
    parse_pairs,
    print_json,
    print_table,
    printable,
    segment,
    size,
    target,
)
from shoal_fleet.errors import UsageError

nodes_app = typer.Typer(
    help="List nodes, label them.", epilog="Example: shoal nodes", invoke_without_command=True
)
readings_app = typer.Typer(help="What the devices sent.", no_args_is_help=True)

_COLUMNS = (
    "node", "online", "models", "board", "os", "free disk", "temp", "throttled", "labels", "seen",
)  # fmt: skip


@nodes_app.callback()
def nodes(
    context: typer.Context,
    where: Annotated[
        str, typer.Option(help='Only those: "site=oslo and hw in (rpi4, rpi5)".')
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """List the nodes with what they run and how they feel.

    Example: shoal nodes --json
    """
    if context.invoked_subcommand is not None:
        return
    with target(context).connect() as client:
        found = client.get("/api/nodes", where=where or None)
    if as_json:
        print_json(found)
    else:
        print_table("Nodes", _COLUMNS, [_node_row(node) for node in found])


@nodes_app.command("show", epilog="Example: shoal nodes show press-4")
def show(context: typer.Context, node: str, *, as_json: AsJson = False) -> None:
    """One node with everything that it reports."""
    with target(context).connect() as client:
        found = client.get(f"/api/nodes/{segment(node)}")
    if as_json:
        print_json(found)
        return
    print_table("Node", _COLUMNS, [_node_row(found)])
    if found["aliases"]:
        typer.echo(printable(f"also called {', '.join(found['aliases'])}"))
    if (identity := found.get("identity")) is not None:
        typer.echo(printable(_identity_text(identity)))
    for model in (found["reported"] or {}).get("models", []):
        typer.echo(printable(f"{model['model']}: {_model_text(model)} {model['reason']}".rstrip()))
        if cost := _cost_text(model):
            typer.echo(printable(f"  {cost}"))
    for model, release in found["wanted"].items():
        typer.echo(f"wanted: {model} {release[:12]}")
    for model, why in found.get("held", {}).items():
        typer.echo(printable(f"held: {model} {why}"))


@nodes_app.command("label", epilog="Example: shoal nodes label press-4 site=oslo line-")
def label(
    context: typer.Context,
    node: str,
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE… KEY-…")],
    *,
    as_json: AsJson = False,
) -> None:
    """Set labels (key=value) or take them away (key-)."""
    taken = [text[:-1] for text in changes if text.endswith("-") and "=" not in text]
    given = parse_pairs(text for text in changes if "=" in text or not text.endswith("-"))
    if overlap := set(taken) & given.keys():
        raise UsageError(f"{min(overlap)} is both set and taken away")
    labels: dict[str, str | None] = {**given, **dict.fromkeys(taken)}
    with target(context).connect() as client:
        found = client.patch(f"/api/nodes/{segment(node)}/labels", {"labels": labels})
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{node}: {_labels_text(found['labels']) or 'no labels'}")


def want(
    context: typer.Context,
    node: str,
    wanted: Annotated[str, typer.Argument(metavar="MODEL=RELEASE|none")],
    *,
    as_json: AsJson = False,
) -> None:
    """Let one node run a release without a rollout, or take the model away."""
    (pair,) = parse_pairs([wanted]).items()
    model, release = pair
    from shoal_fleet.client import LONG_TIMEOUT_S  # noqa: PLC0415 - `--help` answers at once

    with target(context).connect() as client:
        found = client.put(
            f"/api/nodes/{segment(node)}/models/{segment(model)}",
            {"release": None if release == "none" else release},
            timeout_s=LONG_TIMEOUT_S,
        )
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{node}: {model} is to be {release}")


@readings_app.command("summary", epilog="Example: shoal readings summary --json")
def readings_summary(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Count what came from each device, and what is missing."""
    with target(context).connect() as client:
        found = client.get("/api/readings/summary")
    if as_json:
        print_json(found)
        return
    print_table(
        "Readings",
        ("node", "device", "boot", "count", "first", "last", "missing"),
        [
            (
                row["node"],
                row["device"],
                *(str(row[key]) for key in ("boot", "count", "min", "max")),
                _missing_text(row),
            )
            for row in found["devices"]
        ],
    )
    typer.echo(f"{found['total']} readings, {found['missing']} missing")


@readings_app.command("list", epilog="Example: shoal readings list --node press-4 --limit 20")
def readings_list(
    context: typer.Context,
    node: Annotated[str | None, typer.Option(help="Only of this node.")] = None,
    device: Annotated[str | None, typer.Option(help="Only of this device.")] = None,
    after: Annotated[int, typer.Option(help="From the one behind this id on.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=5000)] = 100,
    *,
    as_json: AsJson = False,
) -> None:
    """List readings in the order of arrival."""
    with target(context).connect() as client:
        found = client.get("/api/readings", node=node, device=device, after=after, limit=limit)
    if as_json:
        print_json(found)
        return
    keys = ("id", "node", "device", "seq", "label", "confidence", "by")
    print_table("Readings", keys, [[str(row[key]) for key in keys] for row in found])


def _node_row(node: dict[str, Any]) -> tuple[str, ...]:
    reported = node["reported"] or {}
    hardware = reported.get("hardware", {})
    temperature = hardware.get("temperature_c")
    throttled = hardware.get("throttled")
    models = [f"{m['model']} {_model_text(m)}" for m in reported.get("models", [])]
    online = "yes" if node["online"] else "no"
    if (node.get("identity") or {}).get("revoked_ms") is not None:
        online = "revoked"
    return (
        node["node"],
        f"{online} (silent)" if node["silent"] else online,
        ", ".join(
            [*models, *(f"{model} held ({why})" for model, why in node.get("held", {}).items())]
        )
        or "-",
        hardware.get("model") or "?",
        hardware.get("os") or "?",
        size(hardware.get("disk_free_bytes")),
        "?" if temperature is None else f"{temperature} °C",
        "?" if throttled is None else ("yes" if throttled else "no"),
        _labels_text(node["labels"]) or "-",
        ago(node["last_seen_ms"]) if node["last_seen_ms"] else "never",
    )


def _identity_text(identity: dict[str, Any]) -> str:
    if identity["revoked_ms"] is not None:
        return f"revoked {ago(identity['revoked_ms'])} {identity['reason']}".rstrip()
    return (
        f"certificate until {clock(identity['not_after_ms'])} ({identity['how']}),"
        f" key {identity['key']}"
    )


def _cost_text(model: dict[str, Any]) -> str:
    """Where the model is and what it took in its trial there; empty: the node does not say."""
    words = [model["residence"]] if model["residence"] not in {"", "serving"} else []
    if model["peak_bytes"]:
        words.append(
            f"{size(model['resident_bytes'])} of memory, {size(model['peak_bytes'])} at most"
        )
    if model["p95_us"]:
        words.append(f"{model['p95_us'] / 1000:.3g} ms an input (p95)")
    return ", ".join(words)


def _model_text(model: dict[str, Any]) -> str:
    version = model["version"] or "nothing"
    return version if model["phase"] == "serving" else f"{version} ({model['phase']})"


def _labels_text(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _missing_text(row: dict[str, Any]) -> str:
    ranges = ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in row["missing_ranges"]
    )
    return f"{row['missing']} ({ranges})" if ranges else str(row["missing"])
