"""Weights on a grid of integer levels: a fresh grid, or the old release's, so that the delta stays small.

Pure numpy. A weight is `scale * (level - zero_point)`, with one scale for all or one a channel. On the old
scales a weight that hardly moved is the same byte; the price is the error of a grid made for other weights,
which is bounded here channel by channel. Whether the model is still good is for `guard` to say.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Levels = NDArray[Any]

NOISE_BOUND: Final = 1.25
"""A channel keeps its old scale up to so many times the noise power of a fresh one (1 dB)."""

# Quantisers divide in float32: on the same scale a weight next to a tie may fall to either side.
_TIE: Final = 1e-3
_TINY: Final = 1e-30


@dataclass(frozen=True, slots=True)
class Grid:
    """Where levels lie.

    Attributes:
        scale: float32, of one value or one a channel.
        zero_point: as many, of the levels' own dtype.
        axis: the dimension of the weight that `scale` runs along; None: one scale for all.
        lowest, highest: the levels that may be used.
    """

    scale: NDArray[np.float32]
    zero_point: Levels
    axis: int | None
    lowest: int
    highest: int

    def along(self, values: NDArray[Any], rank: int) -> NDArray[Any]:
        """`values`, one a channel, shaped so that they go with a weight of this rank."""
        if self.axis is None:
            return values.reshape([1] * rank)
        return values.reshape([-1 if k == self.axis else 1 for k in range(rank)])

    def steps(self, weight: NDArray[Any]) -> Floats:
        """The weight in steps from zero point 0, not rounded."""
        scale = self.along(self.scale.astype(np.float64), weight.ndim)
        zero = self.along(self.zero_point.astype(np.float64), weight.ndim)
        return np.asarray(weight.astype(np.float64) / scale + zero)

    def quantised(self, weight: NDArray[Any]) -> Levels:
        """The nearest levels; what lies outside is clipped. NaN is the zero point."""
        return self.rounded(np.where(np.isnan(weight), 0.0, self.steps(weight)))

    def rounded(self, steps: Floats) -> Levels:
        """Steps as levels."""
        levels = np.clip(np.rint(steps), self.lowest, self.highest)
        return levels.astype(self.zero_point.dtype)

    def values(self, levels: Levels) -> Floats:
        """The weights that the levels stand for."""
        scale = self.along(self.scale.astype(np.float64), levels.ndim)
        zero = self.along(self.zero_point.astype(np.float64), levels.ndim)
        return np.asarray((levels.astype(np.float64) - zero) * scale)

    def noise(self, weight: NDArray[Any], levels: Levels) -> Floats:
        """Mean square error by channel: [channels], or [1] with one scale for all."""
        error = np.square(weight.astype(np.float64) - self.values(levels))
        if self.axis is None:
            return np.array([error.mean()])
        others = tuple(k for k in range(weight.ndim) if k != self.axis)
        return np.asarray(error.mean(axis=others))


@dataclass(frozen=True, slots=True)
class Requantised:
    """A weight as it goes into the new release.

    Attributes:
        levels: the integers of the file.
        grid: the scales of the file; some channels' are the old ones.
        kept: which channels kept their old scale.
        noise_ratio: noise power over that of the fresh grid, all channels together.
        carry: what this release leaves unsaid of each weight, float32. For the next `tau` > 0.
    """

    levels: Levels
    grid: Grid
    kept: NDArray[np.bool_]
    noise_ratio: float
    carry: NDArray[np.float32]


def on_old_scales(
    weight: NDArray[Any],
    fresh: Grid,
    old: Grid,
    old_levels: Levels,
    *,
    tau: float = 0.0,
    carried: NDArray[Any] | None = None,
    noise_bound: float = NOISE_BOUND,
) -> Requantised:
    """`weight` on the old scales wherever the bound allows, else on the fresh ones.

    A channel keeps its old scale when its rounding error's power stays within `noise_bound` times that on
    the fresh scale, or times a twelfth of its step squared, which rounding costs; what outgrew its old range is clipped, which the bound sees. With `tau` > 0 a weight of
    such a channel keeps its old level unless it lies more than 0.5 + `tau` steps from it: it may then be off
    by as much, which the bound does not see. That is what the accuracy gate is for.

    Args:
        weight: float, as trained.
        fresh: the grid made for it.
        old: the old release's grid, of the same shape and dtype.
        old_levels: the old release's levels, shaped like `weight`.
        tau: the dead band beyond half a step.
        carried: the `carry` of the old release, when training began from its INT8 weights: they do not
            know what it left unsaid.
        noise_bound: at least 1.

    Raises:
        ValueError: the shapes or dtypes do not go together.
    """
    if (
        old_levels.shape != weight.shape
        or old.scale.shape != fresh.scale.shape
        or old.axis != fresh.axis
        or old.zero_point.dtype != fresh.zero_point.dtype
        or (carried is not None and carried.shape != weight.shape)
    ):
        raise ValueError("the old weight has another shape or type")
    wish = weight.astype(np.float64) if carried is None else weight.astype(np.float64) + carried
    fresh_levels = fresh.quantised(wish)
    limited = replace(old, lowest=fresh.lowest, highest=fresh.highest)
    old_noise = limited.noise(wish, limited.quantised(wish))
    fresh_noise = fresh.noise(wish, fresh_levels)
    # Weights that lie on the fresh grid by luck ask no more of the old one than others do.
    expected = np.maximum(fresh_noise, np.square(fresh.scale.astype(np.float64)) / 12)
    kept = _usable(old.scale) & (old_noise <= noise_bound * expected)
    grid = Grid(
        scale=np.where(kept, old.scale, fresh.scale).astype(np.float32),
        zero_point=np.where(kept, old.zero_point, fresh.zero_point).astype(fresh.zero_point.dtype),
        axis=fresh.axis,
        lowest=fresh.lowest,
        highest=fresh.highest,
    )
    steps = grid.steps(np.where(np.isnan(wish), 0.0, wish))
    levels = grid.rounded(steps)
    may_stay = (
        grid.along(kept, weight.ndim)
        & (np.abs(steps - old_levels) <= 0.5 + max(tau, _TIE))
        & (old_levels >= grid.lowest)
        & (old_levels <= grid.highest)
    )
    levels = np.where(may_stay, old_levels, levels).astype(levels.dtype)
    ratio = grid.noise(wish, levels).sum() / max(float(fresh_noise.sum()), _TINY)
    return Requantised(
        levels=levels,
        grid=grid,
        kept=kept,
        noise_ratio=float(ratio),
        carry=(wish - grid.values(levels)).astype(np.float32),
    )


def _usable(scale: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.isfinite(scale) & (scale > 0)
