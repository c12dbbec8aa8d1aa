"""Whether a pipeline can run where it is wanted, as far as the controller knows: devices, units, pictures, answers.

A board looks again before it runs; what is found here costs no way there and back.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from shoal_broker.bus_errors import TopicError
from shoal_broker.pipeline_topics import check_topics
from shoal_contract import pipelines
from shoal_contract.errors import ContractError, MisfitError
from shoal_contract.fitting import fit
from shoal_contract.pipelines import PipelineTable
from shoal_contract.release import ReleaseSpec
from shoal_fleet.errors import RequestError
from shoal_fleet.pipelines import Pipelines
from shoal_fleet.registry import Node
from shoal_fleet.releases import Release, Releases

# Node -> model -> the release that it is to run.
WantedOf = Callable[[str], Awaitable[Mapping[str, bytes]]]


class PipelineCheck:
    """Asks what is known of nodes and releases."""

    def __init__(self, book: Pipelines, releases: Releases, wanted_of: WantedOf) -> None:
        self._book = book
        self._releases = releases
        self._wanted_of = wanted_of

    async def check(
        self, tables: Sequence[dict[str, Any]], members: Sequence[Node]
    ) -> list[PipelineTable]:
        """The pipelines, which can run on these nodes.

        Raises:
            RequestError: one cannot; the message names it, and the node or release.
        """
        parsed = [_parsed(table) for table in tables]
        names = [table.stream for table in parsed]
        if len(set(names)) != len(names):
            raise RequestError("two of these pipelines have one stream: it is their name")
        for node in members:
            _check_devices(parsed, node)
        for table in parsed:
            for release in await self._served(table.model, members):
                try:
                    fit(table, await self._spec(release))
                except MisfitError as exc:
                    raise RequestError(f"pipeline {table.stream!r}: {exc}") from exc
        return parsed

    async def check_release(self, release: Release, members: Sequence[Node]) -> None:
        """Whether the fleet's pipelines on these nodes can read a release that is to come.

        Raises:
            RequestError: one cannot; the message names it and the node.
        """
        spec: ReleaseSpec | None = None
        seen: list[dict[str, Any]] = []
        for node in members:
            for stream, table in self._book.of(node).items():
                # Nodes of a group have the same ones.
                if table.get("model") != release.name or table in seen:
                    continue
                seen.append(table)
                spec = spec or await self._spec(release)
                try:
                    fit(pipelines.parse(table), spec)
                except ContractError as exc:
                    raise RequestError(
                        f"pipeline {stream!r} of {node.name} cannot read it: {exc}"
                    ) from exc

    async def _served(self, model: str, members: Sequence[Node]) -> list[Release]:
        """The releases of a model that these nodes are to run; where none is, the newest there is."""
        everywhere = [(await self._wanted_of(node.name)).get(model) for node in members]
        found = [await self._releases.get(one) for one in {one for one in everywhere if one}]
        if found and None not in everywhere:
            return found
        newest = [one for one in await self._releases.list_all() if one.name == model][:1]
        return found + [one for one in newest if one not in found]

    async def _spec(self, release: Release) -> ReleaseSpec:
        return await self._releases.spec(release)


def _parsed(table: dict[str, Any]) -> PipelineTable:
    try:
        parsed = pipelines.parse(table)
        check_topics(parsed)
    except (ContractError, TopicError) as exc:
        name = table.get("stream")
        raise RequestError(
            f"pipeline {name!r}: {exc}" if isinstance(name, str) else str(exc)
        ) from exc
    return parsed


def _check_devices(tables: Sequence[PipelineTable], node: Node) -> None:
    """Against what the node says that it has; one that has not said anything yet may have all."""
    if node.reported is None:
        return
    for table in tables:
        try:
            pipelines.check(table, node.reported.devices)
        except ContractError as exc:
            raise RequestError(f"pipeline {table.stream!r} on {node.name}: {exc}") from exc
