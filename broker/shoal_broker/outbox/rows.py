"""The rows of the outbox: what a message is, the table it stands in, and the statements on it.

Which row is next is `index`'s business, and when it leaves `queue`'s.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from shoal_broker.link import Properties

COMPONENT = "outbox"
VERSION = 3
DDL = """
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    lane INTEGER NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    expires_at_ms INTEGER,
    response_topic TEXT,
    correlation BLOB,
    coalesce_key TEXT,
    droppable INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    receipt BLOB,
    keep_until_ms INTEGER,
    properties TEXT
);
CREATE INDEX outbox_coalesce ON outbox (coalesce_key) WHERE coalesce_key IS NOT NULL;
"""
MIGRATIONS = {
    2: "ALTER TABLE outbox ADD COLUMN receipt BLOB;",
    3: "ALTER TABLE outbox ADD COLUMN keep_until_ms INTEGER;"
    "ALTER TABLE outbox ADD COLUMN properties TEXT;",
}
# What a row costs beside its payload and topic: columns, index entries, page overhead.
ROW_OVERHEAD_BYTES = 64


class Lane(IntEnum):
    """Who goes first. Any integer is a lane; these are the ones that Shoal uses."""

    BULK = 0
    TELEMETRY = 10
    NORMAL = 20
    URGENT = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """What to publish. `expires_at_ms` is wall-clock milliseconds since the epoch.

    `keep_until_ms` likewise: it waits no longer than that, but its receivers are told nothing of it.

    A newer message with the same `coalesce_key` replaces an older one (retained state);
    a `droppable` one (telemetry) may be dropped, and is counted, when the outbox is full.
    `receipt` is what the application at the other end names the message by once it has committed it:
    the row lives until then. Without one the row ends at PUBACK.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    lane: int = Lane.NORMAL
    expires_at_ms: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    coalesce_key: str | None = None
    droppable: bool = False
    receipt: bytes | None = None
    keep_until_ms: int | None = None
    properties: Properties | None = None

    @property
    def size_bytes(self) -> int:
        """What the message counts against the outbox's byte limit."""
        variable = len(self.response_topic or "") + len(self.correlation or b"")
        if self.properties is not None:
            variable += self.properties.packet_bytes
        return len(self.topic) + len(self.payload) + variable + ROW_OVERHEAD_BYTES

    @property
    def gone_at_ms(self) -> int | None:
        """When it is of no use any more, for whichever reason."""
        if self.keep_until_ms is None or self.expires_at_ms is None:
            return self.expires_at_ms if self.keep_until_ms is None else self.keep_until_ms
        return min(self.expires_at_ms, self.keep_until_ms)


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message together with the handle that the outbox knows it by."""

    id: int
    message: OutboxMessage


def insert(connection: sqlite3.Connection, message: OutboxMessage) -> int:
    """Add a row within the caller's transaction and return its id.

    For callers that commit an effect and its answer together; after the commit they call
    `Session.outbox_changed()`. Limits are not checked: an answer to work that is done always fits.
    """
    if message.coalesce_key is not None:
        connection.execute("DELETE FROM outbox WHERE coalesce_key = ?", (message.coalesce_key,))
    cursor = connection.execute(
        "INSERT INTO outbox (lane, topic, payload, qos, retain, expires_at_ms, response_topic,"
        " correlation, coalesce_key, droppable, size_bytes, receipt, keep_until_ms, properties)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            int(message.lane),
            message.topic,
            message.payload,
            message.qos,
            message.retain,
            message.expires_at_ms,
            message.response_topic,
            message.correlation,
            message.coalesce_key,
            message.droppable,
            message.size_bytes,
            message.receipt,
            message.keep_until_ms,
            None
            if message.properties is None
            else msgspec.json.encode(message.properties).decode(),
        ),
    )
    assert cursor.lastrowid is not None  # noqa: S101 - an INSERT that did not raise has one
    return cursor.lastrowid


def delete(connection: sqlite3.Connection, row_ids: Iterable[int]) -> None:
    """Delete these rows within the caller's transaction."""
    connection.executemany("DELETE FROM outbox WHERE id = ?", ((row_id,) for row_id in row_ids))


def fetch(connection: sqlite3.Connection, row_ids: Iterable[int]) -> dict[int, OutboxMessage]:
    """The messages of these rows by row id; those that are gone are left out."""
    messages = {}
    for row_id in row_ids:
        found = connection.execute(
            "SELECT topic, payload, qos, retain, lane, expires_at_ms, response_topic, correlation,"
            " coalesce_key, droppable, receipt, keep_until_ms, properties FROM outbox WHERE id = ?",
            (row_id,),
        ).fetchone()
        if found is not None:
            messages[row_id] = OutboxMessage(
                topic=found[0],
                payload=found[1],
                qos=found[2],
                retain=bool(found[3]),
                lane=found[4],
                expires_at_ms=found[5],
                response_topic=found[6],
                correlation=found[7],
                coalesce_key=found[8],
                droppable=bool(found[9]),
                receipt=found[10],
                keep_until_ms=found[11],
                properties=None
                if found[12] is None
                else msgspec.json.decode(found[12], type=Properties),
            )
    return messages
