"""Releases that break a promise; the process around the model is in test_trial."""

import os
from pathlib import Path

import numpy as np
import pytest
from tests.shoal_agent.inference import tiny_release as tiny

from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.onnx_model import Model
from shoal_agent.inference.signature import item_form

DIGITS = Path(__file__).parents[3] / "fleet" / "shoal_fleet" / "digits"


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Model(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_digits_releases_keep_their_promises(version):
    model = Model(DIGITS / version)
    with np.load(DIGITS / version / "golden.npz") as golden:
        inputs, outputs = golden["inputs"], golden["outputs"]
    best, confidence = model.run(item_form(inputs.shape[1]), [inputs])
    assert best.tolist() == outputs.argmax(axis=1).tolist()
    assert model.signature.labels == tuple("0123456789")
    assert all(0.1 < value <= 1 for value in confidence)


def test_an_output_that_is_no_number_costs_only_its_own_item(tmp_path):
    text = {'encoding = "u8"': 'encoding = "f32"'}
    tiny.write(tmp_path, spec=text)
    inputs = np.ones((1, 4), "<f4")
    np.savez(tmp_path / "golden.npz", inputs=inputs.view(np.uint8), outputs=inputs @ tiny.weights())
    model = Model(tmp_path)
    rows = np.repeat(inputs, 3, axis=0)
    rows[1] = np.nan
    best, confidence = model.run(item_form(16), [rows.view(np.uint8)])
    assert best[0] == best[2] == (inputs @ tiny.weights()).argmax()
    assert best[1] == -1
    assert confidence[0] == confidence[2]


@pytest.mark.parametrize(
    ("model", "spec", "reason"),
    [
        (b"", {}, "does not load the model"),
        (b"MZ" + bytes(5000), {}, "does not load the model"),
        (tiny.linear()[:-20], {}, "does not load the model"),
        (tiny.linear(1), {}, "golden inputs give other outputs"),
        (None, {'name = "x"': 'name = "z"'}, "no input 'z', only 'x'"),
        (None, {'name = "y"': 'name = "z"'}, "no output 'z', only 'y'"),
        (None, {"shape = [4]": "shape = [2, 2]"}, "release.toml says 'x' float32 [n, 2, 2]"),
        (None, {"shape = [4]": "shape = [5]"}, "release.toml says 'x' float32 [n, 5]"),
        (None, {'encoding = "u8"': 'encoding = "f32"'}, "inputs are uint8 (5, 4)"),
        (None, {"tolerance = 0.001": "tolerance = -1"}, "[golden.tolerance]"),
        (None, {'version = "1.0.0"': 'version = "one"'}, "must be like 1.2.3"),
        (None, {'"model.onnx"': '"other.onnx"'}, "other.onnx: No such file"),
        (tiny.linear(batch=3), {}, "batches of 3 only"),
    ],
)
def test_a_release_that_breaks_a_promise_is_refused_with_the_reason(tmp_path, model, spec, reason):
    tiny.write(tmp_path, model=model, spec=spec)
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"inputs": np.zeros((1, 4), np.uint8)}, "outputs"),
        ({"inputs": np.zeros((0, 4), np.uint8), "outputs": np.zeros((0, 3), np.float32)}, "0 gold"),
        ({"inputs": np.zeros((1, 4), np.int8), "outputs": np.zeros((1, 3), np.float32)}, "int8"),
        ({"inputs": np.zeros((1, 4), np.uint8), "outputs": np.zeros((1, 3))}, "float64"),
        ({"inputs": np.zeros((1, 4), np.uint8), "outputs": np.zeros((2, 3), "f4")}, "(2, 3)"),
        ({"inputs": np.array([print]), "outputs": np.zeros((1, 3), "f4")}, "allow_pickle=False"),
        ({"inputs": np.zeros(1 << 27, np.uint8), "outputs": np.zeros(1)}, "unpacks to more than"),
        (
            {"inputs": np.zeros((1, 4), "u1"), "outputs": np.full((1, 3), np.nan, "f4")},
            "other outputs",
        ),
    ],
)
def test_golden_files_that_are_not_what_they_should_be_are_refused(tmp_path, arrays, reason):
    tiny.write(tmp_path)
    np.savez_compressed(tmp_path / "golden.npz", **arrays)
    assert reason in refusal(tmp_path)


def test_golden_inputs_within_tolerance_but_classified_differently_are_refused(tmp_path):
    tiny.write(tmp_path, spec={"tolerance = 0.001": "tolerance = 10000"})
    inputs = np.ones((2, 4), np.uint8)
    outputs = (inputs @ tiny.weights()).astype(np.float32)
    outputs[1] = -outputs[1]
    np.savez(tmp_path / "golden.npz", inputs=inputs, outputs=outputs)
    assert refusal(tmp_path) == "golden input 1 is classified differently"


def test_a_golden_file_that_is_no_archive_is_refused(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / "golden.npz").write_bytes(b"\x93NUMPY" + bytes(100))
    assert "golden.npz" in refusal(tmp_path)


def test_a_link_out_of_the_release_directory_is_not_followed(tmp_path):
    tiny.write(tmp_path / "a")
    tiny.write(tmp_path / "b")
    (tmp_path / "b" / "model.onnx").unlink()
    (tmp_path / "b" / "model.onnx").symlink_to(tmp_path / "a" / "model.onnx")
    assert "model.onnx: Too many levels of symbolic links" in refusal(tmp_path / "b")


def test_a_pipe_in_place_of_the_model_is_refused_and_does_not_block(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / "model.onnx").unlink()
    os.mkfifo(tmp_path / "model.onnx")
    assert "not a plain file" in refusal(tmp_path)
