"""Brings the board from what it runs to what is wanted, one journalled step at a time.

Deciding is `reconcile`; here is the one place that touches the board. Whatever happens on the way, the
old release goes on serving until the new one has passed its gate.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import structlog

from shoal_agent.errors import (
    AgentError,
    UnsignedReleaseError,
    UnusableReleaseError,
    UnverifiedReleaseError,
    UpdateError,
)
from shoal_agent.files import ContentStore
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import InferenceError, ModelRefusedError
from shoal_agent.journal import Journal
from shoal_agent.probation import Probation
from shoal_agent.progress import Progress, model_states
from shoal_agent.reconcile import (
    Actual,
    Admit,
    Assemble,
    Build,
    Fetch,
    Impossible,
    Remove,
    Shadow,
    Step,
    Switch,
    next_step,
)
from shoal_agent.self_update.request import MODEL
from shoal_agent.slots import Slots
from shoal_agent.staging import Staging
from shoal_agent.updater.signed_releases import SignedReleases
from shoal_broker.bus_errors import StoreError
from shoal_contract.messages import ModelState, ModelWanted, Phase
from shoal_contract.release import ReleaseSpec

log = structlog.get_logger()

RETRY_S = 5.0
WATCH_S = 1.0
MAX_RETRY_S = 300.0
MAX_UNVERIFIED_RETRY_S = 40.0
"""A clock that was wrong is soon right."""


class Updater:
    """Keeps the models on the board equal to the wanted state. `run` never ends by itself.

    Args:
        on_change: awaited whenever `states()` would answer differently.
        signed: says which releases may be brought here; None: every one that is wanted.
        probation: watches what has just begun to serve; None: nobody does.
        keep: models that are loaded at a start whatever the memory.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        content: ContentStore,
        staging: Staging,
        engine: Engine,
        on_change: Callable[[], Awaitable[None]],
        signed: SignedReleases | None = None,
        probation: Probation | None = None,
        keep: Collection[str] = (),
    ) -> None:
        self._journal = journal
        self._content = content
        self._staging = staging
        self._engine = engine
        self._on_change = on_change
        self._signed = signed
        self._probation = probation
        self._wake = asyncio.Event()
        self._wakes = 0
        self._progress: dict[str, Progress] = {}
        self._slots = Slots(
            journal=journal,
            content=content,
            staging=staging,
            engine=engine,
            probation=probation,
            keep=keep,
        )
        # What this round brings about; a fetch ends when something else is wanted.
        self._models: list[ModelWanted] = []
        self._groups: list[str] = []
        self.wanted_revision = 0

    def wake(self) -> None:
        """The wanted state may have changed."""
        self._wakes += 1
        self._wake.set()

    def states(self) -> list[ModelState]:
        """Where every model stands, for the reported state."""
        engine = self._engine
        serving = {model: engine.serving(model) or b"" for model in engine.models()}
        return model_states(engine.describe(), serving, self._slots.installed, self._progress)

    def spec(self, model: str) -> ReleaseSpec | None:
        """The description of the release that serves; None: none does."""
        installed = self._slots.installed.get(model)
        return None if installed is None else installed.spec

    async def restore(self) -> None:
        """After a start: serve again what served before, or else what served before that.

        Raises:
            StoreError: the journal cannot be read or written.
        """
        await self._slots.restore()
        await self._on_change()

    async def ended_on_purpose(self) -> None:
        """The agent stops because it was told to.

        Raises:
            StoreError: that cannot be kept.
        """
        if self._probation is not None:
            await self._probation.ended_on_purpose()

    async def watch(self) -> None:
        """For ever: what does not do well on probation gives way to the release before."""
        while True:
            try:
                for bad in await self._slots.unfit():
                    if await self._slots.go_back(bad):
                        await self._tell(bad.model, bad.release, Phase.FAILED, bad.reason)
            except (AgentError, StoreError, OSError) as exc:
                log.warning("going back is waiting", reason=str(exc))
            await asyncio.sleep(WATCH_S)

    async def run(self) -> None:
        """Follow the wanted state for ever; a failure is reported and the old model serves on."""
        retry_s = RETRY_S
        while True:
            seen = self._wakes
            try:
                await self.reconcile_once()
                retry_s = RETRY_S
                await self._woken_since(seen)
            except (UpdateError, StoreError) as exc:
                if isinstance(exc, UnverifiedReleaseError):
                    retry_s = min(retry_s, MAX_UNVERIFIED_RETRY_S)
                # Full jitter: what stands in the way may stand in a whole fleet's.
                wait_s = random.uniform(0, retry_s)  # noqa: S311 - no secret
                log.warning("update is waiting", reason=str(exc), retry_s=round(wait_s, 1))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._woken_since(seen)
                retry_s = min(retry_s * 2, MAX_RETRY_S)

    async def reconcile_once(self) -> None:
        """Bring every model where it is wanted, or until something else is wanted.

        Raises:
            UpdateError: something that may pass by itself (disk, chunks) stands in the way of a model;
                the others are where they are wanted.
            StoreError: the journal cannot be read or written.
        """
        wanted = await self._journal.wanted()
        if wanted is None:
            return
        self._models = wanted.models
        self._groups = wanted.groups
        by_model = {entry.model: entry for entry in wanted.models if entry.model != MODEL}
        refused = await self._journal.refused()
        failures: list[UpdateError] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                for model in sorted({*by_model, *await self._journal.serving(), *self._progress}):
                    entry = by_model.get(model)
                    if entry is not None and entry.release in refused:
                        reason = refused[entry.release]
                        await self._tell(model, entry.release, Phase.FAILED, reason)
                    else:
                        bringing = self._bring(model, entry, failures)
                        tasks.create_task(bringing, name=f"updater.{model}")
        except* StoreError as group:
            raise _first(group) from None
        await self._slots.discard_all_but([entry.release for entry in wanted.models])
        try:
            await self._sweep()
        except OSError as exc:
            failures.append(UpdateError(f"old files cannot be deleted: {exc.strerror}"))
        self.wanted_revision = wanted.revision
        await self._on_change()
        if failures:
            # The one that is to be looked at again soonest.
            raise min(failures, key=lambda one: not isinstance(one, UnverifiedReleaseError))

    async def _woken_since(self, wakes: int) -> None:
        while self._wakes == wakes:
            self._wake.clear()
            await self._wake.wait()

    async def _bring(
        self, model: str, wanted: ModelWanted | None, failures: list[UpdateError]
    ) -> None:
        release = wanted.release if wanted is not None else b""
        failure: UpdateError | None = None
        try:
            await self._require_signed(model, wanted)
            while (step := next_step(wanted, await self._actual(model, wanted))) is not None:
                name = type(step).__name__.lower()
                await self._journal.record_step(model, release, name, at_ms=_now_ms())
                await self._perform(model, wanted, step)
        except _SupersededError:
            return
        except ModelRefusedError as exc:
            if not (damaged := self._damaged(release)):
                await self._fail(model, release, str(exc))
                return
            failure = UpdateError(f"{exc}; damaged files, to be fetched again: {damaged}")
        except (UnusableReleaseError, UnsignedReleaseError) as exc:
            for_good = isinstance(exc, UnusableReleaseError)
            await self._fail(model, release, str(exc), for_good=for_good)
            return
        except (UpdateError, InferenceError, OSError) as exc:
            # What may pass by itself: a full disk, a worker that is just being restarted.
            failure = exc if isinstance(exc, UpdateError) else UpdateError(str(exc))
        if failure is not None:
            failures.append(failure)
            reason = _and_before(str(failure), wanted, self._staging)
            await self._tell(model, release, Phase.FETCHING, reason)
            return
        progress = self._progress.get(model)
        if wanted is None:
            self._progress.pop(model, None)
        elif progress is None or progress.phase is not Phase.SERVING:
            reason = _and_before("", wanted, self._staging)
            await self._tell(model, wanted.release, Phase.SERVING, reason)

    def _damaged(self, release: bytes) -> list[str]:
        """What was damaged of it, and is away now or will be; or why that cannot be found out."""
        try:
            return self._content.drop_damaged(release)
        except OSError as exc:
            return [str(exc)]

    async def _require_signed(self, model: str, wanted: ModelWanted | None) -> None:
        """Before a byte of it is fetched. What serves already was signed when it came."""
        if self._signed is None or wanted is None:
            return
        if self._engine.serving(model) != wanted.release:
            await self._signed.require(model, wanted.release, self._groups)

    async def _perform(self, model: str, wanted: ModelWanted | None, step: Step) -> None:
        if isinstance(step, Remove):
            await self._slots.remove(model)
            self._progress.pop(model, None)
            await self._on_change()
            return
        assert wanted is not None  # noqa: S101 - every other step has a target
        release = wanted.release
        match step:
            case Impossible(reason):
                raise UnusableReleaseError(reason)
            case Fetch(blob, what):
                reason = self._staging.why_not_now() or f"fetching {what}"
                reason = _and_before(reason, wanted, self._staging)
                await self._tell(model, release, Phase.FETCHING, reason)
                await self._while_wanted(self._staging.fetch(blob))
                self._progress[model].fetched_bytes += blob.size_bytes
            case Build(base, delta, target):
                await self._tell(model, release, Phase.BUILDING)
                await self._staging.build(base, delta, target)
            case Assemble():
                await self._tell(model, release, Phase.BUILDING)
                self._staging.assemble(model, release)
            case Admit():
                await self._tell(model, release, Phase.VERIFYING)
                await self._slots.admit(model, release)
            case Shadow():
                await self._tell(model, release, Phase.VERIFYING, "shadow run on live requests")
                await self._while_wanted(self._slots.shadow(model, release))
            case Switch():
                await self._slots.switch(model, release)
                reason = _and_before("", wanted, self._staging)
                await self._tell(model, release, Phase.SERVING, reason)

    async def _while_wanted(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it for as long as the same is wanted: chunks or requests that never come hold nothing else up."""
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch(), name="updater.watch")
                await work
                watch.cancel()
        except* (AgentError, StoreError, OSError) as group:
            raise _first(group) from None

    async def _watch(self) -> None:
        while True:
            seen = self._wakes
            wanted = await self._journal.wanted()
            if wanted is not None and wanted.models != self._models:
                raise _SupersededError
            await self._woken_since(seen)

    async def _actual(self, model: str, wanted: ModelWanted | None) -> Actual:
        if wanted is None:
            journalled = (await self._journal.serving()).get(model)
            return Actual(serving=journalled.release if journalled is not None else None)
        return self._staging.look(
            wanted,
            serving=self._engine.serving(model),
            admitted=wanted.release in self._slots.admitted,
            shadowed=await self._slots.is_shadowed(model, wanted.release),
        )

    async def _fail(
        self, model: str, release: bytes, reason: str, *, for_good: bool = True
    ) -> None:
        """Tell, and unless it may be signed yet (newer metadata wakes us) never try it again."""
        log.error("release refused", model=model, release=release.hex()[:12], reason=reason)
        if for_good:
            await self._journal.refuse(release, reason)
        await self._tell(model, release, Phase.FAILED, reason)

    async def _tell(self, model: str, release: bytes, phase: Phase, reason: str = "") -> None:
        old = self._progress.get(model)
        fetched = old.fetched_bytes if old is not None and old.target == release else 0
        self._progress[model] = Progress(release, phase, reason, fetched)
        await self._on_change()

    async def _sweep(self) -> None:
        """Keep what serves, what served before, and what is still wanted, deltas on the way to it too."""
        wanted = await self._journal.wanted()
        models = wanted.models if wanted is not None else []
        releases = {entry.release for entry in models}
        arriving = {
            offer.blob.digest
            for entry in models
            if self._engine.serving(entry.model) != entry.release
            for offer in entry.deltas
        }
        for serving in (await self._journal.serving()).values():
            releases.update(filter(None, (serving.release, serving.previous)))
        self._staging.sweep(releases, arriving=arriving)


class _SupersededError(AgentError):
    """Something else is wanted by now."""


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _and_before(reason: str, wanted: ModelWanted | None, staging: Staging) -> str:
    """The reason, and why a delta was of no use before: who sent it is to know, also when all ends well."""
    no_delta = "" if wanted is None else staging.why_no_delta(wanted)
    return "; ".join(filter(None, (reason, no_delta)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
