"""Whether the golden texts of a release give what it says: each text alone, without filling. Part of `release_check`.

Boards run several together and fill them up, by code of their own; that both come to the same is what this is for.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal_contract.release import ReleaseSpec
from shoal_contract.texts import MAX_TOKENIZER_BYTES, TextTable
from shoal_fleet.errors import ReleaseError

Array = np.ndarray[Any, Any]


def text_deviation(
    spec: ReleaseSpec,
    text: TextTable,
    directory: Path,
    session: Any,
    texts: Sequence[str],
    expected: Mapping[str, Array],
) -> float:
    """The largest difference from the expected outputs; infinite where one is no number.

    Raises:
        ReleaseError: the tokenizer does not load here or fails, or the model does.
    """
    deviation = 0.0
    found = rows_of(spec, text, directory, session, texts)
    for place, rows in enumerate(found):
        for name, outputs in expected.items():
            row, wanted = rows[name], outputs[place]
            if row.shape != wanted.shape:
                raise ReleaseError(
                    f"{spec.model.file}: output {name!r} has shape {list(row.shape)} a text,"
                    f" not {list(wanted.shape)}"
                )
            error = np.abs(row.astype(np.float64) - wanted).max(initial=0.0)
            deviation = max(deviation, float("inf") if np.isnan(error) else float(error))
    return deviation


def rows_of(
    spec: ReleaseSpec, text: TextTable, directory: Path, session: Any, texts: Sequence[str]
) -> Iterator[dict[str, Array]]:
    """What is served of each text, by the name of the output.

    Raises:
        ReleaseError: the tokenizer does not load here or fails, or the model does, or a text is too long.
    """
    tokenizer = _tokenizer(text, directory)
    names = [table.name for table in spec.outputs]
    for place, one in enumerate(texts):
        if len(one.encode("utf-8", "replace")) > text.max_bytes:
            raise ReleaseError(
                f"{spec.golden.file}: text {place} is longer than max_bytes = {text.max_bytes}"
            )
        found = _encoded(text, tokenizer, one, place)
        try:
            columns = {
                text.ids: found.ids or [text.pad],
                text.mask: found.attention_mask or [0],
                text.types: found.type_ids or [0],
            }
            feed = {t.name: np.array([columns[t.name]], dtype=t.dtype) for t in spec.inputs}
            outputs = session.run(names, feed)
        except Exception as exc:
            reason = _one_line(exc)
            raise ReleaseError(
                f"{spec.model.file}: fails on golden text {place}: {reason}"
            ) from exc
        yield {
            name: _row(text, output[0], is_empty=not found.ids)
            for name, output in zip(names, outputs, strict=True)
        }


def _encoded(text: TextTable, tokenizer: Any, one: str, place: int) -> Any:
    try:
        return tokenizer.encode(one)
    except BaseException as exc:
        _reraise_ours(exc)
        raise ReleaseError(
            f"{text.tokenizer}: fails on golden text {place}: {_one_line(exc)}"
        ) from exc


def _row(text: TextTable, output: Array, *, is_empty: bool) -> Array:
    match text.pooling:
        case "mean":
            row = np.zeros_like(output[0]) if is_empty else np.asarray(output.mean(axis=0))
        case "cls":
            row = output[0]
        case "none":
            row = output
    norm = float(np.linalg.norm(row)) if text.normalise else 0.0
    return np.asarray(row / norm) if norm else row


def _tokenizer(text: TextTable, directory: Path) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        package = importlib.import_module("tokenizers")
    except ImportError as exc:
        raise ReleaseError(
            "it takes texts, and the package `tokenizers` is not here: install requirements/text.txt"
        ) from exc
    path = directory / text.tokenizer
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ReleaseError(f"{text.tokenizer}: more than {MAX_TOKENIZER_BYTES} bytes")
    try:
        tokenizer = package.Tokenizer.from_str(path.read_text("utf-8"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(text.max_tokens)
    except Exception as exc:
        raise ReleaseError(
            f"{text.tokenizer}: is no tokenizer that loads: {_one_line(exc)}"
        ) from exc
    return tokenizer


def _reraise_ours(exc: BaseException) -> None:
    # A panic of the tokenizer's Rust code is no Exception, and has no name that could be imported.
    if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
        raise exc


def _one_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__
