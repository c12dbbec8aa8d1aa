"""`shoal release`: the catalogue of model releases."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import (
    AsJson,
    clock,
    print_json,
    print_table,
    printable,
    segment,
    size,
    target,
)
from shoal_fleet.cli_release_build import build
from shoal_fleet.release_directory import REPORT_FILES, pack, read_spec, reports_in

release_app = typer.Typer(help="Add, list and make model releases.", no_args_is_help=True)


@release_app.command("add", epilog="Example: shoal release add ./digits-1.1.0")
def add(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    *,
    as_json: AsJson = False,
) -> None:
    """Add the release in a directory: release.toml, the model file and the golden file."""
    spec = read_spec(directory)
    pieces = pack(directory, spec)
    files = (*spec.files, *reports_in(directory))
    total_bytes = sum((directory / name).stat().st_size for name in files)
    with target(context).connect() as client:
        if sys.stderr.isatty() and not as_json:
            added = client.upload("/api/releases", _with_progress(pieces, total_bytes))
        else:
            added = client.upload("/api/releases", pieces)
    if as_json:
        print_json(added)
        return
    check = added["check"]
    typer.echo(
        f"{added['title']} {added['id'][:12]}: {size(added['size_bytes'])},"
        f" {check['golden_items']} golden items within {check['deviation']:.2g}"
    )


@release_app.command("list", epilog="Example: shoal release list")
def list_releases(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the releases."""
    with target(context).connect() as client:
        found = client.get("/api/releases")
    if as_json:
        print_json(found)
        return
    print_table(
        "Releases",
        ("release", "id", "size", "quality", "added", "about"),
        [_row(row) for row in found],
    )


@release_app.command("report", epilog="Example: shoal release report digits@1.2.0")
def report(
    context: typer.Context,
    release: Annotated[str, typer.Argument(help="name@version, or the beginning of an id.")],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write its files there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print how a built release was made small, and how good it is."""
    path = f"/api/releases/{segment(release)}/report"
    with target(context).connect() as client:
        files = client.get(path)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if name in REPORT_FILES:
                (output / name).write_text(text, encoding="utf-8")
    if as_json:
        print_json(files)
    else:
        typer.echo("\n".join(map(printable, files["report.md"].splitlines())))


release_app.command(
    "build",
    epilog="Example: shoal release build v2.onnx --spec digits.toml --calibration inputs.npz -o out",
)(build)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    quality = row["quality"]
    return (
        row["title"],
        row["id"][:12],
        size(row["size_bytes"]),
        f"{quality['metric']} {quality['value']:g}",
        clock(row["added_ms"]),
        row["description"],
    )


def _with_progress(pieces: Iterator[bytes], total_bytes: int) -> Iterator[bytes]:
    from rich.console import Console  # noqa: PLC0415 - only at a terminal
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("uploading", total=total_bytes)
        for piece in pieces:
            yield piece
            progress.advance(task, len(piece))
