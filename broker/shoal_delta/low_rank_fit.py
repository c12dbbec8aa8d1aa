"""Finding the factors of a low-rank update: for the encoder only.

The delta must be the same on every machine, and no two BLAS add up in the same order. So whatever is
summed is a product of integer matrices small enough to be exact in binary64 (see `low_rank.updates`),
and everything else goes element by element, where IEEE 754 leaves no choice: subspace iteration with
its Gram matrices, a Jacobi eigenvalue solver, and rounding to integers in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import frexp, sqrt

import numpy as np
import numpy.typing as npt

from shoal_delta.low_rank import MAX_EXPONENT, MAX_RANK, MAX_RIGHT, MAX_SHIFT, LowRank, Reals

_EXACT_BITS = 53
_MATRIX_BITS = 24
_BASIS_BITS = 15
_GRAM_BITS = 18
_COEFFICIENT_BITS = 20
_ITERATIONS = 2
_SWEEPS = 8
_SMALLEST = 2.0**-30
# Below this there is nothing but noise: the largest singular value of noise is the square root of
# rows plus that of columns.
_MIN_EXCESS = 1.1
_SEED = 0x9E3779B9


@dataclass(frozen=True, slots=True)
class Basis:
    """The strongest components of a matrix, strongest first: unit vectors and squared strengths.

    `left` is [rows, components], `right` [columns, components]; `energy` is the whole matrix's.
    """

    left: Reals
    right: Reals
    strengths: tuple[float, ...]
    energy: float

    @property
    def elements(self) -> int:
        """How many the matrix has."""
        return len(self.left) * len(self.right)


@dataclass(frozen=True, slots=True)
class Factors:
    """A low-rank update as it is sent; `low_rank` is still to be placed."""

    low_rank: LowRank
    left: bytes
    right: bytes

    @property
    def data(self) -> bytes:
        """What must stand in the global block."""
        return self.left + self.right

    def placed(self, at: int) -> LowRank:
        """The update with its factors at `at` in the global block."""
        return replace(self.low_rank, left=at, right=at + len(self.left))


def basis(matrix: npt.NDArray[np.int64], max_rank: int = MAX_RANK) -> Basis | None:
    """The strongest components of a matrix of integers of `matrix_bits`, None when they are noise."""
    rows, columns = matrix.shape
    count = min(max_rank, rows // 2, columns // 2, MAX_RIGHT // columns)
    if count < 1:
        return None
    entries = matrix.astype(np.float64)
    if int(np.abs(matrix).max()).bit_length() > matrix_bits(matrix.shape):
        raise ValueError("the matrix is too large to be multiplied exactly")
    energy = _energy(matrix)
    if energy == 0:
        return None
    vectors = _integers(entries.T @ _signs(rows, count), _BASIS_BITS)
    for _ in range(_ITERATIONS):
        vectors = _orthogonal(entries.T @ _orthogonal(entries @ vectors))
    vectors = _orthogonal(entries @ vectors)
    norms = np.sqrt((vectors * vectors).astype(np.int64).sum(axis=0).astype(np.float64))
    present = norms > 0
    vectors, norms = vectors[:, present], norms[present]
    unit = vectors / norms
    image = (entries.T @ vectors) / norms
    scaled, exponent = _scaled(image, _gram_bits(columns))
    values, rotation = _eigen(scaled.T @ scaled)
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > _SMALLEST * values[order[0]]]
    values, rotation = values[order], np.rint(np.ldexp(rotation[:, order], _COEFFICIENT_BITS))
    strengths = np.ldexp(values, -2 * exponent)
    noise = energy / matrix.size * (sqrt(rows) + sqrt(columns)) ** 2
    if strengths[0] < _MIN_EXCESS * noise:
        return None
    left = np.rint(np.ldexp(unit, _COEFFICIENT_BITS)) @ rotation
    right = (scaled @ rotation) / np.sqrt(values)
    return Basis(
        np.ldexp(left, -2 * _COEFFICIENT_BITS),
        np.ldexp(right, -_COEFFICIENT_BITS),
        tuple(float(value) for value in strengths),
        energy,
    )


def matrix_bits(shape: tuple[int, int]) -> int:
    """How many bits the integers of a matrix may have."""
    return min(_MATRIX_BITS, _EXACT_BITS - _BASIS_BITS - max(shape).bit_length())


def factors(found: Basis, rank: int, *, noise: float = 0.0, unit: int = 0) -> Factors | None:
    """The first `rank` components, rounded to integers no finer than what they leave is worth.

    A factor's rounding adds to what is left in the whole row or column: it is right when that costs as
    many bits as a finer factor would. `noise` is the variance of what no prediction can know
    (rounding): components are made smaller by what of them is noise. The matrix counts in 2^`unit`.
    None when nothing is left of the components.
    """
    rows, columns = len(found.left), len(found.right)
    left_over = max(found.energy - sum(found.strengths[:rank]), 0.0) / found.elements
    left_over = max(left_over, 1 / 12)
    # Where little moves, rounding cannot be more than what is left.
    noise = min(noise, left_over)
    parts: list[tuple[Reals, Reals, int]] = []
    for number in range(min(rank, len(found.strengths))):
        strength = found.strengths[number]
        share = _signal(strength, noise, rows, columns)
        if share <= 0:
            break
        energy = strength * share * share / found.elements
        by_row = sqrt(energy * columns / (12 * left_over))
        by_column = sqrt(energy * rows / (12 * left_over))
        step = sqrt(energy) / (by_row * by_column)
        # A power of two: what it is off, both factors share.
        exponent = frexp(step * sqrt(0.5))[1]
        fix = sqrt(step / 2.0**exponent)
        parts.append(
            (
                found.left[:, number] * (by_row * fix * sqrt(rows)),
                found.right[:, number] * (by_column * fix * sqrt(columns)),
                exponent,
            )
        )
    return _sent(parts, rows, columns, unit) if parts else None


def _sent(
    parts: Sequence[tuple[Reals, Reals, int]], rows: int, columns: int, unit: int
) -> Factors | None:
    largest = max(max(np.abs(left).max(), np.abs(right).max()) for left, right, _ in parts)
    width = 1 if largest < 2 * 127 else 2
    lefts, rights, exponents = [], [], []
    for left, right, exponent in parts:
        coarser = 0
        while (
            max(np.abs(left).max(), np.abs(right).max()) * 2.0**-coarser > 2 ** (8 * width - 1) - 1
        ):
            coarser += 1
        lefts.append(np.rint(left * 2.0**-coarser))
        rights.append(np.rint(right * 2.0**-coarser))
        exponents.append(exponent + 2 * coarser)
    present = [k for k in range(len(lefts)) if lefts[k].any() and rights[k].any()]
    if not present:
        return None
    lowest = max(min(exponents[k] for k in present), max(exponents[k] for k in present) - MAX_SHIFT)
    shifts = [max(0, exponents[k] - lowest) for k in present]
    # What would need a shift below zero is too fine to matter.
    present = [k for k in present if exponents[k] >= lowest]
    shifts = [exponents[k] - lowest for k in present]
    if abs(lowest + unit) > MAX_EXPONENT:
        return None
    kind = f"<i{width}"
    low_rank = LowRank(0, rows, columns, len(present), width, 0, 0, lowest + unit)
    return Factors(
        low_rank,
        np.stack([lefts[k] for k in present]).astype(kind).tobytes(),
        bytes(shifts) + np.stack([rights[k] for k in present]).astype(kind).tobytes(),
    )


def _signal(strength: float, noise: float, rows: int, columns: int) -> float:
    """By what a component found in noise is multiplied (Gavish and Donoho, arXiv 1405.7511)."""
    if noise == 0:
        return 1.0
    excess = strength - noise * (rows + columns)
    rest = excess * excess - 4 * rows * columns * noise * noise
    return sqrt(rest) / strength if excess > 0 and rest > 0 else 0.0


def _energy(matrix: npt.NDArray[np.int64]) -> float:
    """The sum of squares, exact up to the conversion of each row's."""
    total = 0
    for row in matrix:
        total += int(np.dot(row, row))
    return float(total)


