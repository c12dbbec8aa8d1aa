import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.shoal_agent.inference import tiny_release as tiny
from tests.shoal_agent.until import until

from shoal_agent.inference import governor, lanes, limits, memory
from shoal_agent.inference.calibrations import Calibrations
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import (
    BadInputError,
    DeadlineError,
    ModelFailedError,
    ModelRefusedError,
    NotAdmittedError,
    NotServingError,
    QueueFullError,
    WorkerLostError,
)
from shoal_agent.inference.memory import Memory
from shoal_agent.inference.release_files import read_spec
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.signature import signature_of
from shoal_agent.inference.tensors import Tensor


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine.open() as engine:
        yield engine


async def serve(engine: Engine, directory: Path, seed: int = 0) -> bytes:
    release = tiny.write(directory, seed=seed)
    await engine.admit(release, directory, trial=False)
    await engine.switch("tiny", release)
    return release


async def test_an_admitted_release_serves_after_the_switch_with_right_answers(engine, tmp_path):
    release = tiny.write(tmp_path)
    admission = await engine.admit(release, tmp_path)
    assert admission.golden_count == 5
    assert 0 < admission.p50_us <= admission.p95_us
    assert admission.load_ms > 0
    assert engine.models() == []
    await engine.switch("tiny", release)
    assert engine.serving("tiny") == release
    items = [tiny.item(n, 2 * n, 7, 255 - n) for n in range(20)]
    served = await engine.classify("tiny", items, deadline_s=10)
    assert [answer.label for answer in served.answers] == [tiny.expected_label(i) for i in items]
    assert all(1 / 3 <= answer.confidence <= 1 for answer in served.answers)
    assert served.release == release
    assert engine.stats.items == 20
    assert 1 <= engine.stats.batches <= 20
    assert engine.stats.busy_s > 0


async def test_what_a_trial_measured_outlives_a_restart_and_is_what_the_governor_counts(tmp_path):
    release = tiny.write(tmp_path / "a", model=tiny.memory_bomb(4 << 20))
    path = tmp_path / "calibration.json"
    async with Engine.open(calibrations=Calibrations(path, hardware="x")) as engine:
        admission = await engine.admit(release, tmp_path / "a")
        assert admission.peak_bytes > 12 << 20
    async with Engine.open(calibrations=Calibrations(path, hardware="x")) as engine:
        assert await engine.admit(release, tmp_path / "a", trial=False) == admission
        await engine.switch("tiny", release)
        (facts,) = engine.describe()
        assert facts.admission == admission
        assert facts.size_bytes >= admission.resident_bytes


async def test_admitting_twice_costs_nothing_and_says_the_same(engine, tmp_path):
    release = tiny.write(tmp_path)
    first = await engine.admit(release, tmp_path)
    (tmp_path / "model.onnx").unlink()
    assert await engine.admit(release, tmp_path) == first


async def test_what_waits_while_a_batch_runs_goes_into_the_next_one(engine, tmp_path):
    await serve(engine, tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for n in range(48):
            tasks.create_task(engine.classify("tiny", [tiny.item(n, 0, 0, 1)], deadline_s=10))
    assert engine.stats.requests == 48
    assert engine.stats.batches <= 6


async def test_a_model_that_fixes_its_batch_at_one_is_run_item_by_item(engine, tmp_path):
    release = tiny.write(tmp_path, model=tiny.linear(batch=1))
    await engine.admit(release, tmp_path)
    await engine.switch("tiny", release)
    items = [tiny.item(n, 0, 9, 1) for n in range(3)]
    served = await engine.classify("tiny", items, deadline_s=10)
    assert [answer.label for answer in served.answers] == [tiny.expected_label(i) for i in items]


async def test_an_unknown_model_is_refused(engine):
    with pytest.raises(NotServingError, match="'tiny' does not run here"):
        await engine.classify("tiny", [tiny.item()])


@pytest.mark.parametrize("items", [[], [b"abc"], [tiny.item(), b""], [tiny.item()] * 257])
async def test_items_that_do_not_fit_are_refused_before_they_wait(engine, tmp_path, items):
    await serve(engine, tmp_path)
    with pytest.raises(BadInputError):
        await engine.classify("tiny", items)
    assert engine.stats.requests == 0


async def test_a_release_that_was_not_admitted_cannot_be_switched_to(engine):
    with pytest.raises(NotAdmittedError):
        await engine.switch("tiny", bytes(32))


async def test_a_removed_model_serves_no_more_and_the_worker_ends_with_the_last_one(
    engine, tmp_path
):
    await serve(engine, tmp_path)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).answers
    pid = engine._dispatcher.worker.pid
    await engine.remove("tiny")
    with pytest.raises(NotServingError):
        await engine.classify("tiny", [tiny.item()])
    await until(lambda: engine._dispatcher.worker is None, timeout_s=5)
    await until(lambda: not _is_alive(pid), timeout_s=5)


