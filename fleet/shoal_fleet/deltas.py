"""Deltas between model files: built once per (base, target), kept, offered where they save bytes.

Which one to make first, and which cannot pay, says `shoal_delta.plan_updates`, in a child (`delta_build`).
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import select

from shoal_contract.messages import DeltaOffer
from shoal_fleet.blob_store import BlobStore
from shoal_fleet.child import run_module
from shoal_fleet.database import Database
from shoal_fleet.delta_build import ESTIMATE, SETTLED_FILE
from shoal_fleet.errors import DeltaBuildError, StateError
from shoal_fleet.scratch import scratch_folder
from shoal_fleet.tables import DeltaRow
from shoal_fleet.upsert import insert_into

log = structlog.get_logger(__name__)

BUILD_TIMEOUT_S: Final = 1800.0
"""For each base of a child."""

MAX_BASES_A_CHILD: Final = 4
"""Between two children somebody else has a turn."""

MAX_ESTIMATES: Final = 1024


@dataclass(frozen=True, slots=True)
class DeltaCost:
    """What a board with this base receives: the delta's bytes, or None for the full file."""

    base: bytes
    delta_bytes: int | None
    is_exact: bool
    make_s: float = 0.0
    """Likely seconds until it is made; 0 when nothing is to be made."""

    reason: str = ""
    """Why it is the full file."""


