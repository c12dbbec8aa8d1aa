import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_contract import cbor, frames
from shoal_contract.errors import EncodeError, FrameError
from shoal_contract.frames import Frame, FrameReader, Kind, Op, Status

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=40)
)


def fits(frame: Frame) -> bool:
    try:
        frames.encode(frame)
    except EncodeError:
        return False
    return True


any_frame = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, frames.MAX_SEQ),
    st.integers(0, 255),
    st.lists(scalars, max_size=5).map(tuple),
).filter(fits)


@given(any_frame)
def test_every_frame_comes_back_and_keeps_the_size_limit(frame):
    wire = frames.encode(frame)
    assert len(wire) <= frames.MAX_WIRE_BYTES
    assert wire.endswith(b"\x00")
    assert wire.count(b"\x00") == 1
    assert frames.decode(wire[:-1]) == frame


@given(st.lists(any_frame, max_size=6), st.data())
def test_frames_come_back_however_the_stream_is_cut(sent, data):
    stream = b"".join(map(frames.encode, sent))
    reader, received, at = FrameReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 80))
        received += reader.receive(stream[at : at + size])
        at += size
    assert received == sent
    assert reader.errors == {}


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_never_raises_and_is_never_hoarded(pieces):
    reader = FrameReader()
    for piece in pieces:
        reader.receive(piece)
        assert len(reader._buffer) < frames.MAX_WIRE_BYTES


@given(st.binary(max_size=300), any_frame)
def test_the_reader_is_in_step_again_after_the_next_delimiter(garbage, frame):
    reader = FrameReader()
    reader.receive(garbage + b"\x00")
    assert reader.receive(frames.encode(frame)) == [frame]


@given(any_frame, st.data())
def test_every_flip_of_a_single_bit_is_refused(frame, data):
    wire = bytearray(frames.encode(frame))
    bit = data.draw(st.integers(0, len(wire) * 8 - 9))
    wire[bit // 8] ^= 1 << bit % 8
    assert FrameReader().receive(bytes(wire)) == []


def test_all_single_bit_flips_of_one_frame_are_refused():
    wire = frames.encode(Frame(Kind.EVENT, 70000, Op.SAMPLE, (1, 513, bytes(range(40)))))
    for bit in range((len(wire) - 1) * 8):
        damaged = bytearray(wire)
        damaged[bit // 8] ^= 1 << bit % 8
        assert FrameReader().receive(bytes(damaged)) == [], bit


@given(any_frame.map(lambda frame: Frame(frame.kind, 70000, frame.op, frame.args)).filter(fits))
def test_a_frame_passed_on_is_not_longer_than_it_came(frame):
    wasteful = cbor.encode([8 + frame.kind, frame.seq, frame.op, *frame.args])
    if len(wasteful) <= frames.MAX_CBOR_BYTES:
        again = frames.encode(frames.decode_body(wasteful))
        assert len(again) <= len(wasteful) + 6


def test_the_largest_frame_is_exactly_64_bytes_on_the_wire():
    # array 1, head 1, seq 1, op 1, byte string 2 + 52 = 58 of CBOR
    frame = Frame(Kind.COMMAND, 1, Op.SET, (b"\xff" * 52,))
    assert len(frames.encode(frame)) == 64
    assert FrameReader().receive(frames.encode(frame)) == [frame]
    with pytest.raises(EncodeError, match="59 CBOR bytes"):
        frames.encode(Frame(Kind.COMMAND, 1, Op.SET, (b"\xff" * 53,)))


def test_64_bytes_without_a_delimiter_are_overlong_and_63_are_not():
    reader = FrameReader()
    reader.receive(b"\x01" * 64)
    reader.receive(b"\x01\x00")
    assert reader.errors == {"overlong": 1}
    with pytest.raises(FrameError) as caught:
        frames.decode(b"\x01" * 63)
    assert caught.value.reason != "overlong"


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (Frame(Kind.BEAT, 0, Op.ALIVE), "03830b0105d2fd292800"),
        (Frame(Kind.COMMAND, 7, Op.SET, (2, 5)), "0b8508070102051186ab8a00"),
        (Frame(Kind.REPLY, 65536, Op.SET, (0,)), "0484091a020101020105252a85b700"),
        (Frame(Kind.EVENT, 42, Op.SAMPLE, (1, 3, b"\x00\x01")), "09860a182a030103420601f4744a2a00"),
        (
            Frame(Kind.REPLY, 9, Op.HELLO, (0, "meter", "1.0", 3)),
            "058709090410656d6574657263312e300313ab632400",
        ),
        (Frame(Kind.REPLY, 9, Op.GET, (0, 1.5)), "058509090203f93e054d7e408e00"),
    ],
)
def test_the_bytes_on_the_wire_stay_what_they_are(frame, wire):
    assert frames.encode(frame).hex() == wire


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "shape"),
        ([8, 1], "shape"),
        ({"a": 1}, "shape"),
        ([8, 1, 256], "shape"),
        ([8, -1, 1], "shape"),
        ([8, 1 << 32, 1], "shape"),
        ([True, 1, 1], "shape"),
        ([8, 1.0, 1], "shape"),
        ([8 + 4, 1, 1], "shape"),
        ([8, 1, 1, [1]], "shape"),
        ([8, 1, 1, {1: 1}], "shape"),
        ([0, 1, 1], "version"),
        ([16, 1, 1], "version"),
        ([-8, 1, 1], "version"),
    ],
)
def test_a_body_of_another_shape_is_refused_with_its_reason(items, reason):
    with pytest.raises(FrameError) as caught:
        frames.decode_body(cbor.encode(items))
    assert caught.value.reason == reason


