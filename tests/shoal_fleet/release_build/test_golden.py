"""Golden inputs of a built release, and its report."""

import io
import json
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shoal_fleet.release_build.float_models import calibration, perceptron

from shoal_contract.release import InputTable, OutputTable, parse_spec
from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build.build_spec import BuildSpec, read_build_spec, release_toml
from shoal_fleet.release_build.golden import encode_items, golden_of
from shoal_fleet.release_build.report import report_files, verdict
from shoal_fleet.release_check import decode_items


def given_table(encoding="f32", shape=(96,), scale=1.0, offset=0.0):
    return InputTable(
        name="x",
        dtype="float32",
        shape=list(shape),
        encoding=encoding,
        scale=scale,
        offset=offset,
        units="none",
    )


def wanted_table(classes=5):
    return OutputTable(
        name="y",
        dtype="float32",
        shape=[classes],
        decode="argmax",
        labels=[f"class {n}" for n in range(classes)],
        units="class",
    )


@settings(max_examples=30)
@given(
    encoding=st.sampled_from(["u5", "u8", "f32"]),
    scale=st.floats(1e-3, 100),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 99),
)
def test_encoded_items_decode_to_what_the_model_takes(encoding, scale, offset, seed):
    table = given_table(encoding, (3, 5), scale, offset)
    levels = np.random.default_rng(seed).integers(0, 32, (4, 3, 5))
    values = (levels * scale + offset).astype(np.float32)
    items = encode_items(table, values)
    assert items.shape == (4, table.item_bytes)
    np.testing.assert_allclose(decode_items(table, items), values, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(("encoding", "values"), [("u8", [256]), ("u5", [32]), ("u8", [-1])])
def test_values_that_devices_cannot_send_are_refused(encoding, values):
    with pytest.raises(ReleaseBuildError, match="scale and offset"):
        encode_items(given_table(encoding, (1,)), np.array([values], np.float32))
    with pytest.raises(ReleaseBuildError, match=r"shape \[1\], \[input\] says \[2\]"):
        encode_items(given_table(encoding, (2,)), np.array([values], np.float32))


def test_golden_inputs_have_clear_answers_one_of_each_class_first(tmp_path):
    onnx.save(perceptron(1), tmp_path / "model.onnx")
    values = calibration((96,), 200)
    golden = golden_of(tmp_path / "model.onnx", given_table(), wanted_table(), values)
    with np.load(io.BytesIO(golden.content)) as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    assert inputs.shape == (16, 384)
    assert golden.items == 16
    assert set(outputs.argmax(axis=1)) == set(range(5))
    best_two = np.sort(outputs, axis=1)[:, -2:]
    assert (best_two[:, 1] - best_two[:, 0] > 2 * golden.tolerance).all()
    assert 0 < golden.tolerance < 0.05 * np.ptp(outputs)
    again = golden_of(tmp_path / "model.onnx", given_table(), wanted_table(), values)
    assert again.content == golden.content


def test_a_model_that_is_not_as_the_release_says_is_refused(tmp_path):
    onnx.save(perceptron(1), tmp_path / "model.onnx")
    values = calibration((96,), 20)
    with pytest.raises(ReleaseBuildError, match=r"answers float32 \[5\]"):
        golden_of(tmp_path / "model.onnx", given_table(), wanted_table(6), values)
    with pytest.raises(ReleaseBuildError, match="not as the release says"):
        golden_of(tmp_path / "model.onnx", given_table(shape=(95,)), wanted_table(), values[:, :95])


def test_a_model_whose_answers_are_all_alike_has_no_golden_inputs(tmp_path):
    model = perceptron(1)
    weight = next(t for t in model.graph.initializer if t.name == "dense.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((128, 5), np.float32), weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ReleaseBuildError, match="no item has an answer that is clear"):
        golden_of(tmp_path / "model.onnx", given_table(), wanted_table(), calibration((96,), 20))


@settings(max_examples=40)
@given(text=st.text(st.characters(codec="utf-8"), max_size=30), value=st.floats(0, 1))
def test_any_text_in_a_release_survives_its_toml(text, value):
    spec = BuildSpec(
        name="a",
        version="1.0.0",
        description=text,
        input=given_table(),
        output=wanted_table(),
    )
    made = release_toml(
        spec,
        model_file="model.onnx",
        golden_file="golden.npz",
        tolerance=value,
        metric=text,
        value=value,
        evaluated_on=text,
    )
    found = parse_spec(made.encode())
    assert (found.description, found.quality.metric) == (text, text)
    assert (found.golden.tolerance, found.quality.value) == (value, value)
    assert (found.input, found.output) == (spec.input, spec.output)


def test_a_specification_that_is_none_names_the_file_and_the_key(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text('name = "a"\nversion = "1.0.0"\ncolour = 1\n')
    with pytest.raises(ReleaseBuildError, match=r"spec\.toml.*colour"):
        read_build_spec(path)
    with pytest.raises(ReleaseBuildError, match="No such file"):
        read_build_spec(tmp_path / "absent.toml")


FACTS = {
    "way": "static",
    "excluded": ["dense|<x>`"],
    "excluded_share": 0.04,
    "preset": "avx2",
    "kind": "classes",
    "source_bytes": 1000,
    "model_bytes": 300,
    "float_item_cpu_s": 2e-5,
    "convolutions": 2,
    "calibration_items": 10,
    "evaluation_items": 20,
    "labelled": False,
    "attempts": [
        {
            "way": "static",
            "excluded": [],
            "model_bytes": 290,
            "item_cpu_s": 1e-5,
            "figures": {"sqnr_db": 3.0, "agreement": 0.5},
            "failures": ["top-1 agreement 0.5 is below 0.98"],
        },
        {
            "way": "static",
            "excluded": ["dense|<x>`"],
            "model_bytes": 300,
            "item_cpu_s": 1.5e-5,
            "figures": {"sqnr_db": 30.0, "agreement": 1.0},
            "failures": [],
        },
    ],
    "choices": [
        {
            "name": "fresh scales",
            "tau": 0.0,
            "delta_bytes": 90,
            "model_bytes": 300,
            "kept_scales": 0,
            "scales": 0,
            "figures": {"sqnr_db": 30.0, "agreement": 1.0},
            "refused": "",
            "chosen": False,
        },
        {
            "name": "old scales",
            "tau": 0.0,
            "delta_bytes": 60,
            "model_bytes": 300,
            "kept_scales": 5,
            "scales": 7,
            "figures": {"sqnr_db": 29.0, "agreement": 0.99},
            "refused": "",
            "chosen": True,
        },
    ],
    "versions": {"onnx": "1"},
    "operator_sets": [["", 17, ["MatMul"]]],
}


def test_a_report_says_what_was_tried_what_was_taken_and_why():
    files = report_files(FACTS)
    text = files["report.md"].decode()
    assert "**static, avx2: 0.30 of the size, 1 nodes left in float.**" in text
    assert "top-1 agreement 0.5 is below 0.98" in text
    assert "| top-1 agreement with the float model | 0.9900 |" in text
    assert "| old scales | 60 | 5 of 7 | 0.9900 | - | taken |" in text
    assert "Left in float (4.0% of the weights)" in text
    assert json.loads(files["report.json"]) == FACTS
    drawing = ET.fromstring(files["report.svg"])  # noqa: S314 - our own
    texts = [element.text for element in drawing.iter() if element.text and element.text.strip()]
    assert "old scales (taken)" in texts
    assert "20.0" in texts


def test_a_model_that_stays_float_says_so():
    facts = FACTS | {"way": "float", "excluded": [], "choices": []}
    assert verdict(facts).startswith("not quantised")
    assert "update" not in report_files(facts)["report.svg"].decode()
