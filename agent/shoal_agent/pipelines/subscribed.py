"""The filters that this node subscribes to for its pipelines, while it runs and over restarts.

A broker keeps the subscriptions of a session. One that no pipeline reads any more has to be taken back, or its
messages come for ever.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from shoal_agent.background import Background
from shoal_agent.pipelines.sources import AT_ONCE, TopicReader, TopicSource
from shoal_broker.bus_errors import BusError, RefusedByBrokerError, StoreError, TopicError
from shoal_broker.session import Session, SideBySide
from shoal_broker.store import Store

log = structlog.get_logger()

COMPONENT: Final = "pipelines"
VERSION: Final = 1
DDL: Final = "CREATE TABLE filters (filter TEXT PRIMARY KEY) WITHOUT ROWID;"
_CONNECT_TIMEOUT_S: Final = 3600.0
_RETRY_S: Final = 5.0
_REFUSED_RETRY_S: Final = 60.0


class Subscribed:
    """A source for each filter that is read. Build it with `await Subscribed.load(...)`, before the session."""

    def __init__(self, store: Store, filters: Iterable[str], stale: list[str]) -> None:
        self._store = store
        self._sources = {name: TopicSource(name) for name in dict.fromkeys(filters)}
        self._stale = stale
        self._session: Session | None = None
        self._tasks: Background | None = None

    @classmethod
    async def load(cls, store: Store, filters: Iterable[str]) -> "Subscribed":
        """Note the filters of now, and find those of an earlier run that are none any more.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL)
        present = set(filters)

        def run(db: sqlite3.Connection) -> list[str]:
            earlier = {row[0] for row in db.execute("SELECT filter FROM filters")}
            db.executemany("INSERT OR IGNORE INTO filters VALUES (?)", [(one,) for one in present])
            return sorted(earlier - present)

        return cls(store, present, await store.write(run))

    @property
    def subscriptions(self) -> Mapping[str, SideBySide]:
        """What the session is to subscribe to from its first moment."""
        return {
            name: SideBySide(source.receive, at_once=AT_ONCE)
            for name, source in self._sources.items()
        }

    def open(self, session: Session, tasks: Background) -> None:
        """The pipelines are there: messages flow, and filters may come and go."""
        self._session, self._tasks = session, tasks
        for name, source in self._sources.items():
            source.open()
            if not source.readers:
                tasks.start(self._leave(name), name="pipelines.leave")
        for name in self._stale:
            tasks.start(self._take_back(name), name="pipelines.stale")

    def add(self, topic_filter: str, reader: TopicReader) -> None:
        """The reader gets every message of this filter from now on."""
        source = self._sources.get(topic_filter)
        if source is None:
            source = self._sources[topic_filter] = TopicSource(topic_filter, is_open=True)
            assert self._tasks is not None  # noqa: S101 - what is known before is in `load`
            self._tasks.start(self._subscribe(source), name="pipelines.subscribe")
        source.readers.append(reader)

    def remove(self, topic_filter: str, reader: TopicReader) -> None:
        """It gets no more; a filter without a reader is left."""
        source = self._sources[topic_filter]
        source.readers.remove(reader)
        if not source.readers and self._tasks is not None:
            self._tasks.start(self._leave(topic_filter), name="pipelines.leave")

    async def _subscribe(self, source: TopicSource) -> None:
        name = source.topic_filter
        session = self._session
        assert session is not None  # noqa: S101 - `open` was called
        while self._sources.get(name) is source:
            try:
                await self._store.write(
                    lambda db: db.execute("INSERT OR IGNORE INTO filters VALUES (?)", (name,))
                )
                await session.subscribe(name, SideBySide(source.receive, at_once=AT_ONCE))
            except RefusedByBrokerError as exc:
                log.error("pipeline's topic not subscribed", filter=name, reason=str(exc))  # noqa: TRY400 - the message says it all
                await asyncio.sleep(_REFUSED_RETRY_S)
            except StoreError as exc:
                log.error("filter cannot be noted", filter=name, reason=str(exc))  # noqa: TRY400
                await asyncio.sleep(_RETRY_S)
            except TopicError:
                return  # the one of before is still there
            except BusError as exc:
                log.info("subscribed with the next connection", filter=name, reason=str(exc))
                return
            else:
                return

    async def _leave(self, name: str) -> None:
        # A pipeline that takes the place of another comes within the same moment.
        await asyncio.sleep(0)
        source = self._sources.get(name)
        if source is None or source.readers:
            return
        del self._sources[name]
        await self._take_back(name)

    async def _take_back(self, name: str) -> None:
        """Unsubscribe as soon as there is a broker, and forget it then; unless it is wanted again."""
        while name not in self._sources:
            if await self._is_taken_back(name):
                if name not in self._sources:
                    await self._store.write(
                        lambda db: db.execute("DELETE FROM filters WHERE filter = ?", (name,))
                    )
                return
            await asyncio.sleep(_RETRY_S)

    async def _is_taken_back(self, name: str) -> bool:
        session = self._session
        assert session is not None  # noqa: S101 - `open` was called
        try:
            await session.wait_connected(_CONNECT_TIMEOUT_S)
            if name in self._sources:
                return False
            connected_s = session.linked_s
            await session.unsubscribe(name)
        except BusError as exc:
            log.info("not unsubscribed yet", filter=name, reason=str(exc))
            return False
        # A link that was lost meanwhile may have taken the request with it.
        return session.connected and session.linked_s == connected_s


class TopicFlow:
    """A pipeline's share of a filter's messages, as a source."""

    def __init__(self, subscribed: Subscribed, reader: TopicReader) -> None:
        self._subscribed = subscribed
        self._reader = reader

    def start(self) -> None:
        """See `Source`."""
        self._subscribed.add(self._reader.table.filter, self._reader)

    def stop(self) -> None:
        """See `Source`."""
        self._subscribed.remove(self._reader.table.filter, self._reader)

    async def ended(self) -> None:
        """See `Source`."""
