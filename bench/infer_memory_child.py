"""`infer_memory_child.py DIRECTORY FORMS`: what a worker process weighs before a release, with it, and after its eviction.

Prints JSON. FORMS: where optimised forms of models are left, as below an agent's state directory.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import processes
from shoal_agent.inference.batch import Batch, Ran
from shoal_agent.inference.errors import InferenceError
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import Form
from shoal_agent.inference.tensors import ELEMENT_BYTES

RELEASE = bytes(32)
RUNS = 20
ROWS = 8
TIMEOUT_S = 60.0
SETTLE_S = 0.5
MIB = 1 << 20


async def measured(directory: Path, forms: Path) -> dict[str, float]:
    """PSS of the worker, in MiB."""
    settings = WorkerSettings(optimised_dir=str(forms))
    # The first load of a board leaves the optimised form: what is measured is a worker as after a restart.
    async with ProcessWorker.open(python=sys.executable, settings=settings) as worker:
        await worker.load(RELEASE, directory, timeout_s=TIMEOUT_S)
    async with ProcessWorker.open(python=sys.executable, settings=settings) as worker:
        empty = await _pss_mib(worker)
        await worker.load(RELEASE, directory, timeout_s=TIMEOUT_S)
        batch = _batch(worker)
        for _ in range(RUNS):
            await _run(worker, batch)
        loaded = await _pss_mib(worker)
        # What the engine does to evict it.
        await worker.unload(RELEASE)
        evicted = await _pss_mib(worker)
    return {
        "empty_mib": empty,
        "loaded_mib": loaded,
        "evicted_mib": evicted,
        "given_back": (loaded - evicted) / (loaded - empty),
    }


async def _run(worker: ProcessWorker, batch: Batch) -> None:
    done: asyncio.Future[Ran | InferenceError] = asyncio.get_running_loop().create_future()
    worker.start(RELEASE, batch, done.set_result, timeout_s=TIMEOUT_S)
    outcome = await done
    if isinstance(outcome, InferenceError):
        raise outcome


async def _pss_mib(worker: ProcessWorker) -> float:
    await asyncio.sleep(SETTLE_S)
    return processes.pss_bytes(worker.pid) / MIB


def _batch(worker: ProcessWorker) -> Batch:
    """Zeros: a model takes no more memory for other inputs of their size."""
    signature = worker.loaded[RELEASE]
    inputs = tuple(type(info)(info.name, info.dtype, info.shape[1:]) for info in signature.inputs)
    form = Form(inputs, tuple(info.name for info in signature.outputs))
    zeros = []
    for dtype, shape in form.shapes(ROWS):
        count = ELEMENT_BYTES[dtype]
        for dimension in shape:
            count *= dimension
        zeros.append([bytes(count)])
    return Batch(form, ROWS, zeros)


def main(arguments: list[str]) -> int:
    """Measure one release."""
    directory, forms = map(Path, arguments)
    sys.stdout.write(json.dumps(asyncio.run(measured(directory, forms))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
