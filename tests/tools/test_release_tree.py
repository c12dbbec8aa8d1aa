"""The release tree: what is packed, that it is always the same, and that its commands run it."""

import hashlib
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import release_tree

AGENT = "import sys, dependency\nprint(dependency.NAME, *sys.argv[1:])\n"


@pytest.fixture
def small_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module in the place of the 170 MB that pip would fetch."""
    folder = tmp_path / "dependencies"
    folder.mkdir()
    (folder / "dependency.py").write_text("NAME = 'from the tree'\n")
    monkeypatch.setattr(release_tree, "_dependencies", lambda *_: folder)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, small_dependencies: None) -> None:
    built = [_built(tmp_path, tmp_path / name / "tree.tar.gz") for name in ("a", "b")]
    assert built[0].read_bytes() == built[1].read_bytes()
    assert [path.name for path in built[0].parent.iterdir()] == ["tree.tar.gz"]
    with tarfile.open(built[0]) as packed:
        assert {(entry.uid, entry.gid, entry.mtime) for entry in packed} == {(0, 0, 0)}


def test_release_json_names_the_digest_of_every_file(
    tmp_path: Path, small_dependencies: None
) -> None:
    about, tree = _unpacked(tmp_path)
    assert (about["version"], about["roles"]) == ("0.1.0", ["agent"])
    assert (about["python"], about["arch"]) == ("3.11", "aarch64")
    there = {
        path.relative_to(tree).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file() and path.name != "release.json"
    }
    assert about["files"] == there
    assert "bin/shoal-agent" in there


def test_other_code_of_the_same_version_has_another_digest(
    tmp_path: Path, small_dependencies: None
) -> None:
    digests = {
        release_tree.build(
            tmp_path / "tree.tar.gz",
            roles=["agent"],
            python="3.11",
            arch="x86_64",
            wheel=_wheel(tmp_path, agent),
        )["digest"]
        for agent in (AGENT, AGENT + "# changed\n")
    }
    assert len(digests) == 2


@pytest.mark.skipif(
    not Path("/usr/bin/python3.11").exists(), reason="Debian 12's Python is not here"
)
def test_a_command_runs_the_code_of_its_own_tree_whatever_the_environment_says(
    tmp_path: Path, small_dependencies: None
) -> None:
    _, tree = _unpacked(tmp_path)
    current = tmp_path / "current"
    current.symlink_to(tree)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dependency.py").write_text("NAME = 'from elsewhere'\n")
    said = subprocess.run(
        [current / "bin/shoal-agent", "--config", "two words"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(elsewhere)},
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
    )
    assert said.stdout == "from the tree --config two words\n"


def test_two_roles_share_a_tree(tmp_path: Path, small_dependencies: None) -> None:
    _, tree = _unpacked(tmp_path, roles=["bridge", "agent"])
    assert {path.name for path in (tree / "bin").iterdir()} == {
        "shoal-agent",
        "shoal-agent-switch",
        "shoal-bridge",
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("other-1.0-py3-none-any.whl", "is not Shoal's wheel"),
        ("shoal-0.1.0-py3-none-any.whl", "is damaged"),
    ],
)
def test_a_wrong_wheel_is_refused_in_one_line_and_nothing_is_left(
    tmp_path: Path,
    small_dependencies: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    says: str,
) -> None:
    (tmp_path / name).write_bytes(b"not a zip file")
    out = tmp_path / "out/tree.tar.gz"
    words = ["release-tree", "--role", "agent", "--wheel", str(tmp_path / name), str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert release_tree.main() == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not out.parent.exists() or not list(out.parent.iterdir())


def _built(folder: Path, out: Path, roles: list[str] | None = None) -> Path:
    release_tree.build(
        out, roles=roles or ["agent"], python="3.11", arch="aarch64", wheel=_wheel(folder)
    )
    return out


def _unpacked(folder: Path, roles: list[str] | None = None) -> tuple[dict, Path]:
    with tarfile.open(_built(folder, folder / "tree.tar.gz", roles)) as packed:
        assert {name.split("/")[0] for name in packed.getnames()} == {"0.1.0"}
        # First of the files: who asks only what it is reads no further.
        assert next(entry.name for entry in packed if entry.isfile()) == "0.1.0/release.json"
        packed.extractall(folder / "releases", filter="data")
    tree = folder / "releases/0.1.0"
    return json.loads((tree / "release.json").read_text()), tree


def _wheel(folder: Path, agent: str = AGENT) -> Path:
    path = folder / "shoal-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("shoal_agent/__init__.py", "")
        wheel.writestr("shoal_agent/__main__.py", agent)
    return path
