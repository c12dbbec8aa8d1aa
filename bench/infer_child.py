"""`infer_child.py SUBJECT DIRECTORY MODEL SECONDS [RATE]`: one subject of area `infer` in a process of its own.

Prints what it took as JSON. Subjects: loop-1, loop-best (bare ONNX Runtime), engine-thread, engine-process (64 callers
that ask again at once), callers (the same without an engine: what asking costs by itself), open-threads, open-thread, open-process (requests at RATE a second, whether or not the last
ones are done: a thread a request, or the engine), tight, paced, paced-thread (one at a time; 20 a second), loop-paced (the same,
bare), swap, swap-thread, steady (four callers while releases are switched, or are not), loop-steady (the bare loop for as
long as steady), worker (its memory).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import infer_models
import measure
import processes
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import InferenceError
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.tensors import Tensor

CALLERS = 64
MAX_BATCH = 32
PACE_S = 0.05
DEADLINE_S = 10.0
DISTINCT = 64
SWAPS = 5
SWAP_CALLERS = 4
STEADY_S = 10.0  # about as long as the swaps take: the longer, the worse the slowest
THREADS_AT_MOST = 4000
_TRY_S = 0.1
_WARM_UP = 50


def session_of(directory: Path) -> Any:
    """A bare session with the engine's own settings."""
    import onnxruntime as ort  # noqa: PLC0415 - the engine's process has none, and is measured without

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(
        directory / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def loop(directory: Path, model: str, seconds: float, *, is_best: bool) -> dict[str, float]:
    """`session.run` over and over: the floor. `is_best`: with the most productive batch of 1, 2, 4 ... 32."""
    session = session_of(directory)
    sizes = [1 << n for n in range(MAX_BATCH.bit_length())] if is_best else [1]
    rates = {size: _rate(session, directory, model, size, _TRY_S)[0] for size in sizes}
    best = max(rates, key=lambda size: rates[size])
    cpu_before_s = time.process_time()
    rate, latencies_s, count = _rate(session, directory, model, best, seconds)
    cpu_s = time.process_time() - cpu_before_s
    return {
        "rate": rate,
        "batch": best,
        "cpu_us": cpu_s / count * 1e6,
        "max_to_median": _max_to_median(latencies_s),
        **_tail(latencies_s),
    }


def _rows_of(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: array[k : k + 1] for name, array in inputs.items()} for k in range(DISTINCT)]


def _rate(
    session: Any, directory: Path, model: str, size: int, seconds: float
) -> tuple[float, list[float], int]:
    batches = [infer_models.inputs(directory, model, size)] * 4
    latencies_s: list[float] = []
    count = 0
    started = time.perf_counter()
    until = started + seconds
    for batch in cycle(batches):
        before = time.perf_counter()
        if before > until:
            break
        session.run(None, batch)
        latencies_s.append(time.perf_counter() - before)
        count += size
    return count / (time.perf_counter() - started), latencies_s, count


def loop_paced(directory: Path, model: str, seconds: float) -> dict[str, float]:
    """`session.run` 20 times a second: what resting costs by itself, on this machine and at this moment."""
    session = session_of(directory)
    row = infer_models.inputs(directory, model, 1)
    for _ in range(_WARM_UP):
        session.run(None, row)
    count = 0
    until = time.perf_counter() + seconds
    cpu_before_s = time.process_time()
    while time.perf_counter() < until:
        session.run(None, row)
        count += 1
        time.sleep(PACE_S)
    return {"cpu_us": (time.process_time() - cpu_before_s) / count * 1e6}


class Asked:
    """The engine with one model, and requests for it whose answers are known."""

    def __init__(self, engine: Engine, directory: Path, model: str) -> None:
        self.engine = engine
        self.latencies_s: list[float] = []
        self.failed = 0
        self._model = model
        self._inputs = [
            {name: Tensor.of(str(a.dtype), a.shape, a.tobytes()) for name, a in row.items()}
            for row in _rows_of(infer_models.inputs(directory, model, DISTINCT))
        ]

    async def ask(self, number: int, since: float | None = None) -> None:
        """One request; its latency counts from `since`, when it should have been made."""
        started = time.perf_counter() if since is None else since
        try:
            await self.engine.infer(
                self._model, self._inputs[number % DISTINCT], deadline_s=DEADLINE_S
            )
        except InferenceError:
            self.failed += 1
            return
        self.latencies_s.append(time.perf_counter() - started)


