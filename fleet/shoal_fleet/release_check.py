"""`python -m shoal_fleet.release_check DIR`: does the model do what its release.toml says?

Runs in a child of the controller with limited memory, because the files are not trusted yet. Prints one
JSON object: {"ok": true, ...} or {"ok": false, "reason": "one line"}.
"""

import json
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnxruntime

from shoal_contract.release import (
    FREE,
    ONNX_DTYPES,
    SPEC_FILE,
    InputTable,
    ReleaseSpec,
    TensorTable,
)
from shoal_fleet.errors import ReleaseError
from shoal_fleet.release_directory import read_spec
from shoal_fleet.release_manifest import operators_of
from shoal_fleet.text_check import text_deviation

MEMORY_BYTES: Final = 8 << 30
MAX_GOLDEN_BYTES: Final = 256 << 20
U5_BITS: Final = 5

Array = np.ndarray[Any, Any]


def main(argv: list[str]) -> int:
    """Check the directory named by the only argument."""
    if len(argv) != 2:  # noqa: PLR2004 - program and directory
        sys.stderr.write("usage: python -m shoal_fleet.release_check DIR\n")
        return 2
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        verdict = {"ok": True, **check_directory(Path(argv[1]))}
    except ReleaseError as exc:
        verdict = {"ok": False, "reason": str(exc)}
    sys.stdout.write(json.dumps(verdict) + "\n")
    return 0


def check_directory(directory: Path) -> dict[str, Any]:
    """Figures of the check: `golden_items`, the largest `deviation` from the expected outputs, and `operator_sets`.

    Raises:
        ReleaseError: one line that says which file is wrong and how.
    """
    spec = read_spec(directory)
    # First as the boards read it: what they would refuse unseen is not offered to them.
    operator_sets = operators_of(spec, (directory / spec.model.file).read_bytes())
    session = load_session(spec, directory)
    _check_signature(spec, session)
    inputs, expected = _golden(spec, directory)
    if spec.text is None:
        deviation = _deviation(spec, session, inputs, expected)
    else:
        texts = inputs[spec.text.name].tolist()
        deviation = text_deviation(spec, spec.text, directory, session, texts, expected)
    if not deviation <= spec.golden.tolerance:
        raise ReleaseError(
            f"{spec.model.file}: the golden outputs differ by {deviation:.4g},"
            f" more than the tolerance {spec.golden.tolerance:g}"
        )
    return {
        "golden_items": len(next(iter(expected.values()))),
        "deviation": deviation,
        "operator_sets": msgspec.to_builtins(operator_sets),
    }


