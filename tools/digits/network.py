"""The small convolutional network of the demonstration, trained with numpy alone.

conv 3x3 -> ReLU -> conv 3x3 -> ReLU -> max pool 2x2 -> dense, on 8x8 pictures, with its own
backpropagation and Adam. Seeded and single-threaded, so the same machine and the same numpy give the
same weights. It knows nothing of files, ONNX or INT8: see `onnx_export`.

Shapes: pictures [N, 1, 8, 8] float64 in 0..1, labels [N] int, logits [N, 10].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Weights = dict[str, Floats]

SIDE = 8
CLASSES = 10
FIRST_CHANNELS = 32
SECOND_CHANNELS = 64
DENSE_INPUTS = SECOND_CHANNELS * (SIDE // 2) ** 2


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard to train; `jitter` of the pictures are shifted by up to one pixel."""

    epochs: int
    batch: int
    learning_rate: float
    jitter: float
    weight_decay: float
    frozen: tuple[str, ...] = ()


def initial_weights(rng: np.random.Generator) -> Weights:
    """He-initialised weights and zero biases, keyed as `onnx_export` names the initialisers."""

    def he(*shape: int) -> Floats:
        fan_in = int(np.prod(shape[1:]))
        return rng.normal(0.0, np.sqrt(2.0 / fan_in), size=shape)

    return {
        "conv1.weight": he(FIRST_CHANNELS, 1, 3, 3),
        "conv1.bias": np.zeros(FIRST_CHANNELS),
        "conv2.weight": he(SECOND_CHANNELS, FIRST_CHANNELS, 3, 3),
        "conv2.bias": np.zeros(SECOND_CHANNELS),
        "dense.weight": he(CLASSES, DENSE_INPUTS),
        "dense.bias": np.zeros(CLASSES),
    }


def logits(weights: Weights, pictures: Floats) -> Floats:
    """What the float network answers to `pictures`: [N, 10]."""
    return _forward(weights, pictures)[0]


def loss_and_gradients(weights: Weights, pictures: Floats, labels: Ints) -> tuple[float, Weights]:
    """Mean cross entropy of one batch and its derivative by every weight."""
    out, (patches1, hidden1, patches2, hidden2, winners, flat) = _forward(weights, pictures)
    count = len(labels)
    shifted = out - out.max(axis=1, keepdims=True)
    chances = np.exp(shifted)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(count)
    loss = float(-np.log(np.maximum(chances[rows, labels], 1e-300)).mean())

    d_out = chances
    d_out[rows, labels] -= 1.0
    d_out /= count
    gradients: Weights = {"dense.weight": d_out.T @ flat, "dense.bias": d_out.sum(axis=0)}
    half = SIDE // 2
    d_pool = (d_out @ weights["dense.weight"]).reshape(count, SECOND_CHANNELS, half, half)
    d_hidden2 = _unpool(d_pool, winners) * (hidden2 > 0)
    gradients["conv2.weight"], gradients["conv2.bias"] = _conv_gradients(d_hidden2, patches2)
    d_patches2 = _as_rows(d_hidden2) @ weights["conv2.weight"].reshape(SECOND_CHANNELS, -1)
    d_hidden1 = _from_patches(d_patches2, count, FIRST_CHANNELS) * (hidden1 > 0)
    gradients["conv1.weight"], gradients["conv1.bias"] = _conv_gradients(d_hidden1, patches1)
    return loss, {name: gradients[name].reshape(weights[name].shape) for name in weights}


