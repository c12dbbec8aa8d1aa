"""Brings the board from what it runs to what is wanted, one journalled step at a time.

Deciding is `reconcile`; here is the one place that touches the board. Whatever happens on the way, the
old release goes on serving until the new one has passed its gate.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from shoal_agent.errors import AgentError, UpdateError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import InferenceError, ModelRefusedError
from shoal_agent.journal import Journal, Serving
from shoal_agent.reconcile import (
    Actual,
    Admit,
    Assemble,
    Build,
    Fetch,
    Impossible,
    Remove,
    Step,
    Switch,
    next_step,
)
from shoal_contract.errors import ContractError
from shoal_contract.messages import Manifest, ModelState, ModelWanted, Phase
from shoal_contract.release import SPEC_FILE, parse_manifest, parse_spec

log = structlog.get_logger()

BUILD_TIMEOUT_S = 600.0
RETRY_S = 5.0
MAX_RETRY_S = 300.0


@dataclass(slots=True)
class _Progress:
    """What is told about a model while it changes."""

    target: bytes
    phase: Phase
    reason: str = ""
    fetched_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Installed:
    """What is known of a release that serves."""

    version: str
    model_file: bytes


class Updater:
    """Keeps the models on the board equal to the wanted state. `run` never ends by itself.

    Args:
        on_change: awaited whenever `states()` would answer differently.
        python: the interpreter for the short-lived child that applies deltas.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        content: ContentStore,
        fetcher: BlobFetcher,
        engine: Engine,
        on_change: Callable[[], Awaitable[None]],
        python: str = sys.executable,
    ) -> None:
        self._journal = journal
        self._content = content
        self._fetcher = fetcher
        self._engine = engine
        self._on_change = on_change
        self._python = python
        self._wake = asyncio.Event()
        self._progress: dict[str, _Progress] = {}
        self._installed: dict[str, _Installed] = {}
        self._bad_deltas: set[bytes] = set()
        self._admitted: set[bytes] = set()
        self.wanted_revision = 0

    def wake(self) -> None:
        """The wanted state may have changed."""
        self._wake.set()

    def states(self) -> list[ModelState]:
        """Where every model stands, for the reported state."""
        states = []
        for model in sorted({*self._engine.models(), *self._progress}):
            release = self._engine.serving(model) or b""
            installed = self._installed.get(model, _Installed("", b""))
            progress = self._progress.get(model) or _Progress(release, Phase.SERVING)
            states.append(
                ModelState(
                    model=model,
                    release=release,
                    version=installed.version,
                    target=progress.target,
                    phase=progress.phase,
                    reason=progress.reason[:1024],
                    fetched_bytes=progress.fetched_bytes,
                    model_file=installed.model_file,
                )
            )
        return states

    async def restore(self) -> None:
        """After a start: serve again what served before, or else what served before that."""
        for model, serving in (await self._journal.serving()).items():
            for release in filter(None, (serving.release, serving.previous)):
                if await self._serve_again(model, release):
                    break
            else:
                continue
            if release != serving.release:
                await self._journal.set_serving(model, Serving(release, None))
        await self._on_change()

    async def _serve_again(self, model: str, release: bytes) -> bool:
        """Whether it serves; what does not is tried again by `run`, from its files or anew."""
        try:
            await self._load(release, trial=False)
            await self._engine.switch(model, release)
            self._installed[model] = self._describe(release)
        except (AgentError, ContractError, OSError) as exc:
            damaged = self._content.drop_damaged(release)
            reason = f"{exc}; damaged files: {damaged}" if damaged else str(exc)
            log.error("a release does not load", model=model, reason=reason)  # noqa: TRY400
            if isinstance(exc, ModelRefusedError) and not damaged:
                await self._journal.refuse(release, f"it did not load after a restart: {exc}")
            return False
        self._admitted.discard(release)
        log.info("model serves again", model=model, release=release.hex()[:12])
        return True

    async def run(self) -> None:
        """Follow the wanted state for ever; a failure is reported and the old model serves on."""
        retry_s = RETRY_S
        while True:
            self._wake.clear()
            try:
                await self.reconcile_once()
                retry_s = RETRY_S
                await self._wake.wait()
            except UpdateError as exc:
                log.warning("update is waiting", reason=str(exc), retry_s=retry_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(retry_s):
                        await self._wake.wait()
                retry_s = min(retry_s * 2, MAX_RETRY_S)

    async def reconcile_once(self) -> None:
        """Bring every model where it is wanted.

        Raises:
            UpdateError: something that may pass by itself (disk, chunks) stands in the way.
        """
        wanted = await self._journal.wanted()
        if wanted is None:
            return
        self.wanted_revision = wanted.revision
        by_model = {entry.model: entry for entry in wanted.models}
        refused = await self._journal.refused()
        for model in sorted({*by_model, *await self._journal.serving(), *self._progress}):
            entry = by_model.get(model)
            if entry is not None and entry.release in refused:
                await self._tell(model, entry.release, Phase.FAILED, refused[entry.release])
                continue
            await self._bring(model, entry)
        for release in self._admitted - {entry.release for entry in wanted.models}:
            self._admitted.discard(release)
            await self._engine.discard(release)
        await self._sweep()

    async def _bring(self, model: str, wanted: ModelWanted | None) -> None:
        release = wanted.release if wanted is not None else b""
        try:
            while (step := next_step(wanted, await self._actual(model, wanted))) is not None:
                name = type(step).__name__.lower()
                await self._journal.record_step(model, release, name, at_ms=_now_ms())
                await self._perform(model, wanted, step)
        except (ModelRefusedError, _HopelessError) as exc:
            await self._fail(model, release, str(exc))
            return
        except (UpdateError, InferenceError, OSError) as exc:
            # What may pass by itself: a full disk, a worker that is just being restarted.
            await self._tell(model, release, Phase.FETCHING, str(exc))
            raise UpdateError(str(exc)) from exc
        progress = self._progress.get(model)
        if wanted is None:
            self._progress.pop(model, None)
        elif progress is None or progress.phase is not Phase.SERVING:
            await self._tell(model, wanted.release, Phase.SERVING)

    async def _perform(self, model: str, wanted: ModelWanted | None, step: Step) -> None:
        if isinstance(step, Remove):
            await self._journal.set_serving(model, None)
            await self._engine.remove(model)
            self._installed.pop(model, None)
            self._progress.pop(model, None)
            log.info("model removed", model=model)
            await self._on_change()
            return
        assert wanted is not None  # noqa: S101 - every other step has a target
        release = wanted.release
        match step:
            case Impossible(reason):
                raise _HopelessError(reason)
            case Fetch(blob, what):
                await self._tell(model, release, Phase.FETCHING, f"fetching {what}")
                await self._fetcher.fetch(blob)
                self._progress[model].fetched_bytes += blob.size_bytes
            case Build(base, delta, target):
                await self._tell(model, release, Phase.BUILDING)
                await self._build(base, delta, target)
            case Assemble():
                await self._tell(model, release, Phase.BUILDING)
                self._content.assemble(release, self._manifest(release))
            case Admit():
                await self._tell(model, release, Phase.VERIFYING)
                await self._check_name(model, release)
                await self._load(release)
            case Switch():
                before = (await self._journal.serving()).get(model)
                previous = before.release if before and before.release != release else None
                await self._journal.set_serving(model, Serving(release, previous))
                await self._engine.switch(model, release)
                self._admitted.discard(release)
                self._installed[model] = self._describe(release)
                log.info("model serves", model=model, release=release.hex()[:12])
                await self._tell(model, release, Phase.SERVING)

    async def _load(self, release: bytes, *, trial: bool = True) -> None:
        directory = self._content.release_dir(release)
        admission = await self._engine.admit(release, directory, trial=trial)
        self._admitted.add(release)
        log.info("model admitted", release=release.hex()[:12], p95_us=admission.p95_us)

    async def _build(self, base: bytes, delta: bytes, target: bytes) -> None:
        """Apply the delta in a child: numpy stays out of this process, and it may be killed."""
        output = self._content.part(target)
        child = await asyncio.create_subprocess_exec(
            self._python, "-m", "shoal_delta", "apply",
            str(self._content.path(base)), str(self._content.path(delta)), "-o", str(output),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(BUILD_TIMEOUT_S):
                _, stderr = await child.communicate()
        except TimeoutError:
            stderr = b"it took too long"
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode == 0 and self._content.adopt(output, target):
            return
        reason = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["wrong content"]
        log.warning("a delta failed", delta=delta.hex()[:12], reason=reason[0])
        output.unlink(missing_ok=True)
        self._bad_deltas.add(delta)

    async def _actual(self, model: str, wanted: ModelWanted | None) -> Actual:
        if wanted is None:
            journalled = (await self._journal.serving()).get(model)
            return Actual(serving=journalled.release if journalled is not None else None)
        blobs = frozenset(bytes.fromhex(path.name) for path in self._content.blobs.iterdir())
        return Actual(
            serving=self._engine.serving(model),
            blobs=blobs,
            manifest=self._manifest(wanted.release) if wanted.release in blobs else None,
            assembled=self._content.release_dir(wanted.release).is_dir(),
            admitted=wanted.release in self._admitted,
            bad_deltas=frozenset(self._bad_deltas),
        )

    def _manifest(self, release: bytes) -> Manifest:
        try:
            return parse_manifest(self._content.path(release).read_bytes(), release=release)
        except ContractError as exc:
            raise _HopelessError(f"the manifest cannot be used: {exc}") from exc

    async def _check_name(self, model: str, release: bytes) -> None:
        path = self._content.release_dir(release) / SPEC_FILE
        try:
            spec = parse_spec(path.read_bytes())
        except ContractError as exc:
            raise _HopelessError(str(exc)) from exc
        if spec.name != model:
            raise _HopelessError(f"the release is for {spec.name!r}, not for {model!r}")

    def _describe(self, release: bytes) -> _Installed:
        spec = parse_spec((self._content.release_dir(release) / SPEC_FILE).read_bytes())
        files = {entry.name: entry.digest for entry in self._manifest(release).files}
        return _Installed(spec.version, files[spec.model.file])

    async def _fail(self, model: str, release: bytes, reason: str) -> None:
        log.error("release refused", model=model, release=release.hex()[:12], reason=reason)
        await self._journal.refuse(release, reason)
        await self._tell(model, release, Phase.FAILED, reason)

    async def _tell(self, model: str, release: bytes, phase: Phase, reason: str = "") -> None:
        old = self._progress.get(model)
        fetched = old.fetched_bytes if old is not None and old.target == release else 0
        self._progress[model] = _Progress(release, phase, reason, fetched)
        await self._on_change()

    async def _sweep(self) -> None:
        """Keep what serves, what served before, and what is still wanted; delete the rest."""
        wanted = await self._journal.wanted()
        releases = {entry.release for entry in wanted.models} if wanted is not None else set()
        for serving in (await self._journal.serving()).values():
            releases.update(filter(None, (serving.release, serving.previous)))
        keep = set(releases)
        for release in releases:
            if self._content.has(release):
                keep.update(entry.digest for entry in self._manifest(release).files)
        freed = self._content.sweep(keep_releases=releases, keep_blobs=keep)
        if freed:
            log.info("old files deleted", freed_bytes=freed)


class _HopelessError(AgentError):
    """This release can never serve here; the message is the reason."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
