"""`shoal release`: the catalogue of model releases."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import AsJson, clock, print_json, print_table, size, target
from shoal_fleet.errors import FleetError, UsageError
from shoal_fleet.release_directory import pack, read_spec

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
    total_bytes = sum((directory / name).stat().st_size for name in spec.files)
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


@release_app.command(
    "quantize", epilog="Example: shoal release quantize ./minilm-fp32 -o ./minilm-int8"
)
def quantize_model(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="An ONNX file, or a directory with a model.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="New directory.")],
    board: Annotated[
        str, typer.Option("--target", help="arm64, avx2, avx512 or avx512_vnni.")
    ] = "arm64",
    calibration: Annotated[
        Path | None,
        typer.Option(help=".npz with real inputs, [n, ...] by input name: static quantisation."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make an INT8 model.onnx in OUT; it needs `pip install 'shoal[quantize]'`."""
    from shoal_fleet import quantize as quantization  # noqa: PLC0415 - it can take gigabytes to load

    try:
        target_name = next((name for name in quantization.TARGETS if name == board), None)
        if target_name is None:
            raise UsageError(f"--target {board!r} is none of {', '.join(quantization.TARGETS)}")
        items = None if calibration is None else _calibration(calibration)
        report = quantization.quantize(source, output, target=target_name, calibration=items)
    except quantization.QuantizeError as exc:
        raise FleetError(str(exc)) from exc
    if as_json:
        print_json(
            {
                "model": str(report.model),
                "mode": report.mode,
                "source_bytes": report.source_bytes,
                "model_bytes": report.model_bytes,
                "int8_nodes": report.int8_nodes,
                "float_matmuls": report.float_matmuls,
            }
        )
        return
    typer.echo(
        f"{report.model}: {report.mode}, {size(report.source_bytes)} -> {size(report.model_bytes)},"
        f" {report.int8_nodes} nodes in INT8, {report.float_matmuls} left in float"
    )


def _calibration(path: Path) -> list[dict[str, Any]]:
    """The items of an .npz: row k of every array is item k."""
    import numpy as np  # noqa: PLC0415 - only here

    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as exc:
        raise FleetError(f"{path}: is not an .npz of inputs: {exc}") from exc
    counts = {len(values) if values.ndim else 0 for values in inputs.values()}
    if len(counts) != 1:
        raise FleetError(f"{path}: the inputs do not have the same number of items")
    return [
        {name: values[index] for name, values in inputs.items()} for index in range(counts.pop())
    ]


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
