"""The inference engine: queues, batches, hot swap, and a worker process that may die without anybody noticing.

Knows nothing of peers (`router`), of where releases come from, or of numpy. All requests go to one worker
(`dispatch`); while a batch runs the queues fill, and the next batch takes what is there: nothing waits to be filled up.
"""

import asyncio
import sys
from asyncio import Future
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from shoal_agent.background import Background
from shoal_agent.inference import memory
from shoal_agent.inference.absence import FindCover
from shoal_agent.inference.admission import AdmissionRules, Releases
from shoal_agent.inference.backlog import Priority, Request
from shoal_agent.inference.calibrations import Calibrations
from shoal_agent.inference.dispatch import Dispatcher
from shoal_agent.inference.errors import (
    AwayError,
    BadInputError,
    NotServingError,
)
from shoal_agent.inference.governor import Governor
from shoal_agent.inference.intake import Intake
from shoal_agent.inference.loading import Loader
from shoal_agent.inference.memory import Memory
from shoal_agent.inference.served import (
    Admission,
    EngineStats,
    Inferred,
    ModelFacts,
    Release,
    Served,
)
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Signature
from shoal_agent.inference.tensors import Tensor
from shoal_contract.messages import Answer
from shoal_contract.release import ShadowTable

__all__ = ["Admission", "Engine", "EngineStats", "Inferred", "Served"]

_DEFAULTS: Final = WorkerSettings()


async def _nobody_is_told() -> None:
    """Who opened the engine did not ask."""


