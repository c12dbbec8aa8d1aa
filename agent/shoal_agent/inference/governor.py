"""Has models give memory back when it is short, one at a time. Who goes is decided in `memory`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from shoal_agent.inference import memory
from shoal_agent.inference.dispatch import Dispatcher
from shoal_agent.inference.memory import Memory, Resident
from shoal_agent.inference.served import EngineStats

log = structlog.get_logger()

LOOK_EVERY_S: Final = 5.0


class Governor:
    """Looks at the memory as long as a worker runs.

    Args:
        dispatcher: has the releases.
        serving: which of them serve, by model.
        stats: counted into.
    """

    def __init__(
        self, dispatcher: Dispatcher, serving: Mapping[str, bytes], stats: EngineStats
    ) -> None:
        self._dispatcher = dispatcher
        self._serving = serving
        self._stats = stats
        self._clock = asyncio.get_running_loop().time

    async def run(
        self,
        reserve_bytes: int,
        keep: frozenset[str],
        read_memory: Callable[[], Memory],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        """For ever: evict whoever is missed least while memory is tight; never a model of `keep`.

        `on_change` is awaited when other models are in memory than before.
        """
        told: frozenset[bytes] = frozenset()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._dispatcher.worker is not None and read_memory().is_tight(reserve_bytes):
                await self._evict_one(keep)
            evicted = frozenset(r.id for r in self._dispatcher.releases.values() if r.is_evicted)
            if evicted != told:
                told = evicted
                await on_change()

    async def _evict_one(self, keep: frozenset[str]) -> None:
        chosen = memory.to_evict(self._residents(keep))
        if chosen is None:
            return
        if await self._dispatcher.evict(self._dispatcher.releases[chosen]):
            self._stats.evictions += 1
            log.warning("memory is short, a model was evicted", release=chosen.hex()[:12])

    def _residents(self, keep: frozenset[str]) -> list[Resident]:
        pinned = {release for model, release in self._serving.items() if model in keep}
        now = self._clock()
        return [
            Resident(
                release.id,
                release.size_bytes,
                idle_s=0.0 if release.waiting else now - release.used_at,
                load_s=release.load_s,
                is_pinned=release.id in pinned,
            )
            for release in self._dispatcher.releases.values()
            if release.id in self._serving.values()
            and not release.is_evicted
            and release.broken is None
        ]
