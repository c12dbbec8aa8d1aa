"""The release tree: what is packed, that it is always the same, and that its commands run it."""

import hashlib
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import board_release

AGENT = "import sys, dependency\nprint(dependency.NAME, *sys.argv[1:])\n"


@pytest.fixture(autouse=True)
def small_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module in the place of the 170 MB that pip would fetch."""
    folder = tmp_path / "dependencies"
    folder.mkdir()
    (folder / "dependency.py").write_text("NAME = 'from the tree'\n")
    monkeypatch.setattr(board_release, "_dependencies", lambda machine: folder)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    built = [
        board_release.build(tmp_path / name, machine="aarch64", wheel=_wheel(tmp_path))
        for name in ("a", "b")
    ]
    manifests = [path.read_text() for path in built]
    assert manifests[0] == manifests[1]
    about = json.loads(manifests[0])
    archive = tmp_path / "a" / about["archive"]
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == about["sha256"]
    assert about["id"].startswith("0.1.0+")
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted(
        [archive.name, built[0].name]
    )


def test_other_code_of_the_same_version_is_another_release(tmp_path: Path) -> None:
    ids = {
        json.loads(
            board_release.build(
                tmp_path, machine="x86_64", wheel=_wheel(tmp_path, agent)
            ).read_text()
        )["id"]
        for agent in (AGENT, AGENT + "# changed\n")
    }
    assert len(ids) == 2


def test_a_command_runs_the_code_of_its_own_tree(tmp_path: Path) -> None:
    manifest = board_release.build(tmp_path, machine="x86_64", wheel=_wheel(tmp_path))
    archive = tmp_path / json.loads(manifest.read_text())["archive"]
    tree = tmp_path / "releases/one"
    with tarfile.open(archive) as packed:
        assert {(entry.uid, entry.gid, entry.mtime) for entry in packed} == {(0, 0, 0)}
        packed.extractall(tree, filter="data")
    current = tmp_path / "current"
    current.symlink_to(tree)
    said = subprocess.run(
        [current / "bin/shoal-agent", "--config", "two words"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
    )
    assert said.stdout == "from the tree --config two words\n"


def test_another_projects_wheel_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other-1.0-py3-none-any.whl"
    other.write_bytes(b"")
    words = ["board_release", "--out", str(tmp_path / "out"), "--wheel", str(other)]
    monkeypatch.setattr("sys.argv", words)
    assert board_release.main() == 1
    assert (
        capsys.readouterr().err
        == "board_release: other-1.0-py3-none-any.whl is not Shoal's wheel\n"
    )


def test_a_damaged_wheel_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "shoal-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"not a zip file")
    words = ["board_release", "--out", str(tmp_path / "out"), "--wheel", str(wheel)]
    monkeypatch.setattr("sys.argv", words)
    assert board_release.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def _wheel(folder: Path, agent: str = AGENT) -> Path:
    path = folder / "shoal-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("shoal_agent/__init__.py", "")
        wheel.writestr("shoal_agent/__main__.py", agent)
    return path
