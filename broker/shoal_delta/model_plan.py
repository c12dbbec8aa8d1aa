"""The plan for two ONNX models: each tensor against its old self, the graph against the old graph.

Tensors are matched by name, then by content, then by shape; each is built in the way that is
estimated the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shoal_delta import segment
from shoal_delta.arithmetic import as_bytes
from shoal_delta.coders import MAX_DICTIONARY_BYTES, Span
from shoal_delta.container import MAX_GLOBAL_BYTES
from shoal_delta.decoding import reader_of
from shoal_delta.onnx_wire import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT16,
    INT32,
    UINT16,
    Model,
    Tensor,
    walk,
)
from shoal_delta.operations import WIDTH, Kind, Operation
from shoal_delta.plan import (
    MIN_COPY_BYTES,
    Plan,
    changed_runs,
    common_prefix,
    common_suffix,
    cost_bits,
    merged,
)
from shoal_delta.rescaling import SCALED_KIND, Rescaling, rescaling
from shoal_delta.tensor_match import match_tensors

# What each element type is tried as, besides plain subtraction and no base at all.
_BASED = {
    FLOAT: Kind.FLOAT32,
    INT32: Kind.INTEGER32,
    FLOAT16: Kind.FLOAT16,
    BFLOAT16: Kind.FLOAT16,
    INT16: Kind.INTEGER16,
    UINT16: Kind.INTEGER16,
}
_FRESH = {2: Kind.PLANES16, 4: Kind.PLANES32}
# Smaller ones that are no numbers of the network (shapes, axes) belong to the skeleton.
_MIN_TENSOR_BYTES = 32
# Below this a histogram says more about its table than about the values: take the old one as base.
_MIN_STATISTICS_BYTES = 64
_SCALING_COST_BITS = 16 * 8
_WHOLE_FILE_DICTIONARY_BYTES = 1 << 20
_MIN_DICTIONARY_SPAN_BYTES = 512
_MAX_DICTIONARY_SPANS = 32


def model_plan(old: bytes, new: bytes) -> Plan | None:
    """The plan for two models, or None when one of the files is none."""
    before, after = walk(old), walk(new)
    if before is None or after is None:
        return None
    return _Planner(old, new, before, after).plan()


@dataclass(slots=True)
class _Planner:
    old: bytes
    new: bytes
    before: Model
    after: Model
    _block: bytearray = field(default_factory=bytearray)
    _block_operations: list[Operation] = field(default_factory=list)
    _scales_at: dict[int, int] = field(default_factory=dict)

    def plan(self) -> Plan:
        old_tensors, new_tensors = _worthwhile(self.before), _worthwhile(self.after)
        matches = match_tensors(self.old, self.new, old_tensors, new_tensors)
        pieces = _pieces(old_tensors, len(self.old))
        piece_before = dict(zip((t.offset for t in old_tensors), pieces, strict=False))
        # Weights first: they decide which scales must stand in the global block.
        built = {
            t.offset: self._tensor(t, matches.get(t.offset))
            for t in sorted(new_tensors, key=lambda t: t.dtype not in SCALED_KIND)
        }
        operations: list[Operation] = []
        for tensor, piece in zip(new_tensors, _pieces(new_tensors, len(self.new)), strict=False):
            match = matches.get(tensor.offset)
            base = piece_before[match.offset] if match is not None else (0, 0)
            operations += self._skeleton(base, piece)
            operations += built[tensor.offset]
        operations += self._skeleton(pieces[-1], _pieces(new_tensors, len(self.new))[-1])
        spans = self._dictionary(pieces)
        return Plan(
            merged(operations),
            lambda _start, _size: spans,
            bytes(self._block),
            tuple(self._block_operations),
        )

    def _tensor(self, tensor: Tensor, match: Tensor | None) -> list[Operation]:
        if tensor.offset in self._scales_at:
            return [Operation(Kind.GLOBAL, tensor.size, self._scales_at[tensor.offset])]
        if match is None:
            return [self._fresh(tensor, tensor.offset, tensor.size)]
        width = WIDTH.get(_BASED.get(tensor.dtype, Kind.COPY), 1)
        size = min(tensor.size, match.size)
        size -= size % width
        rest = tensor.size - size
        operations = [self._based(tensor, match, size)] if size else []
        if rest:
            operations.append(self._fresh(tensor, tensor.offset + size, rest))
        return operations

    def _based(self, tensor: Tensor, match: Tensor, size: int) -> Operation:
        before = self.old[match.offset : match.offset + size]
        after = self.new[tensor.offset : tensor.offset + size]
        if before == after:
            return Operation(Kind.COPY, size, match.offset)
        typed = _BASED.get(tensor.dtype)
        if size < _MIN_STATISTICS_BYTES:
            return Operation(typed or Kind.SUBTRACT, size, match.offset)
        ways = [Operation(Kind.SUBTRACT, size, match.offset)]
        if typed is not None:
            ways.append(Operation(typed, size, match.offset))
        ways.append(self._fresh(tensor, tensor.offset, size))
        best, cost = self._cheapest(ways, after, b"")
        move = rescaling((self.old, self.new), (self.before, self.after), (match, tensor))
        if move is None:
            return best
        scales = self.new[move.new_scale.offset : move.new_scale.offset + move.new_scale.size]
        scaled = Operation(move.kind, size, match.offset, move.scaling)
        _, scaled_cost = self._cheapest([scaled], after, scales)
        at = self._place(move, scales) if scaled_cost + _SCALING_COST_BITS < cost else None
        if at is None:
            return best
        return replace(scaled, scaling=replace(move.scaling, new_scales=at))

    def _fresh(self, tensor: Tensor, start: int, size: int) -> Operation:
        plain = Operation(Kind.FRESH, size)
        kind = _FRESH.get(WIDTH.get(_BASED.get(tensor.dtype, Kind.COPY), 1))
        if kind is None or size % WIDTH[kind]:
            return plain
        after = self.new[start : start + size]
        return self._cheapest([Operation(kind, size), plain], after, b"")[0]

    def _cheapest(
        self, ways: list[Operation], after: bytes, scales: bytes
    ) -> tuple[Operation, int]:
        read = reader_of(self.old)
        costs = [
            sum(cost_bits(as_bytes(data)) for _, data in segment.demands(way, after, read, scales))
            for way in ways
        ]
        best = costs.index(min(costs))
        return ways[best], costs[best]

    def _place(self, move: Rescaling, scales: bytes) -> int | None:
        """Where the new scales stand in the global block; None when it is full."""
        if move.new_scale.offset not in self._scales_at:
            if len(self._block) + len(scales) > MAX_GLOBAL_BYTES:
                return None
            self._scales_at[move.new_scale.offset] = len(self._block)
            self._block += scales
            source = move.old_scale.offset
            self._block_operations.append(Operation(Kind.FLOAT32, len(scales), source))
        return self._scales_at[move.new_scale.offset]

    def _skeleton(self, base: Span, piece: Span) -> list[Operation]:
        source, before = base[0], self.old[base[0] : sum(base)]
        after = self.new[piece[0] : sum(piece)]
        if len(before) == len(after):
            return changed_runs(as_bytes(before), as_bytes(after), source, Kind.LITERAL)
        front = common_prefix(before, after)
        front = front if front >= MIN_COPY_BYTES else 0
        back = common_suffix(before[front:], after[front:])
        back = back if back >= MIN_COPY_BYTES else 0
        return [
            Operation(Kind.COPY, front, source),
            Operation(Kind.LITERAL, len(after) - front - back),
            Operation(Kind.COPY, back, source + len(before) - back),
        ]

    def _dictionary(self, pieces: Sequence[Span]) -> list[Span]:
        """The old graph; of a small file all of it, which is shorter to say."""
        if len(self.old) <= _WHOLE_FILE_DICTIONARY_BYTES:
            return [(0, len(self.old))]
        large = sorted(pieces, key=lambda piece: -piece[1])[:_MAX_DICTIONARY_SPANS]
        spans, left = [], MAX_DICTIONARY_BYTES
        for offset, size in large:
            if size >= _MIN_DICTIONARY_SPAN_BYTES and left:
                spans.append((offset, min(size, left)))
                left -= spans[-1][1]
        return sorted(spans)


def _worthwhile(model: Model) -> list[Tensor]:
    """The tensors that get operations of their own, in file order."""
    return [t for t in model.tensors if t.size >= _MIN_TENSOR_BYTES or t.dtype in _BASED]


def _pieces(tensors: Sequence[Tensor], size: int) -> list[Span]:
    """What stands before each tensor and after the last one: (offset, size)."""
    ends = [0, *(tensor.offset + tensor.size for tensor in tensors)]
    starts = [*(tensor.offset for tensor in tensors), size]
    return [(end, start - end) for end, start in zip(ends, starts, strict=True)]
