"""Known vulnerabilities: a finding fails, a service that says nothing does not, and neither is taken for the other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import audit

PACKAGE = {"name": "cbor2", "version": "6.2.1", "vulns": []}
UNKNOWN = {"name": "msgspec", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "h11",
    "version": "0.1",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.2"], "aliases": [], "description": ""}],
}


def ran(
    folder: Path, out: str, *, status: int = 0, error: str = ""
) -> subprocess.CompletedProcess[str]:
    """The tool, with a pip-audit that says this."""
    program = folder / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint({out!r})\nprint({error!r}, file=sys.stderr)\nsys.exit({status})\n"
    )
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, audit.__file__, "--program", program, folder / "agent.txt"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )


@pytest.mark.parametrize(
    ("packages", "status", "line"),
    [
        ([PACKAGE], 0, "agent.txt: 0 known vulnerabilities in 1 packages"),
        (
            [PACKAGE, UNKNOWN],
            0,
            "agent.txt: 0 known vulnerabilities in 1 packages, 1 not known to the service",
        ),
        ([UNKNOWN], 0, "agent.txt: not looked up: Dependency not found on PyPI"),
        (
            [PACKAGE, BAD],
            1,
            "agent.txt: 1 known vulnerabilities in 2 packages\n  h11 0.1: PYSEC-1 (better: 0.2)",
        ),
    ],
    ids=["clean", "partly", "a mirror without advisories", "findings"],
)
def test_what_the_service_said_is_told(
    tmp_path: Path, packages: list[dict], status: int, line: str
) -> None:
    # pip-audit itself ends with 1 when it has found something.
    done = ran(tmp_path, json.dumps({"dependencies": packages, "fixes": []}), status=status)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (status, line, "")


def test_a_service_that_cannot_be_reached_is_no_failure_and_not_called_clean(
    tmp_path: Path,
) -> None:
    done = ran(tmp_path, "", status=1, error="ERROR:pip_audit._cli:Could not connect")
    assert done.returncode == 0
    assert done.stdout == "agent.txt: not looked up: ERROR:pip_audit._cli:Could not connect\n"


def test_a_machine_without_pip_audit_is_told_how_to_get_it(tmp_path: Path) -> None:
    assert "tools/setup-audit" in audit.look(tmp_path / "none", tmp_path / "agent.txt").why
