"""`inference_child.py KIND REQUESTS`: one contender in a process of its own, started by inference.py.

KIND is engine-many, engine-single, loop-many or loop-single; prints what it took as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import measure
import processes
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import InferenceError
from shoal_fleet import digits

MODEL = "digits"
# Below the engine's queue limit (64), so that nothing is refused; above two batches, so that one fills up
# while another runs.
WAITING = 64
BATCH = 16
DEADLINE_S = 10.0
WARM_UP = 200


class Tally:
    """Counts one run: answers, right ones, and the time each took."""

    def __init__(self) -> None:
        self.sent = 0
        self.correct = 0
        self.latencies_s: list[float] = []
        self.took_s = 0.0
        self.cpu_s = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Wall time, and the CPU time of this process and its children."""
        started, cpu_before_s = time.perf_counter(), _cpu_s()
        yield
        self.took_s = time.perf_counter() - started
        self.cpu_s = _cpu_s() - cpu_before_s

    def to_json(self) -> str:
        """The figures of inference.py."""
        answered = len(self.latencies_s)
        return json.dumps(
            {
                "request_us": self.took_s / max(1, answered) * 1e6,
                "cpu_us": self.cpu_s / max(1, answered) * 1e6,
                "p50_us": measure.percentile(self.latencies_s, 0.5) * 1e6,
                "p99_us": measure.percentile(self.latencies_s, 0.99) * 1e6,
                "correct_percent": 100 * self.correct / max(1, answered),
                "answered": answered,
                "sent": self.sent,
            }
        )


async def engine(requests: int, *, callers: int) -> Tally:
    """`callers` ask the engine, each again as soon as it was answered."""
    scans = [(digits.pack_u5(scan.levels), str(scan.label)) for scan in digits.held_out()]
    release_dir = digits.release_dir(2)
    release = hashlib.sha256((release_dir / "model.onnx").read_bytes()).digest()
    async with Engine.open(queue_limit=WAITING, max_batch=BATCH) as serving:
        await serving.admit(release, release_dir, trial=False)
        await serving.switch(MODEL, release)

        async def ask_all(count: int) -> Tally:
            tally = Tally()
            left = islice(cycle(scans), count)

            async def caller() -> None:
                for item, label in left:
                    tally.sent += 1
                    started = time.perf_counter()
                    try:
                        served = await serving.classify(MODEL, [item], deadline_s=DEADLINE_S)
                    except InferenceError:
                        continue
                    tally.latencies_s.append(time.perf_counter() - started)
                    tally.correct += served.answers[0].label == label

            with tally.measured():
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(callers):
                        tasks.create_task(caller())
            return tally

        await ask_all(WARM_UP)
        return await ask_all(requests)


def loop(requests: int, *, batch: int) -> Tally:
    """Bare ONNX Runtime: the decoded scans through `run`, `batch` at a time, and the best label."""
    # Here: the engine's process has neither, and is measured without them.
    import numpy as np  # noqa: PLC0415
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        digits.release_dir(2) / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    scans = digits.held_out()
    pixels = np.array([scan.levels for scan in scans], np.float32).reshape(-1, 1, 8, 8) / 16
    labels = np.array([scan.label for scan in scans])
    batches = [
        (pixels[start : start + batch], labels[start : start + batch])
        for start in range(0, len(scans), batch)
    ]

    def run_all(count: int) -> Tally:
        tally = Tally()
        with tally.measured():
            for images, wanted in cycle(batches):
                if tally.sent >= count:
                    break
                started = time.perf_counter()
                (scores,) = session.run(["logits"], {"image": images})
                best = scores.argmax(axis=1)
                took_s = time.perf_counter() - started
                tally.sent += len(images)
                tally.correct += int((best == wanted).sum())
                tally.latencies_s += [took_s] * len(images)
        return tally

    run_all(WARM_UP)
    return run_all(requests)


def _cpu_s() -> float:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return time.process_time() + sum(processes.cpu_s(int(pid)) for pid in children)


def main(kind: str, requests: int) -> int:
    """Run one contender."""
    match kind:
        case "engine-many" | "engine-single":
            callers = WAITING if kind == "engine-many" else 1
            tally = asyncio.run(engine(requests, callers=callers))
        case "loop-many" | "loop-single":
            tally = loop(requests, batch=BATCH if kind == "loop-many" else 1)
        case _:
            sys.stderr.write(f"there is no contender {kind!r}\n")
            return 2
    sys.stdout.write(tally.to_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
