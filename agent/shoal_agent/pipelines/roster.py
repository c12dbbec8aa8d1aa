"""The pipelines of a node: which are to run, which do, and how one takes another's place.

A pipeline whose table did not change is never touched. A changed one takes over between two items; what was
under way ends with the old one. One that cannot run leaves the old one running, and says why.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from shoal_agent.config import PipelinesTable
from shoal_agent.pipelines import assembly
from shoal_agent.pipelines.assembly import Surroundings
from shoal_agent.pipelines.pipeline import Pipeline
from shoal_agent.pipelines.sources import Source
from shoal_broker.bus_errors import TopicError
from shoal_broker.pipeline_topics import check_topics
from shoal_contract import pipelines
from shoal_contract.errors import ContractError, FileFormatError
from shoal_contract.fitting import fit
from shoal_contract.messages import PipelineState, PipelineWanted
from shoal_contract.pipelines import PipelineTable

log = structlog.get_logger()

_MAX_REASON: Final = 256
_HIDDEN: Final = "the board's own configuration has a pipeline of this name, which goes first"


@dataclass(slots=True)
class _Running:
    table: PipelineTable
    pipeline: Pipeline
    source: Source
    is_fleets: bool
    wanted: PipelineWanted | None = None


class Roster:
    """Keeps what runs equal to what is to run, as far as that can be.

    Args:
        around: what pipelines are connected with.
        allowed: what pipelines of the fleet may do here.
        on_change: called whenever `states` would answer differently.
    """

    def __init__(
        self,
        around: Surroundings,
        allowed: PipelinesTable,
        *,
        on_change: Callable[[], None],
    ) -> None:
        self._around = around
        self._allowed = allowed
        self._on_change = on_change
        self._own: dict[str, PipelineTable] = {}
        self._fleets: dict[str, PipelineWanted] = {}
        self._running: dict[str, _Running] = {}
        self._reasons: dict[str, str] = {}
        self._hidden: list[str] = []
        self._file_trouble = ""
        self._turn = asyncio.Lock()

    def running(self) -> list[Pipeline]:
        """What runs, the longest first."""
        return [one.pipeline for one in list(self._running.values())]

    def running_of_fleet(self) -> list[PipelineWanted]:
        """The fleet's that run, as they came; where a newer one could not run, the older."""
        return [one.wanted for one in self._running.values() if one.wanted is not None]

    def states(self) -> list[PipelineState]:
        """Every pipeline that is to run here, or does, and what stands in its way."""
        states = []
        for name in sorted({*self._own, *self._fleets, *self._running}):
            running = self._running.get(name)
            trouble = self._reasons.get(name) or (running.pipeline.trouble if running else "")
            is_fleets = running.is_fleets if running else name not in self._own
            if not trouble and not is_fleets:
                trouble = self._file_trouble
            states.append(
                PipelineState(
                    stream=name,
                    from_fleet=is_fleets,
                    running=running is not None,
                    reason=trouble[:_MAX_REASON],
                )
            )
        states += [
            PipelineState(name, from_fleet=True, running=False, reason=_HIDDEN)
            for name in self._hidden
        ]
        return states

    async def open(self, own: Sequence[PipelineTable], fleets: Sequence[PipelineWanted]) -> None:
        """The first pipelines; from now on messages of their topics flow, and samples that none reads are refused."""
        await self.follow_file(own)
        await self.follow_fleet(fleets)
        for device in self._around.devices.values():
            device.refuse_unknown()
        self._around.subscribed.open(self._around.session, self._around.tasks)

    async def follow_file(self, tables: Sequence[PipelineTable]) -> None:
        """From now on these are the board's own; they were checked when the file was read."""
        async with self._turn:
            self._own, self._file_trouble = named(tables), ""
            await self._apply()

    async def complain(self, reason: str) -> None:
        """The board's own file cannot be used any more: what runs goes on."""
        async with self._turn:
            self._file_trouble = reason
            self._on_change()

    async def follow_fleet(self, wanted: Sequence[PipelineWanted]) -> None:
        """From now on these are the fleet's."""
        async with self._turn:
            self._fleets = {one.stream: one for one in wanted}
            await self._apply()

    async def _apply(self) -> None:
        before = self._reasons
        self._reasons, self._hidden = {}, []
        tables = self._wanted(before)
        for name in [name for name in self._running if name not in tables]:
            await self._stop(name)
        for name, (table, is_fleets) in tables.items():
            await self._bring(name, table, is_fleets=is_fleets)
        self._on_change()

    def _wanted(self, before: dict[str, str]) -> dict[str, tuple[PipelineTable, bool]]:
        """What can be tried; of what cannot, the one that runs stays."""
        tables = {name: (table, False) for name, table in self._own.items()}
        for name, one in self._fleets.items():
            running = self._running.get(name)
            reason = ""
            if not self._allowed.from_fleet:
                reason = "[pipelines] from_fleet is false on this board"
            elif name in self._own:
                # Both would be one stream, and who stands at the board must know what runs.
                self._hidden.append(name)
                continue
            else:
                try:
                    tables[name] = (self._checked(one), True)
                except (ContractError, TopicError) as exc:
                    reason = str(exc)
                    if running is not None and running.is_fleets:
                        tables[name] = (running.table, True)
            if reason:
                self._reasons[name] = reason
                if before.get(name) != reason:
                    log.error("pipeline of the fleet refused", stream=name, reason=reason)
        return tables

    def _checked(self, wanted: PipelineWanted) -> PipelineTable:
        table = pipelines.parse(wanted.table)
        pipelines.check(table, self._around.devices)
        check_topics(table)
        if table.stream != wanted.stream:
            raise FileFormatError(f"the table is of {table.stream!r}")
        paths = [one.path for one in (table.images, table.file) if one is not None]
        if table.camera is not None and table.camera.password_file is not None:
            paths.append(table.camera.password_file)
        for path in paths:
            if not _is_below(Path(path), self._allowed.folders):
                raise FileFormatError(f"{path} is in none of [pipelines] folders of this board")
        return table

    async def _bring(self, name: str, table: PipelineTable, *, is_fleets: bool) -> None:
        running = self._running.get(name)
        if running is not None and running.table == table:
            running.is_fleets = is_fleets
            # Not of one that could not run: what it replaced is what ran.
            running.wanted = running.wanted or self._fleets.get(name) if is_fleets else None
            return
        reason = self._obstacle(name, table)
        if reason:
            self._reasons[name] = reason
            log.error("pipeline refused", stream=name, reason=reason, old_runs=running is not None)
            return
        pipeline, source = assembly.build(
            table,
            self._around,
            stats=None if running is None else running.pipeline.stats,
            on_trouble=self._on_change,
        )
        if running is not None:
            # Without a pause between the two where they read the same place: nothing falls between them.
            running.source.stop()
            await running.source.ended()
        wanted = self._fleets.get(name) if is_fleets else None
        self._running[name] = _Running(table, pipeline, source, is_fleets, wanted)
        source.start()
        log.info("pipeline runs", stream=name, from_fleet=is_fleets, replaced=running is not None)

    def _obstacle(self, name: str, table: PipelineTable) -> str:
        """Why it cannot run beside the others, or with the release that serves; empty: nothing."""
        if table.device is not None:
            place = (table.device, table.channel)
            for other, one in self._running.items():
                if other != name and (one.table.device, one.table.channel) == place:
                    return f"pipeline {other!r} reads channel {table.channel} of {table.device!r}"
        spec = self._around.spec_of(table.model)
        if spec is None:
            return ""
        try:
            fit(table, spec)
        except ContractError as exc:
            # The first time it runs all the same: it waits, and a later release may fit.
            return str(exc) if name in self._running else ""
        return ""

    async def _stop(self, name: str) -> None:
        running = self._running.pop(name)
        running.source.stop()
        await running.source.ended()
        log.info("pipeline stopped", stream=name)


def named(tables: Sequence[PipelineTable]) -> dict[str, PipelineTable]:
    """By stream; where several share one, the second is called STREAM#2."""
    found: dict[str, PipelineTable] = {}
    for table in tables:
        name, number = table.stream, 1
        while name in found:
            number += 1
            name = f"{table.stream}#{number}"
        found[name] = table
    return found


def filters_of(own: Sequence[PipelineTable], fleets: Sequence[PipelineWanted]) -> list[str]:
    """The topic filters that these read, as far as they can be understood; before anything runs."""
    tables = list(own)
    for one in fleets:
        with contextlib.suppress(ContractError):
            tables.append(pipelines.parse(one.table))
    filters = []
    for table in tables:
        if table.topic is not None:
            with contextlib.suppress(TopicError):
                check_topics(table)
                filters.append(table.topic.filter)
    return filters


def _is_below(path: Path, folders: Sequence[str]) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(Path(folder).resolve()) for folder in folders)
