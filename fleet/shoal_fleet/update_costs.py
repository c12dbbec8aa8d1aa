"""What bringing a release to a group will cost, before anything is sent: per base, a board and in all.

It makes nothing and changes nothing. Costs are bytes that boards receive; the broker is handed each blob once.
"""

from collections.abc import Mapping
from typing import Any

from shoal_fleet.audience import Audience
from shoal_fleet.deltas import DeltaCost, Deltas
from shoal_fleet.model_files import NO_MODEL, model_files
from shoal_fleet.registry import Registry
from shoal_fleet.releases import Release, Releases


class UpdateCosts:
    """The cost of updates as the API shows it."""

    def __init__(self, *, registry: Registry, releases: Releases, deltas: Deltas) -> None:
        self._registry = registry
        self._releases = releases
        self._deltas = deltas

    async def of(self, release: Release, audience: Audience) -> dict[str, Any]:
        """The cost of bringing `release` to the boards that are meant now.

        Raises:
            StateError: a file of the release is gone from the store.
        """
        members = [node for node in self._registry.nodes.values() if audience.has(node)]
        boards = model_files(members, release.name)
        sizes = {
            ref.digest: ref.size_bytes
            for ref in (
                await self._releases.blob(release.id),
                *await self._releases.blobs(release),
            )
        }
        full_bytes = sizes.pop(release.model_file)
        known = {base: count for base, count in boards.items() if base != NO_MODEL}
        costs = await self._deltas.costs(known, release.model_file)
        titles = {item.model_file: item.title for item in await self._releases.list_all()}
        rows = [
            _row(base, count, _cost(base, costs, release.model_file), full_bytes)
            | {"title": titles.get(base)}
            for base, count in boards.items()
        ]
        rows.sort(key=lambda row: (-row["total_bytes"], -row["boards"], row["base"]))
        has_it = boards[release.model_file]
        return {
            "release": release.id.hex(),
            "title": release.title,
            "group": audience.group,
            "where": audience.where,
            "full_bytes": full_bytes,
            # The manifest, release.toml and the golden inputs: for every board, with or without a delta.
            "other_bytes": sum(sizes.values()),
            "bases": rows,
            "boards": len(members),
            "total_bytes": sum(row["total_bytes"] for row in rows),
            "full_total_bytes": (len(members) - has_it) * full_bytes,
            "make_s": sum(row["make_s"] for row in rows),
        }


def _cost(base: bytes, costs: Mapping[bytes, DeltaCost], target: bytes) -> DeltaCost:
    if base == target:
        return DeltaCost(base, 0, is_exact=True, reason="it is there")
    if base == NO_MODEL:
        return DeltaCost(base, None, is_exact=True, reason="no known base")
    return costs[base]


def _row(base: bytes, boards: int, cost: DeltaCost, full_bytes: int) -> dict[str, Any]:
    board_bytes = full_bytes if cost.delta_bytes is None else cost.delta_bytes
    return {
        "base": base.hex(),
        "boards": boards,
        "delta_bytes": cost.delta_bytes,
        "is_exact": cost.is_exact,
        "board_bytes": board_bytes,
        "total_bytes": boards * board_bytes,
        "make_s": round(cost.make_s, 1),
        "reason": cost.reason,
    }