def train(
    weights: Weights,
    pictures: Floats,
    labels: Ints,
    *,
    schedule: Schedule,
    rng: np.random.Generator,
) -> Weights:
    """Adam with a cosine learning rate; returns new weights and leaves the given ones alone."""
    weights = {name: value.copy() for name, value in weights.items()}
    trained = [name for name in weights if name not in schedule.frozen]
    first = {name: np.zeros_like(weights[name]) for name in trained}
    second = {name: np.zeros_like(weights[name]) for name in trained}
    batches = -(-len(labels) // schedule.batch)
    steps = schedule.epochs * batches
    step = 0
    for _ in range(schedule.epochs):
        order = rng.permutation(len(labels))
        for chosen in np.array_split(order, batches):
            step += 1
            batch = shifted_pictures(pictures[chosen], schedule.jitter, rng)
            _, gradients = loss_and_gradients(weights, batch, labels[chosen])
            rate = schedule.learning_rate * 0.5 * (1.0 + np.cos(np.pi * (step - 1) / steps))
            for name in trained:
                slope = gradients[name]
                first[name] += 0.1 * (slope - first[name])
                second[name] += 0.001 * (slope * slope - second[name])
                mean = first[name] / (1.0 - 0.9**step)
                spread = np.sqrt(second[name] / (1.0 - 0.999**step)) + 1e-8
                decay = schedule.weight_decay if name.endswith(".weight") else 0.0
                weights[name] -= rate * (mean / spread + decay * weights[name])
    return weights


def shifted_pictures(pictures: Floats, jitter: float, rng: np.random.Generator) -> Floats:
    """A share `jitter` of the pictures moved by up to one pixel each way; blank cells move in."""
    moved = pictures.copy()
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)))
    downs, rights = rng.integers(0, 3, size=(2, len(pictures)))
    for row in np.flatnonzero(rng.random(len(pictures)) < jitter):
        down, right = downs[row], rights[row]
        moved[row] = padded[row, :, down : down + SIDE, right : right + SIDE]
    return moved


def _forward(weights: Weights, pictures: Floats) -> tuple[Floats, tuple[Floats, ...]]:
    count = len(pictures)
    patches1 = _patches(pictures)
    hidden1 = _convolve(patches1, weights["conv1.weight"], weights["conv1.bias"], count)
    patches2 = _patches(hidden1)
    hidden2 = _convolve(patches2, weights["conv2.weight"], weights["conv2.bias"], count)
    half = SIDE // 2
    cells = hidden2.reshape(count, SECOND_CHANNELS, half, 2, half, 2)
    cells = cells.transpose(0, 1, 2, 4, 3, 5).reshape(count, SECOND_CHANNELS, half, half, 4)
    winners = cells.argmax(axis=-1)
    flat = cells.max(axis=-1).reshape(count, DENSE_INPUTS)
    out = flat @ weights["dense.weight"].T + weights["dense.bias"]
    return out, (patches1, hidden1, patches2, hidden2, winners, flat)


def _convolve(patches: Floats, weight: Floats, bias: Floats, count: int) -> Floats:
    channels = len(weight)
    rows = patches @ weight.reshape(channels, -1).T + bias
    return np.maximum(rows, 0.0).reshape(count, SIDE, SIDE, channels).transpose(0, 3, 1, 2)


def _conv_gradients(d_out: Floats, patches: Floats) -> tuple[Floats, Floats]:
    rows = _as_rows(d_out)
    return rows.T @ patches, rows.sum(axis=0)


def _patches(maps: Floats) -> Floats:
    """[N, C, 8, 8] -> [N*64, C*9]: the zero-padded 3x3 neighbourhood of every cell."""
    count, channels = maps.shape[:2]
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return views.transpose(0, 2, 3, 1, 4, 5).reshape(count * SIDE * SIDE, channels * 9)


def _from_patches(patches: Floats, count: int, channels: int) -> Floats:
    """The transpose of `_patches`: every neighbourhood added back to where it came from."""
    cells = patches.reshape(count, SIDE, SIDE, channels, 3, 3).transpose(0, 3, 4, 5, 1, 2)
    padded = np.zeros((count, channels, SIDE + 2, SIDE + 2))
    for down in range(3):
        for right in range(3):
            padded[:, :, down : down + SIDE, right : right + SIDE] += cells[:, :, down, right]
    return padded[:, :, 1:-1, 1:-1]


def _unpool(d_pool: Floats, winners: Floats) -> Floats:
    """Give the slope of a pooled cell to the one of its four that won."""
    count, channels, half, _ = d_pool.shape
    cells = np.zeros((count, channels, half, half, 4))
    np.put_along_axis(cells, winners[..., None], d_pool[..., None], axis=-1)
    cells = cells.reshape(count, channels, half, half, 2, 2).transpose(0, 1, 2, 4, 3, 5)
    return cells.reshape(count, channels, SIDE, SIDE)


def _as_rows(maps: Floats) -> Floats:
    """[N, C, 8, 8] -> [N*64, C]."""
    return maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
