"""Deltas between model files: built once per (base, target), kept, offered where they save bytes."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from shoal_contract.messages import DeltaOffer
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.child import run_module
from shoal_fleet.database import Database, DeltaRow
from shoal_fleet.errors import DeltaBuildError, StateError
from shoal_fleet.scratch import scratch_folder

log = structlog.get_logger(__name__)

WORTHWHILE: Final = 0.9
"""A delta above this share of the full file is not worth the board's work."""

BUILD_TIMEOUT_S: Final = 1800.0
MAX_OFFERS: Final = 8


class Deltas:
    """The cache of deltas and the one place that builds them, one at a time."""

    def __init__(self, database: Database, store: BlobStore, *, scratch: Path) -> None:
        self._database = database
        self._store = store
        self._scratch = scratch
        self._building = asyncio.Lock()

    async def ensure(self, bases: Iterable[bytes], target: bytes) -> None:
        """Have a delta from each of these files to the target, where we have the base at all.

        A delta that cannot be built is remembered as none: the full file goes out.
        """
        for base in sorted(set(bases) - {target}):
            async with self._building:
                if await self._known(base, target) or await self._store.ref(base) is None:
                    continue
                await self._build(base, target)

    async def offers(self, target: bytes) -> list[DeltaOffer]:
        """The deltas to this file that are worth offering, smallest first."""
        async with self._database.read() as session:
            rows = await session.scalars(
                select(DeltaRow).where(DeltaRow.target == target, DeltaRow.blob.is_not(None))
            )
            found = [(row.base, row.blob) for row in rows]
        offers = []
        for base, digest in found:
            ref = await self._store.ref(digest) if digest is not None else None
            if ref is not None:
                offers.append(DeltaOffer(base, target, ref))
        return sorted(offers, key=lambda offer: offer.blob.size_bytes)[:MAX_OFFERS]

    async def _known(self, base: bytes, target: bytes) -> bool:
        async with self._database.read() as session:
            return await session.get(DeltaRow, (base, target)) is not None

    async def _build(self, base: bytes, target: bytes) -> None:
        names = {"base": base.hex()[:12], "target": target.hex()[:12]}
        digest: bytes | None = None
        try:
            delta = await self._in_a_child(base, target)
        except DeltaBuildError as exc:
            log.warning("no delta", reason=str(exc), **names)
        else:
            ref = await self._store.ref(target)
            full_bytes = ref.size_bytes if ref is not None else 0
            worthwhile = len(delta) < WORTHWHILE * full_bytes and self._store.can_cut(len(delta))
            log.info(
                "delta built",
                size_bytes=len(delta),
                full_bytes=full_bytes,
                worthwhile=worthwhile,
                **names,
            )
            if worthwhile:
                digest = (await self._store.add(delta)).digest
        async with self._database.write() as session:
            await session.execute(
                insert(DeltaRow)
                .values(base=base, target=target, blob=digest)
                .on_conflict_do_nothing()
            )

    async def _in_a_child(self, base: bytes, target: bytes) -> bytes:
        with scratch_folder(self._scratch) as folder:
            out = folder / "delta"
            ended = await run_module(
                "shoal_fleet.delta_build",
                str(self._store.path(base)),
                str(self._store.path(target)),
                str(out),
                timeout_s=BUILD_TIMEOUT_S,
            )
            if ended.exit_code is None:
                raise DeltaBuildError(f"building took longer than {BUILD_TIMEOUT_S:g} s")
            if ended.exit_code != 0:
                raise DeltaBuildError(ended.complaint or f"exit code {ended.exit_code}")
            try:
                return await asyncio.to_thread(out.read_bytes)
            except OSError as exc:
                raise StateError(f"{out}: {exc.strerror}") from exc
