"""Messages that are held in memory for a moment, in the hope that their receipts come before the disk is due.

While the line is good a reading is committed at its receiver within milliseconds: writing it here too
would only wear the flash. So it is sent from memory, and written when its receipt does not come.
It decides when to write; how is told by `queue`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from shoal_broker.outbox.index import Entry
from shoal_broker.outbox.rows import OutboxMessage

# Nobody waits longer for the disk because of us; a device gets its answer that much later.
HOLD_S = 1.0
# So many share one commit: beyond it the disk is cheap, and memory is not.
HOLD_MESSAGES = 8

WriteGroup = Callable[[list[Entry]], Awaitable[None]]


class Held:
    """The messages that are not on the disk.

    Attributes:
        receipts_are_prompt: the last message that was held had its receipt in time.
    """

    def __init__(self, write: WriteGroup) -> None:
        self.receipts_are_prompt = False
        self._write = write
        self._unwritten: dict[int, Entry] = {}
        self._safe: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(-1, -1)
        self._turns = itertools.count(1)
        self._writing = asyncio.Lock()

    @property
    def may_hold(self) -> bool:
        """Whether holding one more promises to save a write."""
        return self.receipts_are_prompt and len(self._unwritten) < HOLD_MESSAGES

    def entry(self, message: OutboxMessage, *, after: int) -> Entry:
        """A message to hold, in its place behind the row `after`."""
        entry = Entry(
            next(self._numbers),
            (after, next(self._turns)),
            int(message.lane),
            message.size_bytes,
            message.gone_at_ms,
            message.coalesce_key,
            message.receipt,
            message.topic if message.droppable else None,
            message=message,
        )
        self._unwritten[entry.handle] = entry
        self._safe[entry.handle] = asyncio.get_running_loop().create_future()
        return entry

    def forget(self, handle: int) -> None:
        """The message is through, or on the disk: whoever waits for that hears it."""
        self._unwritten.pop(handle, None)
        safe = self._safe.pop(handle, None)
        if safe is not None and not safe.done():
            safe.set_result(None)

    async def wait_safe(self, handle: int) -> None:
        """Return once the message is safe. Raises StoreError when it will not be."""
        if (safe := self._safe.get(handle)) is not None:
            await asyncio.shield(safe)

    async def wait_received_or_write(self, entry: Entry, hold_s: float) -> None:
        """Return once the message is through, or on the disk. Raises what writing raises."""
        safe = self._safe[entry.handle]
        try:
            if len(self._unwritten) < HOLD_MESSAGES:
                await asyncio.wait((safe,), timeout=hold_s)
                if not safe.done():
                    self.receipts_are_prompt = False
            if not safe.done():
                await self.write_now()
        except Exception as exc:
            self._unwritten.pop(entry.handle, None)
            if not safe.done():
                safe.set_exception(exc)
                # Whether anybody else waits or not.
                safe.exception()
            raise
        finally:
            self.forget(entry.handle)

    async def write_now(self) -> None:
        """Put all that is held on the disk. Raises what writing raises; then it is held on."""
        async with self._writing:
            group = list(self._unwritten.values())
            if not group:
                return
            await self._write(group)
            for entry in group:
                self.forget(entry.handle)
