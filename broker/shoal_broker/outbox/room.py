"""How much an outbox may hold: what must go for a new message, and what is refused. Pure.

Only droppable messages go, the oldest first: of the message's own stream when that has its share, else
of all. Dropping itself, and counting it, is `queue`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shoal_broker.bus_errors import MessageTooLargeError, OutboxFullError
from shoal_broker.outbox.index import Index
from shoal_broker.outbox.rows import OutboxMessage


class Room:
    """The limits of one outbox; `drop` gets the handle of each message that must go."""

    def __init__(
        self, index: Index, *, max_rows: int, max_bytes: int, drop: Callable[[int], None]
    ) -> None:
        self._index = index
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._drop = drop
        self._reserved_rows = 0
        self._reserved_bytes = 0

    @contextmanager
    def reserved(self, message: OutboxMessage) -> Iterator[None]:
        """The message counts while it is written."""
        self._reserved_rows += 1
        self._reserved_bytes += message.size_bytes
        try:
            yield
        finally:
            self._reserved_rows -= 1
            self._reserved_bytes -= message.size_bytes

    def make(self, message: OutboxMessage, *, stream_bytes: int | None) -> bool:
        """Drop what must go for `message`; False when it is the one to drop itself.

        Raises OutboxFullError, MessageTooLargeError.
        """
        size_bytes = message.size_bytes
        limit_bytes = min(
            self._max_bytes, self._max_bytes if stream_bytes is None else stream_bytes
        )
        if size_bytes > limit_bytes:
            raise MessageTooLargeError(
                f"a message of {size_bytes} bytes for {message.topic} never fits the outbox"
                f" ({limit_bytes} bytes)",
                size_bytes=size_bytes,
                limit_bytes=limit_bytes,
            )
        if stream_bytes is not None and not self._make_in_stream(message, stream_bytes):
            return False
        replaced = self._index.by_key.get(message.coalesce_key or "")
        spare_rows = 0 if replaced is None else 1
        spare_bytes = 0 if replaced is None else self._index.entries[replaced].size_bytes
        while (
            len(self._index.entries) + self._reserved_rows - spare_rows >= self._max_rows
            or self._index.size_bytes + self._reserved_bytes - spare_bytes + size_bytes
            > self._max_bytes
        ):
            if (oldest := self._index.oldest_droppable()) is not None:
                self._drop(oldest)
            elif message.droppable:
                return False
            else:
                self._refuse()
        return True

    def _make_in_stream(self, message: OutboxMessage, stream_bytes: int) -> bool:
        while (stream := self._index.streams.get(message.topic)) is not None:
            if stream.size_bytes + message.size_bytes <= stream_bytes:
                break
            if (oldest := self._index.oldest_droppable(message.topic)) is None:
                return False
            self._drop(oldest)
        return True

    def _refuse(self) -> None:
        rows, size_bytes = len(self._index.entries), self._index.size_bytes
        raise OutboxFullError(
            f"the outbox is full ({rows} rows, {size_bytes} bytes): the broker has been away for"
            " long, or the limits are too low",
            rows=rows,
            size_bytes=size_bytes,
        )
