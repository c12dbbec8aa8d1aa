"""The corpus' families of models: a network, its graph, how it is quantised, where it is pruned and adapted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import convolutional
import graphs
import numpy as np
import onnx
import recurrent
import transformer
from networks import Network
from numpy.typing import NDArray

SCANS = Path(__file__).parents[2] / "fleet" / "shoal_fleet" / "digits" / "optdigits.csv"
NORMALISED = ("weight", "gain", "shift", "mean", "variance")


@dataclass(frozen=True, slots=True)
class Family:
    """`cuts` are (name, axis): what goes with a pruned channel, its weights first."""

    network: Network
    graph: Callable[[Mapping[str, NDArray[np.float32]]], onnx.ModelProto]
    cuts: tuple[tuple[str, int], ...]
    is_static: bool = True
    adapted: tuple[str, ...] = ()
    """The matrices that LoRA adapts."""
    classes_axis: int = 0


def families() -> list[Family]:
    """The corpus'."""
    return [
        _cnn("cnn", convolutional.CNN_BLOCKS, "block2"),
        _mobilenet("mobilenet", convolutional.MOBILENET_BLOCKS, "block7"),
        _gru("gru", 128),
        _transformer("transformer", 128, 2),
    ]


def small_families() -> list[Family]:
    """The same in 15 to 45 KB, for tests."""
    return [
        _cnn("cnn", convolutional.SMALL_CNN_BLOCKS, "block1"),
        _mobilenet("mobilenet", convolutional.SMALL_MOBILENET_BLOCKS, "block2"),
        _gru("gru", 32),
        _transformer("transformer", 32, 1),
    ]


def _pictures() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = np.loadtxt(SCANS, delimiter=",", dtype=np.int64)
    return (rows[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32), rows[:, -1]


def _cnn(name: str, blocks: tuple[tuple[int, int], ...], pruned: str) -> Family:
    layers = convolutional.cnn_layers(blocks)
    after = f"block{int(pruned.removeprefix('block')) + 1}"
    return Family(
        convolutional.network(name, layers, *_pictures()),
        partial(graphs.convolution_graph, layers),
        (
            *((f"{pruned}.pointwise.{part}", 0) for part in NORMALISED),
            *((f"{after}.depthwise.{part}", 0) for part in NORMALISED),
            (f"{after}.pointwise.weight", 1),
        ),
    )


def _mobilenet(name: str, blocks: tuple[tuple[int, int, int, int], ...], pruned: str) -> Family:
    layers = convolutional.mobilenet_layers(blocks)
    pictures, labels = _pictures()
    pictures = (pictures - pictures.mean()) / pictures.std()
    return Family(
        convolutional.network(name, layers, pictures, labels),
        partial(graphs.convolution_graph, layers),
        (
            *((f"{pruned}.expand.{part}", 0) for part in NORMALISED),
            *((f"{pruned}.depthwise.{part}", 0) for part in NORMALISED),
            (f"{pruned}.project.weight", 1),
        ),
    )


def _gru(name: str, units: int) -> Family:
    return Family(
        recurrent.gru(name, units),
        graphs.gru_graph,
        (("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1)),
    )


def _transformer(name: str, width: int, layers: int) -> Family:
    return Family(
        transformer.transformer(name, width, layers),
        graphs.transformer_graph,
        (("layer0.up", 1), ("layer0.down", 0)),
        is_static=False,
        adapted=tuple(f"layer{k}.{part}" for k in range(layers) for part in ("query", "value")),
        classes_axis=1,
    )
