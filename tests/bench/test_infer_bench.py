"""Area `infer`: its networks are releases that keep their promises, and its table says what failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_agent.inference.onnx_model import Model

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize("name", ["micro", "cnn"])
def test_a_generated_network_is_a_release_that_loads(bench, tmp_path, name):
    models = bench("infer_models")
    first = models.write(tmp_path, name)
    model = Model(tmp_path)
    assert model.golden_count == models.GOLDEN
    assert model.signature.inputs[0].shape == (-1, *models.MODELS[name][0])
    assert models.write(tmp_path / "next", name, seed=1) != first


@pytest.mark.parametrize("subject", ["callers", "loop-1", "engine-thread"])
def test_a_subject_says_what_it_took(bench, tmp_path, subject):
    bench("infer_models").write(tmp_path, "micro")
    said = subprocess.run(
        [sys.executable, BENCH / "infer_child.py", subject, tmp_path, "micro", "0.05"],
        capture_output=True,
        check=True,
        timeout=15,
    )
    took = json.loads(said.stdout)
    assert took.get("failed", 0) == 0
    assert all(value > 0 for key, value in took.items() if key != "failed")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_quick_run_measures_every_subject_and_nothing_fails(tmp_path):
    out = tmp_path / "bench.json"
    arguments = ["--quick", "--area", "infer", "--json", out, "--dir", tmp_path]
    ended = subprocess.run(
        [sys.executable, BENCH / "run.py", *arguments],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    area = json.loads(out.read_bytes())["areas"]["infer"]
    rows = {row["name"]: row for row in area["rows"]}
    assert {"mlp: loop-best", "mlp: engine-process", "cnn: open-threads", "mlp: swap"} <= set(rows)
    assert not any(row["lost"] for row in rows.values() if row["is_ours"])
    assert any(goal["name"].startswith("swap: failed") for goal in area["goals"])
