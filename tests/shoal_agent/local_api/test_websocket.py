"""The same requests over one WebSocket: many under way, in pieces, cancelled; and what is not let through."""

import asyncio
import json
import struct

import pytest
from tests.shoal_agent.until import until
from tests.support.toy_models import VERSION
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from shoal_agent.local_api import websocket as websocket_module
from shoal_agent.local_api.websocket import MAX_UNDER_WAY

X = [1.0, 2.0, 3.0, 4.0]


def ask(name: str, model: str = "double", rows: int = 1, **parameters) -> str:
    part = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": X * rows}
    message = {"id": name, "model_name": model, "inputs": [part], "parameters": parameters}
    return json.dumps(message)


@pytest.fixture
async def socket(api):
    async with connect(f"ws://127.0.0.1:{api.port}/v2/ws", max_size=None) as socket:
        yield socket


async def said(socket) -> dict:
    async with asyncio.timeout(5):
        return json.loads(await socket.recv())


async def test_a_text_message_is_answered_by_a_text_message_with_its_id(socket):
    await socket.send(ask("a1"))
    answer = await said(socket)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == (
        "a1",
        "double",
        VERSION,
    )
    assert answer["outputs"][0]["data"] == [2, 4, 6, 8]


async def test_a_binary_message_carries_tensors_as_bytes_both_ways(socket):
    part = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    part["parameters"] = {"binary_data_size": 16}
    request = {"id": "b", "model_name": "double", "inputs": [part]}
    request["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
    head = json.dumps(request).encode()
    await socket.send(struct.pack(">I", len(head)) + head + struct.pack("<4f", *X))
    answer = await socket.recv()
    (length,) = struct.unpack_from(">I", answer)
    assert json.loads(answer[4 : 4 + length])["outputs"][0]["shape"] == [1, 4]
    assert struct.unpack("<4f", answer[4 + length :]) == (2, 4, 6, 8)


async def test_a_later_request_is_answered_while_an_earlier_one_waits(socket, models):
    await socket.send(ask("first", "slow"))
    await socket.send(ask("second"))
    assert (await said(socket))["id"] == "second"
    models.go_on.set()
    assert (await said(socket))["id"] == "first"


async def test_a_message_in_fragments_is_one_message(socket):
    text = ask("pieces")
    await socket.send([text[:7], text[7:50], text[50:]])
    assert (await said(socket))["id"] == "pieces"


async def test_a_stream_of_rows_says_how_far_it_is(socket):
    await socket.send(ask("s", rows=5, stream_rows=2))
    answers = [await said(socket) for _ in range(3)]
    assert [answer["id"] for answer in answers] == ["s"] * 3
    assert [answer["outputs"][0]["shape"] for answer in answers] == [[2, 4], [2, 4], [1, 4]]
    progress = [answer["parameters"] for answer in answers]
    assert [(step["first_row"], step["rows"], step["of_rows"]) for step in progress] == [
        (0, 2, 5),
        (2, 2, 5),
        (4, 1, 5),
    ]
    assert [step["final"] for step in progress] == [False, False, True]


async def test_a_cancelled_request_is_answered_so_and_given_up(socket, models):
    await socket.send(ask("c", "slow"))
    await until(lambda: models.asked)
    await socket.send(json.dumps({"cancel": "c"}))
    assert await said(socket) == {"id": "c", "error": "cancelled", "status": 499}
    await until(lambda: models.cancelled == ["slow"])
    await socket.send(ask("c"))
    assert (await said(socket))["model_name"] == "double"


async def test_who_goes_away_takes_the_requests_along(socket, models, api):
    await socket.send(ask("c", "slow"))
    await until(lambda: models.asked)
    await socket.close()
    await until(lambda: models.cancelled == ["slow"])
    await until(lambda: api.held_bytes == 0)


@pytest.mark.parametrize(
    ("message", "status", "name"),
    [
        ("no json", 400, ""),
        ("[]", 400, ""),
        ('{"id": "x", "inputs": []}', 400, "x"),
        ('{"id": 7}', 400, ""),
        (b"\x00", 400, ""),
        (b"\x00\x00\x00\x09{}", 400, ""),
        (ask("x", "absent"), 404, "x"),
        (ask("x", "late"), 504, "x"),
        (ask("x", "bug"), 500, "x"),
        (ask("x", "whole", stream_rows=1), 400, "x"),
        ("[" * 100_000, 400, ""),
    ],
)
async def test_what_cannot_be_served_is_an_answer_and_the_connection_stays(
    socket, message, status, name
):
    await socket.send(message)
    refused = await said(socket)
    assert (refused["id"], refused["status"]) == (name, status)
    assert refused["error"]
    await socket.send(ask("next"))
    assert (await said(socket))["id"] == "next"


async def test_a_busy_model_says_when_to_come_again(socket):
    await socket.send(ask("b", "busy"))
    refused = await said(socket)
    assert (refused["status"], refused["retry_after_s"]) == (429, 1.2)


async def test_an_id_under_way_and_one_request_too_many_are_refused(socket, models):
    for number in range(MAX_UNDER_WAY):
        await socket.send(ask(str(number), "slow"))
    await socket.send(ask("3"))
    assert (await said(socket))["status"] == 400
    await socket.send(ask("more"))
    assert (await said(socket))["status"] == 429
    models.go_on.set()
    names = {(await said(socket))["id"] for _ in range(MAX_UNDER_WAY)}
    assert names == {str(number) for number in range(MAX_UNDER_WAY)}


async def test_a_message_beyond_the_limit_ends_the_connection(open_api, models):
    async with (
        open_api(models, max_body_bytes=1024) as api,
        connect(f"ws://127.0.0.1:{api.port}/v2/ws") as socket,
    ):
        await socket.send("a" * 1025)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd.code == 1009
        await until(lambda: api.held_bytes == 0)


async def test_a_message_that_does_not_come_is_given_up(open_api, models, monkeypatch):
    monkeypatch.setattr(websocket_module, "time_for", lambda _: 0.05)
    async with open_api(models) as api, connect(f"ws://127.0.0.1:{api.port}/v2/ws") as socket:
        socket.transport.write(b"\x81\xfe\x10\x00\x00\x00\x00\x00a")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd.code == 1008


async def test_who_is_silent_and_does_not_answer_a_ping_is_cut_off(open_api, models, monkeypatch):
    monkeypatch.setattr(websocket_module, "QUIET_S", 0.05)
    async with open_api(models) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(handshake())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await reader.readexactly(2) == b"\x89\x00"
        await until(lambda: not api.connections)
        writer.close()


async def test_who_answers_pings_stays(open_api, models, monkeypatch):
    monkeypatch.setattr(websocket_module, "QUIET_S", 0.02)
    async with open_api(models) as api, connect(f"ws://127.0.0.1:{api.port}/v2/ws") as socket:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await socket.recv()
        await socket.send(ask("still"))
        assert (await said(socket))["id"] == "still"


async def test_who_does_not_read_is_cut_off(open_api, models, monkeypatch):
    monkeypatch.setattr(websocket_module, "time_for", lambda _: 0.1)
    async with (
        open_api(models) as api,
        connect(f"ws://127.0.0.1:{api.port}/v2/ws", max_size=None) as socket,
    ):
        socket.transport.pause_reading()
        await socket.send(ask("l", "large", binary_data_output=True))
        await until(lambda: not api.connections)
        socket.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await socket.recv()


HANDSHAKE = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def handshake(**changes: str) -> bytes:
    lines = (f"{name}: {value}" for name, value in (HANDSHAKE | changes).items())
    return "\r\n".join(["GET /v2/ws HTTP/1.1", *lines, "\r\n"]).encode()


async def test_who_asks_in_vain_and_never_reads_is_not_read_from_either(
    open_api, models, monkeypatch
):
    monkeypatch.setattr(websocket_module, "time_for", lambda _: 0.2)
    message = json.dumps({"id": "i" * 256}).encode()
    frame = b"\x81\xfe" + struct.pack(">HI", len(message), 0) + message
    async with open_api(models) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=1024)
        writer.write(handshake() + frame * 60_000)
        await until(lambda: api.stats.answers[400] > 0)
        await until(lambda: not api.connections)
        assert api.stats.answers[400] < 60_000
        assert reader.at_eof() is False
        writer.transport.abort()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Sec-WebSocket-Version": "7"}, 400),
    ],
)
async def test_a_page_of_another_origin_does_not_come_in(api, headers, status):
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(handshake(**headers))
    assert f" {status} ".encode() in await reader.readline()
    writer.close()


async def test_a_token_is_asked_for_before_the_handshake(open_api, models, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("a-word-of-some-length\n")
    token_file.chmod(0o600)
    async with open_api(models, token_file=str(token_file)) as api:
        url = f"ws://127.0.0.1:{api.port}/v2/ws"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)
        assert refused.value.response.status_code == 401
        word = {"Authorization": "Bearer a-word-of-some-length"}
        async with connect(url, additional_headers=word) as socket:
            await socket.send(ask("in"))
            assert (await said(socket))["id"] == "in"
