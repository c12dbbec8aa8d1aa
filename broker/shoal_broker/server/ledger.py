"""How much all queues hold together. Pure.

A message that waits for a thousand sessions is in memory once, so queues cannot be summed up: each
message is on the books from its making until the last one lets go of it, wherever it is kept. To that
comes what each queue needs for an entry of its own.
"""

from __future__ import annotations

ENTRY_BYTES = 256
"""What a message costs in a queue, beside the message."""


class Ledger:
    """Bytes of messages that wait, of all sessions, against one limit."""

    __slots__ = ("_counted", "_max_bytes", "added", "live_bytes", "retained_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.live_bytes = 0
        """Messages that exist, retained ones included."""
        self.retained_bytes = 0
        """Of these, what the retained store holds, under a limit of its own."""
        self._counted = 0
        self.added = 0
        """Entries in queues since they were counted last; none of these is known to be gone."""

    @property
    def queued_bytes(self) -> int:
        """What the limit is for."""
        entries = self._counted + self.added
        return self.live_bytes - self.retained_bytes + entries * ENTRY_BYTES

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        # As queued_bytes, which every delivery would have to call.
        entries = self._counted + self.added
        return self.live_bytes - self.retained_bytes + entries * ENTRY_BYTES > self._max_bytes

    def count(self, entries: int) -> None:
        """So many are in all queues now."""
        self._counted = entries
        self.added = 0
