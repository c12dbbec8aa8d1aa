"""Builds everything that is shipped into a folder: wheel, sdist, collection, SBOM, and the checksums of them all.

Asks no index. The same commit gives the same bytes, but for the collection, whose builder writes the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from tools import sbom

REPOSITORY: Final = Path(__file__).resolve().parent.parent
GALAXY: Final = REPOSITORY / ".venv-ansible/bin/ansible-galaxy"


class DistError(Exception):
    """Something could not be built; the message says why."""


def main() -> int:
    """The command line; prints what it made."""
    parser = argparse.ArgumentParser(
        prog="dist", description="Builds what is shipped.", epilog="example: make dist"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist")
    options = parser.parse_args()
    try:
        for path in build(options.out.resolve()):
            print(path)
    except (DistError, OSError, sbom.LockError) as exc:
        print(f"dist: {exc}", file=sys.stderr)
        return 1
    return 0


def build(out: Path) -> list[Path]:
    """Fill `out`, which is made when it is not there; the files, SHA256SUMS last.

    Raises:
        DistError: a builder failed, or .venv-ansible is not there.
        LockError: a lock cannot be read.
    """
    if not GALAXY.exists():
        raise DistError("no .venv-ansible for the collection: run tools/setup-ansible")
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".dist-") as name:
        part = Path(name)
        _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", part, REPOSITORY)
        _run(GALAXY, "collection", "build", "--output-path", part, REPOSITORY / "deploy/ansible")
        bom = part / f"shoal-{version}.cdx.json"
        bom.write_text(json.dumps(sbom.of_checkout(REPOSITORY, version), indent=1) + "\n")
        made = sorted(path.name for path in part.iterdir())
        sums = "".join(f"{_sha256(part / file)}  {file}\n" for file in made)
        (part / "SHA256SUMS").write_text(sums)
        for file in (*made, "SHA256SUMS"):
            (part / file).replace(out / file)
    return [out / file for file in (*made, "SHA256SUMS")]


def _run(*command: object) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _commit_time()}
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DistError(f"{Path(words[0]).name} failed: {(done.stderr or done.stdout).strip()}")


def _commit_time() -> str:
    """Unix seconds; without git the beginning of what a zip file can say."""
    asked = ["git", "-C", str(REPOSITORY), "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return "315532800"
    return done.stdout.strip() or "315532800"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
