"""Sources that need torch: a tiny Hugging Face model and a TorchScript file, where torch is installed."""

import importlib.util
import json

import numpy as np
import pytest

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.job import Job
from shoal_fleet.release_build.making import build

NEEDED = ("torch", "transformers", "optimum")
_missing = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="torch and optimum are not installed: make quantize-env ARGS=--full",
)
pytestmark = [
    pytest.mark.optional,
    _missing,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),
]


def job(source, items, out, **changes):
    out.mkdir()
    np.savez(out.with_suffix(".npz"), **items)
    return Job(
        **{
            "source": str(source),
            "out": str(out),
            "preset": "arm64",
            "kind": "embedding",
            "task": "feature-extraction",
            "calibration": str(out.with_suffix(".npz")),
        }
        | changes
    )


def quietly(asked):
    return build(asked, lambda _step, _done, _of: None)


def test_a_hugging_face_directory_becomes_dynamic_int8(tmp_path):
    transformers = importlib.import_module("transformers")
    torch = importlib.import_module("torch")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    assert json.loads((tmp_path / "bert/config.json").read_text())["hidden_size"] == 64
    rng = np.random.default_rng(2)
    lengths = rng.integers(4, 24, 64)
    items = {
        "input_ids": rng.integers(5, 200, (64, 24)),
        "attention_mask": (np.arange(24) < lengths[:, None]).astype(np.int64),
        "token_type_ids": np.zeros((64, 24), np.int64),
    }
    limits = {"overlap": 0.0}  # random weights make near neighbours of everything
    result = quietly(job(tmp_path / "bert", items, tmp_path / "out", limits=limits))
    assert result["way"] == "dynamic"
    assert result["attempts"][-1]["figures"]["cosine"] >= 0.99
    assert result["model_bytes"] < 0.45 * result["source_bytes"]
    assert {"torch", "optimum", "transformers"} <= result["versions"].keys()


def test_a_torchscript_file_becomes_static_int8(tmp_path):
    torch = importlib.import_module("torch")
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 36, 5),
    ).eval()
    example = torch.zeros(2, 1, 8, 8)
    torch.jit.trace(module, example).save(str(tmp_path / "module.pt"))
    items = {"picture": np.random.default_rng(3).normal(size=(80, 1, 8, 8)).astype(np.float32)}
    asked = job(tmp_path / "module.pt", items, tmp_path / "out", kind="classes")
    result = quietly(asked)
    assert (result["way"], result["convolutions"]) == ("static", 1)
    with np.load(tmp_path / "out/answers.npz") as answers, torch.no_grad():
        picked = torch.from_numpy(items["picture"][3::4])
        np.testing.assert_allclose(answers["before"], module(picked).numpy(), atol=1e-4)


def test_a_pickled_module_is_refused_and_nothing_in_it_runs(tmp_path):
    torch = importlib.import_module("torch")
    torch.save(torch.nn.Linear(4, 2), tmp_path / "module.pt")
    items = {"x": np.ones((40, 4), np.float32)}
    with pytest.raises(ReleaseBuildError, match="is no TorchScript module"):
        quietly(job(tmp_path / "module.pt", items, tmp_path / "out"))
