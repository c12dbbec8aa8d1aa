"""Heads that came before: told by their bytes, and never taken for others."""

import asyncio
import json

import h11
import pytest
from tests.shoal_agent.until import until

from shoal_agent.local_api.access import Access
from shoal_agent.local_api.heads import Head, KnownHeads, fields, understood
from shoal_agent.local_api.routes import Question, Route

ASK = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
HEAD = (
    b"POST /v2/models/double/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    % len(ASK)
)
INFER = Head(Route(Question.INFER, "double"), 3, None, is_plain=True)


def head_of(*lines: str, method: str = "POST", target: str = "/v2/models/double/infer") -> Head:
    headers = [("Host", "localhost"), *(line.split(": ") for line in lines)]
    request = h11.Request(method=method, target=target, headers=headers)
    access = Access(host="127.0.0.1", token=None)
    return understood(request, fields(request), access=access, max_body_bytes=1024)


def test_a_head_is_found_by_its_bytes_alone():
    known = KnownHeads()
    known.keep(b"A\r\n\r\n", INFER)
    assert known.find(b"A\r\n\r\nabc") == (b"A\r\n\r\n", INFER)
    assert known.find(b"A \r\n\r\nabc") == (b"A \r\n\r\n", None)
    assert known.find(b"A\r\n\r") == (b"", None)
    assert known.find(b"A" * 5000 + b"\r\n\r\n") == (b"", None)


def test_only_the_newest_heads_are_kept():
    known = KnownHeads()
    for number in range(1000):
        known.keep(b"%d\r\n\r\n" % number, INFER)
    found = [known.find(b"%d\r\n\r\n" % number)[1] for number in range(1000)]
    assert found == [None] * 936 + [INFER] * 64


@pytest.mark.parametrize(
    ("head", "is_plain"),
    [
        (head_of("Content-Length: 3"), True),
        (head_of("Content-Length: 3", "Connection: keep-alive"), True),
        (head_of("Transfer-Encoding: chunked"), False),
        (head_of("Content-Length: 3", "Expect: 100-continue"), False),
        (head_of(method="GET", target="/v2"), False),
    ],
)
def test_only_what_means_the_same_the_next_time_is_kept(head, is_plain):
    assert head.is_plain is is_plain
    known = KnownHeads()
    known.keep(b"A\r\n\r\n", head)
    assert (known.find(b"A\r\n\r\n")[1] is not None) is is_plain


async def answers(api, *pieces: bytes) -> bytes:
    """What comes of these pieces, sent one after the other, on a new line that is then closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    for piece in pieces:
        before = api.stats.answers[200]
        writer.write(piece)
        if piece.endswith(ASK):
            await until(lambda before=before: api.stats.answers[200] > before)
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    said = await reader.read()
    writer.close()
    return said


async def test_a_known_head_is_answered_as_it_was_the_first_time(api):
    said = await answers(api, *[HEAD + ASK] * 3)
    assert said.count(b"[2.0,4.0,6.0,8.0]") == 3
    assert said.endswith(b'{"live":true}')


async def test_a_known_head_with_less_or_more_behind_it_is_read_as_any_other(api):
    await answers(api, HEAD + ASK)
    for pieces in (
        (HEAD, ASK),
        (HEAD[:9], HEAD[9:] + ASK[:5], ASK[5:]),
        (HEAD + ASK + HEAD, ASK),
        (HEAD + ASK + HEAD + ASK,),
    ):
        said = await answers(api, *pieces)
        assert said.count(b"[2.0,4.0,6.0,8.0]") == b"".join(pieces).count(HEAD)
        assert said.endswith(b'{"live":true}')


async def test_what_comes_while_a_known_request_is_under_way_is_asked_afterwards(api, models):
    slow = HEAD.replace(b"double", b"slow") + ASK
    models.go_on.set()
    await answers(api, slow)
    models.go_on.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(slow)
    await until(lambda: len(models.asked) == 2)
    writer.write(HEAD[:20])
    writer.write(HEAD[20:] + ASK)
    models.go_on.set()
    for _ in range(2):
        await reader.readuntil(b"[2.0,4.0,6.0,8.0]")
    writer.close()


async def test_a_head_that_closes_is_not_kept_as_one_that_goes_on(api):
    closing = HEAD.replace(b"Host", b"Connection: close\r\nConnection: keep-alive\r\nHost")
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(closing + ASK)
        assert (await reader.read()).count(b"[2.0,4.0,6.0,8.0]") == 1
        writer.close()
