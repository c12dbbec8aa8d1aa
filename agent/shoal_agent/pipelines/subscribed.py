"""The filters that this node has subscribed to for its pipelines, over restarts.

A broker keeps the subscriptions of a session. One whose pipeline is gone from the configuration has to be
taken back, or its messages come for ever.
"""

import asyncio
import sqlite3
from collections.abc import Iterable
from functools import partial
from typing import Final

import structlog

from shoal_broker.bus_errors import BusError
from shoal_broker.session import Session
from shoal_broker.store import Store

log = structlog.get_logger()

COMPONENT: Final = "pipelines"
VERSION: Final = 1
DDL: Final = "CREATE TABLE filters (filter TEXT PRIMARY KEY) WITHOUT ROWID;"
_CONNECT_TIMEOUT_S: Final = 3600.0
_RETRY_S: Final = 5.0


async def remember(store: Store, filters: Iterable[str]) -> list[str]:
    """Note the filters of now; those of an earlier configuration that are none any more.

    Raises:
        StoreError: the file cannot be used, or a newer version wrote it.
    """
    await store.create(COMPONENT, version=VERSION, ddl=DDL)
    present = set(filters)

    def run(db: sqlite3.Connection) -> list[str]:
        earlier = {row[0] for row in db.execute("SELECT filter FROM filters")}
        db.executemany("INSERT OR IGNORE INTO filters VALUES (?)", [(one,) for one in present])
        return sorted(earlier - present)

    return await store.write(run)


async def take_back(store: Store, session: Session, filters: Iterable[str]) -> None:
    """Unsubscribe from these as soon as there is a broker, and forget them then."""
    for topic_filter in filters:
        while not await _is_taken_back(session, topic_filter):  # noqa: ASYNC110 - nothing to wait for but time
            await asyncio.sleep(_RETRY_S)
        await store.write(partial(_forget, topic_filter))


async def _is_taken_back(session: Session, topic_filter: str) -> bool:
    try:
        await session.wait_connected(_CONNECT_TIMEOUT_S)
        connected_s = session.linked_s
        await session.unsubscribe(topic_filter)
    except BusError as exc:
        log.info("not unsubscribed yet", filter=topic_filter, reason=str(exc))
        return False
    # A link that was lost meanwhile may have taken the request with it.
    return session.connected and session.linked_s == connected_s


def _forget(topic_filter: str, db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM filters WHERE filter = ?", (topic_filter,))
