"""A new release comes in: by a second worker that takes over, or where memory is short, by other ways."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.shoal_agent.inference import tiny_release as tiny
from tests.shoal_agent.until import until

from shoal_agent.inference import dispatch
from shoal_agent.inference.engine import Engine
from shoal_agent.inference.errors import ModelRefusedError, NoRoomError, NotServingError
from shoal_agent.inference.memory import Memory

PLENTY = 1 << 40


async def serve(engine: Engine, directory: Path, seed: int = 0, model: str = "tiny") -> bytes:
    release = tiny.write(directory, seed=seed)
    await engine.admit(release, directory, trial=False)
    await engine.switch(model, release)
    return release


@asynccontextmanager
async def asked(engine: Engine, seeds: dict[bytes, int]) -> AsyncIterator[list[bytes]]:
    """Four callers that never stop, and see to it that every answer is right."""
    is_over = False
    seen: list[bytes] = []

    async def ask(caller: int) -> None:
        number = 0
        while not is_over:
            number += 1
            data = tiny.item(number % 251, caller, 7, 3)
            served = await engine.classify("tiny", [data], deadline_s=20)
            assert served.answers[0].label == tiny.expected_label(data, seeds[served.release])
            seen.append(served.release)
            await asyncio.sleep(0.005)  # they would starve what loads, which is nicer

    async with asyncio.TaskGroup() as callers:
        for caller in range(4):
            callers.create_task(ask(caller))
        yield seen
        is_over = True


async def test_a_second_worker_takes_over_and_the_first_one_ends(tmp_path):
    async with Engine.open() as engine:
        first = await serve(engine, tmp_path / "v1")
        other = await serve(engine, tmp_path / "other", seed=2, model="other")
        second = tiny.write(tmp_path / "v2", seed=1)
        before = engine._dispatcher.worker.pid
        async with asked(engine, {first: 0, second: 1}) as seen:
            await engine.admit(second, tmp_path / "v2")
            after = engine._dispatcher.worker.pid
            assert after != before
            await engine.switch("tiny", second)
            await until(lambda: seen[-1] == second, timeout_s=10)
        await until(lambda: first not in engine._dispatcher.releases, timeout_s=10)
        await until(lambda: not Path(f"/proc/{before}").exists(), timeout_s=10)
        assert set(engine._dispatcher.worker.loaded) == {second, other}
        assert (await engine.classify("other", [tiny.item()], deadline_s=10)).release == other
        assert engine.stats.worker_restarts == 0


async def test_the_worker_that_took_over_is_started_again_when_it_dies(tmp_path):
    async with Engine.open() as engine:
        await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        await engine.admit(second, tmp_path / "v2")
        await engine.switch("tiny", second)
        os.kill(engine._dispatcher.worker.pid, signal.SIGKILL)
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=20)).release == second
        assert engine.stats.worker_restarts == 1


@pytest.mark.slow
async def test_a_second_worker_that_does_not_come_about_costs_nothing(tmp_path):
    async with Engine.open() as engine:
        first = await serve(engine, tmp_path / "v1")
        gone = await serve(engine, tmp_path / "gone", seed=2, model="gone")
        second = tiny.write(tmp_path / "v2", seed=1)
        # It runs well where it is, but would not load again.
        (tmp_path / "gone" / "model.onnx").write_bytes(b"not a model")
        worker = engine._dispatcher.worker
        async with asked(engine, {first: 0, second: 1}) as seen:
            await engine.admit(second, tmp_path / "v2")
            await engine.switch("tiny", second)
            await until(lambda: seen[-1] == second, timeout_s=10)
        assert engine._dispatcher.worker is worker
        assert (await engine.classify("gone", [tiny.item()], deadline_s=10)).release == gone


@pytest.mark.slow
async def test_a_release_that_only_the_trial_loads_is_refused_by_the_second_worker(
    tmp_path, monkeypatch
):
    async with Engine.open() as engine:
        first = await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        loading = engine._dispatcher.install_beside

        def spoil_first(release) -> Awaitable[bool]:
            (tmp_path / "v2" / "model.onnx").write_bytes(b"not a model")
            return loading(release)

        monkeypatch.setattr(engine._dispatcher, "install_beside", spoil_first)
        with pytest.raises(ModelRefusedError, match="does not load"):
            await engine.admit(second, tmp_path / "v2")
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == first


@pytest.mark.slow
async def test_admitting_may_be_given_up_at_any_time(tmp_path):
    async with Engine.open() as engine:
        first = await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        worker = engine._dispatcher.worker
        admitting = asyncio.create_task(engine.admit(second, tmp_path / "v2"))
        await until(lambda: second in engine._dispatcher.releases, timeout_s=20)
        admitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await admitting
        assert engine._dispatcher.worker is worker
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == first
        await engine.admit(second, tmp_path / "v2", trial=False)
        await engine.switch("tiny", second)
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == second


async def test_without_room_for_a_trial_a_release_waits_and_the_old_one_serves(tmp_path):
    free = [PLENTY]
    async with Engine.open(reserve_bytes=1000, read_memory=lambda: Memory(free[0], 0.0)) as engine:
        first = await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        free[0] = 1 << 20
        with pytest.raises(
            NoRoomError, match=r"'tiny'.* 0 MiB are free, and nobody else .*may_pause"
        ):
            await engine.admit(second, tmp_path / "v2", replaces="tiny")
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == first
        free[0] = PLENTY
        await engine.admit(second, tmp_path / "v2", replaces="tiny")


async def test_where_the_operator_allows_it_the_old_release_goes_first(tmp_path):
    free = [PLENTY]
    async with Engine.open(may_pause=True, read_memory=lambda: Memory(free[0], 0.0)) as engine:
        first = await serve(engine, tmp_path / "v1")
        bad = tiny.write(tmp_path / "bad", seed=1, model=tiny.linear(2))
        second = tiny.write(tmp_path / "v2", seed=1)
        worker = engine._dispatcher.worker
        free[0] = 1 << 20

        with pytest.raises(ModelRefusedError):
            await engine.admit(bad, tmp_path / "bad", replaces="tiny")
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == first

        waiting = asyncio.create_task(engine.classify("tiny", [tiny.item()], deadline_s=10))
        await asyncio.sleep(0)
        await engine.admit(second, tmp_path / "v2", replaces="tiny")
        assert (await waiting).release == first
        assert first not in worker.loaded
        assert [facts.state for facts in engine.describe()] == ["away"]
        with pytest.raises(NotServingError, match="makes room for its new release"):
            await engine.classify("tiny", [tiny.item()])
        await engine.switch("tiny", second)
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == second
        assert engine._dispatcher.worker is worker


@pytest.mark.slow
async def test_a_release_that_is_not_switched_to_gives_back_the_one_that_is_away(tmp_path):
    async with Engine.open(may_pause=True, read_memory=lambda: Memory(0, 0.0)) as engine:
        first = await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        await engine.admit(second, tmp_path / "v2", replaces="tiny")
        await engine.discard(second)
        assert (await engine.classify("tiny", [tiny.item()], deadline_s=10)).release == first


async def test_a_drained_release_is_unloaded_at_last_even_if_the_worker_never_rests(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(dispatch, "UNLOAD_WITHIN_S", 0.2)
    async with Engine.open() as engine:
        monkeypatch.setattr(type(engine._dispatcher.lanes), "is_busy", True)
        first = await serve(engine, tmp_path / "v1")
        second = tiny.write(tmp_path / "v2", seed=1)
        await engine.admit(second, tmp_path / "v2", trial=False)
        await engine.switch("tiny", second)
        assert first in engine._dispatcher.releases
        await until(lambda: first not in engine._dispatcher.releases, timeout_s=5)
        assert set(engine._dispatcher.worker.loaded) == {second}
