"""An agent in this process, on a directory of its own, with a broker that answers at once and an engine of files.

Everything that starts is the agent's own (`app.running`): journal, content store, updater, pipelines. Simulated are
the session (`retained_session`), the engine, which serves a release whose files are right and refuses another, and
the two children, whose work is done in this process.
"""

import asyncio
import contextlib
import functools
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tests.support.hub import Release
from tests.support.retained_session import RetainedSession

import shoal_delta
from shoal_agent import app, reporter
from shoal_agent.config import AgentConfig, load
from shoal_agent.inference import vetting_child
from shoal_agent.inference.engine import Admission
from shoal_agent.inference.errors import ModelRefusedError, NotAdmittedError
from shoal_agent.inference.served import ModelFacts
from shoal_agent.staging import Staging, _Ended
from shoal_broker.logs import RecentLines
from shoal_contract import blobs, messages
from shoal_contract.messages import DeltaOffer, ModelWanted, Reported, Wanted
from shoal_contract.topics import Topics
from shoal_delta import cli as delta_cli

NODE = "board-1"
_TOPICS = Topics()
_WANTED = _TOPICS.wanted(NODE)
_delta = functools.cache(shoal_delta.diff)


class EngineOfFiles:
    """Serves whatever has the right files."""

    def __init__(self, known: Sequence[Release]) -> None:
        self._known = {release.id: release for release in known}
        self._admitted: set[bytes] = set()
        self._serving: dict[str, bytes] = {}
        self.stats = SimpleNamespace()

    async def admit(self, release: bytes, directory: Path, **_) -> Admission:
        expected = self._known[release].files
        try:
            found = {name: (directory / name).read_bytes() for name in expected}
        except OSError as exc:
            raise ModelRefusedError(f"{exc.filename}: {exc.strerror}") from exc
        if found != expected:
            raise ModelRefusedError("its files are damaged")
        self._admitted.add(release)
        return Admission(load_ms=0.1, p50_us=1, p95_us=2, golden_count=3)

    def is_memory_short(self) -> bool:
        return False

    def refer_to(self, find_cover) -> None:
        """There is room for both releases."""

    def register(self, release: bytes, directory: Path, signature) -> None:
        self._admitted.add(release)

    async def switch(self, model: str, release: bytes) -> None:
        if release not in self._admitted:
            raise NotAdmittedError("admit first")
        self._serving[model] = release

    async def remove(self, model: str) -> None:
        self._serving.pop(model, None)

    async def discard(self, release: bytes) -> None:
        self._admitted.discard(release)

    def serving(self, model: str) -> bytes | None:
        return self._serving.get(model)

    def signature(self, model: str) -> None:
        return None

    def models(self) -> list[str]:
        return sorted(self._serving)

    def describe(self) -> list[ModelFacts]:
        return []


@dataclass(slots=True)
class Fleet:
    """What the broker retains for the board. `chunk_bytes`: so large is a chunk of a blob."""

    chunk_bytes: int = 16384
    retained: dict[str, bytes] = field(default_factory=dict)
    revision: int = 0

    def publish(self, data: bytes) -> messages.BlobRef:
        ref = blobs.describe(data, chunk_bytes=self.chunk_bytes)
        for index, chunk in blobs.cut(data, chunk_bytes=self.chunk_bytes):
            self.retained[_TOPICS.chunk(ref.digest, index)] = chunk
        return ref

    def want(
        self,
        release: Release | None,
        *,
        base: Release | None = None,
        pipelines: bytes = b"",
    ) -> None:
        """One release, from `base` by a delta where there is one; None: nothing."""
        models = []
        if release is not None:
            deltas = []
            if base is not None:
                digests = (hashlib.sha256(one.model).digest() for one in (base, release))
                deltas.append(DeltaOffer(*digests, self.publish(_delta(base.model, release.model))))
            files = [self.publish(data) for data in release.files.values()]
            manifest = self.publish(release.manifest)
            models.append(ModelWanted(release.spec.name, release.id, manifest, files, deltas))
        self.revision += 1
        self.retained[_WANTED] = messages.encode(
            Wanted(self.revision, 1_700_000_000_000, models, pipelines=pipelines)
        )


@dataclass(slots=True)
class RunningAgent:
    """`told`: what it reported, oldest first. `engine`: as it is now."""

    engine: EngineOfFiles
    told: list[Reported]
    session: RetainedSession

    async def follow(self) -> None:
        """The wanted state is delivered."""
        await self.session.deliver(_WANTED)

    async def until(self, true, *, timeout_s: float = 45) -> None:
        async with asyncio.timeout(timeout_s):
            while not true():  # noqa: ASYNC110 - nobody sets an event for what is looked at here
                await asyncio.sleep(0.0005)

    async def until_followed(self, fleet: Fleet) -> None:
        """Until it reports that it is where the fleet wants it."""
        wanted = messages.decode_as(fleet.retained[_WANTED], Wanted)
        releases = {one.model: one.release for one in wanted.models}

        def is_there() -> bool:
            if not self.told or self.told[-1].wanted_revision != wanted.revision:
                return False
            states = self.told[-1].models
            return {state.model: state.release for state in states} == releases and all(
                state.phase is messages.Phase.SERVING for state in states
            )

        await self.until(is_there)


def config_in(folder: Path, more: str = "") -> AgentConfig:
    """The configuration of an agent whose state is in `folder`."""
    path = folder.with_suffix(".toml")
    path.write_text(
        f'node = "{NODE}"\nstate_dir = "{folder}"\n'
        f'[broker]\nhost = "127.0.0.1"\n[peers]\nenabled = false\n{more}'
    )
    return load(path)


@asynccontextmanager
async def agent_on(
    config: AgentConfig, fleet: Fleet, known: Sequence[Release], on_told=lambda _: None
) -> AsyncIterator[RunningAgent]:
    """An agent that has started and restored what served; it follows nothing yet.

    Args:
        known: the releases whose files the engine knows.
        on_told: called with each report when it goes out.
    """
    told: list[Reported] = []

    def publish(topic: str, payload: bytes) -> None:
        if topic == _TOPICS.state(NODE):
            told.append(messages.decode_as(payload, Reported))
            on_told(told[-1])

    engine = EngineOfFiles(known)

    class Opener:
        @classmethod
        @asynccontextmanager
        async def open(cls, **_):
            yield engine

    session = RetainedSession.of(fleet.retained, publish)
    with (
        mock.patch.object(app, "Engine", Opener),
        mock.patch.object(app, "Session", session),
        mock.patch.object(reporter, "QUIET_S", 0.0),
        _children_in_this_process(),
    ):
        recent = RecentLines(10)
        async with app.running(config, recent=recent, stop=asyncio.Event()):
            yield RunningAgent(engine, told, session.opened)


@contextmanager
def _children_in_this_process() -> Iterator[None]:
    async def run(_self, module: str, *arguments: str, timeout_s: float) -> _Ended:
        if module != "shoal_delta":
            directory, release, store = arguments
            reason = vetting_child._reason(Path(directory), bytes.fromhex(release), Path(store))
            return _Ended(0, json.dumps({"reason": reason}).encode(), "")
        told, words = io.StringIO(), io.StringIO()
        code = 0
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(words):
                delta_cli.main(list(arguments))
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        return _Ended(code, told.getvalue().encode(), words.getvalue().strip())

    with mock.patch.object(Staging, "_run", run):
        yield