async def test_a_discarded_release_has_to_be_admitted_again(engine, tmp_path):
    await serve(engine, tmp_path / "a")
    other = tiny.write(tmp_path / "b", seed=1)
    await engine.admit(other, tmp_path / "b", trial=False)
    await engine.discard(other)
    await until(lambda: other not in engine._dispatcher.releases, timeout_s=5)
    with pytest.raises(NotAdmittedError):
        await engine.switch("tiny", other)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).answers


async def test_a_release_that_serves_cannot_be_discarded(engine, tmp_path):
    release = await serve(engine, tmp_path)
    await engine.discard(release)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == release


async def test_a_full_queue_refuses_and_says_when_to_come_again(tmp_path):
    async with Engine.open(queue_limit=8) as engine:
        await serve(engine, tmp_path)
        os.kill(engine._dispatcher.worker.pid, signal.SIGSTOP)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(engine.classify("tiny", [tiny.item()], deadline_s=10))
            await asyncio.sleep(0)
            rest = tasks.create_task(engine.classify("tiny", [tiny.item()] * 8, deadline_s=10))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError) as caught:
                await engine.classify("tiny", [tiny.item()], deadline_s=10)
            assert caught.value.retry_after_s > 0
            os.kill(engine._dispatcher.worker.pid, signal.SIGCONT)
        assert len(first.result().answers) == 1
        assert len(rest.result().answers) == 8
    assert engine.stats.refused == 1


async def test_a_request_that_waits_too_long_gets_its_deadline_and_is_not_run(engine, tmp_path):
    await serve(engine, tmp_path)
    os.kill(engine._dispatcher.worker.pid, signal.SIGSTOP)
    async with asyncio.TaskGroup() as tasks:
        running = []  # and one more may lie in the worker
        for _ in range(2):
            asking = engine.classify("tiny", [tiny.item()], deadline_s=10)
            running.append(tasks.create_task(asking))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for rows in (1, 3):
            with pytest.raises(DeadlineError, match="was still waiting when its time was over"):
                await engine.classify("tiny", [tiny.item()] * rows, deadline_s=0.05 * rows)
        os.kill(engine._dispatcher.worker.pid, signal.SIGCONT)
    assert all(task.result().answers for task in running)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).answers
    assert engine.stats.items == 3
    assert engine.stats.expired == 2


async def test_who_cannot_be_served_in_time_is_told_so_at_once_and_when_to_come_again(
    engine, tmp_path
):
    await serve(engine, tmp_path)
    os.kill(engine._dispatcher.worker.pid, signal.SIGSTOP)
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(engine.classify("tiny", [tiny.item()] * 9, deadline_s=10))
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="later than the 1e-05 s") as caught:
            await engine.classify("tiny", [tiny.item()], deadline_s=1e-5)
        assert 0 < caught.value.retry_after_s < 1
        os.kill(engine._dispatcher.worker.pid, signal.SIGCONT)
    assert all(task.result().answers for task in waiting)
    assert engine.stats.refused == 1


async def test_more_urgent_requests_run_before_all_that_the_worker_does_not_have_yet(tmp_path):
    async with Engine.open(max_batch=1) as engine:
        await serve(engine, tmp_path)
        order: list[str] = []

        async def ask(name: str, priority: int) -> None:
            await engine.classify("tiny", [tiny.item()], deadline_s=10, priority=priority)
            order.append(name)

        os.kill(engine._dispatcher.worker.pid, signal.SIGSTOP)
        async with asyncio.TaskGroup() as tasks:
            for name, priority in [
                ("first", 1),
                ("second", 1),
                ("low", 0),
                ("normal", 1),
                ("high", 2),
            ]:
                tasks.create_task(ask(name, priority))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            os.kill(engine._dispatcher.worker.pid, signal.SIGCONT)
    assert order == ["first", "second", "high", "normal", "low"]


