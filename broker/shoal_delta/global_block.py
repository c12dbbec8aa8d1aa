"""Building the global block: what many operations refer to is in it once, scales and gains.

Which operation wants what is the planner's business; here each thing gets its place and the shortest
way to say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import products
from shoal_delta.coders import Reader
from shoal_delta.container import MAX_GLOBAL_BYTES
from shoal_delta.low_rank_fit import Factors as LowRankFactors
from shoal_delta.onnx_wire import FLOAT, SCALED_TYPES, Model, Tensor
from shoal_delta.operations import Kind, Operation

_FLOAT_BYTES = 4
# A product's operation is longer than a few numbers are.
_MIN_PRODUCT_BYTES = 32
_TOLERANCE = 2.0**-22

Factors = tuple[Tensor, Tensor]
"""Many numbers and the one that they are multiplied by."""


@dataclass(slots=True)
class GlobalBlock:
    """The block so far, and where in it tensors of the new file stand."""

    new: bytes
    read: Reader
    bases: Mapping[int, Tensor]
    factors: Mapping[int, Factors]
    content: bytearray = field(default_factory=bytearray)
    operations: list[Operation] = field(default_factory=list)
    _at: dict[int, int] = field(default_factory=dict)

    def where(self, tensor: Tensor) -> int | None:
        """Where `tensor` stands; None when it does not."""
        return self._at.get(tensor.offset)

    def place(self, tensor: Tensor) -> int | None:
        """Where `tensor` (float32) stands, from now on if need be; None when there is no room."""
        if tensor.offset in self._at:
            return self._at[tensor.offset]
        operation = self._product(tensor) or self._plain(tensor)
        at = self._add(content_of(self.new, tensor), operation)
        if at is not None:
            self._at[tensor.offset] = at
        return at

    def place_codes(self, codes: bytes) -> int | None:
        """Where `codes` (signed bytes) stand from now on; None when there is no room."""
        return self._add(codes, Operation(Kind.FRESH, len(codes)))

    def place_factors(self, factors: LowRankFactors) -> bool:
        """Let the factors of a low-rank update follow what is here; False when there is no room."""
        if len(self.content) + len(factors.data) > MAX_GLOBAL_BYTES:
            return False
        rank = factors.low_rank.rank
        kind = Kind.PLANES16 if factors.low_rank.width == 2 else Kind.FRESH  # noqa: PLR2004 - bytes
        self.content += factors.data
        self.operations += [
            Operation(kind, len(factors.left)),
            Operation(Kind.FRESH, rank),
            Operation(kind, len(factors.right) - rank),
        ]
        return True

    def _add(self, content: bytes, operation: Operation) -> int | None:
        at = len(self.content)
        if at + len(content) > MAX_GLOBAL_BYTES:
            return None
        self.content += content
        self.operations.append(operation)
        return at

    def _product(self, tensor: Tensor) -> Operation | None:
        if tensor.offset not in self.factors:
            return None
        many, one = (self.place(factor) for factor in self.factors[tensor.offset])
        if many is None or one is None:
            return None
        return Operation(Kind.PRODUCT, tensor.size, many, factor=one)

    def _plain(self, tensor: Tensor) -> Operation:
        base = self.bases.get(tensor.offset)
        if base is None or base.size != tensor.size or base.dtype != tensor.dtype:
            return Operation(Kind.PLANES32, tensor.size)
        is_same = self.read(base.offset, base.size) == content_of(self.new, tensor)
        return Operation(Kind.COPY if is_same else Kind.FLOAT32, tensor.size, base.offset)


def product_factors(file: bytes, model: Model) -> dict[int, Factors]:
    """The float32 tensors (by offset) that are another one times a single number, to the last bit.

    In a QDQ model the scale of a bias is the weights' scale times the input's.
    """
    scales = {tensor.scale for tensor in model.tensors if tensor.dtype in SCALED_TYPES}
    many: dict[int, list[Tensor]] = {}
    ones: list[Tensor] = []
    for tensor in model.tensors:
        if tensor.dtype == FLOAT and tensor.size == _FLOAT_BYTES:
            ones.append(tensor)
        elif tensor.name in scales and tensor.dtype == FLOAT:
            many.setdefault(tensor.size, []).append(tensor)
    singles = np.array([_floats(file, tensor)[0] for tensor in ones], dtype=np.float64)
    found = {}
    for tensor in model.tensors:
        if (
            tensor.dtype == FLOAT
            and tensor.name not in scales
            and tensor.size >= _MIN_PRODUCT_BYTES
        ):
            factors = _factors(file, tensor, many.get(tensor.size, []), ones, singles)
            if factors is not None:
                found[tensor.offset] = factors
    return found


def _factors(
    file: bytes,
    tensor: Tensor,
    many: list[Tensor],
    ones: list[Tensor],
    singles: npt.NDArray[np.float64],
) -> Factors | None:
    wanted, first = content_of(file, tensor), float(_floats(file, tensor)[0])
    for factors in many:
        product = singles * float(_floats(file, factors)[0])
        with np.errstate(invalid="ignore"):
            near = np.flatnonzero(np.abs(product - first) <= _TOLERANCE * abs(first))
        for index in near.tolist():
            if products(content_of(file, factors), content_of(file, ones[index])) == wanted:
                return factors, ones[index]
    return None


def content_of(file: bytes, tensor: Tensor) -> bytes:
    """The tensor's values as they stand in `file`."""
    return file[tensor.offset : tensor.offset + tensor.size]


def _floats(file: bytes, tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.frombuffer(file, "<f4", tensor.size // _FLOAT_BYTES, tensor.offset)
