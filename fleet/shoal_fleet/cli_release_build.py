"""`shoal release build`: a float model becomes a release directory, on this machine."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_fleet.cli_output import AsJson, Target, print_json, printable, size, target
from shoal_fleet.errors import FleetError, UsageError
from shoal_fleet.release_build.presets import PRESETS, preset_for, preset_for_all

AUTO = "fleet"
KINDS = ("classes", "embedding")


def build(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="An ONNX file, a Hugging Face directory, or a TorchScript file (.pt).",
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="New directory.")],
    spec: Annotated[
        Path | None,
        typer.Option(help="What the release is (TOML); without it: the model and its report only."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=".npz of real inputs, [n, ...] by input name, and labels [n] if known."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Other inputs to judge by; default: every fourth of --calibration."),
    ] = None,
    boards: Annotated[
        str,
        typer.Option(
            "--target", help=f"{', '.join(PRESETS)}; {AUTO}: what suits all of the fleet's boards."
        ),
    ] = "arm64",
    kind: Annotated[str, typer.Option(help="What it answers: classes or embedding.")] = "classes",
    task: Annotated[
        str, typer.Option(help="The Hugging Face task to export for.")
    ] = "feature-extraction",
    base: Annotated[
        Path | None,
        typer.Option(help="The old release (directory or model): keep its scales where possible."),
    ] = None,
    tau: Annotated[
        list[float] | None,
        typer.Option(help="With --base: try a dead band of so much of a step, too. Repeatable."),
    ] = None,
    carried: Annotated[
        Path | None,
        typer.Option(help="The old release's carry.npz, if training began from its INT8 weights."),
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of items that keep their class.")
    ] = 0.98,
    max_drop: Annotated[
        float, typer.Option(min=0, max=1, help="By so much the accuracy may fall.")
    ] = 0.01,
    environment: Annotated[
        Path | None,
        typer.Option(help="A virtual environment of yours with onnx, onnxruntime (and torch)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model small, judge it against the float one, and write a release directory.

    Ways are tried in order until one is good enough: dynamic or, with Conv, static INT8; the same with the
    noisiest nodes left in float; weights only; not quantised. The report lies beside the model.
    """
    # numpy and ONNX Runtime: `shoal --help` answers at once.
    from shoal_fleet.release_build.build_spec import read_build_spec  # noqa: PLC0415
    from shoal_fleet.release_build.builder import Request, build_release  # noqa: PLC0415
    from shoal_fleet.release_build.report import verdict  # noqa: PLC0415

    if kind not in KINDS:
        raise UsageError(f"--kind {kind!r} is none of {', '.join(KINDS)}")
    if any(not 0 < value <= 1 for value in tau or ()):
        raise UsageError("--tau is a share of a step: above 0, at most 1")
    if spec is not None and kind != "classes":
        raise UsageError("a release answers classes; build an embedding without --spec")
    where = target(context)
    request = Request(
        source=source,
        out=output,
        preset=_preset(where, boards),
        spec=None if spec is None else read_build_spec(spec),
        kind=kind,
        task=task,
        calibration=calibration,
        evaluation=evaluation,
        base=base,
        taus=tuple(tau or ()),
        carried=carried,
        limits={"agreement": min_agreement, "accuracy_drop": max_drop},
        environment=environment,
    )
    with _progress(is_quiet=as_json) as progress:
        facts = build_release(request, state_dir=where.state_dir, progress=progress)
    if as_json:
        print_json({"directory": str(output), **facts})
        return
    typer.echo(f"{output}: {verdict(facts)}")
    typer.echo(_line(facts))
    for choice in facts["choices"]:
        note = "taken" if choice["chosen"] else choice["refused"] or "larger"
        typer.echo(printable(f"update on {choice['name']}: {size(choice['delta_bytes'])} ({note})"))


def _line(facts: dict[str, Any]) -> str:
    best = facts["attempts"][-1]
    share = best["item_cpu_s"] / max(1e-12, facts["float_item_cpu_s"])
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best["figures"].items())
    return (
        f"{size(facts['source_bytes'])} -> {size(facts['model_bytes'])}, {share:.2f} of the float"
        f" model's processor time, on {facts['evaluation_items']} items: {figures}"
    )


def _preset(where: Target, name: str) -> str:
    if name in PRESETS:
        return name
    if name != AUTO:
        raise UsageError(f"--target {name!r} is none of {', '.join(PRESETS)}, {AUTO}")
    with where.connect() as client:
        nodes = client.get("/api/nodes")
    hardware = [node["reported"]["hardware"] for node in nodes if node["reported"]]
    if not hardware:
        raise FleetError("no board has said what it is yet: name a --target")
    return preset_for_all(
        [preset_for(each["machine"], each["cpu_flags"]) for each in hardware]
    ).name


@contextmanager
def _progress(*, is_quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar at a terminal, a line for each new step elsewhere, nothing when quiet; on stderr."""
    if is_quiet:
        yield lambda _step, _done, _of: None
        return
    if not sys.stderr.isatty():
        last = ""

        def say(step: str, _done: int, _of: int) -> None:
            nonlocal last
            if step != last:
                last = step
                typer.echo(printable(step), err=True)

        yield say
        return
    from rich.console import Console  # noqa: PLC0415 - only at a terminal
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def show(step: str, done: int, of: int) -> None:
            bars.update(bar, description=printable(step), total=of or None, completed=done)

        yield show
