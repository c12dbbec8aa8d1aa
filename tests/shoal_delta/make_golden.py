"""Makes `golden.json`: deltas that hold all that the format has. Run it when the format has more.

`.venv/bin/python tests/shoal_delta/make_golden.py` from the clone's top. A new kind of operation joins
by its entry in `_PLAN`; a new mode of stream by its entry in `WAYS`. The same format, the same zstd and
liblzma give the same file.
"""

import hashlib
import json
import runpy
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from shoal_delta import apply, byte_coders, coders, segment, solid
from shoal_delta.byte_coders import PROPERTIES
from shoal_delta.coders import Contexts, Mode
from shoal_delta.container import Layout, Segment, encode_header
from shoal_delta.decoding import reader_of
from shoal_delta.operations import Kind, Operation, Scaling

GOLDEN = Path(__file__).with_name("golden.json")
CHANNELS = 4
WEIGHTS = 900
# A pattern, then four float32 scales.
OLD = bytes((i * i // 7 + 3 * i) & 0xFF for i in range(WEIGHTS)) + b"".join(
    ((121 + i << 23) + 0x200000 * i).to_bytes(4, "little") for i in range(CHANNELS)
)
_SCALES = b"".join(((121 + i << 23) + 0x1C0000 * i).to_bytes(4, "little") for i in range(CHANNELS))
_SCALING = Scaling(0, 50, CHANNELS, WEIGHTS, 0, 3, -2)
_PLAN = [
    Operation(Kind.COPY, 40, 8),
    Operation(Kind.LITERAL, 90),
    Operation(Kind.FRESH, 150),
    Operation(Kind.SUBTRACT, 200, 100),
    Operation(Kind.INTEGER16, 160, 301),
    Operation(Kind.INTEGER32, 160, 461),
    Operation(Kind.FLOAT16, 60, 100),
    Operation(Kind.FLOAT32, 80, 160),
    Operation(Kind.PLANES16, 40),
    Operation(Kind.PLANES32, 80),
    Operation(Kind.SCALED_S8, 200, 0, _SCALING),
    Operation(Kind.SCALED_U8, 180, 40, Scaling(60, 30, CHANNELS, WEIGHTS, 0, 120, 131)),
    Operation(Kind.GLOBAL, 4 * CHANNELS, 0),
]
_SOLID = [
    Operation(Kind.COPY, 40, 8),
    Operation(Kind.SUBTRACT, 300, 100),
    Operation(Kind.LITERAL, 120),
    Operation(Kind.COPY, 300, 500),
]


def _lzma(index: int) -> Callable[..., bytes]:
    def pack(raw: bytes, **_options: object) -> bytes:
        return bytes([Mode.LZMA + index]) + byte_coders.lzma_pack(raw, PROPERTIES[index])

    return pack


def _ans(raw: bytes, *, contexts: Contexts | None = None, **_options: object) -> bytes:
    return coders.pack(raw) if contexts is None else coders._ans(raw, contexts, is_quick=False)


def _groups(raw: bytes, *, contexts: Contexts | None = None, **_options: object) -> bytes:
    is_possible = contexts is not None and any(raw)
    return coders._groups(raw, contexts, 2) if is_possible else coders.pack(raw)


def _dictionary(raw: bytes, *, dictionary=(), read=None, **_options: object) -> bytes:
    if not dictionary:
        return coders.pack(raw)
    return coders._pack_with_dictionary(raw, dictionary, read, 19)


WAYS: dict[str, Callable[..., bytes]] = {
    "chosen": coders.pack,
    "raw": lambda raw, **_options: bytes([Mode.RAW]) + raw,
    "zstd": lambda raw, **_options: bytes([Mode.ZSTD]) + byte_coders.zstd_compress(raw),
    "zstd-dictionary": _dictionary,
    **{f"lzma-{index}": _lzma(index) for index in range(len(PROPERTIES))},
    "ans": _ans,
    "bzip2": lambda raw, **_options: bytes([Mode.BZIP2]) + byte_coders.bzip2_pack(raw),
    "groups": _groups,
}


def _made_of(plan: list[Operation]) -> bytes:
    """What the plan makes of `OLD` and moderate residuals."""
    rng = np.random.default_rng(20)
    text = b"a graph of nodes; " * 10
    out = b""
    for operation in plan:
        size, old = operation.size, OLD[operation.source : operation.source + operation.size]
        match operation.kind:
            case Kind.COPY:
                out += old
            case Kind.GLOBAL:
                out += _SCALES[operation.source : operation.source + size]
            case Kind.LITERAL:
                out += text[:size]
            case Kind.FRESH | Kind.PLANES16 | Kind.PLANES32:
                out += np.cumsum(rng.integers(-2, 4, size)).astype(np.uint8).tobytes()
            case _:
                moved = rng.integers(-2, 3, size) * (np.arange(size) % 4 == 0)
                out += (np.frombuffer(old, np.uint8) + moved.astype(np.uint8)).tobytes()
    return out


def _delta(layout: Layout, new: bytes, sizes: list[Segment], body: bytes, **sizes_of: int) -> bytes:
    digests = tuple(hashlib.sha256(file).digest() for file in (OLD, new))
    header = encode_header(
        layout, sizes=(len(OLD), len(new)), sha256=digests, segments=sizes, **sizes_of
    )
    return header + body


def _segmented(pack: Callable[..., bytes]) -> bytes:
    """Two segments and a copy between them, with a table and a global block."""
    read, new = reader_of(OLD), _made_of(_PLAN)
    half = len(_PLAN) // 2
    with mock.patch.object(segment, "pack", pack):
        block = segment.encode(
            [Operation(Kind.FLOAT32, len(_SCALES), WEIGHTS)], _SCALES, 0, read=read
        )
        bodies, entries, start, out = [], [], 0, b""
        for plan in (_PLAN[:half], [Operation(Kind.COPY, 100, 30)], _PLAN[half:]):
            size = sum(operation.size for operation in plan)
            is_copy = len(plan) == 1
            piece = OLD[30:130] if is_copy else new[start : start + size]
            body = (
                b""
                if is_copy
                else segment.encode(
                    plan,
                    piece,
                    len(out),
                    read=read,
                    block=_SCALES,
                    dictionary=[(0, 300), (500, 200)],
                )
            )
            entries.append(Segment(size, zlib.crc32(piece), len(body), 30 if is_copy else None))
            bodies.append(body)
            start += 0 if is_copy else size
            out += piece
    sizes = {"global_size": len(_SCALES), "global_coded_size": len(block)}
    return _delta(Layout.SEGMENTED, out, entries, block + b"".join(bodies), **sizes)


def _one_segment() -> bytes:
    plan = _SOLID
    new = _made_of(plan)
    body = segment.encode(plan, new, 0, read=reader_of(OLD))
    return _delta(Layout.SEGMENTED, new, [Segment(len(new), None, len(body))], body)


def _solid(way: Callable[[bytes], bytes]) -> bytes:
    new = _made_of(_SOLID)
    with mock.patch.object(solid, "_packed", way):
        body = solid.encode(_SOLID, new, reader_of(OLD))
    return _delta(Layout.SOLID, new, [Segment(len(new), None, len(body))], body)


def _of(file: str, name: str) -> Callable[[bytes], Any]:
    """By path: run as a program there is no package of tests around this file."""
    found: Callable[[bytes], Any] = runpy.run_path(str(Path(__file__).with_name(file)))[name]
    return found


def golden() -> dict[str, dict[str, str]]:
    """name: sha256 of the new file, and the delta in hexadecimal."""
    deltas = {f"segmented-{name}": _segmented(pack) for name, pack in WAYS.items()}
    deltas["one-segment"] = _one_segment()
    for name in ("raw", "zstd", "lzma-0", "lzma-1", "lzma-2", "lzma-3", "bzip2"):
        deltas[f"solid-{name}"] = _solid(WAYS[name])
    same = [Segment(len(OLD), None, copy_from=0)]
    deltas["predicted"] = _of("predicted.py", "predicted")(OLD)[0]
    deltas["rows"] = _of("golden_rows.py", "delta")(OLD)
    deltas["low-rank"] = _of("golden_low_rank.py", "delta")(OLD)
    deltas["same"] = _delta(Layout.SEGMENTED, OLD, same, b"")
    return {
        name: {"sha256": hashlib.sha256(apply(OLD, delta)).hexdigest(), "delta": delta.hex()}
        for name, delta in deltas.items()
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
