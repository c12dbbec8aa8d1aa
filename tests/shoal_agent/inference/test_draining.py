"""A new release comes where memory does not hold both: the old one drains to other nodes, or the swap is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.shoal_agent.inference import tiny_release as tiny
from tests.shoal_agent.inference.nodes import Known, Node, node
from tests.shoal_agent.until import until
from tests.support.pipelined import pipelined

from shoal_agent.inference import remote
from shoal_agent.inference.errors import InferenceError, NobodyServesError, NoRoomError
from shoal_agent.inference.memory import Memory
from shoal_agent.inference.served import Served
from shoal_agent.inference.tensors import Tensor
from shoal_agent.peers.server import PeerServer
from shoal_broker.server import Broker, BrokerConfig
from shoal_contract.messages import InferReply, InferRequest
from shoal_contract.pipelines import PipelineTable, TopicTable
from shoal_contract.release import SPEC_FILE, parse_spec


class Board:
    """How much memory is free on the node that updates."""

    def __init__(self) -> None:
        self.free_bytes = 1 << 40

    def read(self) -> Memory:
        return Memory(self.free_bytes, 0.0)

    def fill(self) -> None:
        """Not even a trial has room now."""
        self.free_bytes = 1 << 20


@asynccontextmanager
async def asked(here: Node, seeds: dict[bytes, int]) -> AsyncIterator[list[Served]]:
    """Three callers that never stop; each answer is right, and one that fails ends the test."""
    is_over = False
    seen: list[Served] = []

    async def ask(caller: int) -> None:
        number = 0
        while not is_over:
            number += 1
            data = tiny.item(number % 251, caller, 7, 3)
            served = await here.router.classify("tiny", [data], deadline_s=20)
            assert served.answers[0].label == tiny.expected_label(data, seeds[served.release])
            seen.append(served)
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as callers:
        for caller in range(3):
            callers.create_task(ask(caller))
        yield seen
        is_over = True


def stays(here: Node) -> list[str]:
    return [facts.state for facts in here.engine.describe()]


async def update(here: Node, directory: Path, seed: int = 1) -> bytes:
    release = tiny.write(directory, seed=seed)
    await here.engine.admit(release, directory, replaces="tiny")
    await here.engine.switch("tiny", release)
    return release


@pytest.mark.parametrize("role", ["node", "upstream"])
async def test_without_room_for_two_the_old_one_drains_to_another_node_and_no_request_fails(
    tmp_path, role
):
    board = Board()
    async with node("b", tmp_path / "b") as b:
        known = Known(b.peer(role))
        async with node("a", tmp_path / "a", discovery=known, read_memory=board.read) as a:
            first = a.engine.serving("tiny")
            worker = a.engine._dispatcher.worker
            board.fill()
            second = tiny.write(tmp_path / "v2", seed=1)
            async with asked(a, {first: 0, second: 1}) as seen:
                await until(lambda: len(seen) > 5)
                assert {served.by for served in seen} == {"a"}
                await a.engine.admit(second, tmp_path / "v2", replaces="tiny")
                assert stays(a) == ["away"]
                assert first not in worker.loaded
                await a.engine.switch("tiny", second)
                await until(lambda: seen[-1].release == second)
            assert stays(a) == ["serving"]
            assert "b" in {served.by for served in seen}
            assert a.router.stats.refused == 0
            assert a.engine._dispatcher.worker is worker


async def test_what_was_accepted_is_answered_here_and_what_comes_then_elsewhere(tmp_path):
    board = Board()
    async with (
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", discovery=Known(b.peer()), read_memory=board.read) as a,
    ):
        board.fill()
        old = a.engine._dispatcher.releases[a.engine.serving("tiny")]
        released = asyncio.Event()
        drain = a.engine._dispatcher.drain

        async def drain_later(release) -> None:
            assert stays(a) == ["draining"]
            assert a.engine.offered() == []
            elsewhere = await a.router.classify("tiny", [tiny.item()], deadline_s=10)
            assert elsewhere.by == "b"
            released.set()
            await drain(release)
            assert not old.waiting

        a.engine._dispatcher.drain = drain_later
        accepted = asyncio.create_task(a.router.classify("tiny", [tiny.item()], deadline_s=10))
        await asyncio.sleep(0)
        await update(a, tmp_path / "v2")
        assert (await accepted).by == "a"
        assert released.is_set()
        assert a.engine.offered() == ["tiny"]


async def test_with_nobody_who_serves_meanwhile_the_swap_is_refused_and_says_why(tmp_path):
    board = Board()
    async with (
        node("b") as b,  # announces nothing, but is asked as upstream
        node(
            "a", tmp_path / "a", upstream=("127.0.0.1", b.server.port), read_memory=board.read
        ) as a,
    ):
        board.fill()
        first = a.engine.serving("tiny")
        with pytest.raises(
            NoRoomError,
            match=r"nobody else serves it meanwhile \(127.0.0.1: .*'tiny' does not run here.*may_pause",
        ):
            await update(a, tmp_path / "v2")
        assert stays(a) == ["serving"]
        served = await a.router.classify("tiny", [tiny.item()], deadline_s=10)
        assert (served.by, served.release) == ("a", first)


async def test_who_answers_later_than_our_callers_can_wait_is_nobody(tmp_path):
    async def dawdle(request: InferRequest) -> InferReply:
        await asyncio.sleep(0.5)
        return InferReply(request.id, "slow", b"", [], "too late anyway")

    board = Board()
    async with PeerServer.open("127.0.0.1", 0, dawdle, root="shoal", node="slow") as server:
        upstream = ("127.0.0.1", server.port)
        async with node("a", tmp_path / "a", upstream=upstream, read_memory=board.read) as a:
            board.fill()
            await a.router.classify("tiny", [tiny.item()], deadline_s=0.2)
            with pytest.raises(NoRoomError, match=r"127.0.0.1: no answer within 0.\d+ s"):
                await update(a, tmp_path / "v2")


async def test_while_it_looks_for_somebody_it_serves_but_nobody_who_leaves_may_count_on_it(
    tmp_path,
):
    board = Board()
    async with node("a", tmp_path / "a", read_memory=board.read) as a:
        board.fill()
        asked: list[str] = []

        async def look(model: str):
            for hops in (0, 1, remote.COUNTS_ON_US):
                request = InferRequest(b"12345678", model, [tiny.item()], hops=hops)
                asked.append((await a.router.answer(request)).reason)
            return await a.router.find_cover(model)

        a.engine.refer_to(look)
        with pytest.raises(NoRoomError):
            await update(a, tmp_path / "v2")
        assert asked[:2] == ["", ""]
        assert "gives way to its new release" in asked[2]


@pytest.mark.slow
async def test_two_neighbours_that_update_at_once_are_never_away_both(tmp_path):
    board = Board()
    known = Known()
    async with (
        node("a", tmp_path / "a", discovery=known, read_memory=board.read) as a,
        node("bb", tmp_path / "b", discovery=known, read_memory=board.read) as b,
    ):
        known.peers = [a.peer(), b.peer()]
        board.fill()
        first, second = a.engine.serving("tiny"), tiny.write(tmp_path / "v2", seed=1)
        seeds = {first: 0, second: 1}

        async def bring(here: Node) -> None:
            for attempt in range(100):
                try:
                    await here.engine.admit(second, tmp_path / "v2", replaces="tiny")
                except NoRoomError:
                    await asyncio.sleep(0.02 + attempt * len(here.name) * 0.001)
                else:
                    await here.engine.switch("tiny", second)
                    return

        async with asked(a, seeds) as by_a, asked(b, seeds) as by_b:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(bring(a))
                await until(lambda: a.engine.is_leaving("tiny"))
                tasks.create_task(bring(b))
            await until(lambda: by_a[-1].by == "a" and by_b[-1].by == "bb")
        assert (a.engine.serving("tiny"), b.engine.serving("tiny")) == (second, second)


async def test_when_the_others_fail_meanwhile_the_old_one_is_called_back(tmp_path, monkeypatch):
    board = Board()
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(node("b", tmp_path / "b"))
        a = await stack.enter_async_context(
            node("a", tmp_path / "a", discovery=Known(b.peer()), read_memory=board.read)
        )
        first = a.engine.serving("tiny")
        board.fill()
        second = tiny.write(tmp_path / "v2", seed=1)
        admitting = asyncio.create_task(a.engine.admit(second, tmp_path / "v2", replaces="tiny"))
        await until(lambda: stays(a) == ["away"])
        await b.engine.remove("tiny")
        served = await a.router.classify("tiny", [tiny.item()], deadline_s=20)
        assert (served.by, served.release) == ("a", first)
        tensor = {"x": Tensor("float32", (1, tiny.VALUES), bytes(4 * tiny.VALUES))}
        assert (await a.router.infer("tiny", tensor, deadline_s=20)).by == "a"
        with pytest.raises(NoRoomError, match="was called back: nobody else served it any more"):
            await admitting
        assert stays(a) == ["serving"]
        assert second not in a.engine._dispatcher.releases
        assert a.router.stats.refused == 0


async def test_between_loading_and_switching_a_request_that_nobody_serves_waits_for_the_switch(
    tmp_path,
):
    board = Board()
    async with (
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", discovery=Known(b.peer()), read_memory=board.read) as a,
    ):
        board.fill()
        second = tiny.write(tmp_path / "v2", seed=1)
        await a.engine.admit(second, tmp_path / "v2", replaces="tiny")
        await b.engine.remove("tiny")
        with pytest.raises(NobodyServesError):  # a request has no more time than it has
            await a.router.classify("tiny", [tiny.item()], deadline_s=0.1)
        waiting = asyncio.create_task(a.router.classify("tiny", [tiny.item()], deadline_s=20))
        refused = b.router.stats.refused
        await until(lambda: b.router.stats.refused > refused)
        await a.engine.switch("tiny", second)
        assert (await waiting).release == second


async def test_where_an_outage_is_allowed_the_swap_goes_on_when_the_others_fail(tmp_path):
    board = Board()
    async with (
        node("b", tmp_path / "b") as b,
        node(
            "a", tmp_path / "a", discovery=Known(b.peer()), read_memory=board.read, may_pause=True
        ) as a,
    ):
        board.fill()
        second = tiny.write(tmp_path / "v2", seed=1)
        await a.engine.admit(second, tmp_path / "v2", replaces="tiny")
        assert (await a.router.classify("tiny", [tiny.item()], deadline_s=10)).by == "b"
        await b.engine.remove("tiny")
        with pytest.raises(InferenceError, match="nobody serves 'tiny'"):
            await a.router.classify("tiny", [tiny.item()], deadline_s=1)
        await a.engine.switch("tiny", second)
        assert (await a.router.classify("tiny", [tiny.item()], deadline_s=10)).release == second


async def test_a_pipeline_misses_no_message_while_its_model_drains(tmp_path):
    board = Board()
    source = TopicTable(filter="raw/+", format="raw", wait_s=0.0)  # what nobody serves is lost
    loop = PipelineTable(stream="loop", model="tiny", topic=source, deadline_s=1.0)
    async with (
        Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", discovery=Known(b.peer()), read_memory=board.read) as a,
    ):
        spec = parse_spec((tmp_path / "a" / SPEC_FILE).read_bytes())
        (tmp_path / "n").mkdir()
        async with pipelined(
            broker, tmp_path / "n", loop, specs={"tiny": spec}, router=a.router
        ) as made:
            board.fill()
            sent = 0
            async with asyncio.TaskGroup() as tasks:
                updating = tasks.create_task(update(a, tmp_path / "v2"))
                while not updating.done():
                    await made.say("raw/x", tiny.item(sent % 200, 1, 2, 3))
                    sent += 1
                    await asyncio.sleep(0.02)
            await made.say("raw/x", tiny.item())
            readings = await made.heard(sent + 1)
            assert len(readings) == sent + 1
            served_by = [reading.by for reading in made.readings()]
            assert served_by[0] == served_by[-1] == "a"
            assert "b" in served_by
            assert made.pipelines[0].stats.served == sent + 1
