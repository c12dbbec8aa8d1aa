"""The pipelines that the fleet wants here: taken when whom this node obeys has signed them, kept over restarts.

The newest version holds, whatever a broker has retained from before; so they run with the uplink cut, too. Beside
it stands what of the fleet really ran last: where the newest cannot run, that goes on over a restart.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

import structlog

from shoal_agent.trust import Trust
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import Pipelines, PipelineWanted

log = structlog.get_logger()

COMPONENT: Final = "fleet_pipelines"
VERSION: Final = 1
DDL: Final = """
CREATE TABLE fleet_pipelines (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    document BLOB NOT NULL
);
CREATE TABLE fleet_pipelines_good (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    message BLOB NOT NULL
);
"""


class FleetPipelines:
    """The newest document. Build it with `await FleetPipelines.load(...)`.

    Attributes:
        version: of the document that holds; 0: there was none.
        wanted: its pipelines.
        good: those that ran last, by name; perhaps of an earlier document.
    """

    def __init__(self, store: Store, trust: Trust, topic: str) -> None:
        self.version = 0
        self.wanted: Sequence[PipelineWanted] = ()
        self.good: dict[str, PipelineWanted] = {}
        self._store = store
        self._trust = trust
        self._topic = topic

    @classmethod
    async def load(cls, store: Store, trust: Trust, *, topic: str) -> "FleetPipelines":
        """What an earlier run kept, unless its signer is not obeyed any more.

        Args:
            store: holds it.
            trust: whose signature counts.
            topic: of this node's wanted state, for which documents are signed.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL)
        kept = cls(store, trust, topic)
        row = await store.read(
            lambda db: db.execute("SELECT document FROM fleet_pipelines").fetchone()
        )
        if row is not None and (found := kept._opened(row[0])) is not None:
            kept.version, kept.wanted = found.version, found.pipelines
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

    async def take(self, document: bytes) -> bool:
        """Keep a document that is newer than the last; whether it is.

        Raises:
            StoreError: it cannot be kept now.
        """
        found = self._opened(document) if document else None
        if found is None or found.version == self.version:
            return False
        if found.version < self.version:
            log.warning("old pipelines refused", version=found.version, held=self.version)
            return False

        def run(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO fleet_pipelines VALUES (1, ?)", (document,))

        await self._store.write(run)
        self.version, self.wanted = found.version, found.pipelines
        return True

    def _opened(self, document: bytes) -> Pipelines | None:
        opened = self._trust.open(document, topic=self._topic)
        if opened is None:
            return None
        payload, key = opened
        # A mandate is for commands: what runs for good is the business of the configuration's keys.
        if not self._trust.is_root(key):
            log.error("pipelines refused", reason="their signer's key is not in [trust]")
            return None
        try:
            return messages.decode_as(payload, Pipelines)
        except ContractError as exc:
            log.warning("malformed pipelines", reason=str(exc))
            return None
