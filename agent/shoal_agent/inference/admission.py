"""Brings releases in and lets them go: trial, room, load, switch, drain. Requests are `engine`'s matter."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal_agent.inference.dispatch import Dispatcher
from shoal_agent.inference.errors import NoRoomError, NotAdmittedError
from shoal_agent.inference.loading import Loader
from shoal_agent.inference.room import Place, place_of_load, place_of_trial
from shoal_agent.inference.served import Admission, Release
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Forms, Signature
from shoal_agent.inference.trial import try_out

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """What a new release may take.

    Attributes:
        queue_limit: rows that may wait for it.
        max_batch: rows that run at once, at most.
        trial_bytes: memory that its trial may take; None: most of what is free at that moment.
        may_pause: what it replaces may go first where there is no room for both.
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
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        loader: Loader,
        rules: AdmissionRules,
        *,
        python: str,
        settings: WorkerSettings,
    ) -> None:
        self.serving: dict[str, bytes] = {}
        self._dispatcher = dispatcher
        self._loader = loader
        self._rules = rules
        self._python = python
        self._settings = settings
        self._admitting = asyncio.Lock()

    async def admit(
        self, release: bytes, directory: Path, *, trial: bool, replaces: str
    ) -> Admission:
        """See `Engine.admit`."""
        async with self._admitting:
            known = self._dispatcher.releases.get(release)
            if known is not None and known.broken is None:
                known.retired = False
                return known.admission
            entry = self._entry(release, directory)
            try:
                if trial:
                    await self._make_room_for_trial(entry, replaces)
                    await self._try_out(entry)
                self._dispatcher.releases[release] = entry
                await self._load(entry, replaces if trial else None)
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

    def switch(self, model: str, release: bytes) -> None:
        """See `Engine.switch`."""
        entry = self._dispatcher.releases.get(release)
        if entry is None or entry.broken is not None:
            raise NotAdmittedError(f"release {release.hex()[:12]} is not admitted")
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

    def _entry(self, release: bytes, directory: Path) -> Release:
        entry = Release(release, directory, self._rules.queue_limit, self._loader.pace(release))
        entry.admission = self._loader.admission(release)
        return entry

    async def _try_out(self, entry: Release) -> None:
        loaded = await try_out(
            entry.id,
            entry.directory,
            python=self._python,
            settings=self._settings,
            calibrate_rows=self._rules.max_batch,
            memory_bytes=self._rules.trial_bytes,
        )
        self._loader.passed(entry, loaded)

    async def _load(self, entry: Release, replaces: str | None) -> None:
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
            may_pause=self._rules.may_pause,
        )
        if place is Place.BESIDE and await self._dispatcher.install_beside(entry):
            return
        if place in {Place.INSTEAD, Place.NOWHERE} and entry.instead_of is None:
            await self._take_away(entry, replaces, place)
        await self._dispatcher.install(entry)

    async def _make_room_for_trial(self, entry: Release, replaces: str) -> None:
        place = place_of_trial(
            self._rules.room_bytes(),
            file_bytes=await asyncio.to_thread(_file_bytes, entry.directory),
            may_pause=self._rules.may_pause,
        )
        if place is not Place.BESIDE:
            await self._take_away(entry, replaces, place)

    async def _take_away(self, entry: Release, replaces: str, place: Place) -> None:
        """Pause what `entry` replaces. Where nothing serves yet there is nothing to lose: it may try.

        Raises:
            NoRoomError: that is not allowed.
        """
        old = self._dispatcher.releases.get(self.serving.get(replaces, b""))
        if old is None:
            return
        if place is Place.NOWHERE:
            raise NoRoomError(
                f"no room for a new release of {replaces!r} beside the one that serves:"
                f" {max(0, self._rules.room_bytes()) >> 20} MiB are free;"
                " [inference] may_pause lets the old one go first"
            )
        log.warning("a model is paused, to make room for its new release", model=replaces)
        entry.instead_of = old
        await self._dispatcher.pause(old)


def _resume(entry: Release) -> None:
    """What was paused for it takes requests again, if it is still what serves."""
    if entry.instead_of is not None:
        entry.instead_of.paused = False
        entry.instead_of = None


def _file_bytes(directory: Path) -> int:
    """How large its files are; what cannot be read is the trial's matter."""
    try:
        return sum(path.lstat().st_size for path in directory.iterdir())
    except OSError:
        return 0
