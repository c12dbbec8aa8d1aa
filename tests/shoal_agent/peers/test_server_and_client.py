import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from tests.shoal_agent.until import until

from shoal_agent.peers import client as client_module
from shoal_agent.peers import server as server_module
from shoal_agent.peers import wire
from shoal_agent.peers.client import PeerClient
from shoal_agent.peers.errors import PeerBusyError, PeerUnreachableError
from shoal_agent.peers.peer import Peer
from shoal_agent.peers.server import PeerServer
from shoal_contract import messages
from shoal_contract.messages import Answer, InferReply, InferRequest


async def echo(request: InferRequest) -> InferReply:
    answers = [Answer(item.decode(), 1.0) for item in request.items]
    return InferReply(request.id, "server", b"", answers)


@pytest.fixture
async def server() -> AsyncIterator[PeerServer]:
    async with PeerServer.open("127.0.0.1", 0, echo, root="shoal", node="server") as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[PeerClient]:
    async with PeerClient.open(root="shoal", node="client") as client:
        yield client


def request(*items: bytes) -> InferRequest:
    return InferRequest(b"12345678", "m", list(items))


def at(server: PeerServer, node: str = "server") -> Peer:
    return Peer(node, "127.0.0.1", server.port)


async def test_many_requests_share_one_connection_and_each_gets_its_own_reply(server, client):
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(client.ask(at(server), request(str(n).encode()), 5))
            for n in range(client_module.MAX_UNDER_WAY)
        ]
    labels = [task.result().answers[0].label for task in asked]
    assert labels == [str(n) for n in range(client_module.MAX_UNDER_WAY)]
    assert {task.result().id for task in asked} == {b"12345678"}
    assert server.stats.connections == 1


async def test_replies_may_come_in_another_order(client):
    first = asyncio.Event()

    async def answer(request: InferRequest) -> InferReply:
        if request.items == [b"slow"]:
            await first.wait()
        else:
            first.set()
        return await echo(request)

    async with (
        PeerServer.open("127.0.0.1", 0, answer, root="shoal", node="server") as server,
        asyncio.TaskGroup() as tasks,
    ):
        slow = tasks.create_task(client.ask(at(server), request(b"slow"), 5))
        fast = tasks.create_task(client.ask(at(server), request(b"fast"), 5))
    assert slow.result().answers[0].label == "slow"
    assert fast.result().answers[0].label == "fast"


async def test_connections_do_not_wait_to_fill_packets(server, client):
    await client.ask(at(server), request(b"x"), 5)
    (link,) = client._links.values()
    sock = link.writer.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_a_server_that_restarted_is_asked_on_a_new_connection(client):
    async with PeerServer.open("127.0.0.1", 0, echo, root="shoal", node="server") as server:
        port = server.port
        await client.ask(at(server), request(b"x"), 5)
    async with PeerServer.open("127.0.0.1", port, echo, root="shoal", node="server") as server:
        assert (await client.ask(at(server), request(b"y"), 5)).answers[0].label == "y"


async def test_nobody_there_is_an_error_at_once(client):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(PeerUnreachableError, match=r"refused|Connect"):
        await client.ask(Peer("x", "127.0.0.1", port), request(b"x"), 5)


async def test_a_neighbour_that_hangs_costs_no_more_than_the_timeout(client):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer("x", "127.0.0.1", silent.getsockname()[1])
        started = asyncio.get_running_loop().time()
        with pytest.raises(PeerUnreachableError, match=r"no answer within 0\.1 s"):
            await client.ask(peer, request(b"x"), 0.1)
        assert asyncio.get_running_loop().time() - started < 1


async def test_a_connection_that_went_silent_is_given_up(client):
    never = asyncio.Event()

    async def hang(_: InferRequest) -> InferReply:
        await never.wait()
        raise AssertionError

    async with PeerServer.open("127.0.0.1", 0, hang, root="shoal", node="server") as server:
        for _ in range(2):  # the greeting was a sign of life in the first one's time
            with pytest.raises(PeerUnreachableError):
                await client.ask(at(server), request(b"x"), 0.1)
        await until(lambda: not client._links)


async def test_another_node_at_the_address_is_not_asked(server, client):
    with pytest.raises(PeerUnreachableError, match="another node answers there: server"):
        await client.ask(at(server, "somebody"), request(b"x"), 5)
    assert server.stats.requests == 0


async def test_a_configured_address_takes_whoever_answers(server, client):
    assert (await client.ask(at(server, ""), request(b"x"), 5)).by == "server"


async def test_a_node_of_another_fleet_is_sent_away(server):
    async with PeerClient.open(root="other", node="client") as client:
        with pytest.raises(PeerUnreachableError):
            await client.ask(at(server), request(b"x"), 5)
    assert server.stats.malformed == 1
    assert server.stats.requests == 0


async def test_too_many_requests_at_once_are_refused_here(client):
    go_on = asyncio.Event()

    async def wait(request: InferRequest) -> InferReply:
        await go_on.wait()
        return await echo(request)

    async with (
        PeerServer.open("127.0.0.1", 0, wait, root="shoal", node="server") as server,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(client_module.MAX_UNDER_WAY):
            tasks.create_task(client.ask(at(server), request(b"x"), 5))
        await until(lambda: server.stats.requests == client_module.MAX_UNDER_WAY)
        with pytest.raises(PeerBusyError):
            await client.ask(at(server), request(b"x"), 5)
        go_on.set()


async def test_a_request_that_ends_in_a_bug_is_answered_with_a_reason_and_the_service_goes_on(
    client,
):
    async def answer(request: InferRequest) -> InferReply:
        if request.items == [b"bug"]:
            raise ZeroDivisionError
        return await echo(request)

    async with PeerServer.open("127.0.0.1", 0, answer, root="shoal", node="server") as server:
        assert (await client.ask(at(server), request(b"bug"), 5)).reason == "internal error"
        assert (await client.ask(at(server), request(b"x"), 5)).answers


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        wire.frame(b"\xff" * 100),
        wire.greeting_frame(wire.Greeting("shoal", "c")) + b"\xff\xff\xff\xff",
        wire.greeting_frame(wire.Greeting("shoal", "c")) + wire.frame(b"\xff" * 100),
        wire.greeting_frame(wire.Greeting("shoal", "c")) + wire.frame(b"\x82\x0a\x01"),
        wire.greeting_frame(wire.Greeting("shoal", "c"))
        + wire.frame(messages.encode(messages.Cancel(bytes(8)))),
    ],
)
async def test_malformed_bytes_close_their_connection_and_no_other(server, client, sent):
    assert (await client.ask(at(server), request(b"x"), 5)).answers
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(5):
            await reader.read()
    writer.close()
    await until(lambda: server.stats.malformed == 1)
    assert (await client.ask(at(server), request(b"x"), 5)).answers
    assert server.stats.connections == 2


async def test_who_says_nothing_is_sent_away(server, monkeypatch):
    monkeypatch.setattr(server_module, "GREETING_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    assert server._open == set()


async def test_no_more_connections_than_allowed_are_kept(server, client):
    links = [
        await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(server_module.MAX_CONNECTIONS)
    ]
    await until(lambda: server.stats.connections == server_module.MAX_CONNECTIONS)
    with pytest.raises(PeerUnreachableError):
        await client.ask(at(server), request(b"x"), 5)
    assert server.stats.refused >= 1
    for _, writer in links:
        writer.close()
    await until(lambda: not server._open)
    assert (await client.ask(at(server), request(b"x"), 5)).answers
