"""Texts -> tokens, and what a model makes of them -> one row a text. Only the worker imports this (numpy).

The package `tokenizers` is loaded with the first release of texts; it is asked nothing but what lies in memory.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from shoal_agent.inference.model_errors import ModelError, one_line
from shoal_agent.inference.release_files import Array
from shoal_contract.texts import TextTable

_SMALLEST_NORM: Final = 1e-12
T = TypeVar("T")


class TextReader:
    """A release's tokenizer and pooling.

    Args:
        tokenizer: the tokenizer.json.
        text: the release's [text].
        dtypes: int64 or int32, of each input of the model.

    Attributes:
        name: of the input of texts.

    Raises:
        ModelError: there is no package `tokenizers` here, or the file is no tokenizer.
    """

    def __init__(self, tokenizer: bytes, text: TextTable, dtypes: Mapping[str, str]) -> None:
        self.name = text.name
        self._text = text
        self._dtypes = dtypes
        loaded = _guarded(
            text.tokenizer, lambda: _package().Tokenizer.from_str(_decoded(tokenizer))
        )
        # What it says of lengths itself is for other programs.
        _guarded(text.tokenizer, loaded.no_padding)
        _guarded(text.tokenizer, lambda: loaded.enable_truncation(text.max_tokens))
        self._tokenizer: Any = loaded

    def tokens(self, rows: Array, *, filling: int = 0) -> tuple[dict[str, Array], Array]:
        """The model's inputs, [n, length] each, and the mask, bool [n, length]: True is no filling.

        Args:
            rows: UTF-8 filled up with zeros, uint8 [n, bytes]; what is no UTF-8 counts as an unknown character.
            filling: how many tokens of filling the longest row has.

        Raises:
            ModelError: the tokenizer failed.
        """
        texts = [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in rows]
        encoded: list[Any] = _guarded(
            self._text.tokenizer, lambda: self._tokenizer.encode_batch(texts)
        )
        length = max(1, *(len(one.ids) for one in encoded)) + filling
        shape = (len(encoded), length)
        ids = np.full(shape, self._text.pad, np.int64)
        types = np.zeros(shape, np.int64)
        mask = np.zeros(shape, np.bool_)
        for row, one in enumerate(encoded):
            count = len(one.ids)
            ids[row, :count] = one.ids
            types[row, :count] = one.type_ids
            mask[row, :count] = True
        columns: dict[str, Array] = {
            self._text.ids: ids,
            self._text.mask: mask,
            self._text.types: types,
        }
        return {name: columns[name].astype(dtype) for name, dtype in self._dtypes.items()}, mask

    def pooled(self, outputs: Sequence[Array], mask: Array) -> list[Array]:
        """One row a text of each output; of a text without tokens: zeros.

        Raises:
            ModelError: an output has another length than the tokens.
        """
        return [self._normalised(self._pooled(output, mask)) for output in outputs]

    def _pooled(self, output: Array, mask: Array) -> Array:
        if self._text.pooling == "none":
            return output
        if output.shape[:2] != mask.shape:
            raise ModelError(
                f"the model gives {output.shape[1]} rows of {mask.shape[1]} tokens: nothing to pool"
            )
        if self._text.pooling == "cls":
            return np.ascontiguousarray(output[:, 0])
        weights = mask.astype(np.float32)
        count = np.maximum(weights.sum(axis=1, keepdims=True), 1)
        # Not a product with the mask: what filling gives may be infinite, and infinity times nothing is no number.
        kept = np.where(mask[:, :, None], output, np.float32(0))
        return np.asarray(kept.sum(axis=1, dtype=np.float32) / count, dtype=np.float32)

    def _normalised(self, rows: Array) -> Array:
        if not self._text.normalise:
            return rows
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(norm, _SMALLEST_NORM), dtype=np.float32)


def _package() -> Any:
    # Its threads would run beside those that the board's profile allows.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return importlib.import_module("tokenizers")
    except ImportError as exc:
        raise ModelError(
            "it takes texts, and the package `tokenizers` is not here: install requirements/text.txt"
        ) from exc


def _decoded(tokenizer: bytes) -> str:
    try:
        return tokenizer.decode()
    except UnicodeDecodeError as exc:
        raise ValueError("not UTF-8") from exc


def _guarded(file: str, call: Callable[[], T]) -> T:
    """What it returns; what it raises, a panic of its Rust code too, as ModelError."""
    try:
        return call()
    except ModelError:
        raise
    except Exception as exc:
        raise ModelError(f"{file}: {one_line(exc)}") from exc
    except BaseException as exc:
        # pyo3's panic is no Exception, and has no name that could be imported.
        if type(exc).__name__ != "PanicException":
            raise
        raise ModelError(f"{file}: the tokenizer broke: {one_line(exc)}") from exc
