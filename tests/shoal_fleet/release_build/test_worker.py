"""The worker: the recipe carried out on real models, from an ONNX file and a calibration set."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from tests.shoal_fleet.release_build.float_models import (
    calibration,
    convolutional,
    dynamic,
    perceptron,
    static,
    tuned,
    with_loud_channel,
)

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import float_source, quantisers
from shoal_fleet.release_build.job import Job
from shoal_fleet.release_build.making import build


@pytest.fixture
def job(tmp_path):
    """Make a job of a float model and items; further keys as given."""

    def make(model, values, *, labels=None, **changes):
        onnx.save(model, tmp_path / "float.onnx")
        arrays = {"x": values} | ({} if labels is None else {"labels": labels})
        np.savez(tmp_path / "items.npz", **arrays)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        return Job(
            **{
                "source": str(tmp_path / "float.onnx"),
                "out": str(out),
                "preset": "avx2",
                "kind": "classes",
                "task": "feature-extraction",
                "calibration": str(tmp_path / "items.npz"),
            }
            | changes
        )

    return make


def made(job):
    return onnx.load(f"{job.out}/model.onnx")


def quietly(job):
    return build(job, lambda _step, _done, _of: None)


def best_classes(model, values):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": values})[0].argmax(axis=1)


def ops(model):
    return {node.op_type for node in model.graph.node}


def test_a_convolution_net_becomes_static_int8_whose_answers_stay_float(job):
    values = calibration((1, 8, 8), 200)
    before = convolutional(1)
    asked = job(before, values, labels=best_classes(before, values))
    result = quietly(asked)
    assert (result["way"], result["excluded"], result["labelled"]) == ("static", [], True)
    (attempt,) = result["attempts"]
    assert attempt["figures"]["agreement"] >= 0.98
    assert result["evaluation_items"] == 50
    assert result["calibration_items"] == 150
    model = made(asked)
    assert model.graph.node[-1].op_type != "DequantizeLinear"
    assert result["model_bytes"] < 0.6 * result["source_bytes"]
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    # Any x86: 7 bits, a scale a channel for every layer.
    for name, channels in (("conv1", 16), ("conv2", 48), ("dense", 5)):
        assert np.abs(weights[f"{name}.weight_quantized"].astype(int)).max() <= 64
        assert weights[f"{name}.weight_scale"].shape == (channels,)


def test_a_net_without_convolutions_becomes_dynamic_int8(job):
    asked = job(perceptron(1), calibration((96,), 80), preset="arm64")
    result = quietly(asked)
    assert result["way"] == "dynamic"
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= ops(made(asked))
    assert result["model_bytes"] < 0.35 * result["source_bytes"]


def test_the_noisiest_node_is_left_in_float_when_that_is_enough(job):
    loud = with_loud_channel(perceptron(1), at="dense")
    result = quietly(job(loud, calibration((96,), 200)))
    assert [each["way"] for each in result["attempts"]] == ["dynamic", "dynamic"]
    assert any("top-1 agreement" in failure for failure in result["attempts"][0]["failures"])
    assert result["excluded"] == ["dense"]
    assert 0 < result["excluded_share"] <= 0.10


def test_weights_alone_are_quantised_when_the_noisy_node_is_too_large_to_leave_out(job):
    values = calibration((96,), 200)
    values[:, 0] *= 3000
    asked = job(with_loud_channel(perceptron(1), at="hidden"), values)
    result = quietly(asked)
    assert [each["way"] for each in result["attempts"]][-1] == "weights-only"
    assert ops(made(asked)) & {"MatMulInteger", "DynamicQuantizeLinear"} == set()
    assert "DequantizeLinear" in ops(made(asked))
    assert result["model_bytes"] < 0.4 * result["source_bytes"]


def test_a_model_that_nothing_makes_small_enough_without_harm_stays_float(job):
    asked = job(perceptron(1), calibration((96,), 80), limits={"sqnr_db": 150.0})
    result = quietly(asked)
    assert result["way"] == "float"
    assert [each["way"] for each in result["attempts"]][-2:] == ["weights-only", "float"]
    assert result["choices"] == []
    assert ops(made(asked)) == ops(perceptron(1))


def test_a_static_model_falls_back_through_its_noisiest_nodes_too(job):
    values = calibration((1, 8, 8), 120)
    result = quietly(job(convolutional(1), values, limits={"sqnr_db": 60.0}))
    ways = [each["way"] for each in result["attempts"]]
    assert ways[0] == "static"
    assert ways[-2:] == ["weights-only", "float"]
    # conv1 (144 of 7,296 weights) and dense (240) fit into a tenth, conv2 does not.
    assert {name for each in result["attempts"] for name in each["excluded"]} == {"conv1", "dense"}


def test_of_old_and_new_scales_the_smaller_update_that_passes_is_taken(job, tmp_path):
    values = calibration((96,), 200)
    before = perceptron(1)
    onnx.save(dynamic(before), tmp_path / "old.onnx")
    asked = job(
        tuned(before, 2, 0.004),
        values,
        preset="arm64",
        base=str(tmp_path / "old.onnx"),
        taus=(0.5,),
    )
    result = quietly(asked)
    names = [each["name"] for each in result["choices"]]
    assert names == ["fresh scales", "old scales", "old scales, tau 0.5"]
    sizes = [each["delta_bytes"] for each in result["choices"]]
    assert sizes[0] > sizes[1] > sizes[2]
    assert [each["chosen"] for each in result["choices"]] == [False, False, True]
    with np.load(f"{asked.out}/carry.npz") as carry:
        assert set(carry.files) == {"hidden.weight", "dense.weight"}
    again = job(
        tuned(before, 2, 0.004),
        values,
        preset="arm64",
        base=str(tmp_path / "old.onnx"),
        taus=(0.5,),
        carried=f"{asked.out}/carry.npz",
    )
    assert quietly(again)["choices"][2]["delta_bytes"] != sizes[2]


def test_a_dead_band_that_ruins_the_answers_is_refused_and_said(job, tmp_path):
    values = calibration((1, 8, 8), 200)
    before = convolutional(1)
    onnx.save(static(before, values, is_narrow=True), tmp_path / "old.onnx")
    after = tuned(before, 2, 0.05)
    asked = job(
        after,
        values,
        labels=best_classes(after, values),
        base=str(tmp_path / "old.onnx"),
        taus=(1.0,),
        limits={"agreement": 0.97, "sqnr_db": 34.0},
    )
    lazy = quietly(asked)["choices"][2]
    assert "is below" in lazy["refused"]
    assert not lazy["chosen"]


def test_an_embedding_is_judged_by_its_direction(job):
    asked = job(perceptron(1, classes=24), calibration((96,), 80), kind="embedding", preset="arm64")
    result = quietly(asked)
    assert result["attempts"][-1]["figures"]["cosine"] >= 0.99
    assert "agreement" not in result["attempts"][-1]["figures"]


def test_batch_normalisation_is_folded_before_anything_is_quantised(job):
    model = convolutional(1)
    rng = np.random.default_rng(3)
    names = ["gain", "shift", "mean", "variance"]
    for name in names:
        value = rng.uniform(0.5, 1.5, 16).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node[1].input[0] = "normal"
    node = helper.make_node("BatchNormalization", ["a", *names], ["normal"], name="norm")
    model.graph.node.insert(1, node)
    onnx.checker.check_model(model)
    asked = job(model, calibration((1, 8, 8), 80))
    assert quietly(asked)["way"] == "static"
    assert "BatchNormalization" not in ops(made(asked))


def test_a_fixed_batch_and_an_old_opset_are_no_obstacle(job):
    model = perceptron(1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.opset_import[0].version = 11
    result = quietly(job(model, calibration((96,), 80)))
    assert result["way"] == "dynamic"
    assert result["evaluation_items"] == 20


def test_a_gemm_gets_its_scales_along_its_outputs_however_it_is_stored(job):
    model = convolutional(1)
    gemm = model.graph.node[-1]
    del gemm.attribute[:]
    tensor = next(t for t in model.graph.initializer if t.name == "dense.weight")
    turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
    tensor.CopyFrom(numpy_helper.from_array(turned, "dense.weight"))
    asked = job(model, calibration((1, 8, 8), 80))
    assert quietly(asked)["way"] == "static"
    weights = {t.name: numpy_helper.to_array(t) for t in made(asked).graph.initializer}
    assert weights["dense.weight_scale"].shape == (5,)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda p: (p / "float.onnx").write_bytes(b""), "no nodes: not an ONNX model"),
        (lambda p: (p / "float.onnx").write_bytes(b"not a model"), "cannot be read as an ONNX"),
        (lambda p: (p / "float.onnx").unlink(), "neither a file nor a directory"),
        (lambda p: np.savez(p / "items.npz", y=np.ones((9, 96))), "no array 'x'"),
        (lambda p: np.savez(p / "items.npz", x=np.ones((9, 7))), "fails on the items"),
        (lambda p: (p / "items.npz").write_bytes(b"PK"), "not an .npz"),
    ],
)
def test_what_cannot_be_built_is_one_line(job, tmp_path, spoil, complaint):
    asked = job(perceptron(1), calibration((96,), 40))
    spoil(tmp_path)
    with pytest.raises(ReleaseBuildError) as caught:
        quietly(asked)
    assert complaint in str(caught.value)


def test_a_directory_is_a_source_when_it_says_which_model(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scratch").mkdir()

    def source(folder):
        return float_source.float_model(folder, tmp_path / "scratch", task="x", example=None)

    with pytest.raises(ReleaseBuildError, match=r"neither an ONNX file nor a .*config\.json"):
        source(tmp_path / "empty")
    onnx.save(perceptron(1), tmp_path / "empty/one.onnx")
    assert source(tmp_path / "empty").is_file()
    onnx.save(perceptron(1), tmp_path / "empty/two.onnx")
    with pytest.raises(ReleaseBuildError, match=r"several ONNX files \(one.onnx, two.onnx\)"):
        source(tmp_path / "empty")


@pytest.mark.parametrize("missing", ["torch", "optimum.exporters.onnx"])
def test_a_source_that_needs_torch_says_so_where_it_is_not(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "torch":
        source = tmp_path / "module.pt"
        source.write_bytes(b"PK")
    else:
        source = tmp_path
        (tmp_path / "config.json").write_text("{}")
    assert float_source.needs_torch(source)
    example = float_source.Items({"x": np.ones((3, 4), np.float32)})
    with pytest.raises(ReleaseBuildError, match=rf"needs {missing}, .*make quantize-env"):
        float_source.float_model(source, tmp_path, task="x", example=example)


def test_conv_inside_a_branch_is_found_too():
    inner = convolutional(1).graph
    del inner.input[:]
    outer = helper.make_node("If", ["sure"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([outer], "branch", [], [inner.output[0]]))
    assert float_source.facts_of(model, calibration_items=0).convolutions == 4


def test_weights_only_keeps_the_answers_within_their_rounding():
    values = calibration((96,), 40)
    before = perceptron(1)
    small = quantisers.weights_only(before)
    onnx.checker.check_model(small)
    answers = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": values}
        )[0]
        for m in (before, small)
    ]
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.02 * np.abs(answers[0]).max()


def test_as_a_process_it_says_its_steps_and_its_result_line_by_line(job, tmp_path):
    asked = job(perceptron(1), calibration((96,), 40))
    asked.write(tmp_path / "job.json")
    worker = [sys.executable, "-m", "shoal_fleet.release_build.worker", tmp_path / "job.json"]
    ended = subprocess.run(worker, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {"reading the model", "dynamic quantisation"} <= {line.get("step") for line in lines}
    assert lines[-1]["result"]["way"] == "dynamic"
    assert all("result" not in line for line in lines[:-1])
    (tmp_path / "float.onnx").write_bytes(b"no model")
    ended = subprocess.run(worker, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "cannot be read" in json.loads(ended.stdout.splitlines()[-1])["error"]