async def test_a_swap_under_load_fails_no_request_and_each_answer_is_its_releases(engine, tmp_path):
    first = await serve(engine, tmp_path / "v1", seed=0)
    second = tiny.write(tmp_path / "v2", seed=1)
    seeds = {first: 0, second: 1}
    seen: list[bytes] = []
    stop = asyncio.Event()

    async def load(worker: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            data = tiny.item(n % 251, worker, 7, 3)
            served = await engine.classify("tiny", [data], deadline_s=10)
            assert served.answers[0].label == tiny.expected_label(data, seeds[served.release])
            seen.append(served.release)

    async with asyncio.TaskGroup() as tasks:
        for worker in range(8):
            tasks.create_task(load(worker))
        await engine.admit(second, tmp_path / "v2")
        before = len(seen)
        await engine.switch("tiny", second)
        await until(
            lambda: first not in engine._dispatcher.releases and len(seen) >= before + 50,
            timeout_s=10,
        )
        stop.set()
    assert before > 0
    assert seen[-1] == second
    assert engine.stats.worker_restarts == 0


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(3, marks=pytest.mark.timeout(60)),
        pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
async def test_a_worker_killed_again_and_again_under_load_costs_no_answer_and_gives_none_wrong(
    engine, tmp_path, kills
):
    engine._dispatcher.budget = limits.RestartBudget(
        asyncio.get_running_loop().time, limit=kills + 1
    )
    await serve(engine, tmp_path)
    stop = asyncio.Event()
    asked = answered = 0

    async def load(worker: int) -> None:
        nonlocal asked, answered
        n = 0
        while not stop.is_set():
            n += 1
            asked += 1
            data = tiny.item(n % 251, worker, 7, 3)
            try:
                served = await engine.classify("tiny", [data], deadline_s=60)
            except WorkerLostError:  # it was in a worker that died, twice: that is an answer, too
                served = await engine.classify("tiny", [data], deadline_s=60)
            assert served.answers[0].label == tiny.expected_label(data)
            answered += 1

    async with asyncio.TaskGroup() as tasks:
        for worker in range(8):
            tasks.create_task(load(worker))
        for _ in range(kills):
            await until(lambda enough=answered + 20: answered >= enough, timeout_s=60)
            os.kill(engine._dispatcher.worker.pid, signal.SIGKILL)
        await until(lambda enough=answered + 20: answered >= enough, timeout_s=60)
        stop.set()
    assert engine.stats.worker_restarts == kills
    assert answered == asked
    print(f"{kills} workers killed, {answered} requests, all answered, all right")


async def test_an_idle_worker_that_is_killed_comes_back_by_itself(engine, tmp_path):
    await serve(engine, tmp_path)
    pid = engine._dispatcher.worker.pid
    os.kill(pid, signal.SIGKILL)
    await until(
        lambda: engine._dispatcher.worker is not None and engine._dispatcher.worker.pid != pid,
        timeout_s=45,
    )
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).answers


async def test_a_worker_that_hangs_is_killed_and_the_request_tried_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "GRACE_S", 0.1)
    async with Engine.open(settings=WorkerSettings(run_timeout_s=0.1)) as engine:
        await serve(engine, tmp_path)
        os.kill(engine._dispatcher.worker.pid, signal.SIGSTOP)
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=15)).answers
        assert engine.stats.worker_restarts == 1


async def test_a_worker_that_dies_too_often_is_left_alone_and_the_reason_given(engine, tmp_path):
    await serve(engine, tmp_path)
    for _ in range(5):
        engine._dispatcher.budget.spend()
    os.kill(engine._dispatcher.worker.pid, signal.SIGKILL)
    with pytest.raises(NotServingError, match="died too often"):
        await engine.classify("tiny", [tiny.item()], deadline_s=10)
    with pytest.raises(NotServingError, match="died too often"):
        await engine.classify("tiny", [tiny.item()], deadline_s=10)
    release = tiny.write(tmp_path / "b", seed=1)
    with pytest.raises(WorkerLostError, match="died too often"):
        await engine.admit(release, tmp_path / "b", trial=False)


