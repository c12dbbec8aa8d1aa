"""Opens ONNX Runtime sessions: with which options, on which threads. Only the worker imports this."""

import hashlib
import os
import platform
from pathlib import Path

import onnxruntime as ort

from shoal_agent.inference.model_errors import ModelError, one_line
from shoal_agent.inference.optimised import WEIGHTS
from shoal_agent.inference.settings import CPU, WorkerSettings


def open_session(
    model: bytes, settings: WorkerSettings, *, save_to: Path | None = None
) -> ort.InferenceSession:
    """A session for a model in memory: external data cannot reach other files.

    Args:
        model: the ONNX file.
        settings: threads and providers; a provider that this ONNX Runtime does not have is passed over.
        save_to: where to write the model as it was optimised, its weights beside it.

    Raises:
        ModelError: it does not load.
    """
    options = _options(settings)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
        entry = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(entry + "file_name", WEIGHTS)
        options.add_session_config_entry(entry + "min_size_in_bytes", "1024")
    return _open(model, options, settings)


def open_optimised(path: Path, settings: WorkerSettings) -> ort.InferenceSession:
    """A session for what `save_to` has written; the weights are mapped.

    Raises:
        ModelError: it does not load.
    """
    options = _options(settings)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _open(str(path), options, settings)


def made_for() -> str:
    """The runtime and the processor that an optimised form is good for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    processor = hashlib.sha256(flags.encode()).hexdigest()[:16]
    return f"onnxruntime {ort.__version__}, {platform.machine()}, {processor}"


def _options(settings: WorkerSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # A spinning thread pool burns a core between two requests (measured by ORT's own docs).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _open(
    model: bytes | str, options: ort.SessionOptions, settings: WorkerSettings
) -> ort.InferenceSession:
    there = set(ort.get_available_providers())
    wanted = [name for name in settings.providers if name in there and name != CPU]
    try:
        return ort.InferenceSession(model, options, providers=[*wanted, CPU])
    except Exception as exc:
        raise ModelError(f"ONNX Runtime does not load the model: {one_line(exc)}") from exc
