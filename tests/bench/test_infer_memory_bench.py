"""Area `infer-memory`: its encoder is a release that loads, and a quick run measures every subject."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_agent.inference.onnx_model import Model

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_what_an_evicted_model_gives_back_is_measured(bench, tmp_path):
    bench("infer_models").write(tmp_path / "model", "mlp")
    said = subprocess.run(
        [sys.executable, BENCH / "infer_memory_child.py", tmp_path / "model", tmp_path / "forms"],
        capture_output=True,
        check=True,
        timeout=18,
    )
    took = json.loads(said.stdout)
    assert 0 < took["empty_mib"] < took["evicted_mib"] < took["loaded_mib"]
    assert 0 < took["given_back"] < 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_encoder_is_a_release_of_minilms_size_that_loads(bench, tmp_path):
    text_model = bench("infer_text_model")
    text_model.write(tmp_path / "model")
    assert 20e6 < (tmp_path / "model/model.onnx").stat().st_size < 25e6
    assert Model(tmp_path / "model").golden_count == text_model.GOLDEN


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_quick_run_measures_every_subject(tmp_path):
    out = tmp_path / "bench.json"
    arguments = ["--quick", "--area", "infer-memory", "--json", out, "--dir", tmp_path]
    ended = subprocess.run(
        [sys.executable, BENCH / "run.py", *arguments],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    area = json.loads(out.read_bytes())["areas"]["infer-memory"]
    goals = {goal["name"]: goal["figure"]["median"] for goal in area["goals"]}
    core, worker, text = (goals[name] for name in goals if name.startswith("idle: "))
    assert 0 < core < worker < text
    assert {row["name"] for row in area["rows"]} > {"evict: mlp", "evict: minilm-shape"}
