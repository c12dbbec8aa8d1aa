"""A release for 10, 100 and 300 boards: what the controller sends, what the broker, what neighbours.

The publisher is the controller's (sources_controller.py), the boards are real sessions, content stores and
fetchers, many to a process (sources_boards.py), the broker is the embedded one. Bytes are what counts: the boards
stand on one machine, so how long it takes says more of that machine than of a fleet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

import processes
from brokers import shoal_broker
from measure import BenchError, Column, Figure, Goal, Options, Row, Table
from sources_controller import publishing

CHILD = Path(__file__).with_name("sources_boards.py")
PROCESSES = 4
TIMEOUT_S = 240.0
MODEL_BYTES = 1 << 20
# Beside the model: manifest, description, golden inputs.
SMALL_BYTES = (400, 900, 30_000)
MOST_MORE = 1.02
"""So much more the controller may send to 300 boards than to 10."""


@dataclass(frozen=True, slots=True)
class Case:
    """How many boards, with a model of which size; with `has_lan` those of a process are neighbours."""

    boards: int
    model_bytes: int = MODEL_BYTES
    has_lan: bool = False

    @property
    def name(self) -> str:
        """As the table has it."""
        lan = ", neighbours" if self.has_lan else ""
        return f"{self.boards} boards, model of {self.model_bytes >> 20} MiB{lan}"


CASES = (Case(10), Case(100), Case(300), Case(10, 4 * MODEL_BYTES), Case(300, has_lan=True))
QUICK_CASES = (Case(8), Case(24), Case(24, has_lan=True))


def run(options: Options, say: Callable[[str], None]) -> Table:
    """One round: sums of bytes do not vary as seconds do."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    cases = QUICK_CASES if options.is_quick else CASES
    figures: dict[Case, dict[str, float]] = {}
    for case in cases:
        say(case.name)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures[case] = asyncio.run(_round(case, Path(folder), options.seed))
    plain = [case for case in cases if not case.has_lan and case.model_bytes == MODEL_BYTES]
    more = figures[plain[-1]]["up"] / figures[plain[0]]["up"]
    name = f"the controller's bytes for {plain[-1].boards} boards / for {plain[0].boards}"
    return Table(
        title="sources: a release for a fleet through the broker",
        columns=(
            Column("up", "controller sent, B", spread=False),
            Column("share", "of the release", 3, spread=True),
            Column("broker", "boards got from the broker, B", spread=False),
            Column("peers", "from neighbours, B", spread=False),
            Column("resent", "chunks sent again", spread=False),
            Column("took_s", "s", 1, spread=False),
        ),
        rows=tuple(
            Row(case.name, is_ours=True, figures={key: Figure.of([v]) for key, v in of.items()})
            for case, of in figures.items()
        ),
        goals=(Goal(name, "x", Figure.of([more]), MOST_MORE, decimals=3),),
        settings=(
            "controller: its real publisher; all that it says on its TCP connection is counted",
            f"boards: real sessions, content stores and fetchers in {PROCESSES} processes; every blob is verified whole",
            "all chunks are at the broker before the boards start, and no board is lost or late",
            "neighbours: the boards of a process, told of each other and without TLS; one of each fetches first",
            "they give 4 MiB/s each, however late their common loop is",
        ),
    )


async def _round(case: Case, folder: Path, seed: int) -> dict[str, float]:
    drawn = random.Random(seed)  # noqa: S311 - contents
    contents = [drawn.randbytes(size) for size in (*SMALL_BYTES, case.model_bytes)]
    release_bytes = sum(map(len, contents))
    with shoal_broker("shoal") as broker:
        async with publishing(broker.port, folder, contents) as controller:
            refs = folder / "refs.json"
            refs.write_bytes(msgspec.json.encode(controller.refs))
            told = await _boards(case, broker.port, folder, refs)
            up_bytes = controller.up_bytes
            publisher = controller.publisher
            resent = publisher.resent_chunks + publisher.requested_chunks
    whole = sum(
        (folder / f"board-{number}" / "blobs" / ref.digest.hex()).stat().st_size == ref.size_bytes
        for number in range(case.boards)
        for ref in controller.refs
    )
    if whole != case.boards * len(contents):
        raise BenchError(f"{whole} of {case.boards * len(contents)} blobs are at the boards")
    return {
        "up": up_bytes,
        "share": up_bytes / release_bytes,
        "broker": told["broker"],
        "peers": told["peers"],
        "resent": resent,
        "took_s": told["took_s"],
    }


async def _boards(case: Case, port: int, folder: Path, refs: Path) -> dict[str, float]:
    """What came from where to all of them, and how long the slowest process took."""
    shares = [len(range(n, case.boards, PROCESSES)) for n in range(PROCESSES)]
    told: Counter[str] = Counter()
    slowest_s = 0.0
    with ExitStack() as stack:
        children = []
        for n, share in enumerate(shares):
            first, holders = str(sum(shares[:n])), str(int(case.has_lan))
            arguments = [CHILD, str(port), folder, first, str(share), refs, holders]
            started = processes.child([processes.PYTHON, *arguments], stdout=subprocess.PIPE)
            children.append(stack.enter_context(started))
        for child in children:
            try:
                said = json.loads((await asyncio.to_thread(child.communicate, None, TIMEOUT_S))[0])
            except (subprocess.TimeoutExpired, ValueError) as exc:
                raise BenchError(f"boards did not get through: {case.name}") from exc
            slowest_s = max(slowest_s, said.pop("took_s"))
            told.update(said)
    return {"broker": told["broker"], "peers": told["peers"], "took_s": slowest_s}