async def test_an_interpreter_that_is_not_there_is_said_and_refuses_no_release(tmp_path):
    async with Engine.open(python=str(tmp_path / "python")) as engine:
        release = tiny.write(tmp_path)
        with pytest.raises(WorkerLostError, match="cannot be started: No such file"):
            await engine.admit(release, tmp_path)


async def test_a_release_whose_files_went_bad_does_not_keep_the_others_from_coming_back(
    engine, tmp_path
):
    await serve(engine, tmp_path / "good")
    bad = tiny.write(tmp_path / "bad", seed=1)
    await engine.admit(bad, tmp_path / "bad", trial=False)
    await engine.switch("other", bad)
    (tmp_path / "bad" / "model.onnx").write_bytes(b"not a model")
    os.kill(engine._dispatcher.worker.pid, signal.SIGKILL)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=15)).answers
    with pytest.raises(NotServingError, match="does not load"):
        await engine.classify("other", [tiny.item()])


async def test_leaving_the_engine_ends_the_worker_and_tells_who_waits(tmp_path):
    async with Engine.open() as engine:
        await serve(engine, tmp_path)
        pid = engine._dispatcher.worker.pid
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(engine.classify("tiny", [tiny.item()], deadline_s=10))
        await asyncio.sleep(0)
    with pytest.raises(NotServingError, match="stopping"):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_refused_release_leaves_the_old_one_serving(engine, tmp_path):
    release = await serve(engine, tmp_path / "v1")
    bad = tiny.write(tmp_path / "v2", seed=1, model=tiny.linear(2))
    with pytest.raises(ModelRefusedError, match="golden inputs give other outputs"):
        await engine.admit(bad, tmp_path / "v2")
    with pytest.raises(NotAdmittedError):
        await engine.switch("tiny", bad)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == release


def test_the_agents_process_never_imports_numpy_or_onnx_runtime():
    code = (
        "import sys, shoal_agent.inference.engine, shoal_agent.inference.router,"
        " shoal_agent.peers.server, shoal_agent.peers.client, shoal_agent.peers.discovery;"
        "print(sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_the_worker_dies_with_an_agent_that_is_killed(tmp_path):
    release = tiny.write(tmp_path)
    code = f"""
import asyncio
from pathlib import Path
from shoal_agent.inference.engine import Engine
async def main():
    async with Engine.open() as engine:
        await engine.admit({release!r}, Path({str(tmp_path)!r}), trial=False)
        print(engine._dispatcher.worker.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    worker = int(await agent.stdout.readline())
    agent.kill()
    await agent.wait()
    await until(lambda: not _is_alive(worker), timeout_s=5)


def _is_alive(pid: int) -> bool:
    """A zombie that init has not collected yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_model_of_several_tensors_is_served_by_name(engine, tmp_path):
    release = tiny.write_tensors(tmp_path)
    admission = await engine.admit(release, tmp_path)
    assert admission.golden_count == 3
    await engine.switch("pair", release)
    signature = engine.signature("pair")
    assert [(i.name, i.dtype, i.shape) for i in signature.inputs] == [
        ("a", "float32", (-1, 4)),
        ("n", "int64", (-1, -1)),
    ]

    async def ask(rows: int, length: int, **options: object) -> None:
        draw = np.random.default_rng(rows)
        a = draw.normal(size=(rows, 4)).astype(np.float32)
        n = draw.integers(-9, 9, size=(rows, length))
        inputs = {
            "n": Tensor.of("int64", n.shape, n.tobytes()),
            "a": Tensor.of("float32", a.shape, memoryview(a).cast("B")),
        }
        done = await engine.infer("pair", inputs, deadline_s=10, **options)
        assert done.release == release
        got = {
            name: np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
            for name, tensor in done.outputs.items()
        }
        wanted = {"y": a @ tiny.weights(), "total": n.sum(axis=1)}
        assert list(got) == list(options.get("outputs", ["y", "total"]))
        for name, values in got.items():
            np.testing.assert_allclose(values, wanted[name], rtol=1e-5)
            assert values.dtype == wanted[name].dtype

    async with asyncio.TaskGroup() as tasks:
        for rows in range(1, 12):
            tasks.create_task(ask(rows, 3))
            tasks.create_task(ask(rows, 5, outputs=["total"]))
        tasks.create_task(ask(40, 3))
    assert engine.stats.batches < 2 * 11
    with pytest.raises(BadInputError, match="takes tensors, not items"):
        await engine.classify("pair", [b"abcd"])


async def test_a_release_of_items_takes_tensors_too(engine, tmp_path):
    await serve(engine, tmp_path)
    a = np.ones((2, 4), np.float32)
    done = await engine.infer("tiny", {"x": Tensor.of("float32", a.shape, a.tobytes())})
    got = np.frombuffer(done.outputs["y"].data, np.float32).reshape(2, 3)
    np.testing.assert_allclose(got, a @ tiny.weights(), rtol=1e-5)


async def test_a_model_without_a_batch_dimension_runs_each_request_alone(engine, tmp_path):
    release = tiny.write_tensors(tmp_path, batch=False)
    await engine.admit(release, tmp_path)
    await engine.switch("pair", release)
    a, n = np.ones(4, np.float32), np.arange(3)
    inputs = {
        "a": Tensor.of("float32", a.shape, a.tobytes()),
        "n": Tensor.of("int64", n.shape, n.tobytes()),
    }
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(engine.infer("pair", inputs, deadline_s=10)) for _ in range(3)]
    for task in asked:
        outputs = task.result().outputs
        assert outputs["y"].shape == (3,)
        assert np.frombuffer(outputs["total"].data, np.int64).tolist() == [3]
    assert engine.stats.batches == 3


