#!/usr/bin/env python3
"""Builds the release tree that a board runs: dependencies, Shoal's wheel, commands; packed for the Ansible role.

Everything is done here so that the board needs no network, no pip and no compiler. The same input gives
the same release id. Does not touch a board and knows no configuration: that comes with the role.
"""

from __future__ import annotations

import argparse
import compileall
import gzip
import hashlib
import io
import json
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("requirements/agent.txt", "requirements/bridge.txt")
COMMANDS = {"shoal-agent": "shoal_agent", "shoal-bridge": "shoal_firmware_bridge"}
MACHINES = ("x86_64", "aarch64")
# Wheels for every glibc up to 2.28 (Debian 10): pip does not derive the older tags by itself.
GLIBC_MINORS = range(5, 29)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

COMMAND = """#!/bin/sh
# Runs this release tree's own code, whatever else is installed on the board.
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
PYTHONPATH=$tree/lib PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONNOUSERSITE PYTHONDONTWRITEBYTECODE
exec /usr/bin/python3 -m {module} "$@"
"""


class BuildError(Exception):
    """The tree cannot be built; the message says why."""


def main() -> int:
    """The command line; prints the path of the manifest."""
    options = _parser().parse_args()
    try:
        print(build(options.out, machine=options.machine, wheel=options.wheel))
    except (BuildError, OSError) as exc:
        print(f"board_release: {exc}", file=sys.stderr)
        return 1
    return 0


def build(out: Path, *, machine: str, wheel: Path | None = None) -> Path:
    """Write `<out>/shoal-board-<id>-<machine>.tar.gz` and its manifest; the manifest's path.

    Args:
        out: made when it is not there.
        machine: one of MACHINES; another one than this computer's is fine, nothing is run.
        wheel: Shoal's wheel; built from this checkout when None.

    Raises:
        BuildError: pip failed, or the wheel is not Shoal's.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shoal-board-") as scratch_name:
        scratch = Path(scratch_name)
        wheel = wheel or _build_wheel(scratch)
        version = _version(wheel)
        files = dict(_files(_dependencies(machine), "lib"))
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch / "own")  # noqa: S202 - our own wheel, and zipfile keeps it inside
        except zipfile.BadZipFile as exc:
            raise BuildError(f"{wheel.name} is damaged: {exc}") from exc
        _compile(scratch / "own")
        files.update(_files(scratch / "own", "lib"))
        for command, module in COMMANDS.items():
            path = scratch / command
            path.write_text(COMMAND.format(module=module))
            path.chmod(0o755)
            files[f"bin/{command}"] = path

        release = f"{version}+{_digest(files)[:12]}"
        about = {"id": release, "version": version, "python": PYTHON, "machine": machine}
        marker = scratch / "RELEASE.json"
        marker.write_text(json.dumps(about, indent=2) + "\n")
        files["RELEASE.json"] = marker
        archive_path = out / f"shoal-board-{release}-{machine}.tar.gz"
        with _replacing(archive_path) as part:
            _pack(files, part)
        manifest = out / f"shoal-board-{machine}.json"
        facts = {
            **about,
            "archive": archive_path.name,
            "sha256": _sha256(archive_path),
            "size_bytes": archive_path.stat().st_size,
        }
        with _replacing(manifest) as part:
            part.write_text(json.dumps(facts, indent=2) + "\n")
    return manifest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Builds the release tree that the Ansible role installs on a board.",
        epilog="example: .venv/bin/python tools/board_release.py --machine aarch64 --out dist",
    )
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the result")
    parser.add_argument("--machine", choices=MACHINES, default=platform.machine())
    parser.add_argument("--wheel", type=Path, help="Shoal's wheel (default: build it here)")
    return parser


def _build_wheel(scratch: Path) -> Path:
    # The front end's name for "with the build tools of this environment, from no index".
    arguments = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(scratch / "wheel"),
    ]
    _pip(*arguments, str(REPOSITORY))
    return next((scratch / "wheel").glob("shoal-*.whl"))


def _version(wheel: Path) -> str:
    name, version, *tags = wheel.stem.split("-")
    if name != "shoal" or tags[-1:] != ["any"]:
        raise BuildError(f"{wheel.name} is not Shoal's wheel")
    return version


def _dependencies(machine: str) -> Path:
    """The installed and compiled dependencies, made once for each set of requirements."""
    requirements = [REPOSITORY / name for name in REQUIREMENTS]
    key = hashlib.sha256(f"{machine} {PYTHON} {Path(__file__).read_text()}".encode())
    for path in requirements:
        key.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"
    done = base / f"board-{machine}-py{PYTHON}-{key.hexdigest()[:12]}"
    if done.is_dir():
        return done
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base, prefix=".board-") as part_name:
        lib = Path(part_name) / "lib"
        tags = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC_MINORS)]
        tags += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
        _pip(
            *("install", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"),
            *("--python-version", PYTHON, "--implementation", "cp"),
            *(word for tag in tags for word in ("--platform", tag)),
            *("--target", str(lib)),
            *(word for path in requirements for word in ("--requirement", str(path))),
        )
        # These name the interpreter of this computer, and nobody runs them on a board.
        shutil.rmtree(lib / "bin", ignore_errors=True)
        for record in lib.glob("*.dist-info/RECORD"):
            lines = record.read_text().splitlines(keepends=True)
            record.write_text("".join(line for line in lines if not line.startswith("../../bin/")))
        _compile(lib)
        try:
            lib.rename(done)
        except OSError:  # somebody else has just made the same
            if not done.is_dir():
                raise
    return done


def _compile(folder: Path) -> None:
    """Bytecode that is never checked against its source: the tree does not change on the board."""
    compileall.compile_dir(
        folder,
        quiet=2,
        force=True,
        stripdir=str(folder),
        prependdir="/opt/shoal/current/lib",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"pip {arguments[0]} failed: {done.stderr.strip()}")


def _files(folder: Path, below: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield f"{below}/{path.relative_to(folder).as_posix()}", path


def _digest(files: dict[str, Path]) -> str:
    """One digest for names, contents and which files can be executed."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{_mode(name):o}\0{_sha256(files[name])}\n".encode())
    return whole.hexdigest()


def _mode(name: str) -> int:
    return 0o755 if name.startswith("bin/") else 0o644


def _pack(files: dict[str, Path], target: Path) -> None:
    """A tar whose bytes depend on nothing but the files."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
        for name in sorted(folders):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in sorted(files):
            content = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = _mode(name), len(content)
            archive.addfile(entry, io.BytesIO(content))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
