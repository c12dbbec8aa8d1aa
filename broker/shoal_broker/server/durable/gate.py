"""Holds answers back until what they promise is on the disk. Knows connections, not what they say.

Answers stay in order, each connection's own: nothing of a connection overtakes what is held of it, but
for a PINGRESP, which promises nothing and may not be late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shoal_broker.server.connection import Connection
from shoal_broker.server.durable.committer import Committer

PINGRESP = b"\xd0\x00"


class Gate:
    """`write(connection, output)` takes what is released; `read_on()` is called when `is_full` ended."""

    def __init__(
        self,
        committer: Committer,
        *,
        write: Callable[[Connection, bytes], None],
        read_on: Callable[[], None],
        is_gone: Callable[[Connection], bool],
    ) -> None:
        self._committer = committer
        self._write = write
        self._read_on = read_on
        self._is_gone = is_gone
        self._held: deque[tuple[int, Connection, bytes]] = deque()
        """With the batch that each waits for."""
        committer.on_progress = self._progress

    @property
    def is_full(self) -> bool:
        """Whether so much is not on the disk yet that nobody should be read."""
        return self._committer.too_much

    @property
    def committer(self) -> Committer:
        """What writes; for its counters."""
        return self._committer

    async def run(self) -> None:
        """Commit what changes, until `stop`."""
        await self._committer.run()

    async def stop(self) -> None:
        """Return once everything is on the disk, and released."""
        await self._committer.stop()
        self._release()

    def sweep(self) -> None:
        """Commit what nobody waits for; called once a second."""
        self._committer.sweep()

    def pass_on(self, connection: Connection) -> bytes:
        """Of the connection's output, what can be written at once; the rest is held."""
        waits_for = self._committer.unsafe
        if not waits_for and not connection.held_bytes:
            return connection.take_output()
        early = 0 if connection.held_bytes else connection.early
        now = connection.output[:early]
        later: list[bytes] = []
        for piece in connection.output[early:]:
            (now if piece == PINGRESP else later).append(piece)
        connection.take_output()
        if later:
            output = b"".join(later)
            connection.held_bytes += len(output)
            self._held.append((waits_for or self._held[-1][0], connection, output))
        return b"".join(now)

    def proceed(self) -> None:
        """Called once an iteration of the event loop: release what is safe, commit what is not."""
        self._release()
        self._committer.changed()

    def _progress(self) -> None:
        self._release()
        if not self._committer.recorder.accepting:
            # Clients that hear nothing come again and again, for as long as the disk is full.
            self._held = deque(each for each in self._held if not self._is_gone(each[1]))
        if not self.is_full:
            self._read_on()
        self._committer.changed()

    def _release(self) -> None:
        unsafe = self._committer.oldest_unsafe
        held = self._held
        while held and (not unsafe or held[0][0] < unsafe):
            _, connection, output = held.popleft()
            connection.held_bytes -= len(output)
            self._write(connection, output)
