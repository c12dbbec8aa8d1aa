"""Releases that must not serve: each is refused with its reason, in a process of its own."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import onnx
import pytest
from tests.shoal_agent.inference import tiny_release as tiny

from shoal_agent.inference.errors import ModelRefusedError
from shoal_agent.inference.process_worker import ProcessWorker
from shoal_agent.inference.served import Admission
from shoal_agent.inference.settings import WorkerSettings
from shoal_agent.inference.trial import try_out


async def refusal(directory: Path, **options: object) -> str:
    with pytest.raises(ModelRefusedError) as caught:
        await try_out(bytes(32), directory, python=sys.executable, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_good_release_is_measured(tmp_path):
    tiny.write(tmp_path)
    loaded = await try_out(bytes(32), tmp_path, python=sys.executable)
    assert loaded.signature.item_bytes == 4
    assert loaded.golden_count == 5


async def test_what_a_model_takes_for_a_while_and_for_good_is_measured(tmp_path):
    # Folded while the session is made: 64 MiB that are given back.
    tiny.write(tmp_path, model=tiny.memory_bomb(16 << 20))
    loaded = await try_out(bytes(32), tmp_path, python=sys.executable)
    assert 60 << 20 < loaded.peak_bytes < 256 << 20
    assert loaded.grown_bytes < loaded.peak_bytes
    admission = Admission.of(loaded)
    assert (admission.peak_bytes, admission.resident_bytes) == (
        loaded.peak_bytes,
        loaded.grown_bytes,
    )


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def test_the_process_of_a_trial_is_confined_and_one_that_serves_is_not():
    for trial_cpu_s, seccomp in ((7, "2"), (0, "0")):
        settings = WorkerSettings(trial_cpu_s=trial_cpu_s)
        async with ProcessWorker.open(python=sys.executable, settings=settings) as worker:
            assert f"Seccomp:\t{seccomp}\n" in proc(worker.pid, "status")
            lines = proc(worker.pid, "limits").splitlines()
            rows = {line[:26].strip(): line[26:].split()[0] for line in lines}
            assert rows["Max cpu time"] == (str(trial_cpu_s) if trial_cpu_s else "unlimited")
            assert trial_cpu_s == 0 or rows["Max core file size"] == "0"


async def test_a_release_that_breaks_a_promise_is_refused_in_one_line(tmp_path):
    tiny.write(tmp_path, model=tiny.linear()[:-20])
    assert "does not load the model" in await refusal(tmp_path)


async def test_a_reason_is_short_however_much_there_is_to_say(tmp_path):
    model = onnx.load_from_string(tiny.linear())
    model.graph.input[0].type.tensor_type.shape.dim.extend(
        [onnx.TensorShapeProto.Dimension(dim_value=4)] * 2000
    )
    model.graph.node[0].op_type = "Size"
    del model.graph.node[0].input[1:]
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    tiny.write(tmp_path, model=model.SerializeToString())
    reason = await refusal(tmp_path)
    assert reason.startswith("the model's input is 'x' float32 ['n', 4, 4, 4")
    assert len(reason) == 1000


async def test_a_small_model_passes_its_trial_where_little_memory_is_free(tmp_path):
    tiny.write(tmp_path)
    loaded = await try_out(bytes(32), tmp_path, python=sys.executable, memory_bytes=64 << 20)
    assert loaded.golden_count == 5


async def test_a_model_that_wants_too_much_memory_is_refused(tmp_path):
    tiny.write(tmp_path, model=tiny.memory_bomb())
    assert "memory" in await refusal(tmp_path, memory_bytes=256 << 20)


@pytest.mark.parametrize("operator", ["Expand", "Tile", "Pad"])
async def test_a_small_file_that_makes_gigabytes_is_refused(tmp_path, operator):
    tiny.write(tmp_path, model=tiny.growing(operator))
    assert (tmp_path / "model.onnx").stat().st_size < 500
    assert "emory" in await refusal(tmp_path, memory_bytes=128 << 20)


async def test_a_model_that_never_ends_is_stopped(tmp_path):
    tiny.write(tmp_path, model=tiny.endless())
    assert "did not answer 'load' within 0.5 s" in await refusal(tmp_path, timeout_s=0.5)


async def test_a_trial_that_is_killed_once_from_outside_is_held_again(tmp_path, monkeypatch):
    tiny.write(tmp_path)
    load = ProcessWorker.load
    attempts = 0

    async def killed_at_first(self, *arguments, **options):
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            os.kill(self.pid, signal.SIGKILL)
        return await load(self, *arguments, **options)

    monkeypatch.setattr(ProcessWorker, "load", killed_at_first)
    assert (await try_out(bytes(32), tmp_path, python=sys.executable)).golden_count == 5
    assert attempts == 2


async def test_a_process_that_cannot_greet_says_why(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'ImportError: no numpy here' >&2\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(Exception, match=r"exit code 3.*no numpy here"):
        async with asyncio.timeout(45), ProcessWorker.open(python=str(fake)):
            pass
