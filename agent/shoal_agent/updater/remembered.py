"""The floors of the update metadata in the agent's one Store. They only rise (see `floors`)."""

import sqlite3

from shoal_agent.updater import floors
from shoal_agent.updater.floors import Floors
from shoal_broker.store import Store

COMPONENT = "updater"
VERSION = 1
DDL = """
CREATE TABLE metadata_floors (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    value BLOB NOT NULL
);
"""


class RememberedFloors:
    """What was verified before. Build it with `await RememberedFloors.load(store)`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    async def load(cls, store: Store) -> "RememberedFloors":
        """Make the table if it is not there.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL)
        return cls(store)

    async def get(self) -> Floors:
        """The floors; all 0 before the first.

        Raises:
            StoreError: the file cannot be read.
            DecodeError: its row cannot: nothing may be believed then.
        """
        return await self._store.read(_read)

    async def raise_by(self, seen: Floors) -> None:
        """This was verified: on the disk when it returns.

        Raises:
            StoreError, DecodeError: as for `get`.
        """

        def run(db: sqlite3.Connection) -> None:
            value = floors.encode(floors.raised(_read(db), seen))
            db.execute("INSERT OR REPLACE INTO metadata_floors VALUES (1, ?)", (value,))

        await self._store.write(run)


def _read(db: sqlite3.Connection) -> Floors:
    row = db.execute("SELECT value FROM metadata_floors").fetchone()
    return Floors() if row is None else floors.decode(row[0])