async def test_of_a_batch_only_the_request_at_fault_fails_and_it_is_said_whose_fault_it_is(
    engine, tmp_path
):
    release = tiny.write_tensors(tmp_path, gather=True)
    await engine.admit(release, tmp_path)
    await engine.switch("pair", release)

    async def ask(index: int) -> list[float]:
        n = np.full((1, 3), index)
        done = await engine.infer(
            "pair",
            {
                "a": Tensor.of("float32", (1, 4), bytes(16)),
                "n": Tensor.of("int64", n.shape, n.tobytes()),
            },
            deadline_s=10,
        )
        return np.frombuffer(done.outputs["total"].data, np.int64).tolist()

    results = await asyncio.gather(*(ask(n) for n in (0, 1, 99, 2)), return_exceptions=True)
    assert [results[0], results[1], results[3]] == [[0], [30], [60]]
    assert isinstance(results[2], BadInputError)
    assert engine.stats.worker_restarts == 0


async def test_a_failure_of_the_runtime_is_not_the_inputs_fault(engine, tmp_path):
    release = tiny.write_tensors(tmp_path, hungry=True)
    await engine.admit(release, tmp_path)
    await engine.switch("pair", release)

    async def ask(count: int) -> object:
        n = np.array([[count]])
        inputs = {
            "a": Tensor.of("float32", (1, 4), bytes(16)),
            "n": Tensor.of("int64", n.shape, n.tobytes()),
        }
        return await engine.infer("pair", inputs, deadline_s=10)

    with pytest.raises(ModelFailedError, match="ONNX Runtime"):
        await ask(1 << 46)
    assert await ask(3)


async def test_rows_of_other_lengths_run_together_where_the_release_says_how(engine, tmp_path):
    release = tiny.write_tensors(tmp_path, pad=0)
    await engine.admit(release, tmp_path)
    await engine.switch("pair", release)

    async def ask(length: int) -> None:
        n = np.arange(length)[None]
        inputs = {
            "a": Tensor.of("float32", (1, 4), bytes(16)),
            "n": Tensor.of("int64", n.shape, n.tobytes()),
        }
        done = await engine.infer("pair", inputs, deadline_s=10)
        assert np.frombuffer(done.outputs["total"].data, np.int64).tolist() == [n.sum()]

    await asyncio.gather(*(ask(length) for length in range(33, 49)))
    assert engine.stats.batches <= 3


async def test_a_release_whose_outputs_change_when_rows_are_filled_up_is_refused(engine, tmp_path):
    release = tiny.write_tensors(tmp_path, pad=5)
    with pytest.raises(ModelRefusedError, match=r"filled up with `pad`, .* off by 15"):
        await engine.admit(release, tmp_path)


