import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shoal_contract.release import parse_spec
from shoal_fleet import digits
from shoal_fleet.quality_gate import (
    Measured,
    Rival,
    quality_refusal,
    signature_change,
    signature_refusal,
)
from shoal_fleet.release_directory import EVALUATION_MEMBER, PARENT_MEMBER, pack, read_spec


def spec(version="1.2.0", *changes):
    text = (digits.release_dir(2) / "release.toml").read_text("utf-8")
    text = text.replace('version = "1.1.0"', f'version = "{version}"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_spec(text.encode())


def rival(version="1.1.0", *changes, **quality):
    of = spec(version, *changes)
    said = {"metric": "accuracy", "value": 0.97, "evaluated_on": of.quality.evaluated_on}
    return Rival(f"digits@{version}", of, {**said, **quality})


def test_a_drop_within_the_margin_passes_and_one_hair_more_is_refused_with_the_figures():
    good = Measured(1000, 0.96, parent=0.97, current=0.965)
    assert quality_refusal(spec(), rival(), good, max_drop=0.01) is None
    bad = Measured(1000, 0.959, parent=0.97, current=0.965)
    assert quality_refusal(spec(), rival(), bad, max_drop=0.01) == (
        "digits@1.2.0: accuracy 0.9590 on 1000 items is 0.0110 below that of its float parent"
        " (0.9700); at most 0.01 is allowed (--max-drop)"
    )
    worse = Measured(1000, 0.95, parent=None, current=0.965)
    refusal = quality_refusal(spec(), rival(), worse, max_drop=0.01)
    assert refusal is not None
    assert "0.0150 below that of digits@1.1.0 (0.9650)" in refusal


def test_an_accuracy_that_is_no_number_is_refused():
    assert quality_refusal(spec(), None, Measured(10, float("nan"), parent=0.9), max_drop=1.0)


def test_without_an_evaluation_set_what_releases_say_of_themselves_is_compared():
    assert quality_refusal(spec(), rival(value=0.9698), None, max_drop=0.01) is None
    refusal = quality_refusal(spec(), rival(value=0.99), None, max_drop=0.01)
    assert refusal is not None
    assert "0.9698 of itself, 0.0202 below digits@1.1.0 (0.9900)" in refusal
    # Other rows are no measure.
    assert quality_refusal(spec(), rival(value=0.99, evaluated_on="x"), None, max_drop=0.01) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('name = "image"', 'name = "picture"'), "input 'image' is gone"),
        (("scale = 0.0625", "scale = 0.125"), "scale of input 'image' was 0.0625 and is 0.125"),
        (('"0", "1",', '"1", "0",'), "labels of output"),
    ],
)
def test_another_signature_needs_a_new_major_version(change, words):
    refusal = signature_refusal(spec("1.2.0", change), [rival()])
    assert refusal is not None
    assert words in refusal
    assert "digits@1.1.0" in refusal
    assert "(2.0.0)" in refusal
    assert signature_refusal(spec("2.0.0", change), [rival()]) is None


def test_a_signature_is_compared_with_the_newest_of_its_own_major_version():
    wider = ("scale = 0.0625", "scale = 0.125")
    known = [rival("1.1.0"), rival("2.0.0", wider)]
    assert signature_refusal(spec("1.3.0"), known) is None
    assert signature_refusal(spec("2.1.0", wider), known) is None
    refusal = signature_refusal(spec("2.1.0"), known)
    assert refusal is not None
    assert "(3.0.0)" in refusal


def test_a_signature_without_a_change_is_the_same():
    assert signature_change(spec("1.0.0"), spec("9.0.0")) is None


# ------------------------------------------------------------------ through the API
@pytest.fixture
def labelled(tmp_path):
    """The held-out scans as models take them, with what they show."""
    scans = digits.held_out()[:300]
    path = tmp_path / "held-out.npz"
    image = np.array([scan.levels for scan in scans], np.float32).reshape(-1, 1, 8, 8) / 16
    np.savez(path, image=image, labels=np.array([int(scan.label) for scan in scans]))
    return path