def test_a_body_that_is_no_cbor_or_too_long_is_refused():
    for body in (
        b"",
        b"\xff",
        b"\x83\x08\x01\x01\x00",
        b"\x00" * 59,
        b"\x84\x08\x01\x01\xc2\x41\x01",
    ):
        with pytest.raises(FrameError) as caught:
            frames.decode_body(body)
        assert caught.value.reason == "cbor"


def test_damage_is_counted_by_reason():
    good = frames.encode(Frame(Kind.BEAT, 0, Op.ALIVE))
    reader = FrameReader()
    reader.receive(b"\x09abc\x00" + b"\x05abcd\x00" + b"x" * 70 + b"\x00\x00\x00" + good)
    assert reader.errors == {"cobs": 1, "crc": 1, "overlong": 1}


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.COMMAND, -1, 1),
        Frame(Kind.COMMAND, 1 << 32, 1),
        Frame(Kind.COMMAND, 1, 256),
        Frame(Kind.COMMAND, 1, 1, ("\ud800",)),
        Frame(Kind.COMMAND, 1, 1, (1 << 64,)),
        Frame(Kind.COMMAND, 1, 1, (-(1 << 64) - 1,)),
        Frame(Kind.COMMAND, 1, 1, ([1],)),
        Frame(Kind.COMMAND, 1, 1, (object(),)),
    ],
)
def test_what_no_reader_would_take_is_not_sent(frame):
    with pytest.raises(EncodeError):
        frames.encode(frame)


def test_an_enumeration_is_sent_as_its_number():
    wire = frames.encode(Frame(Kind.REPLY, 1, Op.SET, (Status.REFUSED,)))
    assert frames.decode(wire[:-1]).args == (3,)


def test_not_a_number_passes():
    [frame] = FrameReader().receive(frames.encode(Frame(Kind.REPLY, 1, Op.GET, (0, math.nan))))
    assert math.isnan(frame.args[1])


@given(st.binary(max_size=253))
def test_cobs_leaves_no_zero_and_comes_back(data):
    stuffed = frames.cobs_encode(data)
    assert 0 not in stuffed
    assert len(stuffed) == len(data) + 1
    assert frames.cobs_decode(stuffed) == data


@pytest.mark.parametrize("broken", [b"", b"\x00", b"\x05ab", b"\x03a\x00"])
def test_broken_stuffing_is_refused(broken):
    with pytest.raises(FrameError) as caught:
        frames.cobs_decode(broken)
    assert caught.value.reason == "cobs"


def test_what_needs_a_second_cobs_block_is_not_ours():
    with pytest.raises(EncodeError):
        frames.cobs_encode(bytes(254))
