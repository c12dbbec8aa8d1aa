"""`shoal nodes import|alias|replace`, `shoal running`: the list of nodes, and what runs where."""

from pathlib import Path
from typing import Annotated

import typer

from shoal_fleet.cli_mandates import duration_s
from shoal_fleet.cli_output import AsJson, print_json, print_table, printable, segment, target
from shoal_fleet.errors import UsageError
from shoal_fleet.node_csv import MAX_BYTES, parse


def add_to(nodes_app: typer.Typer) -> None:
    """The commands behind `shoal nodes`."""
    nodes_app.command("import", epilog="Example: shoal nodes import boards.csv")(import_nodes)
    nodes_app.command("alias", epilog='Example: shoal nodes alias press-4 "Press 4, hall B"')(alias)
    nodes_app.command("replace", epilog="Example: shoal nodes replace press-4 --ttl 7d")(replace)


def import_nodes(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.csv")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take in a list of nodes: a column `node`, perhaps `alias`, every other column is a label.

    All of it or nothing: the first mistake is told with line and column.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}") from exc
    rows = parse(data)
    if dry_run:
        found = {"rows": len(rows), "new": None, "changed": None}
    else:
        with target(context).connect() as client:
            found = client.upload("/api/nodes/import", [data])
    if as_json:
        print_json(found)
    elif dry_run:
        typer.echo(f"{found['rows']} nodes; nothing was sent")
    else:
        typer.echo(f"{found['rows']} nodes: {found['new']} new, {found['changed']} changed")


def alias(
    context: typer.Context,
    node: str,
    names: Annotated[list[str], typer.Argument(metavar="NAME…")],
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Take them away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a node other names, good wherever a node is named on the command line."""
    changes = {"remove" if remove else "add": names}
    with target(context).connect() as client:
        found = client.patch(f"/api/nodes/{segment(node)}/aliases", changes)
    if as_json:
        print_json(found)
    else:
        typer.echo(printable(f"{found['node']}: {', '.join(found['aliases']) or 'no other name'}"))


def replace(
    context: typer.Context,
    node: str,
    ttl: Annotated[str, typer.Option(metavar="7d", help="Good for so long: s, m, h, d.")] = "7d",
    *,
    as_json: AsJson = False,
) -> None:
    """Let another board bear the name of a dead one: its labels and models wait for it.

    The dead board's certificates are revoked, and a token for the new one is printed, this once.
    """
    with target(context).connect() as client:
        found = client.post(f"/api/nodes/{segment(node)}/replace", {"ttl_s": duration_s(ttl)})
    if as_json:
        print_json(found)
        return
    if found["token"] is None:
        typer.echo(
            f"{found['node']}: the new board may come, with this id and the broker's password"
        )
    else:
        typer.echo(f"{found['node']}: {found['certificates']} certificates revoked", err=True)
        typer.echo(found["token"]["token"])


def running(
    context: typer.Context,
    group: Annotated[str, typer.Option(help="Only nodes of this group.")] = "",
    *,
    drift: Annotated[bool, typer.Option("--drift", help="Only what is not as wanted.")] = False,
    as_json: AsJson = False,
) -> None:
    """What runs where: a row a node and model, beside what is wanted there."""
    with target(context).connect() as client:
        found = client.get("/api/running", group=group)
    if drift:
        found = [row for row in found if not row["as_wanted"]]
    if as_json:
        print_json(found)
        return
    print_table(
        "Running",
        ("node", "online", "site", "hardware", "model", "version", "phase", "wanted", ""),
        [
            (
                row["node"],
                "yes" if row["online"] else "no",
                row["site"] or "-",
                row["hardware"] or "?",
                row["model"],
                row["version"] or "-",
                row["phase"] or "-",
                row["wanted"] or "-",
                "" if row["as_wanted"] else (row["reason"] or "not as wanted"),
            )
            for row in found
        ],
    )
