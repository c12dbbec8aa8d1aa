"""How one tensor is made: every way that fits it is tried, the one estimated the smallest is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from shoal_delta import drift, float_plan, low_rank_plan, segment
from shoal_delta.arithmetic import as_bytes
from shoal_delta.contexts import expected
from shoal_delta.global_block import Factors, GlobalBlock, content_of, product_factors
from shoal_delta.onnx_wire import BFLOAT16, FLOAT, FLOAT16, INT16, INT32, UINT16, Model, Tensor
from shoal_delta.operations import PREDICTED, WIDTH, Kind, Operation, Scaling
from shoal_delta.plan import SLOW_CODER_BYTES, cost_bits
from shoal_delta.rescaling import GAINED_KIND, SCALED_KIND, channels_of, gain_codes, scale_of

# What each element type is tried as, besides plain subtraction and no base at all.
BASED = {
    FLOAT: Kind.FLOAT32,
    INT32: Kind.INTEGER32,
    FLOAT16: Kind.FLOAT16,
    BFLOAT16: Kind.FLOAT16,
    INT16: Kind.INTEGER16,
    UINT16: Kind.INTEGER16,
}
_FRESH = {2: Kind.PLANES16, 4: Kind.PLANES32}
# Below this a histogram says more about its table than about the values: take the old one as base.
_MIN_STATISTICS_BYTES = 64
_SCALING_COST_BITS = 16 * 8
_GAINS_COST_BITS = 12 * 8
_INTEGER_SCALING_COST_BITS = 8 * 8


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to make a tensor; `scale` is to be placed in the block before it is sent, or `codes`."""

    operation: Operation
    cost: int
    scale: Tensor | None = None
    codes: bytes = b""


