"""Two nodes in one process: real engines, workers, TCP and mDNS on the loopback."""

import asyncio
import os
import signal
import socket
import struct
from contextlib import AsyncExitStack

import pytest
from tests.shoal_agent.inference import tiny_release as tiny
from tests.shoal_agent.inference.nodes import Known, node
from tests.shoal_agent.until import until

from shoal_agent.inference import remote
from shoal_agent.inference.errors import (
    BadInputError,
    DeadlineError,
    NobodyServesError,
    QueueFullError,
)
from shoal_agent.inference.tensors import Tensor
from shoal_agent.peers.discovery import Discovery
from shoal_agent.peers.errors import PeerUnreachableError
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer
from shoal_contract.messages import Answer, InferReply, InferRequest, TensorPart


async def test_what_serves_here_is_served_here(tmp_path):
    async with node("a", tmp_path) as a:
        served = await a.router.classify("tiny", [tiny.item()], deadline_s=10)
        assert served.by == "a"
        assert served.answers[0].label == tiny.expected_label(tiny.item())
        assert a.router.stats.served_local == 1


async def test_a_missing_model_is_answered_by_the_neighbour_that_has_it(tmp_path):
    async with node("b", tmp_path) as b, node("a", discovery=Known(b.peer())) as a:
        served = await a.router.classify("tiny", [tiny.item()], deadline_s=10)
        assert served.by == "b"
        assert served.release == b.engine.serving("tiny")
        assert a.router.stats.served_peer == 1


async def test_upstream_is_asked_last_found_or_configured(tmp_path):
    async with node("up", tmp_path) as up:
        async with node("a", upstream=("127.0.0.1", up.server.port)) as a:
            assert (await a.router.classify("tiny", [tiny.item()], deadline_s=10)).by == "up"
            assert a.router.stats.served_upstream == 1
        async with node("c", discovery=Known(up.peer("upstream"))) as c:
            assert (await c.router.classify("tiny", [tiny.item()], deadline_s=10)).by == "up"
            assert c.router.stats.served_upstream == 1


async def test_two_nodes_that_both_lack_the_model_do_not_send_it_in_circles():
    known = Known()
    async with node("a", discovery=known) as a, node("b", discovery=known) as b:
        models = frozenset({"tiny"})
        known.peers = [
            Peer("a", "127.0.0.1", a.server.port, "node", models),
            Peer("b", "127.0.0.1", b.server.port, "node", models),
        ]
        with pytest.raises(NobodyServesError) as caught:
            await a.router.classify("tiny", [tiny.item()], deadline_s=5)
        assert "a: 'tiny' does not run here" in str(caught.value)
        assert "b: nobody serves 'tiny'" in str(caught.value)
        assert b.server.stats.requests == 1
        assert a.router.stats.refused == 1


async def test_bad_input_is_the_callers_and_goes_nowhere_else(tmp_path):
    async with (
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", discovery=Known(b.peer())) as a,
    ):
        with pytest.raises(BadInputError):
            await a.router.classify("tiny", [b"x"], deadline_s=5)
        assert b.server.stats.requests == 0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (InferRequest(b"12345678", "other", [b"abcd"]), "does not run here"),
        (InferRequest(b"12345678", "tiny", [b"abc"]), "has 4 bytes"),
        (InferRequest(b"12345678", "tiny", []), "0 items"),
        (InferRequest(b"12345678", "tiny", [b"abcd"] * 5000), "5000 rows"),
    ],
)
async def test_an_answer_is_never_an_exception(tmp_path, request_, reason):
    async with node("a", tmp_path) as a:
        reply = await a.router.answer(request_)
        assert reply.id == b"12345678"
        assert reply.by == "a"
        assert reply.answers == []
        assert reason in reply.reason


