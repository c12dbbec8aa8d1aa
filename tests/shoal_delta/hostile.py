"""Deltas that ask for hours of work in a few kilobytes, made by hand. All but their sizes is in order."""

import hashlib
from collections.abc import Callable

from shoal_delta import operations
from shoal_delta.coders import Mode, pack
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.low_rank import LowRank
from shoal_delta.operations import Kind, Operation
from shoal_delta.wire import varint

OLD = bytes(5 << 20)
SEGMENT_BYTES = 4 << 20
_STATE = (1 << 16).to_bytes(4, "little")


def _segment(plan: list[Operation], *streams: bytes) -> bytes:
    """Operations, then streams that are packed already (mode byte first), as `framing` has them."""
    raw = operations.encode(plan, 0)
    out = b""
    for index, stream in enumerate([pack(raw), *streams]):
        is_last = 0 < index == len(streams)
        is_sized = stream[0] not in {Mode.RAW, Mode.RUN} and not is_last
        out += stream[:1] + (varint(len(raw)) if index == 0 else b"")
        out += (varint(len(stream) - 1) if is_sized else b"") + stream[1:]
    return out


def _with_model(mode: Mode, model: bytes, stream: bytes) -> bytes:
    packed = pack(model)
    return bytes([mode]) + varint(len(model)) + varint(len(packed)) + packed + stream


def _pieces(size: int) -> bytes:
    return varint(1) + varint(0) + varint(size)


def one_lane() -> bytes:
    """4 MiB of zeros in one lane of the entropy coder: in order to the last byte, and 4 M steps."""
    plan = [Operation(Kind.SUBTRACT, SEGMENT_BYTES)]
    return _segment(plan, _one_lane())


def _one_lane() -> bytes:
    return _with_model(Mode.ANS, bytes([0, 0, 1, 1, 1, 1]), _STATE)


def grouped() -> bytes:
    """The same, all of it in groups that are there."""
    flags = bytes([Mode.RUN, 1])
    stream = bytes([Mode.GROUPS, 12]) + varint(SEGMENT_BYTES) + varint(len(flags)) + flags
    return _segment([Operation(Kind.SUBTRACT, SEGMENT_BYTES)], stream + _one_lane())


def rows() -> bytes:
    """The row coder, one row at a time."""
    model = bytes([0, 1]) + varint(64 << 1) + b"\0"
    return _segment([Operation(Kind.SUBTRACT, 1 << 17)], _with_model(Mode.ROWS, model, _STATE))


def mixed() -> bytes:
    """Mixed text after as much text as may be."""
    stream = bytes([Mode.MIXED]) + _pieces(65_000) + b"text"
    return _segment([Operation(Kind.LITERAL, 500)], stream)


def dictionaries() -> bytes:
    """A few bytes with the whole old file as their dictionary, in every segment."""
    stream = bytes([Mode.ZSTD_DICTIONARY]) + _pieces(4 << 20) + b"frame"
    return _segment([Operation(Kind.LITERAL, 9)], stream)


def crumbs() -> bytes:
    """As many operations as a segment may have, of one byte each."""
    return _segment([Operation(Kind.COPY, 1, 0)] * operations.MAX_OPERATIONS)


def factors() -> bytes:
    """Outer products of 2^18 factors, each for one weight."""
    low_rank = LowRank(0, 1, 1 << 13, 32, 1, 0, 0, 0)
    plan = [Operation(Kind.SUBTRACT, 1, 0, low_rank=low_rank)] * 4096
    return _segment(plan, bytes([Mode.RUN, 0]))


def size_of(make: Callable[[], bytes]) -> int:
    """How much of the new file such a segment makes."""
    sizes = {
        one_lane: SEGMENT_BYTES,
        grouped: SEGMENT_BYTES,
        rows: 1 << 17,
        mixed: 500,
        dictionaries: 9,
        factors: 4096,
    }
    return sizes.get(make, operations.MAX_OPERATIONS)


def delta(make: Callable[[], bytes], count: int) -> bytes:
    """`count` such segments with a global block of 1 MiB of zeros, for the old file `OLD`."""
    body, size, block_size = make(), size_of(make), 1 << 20
    block = _segment([Operation(Kind.LITERAL, block_size)], bytes([Mode.RUN, 0]))
    header = encode_header(
        Layout.SEGMENTED,
        sizes=(len(OLD), count * size),
        sha256=(hashlib.sha256(OLD).digest(), bytes(32)),
        segments=[Segment(size, 0, len(body))] * count,
        global_size=block_size,
        global_coded_size=len(block),
    )
    return header + block + body * count
