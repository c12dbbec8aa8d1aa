"""The changes that one commit writes: for every row its last state. Written in one transaction.

Two batches make one when the first could not be written: what the second took back is not written at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field

from shoal_broker.server.durable import schema
from shoal_broker.server.durable.rows import packet_of
from shoal_broker.server.durable.timeline import Timeline
from shoal_broker.server.messages import Message

Values = tuple[int | str | bytes | None, ...]


@dataclass(slots=True)
class Batch:
    """Last states by key; None where the row is gone."""

    timeline: Timeline
    clock: tuple[int, int] | None = None
    sessions: dict[int, Values | None] = field(default_factory=dict)
    subscriptions: dict[tuple[int, str], Values | None] = field(default_factory=dict)
    messages: dict[int, Message | None] = field(default_factory=dict)
    retained: dict[int, Values | None] = field(default_factory=dict)
    queued: dict[int, Values | None] = field(default_factory=dict)
    received: dict[tuple[int, int], Values | None] = field(default_factory=dict)

    def absorb(self, later: Batch) -> None:
        """Become both: this one, and then `later`."""
        self.clock = later.clock or self.clock
        self.sessions |= later.sessions
        self.subscriptions |= later.subscriptions
        self.messages |= later.messages
        self.retained |= later.retained
        self.queued |= later.queued
        self.received |= later.received

    def write(self, connection: sqlite3.Connection) -> None:
        """Write everything, in the transaction that is open. Deletions first: they make room."""
        many = connection.executemany
        many(schema.DELETE_QUEUED, _gone(self.queued))
        many(schema.DELETE_RETAINED, _gone(self.retained))
        many(schema.DELETE_MESSAGE, _gone(self.messages))
        many(schema.DELETE_SESSION, _gone(self.sessions))
        many(schema.DELETE_SUBSCRIPTION, _gone_pairs(self.subscriptions))
        many(schema.DELETE_RECEIVED, _gone_pairs(self.received))
        many(schema.PUT_MESSAGE, self._messages())
        many(schema.PUT_QUEUED, _kept(self.queued))
        many(schema.PUT_RETAINED, _kept(self.retained))
        many(schema.PUT_SESSION, _kept(self.sessions))
        many(schema.PUT_SUBSCRIPTION, _kept(self.subscriptions))
        many(schema.PUT_RECEIVED, _kept(self.received))
        if self.clock is not None:
            connection.execute(schema.PUT_CLOCK, self.clock)

    def _messages(self) -> Iterator[Values]:
        stored = self.timeline.stored
        for number, message in self.messages.items():
            if message is not None:
                expires_at_ms = stored(message.expires_at_s)
                yield number, message.publisher, expires_at_ms, packet_of(message)


def _gone(rows: dict[int, Values | None] | dict[int, Message | None]) -> Iterator[tuple[int]]:
    return ((key,) for key, values in rows.items() if values is None)


def _gone_pairs(
    rows: dict[tuple[int, str], Values | None] | dict[tuple[int, int], Values | None],
) -> Iterator[tuple[int, str | int]]:
    return (key for key, values in rows.items() if values is None)


def _kept(
    rows: dict[int, Values | None]
    | dict[tuple[int, str], Values | None]
    | dict[tuple[int, int], Values | None],
) -> Iterator[Values]:
    return (values for values in rows.values() if values is not None)