async def test_a_neighbour_that_hangs_keeps_nobody_past_the_deadline_and_is_left_alone_after_three(
    tmp_path,
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = Peer("h", "127.0.0.1", silent.getsockname()[1], "node", frozenset({"tiny"}))
        async with node("a", discovery=Known(hanging)) as a:
            for _ in range(3):
                started = asyncio.get_running_loop().time()
                with pytest.raises(NobodyServesError, match="h: no answer within"):
                    await a.router.classify("tiny", [tiny.item()], deadline_s=0.1)
                assert asyncio.get_running_loop().time() - started < 0.5
            with pytest.raises(NobodyServesError, match="h: left alone after failures"):
                await a.router.classify("tiny", [tiny.item()], deadline_s=10)


async def test_a_neighbour_that_hangs_leaves_time_for_the_next(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = Peer("h", "127.0.0.1", silent.getsockname()[1], "node", frozenset({"tiny"}))
        async with node("b", tmp_path) as b, node("a", discovery=Known(hanging, b.peer())) as a:
            assert (await a.router.classify("tiny", [tiny.item()], deadline_s=1)).by == "b"


@pytest.mark.parametrize(
    "reply",
    [
        InferReply(b"12345678", "liar", bytes(32), [Answer("x", 1.0)] * 2),
        InferReply(b"12345678", "liar", bytes(32), []),
        InferReply(b"12345678", "NOT A NODE", bytes(32), [Answer("x", 1.0)]),
    ],
)
async def test_a_reply_that_cannot_be_right_is_not_taken(reply):
    async def lie(_: InferRequest) -> InferReply:
        return InferReply(_.id, reply.by, reply.release, reply.answers)

    async with PeerServer.open("127.0.0.1", 0, lie, root="shoal", node="liar") as server:
        liar = Peer("liar", "127.0.0.1", server.port, "node", frozenset({"tiny"}))
        async with node("a", discovery=Known(liar)) as a:
            with pytest.raises(NobodyServesError, match="liar: "):
                await a.router.classify("tiny", [tiny.item()], deadline_s=5)


async def test_a_full_queue_sends_the_request_to_the_neighbour_found_by_mdns(tmp_path):
    run = os.getpid()  # several test runs on one machine hear each other
    async with node(f"b-{run}", tmp_path / "b") as b, AsyncExitStack() as stack:

        async def look(name: str, port: int) -> Discovery:
            return await stack.enter_async_context(
                Discovery.open(
                    node=name, root=f"r{run}", port=port, role="node", interfaces=["127.0.0.1"]
                )
            )

        await (await look(b.name, b.server.port)).announce(b.engine.models())
        found = await look(f"a-{run}", 1)
        async with node("a", tmp_path / "a", discovery=found, queue_limit=2) as a:
            await until(lambda: bool(found.find("tiny")))
            os.kill(a.engine._dispatcher.worker.pid, signal.SIGSTOP)
            async with asyncio.TaskGroup() as tasks:
                waiting = [
                    tasks.create_task(a.router.classify("tiny", [tiny.item()], deadline_s=10))
                    for _ in range(2)
                ]
                await asyncio.sleep(0)
                served = await a.router.classify("tiny", [tiny.item()] * 2, deadline_s=10)
                os.kill(a.engine._dispatcher.worker.pid, signal.SIGCONT)
            assert served.by == b.name
            assert [task.result().by for task in waiting] == ["a", "a"]
            assert a.router.stats.served_peer == 1


async def test_a_deadline_that_passed_here_is_not_tried_elsewhere(tmp_path):
    async with (
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", discovery=Known(b.peer())) as a,
    ):
        os.kill(a.engine._dispatcher.worker.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            await a.router.classify("tiny", [tiny.item()], deadline_s=0.05)
        assert b.server.stats.requests == 0


async def test_requests_in_a_worker_that_dies_are_answered_by_the_neighbour_at_once(tmp_path):
    async with (
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", discovery=Known(b.peer())) as a,
    ):
        assert (await a.router.classify("tiny", [tiny.item()], deadline_s=10)).by == "a"
        os.kill(a.engine._dispatcher.worker.pid, signal.SIGSTOP)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(a.router.classify("tiny", [tiny.item()], deadline_s=10))
            await until(lambda: a.engine._dispatcher.lanes.is_busy)
            os.kill(a.engine._dispatcher.worker.pid, signal.SIGKILL)
        assert asked.result().by == "b"
        assert asked.result().answers[0].label == tiny.expected_label(tiny.item())


async def test_when_nobody_else_can_the_worker_that_came_back_answers_after_all(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = Peer("g", "127.0.0.1", closed.getsockname()[1], "node", frozenset({"tiny"}))
    async with node("a", tmp_path, discovery=Known(gone)) as a:
        os.kill(a.engine._dispatcher.worker.pid, signal.SIGSTOP)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(a.router.classify("tiny", [tiny.item()], deadline_s=15))
            await until(lambda: a.engine._dispatcher.lanes.is_busy)
            os.kill(a.engine._dispatcher.worker.pid, signal.SIGKILL)
        assert asked.result().by == "a"


async def test_a_model_that_fails_here_is_tried_elsewhere(tmp_path):
    async with node("b", tmp_path / "b") as b:
        release = tiny.write(tmp_path / "a")
        async with node("a", discovery=Known(b.peer())) as a:
            await a.engine.admit(release, tmp_path / "a", trial=False)
            await a.engine.switch("tiny", release)
            await a.engine._dispatcher.worker.unload(release)
            a.engine._dispatcher.worker.loaded[release] = a.engine.signature("tiny")
            served = await a.router.classify("tiny", [tiny.item()], deadline_s=10)
        assert served.by == "b"


FEED = {"x": Tensor("float32", (1, tiny.VALUES), struct.pack("<4f", 1, 2, 3, 4))}


async def test_tensors_are_sent_to_the_neighbour_that_has_the_model(tmp_path):
    async with node("b", tmp_path) as b, node("a", discovery=Known(b.peer())) as a:
        here = await b.router.infer("tiny", FEED, deadline_s=10)
        there = await a.router.infer("tiny", FEED, outputs=["y"], deadline_s=10)
        assert (here.by, there.by) == ("b", "b")
        assert there.outputs == here.outputs
        assert there.release == b.engine.serving("tiny")
        assert (a.router.stats.served_peer, a.router.stats.refused) == (1, 0)


async def test_tensors_of_another_node_are_run_here_or_nowhere(tmp_path):
    known = Known()
    async with node("a", discovery=known) as a, node("b", discovery=known) as b:
        models = frozenset({"tiny"})
        known.peers = [
            Peer("a", "127.0.0.1", a.server.port, "node", models),
            Peer("b", "127.0.0.1", b.server.port, "node", models),
        ]
        with pytest.raises(NobodyServesError, match="b: nobody serves 'tiny'"):
            await a.router.infer("tiny", FEED, deadline_s=5)
        assert (a.server.stats.requests, b.server.stats.requests) == (0, 1)


async def test_tensors_that_find_a_full_queue_go_to_the_neighbour(tmp_path):
    async with (
        node("b", tmp_path / "b") as b,
        node("a", tmp_path / "a", queue_limit=1, discovery=Known(b.peer())) as a,
    ):
        done = await asyncio.gather(
            *(a.router.infer("tiny", FEED, deadline_s=10) for _ in range(8))
        )
        assert {one.by for one in done} == {"a", "b"}
        assert len({bytes(one.outputs["y"].data) for one in done}) == 1


async def test_with_a_full_queue_and_nobody_else_one_is_told_when_to_come_again(tmp_path):
    async with node("a", tmp_path, queue_limit=1) as a:
        done = await asyncio.gather(
            *(a.router.infer("tiny", FEED, deadline_s=10) for _ in range(8)),
            return_exceptions=True,
        )
        refused = [one for one in done if isinstance(one, QueueFullError)]
        assert refused
        assert all(one.retry_after_s > 0 for one in refused)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([TensorPart("x", "float32", [1, 4], b"short")], "has 16 bytes, not 5"),
        ([TensorPart("x", "complex64", [1], b"12345678")], "is no type of a tensor"),
        ([TensorPart("x", "float32", [1, 1], b"1234")] * 2, "two tensors have one name"),
        ([TensorPart("z", "float32", [1, 1], b"1234")], "no input 'x'"),
    ],
)
async def test_tensors_that_cannot_be_are_answered_with_a_reason(tmp_path, parts, reason):
    async with node("a", tmp_path) as a:
        reply = await a.router.answer(InferRequest(b"12345678", "tiny", [], tensors=parts))
        assert reason in reply.reason
        assert reply.tensors == []


async def test_tensors_that_are_too_large_for_a_message_stay_here(tmp_path):
    large = {"x": Tensor("float32", (8192, tiny.VALUES), bytes(8192 * 16))}
    async with node("b", tmp_path) as b, node("a", discovery=Known(b.peer())) as a:
        with pytest.raises(NobodyServesError, match="the request cannot be sent"):
            await a.router.infer("tiny", large, deadline_s=5)
        assert (await a.router.infer("tiny", FEED, deadline_s=10)).by == "b"


@pytest.mark.parametrize(
    "reply",
    [
        InferReply(b"12345678", "b", b"", []),
        InferReply(b"12345678", "B/!", b"", [], tensors=[TensorPart("y", "uint8", [1], b"1")]),
        InferReply(b"12345678", "b", b"", [], tensors=[TensorPart("y", "uint8", [2], b"1")]),
        InferReply(b"12345678", "b", b"", [], tensors=[TensorPart("z", "uint8", [1], b"1")]),
    ],
)
def test_a_reply_to_tensors_that_cannot_be_right_is_not_taken(reply):
    with pytest.raises(PeerUnreachableError):
        remote.tensors_in(reply, wanted=frozenset({"y"}))