@asynccontextmanager
async def asked(directory: Path, model: str, kind: Any, queue: int = 4096) -> AsyncIterator[Asked]:
    """An engine that serves the model, warmed up."""
    settings = WorkerSettings(kind=kind, optimised_dir=str(directory / "optimised"))
    async with Engine.open(queue_limit=queue, max_batch=MAX_BATCH, settings=settings) as engine:
        release = model.encode().ljust(32, b"\0")
        await engine.admit(release, directory, trial=False)
        await engine.switch(model, release)
        subject = Asked(engine, directory, model)
        for number in range(_WARM_UP):
            await subject.ask(number)
        subject.latencies_s.clear()
        gc.collect()
        gc.freeze()  # as the agent does once it runs
        yield subject


async def saturated(subject: Asked, seconds: float) -> dict[str, float]:
    """64 callers, each of which asks again as soon as it was answered."""
    until = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while time.perf_counter() < until:
            await subject.ask(number)

    return await _measured(subject, lambda: asyncio.gather(*map(caller, range(CALLERS))))


async def callers_alone(seconds: float) -> dict[str, float]:
    """The callers of `saturated`, answered in batches by nobody."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    latencies_s: list[float] = []
    until = time.perf_counter() + seconds

    async def ask() -> None:
        started = time.perf_counter()
        done = loop.create_future()
        waiting.append(done)
        await done
        latencies_s.append(time.perf_counter() - started)

    async def caller() -> None:
        while time.perf_counter() < until:
            await ask()

    async def answer() -> None:
        while time.perf_counter() < until or waiting:
            await asyncio.sleep(0)
            for done in waiting:
                done.set_result(None)
            waiting.clear()

    before_s = time.thread_time()
    await asyncio.gather(answer(), *(caller() for _ in range(CALLERS)))
    return {"engine_cpu_us": (time.thread_time() - before_s) / len(latencies_s) * 1e6}


async def one_at_a_time(subject: Asked, seconds: float, *, pause_s: float) -> dict[str, float]:
    """One caller, which rests between two requests, or not."""
    until = time.perf_counter() + seconds

    async def caller() -> None:
        number = 0
        while time.perf_counter() < until:
            await subject.ask(number)
            number += 1
            if pause_s:
                await asyncio.sleep(pause_s)

    return await _measured(subject, caller)


async def open_loop(subject: Asked, seconds: float, rate: float) -> dict[str, float]:
    """Requests that come as they come (Poisson), not when the last ones are done."""
    draw = random.Random(7)  # noqa: S311 - arrivals, not a secret

    async def arrivals() -> None:
        async with asyncio.TaskGroup() as tasks:
            due = started = time.perf_counter()
            number = 0
            while due < started + seconds:
                if (rest_s := due - time.perf_counter()) > 0:
                    await asyncio.sleep(rest_s)
                tasks.create_task(subject.ask(number, due))
                number += 1
                due += draw.expovariate(rate)

    return await _measured(subject, arrivals)


async def _measured(subject: Asked, work: Callable[[], Awaitable[object]]) -> dict[str, float]:
    stats = subject.engine.stats
    batches = stats.batches
    started = time.perf_counter()
    cpu_before_s, thread_before_s = _cpu_s(), time.thread_time()
    await work()
    took_s = time.perf_counter() - started
    count = max(1, len(subject.latencies_s))
    return {
        "rate": count / took_s,
        "batch": count / max(1, stats.batches - batches),
        "cpu_us": (_cpu_s() - cpu_before_s) / count * 1e6,
        # The event loop's thread alone: the engine, and the caller's two clock readings.
        "engine_cpu_us": (time.thread_time() - thread_before_s) / count * 1e6,
        "failed": subject.failed,
        **_tail(subject.latencies_s),
    }


def threads(directory: Path, model: str, seconds: float, rate: float) -> dict[str, float]:
    """A thread a request, as a server without batches has it; the same arrivals as `open_loop`."""
    session = session_of(directory)
    inputs = _rows_of(infer_models.inputs(directory, model, DISTINCT))
    draw = random.Random(7)  # noqa: S311 - arrivals, not a secret
    latencies_s: list[float] = []
    started_threads: list[threading.Thread] = []

    def serve(number: int, due: float) -> None:
        session.run(None, inputs[number % DISTINCT])
        latencies_s.append(time.perf_counter() - due)

    cpu_before_s = time.process_time()
    due = started = time.perf_counter()
    refused = 0
    number = 0
    while due < started + seconds:
        if (rest_s := due - time.perf_counter()) > 0:
            time.sleep(rest_s)
        if threading.active_count() < THREADS_AT_MOST:
            thread = threading.Thread(target=serve, args=(number, due))
            thread.start()
            started_threads.append(thread)
        else:
            refused += 1
        number += 1
        due += draw.expovariate(rate)
    for thread in started_threads:
        thread.join()
    took_s = time.perf_counter() - started
    count = max(1, len(latencies_s))
    return {
        "rate": count / took_s,
        "batch": 1.0,
        "cpu_us": (time.process_time() - cpu_before_s) / count * 1e6,
        "failed": refused,
        **_tail(latencies_s),
    }


async def swap(
    subject: Asked, directory: Path, model: str, *, is_steady: bool = False
) -> dict[str, float]:
    """Callers that never stop, and releases that are admitted, with their trial, and switched to; or none."""
    is_over = False

    async def caller(number: int) -> None:
        while not is_over:
            await subject.ask(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(SWAP_CALLERS):
            tasks.create_task(caller(number))
        if is_steady:
            await asyncio.sleep(STEADY_S)
        for number in () if is_steady else range(1, SWAPS + 1):
            release = bytes([number]) * 32
            await subject.engine.admit(release, directory / "next", trial=True)
            await subject.engine.switch(model, release)
            await asyncio.sleep(_TRY_S)
        is_over = True
    latencies_s = subject.latencies_s
    return {
        "failed": subject.failed,
        "max_to_median": _max_to_median(latencies_s),
        **_tail(latencies_s),
    }


def _max_to_median(latencies_s: list[float]) -> float:
    return max(latencies_s) / measure.percentile(latencies_s, 0.5)


def _tail(latencies_s: list[float]) -> dict[str, float]:
    return {
        "p50_us": measure.percentile(latencies_s, 0.5) * 1e6,
        "p99_us": measure.percentile(latencies_s, 0.99) * 1e6,
    }


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def _cpu_s() -> float:
    return time.process_time() + sum(map(processes.cpu_s, _children()))


def _child_pss_mib() -> float:
    (pid,) = _children()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise measure.BenchError("the kernel does not tell the memory of a process")


async def with_engine(
    subject: str, directory: Path, model: str, seconds: float, rate: float
) -> dict[str, float]:
    """The subjects that are the engine's."""
    how, _, kind = subject.partition("-")
    async with asked(directory, model, kind or "process") as engine:
        match how:
            case "engine":
                return await saturated(engine, seconds)
            case "open":
                return await open_loop(engine, seconds, rate)
            case "tight":
                return await one_at_a_time(engine, seconds, pause_s=0.0)
            case "paced":
                return await one_at_a_time(engine, seconds, pause_s=PACE_S)
            case "swap":
                return await swap(engine, directory, model)
            case "steady":
                return await swap(engine, directory, model, is_steady=True)
            case "worker":
                return {"worker_mib": _child_pss_mib()}
    raise measure.BenchError(f"there is no subject {subject!r}")


def main(arguments: list[str]) -> int:
    """Run one subject."""
    subject, directory, model, seconds, *more = arguments
    rate = float(more[0]) if more else 0.0
    match subject:
        case "loop-1" | "loop-best":
            took = loop(Path(directory), model, float(seconds), is_best=subject == "loop-best")
        case "loop-steady":
            took = loop(Path(directory), model, STEADY_S, is_best=False)
        case "loop-paced":
            took = loop_paced(Path(directory), model, float(seconds))
        case "callers":
            took = asyncio.run(callers_alone(float(seconds)))
        case "open-threads":
            took = threads(Path(directory), model, float(seconds), rate)
        case _:
            took = asyncio.run(with_engine(subject, Path(directory), model, float(seconds), rate))
    sys.stdout.write(json.dumps(took) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
