"""The two slots of each model: what serves, and what served before it. Restores, admits, switches and goes back.

Each change is in the journal before the engine follows it. Where files come from and what is wanted is `update`'s.
"""

import time
from collections.abc import Collection

import structlog

from shoal_agent.errors import AgentError
from shoal_agent.files import ContentStore
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import InferenceError, ModelRefusedError
from shoal_agent.journal import Journal, Serving
from shoal_agent.probation import GoBack, Probation
from shoal_agent.staging import Installed, Staging

log = structlog.get_logger()


class Slots:
    """What serves here, and can again.

    Args:
        probation: watches what has just begun to serve; None: nobody does.
        keep: models that are loaded at a start whatever the memory.

    Attributes:
        installed: what is told of what serves, by model.
        admitted: releases that are loaded and do not serve yet.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        content: ContentStore,
        staging: Staging,
        engine: Engine,
        probation: Probation | None,
        keep: Collection[str],
    ) -> None:
        self.installed: dict[str, Installed] = {}
        self.admitted: set[bytes] = set()
        self._shadowed: set[bytes] = set()
        self._journal = journal
        self._content = content
        self._staging = staging
        self._engine = engine
        self._probation = probation
        self._keep = keep

    async def restore(self) -> None:
        """After a start: serve again what served before, or else what served before that.

        What is to be kept in memory comes first. When memory is short the others are loaded when they are asked.

        Raises:
            StoreError: the journal cannot be read or written.
        """
        await self._end_loops()
        before = await self._journal.serving()
        for model, serving in sorted(before.items(), key=lambda item: item[0] not in self._keep):
            for release in filter(None, (serving.release, serving.previous)):
                if await self._serve_again(model, release):
                    break
            else:
                continue
            if release != serving.release:
                await self._journal.set_serving(model, Serving(release, None))

    async def admit(self, model: str, release: bytes) -> None:
        """Check the files of an assembled release, try it, and load it beside what serves.

        Raises:
            ModelRefusedError: it cannot serve here.
            UnusableReleaseError: its description is wrong, or the agent did not survive its trials.
            InferenceError, OSError, StoreError: as things are it cannot be tried.
        """
        if self._probation is None:
            await self._try_out(model, release)
            return
        await self._probation.attempt(release)
        try:
            await self._try_out(model, release)
        finally:
            await self._probation.attempt_over(release)

    async def is_shadowed(self, model: str, release: bytes) -> bool:
        """An admitted release has passed its shadow run, or needs none.

        What has served here just before needs none: nothing is to delay the way back.

        Raises:
            AgentError, OSError: its description is wrong or away.
            StoreError: the journal cannot be read.
        """
        if release not in self.admitted or release in self._shadowed:
            return True
        serving = (await self._journal.serving()).get(model)
        if serving is None or serving.previous == release or self._engine.serving(model) is None:
            return True
        return self._staging.gate(release).shadow is None

    async def shadow(self, model: str, release: bytes) -> None:
        """Hold an admitted release against the one that serves, on what that is asked; the journal knows it began.

        Raises:
            ModelRefusedError: it does not agree with it; the message has the figures.
            NotAdmittedError: the engine lost it meanwhile.
            AgentError, OSError: its description is wrong or away.
        """
        table = self._staging.gate(release).shadow
        if table is not None:
            try:
                outcome = await self._engine.shadow(model, release, table)
            except InferenceError:
                self.admitted.discard(release)
                await self._engine.discard(release)
                raise
            log.info("shadow run over", model=model, release=release.hex()[:12], outcome=outcome)
        self._shadowed.add(release)

    async def switch(self, model: str, release: bytes) -> None:
        """An admitted release serves from now on, on probation if another served before.

        Raises:
            NotAdmittedError: the engine lost it meanwhile.
            AgentError, OSError: its description is wrong or away.
            StoreError: it cannot be kept.
        """
        before = (await self._journal.serving()).get(model)
        previous = before.release if before and before.release != release else None
        installed = self._staging.describe(release)
        if self._probation is not None and previous is not None:
            facts = {one.model: one for one in self._engine.describe()}
            await self._probation.begin(
                model,
                release,
                self._staging.gate(release),
                facts.get(model),
                now_s=time.monotonic(),
            )
        await self._journal.set_serving(model, Serving(release, previous))
        self.admitted.discard(release)
        self._shadowed.discard(release)
        await self._engine.switch(model, release)
        self.installed[model] = installed
        log.info("model serves", model=model, release=release.hex()[:12])

    async def remove(self, model: str) -> None:
        """It serves no more.

        Raises:
            StoreError: that cannot be kept.
        """
        await self._journal.set_serving(model, None)
        await self._engine.remove(model)
        self.installed.pop(model, None)
        log.info("model removed", model=model)

    async def discard_all_but(self, wanted: Collection[bytes]) -> None:
        """Unload what was admitted and will not serve."""
        self._shadowed.intersection_update(wanted)
        for release in self.admitted - set(wanted):
            self.admitted.discard(release)
            await self._engine.discard(release)

    async def unfit(self) -> list[GoBack]:
        """What does not do well on probation.

        Raises:
            StoreError: what has passed cannot be kept.
        """
        if self._probation is None:
            return []
        facts = {one.model: one for one in self._engine.describe()}
        return await self._probation.look(facts, now_s=time.monotonic())

    async def go_back(self, bad: GoBack) -> bool:
        """Let the release before serve again, and never try this one once more; False: nothing served before.

        Raises:
            AgentError, OSError: the one before does not load: nothing has changed.
            StoreError: it cannot be kept.
        """
        model, release = bad.model, bad.release
        serving = (await self._journal.serving()).get(model)
        previous = None
        if serving is not None and serving.release == release:
            previous = serving.previous
        if previous is not None:
            started_s = time.monotonic()
            installed = self._staging.describe(previous)
            await self._load(previous, trial=False)
            await self._journal.go_back(model, previous, release, bad.reason)
            self.admitted.discard(previous)
            await self._engine.switch(model, previous)
            self.installed[model] = installed
            took_ms = round((time.monotonic() - started_s) * 1000)
            log.error("release went back", model=model, reason=bad.reason, took_ms=took_ms)
        if self._probation is not None:
            await self._probation.end(model)
        return previous is not None

    async def _end_loops(self) -> None:
        """What the agent kept ending with does not get another start."""
        if self._probation is None:
            return
        serving = await self._journal.serving()
        serves = {model: one.release for model, one in serving.items()}
        for bad in await self._probation.started(serves):
            previous = serving[bad.model].previous
            if previous is not None:
                log.error("release goes back", model=bad.model, reason=bad.reason)
                await self._journal.go_back(bad.model, previous, bad.release, bad.reason)
            await self._probation.end(bad.model)

    async def _serve_again(self, model: str, release: bytes) -> bool:
        """Whether it serves; what does not is tried again by `update`, from its files or anew."""
        try:
            if model not in self._keep and self._engine.is_memory_short():
                signature = self._staging.signature(release)
                self._engine.register(release, self._content.release_dir(release), signature)
                log.info("memory is short, a model is loaded when it is asked", model=model)
            else:
                await self._load(release, trial=False)
            installed = self._staging.describe(release)
            await self._engine.switch(model, release)
            self.installed[model] = installed
            if self._probation is not None:
                gate = self._staging.gate(release)
                await self._probation.goes_on(model, release, gate, now_s=time.monotonic())
        except (AgentError, OSError) as exc:
            damaged = self._content.drop_damaged(release)
            reason = f"{exc}; damaged files: {damaged}" if damaged else str(exc)
            log.error("a release does not load", model=model, reason=reason)  # noqa: TRY400
            if isinstance(exc, ModelRefusedError) and not damaged:
                await self._journal.refuse(release, f"it did not load after a restart: {exc}")
            return False
        self.admitted.discard(release)
        log.info("model serves again", model=model, release=release.hex()[:12])
        return True

    async def _try_out(self, model: str, release: bytes) -> None:
        await self._staging.vet(release)
        await self._load(release, replaces=model)

    async def _load(self, release: bytes, *, trial: bool = True, replaces: str = "") -> None:
        directory = self._content.release_dir(release)
        factor = self._staging.gate(release).latency_factor if trial else 0.0
        admission = await self._engine.admit(
            release, directory, trial=trial, replaces=replaces, latency_factor=factor
        )
        self.admitted.add(release)
        log.info("model admitted", release=release.hex()[:12], p95_us=admission.p95_us)
