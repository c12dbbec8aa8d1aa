"""The models of one worker: load, run, unload. The same in a process of its own and in a thread (numpy)."""

import contextlib
import ctypes
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from shoal_agent.inference.batch import Loaded
from shoal_agent.inference.model_errors import InputError, LateError, ModelError
from shoal_agent.inference.onnx_model import Model
from shoal_agent.inference.optimised import OptimisedForms
from shoal_agent.inference.release_files import Array
from shoal_agent.inference.session import made_for
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Form
from shoal_agent.inference.watchdog import Watchdog

_LARGE_BYTES: Final = 4 * 1024 * 1024
_OUT_OF_MEMORY: Final = ("alloc", "memory")
NO_MEMORY: Final = "it needs more memory than a model may have here"


class Runner:
    """Holds loaded models by release.

    Args:
        settings: how they are run.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._watchdog = Watchdog()
        folder = settings.optimised_dir
        self._forms = OptimisedForms(Path(folder), made_for=made_for()) if folder else None
        self._models: dict[bytes, Model] = {}

    def load(
        self, release: bytes, directory: Path, *, trial_bytes: int = 0, calibrate_rows: int = 0
    ) -> Loaded:
        """Load and check a release; with `trial_bytes` in so much more memory at most, and measured.

        Args:
            release: how `run` names it.
            directory: holds its files.
            trial_bytes: 0: no trial.
            calibrate_rows: the largest batch to measure; 0: none.

        Raises:
            ModelError: it breaks a promise.
        """
        started = time.perf_counter()
        if trial_bytes:
            _forget_peak()
        before_bytes = _status_bytes("VmRSS")
        try:
            with _memory_limit(trial_bytes):
                model = Model(directory, self._settings, forms=self._forms, release=release)
                load_us = round((time.perf_counter() - started) * 1e6)
                p50_us, p95_us = model.measure_us() if trial_bytes else (0, 0)
                points = model.calibrate(calibrate_rows) if calibrate_rows else ()
        except MemoryError as exc:
            raise ModelError(NO_MEMORY) from exc
        self._models[release] = model
        return Loaded(
            signature=model.signature,
            load_us=load_us,
            p50_us=p50_us,
            p95_us=p95_us,
            golden_count=model.golden_count,
            points=points,
            providers=tuple(model.providers),
            is_optimised=model.is_optimised,
            grown_bytes=max(0, _status_bytes("VmRSS") - before_bytes),
            peak_bytes=max(0, _status_bytes("VmHWM") - before_bytes) if trial_bytes else 0,
        )

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
            LateError: it was stopped after the time that it may take.
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
        try:
            outputs = self._guarded(model, form, arrays)
        except InputError:
            raise
        except ModelError as exc:
            if self._watchdog.barked:
                seconds = f"{self._settings.run_timeout_s:g} s"
                raise LateError(f"the model did not answer within {seconds}") from exc
            outputs = self._once_more(model, form, arrays, exc)
        contiguous = [np.ascontiguousarray(output) for output in outputs]
        return contiguous, (time.perf_counter_ns() - started) // 1000

    def _guarded(self, model: Model, form: Form, arrays: list[Array]) -> list[Array]:
        options = ort.RunOptions()
        if sum(array.nbytes for array in arrays) > _LARGE_BYTES:
            # The arena would keep what a large batch took.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._watchdog.begin(options, self._settings.run_timeout_s)
        try:
            return model.run(form, arrays, options)
        finally:
            self._watchdog.end()

    def _once_more(
        self, model: Model, form: Form, arrays: list[Array], failure: ModelError
    ) -> list[Array]:
        """Find out whose fault it is: the input's, if golden inputs run and it fails again without them."""
        if any(word in str(failure) for word in _OUT_OF_MEMORY) or not model.is_well():
            raise failure
        try:
            return self._guarded(model, form, arrays)
        except ModelError as exc:
            raise InputError(str(exc)) from exc


@contextlib.contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process grow by at most so much; 0 is no limit."""
    if not more_bytes:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _status_bytes("VmData") + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _forget_peak() -> None:
    """From now on VmHWM is the peak of what follows."""
    # Not every kernel has it (CONFIG_PROC_PAGE_MONITOR): the peak then counts what importing took, too.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(name: str) -> int:
    """A size of this process (proc(5)); VmData is what counts against RLIMIT_DATA."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
