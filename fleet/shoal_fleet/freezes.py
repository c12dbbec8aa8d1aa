"""The freeze: a time in which no rollout opens a wave or gives a lease, but those that override it."""

from typing import Any

from sqlalchemy import select

from shoal_fleet.clock import now_ms
from shoal_fleet.database import Database
from shoal_fleet.errors import ConflictError
from shoal_fleet.rollout_state import Freeze
from shoal_fleet.tables import FreezeRow


class Freezes:
    """The newest freeze, and the record of all. Build it with `await Freezes.load(database)`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest: Freeze | None = None
        self._id = 0

    @classmethod
    async def load(cls, database: Database) -> "Freezes":
        """The freezes as an earlier process left them."""
        freezes = cls(database)
        async with database.read() as session:
            row = await session.scalar(select(FreezeRow).order_by(FreezeRow.id.desc()).limit(1))
        if row is not None and row.ended_ms is None:
            freezes._id = row.id
            freezes._newest = Freeze(reason=row.reason, by=row.by, until_ms=row.until_ms)
        return freezes

    def at(self, at_ms: int) -> Freeze | None:
        """The freeze that is on at this moment."""
        newest = self._newest
        return newest if newest is not None and newest.holds_at(at_ms) else None

    def view(self) -> dict[str, Any]:
        """As the API shows it."""
        freeze = self.at(now_ms())
        if freeze is None:
            return {"on": False, "reason": "", "by": "", "until_ms": None}
        return {"on": True, "reason": freeze.reason, "by": freeze.by, "until_ms": freeze.until_ms}

    async def begin(self, freeze: Freeze) -> None:
        """Freeze the fleet.

        Raises:
            ConflictError: it is frozen, or would not be at once.
        """
        now = now_ms()
        if (held := self.at(now)) is not None:
            raise ConflictError(f"the fleet is frozen already, by {held.by or 'somebody'}")
        if not freeze.holds_at(now):
            raise ConflictError("the freeze would be over before it begins")
        row = FreezeRow(reason=freeze.reason, by=freeze.by, begun_ms=now, until_ms=freeze.until_ms)
        async with self._database.write() as session:
            session.add(row)
        self._id, self._newest = row.id, freeze

    async def end(self, *, by: str) -> None:
        """Let rollouts go on.

        Raises:
            ConflictError: it is not frozen.
        """
        now = now_ms()
        if self.at(now) is None:
            raise ConflictError("the fleet is not frozen")
        async with self._database.write() as session:
            row = await session.get(FreezeRow, self._id)
            if row is not None:
                row.ended_ms, row.ended_by = now, by
        self._newest = None
