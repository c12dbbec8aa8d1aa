"""The entropy coder's model: which context uses which table, and the tables' frequencies.

Chosen by the encoder, sent in front of the stream. Integers only, so that every machine chooses and
reads the same. It codes nothing: see `ans`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes
from shoal_delta.errors import CorruptDeltaError
from shoal_delta.wire import Cursor, varint

SCALE_BITS = 14
ACTIVITIES = 8
MAX_SIDES = 32
MAX_TABLES = 16
LOG_FRACTION_BITS = 10
SYMBOLS = 256

Counts = npt.NDArray[np.int64]

_LOG_BITS = 12
_TABLED = 1 << 14
_TABLE_COST = 8 << 10
_SYMBOL_COST = 5 << 10
# A board unpacks in two thirds of the time without activities: what gains less than 1/512 is not worth it.
_PLAIN_SHIFT = 9


@dataclass(frozen=True, slots=True)
class Model:
    """`tables[context]` is a row of `frequencies`, whose rows each add up to 2^14.

    The context is activity * `sides` + side.
    """

    sides: int
    tables: Bytes
    frequencies: Counts

    @property
    def knows_activity(self) -> bool:
        """Whether a context's table depends on the activity."""
        by_activity = self.tables.reshape(ACTIVITIES, self.sides)
        return bool((by_activity != by_activity[0]).any())


@cache
def _levels() -> Counts:
    """What the codes of frequencies stand for: 0, 1 ... 8, then steps of an eighth, up to 2^14."""
    levels = list(range(9))
    while levels[-1] < 1 << SCALE_BITS:
        levels.append(levels[-1] + (levels[-1] >> 3))
    return np.array(levels, dtype=np.int64)