def _signs(rows: int, count: int) -> Reals:
    """Pseudo-random -1 and 1 [rows, count]: the bits of a multiplicative hash."""
    index = np.arange(1, rows * count + 1, dtype=np.uint64)
    mixed = index * np.uint64(_SEED)
    mixed ^= mixed >> np.uint64(15)
    mixed *= np.uint64(0x2C1B3C6D)
    bits = (mixed >> np.uint64(21)) & np.uint64(1)
    return bits.astype(np.float64).reshape(rows, count) * 2 - 1


def _scaled(values: Reals, bits: int) -> tuple[Reals, int]:
    """Integers below 2^bits in size, and the power of two they were multiplied by."""
    exponent = bits - frexp(float(np.abs(values).max()))[1]
    return np.rint(np.ldexp(values, exponent)), exponent


def _integers(values: Reals, bits: int) -> Reals:
    """Each column as integers below 2^bits in size, by a power of two of its own."""
    exponents = np.frexp(np.abs(values).max(axis=0))[1]
    out: Reals = np.rint(np.ldexp(values, bits - exponents))
    return out


def _gram_bits(length: int) -> int:
    return min(_GRAM_BITS, (_EXACT_BITS - length.bit_length()) // 2)


def _orthogonal(values: Reals) -> Reals:
    """Integer vectors that span what the columns do, at right angles but for rounding; 0 where none."""
    scaled = _integers(values, _gram_bits(len(values)))
    rotation = _inverse_root(scaled.T @ scaled)
    return _integers(scaled @ _integers(rotation, _COEFFICIENT_BITS), _BASIS_BITS)


def _inverse_root(gram: Reals) -> Reals:
    """R with R^T gram R = 1 (upper triangular, by Cholesky); a column of 0 for what is dependent."""
    size = len(gram)
    rest, lower = gram.copy(), np.zeros_like(gram)
    for k in range(size):
        if rest[k, k] > _SMALLEST * gram[k, k]:
            lower[k:, k] = rest[k:, k] / np.sqrt(rest[k, k])
            rest[k:, k:] -= lower[k:, k, None] * lower[None, k:, k]
    inverse = np.diag((np.diag(lower) > 0).astype(np.float64))
    for k in range(size):
        if lower[k, k] > 0:
            inverse[k] /= lower[k, k]
            inverse[k + 1 :] -= lower[k + 1 :, k, None] * inverse[None, k]
    inverse[np.diag(lower) == 0] = 0
    return inverse.T.copy()


def _eigen(gram: Reals) -> tuple[Reals, Reals]:
    """Eigenvalues and vectors (columns) of a symmetric matrix: Jacobi, disjoint rotations at once."""
    size = len(gram)
    padded = size + size % 2
    matrix = np.zeros((padded, padded))
    matrix[:size, :size] = gram
    vectors = np.eye(padded)
    order = np.arange(padded)
    for _ in range(_SWEEPS):
        for _ in range(padded - 1):
            first, second = order[: padded // 2], order[: padded // 2 - 1 : -1]
            _rotate(matrix, vectors, first, second)
            order = np.concatenate((order[:1], order[-1:], order[1:-1]))
        off = np.abs(matrix - np.diag(np.diag(matrix))).max()
        if off <= _SMALLEST * _SMALLEST * np.abs(np.diag(matrix)).max():
            break
    return np.diag(matrix)[:size].copy(), vectors[:size, :size]


def _rotate(
    matrix: Reals, vectors: Reals, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> None:
    """Make the elements between `first` and `second` zero, all pairs at once."""
    between = matrix[first, second]
    is_zero = between == 0
    ratio = (matrix[second, second] - matrix[first, first]) / (2 * np.where(is_zero, 1, between))
    ratio = np.clip(ratio, -(2.0**500), 2.0**500)
    tangent = np.where(ratio < 0, -1.0, 1.0) / (np.abs(ratio) + np.sqrt(ratio * ratio + 1))
    tangent = np.where(is_zero, 0.0, tangent)
    cosine = 1 / np.sqrt(tangent * tangent + 1)
    sine = tangent * cosine
    rows = matrix[first], matrix[second]
    matrix[first] = cosine[:, None] * rows[0] - sine[:, None] * rows[1]
    matrix[second] = sine[:, None] * rows[0] + cosine[:, None] * rows[1]
    for target in (matrix, vectors):
        columns = target[:, first], target[:, second]
        target[:, first] = cosine * columns[0] - sine * columns[1]
        target[:, second] = sine * columns[0] + cosine * columns[1]
