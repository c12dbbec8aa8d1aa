"""`shoal demo`: sets the stage, tells the story, shows the facts, cleans up."""

import asyncio
import dataclasses
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from shoal_fleet.demo import minilm, show
from shoal_fleet.demo.facts import Facts, Pair, table
from shoal_fleet.demo.site import build
from shoal_fleet.demo.story import Progress, Story
from shoal_fleet.errors import UsageError

RATE_HZ = 40.0


def run(*, nodes: int, as_json: bool, svg: Path | None, keep: Path | None) -> Facts:
    """Run the demo once; people read stderr, the JSON line goes to stdout.

    Args:
        nodes: how many boards, at least 2 (a neighbour must be there to help).
        as_json: end with the facts as one line of JSON instead of the table.
        svg: draw a picture of the run into this file.
        keep: work in this empty directory and leave it, with all logs.

    Raises:
        UsageError: `keep` cannot be used.
        DemoError: something did not come to its end; the message says what, and where its log is.
    """
    console = Console(stderr=as_json)
    progress = Progress()
    try:
        with _folder(keep) as folder:
            facts = _play(folder, nodes, console, progress)
    except KeyboardInterrupt:
        console.print("interrupted: everything that was started has ended", highlight=False)
        raise
    console.print(table(facts))
    if svg is not None:
        svg.write_text(show.picture(progress, facts), encoding="utf-8")
    if as_json:
        Console(soft_wrap=True, highlight=False).print(facts.to_json(), markup=False)
    return facts


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        # A short name, because the path of a Unix socket may have 107 bytes.
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UsageError(f"--keep {keep}: the directory is not empty")
    except OSError as exc:
        raise UsageError(f"--keep {keep}: {exc.strerror}") from exc
    yield keep.resolve()


def _play(folder: Path, nodes: int, console: Console, progress: Progress) -> Facts:
    async def play() -> Facts:
        # SIGTERM ends it as Ctrl-C does: in order, with nothing left behind.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
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
