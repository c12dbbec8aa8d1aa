"""How much work a delta is, counted before any of it is done: what keeps a hostile one from taking hours.

Sizes say little of time: some coders take a thousand times as long a byte as others, and so do operations
of one byte each. A unit is about 0.1 ms of a desktop's core. Format: docs/delta-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_delta import ans, groups, row_streams
from shoal_delta.coders import Mode, Reader, unpack
from shoal_delta.errors import CorruptDeltaError, LimitError
from shoal_delta.operations import Operation
from shoal_delta.row_coder import MAX_LANE_BITS, Matrix, effort
from shoal_delta.wire import Cursor

MAX_WORK = 1 << 18
"""Of a delta, whatever it makes: some half a minute, and for a small model far more than it needs ..."""
MAX_WORK_SHIFT = 8
"""... and so many bits less than the new file's bytes: a quarter of the speed that large models want."""

# What a segment costs, and a stream in it; of the coders with tables more is to be set up.
_SEGMENT, _STREAM, _TABLES = 2, 1, 32
# So many steps of mode 8, bytes of a dictionary and factors of low rank are one unit.
_STEPS_SHIFT, _DICTIONARY_SHIFT, _FACTORS_SHIFT = 3, 17, 14
# An operation on a view gathers what it reads.
_VIEW = 2


class Work:
    """Adds up the work of a delta that makes `new_size` bytes."""

    def __init__(self, new_size: int) -> None:
        self.limit = MAX_WORK + (new_size >> MAX_WORK_SHIFT)
        self.units = 0

    def add(self, units: int) -> None:
        """Raises `LimitError` when it becomes too much."""
        self.units += units
        if self.units > self.limit:
            raise LimitError(
                f"the delta asks for more work than {self.limit} units: "
                "it would take minutes to apply"
            )

    def add_segment(self) -> None:
        """A segment that is not a copy."""
        self.add(_SEGMENT)

    def add_operations(self, plan: Sequence[Operation], old_size: int) -> None:
        """What the operations take apart from their streams; views begin at `old_size`."""
        self.add(len(plan))
        for operation in plan:
            if operation.source >= old_size:
                self.add(_VIEW)
            if (low_rank := operation.low_rank) is not None:
                self.add(low_rank.rank * low_rank.columns >> _FACTORS_SHIFT)

    def add_stream(self, packed: bytes, size: int, matrices: Sequence[int], read: Reader) -> None:
        """What it takes to unpack a stream of `size` bytes, the numbers of `matrices` when it has some."""
        cursor = Cursor(packed)
        mode = cursor.byte()
        self.add(_STREAM)
        match mode:
            case Mode.ZSTD_DICTIONARY:
                self.add(_pieces(cursor) >> _DICTIONARY_SHIFT)
            case Mode.MIXED:
                self.add(_TABLES + size + _pieces(cursor))
            case Mode.ANS:
                steps = ans.steps(_model(cursor, read, ans.MAX_MODEL_BYTES), size)
                self.add(_TABLES + (steps >> _STEPS_SHIFT))
            case Mode.GROUPS:
                bits, count = cursor.byte(), cursor.number()
                if not 1 <= bits <= groups.MAX_BITS or count > size:
                    raise CorruptDeltaError("groups of numbers are not possible")
                flags = cursor.take(cursor.number())
                self._add_counted(flags, groups.count(size, bits), read)
                self._add_counted(cursor.take(cursor.remaining), count, read)
            case Mode.ROWS:
                self.add(
                    _TABLES + _rows(_model(cursor, read, row_streams.MAX_MODEL_BYTES), matrices)
                )

    def _add_counted(self, packed: bytes, size: int, read: Reader) -> None:
        """A stream within a stream; it has none itself, which who unpacks it looks at."""
        if packed[:1] and packed[0] <= Mode.ANS:
            self.add_stream(packed, size, (), read)


def _pieces(cursor: Cursor) -> int:
    """The bytes of the old file that a stream begins with."""
    total = 0
    for _ in range(cursor.number()):
        cursor.number()
        total += cursor.number()
    return total


def _model(cursor: Cursor, read: Reader, max_bytes: int) -> Cursor:
    size, packed_size = cursor.number(), cursor.number()
    packed = cursor.take(packed_size)
    if size > max_bytes or (packed[:1] and packed[0] >= Mode.ANS):
        raise CorruptDeltaError("an entropy coder's model is not possible")
    return Cursor(unpack(packed, size, read))


def _rows(model: Cursor, matrices: Sequence[int]) -> int:
    lane_bits, _reach = model.byte(), model.byte()
    found = []
    for size in matrices:
        shape, strength = model.number(), model.byte()
        found.append(Matrix(size, shape >> 1, bool(shape & 1), strength))
        if not 1 <= shape >> 1 <= size or lane_bits > MAX_LANE_BITS:
            raise CorruptDeltaError("a row coder's matrix is not possible")
    return effort(found, 1 << lane_bits)
