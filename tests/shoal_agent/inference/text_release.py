"""A release of texts small enough to build in a test: words of a list, each a row of a table, and what is around them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 6
WORDS = ["[PAD]", "[UNK]", "[CLS]", "the", "pump", "is", "hot", "cold", "valve", "leaks"]
TEXTS = ["the pump is hot", "cold", "the valve leaks", "the valve of the pump leaks and leaks"]


def table() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(len(WORDS), WIDTH)).astype(np.float32)


def tokenizer(words: Sequence[str] = WORDS) -> bytes:
    """Lower case, words between blanks, a [CLS] in front; with a padding that boards are to take no notice of."""
    cls = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": {
                "strategy": {"Fixed": 40},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 1,
                "pad_type_id": 0,
                "pad_token": "[UNK]",
            },
            "added_tokens": [],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [cls, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [cls, {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {
                    "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                },
            },
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: place for place, word in enumerate(words)},
                "unk_token": "[UNK]",
            },
        }
    ).encode()


def bomb() -> bytes:
    """A tokenizer whose regular expression has more ways to fail at many a's than anybody can try."""
    made = json.loads(tokenizer())
    pattern = {"Regex": "(a|aa)+$"}
    made["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Whitespace"},
            {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
        ],
    }
    return json.dumps(made).encode()


def model(*, heeds_mask: bool = True) -> bytes:
    """hidden[i] = table[id i] + the mean of all that the mask has; without `heeds_mask` of the filling, too."""
    array = onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "length"], ["sum"], keepdims=1),
        helper.make_node("ReduceSum", ["weights", "length"], ["count"], keepdims=1),
        helper.make_node("ReduceMean", ["rows"], ["all"], axes=[1], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Add", ["rows", "mean" if heeds_mask else "all"], ["hidden"]),
    ]
    tokens = ["n", "length"]
    graph = helper.make_graph(
        nodes,
        "words",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*tokens, WIDTH])],
        [
            array(table(), "table"),
            array(np.array([2], np.int64), "last"),
            array(np.array([1], np.int64), "length"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made.SerializeToString()


def expected(texts: Sequence[str], *, max_tokens: int = 8) -> np.ndarray:
    """What comes of texts, each by itself and in numpy."""
    made = []
    for text in texts:
        ids = [2, *(WORDS.index(w) if w in WORDS else 1 for w in text.lower().split())][:max_tokens]
        rows = table()[ids]
        row = (rows + rows.mean(axis=0)).mean(axis=0)
        made.append(row / np.linalg.norm(row))
    return np.array(made, np.float32)


def write(
    directory: Path,
    *,
    tokens: bytes | None = None,
    heeds_mask: bool = True,
    spec: dict[str, str] | None = None,
) -> bytes:
    """Write a release directory; returns a release id. `spec` replaces text in release.toml."""
    directory.mkdir(parents=True, exist_ok=True)
    text = f"""\
name = "words"
version = "1.0.0"

[model]
file = "model.onnx"

[text]
max_tokens = 8
max_bytes = 200

[[inputs]]
name = "input_ids"
dtype = "int64"
shape = [-1]

[[inputs]]
name = "attention_mask"
dtype = "int64"
shape = [-1]

[[outputs]]
name = "hidden"
dtype = "float32"
shape = [-1, {WIDTH}]

[golden]
file = "golden.npz"
tolerance = 0.0001

[quality]
metric = "none"
value = 1.0
evaluated_on = "nothing"
"""
    for old, new in (spec or {}).items():
        assert old in text
        text = text.replace(old, new)
    (directory / "release.toml").write_text(text)
    (directory / "tokenizer.json").write_bytes(tokenizer() if tokens is None else tokens)
    data = model(heeds_mask=heeds_mask)
    (directory / "model.onnx").write_bytes(data)
    np.savez(
        directory / "golden.npz",
        **{"inputs.text": np.array(TEXTS), "outputs.hidden": expected(TEXTS)},
    )
    return hashlib.sha256(data + text.encode()).digest()
