"""From a float model to a release that the controller takes: the builder and its command."""

import json
import sys

import numpy as np
import onnx
import pytest
from tests.shoal_fleet.release_build.float_models import calibration, convolutional, tuned
from tests.shoal_fleet.test_cli import invoke, shoal

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import builder
from shoal_fleet.release_build.builder import Request, build_release, follow
from shoal_fleet.release_check import check_directory

# A build is a process of its own, and a polite one.
pytestmark = pytest.mark.timeout(60)

SPEC = """
name = "shapes"
version = "{version}"

[input]
name = "x"
dtype = "float32"
shape = [1, 8, 8]
encoding = "f32"
units = "none"

[output]
name = "y"
dtype = "float32"
shape = [5]
decode = "softmax-argmax"
labels = ["a", "b", "c", "d", "e"]
units = "shape"
"""


class Desk:
    """A directory with a float model, a calibration set and a specification in it."""

    def __init__(self, folder):
        self.folder = self.state_dir = folder
        self.values = calibration((1, 8, 8), 400)
        onnx.save(convolutional(1), folder / "v1.onnx")
        onnx.save(tuned(convolutional(1), 2, 0.004), folder / "v2.onnx")
        np.savez(folder / "inputs.npz", x=self.values)
        for version in ("1.0.0", "1.1.0"):
            (folder / f"{version}.toml").write_text(SPEC.format(version=version))

    def build(self, source, out, *options):
        return invoke(
            self,
            *("release", "build", self.folder / source, "-o", self.folder / out),
            *("--calibration", self.folder / "inputs.npz", *options),
        )


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_a_built_directory_is_a_release_with_a_report(desk, tmp_path):
    code, out, error = desk.build("v1.onnx", "one", "--spec", tmp_path / "1.0.0.toml")
    assert code == 0, error
    assert out.startswith(f"{tmp_path / 'one'}: static, arm64: 0.")
    assert "static quantisation" in error
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        *("model.onnx", "golden.npz", "release.toml"),
        *("report.md", "report.json", "report.svg"),
    }
    checked = check_directory(tmp_path / "one")
    assert checked["golden_items"] == 16
    report = json.loads((tmp_path / "one/report.json").read_bytes())
    assert report["operator_sets"] == json.loads(json.dumps(checked["operator_sets"]))
    assert "QuantizeLinear" in (tmp_path / "one/report.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_with_the_old_release_the_update_is_smaller_and_the_rest_is_carried(desk, tmp_path):
    code, _, error = desk.build("v1.onnx", "one", "--spec", tmp_path / "1.0.0.toml")
    assert code == 0, error
    code, out, error = desk.build(
        *("v2.onnx", "two", "--spec", tmp_path / "1.1.0.toml", "--base", tmp_path / "one"),
        *("--tau", "0.5", "--json"),
    )
    assert (code, error) == (0, "")
    facts = json.loads(out)
    assert facts["choices"][0]["delta_bytes"] > facts["choices"][-1]["delta_bytes"]
    assert (tmp_path / "two.carry.npz").is_file()


def test_without_a_specification_the_model_and_its_report_are_made(desk, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "v1.onnx").rename(tmp_path / "hub/model.onnx")
    (tmp_path / "hub/tokenizer.json").write_text("{}")
    code, _, error = desk.build("hub", "one", "--target", "avx2")
    assert code == 0, error
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        *("model.onnx", "tokenizer.json", "report.md", "report.json", "report.svg")
    }


