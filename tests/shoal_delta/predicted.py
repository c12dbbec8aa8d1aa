"""A delta made by hand that holds every operation that predicts, and views: what no small model needs at once."""

import hashlib

import numpy as np

from shoal_delta import segment, views
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.decoding import reader_of
from shoal_delta.operations import Gains, Kind, Operation, Scaling
from shoal_delta.views import AxisMap, View, Views

# Long enough for the coder of text.
GRAPH = b"".join(b"layer%d.conv_%d(%d) -> " % (k % 7, k, k * k * 7919 % 1000) for k in range(34))


def old_file() -> bytes:
    """900 bytes of a pattern, then four float32 scales."""
    pattern = bytes((i * i // 7 + 3 * i) & 0xFF for i in range(900))
    return pattern + np.array([0.011, 0.02, 0.5, 1.25], "<f4").tobytes()


def changed_axes(old_size: int) -> Views:
    """A matrix of 20 x 30 that lost four columns and got one, and one of 8 x 16 that was turned."""
    kept = np.array([0, 1, 2, 3, 4, 5, 6, 9, 10, 11, -1, *range(14, 30)], np.int32)
    return Views(
        (View(40, 1, (20, AxisMap(30, kept)), 3), View(700, 1, (8, 16), 0, (1, 0))), old_size
    )


def predicted(old: bytes) -> tuple[bytes, bytes]:
    """(delta, new file) from `old`, which is at least as long as `old_file()` and ends as it does."""
    scales = len(old) - 16
    seen = changed_axes(len(old))
    read = seen.reader(reader_of(old))
    matrix, turned = seen.starts[:2]
    grown = np.frombuffer(old[scales:], "<f4") * np.float32(1.0625)
    block = grown.tobytes() + np.float32(0.3).tobytes()
    block += (grown * np.float32(0.3)).tobytes() + bytes([3, 0xF0, 0, 9])
    block_plan = [
        Operation(Kind.FLOAT32, 16, scales),
        Operation(Kind.PLANES32, 4),
        Operation(Kind.PRODUCT, 16, 0, factor=16),
        Operation(Kind.FRESH, 4),
    ]
    plan = [
        Operation(Kind.LITERAL, len(GRAPH)),
        Operation(Kind.GAINED_S8, 540, matrix, gains=Gains(0, 5, 4, 36, 10, 0, 1)),
        Operation(Kind.COPY, 128, turned),
        Operation(Kind.GAINED_U8, 100, 10, gains=Gains(7, 25, 4, 36, 8, 9, 0)),
        Operation(Kind.SCALED_I32, 160, 300, Scaling(0, 1, 4, scales, 0, 0, 0)),
        Operation(Kind.SCALED_S8, 27, matrix + 27, Scaling(27, 27, 2, scales, 20, 0, 0)),
        Operation(Kind.GLOBAL, 16, 20),
    ]
    size = sum(operation.size for operation in plan)
    moved = np.random.default_rng(3).integers(-1, 2, size).astype(np.uint8)
    base = (read(matrix, 540) + read(turned, 128) + old * 2)[: size - len(GRAPH)]
    new = (np.frombuffer(base, np.uint8) + moved[len(GRAPH) :]).tobytes()
    new = GRAPH + new[:540] + read(turned, 128) + new[668:-16] + block[20:36]
    coded = views.encode(seen) + segment.encode(block_plan, block, 0, read=read, block=block)
    body = segment.encode(plan, new, 0, read=read, block=block, prime=[(0, 60)])
    header = encode_header(
        Layout.SEGMENTED,
        sizes=(len(old), len(new)),
        sha256=(hashlib.sha256(old).digest(), hashlib.sha256(new).digest()),
        segments=[Segment(len(new), None, len(body))],
        global_size=len(block),
        global_coded_size=len(coded),
    )
    return header + coded + body, new
