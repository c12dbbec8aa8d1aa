"""`shoal demo`: sets the stage, tells the story, shows the facts, cleans up."""

import asyncio
import dataclasses
import tempfile
from pathlib import Path

from rich.console import Console

from shoal_fleet.demo import minilm, show
from shoal_fleet.demo.facts import Facts, Pair, table
from shoal_fleet.demo.site import build
from shoal_fleet.demo.story import Progress, Story

RATE_HZ = 40.0


def run(*, nodes: int, as_json: bool, svg: Path | None, keep: Path | None) -> Facts:
    """Run the demo once; people read stderr, the JSON line goes to stdout.

    Args:
        nodes: how many boards, at least 2 (a neighbour must be there to help).
        as_json: end with the facts as one line of JSON instead of the table.
        svg: draw a picture of the run into this file.
        keep: work in this directory and leave it, with all logs.

    Raises:
        DemoError: something did not come to its end; the message says what, and where its log is.
    """
    console = Console(stderr=as_json)
    progress = Progress()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        facts = _play(keep.resolve(), nodes, console, progress)
    else:
        # A short name, because the path of a Unix socket may have 107 bytes.
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            facts = _play(Path(folder), nodes, console, progress)
    console.print(table(facts))
    if svg is not None:
        svg.write_text(show.picture(progress, facts), encoding="utf-8")
    if as_json:
        Console(soft_wrap=True, highlight=False).print(facts.to_json(), markup=False)
    return facts


def _play(folder: Path, nodes: int, console: Console, progress: Progress) -> Facts:
    async def play() -> Facts:
        async with build(folder, nodes=nodes, rate_hz=RATE_HZ) as site:
            return await Story(site, progress).tell()

    with show.live(console, progress):
        progress.begin(f"starting broker, controller, and {nodes} boards with a device each")
        facts = asyncio.run(play())
        reason = minilm.available()
        if reason is not None:
            return dataclasses.replace(facts, minilm_reason=reason)
        progress.begin("the same for a 23 MB MiniLM pair")
        sizes = minilm.compare(folder / "minilm", lambda note: setattr(progress, "note", note))
        progress.begin("")
    pair = Pair(
        sizes.what, sizes.full_bytes, min(sizes.xz_bytes, sizes.zstd_bytes), sizes.delta_bytes
    )
    return dataclasses.replace(facts, minilm=pair)
