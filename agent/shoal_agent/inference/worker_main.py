"""The worker process: loads models and runs batches for the engine at the other end of a socket.

It alone imports numpy and ONNX Runtime (through `runner`); it decides nothing, and leaves nothing on
the disk but optimised forms of models. It ends when the engine closes the socket or dies.

    python -m shoal_agent.inference.worker_main <socket fd> <parent pid> <settings> <memory fd>...
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal_agent.inference import confinement, pipe
from shoal_agent.inference.batch import layout
from shoal_agent.inference.model_errors import InputError, LateError, ModelError
from shoal_agent.inference.segment import MAX_BYTES, Segment
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Form
from shoal_contract.errors import DecodeError

if TYPE_CHECKING:
    from shoal_agent.inference.release_files import Array
    from shoal_agent.inference.runner import Runner

_PR_SET_PDEATHSIG: Final = 1
_M_ARENA_MAX: Final = -8
_MAX_REASON: Final = 1000
_OOM_SCORE: Final = "500"
"""Before the agent, before most others: a worker comes back by itself."""


class Server:
    """Answers the engine's calls; a load runs beside the batches, in a thread of its own.

    Args:
        engine: a connected stream socket.
        runner: has the models.
        segments: memory that the engine shares, one a batch under way.
        settings: how it runs models.
    """

    def __init__(
        self,
        engine: socket.socket,
        runner: "Runner",
        segments: list[Segment],
        settings: WorkerSettings,
    ) -> None:
        self._engine = engine
        self._runner = runner
        # ONNX Runtime's own threads would inherit it, and could never lose it again.
        self._loading_nice = settings.loading_nice if settings.threads == 1 else 0
        self._segments = segments
        self._forms: dict[bytes, Form] = {}
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
            case pipe.RUN, [bytes(release), int(segment), int(rows), bytes(form)]:
                self._run(call, release, self._segments[segment], rows, form)
            case pipe.LOAD, [bytes(release), str(directory), int(trial_bytes), int(rows)]:
                load = (call, release, Path(directory), trial_bytes, rows)
                threading.Thread(target=self._load, args=load, daemon=True).start()
            case pipe.UNLOAD, [bytes(release)]:
                self._runner.unload(release)
                self._reply(call, pipe.OK, None)
            case _:
                raise DecodeError(f"no such operation: {operation!r}")

    def _run(self, call: int, release: bytes, segment: Segment, rows: int, packed: bytes) -> None:
        self._loading_nice = 0  # it serves: who asks for a model that was evicted waits for it
        form = self._form(packed)
        places, end = layout(form.shapes(rows))
        try:
            shared = memoryview(segment.at_least(end))
            inputs = [shared[p.offset : p.offset + p.size_bytes] for p in places]
            outputs, run_us = self._runner.run(release, form, rows, inputs)
            self._reply(call, pipe.OK, [run_us, _write(segment, end, outputs)])
        except InputError as exc:
            self._reply(call, pipe.BAD_INPUT, str(exc))
        except LateError as exc:
            self._reply(call, pipe.LATE, str(exc))
        except (ModelError, MemoryError) as exc:
            self._reply(call, pipe.FAILED, str(exc) or "out of memory")

    def _form(self, packed: bytes) -> Form:
        # The same few come again and again.
        form = self._forms.get(packed)
        if form is None:
            if len(self._forms) >= pipe.MAX_FORMS:
                self._forms.clear()
            form = self._forms[packed] = msgspec.msgpack.decode(packed, type=Form)
        return form

    def _load(
        self, call: int, release: bytes, directory: Path, trial_bytes: int, calibrate_rows: int
    ) -> None:
        _nice_thread(self._loading_nice)
        try:
            loaded = self._runner.load(
                release, directory, trial_bytes=trial_bytes, calibrate_rows=calibrate_rows
            )
        except ModelError as exc:
            # A model may have a thousand dimensions, and the reason name them all.
            self._reply(call, pipe.REFUSED, str(exc)[:_MAX_REASON])
            return
        self._reply(call, pipe.OK, msgspec.msgpack.encode(loaded))

    def _reply(self, call: int, verdict: str, value: object) -> None:
        with self._sending:
            self._engine.sendall(pipe.pack([call, verdict, value]))


def _write(segment: Segment, start: int, outputs: "list[Array]") -> list[object]:
    """Put the outputs behind the inputs; returns type and shape of each."""
    shapes = [(output.dtype.name, output.shape) for output in outputs]
    places, end = layout(shapes, start)
    shared = memoryview(segment.at_least(end))
    for place, output in zip(places, outputs, strict=True):
        shared[place.offset : place.offset + place.size_bytes] = output.reshape(-1).view("u1").data
    return [[dtype, list(shape)] for dtype, shape in shapes]


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it died before the line above


def _main(arguments: list[str]) -> int:
    fd, parent, chosen, *memory = arguments
    settings = msgspec.json.decode(chosen, type=WorkerSettings)
    _die_with(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the group; the agent decides
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    # Of all that it may write, the form of a model that holds a rule for making gigabytes would be the worst.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = MAX_BYTES if hard == resource.RLIM_INFINITY else min(MAX_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    if settings.cpus:
        with contextlib.suppress(OSError):  # cores that this board does not have
            os.sched_setaffinity(0, settings.cpus)
    # Each load has a thread; with an arena a thread, what a model gives back is torn into pieces that nobody can use
    # (measured: 15 to 85 MiB more after some loads). Other libcs than glibc have no mallopt.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    # Before numpy is imported: its BLAS starts a thread a core, for matrices we do not multiply.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    runner_of = _import_runner(settings)
    if settings.trial_cpu_s:
        confinement.limit(cpu_s=settings.trial_cpu_s)
        confinement.forbid_network_and_programs()
    segments = [Segment(int(descriptor)) for descriptor in memory]
    gc.freeze()  # a collection that looks through all that numpy is holds a batch up by milliseconds
    with socket.socket(fileno=int(fd)) as engine, contextlib.suppress(ConnectionError):
        Server(engine, runner_of(settings), segments, settings).serve()
    return 0


def _import_runner(settings: WorkerSettings) -> "type[Runner]":
    """Imports what is large, in a thread that is as nice as loading is: a thread cannot become less nice again."""
    found: Future[type[Runner]] = Future()

    def find() -> None:
        try:
            _nice_thread(settings.loading_nice)
            from shoal_agent.inference.runner import Runner  # noqa: PLC0415 - slow, and after BLAS's setting

            found.set_result(Runner)
        except BaseException as exc:  # noqa: BLE001 - raised again, in the main thread
            found.set_exception(exc)

    threading.Thread(target=find).start()
    return found.result()


def _nice_thread(more: int) -> None:
    """This thread alone (on Linux niceness is a thread's, whatever POSIX says)."""
    if more:
        thread = threading.get_native_id()
        with contextlib.suppress(
            OSError
        ):  # a hardened unit forbids it: better one that does not yield
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, now + more))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
