"""The agent's side against the real switcher: a wanted release is fetched, asked for, tried, and its end is told."""

import asyncio
import hashlib

import pytest
from tests.support.release_trees import TreeBoard, tree_archive
from tests.support.signed_repository import SignedRepository

from shoal_agent.errors import UnsignedReleaseError
from shoal_agent.fetch import BlobFetcher
from shoal_agent.files import ContentStore
from shoal_agent.journal import Journal
from shoal_agent.self_update.asking import repository_files
from shoal_agent.self_update.following import SelfUpdate
from shoal_agent.self_update.request import MODEL
from shoal_agent.staging import Staging
from shoal_agent.updater.child import judged
from shoal_agent.updater.floors import Floors
from shoal_agent.updater.sources import DirectorySource
from shoal_agent.updater.wire import Question
from shoal_broker.store import Store
from shoal_contract import messages
from shoal_contract.messages import BlobRef, ModelWanted, Phase, Wanted
from shoal_contract.release_targets import path_of


class Here:
    """Brings blobs that lie ready: the way of chunks is tested elsewhere."""

    def __init__(self, content: ContentStore, blobs: list[bytes]) -> None:
        self._content, self._blobs = content, blobs

    async def fetch(self, blob: BlobRef) -> None:
        data = next(one for one in self._blobs if hashlib.sha256(one).digest() == blob.digest)
        self._content.path(blob.digest).write_bytes(data)


class Following(Staging):
    """Staging whose fetcher has everything."""

    def __init__(self, content: ContentStore, blobs: list[bytes]) -> None:
        super().__init__(content, BlobFetcher.__new__(BlobFetcher))
        self._here = Here(content, blobs)

    def why_not_now(self) -> str:
        return ""

    async def fetch(self, blob: BlobRef) -> None:
        await self._here.fetch(blob)


def ref(data):
    return BlobRef(hashlib.sha256(data).digest(), len(data), 65536, b"0" * 16)


class Side:
    """An agent's side of its update on a board of trees."""

    def __init__(self, board, journal, archive, manifest):
        self.board, self.archive, self.manifest = board, archive, manifest
        self.journal = journal
        self.content = ContentStore(board.state)
        self.serving, self.signed, self.clock_s = ["digits"], True, 0.0

    async def want(self):
        blobs = [ref(self.archive), ref(b"kind")]
        release = hashlib.sha256(self.manifest).digest()
        entry = ModelWanted(MODEL, release, ref(self.manifest), blobs)
        await self.journal.set_wanted(messages.encode(Wanted(1, 1, [entry])))

    async def require(self, group, model, release):
        if not self.signed:
            raise UnsignedReleaseError("nobody has signed it")
        kept = self.board.state / "metadata"
        source = self.board.repository.repository.directory
        question = Question(
            directory=str(kept),
            root_file=str(self.board.root_file),
            source=str(source),
            floors=Floors(),
            now_s=self.board.repository.now_s,
            paths=[path_of(group, model, release)],
            release=release.hex(),
        )
        assert judged(question, DirectorySource(source)).kind == "listed"

    def agent(self, tree):
        return SelfUpdate(
            home=self.board.home,
            tree=tree,
            state_dir=self.board.state,
            journal=self.journal,
            content=self.content,
            staging=Following(self.content, [self.archive, self.manifest, b"kind"]),
            require_signed=self.require,
            serving=lambda: self.serving,
            connected=lambda: True,
            on_change=lambda: None,
            clock_s=lambda: self.clock_s,
        )


@pytest.fixture
async def side(tmp_path):
    board = TreeBoard(tmp_path, SignedRepository(tmp_path / "repository", groups=("agents",)))
    # Nobody is healthy but by the real agent's side.
    board.behaves = lambda _: False
    archive = tree_archive("0.2.0")
    _, manifest = board.release(archive)
    async with Store.open(board.state / "agent.db") as store:
        yield Side(board, await Journal.load(store), archive, manifest)


async def told(agent):
    await agent.look()
    (state,) = agent.states()
    return state


def sleeping(side, look):
    """While the switcher waits, the agent of the tree that is current looks."""
    loop = asyncio.get_running_loop()

    def sleep(time_s):
        side.board.clock_s += time_s
        asyncio.run_coroutine_threadsafe(look(), loop).result(30)

    side.board._sleep = sleep


async def test_a_wanted_release_is_tried_and_reported_as_serving_by_the_agent_of_the_new_tree(side):
    await side.want()
    old, new = side.agent("0.1.0"), side.agent("0.2.0")
    state = await told(old)
    assert (state.phase, state.reason) == (Phase.VERIFYING, "the switcher is asked")
    sleeping(side, new.look)
    await asyncio.to_thread(side.board.switch)
    assert side.board.current == "0.2.0"
    state = await told(new)
    assert (state.phase, state.version) == (Phase.SERVING, "0.2.0")
    assert state.release == state.target == hashlib.sha256(side.manifest).digest()


async def test_an_agent_that_does_not_serve_what_was_served_gives_way_and_the_old_one_tells_why(
    side,
):
    await side.want()
    old, new = side.agent("0.1.0"), side.agent("0.2.0")
    await old.look()
    side.serving = []
    sleeping(side, new.look)
    await asyncio.to_thread(side.board.switch)
    assert side.board.current == "0.1.0"
    state = await told(side.agent("0.1.0"))
    assert (state.phase, state.reason) == (Phase.FAILED, "0.2.0 was not healthy within 10 s")


async def test_a_release_that_nobody_signed_is_neither_fetched_nor_asked_for(side):
    await side.want()
    side.signed = False
    state = await told(side.agent("0.1.0"))
    assert (state.phase, state.reason) == (Phase.FAILED, "nobody has signed it")
    assert side.content.digests() == frozenset()
    assert not (side.board.state / "self-update").exists()


async def test_what_the_agent_keeps_of_the_metadata_has_the_names_that_a_repository_gives_it(side):
    await side.want()
    await side.agent("0.1.0").look()
    kept = repository_files(side.board.state / "metadata")
    published = side.board.repository.files()
    assert {name: published[name] for name in kept} == kept
    assert "timestamp.json" in kept
    assert any(name.endswith(".group-agents.json") for name in kept)
