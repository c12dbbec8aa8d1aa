"""What every worker does, be it a process or a thread."""

import asyncio
import contextlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.shoal_agent.inference import tiny_release as tiny

from shoal_agent.inference import exchange
from shoal_agent.inference.batch import Batch, Ran
from shoal_agent.inference.errors import (
    BadInputError,
    InferenceError,
    LateBatchError,
    ModelFailedError,
    WorkerLostError,
)
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.segment import MAX_BYTES, Segment
from shoal_agent.inference.settings import CPU, WorkerSettings
from shoal_agent.inference.signature import Form, TensorInfo, item_form
from shoal_agent.inference.thread_worker import ThreadWorker
from shoal_agent.inference.worker import CallRefusedError, Worker

RELEASE = bytes(32)


def opened(kind: str, **options: object):
    settings = WorkerSettings(kind=kind, **options)
    if kind == "thread":
        return ThreadWorker.open(settings)
    return ProcessWorker.open(python=sys.executable, settings=settings)


@pytest.fixture(params=["process", "thread"])
async def worker(request) -> AsyncIterator[Worker]:
    async with opened(request.param, run_timeout_s=0.3) as worker:
        yield worker


async def run(worker: Worker, batch: Batch) -> Ran:
    done: asyncio.Future[Ran | InferenceError] = asyncio.get_running_loop().create_future()
    worker.start(RELEASE, batch, done.set_result, timeout_s=20)
    assert not done.done()
    outcome = await done
    if isinstance(outcome, InferenceError):
        raise outcome
    return outcome


def items(*data: bytes) -> Batch:
    return Batch(item_form(4), len(data), [data])


def numbers(count: int) -> Batch:
    """A row of the `pair` model."""
    form = Form((TensorInfo("a", "float32", (4,)), TensorInfo("n", "int64", (1,))), ("total",))
    return Batch(form, 1, [[bytes(16)], [np.array([count]).tobytes()]])


async def test_rows_that_lie_apart_come_out_in_order(worker, tmp_path):
    tiny.write(tmp_path)
    loaded = await worker.load(RELEASE, tmp_path, calibrate_rows=4, timeout_s=20)
    assert loaded.providers == (CPU,)
    assert [rows for rows, _ in loaded.points][:2] == [1, 2]
    assert worker.loaded[RELEASE].item_bytes == 4
    data = [tiny.item(n, 2 * n, 7, 255 - n) for n in range(20)]
    joined = memoryview(b"".join(data))
    ran = await run(worker, Batch(item_form(4), 20, [[joined[:12], data[3], joined[16:]]]))
    best = np.frombuffer(ran.outputs[0].data, np.int32)
    assert [tiny.LABELS[n] for n in best] == [tiny.expected_label(item) for item in data]
    assert ran.run_us > 0


async def test_a_release_that_breaks_a_promise_is_refused_and_the_worker_is_well(worker, tmp_path):
    tiny.write(tmp_path, model=b"MZ")
    with pytest.raises(CallRefusedError, match="does not load"):
        await worker.load(RELEASE, tmp_path, timeout_s=20)
    tiny.write(tmp_path)
    await worker.load(RELEASE, tmp_path, timeout_s=20)
    assert worker.lost is None


async def test_what_is_unloaded_is_gone(worker, tmp_path):
    tiny.write(tmp_path)
    await worker.load(RELEASE, tmp_path, timeout_s=20)
    await worker.unload(RELEASE)
    assert not worker.loaded
    with pytest.raises(ModelFailedError, match="is not loaded"):
        await run(worker, items(tiny.item()))


async def test_an_input_that_the_model_cannot_take_is_told_from_a_failure_of_the_runtime(
    worker, tmp_path
):
    tiny.write_tensors(tmp_path / "a", gather=True)
    tiny.write_tensors(tmp_path / "b", hungry=True)
    await worker.load(RELEASE, tmp_path / "a", timeout_s=20)
    with pytest.raises(BadInputError):
        await run(worker, numbers(99))
    await worker.load(RELEASE, tmp_path / "b", timeout_s=20)
    with pytest.raises(ModelFailedError):
        await run(worker, numbers(1 << 46))
    ran = await run(worker, numbers(3))
    assert np.frombuffer(ran.outputs[0].data, np.int64).tolist() == [3]


async def test_a_model_that_hangs_is_stopped_and_the_worker_goes_on(worker, tmp_path):
    tiny.write_tensors(tmp_path, looping=True)
    await worker.load(RELEASE, tmp_path, timeout_s=20)
    with pytest.raises(LateBatchError, match=r"did not answer within 0\.3 s"):
        await run(worker, numbers(1 << 40))
    ran = await run(worker, numbers(3))
    assert np.frombuffer(ran.outputs[0].data, np.int64).tolist() == [3]
    assert worker.lost is None


async def test_two_batches_may_be_under_way_each_in_a_memory_of_its_own(worker, tmp_path):
    tiny.write(tmp_path)
    await worker.load(RELEASE, tmp_path, timeout_s=20)
    data = [tiny.item(n, 3, 7, 1) for n in range(64)]

    async def lane(mine: list[bytes]) -> list[str]:
        labels = []
        for item in mine:
            ran = await run(worker, items(item, item))
            (first, second) = np.frombuffer(ran.outputs[0].data, np.int32)
            assert first == second
            labels.append(tiny.LABELS[first])
        return labels

    both = await asyncio.gather(lane(data[:32]), lane(data[32:]))
    assert both[0] + both[1] == [tiny.expected_label(item) for item in data]


