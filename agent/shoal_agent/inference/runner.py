"""The models of one worker: load, run, unload. The same in a process of its own and in a thread (numpy)."""

import contextlib
import ctypes
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from shoal_agent.inference.batch import Loaded
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.onnx_model import Model
from shoal_agent.inference.release_files import Array
from shoal_agent.inference.signature import Form

NO_MEMORY: Final = "it needs more memory than a model may have here"


class Runner:
    """Holds loaded models by release.

    Args:
        threads: of ONNX Runtime within one operator.
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._models: dict[bytes, Model] = {}

    def load(self, release: bytes, directory: Path, *, trial_bytes: int = 0) -> Loaded:
        """Load and check a release; with `trial_bytes` in so much more memory at most, and measured.

        Raises:
            ModelError: it breaks a promise.
        """
        started = time.perf_counter()
        try:
            with _memory_limit(trial_bytes):
                model = Model(directory, threads=self._threads)
                load_us = round((time.perf_counter() - started) * 1e6)
                p50_us, p95_us = model.measure_us() if trial_bytes else (0, 0)
        except MemoryError as exc:
            raise ModelError(NO_MEMORY) from exc
        self._models[release] = model
        return Loaded(model.signature, load_us, p50_us, p95_us, model.golden_count)

    def unload(self, release: bytes) -> None:
        """Forget it and give its memory back."""
        self._models.pop(release, None)
        # glibc keeps what an unloaded model held until it is asked; other libcs have no malloc_trim.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)

    def run(
        self, release: bytes, form: Form, rows: int, inputs: Sequence[bytes | memoryview]
    ) -> tuple[list[Array], int]:
        """The outputs of a batch, contiguous, and how many microseconds it took.

        Raises:
            InputError: it does not fit the model.
            ModelError: the model or the runtime failed.
        """
        started = time.perf_counter_ns()
        model = self._models.get(release)
        if model is None:
            raise ModelError("the release is not loaded")
        arrays = [
            np.frombuffer(data, dtype).reshape(shape)
            for data, (dtype, shape) in zip(inputs, form.shapes(rows), strict=True)
        ]
        outputs = [np.ascontiguousarray(output) for output in model.run(form, arrays)]
        return outputs, (time.perf_counter_ns() - started) // 1000


@contextlib.contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process grow by at most so much; 0 is no limit."""
    if not more_bytes:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA (VmData of proc(5))."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
