"""About how large a plan's delta becomes: to choose which plans are packed in earnest.

Each stream of the whole file through a quick zstd, or its entropy when that is less; integers, so that
every machine with the same zstd chooses the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_delta import operations
from shoal_delta.arithmetic import as_bytes
from shoal_delta.byte_coders import zstd_compress
from shoal_delta.coders import MAX_DICTIONARY_BYTES
from shoal_delta.decoding import reader_of
from shoal_delta.plan import Plan, cost_bits
from shoal_delta.segment import Stream, demands

_LEVEL, _STRONG_LEVEL = 3, 19
_STRONG_BYTES = 64 << 10
_MIN_DICTIONARY_LITERAL_BYTES = 64


def promising(plans: Sequence[Plan], old: bytes, new: bytes, count: int) -> list[Plan]:
    """The `count` plans that look smallest, in the order they came in."""
    if len(plans) <= count:
        return list(plans)
    sizes = [estimated_bytes(plan, old, new) for plan in plans]
    chosen = sorted(sorted(range(len(plans)), key=lambda index: sizes[index])[:count])
    return [plans[index] for index in chosen]


def estimated_bytes(plan: Plan, old: bytes, new: bytes) -> int:
    """About how many bytes the plan's streams take, headers left out."""
    read, position = plan.views.reader(reader_of(old)), 0
    streams: dict[Stream, list[bytes]] = {}
    for operation in plan.operations:
        piece = new[position : position + operation.size]
        position += operation.size
        for stream, data in demands(operation, piece, read, plan.block):
            streams.setdefault(stream, []).append(data)
    streams[Stream.OPERATIONS] = [operations.encode(list(plan.operations), 0)]
    if plan.block:
        streams.setdefault(Stream.LITERAL, []).append(plan.block)
    is_small = len(old) <= MAX_DICTIONARY_BYTES
    return sum(
        _coded_bytes(b"".join(pieces), old if is_small and stream is Stream.LITERAL else b"")
        for stream, pieces in streams.items()
    )


def _coded_bytes(raw: bytes, dictionary: bytes) -> int:
    if len(raw) < _MIN_DICTIONARY_LITERAL_BYTES:
        dictionary = b""
    level = _STRONG_LEVEL if len(raw) <= _STRONG_BYTES else _LEVEL
    quick = len(zstd_compress(raw, dictionary, level))
    return min(len(raw), quick, cost_bits(as_bytes(raw)) // 8 + 1)
