"""About how large a plan's delta becomes: to choose which plans are packed in earnest.

Each stream of the whole file through a quick zstd, or its entropy when that is less; integers, so that
every machine with the same zstd chooses the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from shoal_delta import operations
from shoal_delta.arithmetic import as_bytes
from shoal_delta.byte_coders import ZstdSizes, zstd_compress
from shoal_delta.coders import MAX_DICTIONARY_BYTES
from shoal_delta.decoding import reader_of
from shoal_delta.plan import Plan, cost_bits
from shoal_delta.segment import Stream, demands

_LEVEL, _STRONG_LEVEL = 3, 19
_STRONG_BYTES = 64 << 10
_MIN_DICTIONARY_LITERAL_BYTES = 64


# A plan that looks so much larger than the smallest, 1 in this and so many bytes, is not packed.
_EXCESS_SHARE, _EXCESS_BYTES = 8, 64


def promising(plans: Sequence[Plan], old: bytes, new: bytes, count: int) -> list[Plan]:
    """The `count` plans that look smallest, in the order they came in; fewer when the rest look hopeless.

    A plan with a global block is coded with contexts that no estimate knows: it is never hopeless.
    """
    if len(plans) == 1:
        return list(plans)
    base = _Base(old)
    sizes = [base.estimated_bytes(plan, new) for plan in plans]
    limit = min(sizes) + min(sizes) // _EXCESS_SHARE + _EXCESS_BYTES
    smallest = sorted(range(len(plans)), key=lambda index: sizes[index])[:count]
    return [plans[k] for k in sorted(smallest) if sizes[k] <= limit or plans[k].block]


class _Base:
    """The old file, for estimates of several plans: it is loaded as a dictionary once."""

    def __init__(self, old: bytes) -> None:
        self._old = old
        self._is_dictionary = len(old) <= MAX_DICTIONARY_BYTES

    @cached_property
    def _loaded(self) -> ZstdSizes:
        return ZstdSizes(self._old, _STRONG_LEVEL, _STRONG_BYTES)

    def estimated_bytes(self, plan: Plan, new: bytes) -> int:
        """About how many bytes the plan's streams take, headers left out."""
        read, position = plan.views.reader(reader_of(self._old)), 0
        streams: dict[Stream, list[bytes]] = {}
        for operation in plan.operations:
            piece = new[position : position + operation.size]
            position += operation.size
            for stream, data in demands(operation, piece, read, plan.block):
                streams.setdefault(stream, []).append(data)
        streams[Stream.OPERATIONS] = [operations.encode(list(plan.operations), 0)]
        if plan.block:
            streams.setdefault(Stream.LITERAL, []).append(plan.block)
        return sum(
            self._coded_bytes(b"".join(pieces), is_literal=stream is Stream.LITERAL)
            for stream, pieces in streams.items()
        )

    def _coded_bytes(self, raw: bytes, *, is_literal: bool) -> int:
        has_dictionary = (
            is_literal and self._is_dictionary and len(raw) >= _MIN_DICTIONARY_LITERAL_BYTES
        )
        if has_dictionary and len(raw) <= _STRONG_BYTES:
            quick = self._loaded.size(raw)
        else:
            level = _STRONG_LEVEL if len(raw) <= _STRONG_BYTES else _LEVEL
            quick = len(zstd_compress(raw, self._old if has_dictionary else b"", level))
        return min(len(raw), quick, cost_bits(as_bytes(raw)) // 8 + 1)