def chosen(counts: Counts, sides: int) -> tuple[Model, bytes]:
    """The model for `counts` [contexts, 256], and its bytes: without activities when they gain little."""
    tables, merged = _clustered(counts)
    plain = counts.reshape(ACTIVITIES, sides, SYMBOLS).sum(axis=0)
    plain_tables, plain_merged = _clustered(plain)
    bits = int(_costs(merged).sum())
    if int(_costs(plain_merged).sum()) - (bits >> _PLAIN_SHIFT) <= bits:
        tables, merged = np.tile(plain_tables, ACTIVITIES), plain_merged
    alphabet = int(np.flatnonzero(merged.any(axis=0))[-1]) + 1
    merged = merged[:, :alphabet]
    levels = _levels()
    shares = (merged << SCALE_BITS - 1) // merged.max(axis=1, keepdims=True)
    codes = np.searchsorted((levels[1:-1] + levels[2:]) // 2, shares, side="left") + 1
    codes = np.where(merged > 0, codes, 0).astype(np.uint8)
    raw = varint(len(merged)) + varint(alphabet) + varint(sides)
    raw += tables.tobytes() if len(merged) > 1 else b""
    raw += codes.tobytes()
    return Model(sides, tables, _frequencies(codes)), raw


def parsed(raw: bytes) -> Model:
    """The model in `raw`. Raises `CorruptDeltaError`."""
    cursor = Cursor(raw)
    count, alphabet, sides = cursor.number(), cursor.number(), cursor.number()
    if not (1 <= count <= MAX_TABLES and 1 <= alphabet <= SYMBOLS and 1 <= sides <= MAX_SIDES):
        raise CorruptDeltaError("an entropy coder's tables are not possible")
    contexts = ACTIVITIES * sides
    tables = np.zeros(contexts, dtype=np.uint8)
    if count > 1:
        tables = np.frombuffer(cursor.take(contexts), dtype=np.uint8)
    codes = np.frombuffer(cursor.take(count * alphabet), dtype=np.uint8).reshape(count, alphabet)
    if cursor.remaining or tables.max() >= count or codes.max() >= len(_levels()):
        raise CorruptDeltaError("an entropy coder's tables are not possible")
    if not codes.any(axis=1).all():
        raise CorruptDeltaError("an entropy coder's table is empty")
    return Model(sides, tables, _frequencies(codes))


def _frequencies(codes: Bytes) -> Counts:
    """Frequencies [tables, 256] that add up to 2^14, at least 1 for every symbol that has a code."""
    weights = np.zeros((len(codes), SYMBOLS), dtype=np.int64)
    weights[:, : codes.shape[1]] = _levels()[codes]
    present = weights > 0
    spare = (1 << SCALE_BITS) - present.sum(axis=1, keepdims=True)
    out: Counts = present + weights * spare // weights.sum(axis=1, keepdims=True)
    rows = np.arange(len(out))
    out[rows, out.argmax(axis=1)] += (1 << SCALE_BITS) - out.sum(axis=1)
    return out


def _clustered(counts: Counts) -> tuple[Bytes, Counts]:
    """Contexts that are alike share a table: the table of each context, and the tables' counts.

    Greedy: the two whose union costs the least more are joined, as long as that saves bits.
    """
    used = np.flatnonzero(counts.any(axis=1))
    symbols = np.flatnonzero(counts.any(axis=0))
    clusters = counts[np.ix_(used, symbols)]
    members = [[int(context)] for context in used]
    costs = _costs(clusters)
    pairs = np.stack([_costs(clusters + row) for row in clusters]) - costs - costs[:, None]
    never = np.iinfo(np.int64).max
    np.fill_diagonal(pairs, never)
    while len(members) > 1:
        best = int(pairs.argmin())
        first, second = sorted(divmod(best, len(members)))
        if pairs.flat[best] >= 0 and len(members) <= MAX_TABLES:
            break
        members[first] += members.pop(second)
        clusters[first] += clusters[second]
        clusters = np.delete(clusters, second, axis=0)
        pairs = np.delete(np.delete(pairs, second, axis=0), second, axis=1)
        costs = np.delete(costs, second)
        costs[first] = _costs(clusters[first : first + 1])[0]
        row = _costs(clusters + clusters[first]) - costs - costs[first]
        row[first] = never
        pairs[first], pairs[:, first] = row, row
    tables = np.zeros(len(counts), dtype=np.int64)
    tables[:] = -1
    for number, contexts in enumerate(members):
        tables[contexts] = number
    # A context that does not occur repeats the one before it: shorter to say.
    last = np.maximum.accumulate(np.where(tables >= 0, np.arange(len(tables)), -1))
    tables = np.where(last >= 0, tables[last], tables[used[0]])
    whole = np.zeros((len(members), counts.shape[1]), dtype=np.int64)
    whole[:, symbols] = clusters
    return tables.astype(np.uint8), whole


def _costs(counts: Counts) -> Counts:
    """About how many bits each row takes in a table of its own, the table included, in 1/1024."""
    totals: Counts = counts.sum(axis=1)
    own: Counts = (counts * log2(counts)).sum(axis=1)
    present: Counts = (counts > 0).sum(axis=1)
    return totals * log2(totals) - own + _TABLE_COST + _SYMBOL_COST * present


def log2(values: Counts) -> Counts:
    """log2 in 1/1024 (of 0: 0), the same on every machine; of integers from 0 on."""
    # Most are small: a table is a third of the work.
    if int(values.max(initial=0)) < _TABLED:
        return _small_logarithms()[values]
    return _log2(values)


@cache
def _small_logarithms() -> Counts:
    return _log2(np.arange(_TABLED, dtype=np.int64))


def _log2(values: Counts) -> Counts:
    _, bits = np.frexp(values.astype(np.float64))
    shift = bits.astype(np.int64) - 1 - _LOG_BITS
    mantissa = np.where(shift > 0, values >> np.maximum(shift, 0), values << np.maximum(-shift, 0))
    whole = (bits.astype(np.int64) - 1) << 10
    part = _logarithms()[np.maximum(mantissa - (1 << _LOG_BITS), 0)]
    return np.where(values > 0, whole + part, np.int64(0))


@cache
def _logarithms() -> Counts:
    """log2(1 + i / 4096) in 1/1024, bit by bit by squaring."""
    out = []
    for index in range(1 << _LOG_BITS):
        value, bits = ((1 << _LOG_BITS) + index) << 18, 0
        for _ in range(10):
            value = value * value >> 30
            bits <<= 1
            if value >> 31:
                value >>= 1
                bits |= 1
        out.append(bits)
    return np.array(out, dtype=np.int64)
