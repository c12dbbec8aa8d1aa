"""The pipelines that the fleet wants here: taken when whom this node obeys has signed them, kept over restarts.

The newest version holds, whatever a broker has retained from before; so they run with the uplink cut, too.
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
"""


class FleetPipelines:
    """The newest document. Build it with `await FleetPipelines.load(...)`.

    Attributes:
        version: of the document that holds; 0: there was none.
        wanted: its pipelines.
    """

    def __init__(self, store: Store, trust: Trust, topic: str) -> None:
        self.version = 0
        self.wanted: Sequence[PipelineWanted] = ()
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
        return kept

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
