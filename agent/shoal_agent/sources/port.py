"""What a source of chunks is, and the loop that has one bring what is missing.

The broker is the other kind: it sends chunks by itself (`collecting`). Both end at `arriving`, which takes
a chunk by its hash alone, so a fetch goes from one to the other in the middle of a blob.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from shoal_agent.allowance import Allowance
from shoal_agent.arriving import Arriving
from shoal_agent.sources.errors import SourceError
from shoal_contract import blobs
from shoal_contract.messages import BlobRef

log = structlog.get_logger()


class ChunkSource(Protocol):
    """Hands out chunks when it is asked.

    Attributes:
        name: "peers" or "https".
        side_by_side: how many chunks it is to be asked for at a time.
    """

    name: str
    side_by_side: int

    async def find(self, ref: BlobRef) -> bool:
        """Whether it is worth asking for chunks of this blob now; costs next to nothing."""
        ...

    async def chunk(self, ref: BlobRef, index: int) -> bytes:
        """Chunk `index`, checked by its hash. It takes a bounded time.

        Raises:
            SourceError: it has not got it, or nobody answers.
        """
        ...

    def close(self) -> None:
        """Nothing more is wanted for now: give back what is kept open."""
        ...


async def pull(
    source: ChunkSource,
    arriving: Arriving,
    *,
    allowance: Allowance,
    count: Callable[[int], None],
    progress: Callable[[int], Awaitable[None]] | None,
) -> None:
    """Have a source bring missing chunks; returns when none is missing or it brings no more.

    Each chunk waits for `allowance` first; `count` gets the size of every one that came.

    Raises:
        OSError: the part file cannot be written.
    """
    ref = arriving.ref
    if not await source.find(ref):
        return
    queue = deque(sorted(arriving.missing))
    is_over = False

    async def slot() -> None:
        nonlocal is_over
        while queue and not is_over and arriving.failure is None:
            index = queue.popleft()
            size_bytes = blobs.chunk_bytes_of(ref, index)
            await allowance.wait(size_bytes)
            if index not in arriving.missing:
                allowance.give_back(size_bytes)
                continue
            try:
                chunk = await source.chunk(ref, index)
            except SourceError as exc:
                allowance.give_back(size_bytes)
                log.info("source left", source=source.name, blob=_short(ref), reason=str(exc))
                is_over = True
                return
            count(len(chunk))
            arriving.take(index, chunk)
            if progress is not None:
                await progress(arriving.received_bytes)

    log.info("source asked", source=source.name, blob=_short(ref), missing=len(queue))
    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(min(source.side_by_side, len(queue))):
                tasks.create_task(slot(), name=f"sources.{source.name}.{number}")
    finally:
        source.close()
    if arriving.failure is not None:
        raise arriving.failure


def _short(ref: BlobRef) -> str:
    return ref.digest.hex()[:12]