def decode_items(table: InputTable, items: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Encoded items (uint8 [n, item_bytes]) as the model takes them (float32 [n, *shape])."""
    match table.encoding:
        case "u8":
            values = items.astype(np.float32)
        case "f32":
            values = np.ascontiguousarray(items).view("<f4").astype(np.float32)
        case "u5":
            bits = np.unpackbits(items, axis=1)[:, : table.values * U5_BITS]
            weights = np.array([16, 8, 4, 2, 1], dtype=np.float32)
            values = bits.reshape(len(items), table.values, U5_BITS).astype(np.float32) @ weights
    scaled = values * np.float32(table.scale) + np.float32(table.offset)
    return scaled.reshape(len(items), *table.shape).astype(np.float32)


def load_session(spec: ReleaseSpec, directory: Path) -> Any:
    """The model in ONNX Runtime. Raises ReleaseError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # From memory: a model in memory cannot name other files of this machine.
    model = (directory / spec.model.file).read_bytes()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ReleaseError(
            f"{spec.model.file}: is not a model that loads: {_one_line(exc)}"
        ) from exc


def _check_signature(spec: ReleaseSpec, session: Any) -> None:
    inputs, outputs = spec.tensors
    for kind, tables, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        by_name = {arg.name: arg for arg in found}
        if by_name.keys() != {table.name for table in tables}:
            names = ", ".join(repr(arg.name) for arg in found)
            wanted = ", ".join(repr(table.name) for table in tables)
            raise ReleaseError(f"{spec.model.file}: its {kind} is {names or 'none'}, not {wanted}")
        for table in tables:
            _check_tensor(spec, kind, by_name[table.name], table)


def _check_tensor(spec: ReleaseSpec, kind: str, arg: Any, table: TensorTable) -> None:
    if ONNX_DTYPES.get(arg.type) != table.dtype:
        raise ReleaseError(f"{spec.model.file}: {kind} {arg.name!r} is a {arg.type}")
    shape = arg.shape[1:] if spec.batch else arg.shape
    fits = len(shape) == len(table.shape) and all(
        said in {FREE, size} or (spec.items is None and not isinstance(size, int))
        for size, said in zip(shape, table.shape, strict=True)
    )
    if not fits:
        raise ReleaseError(
            f"{spec.model.file}: {kind} {arg.name!r} has shape {shape} an item,"
            f" {SPEC_FILE} says {table.shape}"
        )


def _golden(spec: ReleaseSpec, directory: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs as the model takes them and the outputs expected, by name, one a row."""
    path = directory / spec.golden.file
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise ReleaseError(f"{spec.golden.file}: unpacks to more than {MAX_GOLDEN_BYTES} B")
        with np.load(path, allow_pickle=False) as arrays:
            found = _named(spec, arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise ReleaseError(
            f"{spec.golden.file}: is not an .npz with inputs and outputs: {_one_line(exc)}"
        ) from exc
    first = next(iter(found.values()))
    count = len(first) if first.ndim else 0
    for (what, name), (dtype, shape) in _promised(spec, count).items():
        array = found[what, name]
        wrong = len(array.shape) != len(shape) or any(
            b not in {FREE, a} for a, b in zip(array.shape, shape, strict=True)
        )
        of_type = array.dtype.kind == "U" if dtype == "str" else array.dtype == dtype
        if not count or not of_type or wrong:
            raise ReleaseError(
                f"{spec.golden.file}: {what} are {array.dtype} {list(array.shape)},"
                f" not {dtype} [{', '.join(map(str, ['n', *shape[1:]]))}]"
            )
    inputs = {name: array for (what, name), array in found.items() if what == "inputs"}
    outputs = {name: array for (what, name), array in found.items() if what == "outputs"}
    if spec.items is not None:
        table, _ = spec.items
        inputs = {table.name: decode_items(table, inputs[table.name])}
    return inputs, outputs


def _named(spec: ReleaseSpec, arrays: Any) -> dict[tuple[str, str], Array]:
    inputs, outputs = spec.served
    if spec.items is not None:
        return {
            ("inputs", inputs[0].name): arrays["inputs"],
            ("outputs", outputs[0].name): arrays["outputs"],
        }
    return {
        (what, table.name): arrays[f"{what}.{table.name}"]
        for what, tables in (("inputs", inputs), ("outputs", outputs))
        for table in tables
    }


def _promised(spec: ReleaseSpec, count: int) -> dict[tuple[str, str], tuple[str, list[int]]]:
    inputs, outputs = spec.served
    promised: dict[tuple[str, str], tuple[str, list[int]]] = {
        (what, table.name): (table.dtype, [count, *table.shape])
        for what, tables in (("inputs", inputs), ("outputs", outputs))
        for table in tables
    }
    if spec.items is not None:
        table = spec.items[0]
        promised["inputs", table.name] = ("uint8", [count, table.item_bytes])
    if spec.text is not None:
        promised["inputs", spec.text.name] = ("str", [count])
    return promised


def _deviation(
    spec: ReleaseSpec, session: Any, inputs: dict[str, Array], expected: dict[str, Array]
) -> float:
    count = len(next(iter(inputs.values())))
    fixed_batch = session.get_inputs()[0].shape[0] if spec.batch else 1
    batch = fixed_batch if isinstance(fixed_batch, int) else count
    if count % batch:
        raise ReleaseError(f"{spec.model.file}: takes {batch} items at once, not {count}")
    names = list(expected)
    deviation = 0.0
    for start in range(0, count, batch):
        feed = {name: array[start : start + batch] for name, array in inputs.items()}
        if not spec.batch:
            feed = {name: array[0] for name, array in feed.items()}
        try:
            outputs = session.run(names, feed)
        except Exception as exc:
            raise ReleaseError(
                f"{spec.model.file}: fails on golden inputs: {_one_line(exc)}"
            ) from exc
        for name, output in zip(names, outputs, strict=True):
            wanted = expected[name][start : start + batch]
            got = output if spec.batch else output[None]
            if got.shape != wanted.shape:
                raise ReleaseError(
                    f"{spec.model.file}: output {name!r} has shape {list(got.shape)},"
                    f" not {list(wanted.shape)}"
                )
            error = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
            # A NaN has to be seen: it is larger than every tolerance.
            deviation = max(deviation, float("inf") if np.isnan(error) else float(error))
    return deviation


def _one_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv))
