"""`shoal backup` and `shoal restore`: a controller in one file. They work on the state directory, not over HTTP."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import AsJson, clock, print_json, target
from shoal_fleet.errors import StateError

Config = Annotated[
    Path | None,
    typer.Option(help="The controller's configuration: for PostgreSQL, blobs_dir, ca_dir."),
]


def backup(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-")],
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write everything that the controller is to one file (mode 0600), while it runs.

    There are private keys in it: - writes it to a pipe, to be encrypted.
    """
    from shoal_fleet import backup as backups  # noqa: PLC0415 - `--help` answers at once

    state_dir, where = _where(context, config)
    if file == "-":
        if sys.stdout.isatty():
            raise StateError("a backup holds private keys and is no text: not to a terminal")
        asyncio.run(backups.write_backup(sys.stdout.buffer, state_dir, **where))
        return
    said = asyncio.run(backups.backup_to(Path(file), state_dir, **where))
    if as_json:
        print_json(said)
    else:
        typer.echo(f"{file}: {len(said['files'])} files; keep it as you keep the keys in it")


def restore(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-")],
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a new state directory of a backup. The controller that it was taken from must be gone."""
    from shoal_fleet.restore import restore as restored  # noqa: PLC0415 - `--help` answers at once

    state_dir, where = _where(context, config)
    try:
        if file == "-":
            said = asyncio.run(restored(sys.stdin.buffer, state_dir, database=where["database"]))
        else:
            with Path(file).open("rb") as opened:
                said = asyncio.run(restored(opened, state_dir, database=where["database"]))
    except OSError as exc:
        raise StateError(f"{file}: {exc.strerror}") from exc
    if as_json:
        print_json(said)
    else:
        typer.echo(f"{state_dir}: {len(said['files'])} files as of {clock(said['made_ms'])}")


def _where(context: typer.Context, path: Path | None) -> tuple[Path, dict[str, Any]]:
    from shoal_fleet import config as configuration  # noqa: PLC0415
    from shoal_fleet.database_address import configured  # noqa: PLC0415

    config = configuration.FleetConfig() if path is None else configuration.load(path)
    table, identity = config.database, config.identity
    database = None
    if table.url is not None:
        database = configured(table.url, password_file=table.password_file, ca_file=table.ca_file)
    ca_dir = None if identity is None else identity.ca_dir
    state_dir = Path(config.state_dir) if config.state_dir else target(context).state_dir
    return state_dir, {
        "database": database,
        "blobs_dir": None if config.blobs_dir is None else Path(config.blobs_dir),
        "ca_dir": None if ca_dir is None else Path(ca_dir),
    }
