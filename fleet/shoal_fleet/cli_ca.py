"""`shoal ca`: the fleet's certificate authority, a directory. Needs no running controller."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import AsJson, clock, print_json, target
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import UsageError
from shoal_fleet.identity.config import CA_FOLDER

ca_app = typer.Typer(help="The fleet's certificate authority.", no_args_is_help=True)

MAX_COMMON_NAME = 64

Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="The authority's directory.", show_default="STATE_DIR/ca"),
]
Passphrase = Annotated[
    Path | None,
    typer.Option(help="The key is encrypted: its passphrase is the first line of this file."),
]


@ca_app.command("init", epilog="Example: shoal ca init --dir /etc/shoal/ca")
def init(
    context: typer.Context,
    folder: Folder = None,
    name: Annotated[str | None, typer.Option(help="What the authority calls itself.")] = None,
    passphrase_file: Passphrase = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make an authority: key, certificate, an empty list of revoked certificates. Replaces nothing."""
    # Imported here: no other command needs X.509.
    from shoal_fleet.identity import authority  # noqa: PLC0415 - see above

    if name is not None and not 0 < len(name) <= MAX_COMMON_NAME:
        raise UsageError(f"--name has 1 to {MAX_COMMON_NAME} characters")
    where = _where(context, folder)
    made = authority.make(
        where, name=name, now_ms=now_ms(), passphrase=_passphrase(passphrase_file)
    )
    _print_pin(where, made.pin, as_json=as_json)


@ca_app.command("show", epilog="Example: shoal ca show --dir /etc/shoal/ca")
def show(context: typer.Context, folder: Folder = None, *, as_json: AsJson = False) -> None:
    """Print the pin by which boards know the authority. Its key is not needed."""
    from shoal_fleet.identity.authority import read_pin  # noqa: PLC0415 - as above

    where = _where(context, folder)
    _print_pin(where, read_pin(where), as_json=as_json)


@ca_app.command(
    "issue", epilog="Example: shoal ca issue broker --dir /etc/shoal/ca --host broker.example.net"
)
def issue(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The CN: shoal-controller, an operator, a broker.")],
    folder: Folder = None,
    out: Annotated[Path, typer.Option(help="NAME.crt and NAME.key are written here.")] = Path(),
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or address of the machine; may come again."),
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="Valid for so long.")] = 365.0,
    passphrase_file: Passphrase = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Issue a certificate that is no board's: for a broker, the controller, an operator.

    No board can enrol under this name from now on.
    """
    from shoal_fleet.identity.issuing import issue_files  # noqa: PLC0415 - as above

    issued = issue_files(
        _where(context, folder),
        name,
        out=out,
        hosts=hosts or [],
        days=days,
        passphrase=_passphrase(passphrase_file),
    )
    if as_json:
        print_json(issued)
        return
    typer.echo(f"{issued['certificate']}, {issued['key']}: good until {clock(issued['until_ms'])}")


def _where(context: typer.Context, folder: Path | None) -> Path:
    return target(context).state_dir / CA_FOLDER if folder is None else folder


def _passphrase(path: Path | None) -> bytes | None:
    if path is None:
        return None
    from shoal_fleet.identity.authority import read_passphrase  # noqa: PLC0415 - as above

    return read_passphrase(path)


def _print_pin(folder: Path, pin: str, *, as_json: bool) -> None:
    found: dict[str, Any] = {"dir": str(folder), "ca_pin": pin}
    if as_json:
        print_json(found)
    else:
        typer.echo(pin)
