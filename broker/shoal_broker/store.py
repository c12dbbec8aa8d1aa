"""The one SQLite file of a process: durable before `await` returns, many writes to one fsync.

One worker thread owns the connection (WAL, synchronous=FULL). Writes that queue up while a commit
is under way share the next transaction, each in a SAVEPOINT of its own. What stands in the tables
is the components' business; so is deciding which process may open which file.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from shoal_broker.bus_errors import StoreError

T = TypeVar("T")

# More in one transaction gains nothing (12,000 rows/s at 50) and makes the first waiter wait.
GROUP_LIMIT = 256
BUSY_TIMEOUT_S = 5.0
# Checking a larger file on every start costs a board seconds.
QUICK_CHECK_LIMIT_BYTES = 32 << 20

_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full: free space on this partition",
    sqlite3.SQLITE_READONLY: "it is read-only: check the mount and the owner of the file",
    sqlite3.SQLITE_CORRUPT: "it is damaged: move it aside and start again with an empty one",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite file: move it aside or correct the configuration",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check that the directory exists and is ours",
    sqlite3.SQLITE_BUSY: "another process keeps it locked: stop that process",
    sqlite3.SQLITE_IOERR: "the storage medium fails: look at dmesg and replace it",
    sqlite3.SQLITE_PERM: "access is denied: check the owner of the file",
}


@dataclass(slots=True, eq=False)
class _Job:
    """One queued function and the future that its caller waits for."""

    run: Callable[[sqlite3.Connection], Any]
    answer: asyncio.Future[Any]
    writes: bool
    result: Any = None
    error: BaseException | None = None


class Store:
    """One SQLite file, open for this process. Build it with `Store.open`.

    Functions given to `read` and `write` run in the worker thread: they get the connection, must
    not end the transaction, and must not touch the event loop's objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._work = threading.Condition()
        self._closing = False
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, name=f"store {path.name}")

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path | str) -> AsyncIterator[Self]:
        """Open or create the file. Leaving the context first runs everything that was queued.

        Raises StoreError when the file cannot be used.
        """
        store = cls(Path(path))
        store._thread.start()
        try:
            await asyncio.shield(store._opened)
            yield store
        finally:
            with store._work:
                store._closing = True
                store._work.notify()
            await asyncio.shield(store._closed)
            store._thread.join()

    async def write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `run` returned, once it is committed and on the medium.

        A `run` that raises is undone alone and its exception is raised here. Cancelling the wait
        does not cancel the write: once queued, it happens exactly once.

        Raises StoreError when the file or the medium refuses; then nothing of `run` is kept.
        """
        answer: T = await self._queue(run, writes=True)
        return answer

    async def read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `run` returned; it sees every write queued before it."""
        answer: T = await self._queue(run, writes=False)
        return answer

    async def create(
        self,
        component: str,
        *,
        version: int,
        ddl: str,
        migrations: Mapping[int, str] | None = None,
    ) -> None:
        """Make the tables of `component` be those of `version`, in one transaction.

        `ddl` builds them from nothing; `migrations[n]` leads from version n - 1 to n.

        Raises StoreError when the file was written by a newer version of the code.
        """
        steps = migrations or {}

        def run(connection: sqlite3.Connection) -> None:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS shoal_schema"
                " (component TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
            )
            row = connection.execute(
                "SELECT version FROM shoal_schema WHERE component = ?", (component,)
            ).fetchone()
            found = None if row is None else int(row[0])
            if found == version:
                return
            if found is None:
                scripts = [ddl]
            elif found < version and all(n in steps for n in range(found + 1, version + 1)):
                scripts = [steps[n] for n in range(found + 1, version + 1)]
            else:
                age = "newer than" if found > version else "too old for"
                raise StoreError(
                    f"{self.path}: the tables of {component} have version {found}, {age} this"
                    f" program (version {version}): install the matching release or move the"
                    " file aside",
                    path=str(self.path),
                )
            for script in scripts:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(
                "INSERT OR REPLACE INTO shoal_schema VALUES (?, ?)", (component, version)
            )

        await self.write(run)

    async def _queue(self, run: Callable[[sqlite3.Connection], T], *, writes: bool) -> Any:
        job = _Job(run, self._loop.create_future(), writes)
        with self._work:
            if self._closing:
                raise StoreError(f"{self.path}: the store is closed", path=str(self.path))
            self._jobs.append(job)
            self._work.notify()
        return await job.answer

    # --- everything below runs in the worker thread

    def _serve(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, OSError, StoreError) as exc:
            self._post(_settle, self._opened, None, self._explain(exc))
            self._post(_settle, self._closed, None, None)
            return
        self._post(_settle, self._opened, None, None)
        try:
            while batch := self._next_batch():
                self._run_batch(connection, batch)
                self._post(_settle_all, batch)
        finally:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            self._post(_settle, self._closed, None, None)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 4194304")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self.path}: this file system cannot hold a write-ahead log (journal mode"
                f" {mode}): put the file on a local disk",
                path=str(self.path),
            )
        if self.path.stat().st_size <= QUICK_CHECK_LIMIT_BYTES:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise StoreError(
                    f"{self.path}: {_ADVICE[sqlite3.SQLITE_CORRUPT]} ({verdict})",
                    path=str(self.path),
                )
        # A read-only file opens without complaint; the first write would find out.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")

    def _next_batch(self) -> list[_Job]:
        with self._work:
            while not self._jobs and not self._closing:
                self._work.wait()
            return [self._jobs.popleft() for _ in range(min(len(self._jobs), GROUP_LIMIT))]

    def _run_batch(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        writes = [job for job in batch if job.writes]
        if writes:
            self._commit_group(connection, writes)
        # Reads come after the commit: they may see later writes, never undone ones.
        for job in batch:
            if not job.writes:
                try:
                    job.result = job.run(connection)
                except BaseException as exc:  # noqa: BLE001 - it belongs to the caller
                    job.error = self._explain(exc)

    def _commit_group(self, connection: sqlite3.Connection, group: list[_Job]) -> None:
        ran: list[_Job] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in group:
                ran.append(job)
                self._run_one(connection, job)
                if not connection.in_transaction:
                    # SQLite undoes the whole transaction on a full disk or a failing medium.
                    lost = job.error or StoreError(
                        f"{self.path}: a write ended the transaction", path=str(self.path)
                    )
                    for other in ran:
                        other.error = other.error or lost
                    ran.clear()
                    connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            failure = self._explain(exc)
            for job in group:
                # Jobs of an earlier, undone transaction keep their own error.
                job.error = job.error or failure

    def _run_one(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.run(connection)
        except BaseException as exc:  # noqa: BLE001 - it belongs to the caller
            job.error = self._explain(exc)
            if connection.in_transaction:
                connection.execute("ROLLBACK TO job")
        if connection.in_transaction:
            connection.execute("RELEASE job")

    def _explain(self, exc: BaseException) -> BaseException:
        """What the environment did becomes a StoreError; the caller's own mistakes stay."""
        if isinstance(exc, OSError):
            advice: str | None = exc.strerror or str(exc)
        elif isinstance(exc, sqlite3.Error):
            # The low byte is the primary code, the rest its shades.
            advice = _ADVICE.get(getattr(exc, "sqlite_errorcode", 0) & 0xFF)
        else:
            return exc
        if advice is None:
            return exc
        failure = StoreError(f"{self.path}: {advice}", path=str(self.path))
        failure.__cause__ = exc
        return failure

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that is gone has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)


def _settle_all(batch: list[_Job]) -> None:
    for job in batch:
        _settle(job.answer, job.result, job.error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements: `executescript` would commit what it finds open."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \t\r\n;"):
                yield statement
            statement = ""
