"""The readings that the fleet drew from its devices: stored once each, counted, capped.

The summary counts what arrived from the sequence numbers that the devices gave: it is neither the
sender's nor the receiver's word.
"""

import asyncio
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import delete, func, select

from shoal_contract.errors import DecodeError
from shoal_contract.messages import Reading
from shoal_fleet.database import Database
from shoal_fleet.errors import StateError
from shoal_fleet.tables import ReadingRow

SWEEP_EVERY: Final = 1000
MAX_PAGE: Final = 5000
MISSING_SHOWN: Final = 16
LARGEST_INTEGER: Final = (1 << 63) - 1


@dataclass(slots=True)
class _Waiting:
    """A reading that is not committed yet."""

    row: dict[str, Any]
    settled: bool = False
    error: StateError | None = None


@dataclass(slots=True)
class ReadingStats:
    """Counters since the process started."""

    stored: int = 0
    duplicates: int = 0


class Readings:
    """The table of readings. `kept`: the newest this many rows stay."""

    def __init__(self, database: Database, *, kept: int) -> None:
        self.stats = ReadingStats()
        self._database = database
        self._kept = kept
        self._waiting: list[_Waiting] = []
        self._committing = asyncio.Lock()

    async def add(self, node: str, reading: Reading) -> None:
        """Store a reading unless it is here already; returns when it is committed.

        Readings that come while a commit is under way share the next one.

        Raises:
            DecodeError: it holds a number that no row can hold.
            StateError: the disk does not take it.
        """
        # Before it joins the others: one that the database refuses would fail the commit of all.
        _check(reading)
        mine = _Waiting(
            {
                "node": node,
                "device": reading.device,
                "boot": reading.boot,
                "seq": reading.seq,
                "label": reading.label,
                "confidence": reading.confidence,
                "release": reading.release,
                "by": reading.by,
                "at_ms": reading.at_ms,
                "latency_us": reading.latency_us,
            }
        )
        self._waiting.append(mine)
        async with self._committing:
            if not mine.settled:
                await self._commit_waiting()
        if mine.error is not None:
            raise mine.error

    async def _commit_waiting(self) -> None:
        """Whoever comes first commits for everybody who waits."""
        group, self._waiting = self._waiting, []
        error: StateError | None = StateError("the commit was interrupted")
        try:
            added = await self._database.append(ReadingRow, [waiting.row for waiting in group])
            error = None
        except StateError as exc:
            error = exc
            return
        finally:
            for waiting in group:
                waiting.settled, waiting.error = True, error
        self.stats.duplicates += len(group) - added
        before = self.stats.stored // SWEEP_EVERY
        self.stats.stored += added
        if self.stats.stored // SWEEP_EVERY > before:
            await self._sweep()

    async def page(
        self, *, node: str | None, device: str | None, after: int, limit: int
    ) -> list[dict[str, Any]]:
        """Readings in the order of arrival, from the one behind id `after` on."""
        query = select(ReadingRow).where(ReadingRow.id > after).order_by(ReadingRow.id)
        if node is not None:
            query = query.where(ReadingRow.node == node)
        if device is not None:
            query = query.where(ReadingRow.device == device)
        async with self._database.read() as session:
            rows = await session.scalars(query.limit(min(limit, MAX_PAGE)))
            return [
                {
                    "id": row.id,
                    "node": row.node,
                    "device": row.device,
                    "boot": row.boot,
                    "seq": row.seq,
                    "label": row.label,
                    "confidence": row.confidence,
                    "release": row.release.hex(),
                    "by": row.by,
                    "at_ms": row.at_ms,
                    "latency_us": row.latency_us,
                }
                for row in rows
            ]

    async def summary(self) -> dict[str, Any]:
        """Per device and boot: what came, and which sequence numbers between its first and last did not."""
        async with self._database.read() as session:
            streams = (
                await session.execute(
                    select(
                        ReadingRow.node,
                        ReadingRow.device,
                        ReadingRow.boot,
                        func.count(),
                        func.min(ReadingRow.seq),
                        func.max(ReadingRow.seq),
                    )
                    .group_by(ReadingRow.node, ReadingRow.device, ReadingRow.boot)
                    .order_by(ReadingRow.node, ReadingRow.device, ReadingRow.boot)
                )
            ).all()
            listed = []
            for node, device, boot, count, lowest, highest in streams:
                missing = highest - lowest + 1 - count
                ranges: list[tuple[int, int]] = []
                if missing:
                    seqs = await session.scalars(
                        select(ReadingRow.seq)
                        .where(
                            ReadingRow.node == node,
                            ReadingRow.device == device,
                            ReadingRow.boot == boot,
                        )
                        .order_by(ReadingRow.seq)
                    )
                    ranges = gaps(list(seqs))
                listed.append(
                    {
                        "node": node,
                        "device": device,
                        "boot": boot,
                        "count": count,
                        "min": lowest,
                        "max": highest,
                        "missing": missing,
                        "missing_ranges": ranges[:MISSING_SHOWN],
                    }
                )
            by_release = await session.execute(
                select(ReadingRow.release, func.count()).group_by(ReadingRow.release)
            )
            by_node = await session.execute(
                select(ReadingRow.by, func.count()).group_by(ReadingRow.by)
            )
            return {
                "devices": listed,
                "total": sum(row["count"] for row in listed),
                "missing": sum(row["missing"] for row in listed),
                "by_release": {release.hex(): count for release, count in by_release},
                "by_node": {name: count for name, count in by_node},  # noqa: C416 - rows are no pairs to mypy
                "stored": self.stats.stored,
                "duplicates": self.stats.duplicates,
            }

    async def _sweep(self) -> None:
        async with self._database.write() as session:
            newest = await session.scalar(select(func.max(ReadingRow.id)))
            await session.execute(
                delete(ReadingRow).where(ReadingRow.id <= (newest or 0) - self._kept)
            )


def _check(reading: Reading) -> None:
    if not math.isfinite(reading.confidence):
        raise DecodeError(f"a confidence of {reading.confidence}")
    for name in ("boot", "seq", "latency_us"):
        value = getattr(reading, name)
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            raise DecodeError(f"{name} is larger than 63 bits")


def gaps(seqs: list[int]) -> list[tuple[int, int]]:
    """The ranges (first, last) that lie between ascending numbers."""
    return [(before + 1, after - 1) for before, after in pairwise(seqs) if after - before > 1]