@dataclass(slots=True)
class TensorPlanner:
    """Plans the new file's tensors one by one; what they share goes to the global block.

    `files`, `models`: (old, new). `matches` and `bases`: the old tensor of each new one (by offset), as
    it stands and as it is seen.
    """

    files: tuple[bytes, bytes]
    models: tuple[Model, Model]
    matches: Mapping[int, Tensor]
    bases: Mapping[int, Tensor]
    block: GlobalBlock
    _old_factors: dict[int, Factors] = field(init=False)

    def __post_init__(self) -> None:
        self._old_factors = product_factors(self.files[0], self.models[0])

    def operations(self, tensor: Tensor) -> list[Operation]:
        """What makes `tensor`."""
        base = self.bases.get(tensor.offset)
        if base is not None and self._is_same(tensor, base):
            return [Operation(Kind.COPY, tensor.size, base.offset)]
        if tensor.offset in self.block.factors and tensor.dtype == FLOAT:
            self.block.place(tensor)
        at = self.block.where(tensor)
        if at is not None:
            return [Operation(Kind.GLOBAL, tensor.size, at)]
        if base is None:
            return [self._fresh(tensor, tensor.offset, tensor.size).operation]
        width = WIDTH.get(BASED.get(tensor.dtype, Kind.COPY), 1)
        size = min(tensor.size, base.size)
        size -= size % width
        rest = tensor.size - size
        operations = [self._based(tensor, base, size)] if size else []
        if rest:
            operations.append(self._fresh(tensor, tensor.offset + size, rest).operation)
        return operations

    def _is_same(self, tensor: Tensor, base: Tensor) -> bool:
        return base.size == tensor.size and (
            self.block.read(base.offset, base.size) == content_of(self.files[1], tensor)
        )

    def _based(self, tensor: Tensor, base: Tensor, size: int) -> Operation:
        before = self.block.read(base.offset, size)
        after = self.files[1][tensor.offset : tensor.offset + size]
        if before == after:
            return Operation(Kind.COPY, size, base.offset)
        typed = BASED.get(tensor.dtype)
        ways = [self._tried(Operation(Kind.SUBTRACT, size, base.offset), after)]
        if typed is not None:
            ways.append(self._tried(Operation(typed, size, base.offset), after))
        if typed is Kind.FLOAT32:
            patterns = (np.frombuffer(data, dtype="<u4") for data in (before, after))
            cell, _ = float_plan.cheapest_cell(*patterns)
            ways.append(self._tried(Operation(Kind.STEPPED32, size, base.offset, cell=cell), after))
        if size >= _MIN_STATISTICS_BYTES:
            ways.append(self._fresh(tensor, tensor.offset, size))
        elif typed is not None:
            del ways[0]
        if size == tensor.size:
            ways += self._scaled(tensor, base, before, after)
            ways += self._scaled_integers(tensor, base, after)
        for way in sorted(ways, key=lambda way: way.cost):
            operation = self._settled(way)
            if operation is not None:
                return self._with_low_rank(operation, tensor, after)
        raise AssertionError("a tensor cannot be made at all")

    def _with_low_rank(self, operation: Operation, tensor: Tensor, after: bytes) -> Operation:
        """The operation with a low-rank update when it pays."""
        shape = low_rank_plan.matrix_shape(tensor.dims)
        elements = operation.size // WIDTH.get(operation.kind, 1)
        if operation.kind not in PREDICTED or shape is None or prod(shape) != elements:
            return operation
        read, block = self.block.read, bytes(self.block.content)
        if operation.kind is Kind.STEPPED32:
            best = low_rank_plan.float_attempt(operation, shape, after, read, block)
        else:
            is_learned = len(self.files[1]) <= SLOW_CODER_BYTES
            best = low_rank_plan.byte_attempt(
                operation, shape, after, read, block, is_learned=is_learned
            )
        if best is None or not self.block.place_factors(best[1]):
            return operation
        return best[0]

    def _fresh(self, tensor: Tensor, start: int, size: int) -> _Way:
        after = self.files[1][start : start + size]
        plain = self._tried(Operation(Kind.FRESH, size), after)
        kind = _FRESH.get(WIDTH.get(BASED.get(tensor.dtype, Kind.COPY), 1))
        if kind is None or size % WIDTH[kind]:
            return plain
        return min(self._tried(Operation(kind, size), after), plain, key=lambda way: way.cost)

    def _scaled(self, tensor: Tensor, base: Tensor, before: bytes, after: bytes) -> list[_Way]:
        """Weights on their new scales, and weights times gains that are sent."""
        match = self.matches[tensor.offset]
        channels = channels_of(self.files, self.models, (match, tensor))
        if channels is None:
            return []
        ways = []
        old_scale = self.bases.get(channels.scale.offset)
        if (
            old_scale is not None
            and old_scale.size == channels.scale.size
            and not self._is_same(channels.scale, old_scale)
        ):
            scaling = channels.scaling(old_scale.offset, 0)
            operation = Operation(SCALED_KIND[tensor.dtype], len(after), base.offset, scaling)
            scales = content_of(self.files[1], channels.scale)
            way = self._tried(operation, after, scales, _SCALING_COST_BITS)
            ways.append(replace(way, scale=channels.scale))
        found = gain_codes(channels, before, after)
        if found is not None:
            codes, bits = found
            gains = channels.gains(0, bits)
            operation = Operation(GAINED_KIND[tensor.dtype], len(after), base.offset, gains=gains)
            own = cost_bits(as_bytes(codes)) + _GAINS_COST_BITS
            ways.append(replace(self._tried(operation, after, codes, own), codes=codes))
        return ways

    def _scaled_integers(self, tensor: Tensor, base: Tensor, after: bytes) -> list[_Way]:
        """A bias on its new scale, or on its input's new scale when the weights' went with it."""
        scale = scale_of(self.models[1], tensor)
        if tensor.dtype != INT32 or scale is None or len(after) != base.size:
            return []
        old_scale = self.bases.get(scale.offset)
        pairs = [(old_scale, scale)] if old_scale is not None else []
        match = self.matches.get(scale.offset)
        if (
            match is not None
            and {match.offset, scale.offset}
            and scale.offset in self.block.factors
        ):
            old_factors = self._old_factors.get(match.offset)
            if old_factors is not None:
                pairs.append((old_factors[1], self.block.factors[scale.offset][1]))
        ways = []
        for old, new in pairs:
            if old.size == new.size and new.size in {4, len(after)} and not self._is_same(new, old):
                count = new.size // 4
                inner = len(after) // 4 if count == 1 else 1
                scaling = Scaling(0, inner, count, old.offset, 0, 0, 0)
                operation = Operation(Kind.SCALED_I32, len(after), base.offset, scaling)
                scales = content_of(self.files[1], new)
                way = self._tried(operation, after, scales, _INTEGER_SCALING_COST_BITS)
                ways.append(replace(way, scale=new))
        return ways

    def _settled(self, way: _Way) -> Operation | None:
        """The operation with its scales or gains placed; None when the global block is full."""
        operation = way.operation
        if way.scale is not None and operation.scaling is not None:
            at = self.block.place(way.scale)
            if at is None:
                return None
            return replace(operation, scaling=replace(operation.scaling, new_scales=at))
        if operation.gains is not None:
            at = self.block.place_codes(way.codes)
            if at is None:
                return None
            return replace(operation, gains=replace(operation.gains, codes=at))
        return operation

    def _tried(
        self, operation: Operation, after: bytes, block: bytes = b"", own_bits: int = 0
    ) -> _Way:
        """What `operation` costs, about; `block` is the global block as far as it needs one."""
        cost = own_bits
        read = self.block.read
        for stream, data in segment.demands(operation, after, read, block):
            values = as_bytes(data)
            if stream is segment.Stream.RESIDUAL:
                side = expected(operation, read, block).side
                ways = (drift.mirrored(values, side), values)
                cost += min(cost_bits(way, side & drift.CLASS) for way in ways)
            elif stream is segment.Stream.BITS:
                cost += 8 * len(data)
            else:
                cost += cost_bits(values)
        return _Way(operation, cost)
