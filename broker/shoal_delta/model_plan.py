"""The plan for two ONNX models: each tensor against its old self, the graph against the old graph.

Tensors are matched by name, then by content, then by shape; each is built in the way that is
estimated the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from shoal_delta import mixing
from shoal_delta.coders import MAX_DICTIONARY_BYTES, Span
from shoal_delta.decoding import reader_of
from shoal_delta.global_block import GlobalBlock, product_factors
from shoal_delta.lineup import lined_up
from shoal_delta.onnx_wire import INT32, SCALED_TYPES, Model, Tensor, walk
from shoal_delta.operations import Operation
from shoal_delta.plan import Plan, merged
from shoal_delta.skeleton import Skeleton
from shoal_delta.tensor_match import match_tensors
from shoal_delta.tensor_plan import BASED, TensorPlanner

# Smaller ones that are no numbers of the network (shapes, axes) belong to the skeleton.
_MIN_TENSOR_BYTES = 32
_WHOLE_FILE_DICTIONARY_BYTES = 1 << 20
_MIN_DICTIONARY_SPAN_BYTES = 512
_MAX_DICTIONARY_SPANS = 32
_MIN_PRIME_SPAN_BYTES = 100


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

    def plan(self) -> Plan:
        old_tensors, new_tensors = _worthwhile(self.before), _worthwhile(self.after)
        files, models = (self.old, self.new), (self.before, self.after)
        matches = match_tensors(files, models, old_tensors, new_tensors)
        bases, views = lined_up(files, self.after, matches)
        block = GlobalBlock(
            self.new,
            views.reader(reader_of(self.old)),
            bases,
            product_factors(self.new, self.after),
        )
        tensors = TensorPlanner(files, models, matches, bases, block)
        built = {
            t.offset: _with_columns(tensors.operations(t), t)
            for t in sorted(new_tensors, key=lambda t: _turn(t, block))
        }
        old_pieces = _pieces(old_tensors, len(self.old))
        skeleton = Skeleton((self.old, self.new), (self.before, self.after), matches)
        operations: list[Operation] = []
        for tensor, piece in zip(new_tensors, _pieces(new_tensors, len(self.new)), strict=False):
            operations += skeleton.operations(piece)
            operations += built[tensor.offset]
        operations += skeleton.operations(_pieces(new_tensors, len(self.new))[-1])
        spans = self._dictionary(old_pieces)
        if views.views and not block.content:
            # Views stand in front of the block: there must be one.
            block.place_codes(b"\0")
        return Plan(
            merged(operations),
            lambda _start, _size: spans,
            bytes(block.content),
            tuple(block.operations),
            views,
            self._prime(old_pieces),
        )

    def _prime(self, pieces: Sequence[Span]) -> list[Span]:
        """The old graph without what is scattered between small tensors."""
        spans: list[Span] = []
        left = mixing.MAX_BYTES // 2
        for offset, size in sorted(pieces, key=lambda piece: -piece[1])[:_MAX_DICTIONARY_SPANS]:
            if size >= _MIN_PRIME_SPAN_BYTES and left:
                spans.append((offset, min(size, left)))
                left -= spans[-1][1]
        return sorted(spans)

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


def _turn(tensor: Tensor, block: GlobalBlock) -> int:
    """Whose turn it is: whatever decides what stands in the global block comes before what stands there."""
    if tensor.dtype in SCALED_TYPES:
        return 0
    if tensor.dtype == INT32:
        return 1
    return 2 if tensor.offset in block.factors else 3


def _worthwhile(model: Model) -> list[Tensor]:
    """The tensors that get operations of their own, in file order."""
    return [t for t in model.tensors if t.size >= _MIN_TENSOR_BYTES or t.dtype in BASED]


def _with_columns(operations: list[Operation], tensor: Tensor) -> list[Operation]:
    columns = prod(tensor.dims[1:]) if len(tensor.dims) > 1 else 0
    return [replace(operation, columns=columns) for operation in operations]


def _pieces(tensors: Sequence[Tensor], size: int) -> list[Span]:
    """What stands before each tensor and after the last one: (offset, size)."""
    ends = [0, *(tensor.offset + tensor.size for tensor in tensors)]
    starts = [*(tensor.offset for tensor in tensors), size]
    return [(end, start - end) for end, start in zip(ends, starts, strict=True)]
