"""Whether a release is one that the fleet signed for this node: asks the updater child, remembers the floors.

The child (python-tuf) decides; this side starts it, hands it the files that the broker retains, and keeps what
must outlive the metadata files. Without [trust] root_file none of this runs.
"""

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import structlog

from shoal_agent.errors import UnsignedReleaseError, UnverifiedReleaseError
from shoal_agent.updater.notices import Notices
from shoal_agent.updater.remembered import RememberedFloors
from shoal_agent.updater.wire import BROKER, MAX_LINE_BYTES, Ask, Question, Verdict, line
from shoal_broker.bus_errors import StoreError
from shoal_broker.session import Session
from shoal_contract.errors import ContractError
from shoal_contract.release_targets import groups_for, path_of

log = structlog.get_logger()

CHILD_TIMEOUT_S: Final = 180.0
SPREAD_S: Final = 5.0
"""A new timestamp reaches every node at once: each looks after a pause by chance, at most so long."""
UNVERIFIED_LOOK_S: Final = 300.0
FIRST_LOOK_S: Final = 60.0
POLL_S: Final = 3600.0
"""A source that cannot call us is looked at so often."""


class SignedReleases:
    """Says which releases may run here.

    Args:
        root_file: the fleet's root, put on the board with the agent.
        source: BROKER, an http(s) address, or a directory.
        groups: the groups whose releases count here; none: those that the wanted state names.
        directory: where verified metadata is kept.

    Attributes:
        refused: releases refused since the start, because nobody signed them for this node.
        unverified: looks at the metadata that ended without an answer.
    """

    def __init__(
        self,
        *,
        root_file: Path,
        source: str,
        groups: Iterable[str],
        directory: Path,
        floors: RememberedFloors,
        session: Session,
        notices: Notices,
        clock_s: Callable[[], float] = time.time,
        spread_s: float = SPREAD_S,
        python: str = sys.executable,
    ) -> None:
        self.refused = 0
        self.unverified = 0
        self._root_file = root_file
        self._source = source
        self._groups = tuple(groups)
        self._directory = directory
        self._floors = floors
        self._session = session
        self._notices = notices
        self._clock_s = clock_s
        self._spread_s = spread_s
        self._python = python
        self._turn = asyncio.Lock()

    async def require(self, model: str, release: bytes, groups: Iterable[str]) -> None:
        """Return if this release is signed for the node and the metadata that says so is fresh.

        `groups` are those of the wanted state; they count only where the configuration names none.

        Raises:
            UnsignedReleaseError: nobody signed it for this node's groups.
            UnverifiedReleaseError: that cannot be said now: the metadata is expired, rolled back, forged or away.
        """
        await self._require(groups_for(self._groups or groups), model, release)

    async def require_for(self, group: str, model: str, release: bytes) -> None:
        """The same, of this one group, whatever the node's own are.

        Raises:
            UnsignedReleaseError, UnverifiedReleaseError: as `require`.
        """
        await self._require((group,), model, release)

    async def _require(self, groups: Iterable[str], model: str, release: bytes) -> None:
        try:
            paths = [path_of(group, model, release) for group in groups]
        except ContractError as exc:
            raise UnverifiedReleaseError(str(exc)) from exc
        verdict = await self._judged(paths, release)
        if verdict.kind == "listed":
            log.info("release is signed", model=model, release=release.hex()[:12], by=verdict.path)
        elif verdict.kind == "unlisted":
            self.refused += 1
            raise UnsignedReleaseError(verdict.reason)
        else:
            raise UnverifiedReleaseError(
                f"the signed metadata cannot be relied on: {verdict.reason}"
            )

    async def follow(self, on_new: Callable[[], None]) -> NoReturn:
        """Look at the metadata whenever it changes and when it runs out, for ever; then call `on_new`."""
        if self._source == BROKER:
            # Else every start would begin with an error: there is no connection yet.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_S):
                    await self._notices.is_new.wait()
        while True:
            self._notices.is_new.clear()
            wait_s = UNVERIFIED_LOOK_S
            try:
                verdict = await self._judged([], b"")
            except UnverifiedReleaseError as exc:
                log.warning("update metadata not looked at", reason=str(exc))
            else:
                if verdict.kind == "fresh":
                    # Behind it: whoever asks then hears that it has run out.
                    wait_s = max(1.0, verdict.expires_s - self._clock_s())
                    if self._source != BROKER:
                        wait_s = min(wait_s, POLL_S)
                    on_new()
                else:
                    log.error("update metadata not verified", reason=verdict.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._notices.is_new.wait()
                await asyncio.sleep(random.uniform(0, self._spread_s))  # noqa: S311 - spreads load, keeps no secret

    async def _judged(self, paths: list[str], release: bytes) -> Verdict:
        """What the child says; the floors are raised before anybody acts on it."""
        async with self._turn:
            try:
                floors = await self._floors.get()
                question = Question(
                    directory=str(self._directory),
                    root_file=str(self._root_file),
                    source=self._source,
                    floors=floors,
                    now_s=max(int(self._clock_s()), floors.issued_s),
                    paths=paths,
                    release=release.hex(),
                )
                verdict = await self._asked(question)
                if verdict.seen is not None:
                    await self._floors.raise_by(verdict.seen)
            except (StoreError, ContractError) as exc:
                raise UnverifiedReleaseError(str(exc)) from exc
        if verdict.kind == "unverified":
            self.unverified += 1
        return verdict

    async def _asked(self, question: Question) -> Verdict:
        child: asyncio.subprocess.Process | None = None
        try:
            child = await asyncio.create_subprocess_exec(
                self._python, "-P", "-m", "shoal_agent.updater.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=MAX_LINE_BYTES,
            )  # fmt: skip
            async with asyncio.timeout(CHILD_TIMEOUT_S):
                return await self._talk(child, question)
        except TimeoutError as exc:
            raise UnverifiedReleaseError(
                f"no verdict on the metadata within {CHILD_TIMEOUT_S:g} s"
            ) from exc
        except (OSError, ValueError, msgspec.DecodeError) as exc:
            raise UnverifiedReleaseError(f"the updater child failed: {exc}") from exc
        finally:
            if child is not None:
                if child.returncode is None:
                    child.kill()
                await child.wait()

    async def _talk(self, child: asyncio.subprocess.Process, question: Question) -> Verdict:
        if child.stdin is None or child.stdout is None:
            raise UnverifiedReleaseError("the updater child has no pipe")
        child.stdin.write(line(question))
        while data := await child.stdout.readline():
            match msgspec.json.decode(data, type=Ask | Verdict):
                case Ask(name):
                    child.stdin.write(line(await self._notices.give(self._session, name)))
                    await child.stdin.drain()
                case Verdict() as verdict:
                    return verdict
        raise UnverifiedReleaseError(
            f"the updater child ended without a verdict (exit {await child.wait()})"
        )
