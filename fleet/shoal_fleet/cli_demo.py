"""`shoal demo` on the command line; what it does is `shoal_fleet.demo`."""

from pathlib import Path
from typing import Annotated

import typer

from shoal_fleet.cli_output import AsJson


def demo(
    *,
    nodes: Annotated[int, typer.Option(min=2, max=32, help="How many boards.")] = 5,
    svg: Annotated[Path | None, typer.Option(help="Draw a picture of the run here.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Work in this empty directory and leave it, logs and all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a small fleet on this machine and show what Shoal does, in about two minutes."""
    # Imported here: the other commands need none of it.
    from shoal_fleet.demo.command import run  # noqa: PLC0415

    run(nodes=nodes, as_json=as_json, svg=svg, keep=keep)