def made_worse(folder, version):
    """The digits 1.1.0 with a bias that makes it answer one digit far too often, and golden outputs that fit."""
    directory = shutil.copytree(digits.release_dir(2), folder / version)
    toml = directory / "release.toml"
    text = toml.read_text("utf-8").replace('version = "1.1.0"', f'version = "{version}"')
    toml.write_text(text)
    path = directory / "model.onnx"
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == output:
                node.output[index] = "before"
    bias = np.array([60.0] + [0.0] * 9, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "spoil"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "spoil"], [output]))
    onnx.save(model, path)
    with np.load(directory / "golden.npz") as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    np.savez(directory / "golden.npz", inputs=inputs, outputs=outputs + bias)
    return directory


async def add(site, directory, *, evaluation=None, parent=None, **query):
    beside = {EVALUATION_MEMBER: evaluation, PARENT_MEMBER: parent}
    beside = {name: path for name, path in beside.items() if path is not None}

    async def pieces():
        for piece in pack(directory, read_spec(directory), beside):
            yield piece

    return await site.api.post("/api/releases", content=pieces(), params=query)


async def test_a_worse_model_is_refused_against_the_current_release_without_giving_the_set_again(
    site, labelled, tmp_path
):
    first = await add(site, digits.release_dir(1), evaluation=labelled)
    assert first.status_code == 201, first.text
    quality = first.json()["check"]["quality"]
    assert quality["items"] == 300
    assert quality["accuracy"] > 0.9
    second = await add(site, digits.release_dir(2))
    judged = second.json()["check"]["quality"]
    assert judged["current"] == "digits@1.0.0"
    assert judged["current_accuracy"] == quality["accuracy"]
    spoilt = made_worse(tmp_path, "1.2.0")
    refused = await add(site, spoilt)
    assert refused.status_code == 422
    assert "on 300 items is 0." in refused.json()["error"]
    assert "below that of digits@1.1.0 (0." in refused.json()["error"]
    titles = {release["title"] for release in (await site.api.get("/api/releases")).json()}
    assert titles == {"digits@1.0.0", "digits@1.1.0"}
    forced = await add(site, spoilt, force="the old one must go")
    assert forced.status_code == 201
    (row,) = [
        release
        for release in (await site.api.get("/api/releases")).json()
        if release["title"] == "digits@1.2.0"
    ]
    assert row["quality"]["forced"]["reason"] == "the old one must go"
    assert "digits@1.1.0" in row["quality"]["forced"]["refusal"]


async def test_a_model_below_its_float_parent_is_refused(site, labelled, tmp_path):
    spoilt = made_worse(tmp_path, "1.2.0")
    parent = digits.release_dir(2) / "model.onnx"
    refused = await add(site, spoilt, evaluation=labelled, parent=parent)
    assert refused.status_code == 422
    assert "below that of its float parent (0." in refused.json()["error"]
    # The parent's own file is as good as the parent.
    taken = await add(site, digits.release_dir(2), evaluation=labelled, parent=parent)
    quality = taken.json()["check"]["quality"]
    assert quality["parent_accuracy"] == quality["accuracy"]


async def test_an_evaluation_set_that_is_none_is_one_clear_line(site, labelled, tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK no zip")
    refused = await add(site, digits.release_dir(1), evaluation=broken)
    assert refused.status_code == 422
    assert "evaluation set is not an .npz" in refused.json()["error"]
    np.savez(tmp_path / "bare.npz", image=np.zeros((4, 1, 8, 8), np.float32))
    refused = await add(site, digits.release_dir(1), evaluation=tmp_path / "bare.npz")
    assert "no array labels" in refused.json()["error"]
    refused = await add(site, digits.release_dir(1), parent=digits.release_dir(1) / "model.onnx")
    assert "float parent is compared on an evaluation set" in refused.json()["error"]
    assert (await site.api.get("/api/releases")).json() == []
