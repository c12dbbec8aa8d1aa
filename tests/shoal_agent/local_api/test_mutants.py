"""Requests with bytes changed, cut out and doubled: each is answered or its connection closed, and nothing is left."""

import asyncio
import json
import random
import struct

import pytest
from tests.shoal_agent.until import until

ASK = json.dumps(
    {
        "id": "m",
        "model_name": "double",
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"priority": 1, "timeout": 100_000},
    }
).encode()
AS_BYTES = json.dumps(
    {
        "inputs": [
            {
                "name": "x",
                "shape": [1, 4],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 16},
            }
        ]
    }
).encode()
POST = b"POST /v2/models/double/infer HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = POST + b"Content-Length: %d\r\n\r\n%b" % (len(ASK), ASK)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ASK), ASK)
BINARY = (
    POST
    + b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
    % (len(AS_BYTES), len(AS_BYTES) + 16)
    + AS_BYTES
    + bytes(16)
)
SOCKET = (
    b"GET /v2/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    b"\x81\xfe" + struct.pack(">HI", len(ASK), 0) + ASK + b"\x89\x80\0\0\0\0\x88\x80\0\0\0\0"
)
SEEDS = (WHOLE, CHUNKED, BINARY, SOCKET, WHOLE + BINARY)


def mutant(draw: random.Random) -> bytes:
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[at] = draw.randrange(256)
            case 1:
                del data[at : at + draw.randrange(1, 40)]
            case 2:
                data[at:at] = data[at : at + draw.randrange(1, 40)]
            case _:
                data[at] ^= 1 << draw.randrange(8)
        if not data:
            break
    return bytes(data)


async def send(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(45):
            while await reader.read(1 << 16):
                pass
    except ConnectionError:
        pass  # cut off: as good an answer as any
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "count",
    [200, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(300)])],
)
async def test_mutants_leave_nothing_behind(api, client, count):
    draw = random.Random(count)  # noqa: S311 - the same mutants every time
    for _ in range(count):
        await send(api.port, mutant(draw))
    await until(lambda: not api.connections)
    await until(lambda: api.held_bytes == 0)
    assert api.stats.answers[500] == 0
    answer = await client.post(
        "/v2/models/double/infer", content=ASK, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200
