"""Looks up known vulnerabilities of what the roles pin, with pip-audit, which asks an advisory service on the network.

Findings are a failure. A service that cannot be reached, or does not know the packages (a mirror without advisories answers so), is
none: then it says that nothing was looked up, and why.

    .venv/bin/python tools/audit.py [--program PATH] [FILE ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PROGRAM: Final = REPOSITORY / ".venv-audit/bin/pip-audit"
ROLES: Final = ("agent", "bridge", "broker", "camera", "fleet", "images", "postgres")
SERVICE_TIMEOUT_S: Final = 15
RUN_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Looked:
    """What the service said of one file: `unknown` packages were not looked up; `why` is set when none was at all."""

    known: int = 0
    unknown: int = 0
    findings: tuple[str, ...] = ()
    why: str = ""


def main() -> int:
    """A line a file; 1 when something was found."""
    options = _parser().parse_args()
    files = options.files or [REPOSITORY / f"requirements/{role}.txt" for role in ROLES]
    found = False
    for file in files:
        looked = look(options.program, file)
        found = found or bool(looked.findings)
        print(f"{file.name}: {_told(looked)}", flush=True)
        for finding in looked.findings:
            print(f"  {finding}", flush=True)
    return 1 if found else 0


def look(program: Path, file: Path) -> Looked:
    """Ask about every package that a requirements file pins."""
    command = [
        *(str(program), "--disable-pip", "--require-hashes", "--progress-spinner", "off"),
        *("--timeout", str(SERVICE_TIMEOUT_S), "--format", "json", "--requirement", str(file)),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return Looked(why="pip-audit is not installed: run tools/setup-audit")
    except subprocess.TimeoutExpired:
        return Looked(why=f"no answer within {RUN_TIMEOUT_S} s")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return Looked(why=said[-1] if said else f"pip-audit ended with {done.returncode}")
    return judged(packages)


def judged(packages: list[dict[str, object]]) -> Looked:
    """What pip-audit's list of packages says."""
    unknown = [package for package in packages if "skip_reason" in package]
    findings = tuple(
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        f" (better: {', '.join(vulnerability['fix_versions']) or 'none yet'})"
        for package in packages
        for vulnerability in package.get("vulns", ())  # type: ignore[attr-defined]
    )
    why = str(unknown[0]["skip_reason"]) if packages and len(unknown) == len(packages) else ""
    return Looked(len(packages) - len(unknown), len(unknown), findings, why)


def _told(looked: Looked) -> str:
    if looked.why:
        return f"not looked up: {looked.why}"
    unknown = f", {looked.unknown} not known to the service" if looked.unknown else ""
    return f"{len(looked.findings)} known vulnerabilities in {looked.known} packages{unknown}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="audit",
        description="Looks up known vulnerabilities of the pinned packages.",
        epilog="example: .venv/bin/python tools/audit.py requirements/agent.txt",
    )
    parser.add_argument("--program", type=Path, default=PROGRAM, help="pip-audit")
    parser.add_argument("files", nargs="*", type=Path, help="requirements; of every role if none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
