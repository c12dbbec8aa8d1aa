"""Whether a low-rank update pays for a tensor, and of what rank: tried out, by estimated bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from shoal_delta import contexts, float_plan, groups
from shoal_delta.arithmetic import DRIFT_BITS, UPDATE_BITS, Bytes, Drift, as_bytes
from shoal_delta.coders import Reader
from shoal_delta.information import entropy, residual_bits
from shoal_delta.low_rank_fit import Basis, Factors, basis, factors
from shoal_delta.operations import Operation

# Each is tried until it has got worse twice.
_RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_PATIENCE = 2
_MIN_SIDE, _MIN_ELEMENTS = 8, 2048
_PLACE_BITS = 16 * 8
# What the row coder saves without being told anything: factors must save more.
_LEARNED_SHARE = 4
_FACTOR_BITS = 8
# Components share tables in the block: so much more than each one's entropy.
_TABLES_SHIFT = 3
# The variance of two roundings, the old weight's and the new one's, in 1/256 of a step.
_ROUNDING = (1 << 2 * UPDATE_BITS) / 6

Cost = Callable[[Factors], int]
"""Bits of the residuals with an update."""


def matrix_shape(dims: tuple[int, ...]) -> tuple[int, int] | None:
    """The tensor as a matrix, as square as it gets without moving a weight; None: not worth it."""
    shape = [dim for dim in dims if dim > 1]
    shapes = [(prod(shape[:k]), prod(shape[k:])) for k in range(1, len(shape))]
    rows, columns = min(shapes, key=sum, default=(0, 0))
    is_worth_it = min(rows, columns) >= _MIN_SIDE and rows * columns >= _MIN_ELEMENTS
    return (rows, columns) if is_worth_it else None


def _residuals(residual: Bytes, lost: Drift | None) -> npt.NDArray[np.int64]:
    """How far each weight is from where the prediction had it before rounding, in 1/256."""
    far = residual.view(np.int8).astype(np.int64) << UPDATE_BITS
    return far if lost is None else far - (lost >> DRIFT_BITS - UPDATE_BITS)


def byte_attempt(
    operation: Operation,
    shape: tuple[int, int],
    content: bytes,
    read: Reader,
    block: bytes,
    *,
    is_learned: bool,
) -> tuple[Operation, Factors] | None:
    """The operation on quantised weights with an update whose factors are to follow `block`, if it pays.

    `is_learned`: the row coder, which learns what it can of the update as it goes, may come after.
    """
    after = as_bytes(content)

    def cost(tried: Factors | None) -> int:
        low_rank = None if tried is None else tried.placed(len(block))
        data = b"" if tried is None else tried.data
        moved = replace(operation, low_rank=low_rank)
        known = contexts.expected(moved, read, block + data)
        return residual_bits(after - known.weights, known.side)

    weights, lost = contexts.predicted(operation, read, block)
    residuals = after - weights
    if groups.is_worth_trying(residuals):
        # What moved in a few rows only is said shorter by leaving out the others.
        return None
    matrix = _residuals(residuals, lost)
    found = basis(matrix.reshape(shape))
    budget = cost(None)
    if is_learned:
        budget -= budget // _LEARNED_SHARE
    best = None if found is None else _cheapest(found, cost, budget, noise=_ROUNDING, unit=0)
    if best is None:
        return None
    return replace(operation, low_rank=best.placed(len(block))), best


def float_attempt(
    operation: Operation, shape: tuple[int, int], content: bytes, read: Reader, block: bytes
) -> tuple[Operation, Factors] | None:
    """The same for float weights; the cell is chosen anew."""
    old = np.frombuffer(read(operation.source, operation.size), dtype="<u4")
    new = np.frombuffer(content, dtype="<u4")
    moves = float_plan.movements(old, new, shape)
    if moves is None:
        return None
    matrix, unit = moves

    def tried_out(tried: Factors) -> tuple[Operation, int]:
        moved = replace(operation, low_rank=tried.placed(len(block)))
        numbers = contexts.expected_floats(moved, read, block + tried.data)
        cell, _ = float_plan.cheapest_cell(numbers, new)
        moved = replace(moved, cell=cell)
        side = contexts.steps_side(moved, block + tried.data)
        return moved, float_plan.bits_of(numbers, new, cell, side)

    found = basis(matrix)
    budget = float_plan.bits_of(old, new, operation.cell, None)
    best = None
    if found is not None:
        best = _cheapest(found, lambda tried: tried_out(tried)[1], budget, noise=0.0, unit=unit)
    return None if best is None else (tried_out(best)[0], best)


def _cheapest(found: Basis, cost: Cost, budget: int, *, noise: float, unit: int) -> Factors | None:
    """The factors with which the tensor takes the fewest bits; None: not below `budget`."""
    best, least, worse = None, None, 0
    for rank in _RANKS:
        if rank > len(found.strengths) or worse == _PATIENCE:
            break
        tried = factors(found, rank, noise=noise, unit=unit)
        if tried is None:
            break
        bits = cost(tried) + _sent_bits(tried) + _PLACE_BITS
        worse += 1
        if least is None or bits < least:
            best, least, worse = tried, bits, 0
    return best if least is not None and least < budget else None


def _sent_bits(tried: Factors) -> int:
    low_rank = tried.low_rank
    kind = np.dtype(f"<i{low_rank.width}")
    bits = low_rank.rank * _FACTOR_BITS
    for side in (tried.left, tried.right[low_rank.rank :]):
        for component in np.frombuffer(side, dtype=kind).reshape(low_rank.rank, -1):
            planes = component.view(np.uint8).reshape(-1, low_rank.width).T
            bits += sum(entropy(np.bincount(plane, minlength=256)[None]) for plane in planes)
    return bits + (bits >> _TABLES_SHIFT)
