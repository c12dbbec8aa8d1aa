"""Brings releases in and lets them go: trial, room, load, switch, drain. Requests are `engine`'s matter."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal_agent.inference.absence import Absence, FindCover, Stay, nobody
from shoal_agent.inference.agreement import Tally, is_comparable, measure_of, without
from shoal_agent.inference.backlog import Request
from shoal_agent.inference.batch import Loaded
from shoal_agent.inference.dispatch import Dispatcher
from shoal_agent.inference.errors import (
    ModelRefusedError,
    NoRoomError,
    NotAdmittedError,
    WorkerLostError,
)
from shoal_agent.inference.latency_gate import require_pace
from shoal_agent.inference.loading import Loader
from shoal_agent.inference.room import Place, place_of_load, place_of_trial
from shoal_agent.inference.served import Admission, Release
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.shadow import shadow_run
from shoal_agent.inference.signature import Forms, Signature
from shoal_agent.inference.tensors import Tensor
from shoal_agent.inference.trial import try_out
from shoal_contract.release import ShadowTable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """What a new release may take.

    Attributes:
        queue_limit: rows that may wait for it.
        max_batch: rows that run at once, at most.
        trial_bytes: memory that its trial may take; None: most of what is free at that moment.
        may_pause: what it replaces may go first where there is no room for both, even if nobody else serves it.
        room_bytes: how much memory may be taken now.
    """

    queue_limit: int
    max_batch: int
    trial_bytes: int | None
    may_pause: bool
    room_bytes: Callable[[], int]


class Releases:
    """Which release serves each model, and those that are on the way there.

    Attributes:
        serving: ids by model.
        find_cover: who else serves a model.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        loader: Loader,
        rules: AdmissionRules,
        *,
        python: str,
        settings: WorkerSettings,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self.serving: dict[str, bytes] = {}
        self.find_cover: FindCover = nobody
        self._on_change = on_change
        self._dispatcher = dispatcher
        self._loader = loader
        self._rules = rules
        self._python = python
        self._settings = settings
        self._admitting = asyncio.Lock()

    async def admit(
        self,
        release: bytes,
        directory: Path,
        *,
        trial: bool,
        replaces: str,
        latency_factor: float,
    ) -> Admission:
        """See `Engine.admit`."""
        async with self._admitting:
            known = self._dispatcher.releases.get(release)
            if known is not None and known.broken is None:
                known.retired = False
                return known.admission
            entry = self._entry(release, directory)
            try:
                async with _unless_called_off(replaces) as swap:
                    if trial:
                        await self._make_room_for_trial(entry, replaces, swap)
                        await self._try_out(entry)
                        await self._require_pace(entry, replaces, latency_factor)
                    self._dispatcher.releases[release] = entry
                    await self._load(entry, replaces if trial else None, swap)
            except BaseException:
                self._dispatcher.releases.pop(release, None)
                _resume(entry)
                self._dispatcher.wake()
                raise
            return entry.admission

    def register(self, release: bytes, directory: Path, signature: Signature) -> None:
        """See `Engine.register`."""
        if release in self._dispatcher.releases:
            return
        entry = self._entry(release, directory)
        entry.forms = Forms(signature)
        entry.is_evicted = True
        self._dispatcher.releases[release] = entry
        self._dispatcher.wake()

    async def shadow(
        self,
        model: str,
        release: bytes,
        table: ShadowTable,
        *,
        is_memory_short: Callable[[], bool],
    ) -> str:
        """See `Engine.shadow`."""
        entry = self._admitted(release)
        old = self._dispatcher.releases.get(self.serving.get(model, b""))
        if old is None:
            return "nothing serves that it could be held against"
        file_bytes = await asyncio.to_thread(_file_bytes, entry.directory)
        room_bytes = self._rules.room_bytes()
        impossible = None
        if old.absence is not None:
            impossible = "the release that serves made room for it"
        elif place_of_trial(room_bytes, file_bytes=file_bytes) is Place.INSTEAD:
            impossible = (
                f"no room for a process of its own: {max(0, room_bytes) >> 20} MiB are free"
            )
        elif not is_comparable(old.forms.signature, entry.forms.signature):
            impossible = "it takes or gives other tensors than the release that serves"
        if impossible is not None:
            if (reason := without(table, impossible)) is not None:
                raise ModelRefusedError(reason)
            return f"no shadow run: {impossible}"

        def send_copies(to: Callable[[Request, Sequence[Tensor]], None] | None) -> None:
            old.copies = to

        measure = measure_of(table, old.forms.signature, entry.forms.signature)
        return await shadow_run(
            Tally(table, measure),
            release,
            entry.directory,
            copies=send_copies,
            python=self._python,
            settings=self._settings,
            memory_bytes=min(room_bytes, self._rules.trial_bytes or room_bytes),
            is_busy=lambda: any(known.backlog.rows for known in self._dispatcher.releases.values()),
            is_memory_short=is_memory_short,
        )

    def switch(self, model: str, release: bytes) -> None:
        """See `Engine.switch`."""
        entry = self._admitted(release)
        old = self.serving.get(model)
        self.serving[model] = release
        entry.retired = False
        if old is not None and old != release:
            self.retire(old)
        _resume(entry)

    def remove(self, model: str) -> None:
        """See `Engine.remove`."""
        release = self.serving.pop(model, None)
        if release is not None:
            self.retire(release)

    def retire(self, release: bytes) -> None:
        """It goes once nobody waits for it; one that serves is left alone."""
        entry = self._dispatcher.releases.get(release)
        if entry is not None and release not in self.serving.values():
            entry.retired = True
            _resume(entry)
            self._dispatcher.wake()

    def _admitted(self, release: bytes) -> Release:
        entry = self._dispatcher.releases.get(release)
        if entry is None or entry.broken is not None:
            raise NotAdmittedError(f"release {release.hex()[:12]} is not admitted")
        return entry

    def _entry(self, release: bytes, directory: Path) -> Release:
        entry = Release(release, directory, self._rules.queue_limit, self._loader.pace(release))
        entry.admission = self._loader.admission(release)
        return entry

    async def _try_out(self, entry: Release) -> None:
        self._loader.passed(entry, await self._tried(entry, calibrate_rows=self._rules.max_batch))

    async def _tried(self, entry: Release, *, calibrate_rows: int) -> Loaded:
        return await try_out(
            entry.id,
            entry.directory,
            python=self._python,
            settings=self._settings,
            calibrate_rows=calibrate_rows,
            memory_bytes=self._rules.trial_bytes,
        )

    async def _require_pace(self, entry: Release, replaces: str, factor: float) -> None:
        old = self._dispatcher.releases.get(self.serving.get(replaces, b""))
        if old is None:
            return

        async def measured_us(release: Release) -> int:
            return (await self._tried(release, calibrate_rows=0)).p95_us

        async def measured_old_us() -> int:
            try:
                return await measured_us(old)
            except ModelRefusedError as exc:
                # It serves all the same: not the new one's fault.
                raise WorkerLostError(f"the release that serves cannot be measured: {exc}") from exc

        await require_pace(
            entry.admission.p95_us,
            old.admission.p95_us,
            factor,
            measure_new=lambda: measured_us(entry),
            measure_old=measured_old_us,
        )

    async def _load(self, entry: Release, replaces: str | None, swap: asyncio.Timeout) -> None:
        """Into the worker. `replaces` None: what served before a restart, whose start nobody waits through."""
        if replaces is None or self._dispatcher.worker is None:
            await self._dispatcher.install(entry)
            return
        loaded = self._dispatcher.worker.loaded
        place = place_of_load(
            self._rules.room_bytes(),
            new_bytes=entry.size_bytes,
            resident_bytes=sum(
                known.size_bytes
                for known in self._dispatcher.releases.values()
                if known.id in loaded
            ),
        )
        if place is Place.BESIDE and await self._dispatcher.install_beside(entry):
            return
        if place is Place.INSTEAD and entry.instead_of is None:
            await self._take_away(entry, replaces, swap)
        await self._dispatcher.install(entry)

    async def _make_room_for_trial(
        self, entry: Release, replaces: str, swap: asyncio.Timeout
    ) -> None:
        file_bytes = await asyncio.to_thread(_file_bytes, entry.directory)
        if place_of_trial(self._rules.room_bytes(), file_bytes=file_bytes) is Place.INSTEAD:
            await self._take_away(entry, replaces, swap)

    async def _take_away(self, entry: Release, replaces: str, swap: asyncio.Timeout) -> None:
        """Have what `entry` replaces go first. Where nothing serves yet there is nothing to lose: it may try.

        Raises:
            NoRoomError: nobody else serves it meanwhile, and an outage is not allowed.
        """
        old = self._dispatcher.releases.get(self.serving.get(replaces, b""))
        if old is None:
            return
        may_fail = self._rules.may_pause
        entry.instead_of = old
        old.absence = absence = Absence(swap, may_fail=may_fail)
        await self._on_change()
        cover = await self.find_cover(replaces)
        if not cover.by and not may_fail:
            raise NoRoomError(
                f"no room for a new release of {replaces!r} beside the one that serves:"
                f" {max(0, self._rules.room_bytes()) >> 20} MiB are free, and nobody else serves it meanwhile"
                f" ({'; '.join(cover.said) or 'nobody is known'}); [inference] may_pause allows an outage"
            )
        log.warning(
            "a model gives way to its new release", model=replaces, served_by=cover.by or "nobody"
        )
        absence.stay = Stay.DRAINING
        await self._on_change()
        await self._dispatcher.drain(old)
        absence.stay = Stay.AWAY
        await self._on_change()


@asynccontextmanager
async def _unless_called_off(model: str) -> AsyncIterator[asyncio.Timeout]:
    """What is done within ends when the model that it takes away is called back.

    Raises:
        NoRoomError: it was.
    """
    try:
        async with asyncio.timeout(None) as swap:
            yield swap
    except TimeoutError as exc:
        if not swap.expired():
            raise
        raise NoRoomError(
            f"the new release of {model!r} needs the room of the old one, which was called back:"
            " nobody else served it any more"
        ) from exc


def _resume(entry: Release) -> None:
    """What gave way to it takes requests again, if it is still what serves."""
    old, entry.instead_of = entry.instead_of, None
    if old is not None and old.absence is not None:
        absence, old.absence = old.absence, None
        absence.end()


def _file_bytes(directory: Path) -> int:
    """How large its files are; what cannot be read is the trial's matter."""
    try:
        return sum(path.lstat().st_size for path in directory.iterdir())
    except OSError:
        return 0
