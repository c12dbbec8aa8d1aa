"""The three networks of the delta's corpus in jax: their weights, their data, their loss, Adam.

It knows nothing of files, ONNX or INT8: see `exporting`. Weights are a flat dict of float32 arrays,
named as the initialisers will be; shapes decide everything, so that a pruned network is the same code.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Array = jax.Array
Weights = dict[str, Array]
Batch = tuple[Array, Array]

CLASSES = 10
# pointwise convolutions of the CNN: (channels out, stride of the depthwise one before)
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
STEM_CHANNELS = 32
PICTURE_SIDE = 8
SENSORS, SAMPLES, GESTURES = 3, 64, 6
GRU_UNITS = 128
VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 128, 48, 128, 4, 2
BATCH = 32


@dataclass(frozen=True, slots=True)
class Network:
    """One family: first weights, batches for ever, mean loss of a batch."""

    name: str
    initial: Callable[[np.random.Generator], Weights]
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    loss: Callable[[Weights, Batch], Array]
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
    """`steps` of Adam with a cosine rate on batches that the seed decides; the given weights stay."""
    trained = {name: weights[name] for name in (only or weights)}
    batches = network.batches(np.random.default_rng(seed))
    first = jax.tree.map(jnp.zeros_like, trained)
    second = jax.tree.map(jnp.zeros_like, trained)
    step_of = _step(network.loss)
    for number in range(1, steps + 1):
        pace = rate * 0.5 * (1 + np.cos(np.pi * (number - 1) / steps))
        trained, first, second = step_of(
            trained, weights, first, second, next(batches), jnp.float32(pace), jnp.float32(number)
        )
    return weights | trained


def train_low_rank(
    network: Network, weights: Weights, names: Sequence[str], *, steps: int, rate: float, seed: int
) -> Weights:
    """LoRA, merged: only a product of rank 4 is added to each of the named matrices."""
    rng = np.random.default_rng(seed)
    factors: Weights = {}
    for name in names:
        rows, columns = weights[name].shape
        factors[f"{name}.down"] = _normal(rng, (rows, 4), rows)
        factors[f"{name}.up"] = jnp.zeros((4, columns))

    def merged(parts: Weights) -> Weights:
        return weights | {
            name: weights[name] + parts[f"{name}.down"] @ parts[f"{name}.up"] for name in names
        }

    adapted = Network(
        network.name,
        network.initial,
        network.batches,
        lambda parts, batch: network.loss(merged(parts), batch),
        (),
    )
    return merged(train(adapted, factors, steps=steps, rate=rate, seed=seed))


@cache
def _step(loss: Callable[[Weights, Batch], Array]) -> Callable[..., tuple[Weights, ...]]:
    @jax.jit
    def step(
        trained: Weights,
        fixed: Weights,
        first: Weights,
        second: Weights,
        batch: Batch,
        pace: Array,
        number: Array,
    ) -> tuple[Weights, Weights, Weights]:
        slopes = jax.grad(lambda some: loss(fixed | some, batch))(trained)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slopes)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, slopes)
        mean = jax.tree.map(lambda m: m / (1 - 0.9**number), first)
        spread = jax.tree.map(lambda v: jnp.sqrt(v / (1 - 0.999**number)) + 1e-8, second)
        moved = jax.tree.map(lambda w, m, s: w - pace * m / s, trained, mean, spread)
        return moved, first, second

    return step


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over all but the last axis."""
    chances = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(chances, labels[..., None], axis=-1).mean()


def _normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    return jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in), shape), jnp.float32)


# --------------------------------------------------------------------------- CNN, depthwise separable