async def test_a_built_release_is_added_with_its_report_and_boards_get_none_of_it(site, tmp_path):
    desk = Desk(tmp_path)
    code, _, error = await shoal(
        site,
        *("release", "build", tmp_path / "v1.onnx", "-o", tmp_path / "one", "--target", "avx2"),
        *("--calibration", tmp_path / "inputs.npz", "--spec", tmp_path / "1.0.0.toml"),
    )
    assert code == 0, error
    code, out, error = await shoal(site, "release", "add", tmp_path / "one", "--json")
    assert code == 0, error
    assert {each["name"] for each in json.loads(out)["files"]} == {
        *("release.toml", "model.onnx", "golden.npz")
    }
    code, out, _ = await shoal(site, "release", "report", "shapes@1.0.0", "-o", tmp_path / "read")
    assert code == 0
    assert "How this model was made small" in out
    for name in ("report.md", "report.json", "report.svg"):
        assert (tmp_path / "read" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert len(desk.values) == 400


async def test_a_release_without_a_report_says_so_and_a_large_one_is_refused(site, tmp_path):
    desk = Desk(tmp_path)
    code, _, _ = await shoal(
        site,
        *("release", "build", tmp_path / "v1.onnx", "-o", tmp_path / "one"),
        *("--calibration", tmp_path / "inputs.npz", "--spec", tmp_path / "1.0.0.toml"),
    )
    assert code == 0
    (tmp_path / "one/report.json").write_bytes(bytes(2 << 20))
    code, _, error = await shoal(site, "release", "add", tmp_path / "one")
    assert (code, error) == (1, "report.json is larger than 1048576 bytes")
    for name in ("report.md", "report.json", "report.svg"):
        (tmp_path / "one" / name).unlink()
    code, _, _ = await shoal(site, "release", "add", tmp_path / "one")
    assert code == 0
    code, _, error = await shoal(site, "release", "report", "shapes@1.0.0")
    assert (code, error) == (
        1,
        "shapes@1.0.0 came without a report (shoal release build makes one)",
    )
    assert len(desk.values) == 400


async def test_the_target_may_be_what_suits_the_boards_that_are_there(site, tmp_path):
    Desk(tmp_path)
    build = (
        *("release", "build", tmp_path / "v1.onnx", "-o", tmp_path / "one"),
        *("--calibration", tmp_path / "inputs.npz", "--target", "fleet", "--json"),
    )
    code, _, error = await shoal(site, *build)
    assert (code, error) == (1, "no board has said what it is yet: name a --target")
    await site.nodes(1)
    code, out, error = await shoal(site, *build)
    assert code == 0, error
    assert json.loads(out)["preset"] == "arm64"


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (("--target", "z80"), 2, "'z80' is none of arm64"),
        (("--kind", "poem"), 2, "'poem' is none of classes, embedding"),
        (("--tau", "0"), 2, "above 0, at most 1"),
        (("--tau", "0.5"), 1, "give --base"),
        (("--base", "absent"), 1, "neither a model file nor a release"),
        (("--evaluation", "absent.npz"), 1, "absent.npz is not there"),
        (("--environment", "absent"), 1, "no virtual environment"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(desk, tmp_path, options, code, complaint):
    found, _, error = desk.build("v1.onnx", "one", *options)
    assert found == code
    assert complaint in error
    assert "\n" not in error
    assert not (tmp_path / "one").exists()


def test_a_build_that_fails_leaves_nothing_and_a_directory_in_use_is_not_touched(desk, tmp_path):
    (tmp_path / "v1.onnx").write_bytes(b"no model")
    before = sorted(tmp_path.iterdir())
    code, _, error = desk.build("v1.onnx", "one")
    assert code == 1
    assert "cannot be read as an ONNX model" in error.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "one").mkdir()
    (tmp_path / "one/mine").write_text("")
    code, _, error = desk.build("v2.onnx", "one")
    assert code == 1
    assert "not empty" in error
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["mine"]


def test_inputs_to_judge_by_are_asked_for(tmp_path, desk):
    request = Request(source=tmp_path / "v1.onnx", out=tmp_path / "one", preset="avx2")
    with pytest.raises(ReleaseBuildError, match=r"--calibration FILE\.npz"):
        build_release(request, state_dir=tmp_path, progress=lambda _step, _done, _of: None)
    assert desk.folder == tmp_path


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
        ("import sys; sys.exit('No module named onnx')", "ended with 1: No module named onnx"),
        ("print('hello')", "what is no JSON: 'hello"),
        ('print(\'{"error": "no"}\')', "^no$"),
        ('print(\'{"step": "s", "done": 1, "of": 2}\')', "ended with 0"),
    ],
)
def test_a_worker_that_dies_or_babbles_is_one_line(program, complaint):
    heard = []
    with pytest.raises(ReleaseBuildError, match=complaint):
        follow([sys.executable, "-c", program], lambda *said: heard.append(said))
    assert heard in ([], [("s", 1, 2)])


def test_a_model_that_boards_would_not_take_is_not_built(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ReleaseBuildError, match="boards would not take the model"):
        builder._operator_sets(tmp_path / "model.onnx")
