"""The engine's values: what it answers, what it knows of a release, what it counts."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from shoal_agent.inference.backlog import Backlog, Entry, Waiting
from shoal_agent.inference.errors import BadInputError, InferenceError
from shoal_agent.inference.worker import Loaded, Result
from shoal_contract.messages import Answer

_LATENCIES: Final = 512
_NEW_SHARE: Final = 0.2
"""Weight of the newest batch in the moving average of batch times."""


@dataclass(frozen=True, slots=True)
class Served:
    """Answers in the order of the items, the id of the release, and the node that ran it."""

    answers: list[Answer]
    release: bytes
    by: str


@dataclass(frozen=True, slots=True)
class Admission:
    """How the trial went; zeros when there was none."""

    load_ms: float = 0.0
    p50_us: int = 0
    p95_us: int = 0
    golden_count: int = 0

    @classmethod
    def of(cls, loaded: Loaded) -> Self:
        """From what the worker measured."""
        return cls(loaded.load_us / 1000, loaded.p50_us, loaded.p95_us, loaded.golden_count)


@dataclass(slots=True)
class EngineStats:
    """Counters since the start; latencies of the newest 512 requests, in microseconds."""

    requests: int = 0
    items: int = 0
    batches: int = 0
    refused: int = 0
    expired: int = 0
    worker_restarts: int = 0
    latencies_us: deque[int] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def record_latency(self, seconds: float) -> None:
        """One request was answered after so long."""
        self.latencies_us.append(round(seconds * 1e6))

    def latency_us(self, share: float) -> int:
        """The latency that this share (0.5: p50) of the newest requests stayed within; 0: none."""
        ordered = sorted(self.latencies_us)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


class Release:
    """One release in the engine: its queue and who waits for it.

    Attributes:
        broken: why it cannot be loaded any more.
        retired: to be unloaded once nobody waits for it.
    """

    def __init__(
        self,
        release: bytes,
        directory: Path,
        queue_limit: int,
        admission: Admission = Admission(),
        item_bytes: int = 0,
    ) -> None:
        self.id = release
        self.directory = directory
        self.admission = admission
        self.item_bytes = item_bytes
        self.backlog = Backlog(queue_limit)
        self.waiters: dict[Waiting, asyncio.Future[list[Answer]]] = {}
        self.retired = False
        self.broken: str | None = None
        self.load_crashes = 0
        self.batch_s = 0.0

    def settle(self, batch: Sequence[Entry], results: Sequence[Result]) -> None:
        """Hand the results of a batch to those who wait for them."""
        for entry, result in zip(batch, results, strict=True):
            request = entry.request
            if isinstance(result, str):
                self.fail(request, BadInputError(result))
                continue
            request.results[entry.index] = result
            if request.is_complete:
                done = self.waiters.get(request)
                if done is not None and not done.done():
                    done.set_result([request.results[n] for n in range(len(request.items))])

    def put_back(self, batch: Sequence[Entry], error: InferenceError) -> None:
        """The worker died: once more, for requests to which that happens the first time."""
        requests = dict.fromkeys(entry.request for entry in batch)
        for request in requests:
            if request.retried:
                self.fail(request, error)
            request.retried = True
        self.backlog.put_back([entry for entry in batch if not entry.request.over])

    def fail(self, request: Waiting, error: InferenceError) -> None:
        """Tell whoever waits for the request."""
        request.over = True
        done = self.waiters.get(request)
        if done is not None and not done.done():
            done.set_exception(error)

    def fail_all(self, error: InferenceError) -> None:
        """Nothing that waits here can be served."""
        for request in list(self.waiters):
            self.fail(request, error)

    def record_batch(self, seconds: float) -> None:
        """One batch took so long."""
        old = self.batch_s or seconds
        self.batch_s = old + _NEW_SHARE * (seconds - old)
