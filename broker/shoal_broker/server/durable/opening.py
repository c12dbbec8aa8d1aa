"""Opens the directory of a durable broker: one broker at a time, one file, loaded into its router."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from shoal_broker.bus_errors import StoreError
from shoal_broker.errors import DurabilityError, ProtocolError
from shoal_broker.server.durable import schema
from shoal_broker.server.durable.committer import Committer
from shoal_broker.server.durable.loading import Loader, Stock
from shoal_broker.server.durable.recorder import Recorder
from shoal_broker.server.durable.timeline import Timeline, absence_ms
from shoal_broker.server.router import Router
from shoal_broker.store import Store

FILE_NAME = "broker.db"
LOCK_NAME = "lock"

WAL_PAGES = 4_000
"""The log is copied into the file at 16 MB: a queue that comes and goes is copied a quarter as often."""

log = structlog.get_logger("shoal_broker")


@asynccontextmanager
async def opened(
    directory: Path,
    router: Router,
    *,
    clock: Callable[[], float],
    wall_clock: Callable[[], float] = time.time,
) -> AsyncIterator[Committer]:
    """Load what is stored into `router`, and yield what commits its changes from here on.

    Raises DurabilityError.
    """
    with _claimed(directory):
        path = directory / FILE_NAME
        try:
            async with Store.open(path) as store:
                await store.create(
                    schema.COMPONENT,
                    version=schema.VERSION,
                    ddl=schema.DDL,
                    migrations=schema.MIGRATIONS,
                )
                await store.read(_tune)
                stock = await store.read(Stock.read)
                recorder = _load(stock, router, path, clock(), round(wall_clock() * 1000))
                yield Committer(store, recorder, clock, wall_clock)
        except StoreError as exc:
            raise DurabilityError(str(exc), path=str(path)) from exc
        except sqlite3.DatabaseError as exc:
            raise DurabilityError(f"{path}: {exc}", path=str(path)) from exc


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Make the directory and keep every other broker out of it."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite would make it readable for everybody.
        os.close(os.open(directory / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise DurabilityError(
            f"{directory} cannot be used: {exc.strerror}", path=str(directory)
        ) from exc
    with os.fdopen(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DurabilityError(
                f"another broker keeps its state in {directory}", path=str(directory)
            ) from exc
        yield


def _tune(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")


def _load(stock: Stock, router: Router, path: Path, now_s: float, wall_ms: int) -> Recorder:
    started_s = time.perf_counter()
    timeline = _timeline(stock, now_s, wall_ms)
    try:
        recorder = Loader(router, timeline, now_s).load(stock)
    except (KeyError, ValueError, TypeError, ProtocolError) as exc:
        raise DurabilityError(
            f"{path}: its rows contradict each other ({exc}): move it aside and start with an empty one",
            path=str(path),
        ) from exc
    log.info(
        "durable state loaded",
        file=str(path),
        sessions=len(stock.sessions),
        queued=len(stock.queued),
        retained=len(stock.retained),
        seconds=round(time.perf_counter() - started_s, 3),
    )
    return recorder


def _timeline(stock: Stock, now_s: float, wall_ms: int) -> Timeline:
    if stock.clock is None:
        return Timeline(now_s, 0)
    stopped_at_ms, stopped_wall_ms = stock.clock
    absence = absence_ms(stopped_wall_ms, wall_ms)
    if absence is None:
        log.warning(
            "the clock cannot be believed: nothing expires by the time the broker was away",
            clock_moved_s=(wall_ms - stopped_wall_ms) // 1000,
        )
        absence = 0
    else:
        _tell_what_expired(stock, stopped_at_ms + absence, absence)
    return Timeline(now_s, stopped_at_ms + absence)


def _tell_what_expired(stock: Stock, at_ms: int, absence: int) -> None:
    """Time that passes unseen is said aloud: a clock that was put forward looks the same."""
    messages = sum(1 for row in stock.messages if row[2] is not None and row[2] <= at_ms)
    sessions = sum(1 for row in stock.sessions if row[4] is not None and row[4] <= at_ms)
    if messages or sessions:
        log.warning(
            "expired while the broker was away",
            away_s=absence // 1000,
            messages=messages,
            sessions=sessions,
        )