def cnn(pictures: NDArray[np.float32], labels: NDArray[np.int64]) -> Network:
    """MobileNet-like on pictures [N, 1, 8, 8], with batch normalisation (folded by `exporting`)."""

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        while True:
            chosen = rng.integers(0, len(labels), BATCH)
            moved = np.roll(pictures[chosen], tuple(rng.integers(-1, 2, 2)), axis=(2, 3))
            noisy = moved + rng.normal(0, 0.05, moved.shape)
            yield jnp.asarray(noisy, jnp.float32), jnp.asarray(labels[chosen])

    return Network("cnn", _cnn_weights, batches, _cnn_loss, ("dense.weight", "dense.bias"))


def _cnn_weights(rng: np.random.Generator) -> Weights:
    weights: Weights = {}

    def convolution(name: str, shape: tuple[int, ...]) -> None:
        weights[f"{name}.weight"] = _normal(rng, shape, int(np.prod(shape[1:])))
        weights[f"{name}.gain"] = jnp.asarray(rng.uniform(0.8, 1.2, shape[0]), jnp.float32)
        weights[f"{name}.shift"] = jnp.zeros(shape[0])

    convolution("stem", (STEM_CHANNELS, 1, 3, 3))
    before = STEM_CHANNELS
    for index, (channels, _) in enumerate(BLOCKS):
        convolution(f"block{index}.depthwise", (before, 1, 3, 3))
        convolution(f"block{index}.pointwise", (channels, before, 1, 1))
        before = channels
    weights["dense.weight"] = _normal(rng, (CLASSES, before), before)
    weights["dense.bias"] = jnp.zeros(CLASSES)
    return weights


def cnn_layers() -> list[tuple[str, int, bool]]:
    """(name, stride, depthwise?) of each convolution in order."""
    layers = [("stem", 1, False)]
    for index, (_, stride) in enumerate(BLOCKS):
        layers += [(f"block{index}.depthwise", stride, True), (f"block{index}.pointwise", 1, False)]
    return layers


