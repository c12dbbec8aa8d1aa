"""One release in ONNX Runtime: load, check against its release.toml, run. Only the worker imports this.

The model file is read into memory and handed over as bytes, so external data cannot reach other files.
"""

import os
import stat
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from shoal_agent.inference.encodings import to_tensor
from shoal_contract import toml
from shoal_contract.errors import FileFormatError
from shoal_contract.release import MAX_FILE_BYTES, SPEC_FILE, ReleaseSpec, parse_spec

Floats = npt.NDArray[np.float32]
Result = list[object] | str
"""[label, confidence], or why there is none."""

MAX_GOLDEN_BYTES: Final = 64 * 1024 * 1024
MAX_GOLDEN_ITEMS: Final = 4096
_MEASURED_RUNS: Final = 50
_MEASURED_S: Final = 1.0


class ModelError(Exception):
    """The release cannot be used; the message is the reason."""


class Model:
    """A release that is loaded and kept its promises.

    Args:
        directory: holds release.toml, the model file and the golden file.
        threads: of ONNX Runtime within one operator.

    Raises:
        ModelError: with the reason.
    """

    def __init__(self, directory: Path, *, threads: int) -> None:
        self.spec = _read_spec(directory)
        self._session = _open_session(
            _read(directory / self.spec.model.file, MAX_FILE_BYTES), threads
        )
        self._one_by_one = _check_signature(self._session, self.spec)
        self.golden_count = 0
        self._check_golden(directory / self.spec.golden.file)

    def run(self, items: Sequence[bytes]) -> list[Result]:
        """One result an item, in order; what fails in a batch is run again item by item."""
        try:
            outputs = self._outputs(to_tensor(items, self.spec.input))
        except ValueError as exc:
            return [str(exc)] * len(items)
        except ModelError as exc:
            if len(items) == 1:
                return [str(exc)]
            return [result for item in items for result in self.run([item])]
        return [self._read_output(output) for output in outputs]

    def measure_us(self) -> tuple[int, int]:
        """p50 and p95 of running one golden item, in microseconds."""
        times: list[int] = []
        until = time.perf_counter() + _MEASURED_S
        while len(times) < _MEASURED_RUNS and (not times or time.perf_counter() < until):
            started = time.perf_counter_ns()
            self._outputs(self._golden_input)
            times.append((time.perf_counter_ns() - started) // 1000)
        times.sort()
        return times[len(times) // 2], times[min(len(times) - 1, len(times) * 95 // 100)]

    def _outputs(self, batch: Floats) -> Floats:
        if self._one_by_one and len(batch) > 1:
            return np.concatenate([self._outputs(batch[n : n + 1]) for n in range(len(batch))])
        names, feed = [self.spec.output.name], {self.spec.input.name: batch}
        try:
            (output,) = self._session.run(names, feed)
        except Exception as exc:
            raise ModelError(f"ONNX Runtime: {_one_line(exc)}") from exc
        expected = (len(batch), *self.spec.output.shape)
        if output.shape != expected or output.dtype != np.float32:
            raise ModelError(f"the output is {output.dtype} {output.shape}, not float32 {expected}")
        return np.asarray(output)

    def _read_output(self, output: Floats) -> Result:
        scores = output.ravel().astype(np.float64)
        if not np.isfinite(scores).all():
            return "the model's output is not a finite number"
        if self.spec.output.decode == "softmax-argmax":
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        best = int(scores.argmax())
        return [self.spec.output.labels[best], float(scores[best])]

    def _check_golden(self, path: Path) -> None:
        inputs, expected = _read_golden(path, self.spec)
        tolerance = self.spec.golden.tolerance
        for start in range(0, len(inputs), 16):
            items = [item.tobytes() for item in inputs[start : start + 16]]
            wanted = expected[start : start + 16]
            got = self._outputs(to_tensor(items, self.spec.input))
            error = np.abs(got.astype(np.float64) - wanted)
            # Not `> tolerance`: a NaN has to fail too.
            if not (error <= tolerance).all():
                raise ModelError(
                    f"golden inputs give other outputs: off by {error.max():.4g},"
                    f" allowed {tolerance:.4g}"
                )
            flat = (len(items), -1)
            agree = got.reshape(flat).argmax(axis=1) == wanted.reshape(flat).argmax(axis=1)
            if not agree.all():
                raise ModelError(
                    f"golden input {start + int(agree.argmin())} is classified differently"
                )
        self._golden_input = to_tensor([inputs[0].tobytes()], self.spec.input)
        self.golden_count = len(inputs)


def _read_spec(directory: Path) -> ReleaseSpec:
    try:
        return parse_spec(_read(directory / SPEC_FILE, toml.MAX_BYTES))
    except FileFormatError as exc:
        raise ModelError(str(exc)) from exc


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > max_bytes:
                raise ModelError(f"{path.name}: not a plain file of at most {max_bytes} bytes")
            return file.read(max_bytes)
    except OSError as exc:
        raise ModelError(f"{path.name}: {exc.strerror}") from exc


def _open_session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # A spinning thread pool burns a core between two requests (measured by ORT's own docs).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ModelError(f"ONNX Runtime does not load the model: {_one_line(exc)}") from exc


def _check_signature(session: ort.InferenceSession, spec: ReleaseSpec) -> bool:
    """Whether the batch dimension is fixed at one item."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        raise ModelError(f"the model has {len(inputs)} inputs, not one")
    fixed = [_check_tensor("input", inputs[0], spec.input.name, spec.input.shape)]
    for output in outputs:
        if output.name == spec.output.name:
            fixed.append(_check_tensor("output", output, spec.output.name, spec.output.shape))
            return any(fixed)
    raise ModelError(f"the model has no output {spec.output.name!r}")


def _check_tensor(what: str, tensor: Any, name: str, shape: Sequence[int]) -> bool:
    found = f"{tensor.name!r} {tensor.type} {tensor.shape}"
    wanted = f"{name!r} tensor(float) [n, {', '.join(map(str, shape))}]"
    if tensor.name != name or tensor.type != "tensor(float)" or len(tensor.shape) != 1 + len(shape):
        raise ModelError(f"the model's {what} is {found}, release.toml says {wanted}")
    batch, *rest = tensor.shape
    # A dimension may stay symbolic (text or None); what really comes out is checked at every run.
    if any(isinstance(a, int) and a != b for a, b in zip(rest, shape, strict=True)):
        raise ModelError(f"the model's {what} is {found}, release.toml says {wanted}")
    if isinstance(batch, int) and batch != 1:
        raise ModelError(f"the model's {what} takes batches of {batch} only; it must be free or 1")
    return isinstance(batch, int)


def _read_golden(path: Path, spec: ReleaseSpec) -> tuple[npt.NDArray[np.uint8], Floats]:
    _read(path, MAX_GOLDEN_BYTES)  # type and size of the file
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_GOLDEN_BYTES:
                raise ModelError(f"{path.name}: unpacks to more than {MAX_GOLDEN_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            inputs, outputs = arrays["inputs"], arrays["outputs"]
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as exc:
        raise ModelError(f"{path.name}: {_one_line(exc)}") from exc
    count = len(inputs) if inputs.ndim else 0
    if not 1 <= count <= MAX_GOLDEN_ITEMS:
        raise ModelError(f"{path.name}: {count} golden inputs; 1 to {MAX_GOLDEN_ITEMS} are allowed")
    if inputs.dtype != np.uint8 or inputs.shape != (count, spec.input.item_bytes):
        raise ModelError(
            f"{path.name}: inputs are {inputs.dtype} {inputs.shape},"
            f" not uint8 {(count, spec.input.item_bytes)}"
        )
    if outputs.dtype != np.float32 or outputs.shape != (count, *spec.output.shape):
        raise ModelError(
            f"{path.name}: outputs are {outputs.dtype} {outputs.shape},"
            f" not float32 {(count, *spec.output.shape)}"
        )
    return inputs, outputs


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__
