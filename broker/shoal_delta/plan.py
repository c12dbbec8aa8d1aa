"""What a plan is, and the plans for files of any kind: operations for the whole new file.

Choosing by estimate only; packing and cutting into segments is `encode`'s business. Estimates are
integers, so that every machine makes the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from shoal_delta.ans_model import LOG_FRACTION_BITS, Counts, log2
from shoal_delta.arithmetic import Bytes, as_bytes
from shoal_delta.coders import MAX_DICTIONARY_BYTES, Span
from shoal_delta.matcher import Match, matches, searches
from shoal_delta.operations import FROM_OLD, Kind, Operation
from shoal_delta.views import Views

MIN_COPY_BYTES = 16
SLOW_CODER_BYTES = 1 << 20
"""Up to here a board may take some seconds for all weights: larger models want 10 MB a second."""
_SYMBOLS = 256
_SYMBOL_BITS = 6
_TABLE_BITS = 60
_MERGEABLE = frozenset({Kind.COPY, Kind.SUBTRACT, Kind.LITERAL, Kind.FRESH})


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations that make the new file from front to end, and those that make the global block.

    `dictionary(start, size)` says which spans of the old file help to pack that stretch's literals, `prime`
    where in it text of their kind stands.
    """

    operations: tuple[Operation, ...]
    dictionary: Callable[[int, int], Sequence[Span]]
    block: bytes = b""
    block_operations: tuple[Operation, ...] = ()
    views: Views = field(default_factory=Views)
    prime: Sequence[Span] = ()


def generic_plans(old: bytes, new: bytes) -> list[Plan]:
    """Plans that know nothing of the files: what was matched, in three ways, and equal offsets."""
    based = min(len(new), len(old))
    rest = Operation(Kind.LITERAL, len(new) - based)
    ways = [
        [Operation(Kind.LITERAL, len(new))],
        [Operation(Kind.SUBTRACT, based), rest],
        *(way for found in searches(old, new) for way in _ways(old, new, found)),
    ]

    def around(start: int, size: int) -> list[Span]:
        spare = max(0, MAX_DICTIONARY_BYTES - size) // 2
        first = min(max(0, start - spare), max(0, len(old) - MAX_DICTIONARY_BYTES))
        return [(first, min(MAX_DICTIONARY_BYTES, len(old) - first))] if old else []

    return [Plan(way, around) for way in dict.fromkeys(map(merged, ways))]


def _ways(old: bytes, new: bytes, found: Sequence[Match]) -> list[list[Operation]]:
    """What is matched in each way of `Changed`, in their order; the runs are looked for once."""
    runs = matched(old, new, found, Changed.RUNS_SUBTRACTED)
    literal = [
        Operation(Kind.LITERAL, each.size) if each.kind is Kind.SUBTRACT else each for each in runs
    ]
    return [matched(old, new, found, Changed.SUBTRACTED), runs, literal]


def stretch(old: bytes, new: bytes, source: int) -> list[Operation]:
    """Operations that make the stretch `new` of literals and of the stretch `old`, which begins at `source`."""
    return matched(old, new, matches(old, new), Changed.RUNS_LITERAL, source=source)


class Changed(Enum):
    """What becomes of a match that is not exact."""

    SUBTRACTED = auto()
    """One subtraction of all of it."""
    RUNS_SUBTRACTED = auto()
    """Copies where it agrees for long, subtractions in between."""
    RUNS_LITERAL = auto()
    """Copies where it agrees for long, literals in between."""


