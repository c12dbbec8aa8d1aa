"""A new release runs copies of live requests in a process of its own, one at a time, and nobody gets its answers.

What serves never waits for it: a request is copied when it is answered, and only while nothing waits in a queue and
no other copy is under way. Comparing is `agreement`'s.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shoal_agent.inference.agreement import Tally, agreeing_rows, without
from shoal_agent.inference.backlog import Piece, Request
from shoal_agent.inference.batch import Ran
from shoal_agent.inference.batching import batch_of
from shoal_agent.inference.errors import (
    InferenceError,
    ModelRefusedError,
    WorkerLostError,
)
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.tensors import Tensor
from shoal_agent.inference.trial import LOAD_TIMEOUT_S
from shoal_agent.inference.worker import CallRefusedError

CPU_SHARE: Final = 0.25
"""Of one core: after a copy that took a second nothing is copied for three."""
MAX_ROWS: Final = 32
"""Of one request; the others are not compared."""
MAX_INPUT_BYTES: Final = 8 * 1024 * 1024
MAX_OUTPUT_BYTES: Final = 256 * 1024
"""Comparing holds the agent up by some milliseconds for so much."""
_NICER: Final = 10
_ATTEMPTS: Final = 2
"""A process may also be killed from outside: only the second death is the release's fault."""
_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Copy:
    request: Request
    outputs: list[Tensor]


class Shadow:
    """Takes copies of what the release that serves was asked, and has the new one run them.

    Args:
        tally: counted into.
        is_busy: something waits for a worker.
    """

    def __init__(self, tally: Tally, is_busy: Callable[[], bool]) -> None:
        self._tally = tally
        self._is_busy = is_busy
        self._loop = asyncio.get_running_loop()
        self._copy: _Copy | None = None
        self._is_free = False
        self._came = asyncio.Event()

    def offer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """A request was answered so. Returns at once."""
        if (
            not self._is_free
            or self._is_busy()
            or _size_bytes(request.inputs) > MAX_INPUT_BYTES
            or _size_bytes(outputs) > MAX_OUTPUT_BYTES
        ):
            self._tally.passed_over += 1
            return
        # What is no bytes of its own may be used again by whoever asked.
        kept = [Tensor(one.dtype, one.shape, bytes(one.data)) for one in request.inputs]
        nobody: asyncio.Future[list[Tensor]] = self._loop.create_future()
        copy = Request(request.form, kept, request.rows, math.inf, 0, 0.0, nobody, retry=False)
        self._copy = _Copy(copy, list(outputs))
        self._is_free = False
        self._came.set()

    async def run(
        self, worker: ProcessWorker, release: bytes, *, until: float, timeout_s: float
    ) -> None:
        """Compare until it is enough, or the time of the event loop is `until`.

        Raises:
            WorkerLostError: the new release ended its process.
        """
        while not self._tally.is_enough and (left_s := until - self._loop.time()) > 0:
            self._is_free = self._copy is None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._came.wait()
                    began = self._loop.time()
                    await self._compare(worker, release, timeout_s)
                    await asyncio.sleep((self._loop.time() - began) * (1 / CPU_SHARE - 1))

    async def _compare(self, worker: ProcessWorker, release: bytes, timeout_s: float) -> None:
        copy, self._copy = self._copy, None
        self._came.clear()
        if copy is None:
            return
        request = copy.request
        form = request.form
        rows = min(request.rows, MAX_ROWS)
        try:
            ran = await _ran(worker, release, request, rows, timeout_s)
        except WorkerLostError:
            self._tally.count_failure(rows)
            raise
        except InferenceError:
            self._tally.count_failure(rows)
            return
        measure = self._tally.measure
        agreed = await asyncio.to_thread(
            agreeing_rows, measure, form, rows, copy.outputs, ran.outputs
        )
        self._tally.count(rows, agreed)


async def shadow_run(
    tally: Tally,
    release: bytes,
    directory: Path,
    *,
    copies: Callable[[Callable[[Request, Sequence[Tensor]], None] | None], None],
    python: str,
    settings: WorkerSettings,
    memory_bytes: int,
    is_busy: Callable[[], bool],
    is_memory_short: Callable[[], bool],
) -> str:
    """Hold the release against the one that serves, as `tally` says. Returns what came of it.

    Args:
        tally: of this run.
        release: the new one's id.
        directory: holds its files.
        copies: told who takes answered requests from now on; None: nobody.
        python: the interpreter for the process.
        settings: how the worker that serves runs models; the shadow has one thread and is nicer.
        memory_bytes: that its process may grow by.
        is_busy: something waits for the worker that serves.
        is_memory_short: it has to end now.

    Raises:
        ModelRefusedError: it agrees too little, fails, or its release does not pass without enough traffic or room.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + tally.table.within_s
    shadow = Shadow(tally, is_busy)
    settings = replace(
        settings,
        kind="process",
        threads=1,
        nice=min(19, settings.nice + _NICER),
        trial_cpu_s=math.ceil(LOAD_TIMEOUT_S + tally.table.within_s),
    )

    async def runs() -> None:
        async with ProcessWorker.open(python=python, settings=settings) as worker:
            await worker.load(
                release, directory, trial_bytes=memory_bytes, timeout_s=LOAD_TIMEOUT_S
            )
            copies(shadow.offer)
            try:
                timeout_s = settings.run_timeout_s + _LOOK_S
                await shadow.run(worker, release, until=until, timeout_s=timeout_s)
            finally:
                copies(None)

    if await _while_there_is_room(lambda: _twice(runs), is_memory_short):
        reason = tally.why_refused()
    else:
        reason = without(tally.table, "memory became short")
    if reason is not None:
        raise ModelRefusedError(reason)
    return str(tally)


async def _twice(runs: Callable[[], Awaitable[None]]) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await runs()
        except CallRefusedError as exc:
            raise ModelRefusedError(str(exc)) from exc
        except WorkerLostError as exc:
            if attempt == _ATTEMPTS:
                raise ModelRefusedError(f"it failed its shadow run: {exc}") from exc
    raise AssertionError  # the loop returns or raises


async def _while_there_is_room(
    work: Callable[[], Awaitable[None]], is_memory_short: Callable[[], bool]
) -> bool:
    """Whether it came to its end; no: memory became short."""
    task = asyncio.ensure_future(work())
    try:
        while not task.done():
            if is_memory_short():
                return False
            await asyncio.wait([task], timeout=_LOOK_S)
        await task
        return True
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _ran(
    worker: ProcessWorker, release: bytes, request: Request, rows: int, timeout_s: float
) -> Ran:
    done: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()

    def tell(outcome: Ran | InferenceError) -> None:
        if done.done():
            return
        if isinstance(outcome, Ran):
            done.set_result(outcome)
        else:
            done.set_exception(outcome)

    batch = batch_of([Piece(request, 0, rows)], rows)
    worker.start(release, batch, tell, timeout_s=timeout_s)
    return await done


def _size_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.size_bytes for tensor in tensors)
