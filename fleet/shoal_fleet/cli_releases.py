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
from shoal_fleet.cli_release_golden import golden
from shoal_fleet.errors import UsageError
from shoal_fleet.quality_gate import MAX_DROP
from shoal_fleet.release_directory import (
    EVALUATION_MEMBER,
    PARENT_MEMBER,
    REPORT_FILES,
    pack,
    read_spec,
    reports_in,
)

release_app = typer.Typer(help="Add, list and make model releases.", no_args_is_help=True)


@release_app.command("add", epilog="Example: shoal release add ./digits-1.1.0")
def add(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    *,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz", help="Labelled inputs to judge by; later versions are, too."
        ),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx", help="The float model that it was made from."),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Accuracy may be lower by so much.", min=0, max=1)
    ] = MAX_DROP,
    force_quality: Annotated[
        str | None, typer.Option(metavar="REASON", help="Let a worse model in; goes on record.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add the release in a directory: release.toml, the model file and the golden file.

    Refused when it is less accurate than its float parent or the current release by more than --max-drop.
    """
    spec = read_spec(directory)
    beside = {
        name: path
        for name, path in ((EVALUATION_MEMBER, evaluation), (PARENT_MEMBER, parent))
        if path is not None
    }
    if missing := next((path for path in beside.values() if not path.is_file()), None):
        raise UsageError(f"{missing} is not a file")
    pieces = pack(directory, spec, beside)
    files = [directory / name for name in (*spec.files, *reports_in(directory))]
    total_bytes = sum(path.stat().st_size for path in (*files, *beside.values()))
    query = {"max_drop": max_drop, "force": force_quality}
    with target(context).connect() as client:
        if sys.stderr.isatty() and not as_json:
            added = client.upload("/api/releases", _with_progress(pieces, total_bytes), **query)
        else:
            added = client.upload("/api/releases", pieces, **query)
    if as_json:
        print_json(added)
        return
    check = added["check"]
    typer.echo(
        f"{added['title']} {added['id'][:12]}: {size(added['size_bytes'])},"
        f" {check['golden_items']} golden items within {check['deviation']:.2g}"
    )
    if judged := _judged_text(check["quality"]):
        typer.echo(printable(judged))


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


def _judged_text(judged: dict[str, Any]) -> str:
    """What the gate found, in one line; empty: nothing was measured."""
    words = []
    if "accuracy" in judged:
        words.append(f"accuracy {judged['accuracy']:.4f} on {judged['items']} items")
        if "parent_accuracy" in judged:
            words.append(f"float parent {judged['parent_accuracy']:.4f}")
        if "current_accuracy" in judged:
            words.append(f"{judged['current']} {judged['current_accuracy']:.4f}")
    if "forced" in judged:
        words.append(f"let in against the gate: {judged['forced']['reason']}")
    return ", ".join(words)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    quality = row["quality"]
    return (
        row["title"],
        row["id"][:12],
        size(row["size_bytes"]),
        f"{quality['metric']} {quality['value']:g}" + (" (forced)" if "forced" in quality else ""),
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


release_app.command("golden", epilog="Example: shoal release golden ./minilm-1.0.0 texts.txt")(
    golden
)
