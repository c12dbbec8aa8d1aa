"""A delta made by hand that holds low-rank updates and stepped floats; `make_golden` keeps it.

Factors and movements come from congruences, so that the file stays what it is.
"""

import hashlib

import numpy as np

from shoal_delta import contexts, segment
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.decoding import reader_of
from shoal_delta.low_rank import LowRank
from shoal_delta.operations import Kind, Operation, Scaling

SCALES = b"".join(((121 + i << 23) + 0x1C0000 * i).to_bytes(4, "little") for i in range(4))


def pattern(count: int, step: int, limit: int) -> np.ndarray:
    return (np.arange(1, count + 1) * step * 7919 >> 3) % (2 * limit + 1) - limit


NARROW = (
    pattern(2 * 12, 5, 9).astype("i1").tobytes()
    + bytes([0, 3])
    + pattern(2 * 15, 3, 12).astype("i1").tobytes()
)
WIDE = (
    pattern(1 * 10, 11, 3000).astype("<i2").tobytes()
    + bytes([1])
    + pattern(1 * 6, 13, 2000).astype("<i2").tobytes()
)
BLOCK = SCALES + NARROW + WIDE
WIDE_AT = len(SCALES) + len(NARROW)
UPDATE = LowRank(0, 12, 15, 2, 1, 16, 16 + 24, -1)
LATER_UPDATE = LowRank(37, 12, 15, 2, 1, 16, 40, 1)
WIDE_UPDATE = LowRank(0, 10, 6, 1, 2, WIDE_AT, WIDE_AT + 20, -28)
BLOCK_PLAN = [
    Operation(Kind.FLOAT32, 16, 900),
    Operation(Kind.FRESH, len(NARROW)),
    Operation(Kind.PLANES16, 20),
    Operation(Kind.FRESH, 1),
    Operation(Kind.PLANES16, 12),
]
PLAN = [
    Operation(Kind.SUBTRACT, 180, 100, low_rank=UPDATE),
    Operation(Kind.SCALED_S8, 180, 300, Scaling(0, 15, 4, 900, 0, 3, -2), low_rank=UPDATE),
    Operation(Kind.SCALED_U8, 100, 40, Scaling(37, 15, 4, 900, 0, 120, 131), low_rank=LATER_UPDATE),
    Operation(Kind.STEPPED32, 200, 520, cell=110),
    Operation(Kind.STEPPED32, 240, 640, low_rank=WIDE_UPDATE, cell=105),
]


def delta(old: bytes) -> bytes:
    """From `old`: 900 bytes, then four float32 scales."""
    read, out = reader_of(old), b""
    for operation in PLAN:
        count = operation.size
        if operation.kind is Kind.STEPPED32:
            numbers = contexts.expected_floats(operation, read, BLOCK).astype(np.int64)
            out += (numbers + pattern(count // 4, 17, 90_000)).astype("<u4").tobytes()
        else:
            weights = contexts.predicted(operation, read, BLOCK)[0]
            out += (weights + pattern(count, 17, 2).astype(np.uint8)).tobytes()
    block = segment.encode(BLOCK_PLAN, BLOCK, 0, read=read)
    body = segment.encode(PLAN, out, 0, read=read, block=BLOCK)
    header = encode_header(
        Layout.SEGMENTED,
        sizes=(len(old), len(out)),
        sha256=(hashlib.sha256(old).digest(), hashlib.sha256(out).digest()),
        segments=[Segment(len(out), None, len(body))],
        global_size=len(BLOCK),
        global_coded_size=len(block),
    )
    return header + block + body