async def test_the_memory_of_a_large_batch_goes_back_to_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LARGE_SEGMENT_BYTES", 0)
    tiny.write(tmp_path)
    async with opened("process") as worker:
        await worker.load(RELEASE, tmp_path, timeout_s=20)
        for n in range(3):
            item = tiny.item(n, 5, 7, 9)
            ran = await run(worker, items(item))
            best = np.frombuffer(ran.outputs[0].data, np.int32)[0]
            assert tiny.LABELS[best] == tiny.expected_label(item)
        assert all(os.fstat(s.descriptor).st_blocks == 0 for s in worker._exchange.segments)


async def test_a_provider_that_is_not_there_is_passed_over_and_what_was_taken_is_said(tmp_path):
    tiny.write(tmp_path)
    async with opened("process", providers=("CUDAExecutionProvider", CPU)) as worker:
        loaded = await worker.load(RELEASE, tmp_path, timeout_s=20)
        assert loaded.providers == (CPU,)


async def test_a_worker_that_was_left_is_lost():
    async with opened("thread") as worker:
        pass
    with pytest.raises(WorkerLostError, match="was stopped"):
        await run(worker, items(tiny.item()))


async def test_a_process_runs_at_the_niceness_and_on_the_cores_that_were_chosen():
    core = max(os.sched_getaffinity(0))
    async with opened("process", nice=7, cpus=(core,)) as worker:
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == os.nice(0) + 7
        assert os.sched_getaffinity(worker.pid) == {core}
    async with opened("process", cpus=(4095,)) as worker:
        assert os.sched_getaffinity(worker.pid) == os.sched_getaffinity(0)


def nicer_threads(pid: int) -> set[str]:
    """The threads of the process that are nicer than its first one."""
    first = os.getpriority(os.PRIO_PROCESS, pid)
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            if int(path.read_text().rpartition(")")[2].split()[16]) > first:
                found.add(path.parent.name)
    return found


async def test_a_second_worker_is_nicer_while_it_loads_and_only_until_it_serves(tmp_path):
    tiny.write(tmp_path)
    async with opened("process", loading_nice=5) as worker:

        async def nicer_ones_of_a_load(release: bytes) -> set[str]:
            # ONNX Runtime leaves idle threads behind, as nice as the one that made them.
            before = nicer_threads(worker.pid)
            loading = worker.load(release, tmp_path, calibrate_rows=64, timeout_s=20)
            task = asyncio.create_task(loading)
            seen = set()
            while not task.done():
                seen |= nicer_threads(worker.pid)
                await asyncio.sleep(0)
            await task
            return seen - before

        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == os.nice(0)
        assert await nicer_ones_of_a_load(RELEASE)
        await run(worker, items(tiny.item()))
        assert not await nicer_ones_of_a_load(b"other" * 6 + b"xx")


def test_memory_grows_for_both_ends_and_no_end_can_shrink_it():
    ours = Segment.create()
    theirs = Segment(os.dup(ours.descriptor))
    ours.at_least(10)[:5] = b"small"
    assert theirs.at_least(5)[:5] == b"small"
    theirs.at_least(1 << 20)[(1 << 20) - 5 : 1 << 20] = b"large"
    assert ours.at_least(1 << 20)[(1 << 20) - 5 : 1 << 20] == b"large"
    with pytest.raises(PermissionError):
        os.ftruncate(theirs.descriptor, 0)
    with pytest.raises(MemoryError, match="at most"):
        ours.at_least(MAX_BYTES + 1)
    ours.give_back()
    assert theirs.at_least(5)[:5] == bytes(5)
    ours.close()
    theirs.close()


def test_the_port_of_the_thread_imports_numpy_only_when_it_is_opened():
    code = (
        "import sys, shoal_agent.inference.thread_worker;"
        "print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_models_that_come_and_go_leave_no_memory_behind(tmp_path):
    names = ("one", "two", "three")
    for name, width in zip(names, (1000, 50_000, 500_000), strict=True):
        tiny.write(
            tmp_path / name,
            model=tiny.wide(width),
            spec={"tolerance = 0.001": "tolerance = 0.1"},
        )
    left = []
    async with ProcessWorker.open(python=sys.executable) as worker:
        for _ in range(6):
            for name in names:
                await worker.load(
                    name.encode().ljust(32), tmp_path / name, calibrate_rows=32, timeout_s=20
                )
            for name in names:
                await worker.unload(name.encode().ljust(32))
            left.append(resident_bytes(worker.pid))
    assert max(left[1:]) - min(left[1:]) < 8 << 20


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are x86-64's")
async def test_a_worker_starts_in_a_unit_that_forbids_niceness_and_affinity(tmp_path):
    """As the unit that Ansible writes does: SystemCallFilter=~@resources."""
    setpriority, sched_setaffinity = 141, 203
    tiny.write(tmp_path / "release")
    hardened = tmp_path / "python"
    hardened.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "from shoal_agent.inference import confinement\n"
        f"confinement._FORBIDDEN['x86_64'] = (0xC000003E, ({setpriority}, {sched_setaffinity}))\n"
        "assert confinement.forbid_network_and_programs()\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    hardened.chmod(0o755)
    settings = WorkerSettings(nice=10, cpus=(0,))
    async with ProcessWorker.open(python=str(hardened), settings=settings) as worker:
        loaded = await worker.load(bytes(32), tmp_path / "release", timeout_s=45)
    assert loaded.golden_count == 5
