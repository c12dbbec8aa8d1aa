"""The worker's environment: which one is used, what is in it, and how one is made."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shoal_fleet.errors import ReleaseBuildError
from shoal_fleet.release_build import environment


def complete(folder, *, is_full):
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text("")
    (folder / environment.MARKER).write_text(json.dumps(environment.pins(is_full=is_full)))
    return folder


def without(monkeypatch, *names):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else real(name)
    )


def test_the_pins_are_those_of_the_extra_and_the_light_ones_have_no_torch():
    full, light = environment.pins(is_full=True), environment.pins(is_full=False)
    assert {"torch==2.13.0", "optimum==2.1.0", "optimum-onnx==0.1.0"} <= set(full)
    assert "transformers==4.57.6" in full
    assert {"onnx==1.23.2", "onnxruntime==1.31.1"} <= set(light) < set(full)
    assert not any(pin.startswith(("torch", "optimum", "transformers")) for pin in light)


def test_this_interpreter_is_used_when_it_has_all_that_is_needed(tmp_path):
    found = environment.command(
        tmp_path / "job.json", default=tmp_path / "none", chosen=None, is_full=False
    )
    assert found[:2] == [sys.executable, "-m"]
    assert found[-1] == str(tmp_path / "job.json")


def test_else_the_default_one_if_it_is_complete_and_from_todays_pins(tmp_path, monkeypatch):
    without(monkeypatch, "onnx", "torch")
    ours = tmp_path / "env"

    def command(*, is_full):
        return environment.command(
            tmp_path / "job.json", default=ours, chosen=None, is_full=is_full
        )

    assert command(is_full=False) is None
    complete(ours, is_full=False)
    assert command(is_full=False)[0] == str(ours / "bin/python")
    assert command(is_full=True) is None
    (ours / environment.MARKER).write_text(json.dumps(environment.pins(is_full=True)))
    assert command(is_full=True)[0] == command(is_full=False)[0] == str(ours / "bin/python")
    for content in ("[]", "no json", '["onnx==1.0.0"]', "3"):
        (ours / environment.MARKER).write_text(content)
        assert command(is_full=False) is None


def test_one_that_a_person_names_is_taken_as_it_is_or_refused(tmp_path):
    with pytest.raises(ReleaseBuildError, match="no virtual environment"):
        environment.command(Path("j"), default=tmp_path, chosen=tmp_path / "mine", is_full=True)
    mine = tmp_path / "mine"
    (mine / "bin").mkdir(parents=True)
    (mine / "bin/python").write_text("")
    found = environment.command(Path("j"), default=tmp_path, chosen=mine, is_full=True)
    assert found[0] == str(mine / "bin/python")


def test_started_elsewhere_the_worker_finds_our_code_behind_what_is_installed_there(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "job.json").write_text("{}")
    arguments = environment.command(
        tmp_path / "job.json", default=tmp_path, chosen=tmp_path, is_full=False
    )
    # -I: nothing of this directory or of a person's site; -S: nor of the packages that are installed.
    bare = [sys.executable, "-I", "-S", *arguments[1:3], *arguments[3:]]
    ended = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert "No module named 'shoal_fleet'" not in ended.stderr
    assert "No module named 'numpy'" in ended.stderr


def wheel(folder):
    """A package of one empty module, as an index would give it."""
    path = folder / "tiny_part-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_part.py", "")
        info = "tiny_part-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_environment_is_made_with_the_pins_in_it_and_one_half_made_is_made_anew(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder, heard = tmp_path / "deep/env", []
    monkeypatch.setattr(environment, "pins", lambda *, is_full: [f"absent-{is_full}==1"])
    with pytest.raises(ReleaseBuildError, match=r"cannot be filled: .*absent-False==1"):
        environment.make(folder, is_full=False, say=heard.append)
    assert not environment.is_complete(folder, is_full=False)
    monkeypatch.setattr(environment, "pins", lambda *, is_full: [str(wheel(tmp_path))])
    assert environment.main([str(folder)]) == 0
    assert environment.is_complete(folder, is_full=False)
    ended = subprocess.run([folder / "bin/python", "-c", "import tiny_part"], check=False)
    assert ended.returncode == 0
    assert heard[0] == f"making {folder}"


def test_an_environment_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert environment.main([str(tmp_path / "file/env")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
