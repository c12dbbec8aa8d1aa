"""The corpus' two convolution nets in jax: MobileNet's first shape and its second, with batch normalisation.

Both are lists of convolutions, each followed by a normalisation that keeps running statistics as usual
(momentum 0.1): training uses a batch's own and moves the running ones, `exporting` writes the running ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from networks import Array, Batch, Network, Weights, cross_entropy, normal
from numpy.typing import NDArray

CLASSES = 10
PICTURE_SIDE = 8
BATCH = 32
MOMENTUM = 0.1
EPSILON = 1e-3
# (channels out of the pointwise convolution, stride of the depthwise one before)
CNN_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
SMALL_CNN_BLOCKS = ((24, 1), (48, 2), (80, 2))
# (expansion, channels out, blocks, stride of the first)
MOBILENET_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 2, 2),
    (6, 64, 2, 1),
    (6, 96, 3, 2),
    (6, 160, 2, 1),
)
SMALL_MOBILENET_BLOCKS = ((1, 8, 1, 1), (4, 12, 1, 2), (4, 20, 2, 2))


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution with its normalisation; `clip` is the activation's upper end, 0 means none."""

    name: str
    channels: int
    before: int
    side: int = 1
    stride: int = 1
    is_depthwise: bool = False
    clip: float = 6.0
    begins_block: bool = False
    adds_block: bool = False
    """The sum of this one's result and what went into the block goes on."""


def cnn_layers(blocks: Sequence[tuple[int, int]]) -> list[Convolution]:
    """MobileNet v1: depthwise, pointwise, each with a ReLU."""
    before = blocks[0][0] // 2
    layers = [Convolution("stem", before, 1, 3, clip=np.inf)]
    for index, (channels, stride) in enumerate(blocks):
        at = f"block{index}"
        layers += [
            Convolution(f"{at}.depthwise", before, 1, 3, stride, is_depthwise=True, clip=np.inf),
            Convolution(f"{at}.pointwise", channels, before, clip=np.inf),
        ]
        before = channels
    return layers


def mobilenet_layers(blocks: Sequence[tuple[int, int, int, int]]) -> list[Convolution]:
    """MobileNet v2: expand, depthwise (ReLU6 each), project without activation, add where shapes allow."""
    before = blocks[0][1] * 2
    layers, index = [Convolution("stem", before, 1, 3)], 0
    for expansion, channels, count, first_stride in blocks:
        for number in range(count):
            at, wide = f"block{index}", before * expansion
            stride = first_stride if number == 0 else 1
            if expansion > 1:
                layers.append(Convolution(f"{at}.expand", wide, before, begins_block=True))
            layers += [
                Convolution(
                    f"{at}.depthwise",
                    wide,
                    1,
                    3,
                    stride,
                    is_depthwise=True,
                    begins_block=expansion == 1,
                ),
                Convolution(
                    f"{at}.project",
                    channels,
                    wide,
                    clip=0,
                    adds_block=stride == 1 and channels == before,
                ),
            ]
            before, index = channels, index + 1
    return [*layers, Convolution("last", before * 4, before)]


def network(
    name: str,
    layers: Sequence[Convolution],
    pictures: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> Network:
    """A net of these layers on pictures [N, 1, 8, 8], which are shifted and get noise."""

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        while True:
            chosen = rng.integers(0, len(labels), BATCH)
            moved = np.roll(pictures[chosen], tuple(rng.integers(-1, 2, 2)), axis=(2, 3))
            noisy = moved + rng.normal(0, 0.05, moved.shape)
            yield jnp.asarray(noisy, jnp.float32), jnp.asarray(labels[chosen])

    return Network(
        name,
        partial(_initial, layers),
        batches,
        partial(_loss, layers),
        ("dense.weight", "dense.bias"),
    )


def _initial(layers: Sequence[Convolution], rng: np.random.Generator) -> Weights:
    weights: Weights = {}
    for layer in layers:
        shape = (layer.channels, layer.before, layer.side, layer.side)
        weights[f"{layer.name}.weight"] = normal(rng, shape, int(np.prod(shape[1:])))
        weights[f"{layer.name}.gain"] = jnp.asarray(rng.uniform(0.8, 1.2, shape[0]), jnp.float32)
        weights[f"{layer.name}.shift"] = jnp.zeros(shape[0])
        weights[f"{layer.name}.mean"] = jnp.zeros(shape[0])
        weights[f"{layer.name}.variance"] = jnp.ones(shape[0])
    weights["dense.weight"] = normal(rng, (CLASSES, layers[-1].channels), layers[-1].channels)
    weights["dense.bias"] = jnp.zeros(CLASSES)
    return weights


def _loss(
    layers: Sequence[Convolution], weights: Weights, batch: Batch, *, is_frozen: bool
) -> tuple[Array, Weights]:
    """Mean loss and the running statistics after this batch; none of these when they are frozen."""
    hidden, seen = batch[0], {}
    block = hidden
    for layer in layers:
        if layer.begins_block:
            block = hidden
        hidden = _convolved(hidden, weights[f"{layer.name}.weight"], layer)
        running = weights[f"{layer.name}.mean"], weights[f"{layer.name}.variance"]
        mean, variance = running if is_frozen else (hidden.mean((0, 2, 3)), hidden.var((0, 2, 3)))
        if not is_frozen:
            seen[f"{layer.name}.mean"] = running[0] + MOMENTUM * (mean - running[0])
            seen[f"{layer.name}.variance"] = running[1] + MOMENTUM * (variance - running[1])
        ratio = weights[f"{layer.name}.gain"] / jnp.sqrt(variance + EPSILON)
        shift = weights[f"{layer.name}.shift"] - mean * ratio
        hidden = hidden * ratio[:, None, None] + shift[:, None, None]
        if layer.clip:
            hidden = jnp.clip(hidden, 0, layer.clip)
        if layer.adds_block:
            hidden = hidden + block
    logits = hidden.mean((2, 3)) @ weights["dense.weight"].T + weights["dense.bias"]
    return cross_entropy(logits, batch[1]), seen


def _convolved(hidden: Array, kernel: Array, layer: Convolution) -> Array:
    """A 3x3 or 1x1 convolution as sums of products: XLA's grouped one takes minutes on a CPU."""
    side, stride = layer.side, layer.stride
    padded = jnp.pad(hidden, ((0, 0), (0, 0), *[(side // 2, side // 2)] * 2))
    height, width = hidden.shape[2:]
    rule = "nchw,c->nchw" if layer.is_depthwise else "nchw,oc->nohw"
    return sum(
        jnp.einsum(
            rule,
            padded[:, :, down : down + height : stride, right : right + width : stride],
            kernel[:, 0, down, right] if layer.is_depthwise else kernel[:, :, down, right],
        )
        for down in range(side)
        for right in range(side)
    )
