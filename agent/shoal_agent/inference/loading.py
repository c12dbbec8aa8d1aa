"""Loads releases into a worker, and takes down what is learnt of them: times, size, signature, providers.

Which worker, and when, is `dispatch`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from shoal_agent.inference.batch import Loaded
from shoal_agent.inference.calibrations import Calibrations
from shoal_agent.inference.errors import NotServingError, WorkerLostError
from shoal_agent.inference.pace import Pace, Point
from shoal_agent.inference.served import Admission, Release
from shoal_agent.inference.signature import Forms
from shoal_agent.inference.trial import LOAD_TIMEOUT_S
from shoal_agent.inference.worker import CallRefusedError, Worker

log = structlog.get_logger()

_LOAD_CRASHES: Final = 3
"""A release that the worker did not survive so often in a row is left out of the next one."""


class Loader:
    """Knows how releases are loaded here.

    Args:
        calibrations: what is remembered of how fast they are.
        max_batch: rows of the largest batch.
    """

    def __init__(self, calibrations: Calibrations, *, max_batch: int) -> None:
        self._calibrations = calibrations
        self._max_batch = max_batch

    def pace(self, release: bytes) -> Pace:
        """What is remembered of how fast it is."""
        return Pace(self._calibrations.get(release), limit=self._max_batch)

    def admission(self, release: bytes) -> Admission:
        """How its trial went on this board, be it before a restart; zeros: there was none."""
        return self._calibrations.admission(release)

    def passed(self, release: Release, loaded: Loaded) -> None:
        """Its trial went so."""
        release.admission = Admission.of(loaded)
        release.size_bytes = loaded.grown_bytes
        self._calibrations.put_admission(release.id, release.admission)
        self.remember(release, loaded.points)

    def remember(self, release: Release, points: Sequence[Point]) -> None:
        """This is how fast it is here."""
        release.pace = Pace(points, limit=self._max_batch)
        self._calibrations.put(release.id, points)

    async def load(self, worker: Worker, release: Release) -> None:
        """Load it for good: one that is refused, or that the worker does not survive, is broken from now on.

        Raises:
            WorkerLostError: the worker died of it, or meanwhile.
        """
        if release.id in worker.loaded:
            release.is_evicted = False
            return
        try:
            loaded = await self._load(worker, release)
        except CallRefusedError as exc:
            _give_up(release, str(exc))
        except WorkerLostError as exc:
            release.load_crashes += 1
            if release.load_crashes >= _LOAD_CRASHES:
                _give_up(release, f"loading it ends the worker: {exc}")
            raise
        else:
            release.load_crashes = 0
            release.is_evicted = False
            self._take_down(release, loaded)

    async def load_all(
        self, worker: Worker, first: Release, releases: Mapping[bytes, Release]
    ) -> None:
        """Load `first`, then all that are in use, even those that come into use meanwhile.

        Nothing is given up: all but the first one run well where they are.

        Raises:
            CallRefusedError: the first one does not load.
            WorkerLostError: the worker died, or another one does not load.
        """
        self._take_down(first, await self._load(worker, first))
        while missing := [
            release
            for release in releases.values()
            if not (release.is_evicted or release.broken) and release.id not in worker.loaded
        ]:
            try:
                self._take_down(missing[0], await self._load(worker, missing[0]))
            except CallRefusedError as exc:
                other = missing[0].id.hex()[:12]
                raise WorkerLostError(f"it is of no use: {other} does not load: {exc}") from exc

    async def _load(self, worker: Worker, release: Release) -> Loaded:
        return await worker.load(
            release.id,
            release.directory,
            calibrate_rows=0 if release.pace.is_known else self._max_batch,
            timeout_s=LOAD_TIMEOUT_S,
        )

    def _take_down(self, release: Release, loaded: Loaded) -> None:
        release.load_s = loaded.load_us / 1e6
        # A worker that has run others grows by less than the release takes: the trial knows better.
        release.size_bytes = max(loaded.grown_bytes, release.admission.resident_bytes)
        release.providers = loaded.providers
        if release.forms.signature != loaded.signature:
            release.forms = Forms(loaded.signature)
        if loaded.points:
            self.remember(release, loaded.points)


def _give_up(release: Release, reason: str) -> None:
    log.error("a release cannot be loaded", release=release.id.hex()[:12], reason=reason)
    release.broken = reason
    release.fail_all(NotServingError(reason))
