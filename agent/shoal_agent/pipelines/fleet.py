"""The pipelines that the fleet wants here, a part of the wanted state, and what of them really ran last.

The wanted state is kept in the journal, so they run with the uplink cut, too (whose word counts is `wanted`'s
business). Where the newest cannot run, what ran last goes on, over a restart as well: that is kept here.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

import structlog

from shoal_broker.store import Store
from shoal_contract import envelope, messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import Pipelines, PipelineWanted, Wanted

log = structlog.get_logger()

COMPONENT: Final = "fleet_pipelines"
VERSION: Final = 2
DDL: Final = """
CREATE TABLE fleet_pipelines_good (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    message BLOB NOT NULL
);
"""
MIGRATIONS: Final = {2: "DROP TABLE fleet_pipelines;"}


class FleetPipelines:
    """What is wanted and what ran. Build it with `await FleetPipelines.load(...)`.

    Attributes:
        version: of the document that holds; 0: there is none.
        wanted: its pipelines.
        good: those that ran last, by name; perhaps of an earlier document.
    """

    def __init__(self, store: Store) -> None:
        self.version = 0
        self.wanted: Sequence[PipelineWanted] = []
        self.good: dict[str, PipelineWanted] = {}
        self._store = store

    @classmethod
    async def load(cls, store: Store, wanted: Wanted | None) -> "FleetPipelines":
        """What ran in an earlier run, and what is wanted now.

        Args:
            store: holds what ran.
            wanted: the newest that counts, if there is one.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL, migrations=MIGRATIONS)
        kept = cls(store)
        if wanted is not None and kept.follow(wanted.pipelines):
            kept.good = await kept._read_good()
        return kept

    @property
    def first(self) -> list[PipelineWanted]:
        """What a start begins with: of each that is wanted what ran last, else what is wanted."""
        return [self.good.get(one.stream, one) for one in self.wanted]

    async def hold(self, running: Sequence[PipelineWanted]) -> None:
        """These run now.

        Raises:
            StoreError: that cannot be kept now.
        """
        good = {one.stream: one for one in running}
        if good == self.good:
            return
        message = messages.encode(Pipelines(max(1, self.version), 0, list(running)))

        def run(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO fleet_pipelines_good VALUES (1, ?)", (message,))

        await self._store.write(run)
        self.good = good

    async def _read_good(self) -> dict[str, PipelineWanted]:
        row = await self._store.read(
            lambda db: db.execute("SELECT message FROM fleet_pipelines_good").fetchone()
        )
        if row is None:
            return {}
        try:
            found = messages.decode_as(row[0], Pipelines).pipelines
        except ContractError as exc:
            log.warning("pipelines that ran cannot be read", reason=str(exc))
            return {}
        return {one.stream: one for one in found}

    def follow(self, document: bytes) -> bool:
        """The wanted state says this of pipelines now (empty: there are none); whether that is news."""
        version, wanted = 0, list[PipelineWanted]()
        if document:
            try:
                # A controller before decision 0039 signed the document, and not what it came in.
                found = messages.decode_as(envelope.stripped(document), Pipelines)
            except ContractError as exc:
                log.warning("malformed pipelines", reason=str(exc))
                return False
            version, wanted = found.version, found.pipelines
        if (version, wanted) == (self.version, self.wanted):
            return False
        self.version, self.wanted = version, wanted
        return True
