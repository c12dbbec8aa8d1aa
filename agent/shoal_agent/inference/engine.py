"""The inference engine: queues, batches, hot swap, and a worker process that may die without anybody noticing.

Knows nothing of peers (`router`), of where releases come from, or of numpy. All requests go to one worker
(`dispatch`); while a batch runs the queues fill, and the next batch takes what is there: nothing waits to be filled up.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from shoal_agent.background import Background
from shoal_agent.inference.backlog import Waiting
from shoal_agent.inference.dispatch import Dispatcher
from shoal_agent.inference.errors import (
    BadInputError,
    DeadlineError,
    NotAdmittedError,
    NotServingError,
    QueueFullError,
)
from shoal_agent.inference.served import Admission, EngineStats, Release, Served
from shoal_agent.inference.trial import try_out
from shoal_contract.messages import Answer

__all__ = ["Admission", "Engine", "EngineStats", "Served"]


class Engine:
    """Serves models by name; each name has one release at a time.

    Attributes:
        stats: counters since the start.
    """

    def __init__(
        self, *, queue_limit: int, max_batch: int, python: str, trial_bytes: int | None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.stats = EngineStats()
        self._clock = loop.time
        self._queue_limit = queue_limit
        self._max_batch = max_batch
        self._python = python
        self._trial_bytes = trial_bytes
        self._dispatcher = Dispatcher(self.stats, max_batch=max_batch, python=python)
        self._serving: dict[str, bytes] = {}
        self._admitting = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        queue_limit: int = 64,
        max_batch: int = 16,
        python: str = sys.executable,
        trial_bytes: int | None = None,
    ) -> AsyncIterator[Self]:
        """An engine that serves nothing yet; the worker starts when the first release is admitted.

        Args:
            queue_limit: items that may wait for one release.
            max_batch: items that run at once.
            python: the interpreter of the worker.
            trial_bytes: how much memory a new release may take in its trial; None: most of what is
                free at that moment.
        """
        engine = cls(
            queue_limit=queue_limit, max_batch=max_batch, python=python, trial_bytes=trial_bytes
        )
        async with Background.open() as background:
            background.start(engine._dispatcher.run(), name="engine.worker")
            try:
                yield engine
            finally:
                engine._dispatcher.halt("the engine is stopping")

    # ------------------------------------------------------------------ releases
    async def admit(self, release: bytes, directory: Path, *, trial: bool = True) -> Admission:
        """Load a release beside what serves, after a trial in a limited process of its own.

        Args:
            release: its id, 32 bytes.
            directory: holds release.toml, the model and the golden file; stays there while it serves.
            trial: False for a release that served on this board before: no measuring, quicker start.

        Raises:
            ModelRefusedError: it cannot serve here; the message is the reason.
            WorkerLostError: no worker can be started at the moment; says nothing about the release.
        """
        async with self._admitting:
            known = self._dispatcher.releases.get(release)
            if known is not None and known.broken is None:
                known.retired = False
                return known.admission
            if trial:
                loaded = await try_out(
                    release, directory, python=self._python, memory_bytes=self._trial_bytes
                )
                admission = Admission.of(loaded)
                entry = Release(release, directory, self._queue_limit, admission, loaded.item_bytes)
            else:
                entry = Release(release, directory, self._queue_limit)
            self._dispatcher.releases[release] = entry
            try:
                await self._dispatcher.install(entry)
            except BaseException:
                self._dispatcher.releases.pop(release, None)
                self._dispatcher.wake()
                raise
            return entry.admission

    async def switch(self, model: str, release: bytes) -> None:
        """New requests for `model` go to this admitted release; the old one drains, then is unloaded.

        Raises:
            NotAdmittedError: `admit` first.
        """
        entry = self._dispatcher.releases.get(release)
        if entry is None or entry.broken is not None:
            raise NotAdmittedError(f"release {release.hex()[:12]} is not admitted")
        old = self._serving.get(model)
        self._serving[model] = release
        entry.retired = False
        if old is not None and old != release:
            self._retire(old)

    async def remove(self, model: str) -> None:
        """`model` is served no more; what was accepted is still answered."""
        release = self._serving.pop(model, None)
        if release is not None:
            self._retire(release)

    async def discard(self, release: bytes) -> None:
        """Unload an admitted release that will not be switched to; one that serves is left alone."""
        self._retire(release)

    def serving(self, model: str) -> bytes | None:
        """The id of the release that serves `model`."""
        return self._serving.get(model)

    def models(self) -> list[str]:
        """What is served, sorted."""
        return sorted(self._serving)

    # ------------------------------------------------------------------ requests
    async def infer(
        self, model: str, items: Sequence[bytes], *, deadline_s: float = 1.0, priority: int = 1
    ) -> Served:
        """Run a model on encoded items; one answer an item, in order. `by` is left empty.

        Args:
            model: its name.
            items: each as the release's [input] says; at most the queue limit.
            deadline_s: seconds from now.
            priority: a higher one runs first.

        Raises:
            NotServingError: the model does not run here, or no worker can run at the moment.
            QueueFullError: too much is waiting; says when to come again.
            BadInputError: the items do not fit the model.
            DeadlineError: not done in time.
            WorkerLostError: the worker died of it twice.
        """
        release = self._accepting(model, items)
        started = self._clock()
        request = Waiting(items, started + deadline_s, priority)
        release.backlog.push(request)
        release.waiters[request] = done = asyncio.get_running_loop().create_future()
        self.stats.requests += 1
        self._dispatcher.wake()
        try:
            async with asyncio.timeout_at(request.deadline):
                answers: list[Answer] = await done
        except TimeoutError:
            self.stats.expired += 1
            raise DeadlineError(f"{model!r} was not done within {deadline_s:g} s") from None
        finally:
            request.over = True
            del release.waiters[request]
        self.stats.record_latency(self._clock() - started)
        return Served(answers, release.id, "")

    def _accepting(self, model: str, items: Sequence[bytes]) -> Release:
        release = self._dispatcher.releases.get(self._serving.get(model, b""))
        if release is None:
            raise NotServingError(f"{model!r} does not run here")
        if (reason := release.broken or self._dispatcher.halted) is not None:
            raise NotServingError(f"{model!r} cannot run here: {reason}")
        if not 1 <= len(items) <= self._queue_limit:
            raise BadInputError(f"{len(items)} items; 1 to {self._queue_limit} are allowed")
        if any(len(item) != release.item_bytes for item in items):
            raise BadInputError(f"an item of {model!r} has {release.item_bytes} bytes")
        if not release.backlog.has_room(len(items)):
            self.stats.refused += 1
            batches = len(release.backlog) / self._max_batch + 1
            raise QueueFullError(
                f"{len(release.backlog)} items are waiting for {model!r}",
                retry_after_s=batches * max(release.batch_s, 0.001),
            )
        return release

    def _retire(self, release: bytes) -> None:
        entry = self._dispatcher.releases.get(release)
        if entry is not None and release not in self._serving.values():
            entry.retired = True
            self._dispatcher.wake()
