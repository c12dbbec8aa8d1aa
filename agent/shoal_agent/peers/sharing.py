"""Hands out chunks of whole, verified blobs to neighbours, slowly enough that nothing here suffers from it."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from shoal_agent.allowance import Allowance
from shoal_agent.files import ContentStore
from shoal_contract.messages import ChunkReply, ChunkRequest

MOST_BYTES: Final = 95 * 1024
"""Of a chunk in a message, which has 96 KiB with its frame."""
PATIENCE_S: Final = 0.5
"""A neighbour waits so long for its turn; beyond that it is told that we are busy."""
LATE_S: Final = 0.02
"""A turn of the event loop that takes longer delays control loops that run in it, too."""
QUIET_S: Final = 2.0


class Sharing:
    """Answers requests for chunks.

    Args:
        content: what is held. Only blobs are handed out, never what is still arriving.
        bytes_per_s: to all neighbours together; 0: any.
        is_strained: whether this node's own work waits.
        clock: seconds that only grow.

    Attributes:
        given_bytes: what was handed out since the start.
        declined: requests that were not answered with bytes, because we were busy.
    """

    def __init__(
        self,
        content: ContentStore,
        *,
        bytes_per_s: int,
        is_strained: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.given_bytes = 0
        self.declined = 0
        self._content = content
        self._allowance = Allowance(bytes_per_s, clock=clock)
        self._is_strained = is_strained
        self._clock = clock
        self._quiet_until_s = 0.0

    async def answer(self, request: ChunkRequest) -> ChunkReply:
        """The bytes, or why there are none; does not raise."""
        path = self._content.path(request.blob)
        try:
            size_bytes = path.stat().st_size
        except OSError:
            return ChunkReply(request.id, b"", "not here")
        end_bytes = request.offset_bytes + request.size_bytes
        if end_bytes > size_bytes or request.size_bytes > MOST_BYTES:
            return ChunkReply(request.id, b"", "no such chunk")
        if not await self._may_give(request.size_bytes):
            self.declined += 1
            return ChunkReply(request.id, b"", "busy")
        try:
            data = await asyncio.to_thread(
                _read, str(path), request.offset_bytes, request.size_bytes
            )
        except OSError as exc:
            return ChunkReply(request.id, b"", f"cannot be read: {exc.strerror}")
        self.given_bytes += len(data)
        return ChunkReply(request.id, data)

    async def _may_give(self, size_bytes: int) -> bool:
        before_s = self._clock()
        if before_s < self._quiet_until_s or self._is_strained():
            return False
        await asyncio.sleep(0)
        if self._clock() - before_s > LATE_S:
            self._quiet_until_s = self._clock() + QUIET_S
            return False
        delay_s = self._allowance.delay_s(size_bytes)
        if delay_s > PATIENCE_S:
            self._allowance.give_back(size_bytes)
            return False
        await asyncio.sleep(delay_s)
        return True


def _read(path: str, offset_bytes: int, size_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size_bytes, offset_bytes)
    finally:
        os.close(descriptor)
