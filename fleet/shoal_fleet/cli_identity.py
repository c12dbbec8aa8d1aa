"""`shoal token`, `shoal nodes pending|accept|reject|revoke`: who may become a node, and who is none any more."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_fleet.cli_mandates import duration_s
from shoal_fleet.cli_output import (
    AsJson,
    ago,
    clock,
    parse_pairs,
    print_json,
    print_table,
    printable,
    segment,
    target,
)
from shoal_fleet.errors import StateError, UsageError
from shoal_fleet.selection import GROUP_LABEL

token_app = typer.Typer(help="One-time tokens for boards that enrol.", no_args_is_help=True)

Fingerprint = Annotated[
    str | None,
    typer.Option(help="The key's sha256, or its beginning: where several claim the id."),
]


def add_to(nodes_app: typer.Typer) -> None:
    """The commands behind `shoal nodes`."""
    nodes_app.command("pending", epilog="Example: shoal nodes pending")(pending)
    nodes_app.command("accept", epilog="Example: shoal nodes accept press-4")(accept)
    nodes_app.command("reject", epilog="Example: shoal nodes reject press-4")(reject)
    nodes_app.command("revoke", epilog="Example: shoal nodes revoke press-4 --reason stolen")(
        revoke
    )


@token_app.command("create", epilog="Example: shoal token create --ttl 2h --group oslo --count 20")
def create(
    context: typer.Context,
    node: Annotated[
        str | None, typer.Option(help="Only this id may use it, were it known already.")
    ] = None,
    ttl: Annotated[str, typer.Option(metavar="24h", help="Good for so long: s, m, h, d.")] = "24h",
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="key=value for the node; may come again.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="The same as --label group=GROUP.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="So many tokens.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Write the tokens to this new file (mode 0600), one a line.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make tokens and print them, this once: the controller keeps only their sha256."""
    given = parse_pairs(labels or [])
    if group is not None and given.setdefault(GROUP_LABEL, group) != group:
        raise UsageError("--group and --label group=… differ")
    body = {"node": node, "labels": given, "ttl_s": duration_s(ttl), "count": count}
    if out is not None:
        # Before there are tokens that nobody could write down.
        _make_new(out)
    with target(context).connect() as client:
        made = client.post("/api/tokens", body)
    texts = [one["token"] for one in made]
    if out is not None:
        _fill(out, "".join(f"{text}\n" for text in texts))
        made = [{key: value for key, value in one.items() if key != "token"} for one in made]
    if as_json:
        print_json(made)
    elif out is None:
        for text in texts:
            typer.echo(text)
    else:
        typer.echo(f"{out}: {len(texts)} tokens")


@token_app.command("list", epilog="Example: shoal token list --json")
def list_tokens(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List tokens by id, and what became of them. Their texts are not kept."""
    with target(context).connect() as client:
        found = client.get("/api/tokens")
    if as_json:
        print_json(found)
        return
    print_table(
        "Tokens",
        ("id", "state", "for", "labels", "made", "expires", "used by"),
        [
            (
                one["id"],
                one["state"],
                one["node"] or "any new node",
                ", ".join(f"{key}={value}" for key, value in sorted(one["labels"].items())) or "-",
                ago(one["made_ms"]),
                clock(one["expires_ms"]),
                one["used_by"] or "-",
            )
            for one in found
        ],
    )


@token_app.command("revoke", epilog="Example: shoal token revoke 3f9c0a1b2d4e")
def revoke_token(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="ID", help="As `shoal token list` shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a token worthless that nobody has used."""
    with target(context).connect() as client:
        found = client.delete(f"/api/tokens/{segment(token)}")
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['id']}: {found['state']}")


def pending(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List boards that ask for a certificate without a token."""
    with target(context).connect() as client:
        found = client.get("/api/pending")
    if as_json:
        print_json(found)
        return
    print_table(
        "Pending",
        ("node", "state", "key", "address", "hardware", "since", "asked"),
        [
            (
                f"{one['node']} (known)" if one["known_node"] else one["node"],
                one["state"],
                one["fingerprint"],
                one["address"],
                one["hardware"] or "?",
                ago(one["first_ms"]),
                ago(one["last_ms"]),
            )
            for one in found
        ],
    )


def accept(
    context: typer.Context, node: str, fingerprint: Fingerprint = None, *, as_json: AsJson = False
) -> None:
    """Let a board that waits have its certificate. Compare its key with what the board shows first."""
    body = {"fingerprint": fingerprint}
    with target(context).connect() as client:
        found = client.post(f"/api/pending/{segment(node)}/accept", body)
    _print(found, f"{node}: accepted, key {found['fingerprint']}", as_json=as_json)


def reject(
    context: typer.Context, node: str, fingerprint: Fingerprint = None, *, as_json: AsJson = False
) -> None:
    """Tell a board that waits that it is not wanted; without --fingerprint everybody with this id."""
    body = {"fingerprint": fingerprint}
    with target(context).connect() as client:
        found = client.post(f"/api/pending/{segment(node)}/reject", body)
    _print(found, f"{node}: rejected ({len(found)})", as_json=as_json)


def revoke(
    context: typer.Context,
    node: str,
    reason: Annotated[str, typer.Option(help="For whoever looks later.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Take a node out of the fleet: its certificates, its connection, and what was wanted of it."""
    from shoal_fleet.client import LONG_TIMEOUT_S  # noqa: PLC0415 - `--help` answers at once

    with target(context).connect() as client:
        # A broker that is slow to let go of the node is waited for.
        found = client.post(
            f"/api/nodes/{segment(node)}/revoke", {"reason": reason}, timeout_s=LONG_TIMEOUT_S
        )
    _print(found, f"{node}: revoked, {found['certificates']} certificates", as_json=as_json)


def _print(found: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(printable(text))


def _make_new(path: Path) -> None:
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError as exc:
        raise UsageError(f"{path}: there is a file already") from exc
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc


def _fill(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="ascii")
    except OSError as exc:
        raise StateError(f"{path}: {exc.strerror}") from exc
