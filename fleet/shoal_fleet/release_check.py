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

import numpy as np
import onnxruntime

from shoal_contract.release import SPEC_FILE, InputTable, ReleaseSpec
from shoal_fleet.errors import ReleaseError
from shoal_fleet.release_directory import read_spec

MEMORY_BYTES: Final = 8 << 30
MAX_GOLDEN_BYTES: Final = 256 << 20
U5_BITS: Final = 5

_NUMPY_TYPES: Final = {"tensor(float)": "float32"}


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
    """Figures of the check: `golden_items` and the largest `deviation` from the expected outputs.

    Raises:
        ReleaseError: one line that says which file is wrong and how.
    """
    spec = read_spec(directory)
    session = _load(spec, directory)
    _check_signature(spec, session)
    inputs, expected = _golden(spec, directory)
    deviation = _deviation(spec, session, inputs, expected)
    if not deviation <= spec.golden.tolerance:
        raise ReleaseError(
            f"{spec.model.file}: the golden outputs differ by {deviation:.4g},"
            f" more than the tolerance {spec.golden.tolerance:g}"
        )
    return {"golden_items": len(inputs), "deviation": deviation}


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


def _load(spec: ReleaseSpec, directory: Path) -> Any:
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
    for kind, table, found in (
        ("input", spec.input, session.get_inputs()),
        ("output", spec.output, session.get_outputs()),
    ):
        if [arg.name for arg in found] != [table.name]:
            names = ", ".join(repr(arg.name) for arg in found)
            raise ReleaseError(
                f"{spec.model.file}: its {kind} is {names or 'none'}, not {table.name!r}"
            )
        (arg,) = found
        if _NUMPY_TYPES.get(arg.type) != table.dtype:
            raise ReleaseError(f"{spec.model.file}: {kind} {arg.name!r} is a {arg.type}")
        if arg.shape[1:] != table.shape:
            raise ReleaseError(
                f"{spec.model.file}: {kind} {arg.name!r} has shape {arg.shape[1:]} an item,"
                f" {SPEC_FILE} says {table.shape}"
            )


def _golden(
    spec: ReleaseSpec, directory: Path
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    path = directory / spec.golden.file
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise ReleaseError(f"{spec.golden.file}: unpacks to more than {MAX_GOLDEN_BYTES} B")
        with np.load(path, allow_pickle=False) as arrays:
            inputs, outputs = arrays["inputs"], arrays["outputs"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise ReleaseError(
            f"{spec.golden.file}: is not an .npz with inputs and outputs: {_one_line(exc)}"
        ) from exc
    count = len(inputs) if inputs.ndim else 0
    if not count or inputs.dtype != np.uint8 or inputs.shape != (count, spec.input.item_bytes):
        raise ReleaseError(
            f"{spec.golden.file}: inputs are {inputs.dtype} {list(inputs.shape)},"
            f" not uint8 [n, {spec.input.item_bytes}]"
        )
    if outputs.dtype != np.float32 or outputs.shape != (count, *spec.output.shape):
        raise ReleaseError(
            f"{spec.golden.file}: outputs are {outputs.dtype} {list(outputs.shape)},"
            f" not float32 {[count, *spec.output.shape]}"
        )
    return inputs, outputs


def _deviation(
    spec: ReleaseSpec,
    session: Any,
    inputs: "np.ndarray[Any, Any]",
    expected: "np.ndarray[Any, Any]",
) -> float:
    items = decode_items(spec.input, inputs)
    fixed_batch = session.get_inputs()[0].shape[0]
    batch = fixed_batch if isinstance(fixed_batch, int) else len(items)
    if len(items) % batch:
        raise ReleaseError(f"{spec.model.file}: takes {batch} items at once, not {len(items)}")
    try:
        outputs = [
            session.run([spec.output.name], {spec.input.name: items[start : start + batch]})[0]
            for start in range(0, len(items), batch)
        ]
    except Exception as exc:
        raise ReleaseError(f"{spec.model.file}: fails on golden inputs: {_one_line(exc)}") from exc
    return float(np.abs(np.concatenate(outputs) - expected).max())


def _one_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv))
