"""The enrolment door from outside: TLS 1.3 and nothing but enrolment, whatever knocks."""

import asyncio
import http.client
import json
import socket
import ssl
from contextlib import asynccontextmanager

import pytest
from tests.support.enrolling import BoardKey

from shoal_contract import enrolment as wire
from shoal_fleet.identity import door as module
from shoal_fleet.identity.door import Door
from shoal_fleet.identity.door_certificate import DoorCertificate


@asynccontextmanager
async def opened(office, tmp_path):
    certificate = DoorCertificate(office.authority, tmp_path, ["localhost", "127.0.0.1"])
    certificate.renew()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with Door.open(
            listener, certificate.context, office.enrolment, ca_pem=office.authority.pem
        ) as door:
            yield door


@pytest.fixture
async def door(office, tmp_path):
    async with opened(office, tmp_path) as door:
        yield door


def trusting(office):
    context = ssl.create_default_context(cafile=office.authority.folder / "ca.crt")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def knock(office, door, method, path, body=None, headers=None):
    """Status and body."""
    connection = http.client.HTTPSConnection(
        "localhost", door.port, context=trusting(office), timeout=10
    )
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def say(office, port, data, *, half_close=False):
    """What comes back for raw bytes."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        trusting(office).wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(data)
        if half_close:
            tls.unwrap()
            return b""
        found = b""
        while piece := tls.recv(65536):
            found += piece
        return found


async def test_a_board_finds_the_authority_and_its_certificate_there(office, door):
    status, body = await asyncio.to_thread(knock, office, door, "GET", wire.CA_PATH)
    assert (status, body) == (200, office.authority.pem)
    request = BoardKey().asks("press-4", token=await office.token())
    status, body = await asyncio.to_thread(
        knock, office, door, "POST", wire.ENROL_PATH, wire.encode(request)
    )
    answer = wire.decode(body, wire.EnrolAnswer, max_bytes=wire.MAX_ANSWER_BYTES)
    assert (status, answer.state) == (200, "issued")
    assert len(body) < wire.MAX_ANSWER_BYTES / 4


async def test_who_waits_is_told_202_and_who_is_refused_why(office, door):
    status, body = await asyncio.to_thread(
        knock, office, door, "POST", wire.ENROL_PATH, wire.encode(BoardKey().asks("a"))
    )
    assert (status, json.loads(body)["state"]) == (202, "pending")
    request = wire.encode(BoardKey().asks("a", token="A" * 43))
    status, body = await asyncio.to_thread(knock, office, door, "POST", wire.ENROL_PATH, request)
    refusal = json.loads(body)
    assert (status, refusal["why"], refusal["error"]) == (
        403, "token", "the token is not known here",
    )  # fmt: skip


async def test_fifty_boards_at_the_door_with_one_token_get_one_certificate(office, door):
    token = await office.token()
    answers = await asyncio.gather(
        *(
            asyncio.to_thread(
                knock, office, door, "POST", wire.ENROL_PATH,
                wire.encode(BoardKey().asks(f"b-{n}", token=token)),
            )
            for n in range(50)
        )
    )  # fmt: skip
    assert sorted(status for status, _ in answers) == [200] + [403] * 49


async def test_older_tls_is_refused(office, door):
    context = ssl.create_default_context(cafile=office.authority.folder / "ca.crt")
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def try_it():
        with socket.create_connection(("127.0.0.1", door.port), timeout=10) as raw:
            context.wrap_socket(raw, server_hostname="localhost")

    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(try_it)
    assert door.answers.total() == 0


async def test_there_is_nothing_else_behind_it(office, door):
    for method, path in (
        ("GET", "/"),
        ("GET", "/api/nodes"),
        ("GET", "/metrics"),
        ("POST", "/api/tokens"),
        ("GET", "/v1/enrol/../../api/tokens"),
    ):
        status, _ = await asyncio.to_thread(knock, office, door, method, path)
        assert status == 404, path
    for method, path in (
        ("POST", wire.CA_PATH),
        ("GET", wire.ENROL_PATH),
        ("PUT", wire.ENROL_PATH),
    ):
        assert (await asyncio.to_thread(knock, office, door, method, path))[0] == 405


GARBAGE = [
    (b"\x00\x01\x02\x03" * 100 + b"\r\n\r\n", b"400"),
    (b"GET /v1/ca\r\n\r\n", b"400"),
    (b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n", b"413"),
    (b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
    (b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
    (
        b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"1000\r\n" + b"x" * 4096 + b"\r\n1000\r\n" + b"x" * 4096 + b"\r\n1\r\nx\r\n",
        b"413",
    ),
    (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
    (b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", b"400"),
    (b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n[[[[", b"400"),
    (
        b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Length: 8000\r\n\r\n" + b"[" * 8000,
        b"400",
    ),
    (
        b"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        b"417",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), GARBAGE)
async def test_garbage_gets_one_short_answer(office, door, data, status):
    found = await asyncio.to_thread(say, office, door.port, data)
    assert found.split(b" ")[1] == status
    assert b"Traceback" not in found
    assert len(found) < 1000
    assert (await asyncio.to_thread(knock, office, door, "GET", wire.CA_PATH))[0] == 200


async def test_who_says_nothing_is_shown_out(office, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.1)
    monkeypatch.setattr(module, "REQUEST_S", 0.1)
    async with opened(office, tmp_path) as door:
        # No TLS, and TLS without a request.
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", door.port, ssl=trusting(office), server_hostname="localhost"
        )
        writer.write(b"POST /v1/enrol HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        async with asyncio.timeout(5):
            while door.failed < 2:  # noqa: ASYNC110 - counted without an event
                await asyncio.sleep(0.01)
        monkeypatch.undo()
        assert (await asyncio.to_thread(knock, office, door, "GET", wire.CA_PATH))[0] == 200


async def test_too_many_at_once_and_too_often_are_turned_away_at_once(
    office, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "MAX_OF_ADDRESS", 3)
    async with opened(office, tmp_path) as door:
        held = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        assert await reader.read() == b""
        writer.close()
        assert door.turned_away == 1
        for _, one in held:
            one.close()
    monkeypatch.setattr(module, "PER_ADDRESS_S", 1e-9)
    monkeypatch.setattr(module, "BURST", 2)
    async with opened(office, tmp_path) as door:
        for _ in range(2):
            assert (await asyncio.to_thread(knock, office, door, "GET", wire.CA_PATH))[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            await asyncio.to_thread(knock, office, door, "GET", wire.CA_PATH)
        assert door.turned_away == 1


async def test_a_renewed_certificate_of_the_door_is_shown_to_who_comes_next(office, tmp_path):
    certificate = DoorCertificate(office.authority, tmp_path, ["localhost"])
    certificate.renew()
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with Door.open(
            listener, certificate.context, office.enrolment, ca_pem=office.authority.pem
        ) as door:
            for _ in range(2):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", door.port, ssl=trusting(office), server_hostname="localhost"
                )
                seen.append(writer.get_extra_info("peercert")["serialNumber"])
                writer.close()
                certificate.renew()
    assert seen[0] != seen[1]