async def test_when_memory_is_short_an_idle_model_goes_and_comes_back_when_it_is_asked(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(governor, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(memory, "IDLE_S", 0.0)
    free = [1 << 30]

    told = []

    async def tell() -> None:
        told.append({facts.model: facts.state for facts in engine.describe()})

    async with Engine.open(
        reserve_bytes=1 << 20,
        keep=["kept"],
        read_memory=lambda: Memory(free[0], 0.0),
        on_change=tell,
    ) as engine:
        release = await serve(engine, tmp_path / "a")
        kept = tiny.write(tmp_path / "b", seed=1)
        await engine.admit(kept, tmp_path / "b", trial=False)
        await engine.switch("kept", kept)
        worker = engine._dispatcher.worker
        free[0] = 1000
        await until(lambda: release not in worker.loaded and told, timeout_s=5)
        free[0] = 1 << 30
        states = {facts.model: facts.state for facts in engine.describe()}
        assert states == {"tiny": "evicted", "kept": "serving"}
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(engine.classify(model, [tiny.item(n, 2, 3, 4)], deadline_s=10))
                for n in range(5)
                for model in ("tiny", "kept")
            ]
        for n, task in enumerate(asked):
            seed = n % 2
            assert task.result().answers[0].label == tiny.expected_label(
                tiny.item(n // 2, 2, 3, 4), seed
            )
        assert engine.stats.evictions == 1
        assert engine.stats.worker_restarts == 0
        assert {facts.state for facts in engine.describe()} == {"serving"}
        await until(lambda: len(told) == 2, timeout_s=5)
        assert told == [
            {"tiny": "evicted", "kept": "serving"},
            {"tiny": "serving", "kept": "serving"},
        ]


async def test_a_release_that_is_only_registered_is_loaded_by_the_first_who_asks(tmp_path):
    free = [0]
    async with Engine.open(reserve_bytes=1, read_memory=lambda: Memory(free[0], 0.0)) as engine:
        assert engine.is_memory_short()
        release = tiny.write(tmp_path)
        engine.register(release, tmp_path, signature_of(read_spec(tmp_path)))
        await engine.switch("tiny", release)
        (facts,) = engine.describe()
        assert (facts.state, engine.signature("tiny").item_bytes) == ("evicted", 4)
        with pytest.raises(BadInputError):
            await engine.classify("tiny", [b"too long for it"])
        assert release not in getattr(engine._dispatcher.worker, "loaded", {})
        free[0] = 1 << 30
        served = await engine.classify("tiny", [tiny.item()], deadline_s=10)
        assert served.answers[0].label == tiny.expected_label(tiny.item())
        assert [facts.state for facts in engine.describe()] == ["serving"]


async def test_an_evicted_model_that_does_not_load_says_so_and_is_tried_again(engine, tmp_path):
    release = await serve(engine, tmp_path)
    good = (tmp_path / "model.onnx").read_bytes()
    assert await engine._dispatcher.evict(engine._dispatcher.releases[release])
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    for _ in range(2):
        with pytest.raises(NotServingError, match="does not load"):
            await engine.classify("tiny", [tiny.item()], deadline_s=10)
    # Once for each who asked, not over and over: the worker has nothing more to say.
    calls = engine._dispatcher.worker._next_call
    for _ in range(100):
        await asyncio.sleep(0)
    assert engine._dispatcher.worker._next_call == calls
    (tmp_path / "model.onnx").write_bytes(good)
    assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).answers


async def test_models_run_in_a_thread_as_they_do_in_a_process(tmp_path):
    async with Engine.open(settings=WorkerSettings(kind="thread")) as engine:
        first = await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        seeds = {first: 0, second: 1}

        async def ask(n: int) -> bytes:
            data = tiny.item(n, 7, 9, 1)
            served = await engine.classify("tiny", [data, data], deadline_s=10)
            wanted = tiny.expected_label(data, seeds[served.release])
            assert [answer.label for answer in served.answers] == [wanted, wanted]
            return served.release

        assert set(await asyncio.gather(*map(ask, range(64)))) == {first}
        await engine.admit(second, tmp_path / "v2")
        await engine.switch("tiny", second)
        assert set(await asyncio.gather(*map(ask, range(64)))) == {second}
        await until(lambda: first not in engine._dispatcher.releases, timeout_s=5)
        assert engine.stats.batches < 128
