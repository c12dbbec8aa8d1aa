"""Which blobs somebody still needs: what follows from who has to get which release. It publishes nothing."""

from collections.abc import Awaitable, Callable, Sequence

from shoal_contract.messages import BlobRef
from shoal_fleet.deltas import Deltas
from shoal_fleet.registry import Registry
from shoal_fleet.releases import Release, Releases

Expecting = Callable[[], Awaitable[set[tuple[str, bytes]]]]
"""Gives (node, release) for every node that is to get a release and has not got it."""


class Needs:
    """Of a release: the manifest and small files, and a delta from what a node has, or the whole model."""

    def __init__(
        self,
        sources: Sequence[Expecting],
        *,
        registry: Registry,
        releases: Releases,
        deltas: Deltas,
    ) -> None:
        self._sources = sources
        self._registry = registry
        self._releases = releases
        self._deltas = deltas

    async def __call__(self) -> dict[bytes, BlobRef]:
        """The blobs by digest.

        Raises:
            StateError: a blob is gone from the store, or the database cannot be read.
        """
        needed: dict[bytes, BlobRef] = {}
        by_release: dict[bytes, set[str]] = {}
        for source in self._sources:
            for node, release in await source():
                by_release.setdefault(release, set()).add(node)
        for release, nodes in sorted(by_release.items()):
            item = await self._releases.get(release)
            for ref in await self._blobs_for(item, nodes):
                needed[ref.digest] = ref
        return needed

    async def _blobs_for(self, item: Release, nodes: set[str]) -> list[BlobRef]:
        files = await self._releases.blobs(item)
        offers = {offer.base: offer.blob for offer in await self._deltas.offers(item.model_file)}
        wanted = [await self._releases.blob(item.id)]
        wanted += [ref for ref in files if ref.digest != item.model_file]
        bases = {self._model_file(node, item.name) for node in nodes}
        wanted += [offers[base] for base in sorted(bases & offers.keys())]
        if not bases <= offers.keys() | {item.model_file}:
            wanted += [ref for ref in files if ref.digest == item.model_file]
        return wanted

    def _model_file(self, node: str, model: str) -> bytes:
        known = self._registry.nodes.get(node)
        state = None if known is None else known.model(model)
        return b"" if state is None else state.model_file
