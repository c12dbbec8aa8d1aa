"""The engine's values: what it answers, what it knows of a release, what it counts."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

from shoal_agent.inference.absence import Absence
from shoal_agent.inference.backlog import Backlog, Piece, Request
from shoal_agent.inference.batch import Loaded
from shoal_agent.inference.errors import InferenceError, ModelFailedError, WorkerLostError
from shoal_agent.inference.pace import Pace
from shoal_agent.inference.signature import Forms, Signature
from shoal_agent.inference.tensors import Tensor, joined
from shoal_contract.messages import Answer

_LATENCIES: Final = 512
_SMALL_ROW_BYTES: Final = 4096
"""Up to here a copy costs less than a view, and does not keep the whole batch in memory."""


class Inferred(msgspec.Struct, frozen=True, gc=False):
    """Outputs by name, the id of the release, and the node that ran it."""

    outputs: dict[str, Tensor]
    release: bytes
    by: str


class Served(msgspec.Struct, frozen=True, gc=False):
    """Answers in the order of the items, the id of the release, and the node that ran it."""

    answers: list[Answer]
    release: bytes
    by: str


@dataclass(frozen=True, slots=True)
class Admission:
    """How the trial went; zeros when there was none.

    `resident_bytes`, `peak_bytes`: how much larger its process was for it, at the end and at most.
    """

    load_ms: float = 0.0
    p50_us: int = 0
    p95_us: int = 0
    golden_count: int = 0
    resident_bytes: int = 0
    peak_bytes: int = 0

    @classmethod
    def of(cls, loaded: Loaded) -> Self:
        """From what the worker measured."""
        return cls(
            load_ms=loaded.load_us / 1000,
            p50_us=loaded.p50_us,
            p95_us=loaded.p95_us,
            golden_count=loaded.golden_count,
            resident_bytes=loaded.grown_bytes,
            peak_bytes=loaded.peak_bytes,
        )


@dataclass(slots=True)
class EngineStats:
    """Counters since the start; latencies of the newest 512 parts of requests.

    `items` counts rows; `busy_s` is how long models ran; `refused`, `expired`: for want of room, of time.
    """

    requests: int = 0
    items: int = 0
    batches: int = 0
    busy_s: float = 0.0
    refused: int = 0
    expired: int = 0
    worker_restarts: int = 0
    evictions: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def record(self, batch: Sequence[Piece], rows: int, took_s: float, now: float) -> None:
        """A batch was run, and those who waited for it are answered."""
        self.batches += 1
        self.items += rows
        self.busy_s += took_s
        self.latencies_s.extend([now - piece.request.arrived for piece in batch])

    def latency_s(self, share: float) -> float:
        """The latency that this share (0.5: p50) of the newest requests stayed within; 0.0: none."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """How a model stands: rows that wait, the batch it gets, what a row costs, and what it runs on.

    `state`: "serving", "evicted" (loaded again when it is asked), "draining" and then "away" (it gives way to its new
    release, and others serve it meanwhile) or "broken";
    `broken`: why it does not run any more. `providers`: those that ONNX Runtime really took, the preferred first.
    `answered`, `failed`: requests since it was loaded, `failed` by the model or its worker, not for want of time or room.
    `size_bytes`: what it gives back when it goes; `admission`: of the trial on this board, be it before a restart.
    """

    model: str
    state: str
    size_bytes: int
    waiting: int
    best_batch: int
    row_us: int
    providers: tuple[str, ...]
    broken: str | None
    admission: Admission = Admission()
    answered: int = 0
    failed: int = 0


class Release:
    """One release in the engine: its queue and who waits for it.

    Attributes:
        forms: what requests are held against.
        waiting: requests that were accepted and are not answered.
        providers: ONNX Runtime's execution providers that run it.
        broken: why it cannot be loaded any more.
        retired: to be unloaded once nobody waits for it.
        absence: it gives way, so that its new release finds room.
        instead_of: which release gives way to it.
        is_evicted: it gave its memory back; the next request loads it again.
        used_at: when it was asked last.
        answered, failed: see `ModelFacts`.
        copies: is given each request that was answered, and the outputs; None: nobody compares them.
        pace: how long its batches take, and how many rows are best.
    """

    def __init__(
        self,
        release: bytes,
        directory: Path,
        queue_limit: int,
        pace: Pace,
    ) -> None:
        self.id = release
        self.directory = directory
        self.admission = Admission()
        self.forms = Forms(Signature((), ()))
        self.pace = pace
        self.providers: tuple[str, ...] = ()
        self.backlog = Backlog(queue_limit)
        self.waiting: set[Request] = set()
        self.retired = False
        self.absence: Absence | None = None
        self.instead_of: Release | None = None
        self.broken: str | None = None
        self.load_crashes = 0
        self.is_evicted = False
        self.used_at = 0.0
        self.load_s = 0.0
        self.size_bytes = 0
        self.answered = 0
        self.failed = 0
        self.copies: Callable[[Request, Sequence[Tensor]], None] | None = None

    def count(self, error: BaseException | None) -> None:
        """A request has ended so; what is its sender's fault, or the queue's, does not count."""
        if error is None:
            self.answered += 1
        elif isinstance(error, ModelFailedError | WorkerLostError):
            self.failed += 1

    @property
    def is_wanted(self) -> bool:
        """Somebody waits for it."""
        return any(not request.over for request in self.waiting)

    @property
    def is_going(self) -> bool:
        """It is to go when nobody waits for it any more."""
        return self.retired or (self.absence is not None and self.absence.is_gone)

    @property
    def state(self) -> str:
        """See `ModelFacts`."""
        if self.broken is not None:
            return "broken"
        if self.absence is not None and self.absence.is_gone:
            return self.absence.stay.value
        return "evicted" if self.is_evicted else "serving"

    def facts(self, model: str) -> ModelFacts:
        """How it stands, as what serves `model`."""
        return ModelFacts(
            model=model,
            state=self.state,
            size_bytes=self.size_bytes,
            waiting=self.backlog.rows,
            best_batch=self.pace.best_rows,
            row_us=round(self.pace.row_s * 1e6),
            providers=self.providers,
            broken=self.broken,
            admission=self.admission,
            answered=self.answered,
            failed=self.failed,
        )

    def settle(self, batch: Sequence[Piece], outputs: Sequence[Tensor]) -> None:
        """Hand the outputs of a batch to those who wait for them."""
        if len(batch) == 1:
            self._settle(batch[0], list(outputs))
            return
        columns = []
        for output in outputs:
            row_bytes = len(output.data) // output.shape[0]
            data = output.data if row_bytes <= _SMALL_ROW_BYTES else memoryview(output.data)
            columns.append((output.dtype, output.shape[1:], data, row_bytes))
        start = 0
        for piece in batch:
            rows = piece.stop - piece.start
            stop = start + rows
            outputs = [
                Tensor(dtype, (rows, *shape), data[start * size : stop * size])
                for dtype, shape, data, size in columns
            ]
            start = stop
            request = piece.request
            if rows == request.rows and not request.done.done():
                request.done.set_result(outputs)
            else:
                self._settle(piece, outputs)

    def _settle(self, piece: Piece, outputs: list[Tensor]) -> None:
        request = piece.request
        done = request.done
        if done.done():
            return
        request.rows_done += piece.stop - piece.start
        if request.rows_done == request.rows and request.parts is None:
            done.set_result(outputs)
            return
        if request.parts is None:
            request.parts = {}
        request.parts[piece.start] = outputs
        if request.rows_done == request.rows:
            parts = [request.parts[start] for start in sorted(request.parts)]
            done.set_result([joined(column) for column in zip(*parts, strict=True)])

    def put_back(self, batch: Sequence[Piece], error: InferenceError) -> None:
        """The worker died: once more, for requests to which that happens the first time."""
        for request in dict.fromkeys(piece.request for piece in batch):
            if not request.retry:
                self.fail(request, error)
            request.retry = False
            request.is_running = False
        self.backlog.put_back([piece for piece in batch if not piece.request.over])

    def fail(self, request: Request, error: InferenceError) -> None:
        """Tell whoever waits for the request."""
        request.over = True
        if not request.done.done():
            request.done.set_exception(error)

    def fail_all(self, error: InferenceError) -> None:
        """Nothing that waits here can be served."""
        for request in list(self.waiting):
            self.fail(request, error)
