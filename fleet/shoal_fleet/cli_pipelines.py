"""`shoal pipeline`: what nodes do by themselves, beside what their own configuration says."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_contract import pipelines, toml
from shoal_contract.errors import ContractError
from shoal_fleet.cli_output import (
    AsJson,
    clock,
    print_json,
    print_table,
    printable,
    segment,
    target,
)
from shoal_fleet.errors import UsageError

pipeline_app = typer.Typer(help="What nodes do by themselves.", no_args_is_help=True)

Node = Annotated[str | None, typer.Option(help="For this node.")]
Group = Annotated[
    str | None, typer.Option(help="For every node of this group, now and later; all: for all.")
]


@pipeline_app.command("set", epilog="Example: shoal pipeline set climate.toml --group site=oslo")
def set_pipelines(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="[[pipeline]] tables, in TOML.")],
    node: Node = None,
    group: Group = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let nodes run the pipelines in a file; those of the same name are replaced, others stay."""
    try:
        with file.open("rb") as opened:
            data = opened.read(toml.MAX_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}") from exc
    try:
        tables = pipelines.read_file(data, source=str(file))
    except ContractError as exc:
        raise UsageError(str(exc)) from exc
    with target(context).connect() as client:
        body = {"node": node, "group": group, "pipelines": tables}
        _print(client.put("/api/pipelines", body), as_json=as_json)


@pipeline_app.command("remove", epilog="Example: shoal pipeline remove climate --group site=oslo")
def remove(
    context: typer.Context,
    stream: Annotated[str, typer.Argument(help="The pipeline's stream, which is its name.")],
    node: Node = None,
    group: Group = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let nodes run a pipeline no more."""
    with target(context).connect() as client:
        path = f"/api/pipelines/{segment(stream)}"
        _print(client.delete(path, node=node, group=group), as_json=as_json)


@pipeline_app.command("list", epilog="Example: shoal pipeline list --node press-4")
def list_pipelines(context: typer.Context, node: Node = None, *, as_json: AsJson = False) -> None:
    """List what is wanted, and every pipeline of the nodes with what stands in its way."""
    with target(context).connect() as client:
        found = client.get("/api/pipelines")
    if node is not None:
        found["nodes"] = {name: one for name, one in found["nodes"].items() if name == node}
    if as_json:
        print_json(found)
        return
    print_table(
        "Wanted",
        ("for", "pipeline", "from", "model", "since"),
        [
            (
                one["target"],
                one["stream"],
                _source(one["table"]),
                str(one["table"].get("model", "?")),
                clock(one["changed_ms"]),
            )
            for one in found["pipelines"]
        ],
    )
    print_table(
        "Nodes",
        ("node", "pipeline", "whose", "runs", "reason"),
        [
            (
                name,
                one["stream"],
                "fleet's" if one["from_fleet"] else "own",
                "yes" if one["running"] else "no",
                one["reason"],
            )
            for name, state in found["nodes"].items()
            for one in state["pipelines"]
        ],
    )


def _source(table: dict[str, Any]) -> str:
    """In a word or two: what is read."""
    for kind, key in (("topic", "filter"), ("images", "path"), ("camera", "url")):
        inner = table.get(kind)
        if isinstance(inner, dict):
            return f"{kind} {inner.get(key, '?')}"
    return f"device {table.get('device', '?')}"


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    count = len(found["nodes"])
    nodes = "1 node is" if count == 1 else f"{count} nodes are"
    typer.echo(printable(f"{found['target']}: {', '.join(found['streams'])}; {nodes} told"))
