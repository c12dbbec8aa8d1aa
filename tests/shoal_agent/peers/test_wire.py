import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.peers import wire
from shoal_agent.peers.errors import WireError
from shoal_contract import cbor


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def test_the_greeting_is_these_bytes_for_ever():
    frame = wire.greeting_frame(wire.Greeting("shoal", "gate-7"))
    assert (
        frame.hex() == "00000015" + "84" + "6573686f616c" + "01" + "6573686f616c" + "66676174652d37"
    )


async def test_frames_come_back_as_they_were_sent():
    reader = reader_of(wire.frame(b"one") + wire.frame(b"") + wire.frame(b"three"))
    assert [await wire.read_frame(reader) for _ in range(3)] == [b"one", b"", b"three"]
    with pytest.raises(EOFError):
        await wire.read_frame(reader)


async def test_an_overlong_frame_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="at most 98304"):
        await wire.read_frame(reader_of(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("cut", range(1, 7))
async def test_a_frame_that_is_cut_off_is_told_from_a_connection_that_ended(cut):
    with pytest.raises(WireError, match="within a frame"):
        await wire.read_frame(reader_of(wire.frame(b"one")[:cut]))


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (["shoal", 1, "other", "a"], "another fleet"),
        (["shoal", 2, "shoal", "a"], "version 2"),
        (["shoal", 1, "shoal", "NOT A NODE"], "not a node id"),
        (["shark", 1, "shoal", "a"], "not a greeting"),
        (["shoal", 1, "shoal"], "not a greeting"),
        ({"shoal": 1}, "not a greeting"),
    ],
)
async def test_a_greeting_that_is_none_of_ours_is_refused(greeting, reason):
    with pytest.raises(WireError, match=reason):
        await wire.read_greeting(reader_of(wire.frame(cbor.encode(greeting))), root="shoal")


async def test_a_newer_greeting_may_say_more():
    data = wire.frame(cbor.encode(["shoal", 1, "shoal", "a", "more"]))
    assert (await wire.read_greeting(reader_of(data), root="shoal")).node == "a"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_greeting_or_one_of_two_errors(data):
    async def read() -> None:
        with contextlib.suppress(WireError, EOFError):
            await wire.read_greeting(reader_of(data), root="shoal")

    asyncio.run(read())