class Deltas:
    """The cache of deltas and the one place that builds them, one child at a time."""

    def __init__(self, database: Database, store: BlobStore, *, scratch: Path) -> None:
        self._database = database
        self._store = store
        self._scratch = scratch
        self._building = asyncio.Lock()
        self._estimating = asyncio.Lock()
        self._estimates: dict[tuple[bytes, bytes], DeltaCost] = {}

    async def ensure(self, boards: Mapping[bytes, int], target: bytes) -> None:
        """Have a delta from each of these files to the target, where we have the base and it can pay.

        `boards` says how many have each; what many have is made first. A delta that cannot be built, or
        would save too little, is remembered as none: the full file goes out.
        """
        bases = sorted(set(boards) - {target}, key=lambda base: (-boards[base], base))
        for first in range(0, len(bases), MAX_BASES_A_CHILD):
            async with self._building:
                missing = {
                    base: boards[base]
                    for base in bases[first : first + MAX_BASES_A_CHILD]
                    if not await self.is_settled(base, target)
                    and await self._store.ref(base) is not None
                }
                if missing:
                    await self._build(missing, target)

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
        return sorted(offers, key=lambda offer: offer.blob.size_bytes)

    async def costs(self, boards: Mapping[bytes, int], target: bytes) -> dict[bytes, DeltaCost]:
        """What boards with each of these files would receive, without making anything.

        Exact where the delta was made; the others are estimated in a child, once. The target itself is
        left out.
        """
        built = {offer.base: offer.blob.size_bytes for offer in await self.offers(target)}
        costs: dict[bytes, DeltaCost] = {}
        unknown: dict[bytes, int] = {}
        async with self._estimating:
            for base in sorted(set(boards) - {target}):
                if base in built:
                    costs[base] = DeltaCost(base, built[base], is_exact=True)
                elif await self._store.ref(base) is None:
                    reason = "the base is not in the store"
                    costs[base] = DeltaCost(base, None, is_exact=True, reason=reason)
                elif await self.is_settled(base, target):
                    reason = "its delta is not worth sending"
                    costs[base] = DeltaCost(base, None, is_exact=True, reason=reason)
                elif (base, target) in self._estimates:
                    costs[base] = self._estimates[base, target]
                else:
                    unknown[base] = boards[base]
            for base in unknown:
                costs[base] = await self._estimate(base, target)
        return costs

    async def _estimate(self, base: bytes, target: bytes) -> DeltaCost:
        with scratch_folder(self._scratch) as folder:
            try:
                (facts,) = await self._in_a_child({base: 0}, target, folder, ESTIMATE)
            except (DeltaBuildError, ValueError):
                # Not kept: building it in earnest has the last word.
                reason = "it cannot be estimated"
                return DeltaCost(base, None, is_exact=False, reason=reason)
        is_delta = facts["way"] == "delta" and self._store.can_cut(facts["delta_bytes"])
        cost = DeltaCost(
            base,
            facts["delta_bytes"] if is_delta else None,
            is_exact=False,
            make_s=facts["make_s"] if is_delta else 0.0,
            reason="" if is_delta else facts["reason"] or "the delta is too large",
        )
        if len(self._estimates) >= MAX_ESTIMATES:
            del self._estimates[next(iter(self._estimates))]
        self._estimates[base, target] = cost
        return cost

    async def is_settled(self, base: bytes, target: bytes) -> bool:
        """Whether this delta was made, or is known to be not worth making."""
        async with self._database.read() as session:
            return await session.get(DeltaRow, (base, target)) is not None

    async def _build(self, boards: Mapping[bytes, int], target: bytes) -> None:
        """All in one child; when that dies, what it left undone each in one of its own."""
        left = dict(boards)
        with scratch_folder(self._scratch) as folder:
            try:
                found = await self._in_a_child(boards, target, folder)
                complaint = ""
            except DeltaBuildError as exc:
                found, complaint = _settled(folder), str(exc)
            for facts in found:
                base = bytes.fromhex(facts["base"])
                if left.pop(base, None) is not None:
                    await self._keep(base, target, facts, folder)
        if len(left) == len(boards) == 1:
            (base,) = left
            log.warning("no delta", reason=complaint, base=_short(base), target=_short(target))
            await self._remember(base, target, None)
            return
        for base, count in left.items():
            await self._build({base: count}, target)

    async def _keep(self, base: bytes, target: bytes, facts: dict[str, Any], folder: Path) -> None:
        names = {"base": _short(base), "target": _short(target)}
        digest: bytes | None = None
        if facts["way"] == "delta" and self._store.can_cut(facts["delta_bytes"]):
            try:
                delta = await asyncio.to_thread((folder / facts["base"]).read_bytes)
            except OSError as exc:
                raise StateError(f"{folder}: {exc.strerror}") from exc
            digest = (await self._store.add(delta)).digest
            log.info(
                "delta built", size_bytes=len(delta), made_s=round(facts["make_s"], 1), **names
            )
        else:
            reason = facts["reason"] or "it would have too many chunks"
            log.info("no delta", reason=reason, size_bytes=facts["delta_bytes"], **names)
        await self._remember(base, target, digest)

    async def _remember(self, base: bytes, target: bytes, digest: bytes | None) -> None:
        async with self._database.write() as session:
            await session.execute(
                insert_into(session, DeltaRow)
                .values(base=base, target=target, blob=digest)
                .on_conflict_do_nothing()
            )

    async def _in_a_child(
        self, boards: Mapping[bytes, int], target: bytes, folder: Path, *options: str
    ) -> list[dict[str, Any]]:
        """What the child settled; each delta lies in `folder` under its base's name.

        Raises:
            DeltaBuildError: it did not come to its end.
        """
        ended = await run_module(
            "shoal_fleet.delta_build",
            *options,
            str(self._store.path(target)),
            str(folder),
            *(f"{self._store.path(base)}={count}" for base, count in boards.items()),
            timeout_s=BUILD_TIMEOUT_S * len(boards),
        )
        if ended.exit_code is None:
            raise DeltaBuildError(f"building took longer than {BUILD_TIMEOUT_S:g} s a delta")
        if ended.exit_code != 0:
            raise DeltaBuildError(ended.complaint or f"exit code {ended.exit_code}")
        return _settled(folder)


def _settled(folder: Path) -> list[dict[str, Any]]:
    """The lines that a child finished; one that a kill cut short is none."""
    try:
        lines = (folder / SETTLED_FILE).read_text("utf-8").splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _short(digest: bytes) -> str:
    return digest.hex()[:12]
