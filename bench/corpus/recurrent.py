"""The corpus' recurrent net in jax: two 1-d convolutions and a GRU on made-up gestures [N, 3, 64]."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from networks import Array, Batch, Network, Weights, cross_entropy, normal

SENSORS, SAMPLES, GESTURES = 3, 64, 6
BATCH = 32


def gru(name: str, units: int) -> Network:
    """A GRU of so many units."""
    return Network(name, partial(_weights, units), _gestures, _loss, ("dense.weight", "dense.bias"))


def _gestures(rng: np.random.Generator) -> Iterator[Batch]:
    times = np.arange(SAMPLES) / SAMPLES
    while True:
        labels = rng.integers(0, GESTURES, BATCH)
        pitch = (labels + 2 + rng.normal(0, 0.2, BATCH))[:, None, None]
        phase = rng.uniform(0, 2 * np.pi, (BATCH, SENSORS, 1))
        bend = (labels % 3)[:, None, None] * times**2
        waves = np.sin(2 * np.pi * pitch * (times + bend) + phase)
        noisy = waves + rng.normal(0, 0.3, waves.shape)
        yield jnp.asarray(noisy, jnp.float32), jnp.asarray(labels)


def _weights(units: int, rng: np.random.Generator) -> Weights:
    return {
        "conv1.weight": normal(rng, (units // 2, SENSORS, 5), 5 * SENSORS),
        "conv1.bias": jnp.zeros(units // 2),
        "conv2.weight": normal(rng, (units, units // 2, 5), 5 * units // 2),
        "conv2.bias": jnp.zeros(units),
        "gru.input": normal(rng, (3 * units, units), 2 * units),
        "gru.hidden": normal(rng, (3 * units, units), 2 * units),
        "gru.bias": jnp.zeros(6 * units),
        "dense.weight": normal(rng, (GESTURES, units), units),
        "dense.bias": jnp.zeros(GESTURES),
    }


def _loss(weights: Weights, batch: Batch, *, is_frozen: bool) -> tuple[Array, Weights]:
    del is_frozen  # nothing here keeps statistics
    hidden, labels = batch
    for name in ("conv1", "conv2"):
        hidden = jax.lax.conv_general_dilated(
            hidden,
            weights[f"{name}.weight"],
            (2,),
            [(2, 2)],
            dimension_numbers=("NCH", "OIH", "NCH"),
        )
        hidden = jax.nn.relu(hidden + weights[f"{name}.bias"][:, None])
    bias_in, bias_hidden = jnp.split(weights["gru.bias"], 2)

    def step(state: Array, value: Array) -> tuple[Array, None]:
        # ONNX's order z, r, h and linear_before_reset = 1.
        z, r, h = jnp.split(value @ weights["gru.input"].T + bias_in, 3, axis=-1)
        z2, r2, h2 = jnp.split(state @ weights["gru.hidden"].T + bias_hidden, 3, axis=-1)
        update = jax.nn.sigmoid(z + z2)
        fresh = jnp.tanh(h + jax.nn.sigmoid(r + r2) * h2)
        return (1 - update) * fresh + update * state, None

    first = jnp.zeros((hidden.shape[0], weights["gru.hidden"].shape[1]))
    last, _ = jax.lax.scan(step, first, hidden.transpose(2, 0, 1))
    return cross_entropy(last @ weights["dense.weight"].T + weights["dense.bias"], labels), {}