class Engine:
    """Serves models by name; each name has one release at a time.

    Attributes:
        stats: counters since the start.
    """

    def __init__(
        self,
        rules: AdmissionRules,
        *,
        python: str,
        settings: WorkerSettings,
        calibrations: Calibrations,
        reserve_bytes: int,
        read_memory: Callable[[], Memory],
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.stats = EngineStats()
        self._clock = self._loop.time
        loader = Loader(calibrations, max_batch=rules.max_batch)
        self._dispatcher = Dispatcher(self.stats, python=python, settings=settings, loader=loader)
        self._releases = Releases(
            self._dispatcher, loader, rules, python=python, settings=settings, on_change=on_change
        )
        self._serving = self._releases.serving
        self._reserve_bytes = reserve_bytes
        self._read_memory = read_memory
        self._intake = Intake(self._dispatcher, self.stats, queue_limit=rules.queue_limit)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        queue_limit: int = 256,
        max_batch: int = 32,
        python: str = sys.executable,
        trial_bytes: int | None = None,
        settings: WorkerSettings = _DEFAULTS,
        calibrations: Calibrations | None = None,
        reserve_bytes: int = 0,
        keep: Sequence[str] = (),
        may_pause: bool = False,
        read_memory: Callable[[], Memory] = memory.read,
        on_change: Callable[[], Awaitable[None]] = _nobody_is_told,
    ) -> AsyncIterator[Self]:
        """An engine that serves nothing yet; the worker starts when the first release is admitted.

        Args:
            queue_limit: rows that may wait for one release.
            max_batch: rows that run at once, at most.
            python: the interpreter of the worker.
            trial_bytes: how much memory a new release may take in its trial; None: most of what is
                free at that moment.
            settings: how the worker runs models.
            calibrations: what is remembered of how fast releases are here; None: nothing.
            reserve_bytes: so much is to stay free; models that nobody asks for go when it does not.
            keep: models that never go.
            may_pause: where memory does not hold both releases of a model and nobody else serves it, it may be away
                for the time of its own update.
            read_memory: how much there is.
            on_change: awaited when other models are in memory, or serve, than before.
        """
        rules = AdmissionRules(
            queue_limit=queue_limit,
            max_batch=max_batch,
            trial_bytes=trial_bytes,
            may_pause=may_pause,
            room_bytes=lambda: read_memory().free_bytes - reserve_bytes,
        )
        engine = cls(
            rules,
            python=python,
            settings=settings,
            calibrations=calibrations or Calibrations(None, hardware=""),
            reserve_bytes=reserve_bytes,
            read_memory=read_memory,
            on_change=on_change,
        )
        async with Background.open() as background:
            background.start(engine._dispatcher.run(), name="engine.worker")
            governor = Governor(engine._dispatcher, engine._serving, engine.stats)
            governing = governor.run(reserve_bytes, frozenset(keep), read_memory, on_change)
            background.start(governing, name="engine.memory")
            try:
                yield engine
            finally:
                engine._dispatcher.halt("the engine is stopping")

    def refer_to(self, find_cover: FindCover) -> None:
        """Where memory does not hold both releases of a model at its update, this says who else serves it."""
        self._releases.find_cover = find_cover

    # ------------------------------------------------------------------ releases
    def is_memory_short(self) -> bool:
        """Models are asked for theirs at the moment."""
        return self._read_memory().is_tight(self._reserve_bytes)

    def register(self, release: bytes, directory: Path, signature: Signature) -> None:
        """Take in a release that served on this board before, as if it had been evicted: the first request loads it."""
        self._releases.register(release, directory, signature)

    async def admit(
        self,
        release: bytes,
        directory: Path,
        *,
        trial: bool = True,
        replaces: str = "",
        latency_factor: float = 0.0,
    ) -> Admission:
        """Load a release beside what serves, after a trial in a limited process of its own.

        Args:
            release: its id, 32 bytes.
            directory: holds release.toml, the model and the golden file; stays there while it serves.
            trial: False for a release that served on this board before: no measuring, quicker start.
            replaces: the model that it is for; what serves that may have to make room (`refer_to`, `may_pause`).
            latency_factor: how many times as slow as that it may be in its trial; 0: any.

        Raises:
            ModelRefusedError: it cannot serve here; the message is the reason.
            NoRoomError: there is no room for both, and the one that serves may not be taken away, or was called back.
            WorkerLostError: no worker can be started at the moment; says nothing about the release.
        """
        return await self._releases.admit(
            release, directory, trial=trial, replaces=replaces, latency_factor=latency_factor
        )

    async def shadow(self, model: str, release: bytes, table: ShadowTable) -> str:
        """Hold an admitted release against the one that serves `model`, by copies of what that is asked.

        Returns what came of it. As long as it takes, what serves is neither changed nor kept waiting.

        Raises:
            ModelRefusedError: it agrees too little; the message has the figures.
            NotAdmittedError: `admit` first.
        """
        short = self.is_memory_short
        return await self._releases.shadow(model, release, table, is_memory_short=short)

    async def switch(self, model: str, release: bytes) -> None:
        """New requests for `model` go to this admitted release; the old one drains, then is unloaded.

        Raises:
            NotAdmittedError: `admit` first.
        """
        self._releases.switch(model, release)

    async def remove(self, model: str) -> None:
        """`model` is served no more; what was accepted is still answered."""
        self._releases.remove(model)

    async def discard(self, release: bytes) -> None:
        """Unload an admitted release that will not be switched to; one that serves is left alone."""
        self._releases.retire(release)

    def is_leaving(self, model: str) -> bool:
        """It gives way to its new release, or is about to: nobody is to count on it."""
        release = self._dispatcher.releases.get(self._serving.get(model, b""))
        return release is not None and release.absence is not None

    async def call_back(self, model: str, within_s: float) -> bool:
        """`model` is away for its update and nobody else serves it: the update is given up.

        Returns whether requests are taken here again within this time; False: not, or the operator lets it be away.
        """
        release = self._dispatcher.releases.get(self._serving.get(model, b""))
        if release is None or release.absence is None:
            return release is not None
        return await release.absence.call_off(within_s)

    def serving(self, model: str) -> bytes | None:
        """The id of the release that serves `model`."""
        return self._serving.get(model)

    def signature(self, model: str) -> Signature | None:
        """What `model` takes and gives; None: it does not run here."""
        release = self._dispatcher.releases.get(self._serving.get(model, b""))
        return release.forms.signature if release is not None else None

    def models(self) -> list[str]:
        """What is served, sorted."""
        return sorted(self._serving)

    def offered(self) -> list[str]:
        """What neighbours may ask for, sorted: not what is away."""
        return [facts.model for facts in self.describe() if facts.state not in {"draining", "away"}]

    def describe(self) -> list[ModelFacts]:
        """What serves, how it runs and how much waits for it, by name."""
        found = ((model, self._serving.get(model, b"")) for model in self.models())
        known = ((model, self._dispatcher.releases.get(release)) for model, release in found)
        # Metrics are read in another thread: what served a moment ago may be gone.
        return [release.facts(model) for model, release in known if release is not None]

    # ------------------------------------------------------------------ requests
    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Tensor],
        *,
        outputs: Sequence[str] = (),
        priority: int = Priority.NORMAL,
        deadline_s: float = 1.0,
        retry: bool = True,
    ) -> Inferred:
        """Run a model on tensors. `by` is left empty.

        Args:
            model: its name.
            inputs: every input of the model, by name; several rows at most the queue limit.
            outputs: those wanted; none: all.
            priority: of which class it is.
            deadline_s: seconds from now.
            retry: once more here, should the worker die of it; False for who may ask elsewhere.

        Raises:
            NotServingError: the model does not run here, or no worker can run at the moment.
            QueueFullError: too much is waiting; says when to come again.
            BadInputError: the tensors do not fit the model.
            ModelFailedError: the model failed at them.
            DeadlineError: not done in time.
            WorkerLostError: the worker died of it twice.
        """
        release = self._release(model)
        form, row_count = release.forms.of(inputs, outputs)
        tensors = [inputs[info.name] for info in form.inputs]
        now = self._clock()
        done: Future[list[Tensor]] = Future(loop=self._loop)
        until = now + deadline_s
        request = Request(form, tensors, row_count, until, priority, now, done, retry)
        self._intake.accept(release, request)
        try:
            results = await done
        finally:
            self._intake.leave(release, request)
        if release.copies is not None:
            release.copies(request, results)
        if len(results) == 1:
            return Inferred({form.outputs[0]: results[0]}, release.id, "")
        return Inferred(dict(zip(form.outputs, results, strict=True)), release.id, "")

    async def classify(
        self,
        model: str,
        items: Sequence[bytes],
        *,
        priority: int = Priority.NORMAL,
        deadline_s: float = 1.0,
        retry: bool = True,
    ) -> Served:
        """Run a model on encoded items; one answer an item, in order. `by` is left empty.

        Args:
            model: its name.
            items: each as the release's [input] says; at most the queue limit.
            priority: of which class it is.
            deadline_s: seconds from now.
            retry: see `infer`.

        Raises:
            BadInputError: the items do not fit the model, or one gives no finite result.
            InferenceError: as `infer`.
        """
        release = self._release(model)
        signature = release.forms.signature
        item_bytes = signature.item_bytes
        if not item_bytes:
            raise BadInputError(f"{model!r} takes tensors, not items")
        if not items or any(len(item) != item_bytes for item in items):
            raise BadInputError(f"an item of {model!r} has {item_bytes} bytes; {len(items)} items")
        data = items[0] if len(items) == 1 else b"".join(items)
        tensor = Tensor("uint8", (len(items), item_bytes), data)
        now = self._clock()
        done: Future[list[Tensor]] = Future(loop=self._loop)
        until = now + deadline_s
        form = release.forms.items
        request = Request(form, [tensor], len(items), until, priority, now, done, retry)
        self._intake.accept(release, request)
        try:
            best, confidence = await done
        finally:
            self._intake.leave(release, request)
        if release.copies is not None:
            release.copies(request, (best, confidence))
        return Served(_answers(best, confidence, signature.labels), release.id, "")

    def _release(self, model: str) -> Release:
        release = self._dispatcher.releases.get(self._serving.get(model, b""))
        if release is None:
            raise NotServingError(f"{model!r} does not run here")
        if (reason := release.broken or self._dispatcher.halted) is not None:
            raise NotServingError(f"{model!r} cannot run here: {reason}")
        if release.absence is not None and release.absence.is_gone:
            raise AwayError(f"{model!r} makes room for its new release")
        return release


def _answers(best: Tensor, confidence: Tensor, labels: Sequence[str]) -> list[Answer]:
    answers = []
    for label, value in zip(
        memoryview(best.data).cast("B").cast("i"),
        memoryview(confidence.data).cast("d"),
        strict=True,
    ):
        if label < 0:
            raise BadInputError("the model's output is not a finite number")
        answers.append(Answer(labels[label], value))
    return answers
