"""What the networks of the delta's corpus have in common, in jax: weights, a loss, Adam, low-rank updates.

It knows nothing of files, ONNX or INT8: see `exporting`. Weights are a flat dict of float32 arrays,
named as the initialisers will be; shapes decide everything, so that a pruned network is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Weights = dict[str, Array]
Batch = tuple[Array, Array]
# Running statistics of a normalisation: moved by batches, not by gradients.
STATISTICS = (".mean", ".variance")
RANK = 4


class Loss(Protocol):
    """Mean loss of a batch, and the running statistics after it (none when they are frozen)."""

    def __call__(self, weights: Weights, batch: Batch, *, is_frozen: bool) -> tuple[Array, Weights]:
        """See the class."""


@dataclass(frozen=True, slots=True)
class Network:
    """One family: first weights, batches for ever, loss."""

    name: str
    initial: Callable[[np.random.Generator], Weights]
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    loss: Loss
    head: tuple[str, ...]
    """The last layer's weights: what "head only" trains."""


def train(
    network: Network,
    weights: Weights,
    *,
    steps: int,
    rate: float,
    seed: int,
    only: Sequence[str] = (),
) -> Weights:
    """`steps` of Adam with a cosine rate on batches that the seed decides; the given weights stay.

    With `only`, nothing else moves, running statistics neither.
    """
    statistics = {name: value for name, value in weights.items() if name.endswith(STATISTICS)}
    trained = {name: weights[name] for name in (only or weights) if name not in statistics}
    batches = network.batches(np.random.default_rng(seed))
    first = jax.tree.map(jnp.zeros_like, trained)
    second = jax.tree.map(jnp.zeros_like, trained)
    step_of = _step(network.loss, is_frozen=bool(only))
    for number in range(1, steps + 1):
        pace = rate * 0.5 * (1 + np.cos(np.pi * (number - 1) / steps))
        trained, moved, first, second = step_of(
            trained,
            weights | statistics,
            first,
            second,
            next(batches),
            jnp.float32(pace),
            jnp.float32(number),
        )
        statistics |= moved
    return weights | trained | statistics


def train_low_rank(
    network: Network, weights: Weights, names: Sequence[str], *, steps: int, rate: float, seed: int
) -> Weights:
    """LoRA, merged: only a product of rank 4 is added to each of the named matrices."""
    rng = np.random.default_rng(seed)
    factors: Weights = {}
    for name in names:
        rows, columns = weights[name].shape
        factors[f"{name}.down"] = normal(rng, (rows, RANK), rows)
        factors[f"{name}.up"] = jnp.zeros((RANK, columns))

    def merged(parts: Weights) -> Weights:
        return weights | {
            name: weights[name] + parts[f"{name}.down"] @ parts[f"{name}.up"] for name in names
        }

    def loss(parts: Weights, batch: Batch, *, is_frozen: bool) -> tuple[Array, Weights]:
        return network.loss(merged(parts), batch, is_frozen=is_frozen)

    adapted = Network(network.name, network.initial, network.batches, loss, ())
    return merged(train(adapted, factors, steps=steps, rate=rate, seed=seed))


@cache
def _step(loss: Loss, *, is_frozen: bool) -> Callable[..., tuple[Weights, ...]]:
    @jax.jit
    def step(
        trained: Weights,
        fixed: Weights,
        first: Weights,
        second: Weights,
        batch: Batch,
        pace: Array,
        number: Array,
    ) -> tuple[Weights, ...]:
        def of(some: Weights) -> tuple[Array, Weights]:
            return loss(fixed | some, batch, is_frozen=is_frozen)

        slopes, statistics = jax.grad(of, has_aux=True)(trained)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slopes)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, slopes)
        mean = jax.tree.map(lambda m: m / (1 - 0.9**number), first)
        spread = jax.tree.map(lambda v: jnp.sqrt(v / (1 - 0.999**number)) + 1e-8, second)
        moved = jax.tree.map(lambda w, m, s: w - pace * m / s, trained, mean, spread)
        return moved, statistics, first, second

    return step


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over all but the last axis."""
    chances = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(chances, labels[..., None], axis=-1).mean()


def normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """First weights: variance 2 / fan_in."""
    return jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in), shape), jnp.float32)