def matched(
    old: bytes, new: bytes, found: Sequence[Match], changed: Changed, source: int = 0
) -> list[Operation]:
    """Operations that make `new`: matches in the way of `changed`, literals where nothing matches.

    `old` and `new` may be stretches of their files, and the matches of these; `source` is where `old`
    begins.
    """
    operations: list[Operation] = []
    position = 0
    for match in found:
        operations.append(Operation(Kind.LITERAL, match.start - position))
        position, base = match.end, source + match.source
        before = as_bytes(old[match.source : match.source + match.size])
        after = as_bytes(new[match.start : match.end])
        if changed is Changed.SUBTRACTED:
            is_same = bool((before == after).all())
            kind = Kind.COPY if is_same else Kind.SUBTRACT
            operations.append(Operation(kind, match.size, base))
            continue
        otherwise = Kind.SUBTRACT if changed is Changed.RUNS_SUBTRACTED else Kind.LITERAL
        operations += changed_runs(before, after, base, otherwise)
    operations.append(Operation(Kind.LITERAL, len(new) - position))
    return operations


def changed_runs(old: Bytes, new: Bytes, source: int, otherwise: Kind) -> list[Operation]:
    """Copies where two pieces of equal length agree for long, `otherwise` in between."""
    if old.size == 0:
        return []
    changed = np.flatnonzero(old != new)
    # A run of changes ends where at least MIN_COPY_BYTES agree.
    breaks = np.flatnonzero(np.diff(changed) > MIN_COPY_BYTES)
    starts = changed[np.concatenate(([0], breaks + 1))] if changed.size else changed
    ends = changed[np.concatenate((breaks, [changed.size - 1]))] + 1 if changed.size else changed
    operations, position = [], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        operations.append(Operation(Kind.COPY, start - position, source + position))
        operations.append(Operation(otherwise, end - start, source + start))
        position = end
    operations.append(Operation(Kind.COPY, old.size - position, source + position))
    return operations


def merged(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The same work in fewer operations: empty ones dropped, neighbours joined."""
    out: list[Operation] = []
    for operation in operations:
        if operation.size == 0:
            continue
        last = out[-1] if out else None
        if (
            last is not None
            and last.kind is operation.kind
            and last.kind in _MERGEABLE
            and last.low_rank is None
            and operation.low_rank is None
            and (last.kind not in FROM_OLD or last.source + last.size == operation.source)
        ):
            out[-1] = Operation(last.kind, last.size + operation.size, last.source)
        elif operation.kind in {Kind.LITERAL, Kind.FRESH}:
            out.append(Operation(operation.kind, operation.size))
        else:
            out.append(operation)
    return tuple(out)


def common_prefix(old: bytes, new: bytes) -> int:
    """How many bytes at the front are the same."""
    size = min(len(old), len(new))
    changed = np.flatnonzero(as_bytes(old[:size]) != as_bytes(new[:size]))
    return int(changed[0]) if changed.size else size


def common_suffix(old: bytes, new: bytes) -> int:
    """How many bytes at the end are the same."""
    size = min(len(old), len(new))
    if size == 0:
        return 0
    changed = np.flatnonzero(as_bytes(old[-size:]) != as_bytes(new[-size:]))
    return size - 1 - int(changed[-1]) if changed.size else size


def cost_bits(symbols: Bytes, side: Bytes | None = None) -> int:
    """About how many bits an entropy coder takes, its table included.

    With `side`, each symbol has one of a few contexts, when tables for them pay.
    """
    counts = np.bincount(symbols.reshape(-1), minlength=_SYMBOLS)
    bits = _entropy_bits(counts.reshape(1, _SYMBOLS))
    if side is not None:
        both = side.astype(np.int64) << 8 | symbols
        rows = np.bincount(both, minlength=_SYMBOLS * (int(side.max(initial=0)) + 1))
        rows = rows.reshape(-1, _SYMBOLS)
        tables = int(np.count_nonzero(rows.any(axis=1)))
        bits = min(bits, _entropy_bits(rows) + _TABLE_BITS * max(0, tables - 1))
    return bits + _SYMBOL_BITS * int(np.count_nonzero(counts))


def _entropy_bits(rows: Counts) -> int:
    """What symbols take whose counts [contexts, 256] are known."""
    totals: Counts = rows.sum(axis=1)
    return int((totals * log2(totals)).sum() - (rows * log2(rows)).sum()) >> LOG_FRACTION_BITS
