"""The corpus' transformer in jax: a byte-level language model on Python's own help texts.

ids [N, 48] -> logits [N, 48, 128].
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from networks import Array, Batch, Network, Weights, cross_entropy, normal

VOCABULARY, CONTEXT, HEADS = 128, 48, 4
BATCH = 16


def transformer(name: str, width: int, layers: int) -> Network:
    """So many layers of that width, four heads each."""
    return Network(name, partial(_weights, width, layers), _texts, _loss, ("out.weight",))


def layer_count(weights: Weights) -> int:
    """How many layers these weights have."""
    return sum(name.endswith(".query") for name in weights)


def _texts(rng: np.random.Generator) -> Iterator[Batch]:
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = np.minimum(np.frombuffer(text.encode("ascii", "replace"), np.uint8), VOCABULARY - 1)
    while True:
        starts = rng.integers(0, len(ids) - CONTEXT - 1, BATCH)
        windows = ids[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
        yield jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:])


def _weights(width: int, layers: int, rng: np.random.Generator) -> Weights:
    weights = {
        "embedding": normal(rng, (VOCABULARY, width), width),
        "position": normal(rng, (CONTEXT, width), 50 * width),
        "out.weight": normal(rng, (width, VOCABULARY), width),
    }
    for layer in range(layers):
        for name, shape in (
            ("query", (width, width)),
            ("key", (width, width)),
            ("value", (width, width)),
            ("mix", (width, width)),
            ("up", (width, 4 * width)),
            ("down", (4 * width, width)),
        ):
            weights[f"layer{layer}.{name}"] = normal(rng, shape, 2 * shape[0])
        for name in ("norm1", "norm2"):
            weights[f"layer{layer}.{name}"] = jnp.ones(width)
    return weights


def _loss(weights: Weights, batch: Batch, *, is_frozen: bool) -> tuple[Array, Weights]:
    del is_frozen  # nothing here keeps statistics
    ids, targets = batch
    hidden = weights["embedding"][ids] + weights["position"]
    mask = jnp.triu(jnp.full((CONTEXT, CONTEXT), -1e9), 1)
    for layer in range(layer_count(weights)):
        part = partial(_part, weights, layer)
        normed = _root_mean_square(hidden) * part("norm1")
        query, key, value = (_heads(normed @ part(name)) for name in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1]) + mask
        mixed = (jax.nn.softmax(scores) @ value).transpose(0, 2, 1, 3)
        hidden = hidden + mixed.reshape(*hidden.shape) @ part("mix")
        normed = _root_mean_square(hidden) * part("norm2")
        hidden = hidden + jax.nn.relu(normed @ part("up")) @ part("down")
    return cross_entropy(_root_mean_square(hidden) @ weights["out.weight"], targets), {}


def _part(weights: Weights, layer: int, name: str) -> Array:
    return weights[f"layer{layer}.{name}"]


def _root_mean_square(hidden: Array) -> Array:
    return hidden / jnp.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)


def _heads(value: Array) -> Array:
    return value.reshape(*value.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