def cnn_statistics(weights: Weights, pictures: Array) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of what each convolution makes of `pictures`: what is folded."""
    return _cnn_forward(weights, pictures)[1]


def _cnn_loss(weights: Weights, batch: Batch) -> Array:
    return cross_entropy(_cnn_forward(weights, batch[0])[0], batch[1])


def _cnn_forward(weights: Weights, pictures: Array) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    hidden, seen = pictures, {}
    for name, stride, is_depthwise in cnn_layers():
        hidden = _convolved(hidden, weights[f"{name}.weight"], stride, is_depthwise=is_depthwise)
        mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3))
        seen[name] = mean, variance
        ratio = weights[f"{name}.gain"] / jnp.sqrt(variance + 1e-3)
        shift = weights[f"{name}.shift"] - mean * ratio
        hidden = jax.nn.relu(hidden * ratio[:, None, None] + shift[:, None, None])
    pooled = hidden.mean((2, 3))
    return pooled @ weights["dense.weight"].T + weights["dense.bias"], seen


def _convolved(hidden: Array, kernel: Array, stride: int, *, is_depthwise: bool) -> Array:
    """A 3x3 or 1x1 convolution as sums of products: XLA's grouped one takes minutes on a CPU."""
    side = kernel.shape[2]
    padded = jnp.pad(hidden, ((0, 0), (0, 0), *[(side // 2, side // 2)] * 2))
    height, width = hidden.shape[2:]
    rule = "nchw,c->nchw" if is_depthwise else "nchw,oc->nohw"
    return sum(
        jnp.einsum(
            rule,
            padded[:, :, down : down + height : stride, right : right + width : stride],
            kernel[:, 0, down, right] if is_depthwise else kernel[:, :, down, right],
        )
        for down in range(side)
        for right in range(side)
    )


# --------------------------------------------------------------------------- Conv1d + GRU


def gru() -> Network:
    """Two 1-d convolutions and a GRU on made-up gestures [N, 3, 64]."""
    return Network("gru", _gru_weights, _gestures, _gru_loss, ("dense.weight", "dense.bias"))


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


def _gru_weights(rng: np.random.Generator) -> Weights:
    return {
        "conv1.weight": _normal(rng, (64, SENSORS, 5), 5 * SENSORS),
        "conv1.bias": jnp.zeros(64),
        "conv2.weight": _normal(rng, (128, 64, 5), 5 * 64),
        "conv2.bias": jnp.zeros(128),
        "gru.input": _normal(rng, (3 * GRU_UNITS, 128), 256),
        "gru.hidden": _normal(rng, (3 * GRU_UNITS, GRU_UNITS), 2 * GRU_UNITS),
        "gru.bias": jnp.zeros(6 * GRU_UNITS),
        "dense.weight": _normal(rng, (GESTURES, GRU_UNITS), GRU_UNITS),
        "dense.bias": jnp.zeros(GESTURES),
    }


def _gru_loss(weights: Weights, batch: Batch) -> Array:
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

    first = jnp.zeros((hidden.shape[0], GRU_UNITS))
    last, _ = jax.lax.scan(step, first, hidden.transpose(2, 0, 1))
    return cross_entropy(last @ weights["dense.weight"].T + weights["dense.bias"], labels)


# --------------------------------------------------------------------------- transformer


def transformer() -> Network:
    """A byte-level language model on Python's own help texts: ids [N, 48] -> logits [N, 48, 128]."""
    return Network("transformer", _text_weights, _texts, _text_loss, ("out.weight",))


def _texts(rng: np.random.Generator) -> Iterator[Batch]:
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = np.minimum(np.frombuffer(text.encode("ascii", "replace"), np.uint8), VOCABULARY - 1)
    while True:
        starts = rng.integers(0, len(ids) - CONTEXT - 1, BATCH // 2)
        windows = ids[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
        yield jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:])


def _text_weights(rng: np.random.Generator) -> Weights:
    weights = {
        "embedding": _normal(rng, (VOCABULARY, WIDTH), WIDTH),
        "position": _normal(rng, (CONTEXT, WIDTH), 50 * WIDTH),
        "out.weight": _normal(rng, (WIDTH, VOCABULARY), WIDTH),
    }
    for layer in range(LAYERS):
        for name, shape in (
            ("query", (WIDTH, WIDTH)),
            ("key", (WIDTH, WIDTH)),
            ("value", (WIDTH, WIDTH)),
            ("mix", (WIDTH, WIDTH)),
            ("up", (WIDTH, 4 * WIDTH)),
            ("down", (4 * WIDTH, WIDTH)),
        ):
            weights[f"layer{layer}.{name}"] = _normal(rng, shape, 2 * shape[0])
        for name in ("norm1", "norm2"):
            weights[f"layer{layer}.{name}"] = jnp.ones(WIDTH)
    return weights


def _text_loss(weights: Weights, batch: Batch) -> Array:
    ids, targets = batch
    hidden = weights["embedding"][ids] + weights["position"]
    mask = jnp.triu(jnp.full((CONTEXT, CONTEXT), -1e9), 1)
    for layer in range(LAYERS):
        part = partial(_part, weights, layer)
        normed = _root_mean_square(hidden) * part("norm1")
        query, key, value = (_heads(normed @ part(name)) for name in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH / HEADS) + mask
        mixed = (jax.nn.softmax(scores) @ value).transpose(0, 2, 1, 3)
        hidden = hidden + mixed.reshape(*mixed.shape[:2], WIDTH) @ part("mix")
        normed = _root_mean_square(hidden) * part("norm2")
        hidden = hidden + jax.nn.relu(normed @ part("up")) @ part("down")
    return cross_entropy(_root_mean_square(hidden) @ weights["out.weight"], targets)


def _part(weights: Weights, layer: int, name: str) -> Array:
    return weights[f"layer{layer}.{name}"]


def _root_mean_square(hidden: Array) -> Array:
    return hidden / jnp.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)


def _heads(value: Array) -> Array:
    return value.reshape(*value.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
