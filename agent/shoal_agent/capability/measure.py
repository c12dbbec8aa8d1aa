"""Measures a release on this board as the worker would run it, without queue or worker (numpy, ONNX Runtime)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from shoal_agent.inference.measuring import Timing
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.onnx_model import Model
from shoal_agent.inference.release_files import read_model, read_spec
from shoal_agent.inference.settings import WorkerSettings

_INT8_OPERATORS: Final = (
    b"DequantizeLinear",
    b"DynamicQuantizeLinear",
    b"MatMulInteger",
    b"ConvInteger",
    b"QLinearConv",
    b"QLinearMatMul",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A release, and its timings by rows of a batch. `providers`: those that really ran."""

    version: str
    precision: str
    file_bytes: int
    runtime: str
    providers: tuple[str, ...]
    threads: int
    timings: tuple[Timing, ...]

    @property
    def best(self) -> Timing:
        """Of the batch with the highest throughput."""
        return max(self.timings, key=lambda timing: timing.rows_per_s)


def name_of(directory: Path) -> str:
    """The model's name in a release directory.

    Raises:
        ModelError: it is none.
    """
    return read_spec(directory).name


def measure(
    directory: Path,
    settings: WorkerSettings,
    *,
    max_batch: int,
    seconds_each: float,
    on_timing: Callable[[Timing], None],
) -> Measured:
    """Load, check and measure it.

    Raises:
        ModelError: it breaks a promise.
    """
    file = read_model(directory, read_spec(directory))
    is_int8 = any(operator in file for operator in _INT8_OPERATORS)
    file_bytes = len(file)
    del file
    try:
        model = Model(directory, settings)
        timings = []
        for timing in model.timings(max_batch, seconds_each=seconds_each):
            timings.append(timing)
            on_timing(timing)
    except MemoryError as exc:
        raise ModelError("it needs more memory than there is") from exc
    return Measured(
        version=model.spec.version,
        precision="int8" if is_int8 else "float",
        file_bytes=file_bytes,
        runtime=f"onnxruntime {ort.__version__}",
        providers=tuple(model.providers),
        threads=settings.threads,
        timings=tuple(timings),
    )
