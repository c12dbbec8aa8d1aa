import os
import socket
import ssl

import pytest
from tests.shoal_broker.render.rendered_mosquitto import Authority
from tests.support.range_server import RangeSimulator

from shoal_agent.sources import ranges
from shoal_agent.sources.errors import NotHereError
from shoal_agent.sources.web import Web
from shoal_contract import blobs

BLOB = os.urandom(200_000)
REF = blobs.describe(BLOB)
CHUNKS = dict(blobs.cut(BLOB))


@pytest.fixture
async def web_of():
    made = []

    def of(*addresses: str, ca_file: str | None = None) -> Web:
        made.append(Web(addresses, ca_file))
        return made[-1]

    yield of
    for web in made:
        web.close()


@pytest.fixture
async def server():
    async with RangeSimulator.open() as server:
        server.files[REF.digest.hex()] = BLOB
        yield server


async def test_chunks_come_as_ranges_over_one_connection(server, web_of):
    web = web_of(server.address)
    assert [await web.chunk(REF, index) for index in CHUNKS] == list(CHUNKS.values())
    assert server.connections == 1
    assert server.sent_bytes == len(BLOB)


async def test_a_blob_that_a_server_lacks_is_not_asked_for_again_at_once(server, web_of):
    web, other = web_of(server.address), blobs.describe(b"other")
    assert await web.find(other)
    with pytest.raises(NotHereError, match="404"):
        await web.chunk(other, 0)
    assert not await web.find(other)
    assert await web.chunk(REF, 0) == CHUNKS[0]


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        ("ignores-range", "ignores Range"),
        ("garbage", "not HTTP"),
        ("redirects", "status 302"),
        ("another-range", "another range"),
        ("wrong-bytes", "wrong chunk"),
        ("too-much", "more than was asked for"),
        ("truncates", "hung up"),
        ("stalls", "too slow"),
        ("drips", "too slow"),
    ],
)
async def test_a_server_that_misbehaves_is_left_and_the_next_one_asked(
    server, web_of, monkeypatch, manner, says
):
    if manner in {"stalls", "drips"}:
        monkeypatch.setattr(ranges, "GRACE_S", 0.2)
        monkeypatch.setattr(ranges, "MIN_BYTES_PER_S", 1 << 30)
    server.manner = manner
    with pytest.raises(NotHereError, match=says):
        await web_of(server.address).chunk(REF, 0)
    monkeypatch.undo()
    async with RangeSimulator.open() as honest:
        honest.files = server.files
        web = web_of(server.address, honest.address)
        if manner not in {"stalls", "drips"}:
            assert await web.chunk(REF, 0) == CHUNKS[0]
            asked = len(server.asked)
            assert await web.chunk(REF, 1) == CHUNKS[1]
            assert len(server.asked) == asked


async def test_a_server_that_closed_a_kept_connection_is_connected_to_anew(server, web_of):
    web = web_of(server.address)
    await web.chunk(REF, 0)
    (line,) = web._server(server.address)._idle
    line.writer.transport.abort()
    assert await web.chunk(REF, 1) == CHUNKS[1]
    assert server.connections == 2


async def test_nobody_there_is_a_reason(web_of):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(NotHereError):
        await web_of(f"http://127.0.0.1:{port}").chunk(REF, 0)


async def test_a_pinned_authority_is_believed_and_no_other(tmp_path, web_of):
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    ca_file = tmp_path / "ca.crt"
    async with RangeSimulator.open(context) as server:
        server.files[REF.digest.hex()] = BLOB
        assert await web_of(server.address, ca_file=str(ca_file)).chunk(REF, 0) == CHUNKS[0]
        with pytest.raises(NotHereError, match=r"certificate|CERTIFICATE|SSL"):
            await web_of(server.address).chunk(REF, 0)
        with pytest.raises(NotHereError, match="https_ca_file"):
            await web_of(server.address, ca_file=str(tmp_path / "none.pem")).chunk(REF, 0)
