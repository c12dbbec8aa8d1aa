"""The agent's side of its own update, for ever: brings the wanted release here, asks for it, answers as the new one.

It moves nothing itself: root's part judges what is asked, moves `current` and restarts the agent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import structlog

from shoal_agent.errors import (
    AgentError,
    UnsignedReleaseError,
    UnusableReleaseError,
    UpdateError,
)
from shoal_agent.files import ContentStore
from shoal_agent.journal import Journal
from shoal_agent.reconcile import Actual, Build, Fetch, Impossible, next_step
from shoal_agent.self_update.asking import ask, repository_files, say_healthy, trial_of
from shoal_agent.self_update.request import ARCHIVE, GROUP, MODEL
from shoal_agent.self_update.standing import Standing, load
from shoal_agent.staging import Staging
from shoal_broker.bus_errors import StoreError
from shoal_contract.messages import Manifest, ModelState, ModelWanted, Phase

log = structlog.get_logger()

POLL_S: Final = 2.0
ASK_AGAIN_S: Final = 300.0
"""What could not be judged or kept is asked again after this time."""
REST_S: Final = 30.0


class SelfUpdate:
    """Keeps the agent at the release of MODEL that is wanted.

    Args:
        home: of the release trees; tree: the one that runs.
        require_signed: (group, model, release): returns if it is signed.
        serving: the models that serve now.
        connected: whether there is a session with the broker.
        on_change: called whenever `states()` would answer differently.
        poll_s: so often the wanted state and what the switcher remembers are looked at.
    """

    def __init__(
        self,
        *,
        home: Path,
        tree: str,
        state_dir: Path,
        journal: Journal,
        content: ContentStore,
        staging: Staging,
        require_signed: Callable[[str, str, bytes], Awaitable[None]],
        serving: Callable[[], list[str]],
        connected: Callable[[], bool],
        on_change: Callable[[], None],
        poll_s: float = POLL_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._tree = tree
        self._state_dir = state_dir
        self._journal = journal
        self._content = content
        self._staging = staging
        self._require_signed = require_signed
        self._serving = serving
        self._connected = connected
        self._on_change = on_change
        self._poll_s = poll_s
        self._clock_s = clock_s
        self._state: ModelState | None = None
        self._asked: tuple[bytes, float] | None = None
        self._failed: tuple[bytes, float] | None = None
        self._answered = ""

    def states(self) -> list[ModelState]:
        """Where the agent's own release stands, as a model's; none while none is wanted."""
        return [] if self._state is None else [self._state]

    async def run(self) -> NoReturn:
        """Follow the wanted state."""
        while True:
            try:
                await self.look()
            except (AgentError, StoreError, OSError) as exc:
                log.warning("the agent's own update is waiting", reason=str(exc))
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """One look, with everything that it leads to.

        Raises:
            AgentError, StoreError, OSError: something that may pass stands in the way; it is told as the reason.
        """
        standing = await asyncio.to_thread(load, self._home)
        await self._answer(standing)
        wanted = await self._journal.wanted()
        models = [] if wanted is None else wanted.models
        entry = next((one for one in models if one.model == MODEL), None)
        if entry is None:
            self._tell(None)
            return
        here = bytes.fromhex(standing.trees.get(self._tree, ""))
        release = entry.release.hex()
        if standing.trial is not None:
            self._say(entry, here, Phase.VERIFYING, f"{standing.trial.tree} is on trial")
        elif here == entry.release:
            self._say(entry, here, Phase.SERVING)
        elif release in standing.refused:
            self._say(entry, here, Phase.FAILED, standing.refused[release])
        elif self._is_waiting(entry.release):
            self._say(entry, here, Phase.VERIFYING, standing.reason or "the switcher is asked")
        elif not self._is_resting(entry.release):
            await self._bring(entry, here)

    async def _bring(self, entry: ModelWanted, here: bytes) -> None:
        try:
            await self._require_signed(GROUP, MODEL, entry.release)
            while True:
                actual = self._staging.look(entry, serving=None, admitted=False, shadowed=True)
                match next_step(entry, actual):
                    case Impossible(reason):
                        self._fail(entry, here, reason)
                        return
                    case Fetch(blob, what):
                        reason = self._staging.why_not_now() or f"fetching {what}"
                        self._say(entry, here, Phase.FETCHING, reason)
                        await self._staging.fetch(blob)
                    case Build(base, delta, target):
                        self._say(entry, here, Phase.BUILDING)
                        await self._staging.build(base, delta, target)
                    case _:
                        break
            await self._ask(entry, actual)
            self._say(entry, here, Phase.VERIFYING, "the switcher is asked")
        except (UnusableReleaseError, UnsignedReleaseError) as exc:
            self._fail(entry, here, str(exc))
        except (UpdateError, OSError) as exc:
            self._say(entry, here, Phase.FETCHING, str(exc))
            self._failed = (entry.release, self._clock_s())
            raise

    async def _ask(self, entry: ModelWanted, actual: Actual) -> None:
        manifest = actual.manifest
        archive = None if manifest is None else _archive_of(manifest)
        if archive is None:
            raise UnusableReleaseError(f"a release of {MODEL} needs a {ARCHIVE}")
        metadata = await asyncio.to_thread(repository_files, self._state_dir / "metadata")
        await asyncio.to_thread(
            ask,
            self._state_dir,
            entry.release,
            manifest=self._content.path(entry.release),
            archive=self._content.path(archive),
            metadata=metadata,
            models=self._serving(),
        )
        self._asked = (entry.release, self._clock_s())
        log.info("the switcher is asked", release=entry.release.hex()[:12])

    def _is_waiting(self, release: bytes) -> bool:
        return (
            self._asked is not None
            and self._asked[0] == release
            and self._clock_s() - self._asked[1] < ASK_AGAIN_S
        )

    def _is_resting(self, release: bytes) -> bool:
        """Whether it failed just now: each try starts a child that judges the metadata."""
        return (
            self._failed is not None
            and self._failed[0] == release
            and self._clock_s() - self._failed[1] < REST_S
        )

    def _fail(self, entry: ModelWanted, here: bytes, reason: str) -> None:
        log.error("the agent's release is refused", reason=reason)
        self._failed = (entry.release, self._clock_s())
        self._say(entry, here, Phase.FAILED, reason)

    async def _answer(self, standing: Standing) -> None:
        """As the agent of a tree on trial: connected, and everything serves that served before."""
        trial = trial_of(standing, self._tree)
        if trial is None or trial[0] == self._answered or not self._connected():
            return
        if set(trial[1]) <= set(self._serving()):
            await asyncio.to_thread(say_healthy, self._state_dir, trial[0])
            self._answered = trial[0]
            log.info("healthy on trial", tree=self._tree)

    def _say(self, entry: ModelWanted, here: bytes, phase: Phase, reason: str = "") -> None:
        self._tell(
            ModelState(
                model=MODEL,
                release=here,
                version=self._tree,
                target=entry.release,
                phase=phase,
                reason=reason[:1024],
            )
        )

    def _tell(self, state: ModelState | None) -> None:
        if state != self._state:
            self._state = state
            self._on_change()


def _archive_of(manifest: Manifest) -> bytes | None:
    return next((entry.digest for entry in manifest.files if entry.name == ARCHIVE), None)
