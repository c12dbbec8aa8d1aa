"""The worker process: loads models and runs batches for the engine at the other end of a socket.

It alone imports numpy and ONNX Runtime (through `onnx_model`); it decides nothing and keeps nothing on
the disk. It ends when the engine closes the socket or dies.

    python -m shoal_agent.inference.worker_main <socket fd> <threads> <parent pid>
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shoal_agent.inference import pipe
from shoal_contract.errors import DecodeError

if TYPE_CHECKING:
    from shoal_agent.inference.onnx_model import Model

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = "500"
"""Before the agent, before most others: a worker comes back by itself."""


class Worker:
    """Answers the engine's calls; a load runs beside the batches, in a thread of its own.

    Args:
        engine: a connected stream socket.
        threads: of ONNX Runtime within one operator.
    """

    def __init__(self, engine: socket.socket, *, threads: int) -> None:
        self._engine = engine
        self._threads = threads
        self._models: dict[bytes, Model] = {}
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Answer until the engine closes the socket.

        Raises:
            DecodeError: the engine spoke nonsense.
        """
        self._reply(pipe.GREETING, pipe.OK, os.getpid())
        with self._engine.makefile("rb") as incoming:
            while prefix := incoming.read(pipe.PREFIX.size):
                if len(prefix) < pipe.PREFIX.size:
                    return
                call, operation, arguments = pipe.unpack(incoming.read(pipe.body_bytes(prefix)))
                self._obey(call, operation, arguments)

    def _obey(self, call: int, operation: str, arguments: list[Any]) -> None:
        match operation, arguments:
            case pipe.RUN, [bytes(release), list(items)]:
                model = self._models.get(release)
                if model is None:
                    self._reply(call, pipe.REFUSED, "the release is not loaded")
                else:
                    self._reply(call, pipe.OK, model.run(items))
            case pipe.LOAD, [bytes(release), str(directory), int(trial_bytes)]:
                load = (call, release, Path(directory), trial_bytes)
                threading.Thread(target=self._load, args=load, daemon=True).start()
            case pipe.UNLOAD, [bytes(release)]:
                self._models.pop(release, None)
                _give_memory_back()
                self._reply(call, pipe.OK, None)
            case _:
                raise DecodeError(f"no such operation: {operation!r}")

    def _load(self, call: int, release: bytes, directory: Path, trial_bytes: int) -> None:
        from shoal_agent.inference.onnx_model import Model, ModelError  # noqa: PLC0415 - see _main

        started = time.perf_counter()
        try:
            with _memory_limit(trial_bytes):
                model = Model(directory, threads=self._threads)
                load_us = round((time.perf_counter() - started) * 1e6)
                p50_us, p95_us = model.measure_us() if trial_bytes else (0, 0)
        except ModelError as exc:
            self._reply(call, pipe.REFUSED, str(exc))
            return
        except MemoryError:
            self._reply(call, pipe.REFUSED, "it needs more memory than a model may have here")
            return
        self._models[release] = model
        item_bytes = model.spec.input.item_bytes
        self._reply(call, pipe.OK, [item_bytes, load_us, p50_us, p95_us, model.golden_count])

    def _reply(self, call: int, verdict: str, value: object) -> None:
        with self._sending:
            self._engine.sendall(pipe.pack([call, verdict, value]))


@contextlib.contextmanager
def _memory_limit(more_bytes: int) -> Any:
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


def _give_memory_back() -> None:
    # glibc keeps what an unloaded model held until it is asked; other libcs have no malloc_trim.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it died before the line above


def _main(arguments: list[str]) -> int:
    fd, threads, parent = (int(argument) for argument in arguments)
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the group; the agent decides
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    # Before numpy is imported: its BLAS starts a thread a core, for matrices we do not multiply.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import shoal_agent.inference.onnx_model  # noqa: F401, PLC0415 - slow, and after the line above

    with socket.socket(fileno=fd) as engine, contextlib.suppress(ConnectionError):
        Worker(engine, threads=threads).serve()
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
