"""Reads the files of a release directory, which nobody has to trust. Only the worker imports this (numpy)."""

import os
import stat
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shoal_agent.inference.model_errors import ModelError, one_line
from shoal_contract import toml
from shoal_contract.errors import FileFormatError
from shoal_contract.release import MAX_FILE_BYTES, SPEC_FILE, ReleaseSpec, TensorTable, parse_spec
from shoal_contract.texts import MAX_TOKENIZER_BYTES, TextTable

Array = npt.NDArray[Any]

MAX_GOLDEN_BYTES: Final = 64 * 1024 * 1024
MAX_GOLDEN_ITEMS: Final = 4096


def read_spec(directory: Path) -> ReleaseSpec:
    """The release.toml of a directory. Raises ModelError."""
    try:
        return parse_spec(_read(directory / SPEC_FILE, toml.MAX_BYTES))
    except FileFormatError as exc:
        raise ModelError(str(exc)) from exc


def read_model(directory: Path, spec: ReleaseSpec) -> bytes:
    """The model file. Raises ModelError."""
    return _read(directory / spec.model.file, MAX_FILE_BYTES)


def read_tokenizer(directory: Path, text: TextTable) -> bytes:
    """The tokenizer.json. Raises ModelError."""
    return _read(directory / text.tokenizer, MAX_TOKENIZER_BYTES)


def read_golden(directory: Path, spec: ReleaseSpec) -> tuple[dict[str, Array], dict[str, Array]]:
    """Golden inputs and the outputs expected, by name, one a row; encoded items have the name "".

    Texts are rows of UTF-8 filled up with zeros.

    Raises:
        ModelError: the file is not what release.toml promises.
    """
    path = directory / spec.golden.file
    _read(path, MAX_GOLDEN_BYTES)  # type and size of the file
    arrays = _unpack(path)
    if spec.text is not None and (key := f"inputs.{spec.text.name}") in arrays:
        arrays[key] = _text_rows(path.name, key, arrays[key], spec.text.max_bytes)
    if spec.items is not None:
        table, output = spec.items
        inputs = {"": ("inputs", _promise(table.name, "uint8", [table.item_bytes]))}
        outputs = {output.name: ("outputs", _promise(output.name, output.dtype, output.shape))}
    else:
        inputs, outputs = (
            {t.name: (f"{what}.{t.name}", t) for t in tables}
            for what, tables in zip(("inputs", "outputs"), spec.served, strict=True)
        )
    try:
        first = arrays[next(iter(inputs.values()))[0]]
        count = len(first) if first.ndim else 0
        if not 1 <= count <= MAX_GOLDEN_ITEMS:
            raise ModelError(
                f"{path.name}: {count} golden inputs; 1 to {MAX_GOLDEN_ITEMS} are allowed"
            )
        for key, promise in (inputs | outputs).values():
            _check(path.name, key, arrays[key], count, promise)
        return (
            {name: arrays[key] for name, (key, _) in inputs.items()},
            {name: arrays[key] for name, (key, _) in outputs.items()},
        )
    except KeyError as exc:
        raise ModelError(f"{path.name}: {one_line(exc)} is not in it") from exc


def _promise(name: str, dtype: Any, shape: list[int]) -> TensorTable:
    return TensorTable(name=name, dtype=dtype, shape=shape)


def _check(file: str, key: str, array: Array, count: int, table: TensorTable) -> None:
    shape = (count, *table.shape)
    fits = len(array.shape) == len(shape) and all(
        b in {-1, a} for a, b in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.dtype(table.dtype) or not fits:
        raise ModelError(
            f"{file}: {key} are {array.dtype} {array.shape}, not {table.dtype} {shape}"
        )


def _text_rows(file: str, key: str, texts: Array, max_bytes: int) -> Array:
    if texts.dtype.kind != "U" or texts.ndim != 1:
        raise ModelError(f"{file}: {key} are {texts.dtype} {texts.shape}, not texts (str) [n]")
    try:
        encoded = np.array([text.encode() for text in texts.tolist()], dtype=np.bytes_)
    except UnicodeEncodeError as exc:
        raise ModelError(f"{file}: {key}: {one_line(exc)}") from exc
    if encoded.itemsize > max_bytes:
        raise ModelError(
            f"{file}: {key}: a text of {encoded.itemsize} bytes, more than {max_bytes}"
        )
    return encoded.view(np.uint8).reshape(len(texts), -1)


def _unpack(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise ModelError(f"{path.name}: unpacks to more than {MAX_GOLDEN_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as exc:
        raise ModelError(f"{path.name}: {one_line(exc)}") from exc


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > max_bytes:
                raise ModelError(f"{path.name}: not a plain file of at most {max_bytes} bytes")
            # Not max_bytes: Python would take so much memory before it reads.
            return file.read(found.st_size)
    except OSError as exc:
        raise ModelError(f"{path.name}: {exc.strerror}") from exc
