"""A delta made by hand whose residuals are packed in mode 9; `make_golden` keeps it.

Numbers come from a congruence, not from a random generator, so that the file stays what it is.
"""

import hashlib
from collections.abc import Iterator
from unittest import mock

import numpy as np

from shoal_delta import row_streams, segment
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.contexts import predicted
from shoal_delta.decoding import reader_of
from shoal_delta.operations import Kind, Operation, Scaling

SCALES_AT, SCALES = 900, 4


def small_numbers(seed: int) -> Iterator[int]:
    """Numbers around 0, mostly -2 to 2."""
    state = seed
    while True:
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        yield (state >> 16 & 3) + (state >> 20 & 3) - 3


def delta(old: bytes) -> bytes:
    """From `old` (900 bytes, then four float32 scales): two matrices that moved by an outer product and a little."""
    block = b"".join(
        (int.from_bytes(old[at : at + 4], "little") + 0x40000).to_bytes(4, "little")
        for at in range(SCALES_AT, SCALES_AT + 4 * SCALES, 4)
    )
    read = reader_of(old)
    scaling = Scaling(0, 32, SCALES, SCALES_AT, 0, 1, -1)
    plan = [
        Operation(Kind.SUBTRACT, 28 * 31 + 5, 7, columns=28),
        Operation(Kind.SCALED_S8, 32 * 16, 64, scaling, columns=32),
    ]
    numbers, new = small_numbers(9), b""
    for operation in plan:
        rows, columns = -(-operation.size // operation.columns), operation.columns
        left = np.array([next(numbers) for _ in range(rows)])
        right = np.array([next(numbers) for _ in range(columns)])
        moved = np.outer(left, right).reshape(-1)[: operation.size]
        moved += np.array([next(numbers) // 2 for _ in range(operation.size)])
        # Far away, once: what the tables leave to raw bytes.
        moved[100] = 90
        new += (predicted(operation, read, block)[0] + moved.astype(np.uint8)).tobytes()
    scales = [Operation(Kind.FLOAT32, len(block), SCALES_AT)]
    packed_block = segment.encode(scales, block, 0, read=read)
    # A file so small would have one lane.
    with mock.patch.object(row_streams, "_BYTES_A_LANE", 64):
        body = segment.encode(plan, new, 0, read=read, block=block)
    header = encode_header(
        Layout.SEGMENTED,
        sizes=(len(old), len(new)),
        sha256=(hashlib.sha256(old).digest(), hashlib.sha256(new).digest()),
        segments=[Segment(len(new), None, len(body))],
        global_size=len(block),
        global_coded_size=len(packed_block),
    )
    return header + packed_block + body
