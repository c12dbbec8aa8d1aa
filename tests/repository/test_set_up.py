"""What a newcomer meets first: the set-up says what is missing, and the tree carries no machine."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python_without(tmp_path: Path, statement: str) -> Path:
    """A python3 that fails where Debian's would: when `statement` is among what it is asked to run."""
    fake = tmp_path / "python3"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *"{statement}"*) exit 1;; esac\nexit 0\n')
    fake.chmod(0o755)
    return fake


def set_up(path: str, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "tools/setup"],
        cwd=ROOT,
        env={"PATH": path, "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_python3_venv_it_prints_the_line_to_type(tmp_path):
    python = python_without(tmp_path, "ensurepip")
    result = set_up(os.environ["PATH"], str(python))
    assert result.returncode == 1
    assert "sudo apt-get install --yes python3-venv" in result.stderr


def test_without_make_and_python_it_prints_both(tmp_path):
    for tool in ("dirname", "sh"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    result = set_up(str(tmp_path), "python3")
    assert result.returncode == 1
    assert "sudo apt-get install --yes make python3" in result.stderr


def test_a_python_that_is_too_old_is_named(tmp_path):
    python = python_without(tmp_path, "version_info")
    result = set_up(os.environ["PATH"], str(python))
    assert result.returncode == 1
    assert "needs Python 3.11 or newer" in result.stderr


@pytest.mark.parametrize("role", ["agent", "bridge", "fleet", "dev", "ansible", "peers", "text"])
def test_requirements_are_hashed_and_name_no_index(role):
    text = (ROOT / f"requirements/{role}.txt").read_text()
    pins = re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE)
    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", text)


def test_a_board_carries_nothing_of_the_server():
    text = (ROOT / "requirements/agent.txt").read_text() + (
        ROOT / "requirements/bridge.txt"
    ).read_text()
    for package in (
        "fastapi",
        "sqlalchemy",
        "typer",
        "rich",
        "uvicorn",
        "optimum",
        "torch",
        "onnx",
    ):
        assert not re.search(rf"^{package}==", text, re.MULTILINE)
