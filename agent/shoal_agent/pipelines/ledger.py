"""Which picture files were read, over restarts: each gets its number before it is read, and keeps it.

So a file that was under way when the power was cut comes again as the same reading.
"""

import random
import sqlite3
from collections.abc import Iterable
from typing import Final

from shoal_broker.store import Store

COMPONENT: Final = "pictures"
VERSION: Final = 1
DDL: Final = """
CREATE TABLE picture_sources (
    source TEXT PRIMARY KEY,
    boot INTEGER NOT NULL,
    seq INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE pictures (
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    stamp TEXT NOT NULL,
    seq INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (source, name)
) WITHOUT ROWID;
"""


class Ledger:
    """Reads and writes of the tables above. Build it with `await Ledger.load(store)`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    async def load(cls, store: Store) -> "Ledger":
        """Make the tables if they are not there.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL)
        return cls(store)

    async def known(self, source: str) -> dict[str, str]:
        """Name -> stamp of every file of this source that is done with."""
        rows = await self._store.read(
            lambda db: db.execute(
                "SELECT name, stamp FROM pictures WHERE source = ? AND done", (source,)
            ).fetchall()
        )
        return dict(rows)

    async def begin(self, source: str, name: str, stamp: str) -> tuple[int, int]:
        """Boot and number of this file, as it is now; durable."""

        def run(db: sqlite3.Connection) -> tuple[int, int]:
            db.execute(
                "INSERT OR IGNORE INTO picture_sources VALUES (?, ?, 0)",
                (source, random.SystemRandom().randrange(1 << 31)),
            )
            row = db.execute(
                "SELECT seq FROM pictures WHERE source = ? AND name = ? AND stamp = ? AND NOT done",
                (source, name, stamp),
            ).fetchone()
            if row is None:
                db.execute("UPDATE picture_sources SET seq = seq + 1 WHERE source = ?", (source,))
            boot, newest = db.execute(
                "SELECT boot, seq FROM picture_sources WHERE source = ?", (source,)
            ).fetchone()
            seq = newest if row is None else row[0]
            db.execute(
                "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, 0)", (source, name, stamp, seq)
            )
            return boot, seq

        return await self._store.write(run)

    async def finish(self, source: str, name: str, stamp: str) -> None:
        """Everything that follows from this file is done."""
        await self._store.write(
            lambda db: db.execute(
                "UPDATE pictures SET done = 1 WHERE source = ? AND name = ? AND stamp = ?",
                (source, name, stamp),
            )
        )

    async def forget(self, source: str, names: Iterable[str]) -> None:
        """These files are not there any more."""
        rows = [(source, name) for name in names]
        if rows:
            await self._store.write(
                lambda db: db.executemany(
                    "DELETE FROM pictures WHERE source = ? AND name = ?", rows
                )
            )
