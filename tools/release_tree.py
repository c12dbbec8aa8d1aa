"""Builds a release tree: a role's hashed dependencies, Shoal's own wheel and its commands, packed for a machine.

Everything is made here, so that the machine needs no network, no pip and no compiler; another kind of
machine than this one is fine, nothing of the tree is run. The same input gives the same bytes. Knows no
configuration and touches no board.

The archive holds one folder, named after the version:

    0.1.0/bin/shoal-agent   runs the tree's own code with the machine's python of that minor version
    0.1.0/lib/              the import path, with bytecode that is never checked against its source
    0.1.0/release.json      version, roles, python, arch, and the sha256 of every other file and of all of them
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PYTHONS: Final = ("3.11", "3.13")
ARCHES: Final = ("aarch64", "x86_64")
COMMANDS: Final = {
    "agent": {"shoal-agent": "shoal_agent", "shoal-agent-switch": "shoal_agent.self_update"},
    "bridge": {"shoal-bridge": "shoal_firmware_bridge"},
    "broker": {"shoal-broker": "shoal_broker"},
    "fleet": {"shoal": "shoal_fleet", "shoal-broker": "shoal_broker"},
    # Beside `fleet`, for a controller on PostgreSQL; no command of its own.
    "postgres": {},
}
# Wheels for every glibc up to 2.28 (Debian 10): pip does not derive the older tags by itself.
GLIBC_MINORS: Final = range(5, 29)

# Not `python3 -I`: the agent's own children must find the tree as well, and they inherit only the environment.
COMMAND: Final = """#!/bin/sh
# Runs this release tree's own code, whatever else is installed on the machine.
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
unset PYTHONHOME PYTHONSTARTUP
export PYTHONPATH="$tree/lib" PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python{python} -m {module} "$@"
"""


class BuildError(Exception):
    """The tree cannot be built; the message says why."""


def main() -> int:
    """The command line; prints one line about what was built."""
    options = _parser().parse_args()
    try:
        about = build(
            options.out,
            roles=options.role,
            python=options.python,
            arch=options.arch,
            wheel=options.wheel,
        )
    except (BuildError, OSError) as exc:
        print(f"release-tree: {exc}", file=sys.stderr)
        return 1
    size_bytes = options.out.stat().st_size
    print(f"{options.out}: {about['version']}, {size_bytes / 1e6:.1f} MB, sha256 {about['digest']}")
    return 0


def build(
    out: Path, *, roles: Sequence[str], python: str, arch: str, wheel: Path | None = None
) -> dict[str, object]:
    """Write the archive `out`, whole or not at all; what its release.json says.

    Args:
        out: a name that ends in .tar.gz; its folder is made when it is not there.
        roles: keys of COMMANDS; their requirements and commands go into one tree.
        python: one of PYTHONS. Without this very interpreter here the tree has no bytecode, and starts slower.
        arch: one of ARCHES.
        wheel: Shoal's wheel; built from this checkout when None.

    Raises:
        BuildError: pip failed, or the wheel is not Shoal's.
    """
    roles = sorted(set(roles))
    with tempfile.TemporaryDirectory(prefix="shoal-tree-") as scratch_name:
        scratch = Path(scratch_name)
        wheel = wheel or _build_wheel(scratch)
        version = _version(wheel)
        files = dict(_files(_dependencies(roles, python, arch), "lib"))
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch / "own")  # noqa: S202 - our own wheel, and zipfile keeps it inside
        except zipfile.BadZipFile as exc:
            raise BuildError(f"{wheel.name} is damaged: {exc}") from exc
        compiled = _compile(scratch / "own", python)
        files.update(_files(scratch / "own", "lib"))
        for role in roles:
            for command, module in COMMANDS[role].items():
                path = scratch / command
                path.write_text(COMMAND.format(module=module, python=python))
                files[f"bin/{command}"] = path
        digests = {name: _sha256(files[name]) for name in sorted(files)}
        about: dict[str, object] = {
            "version": version,
            "roles": roles,
            "python": python,
            "arch": arch,
            "bytecode": compiled,
            "digest": _digest(digests),
            "files": digests,
        }
        marker = scratch / "release.json"
        marker.write_text(json.dumps(about, indent=1) + "\n")
        files["release.json"] = marker
        out.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(out) as part:
            _pack({f"{version}/{name}": path for name, path in files.items()}, part)
    return about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="release-tree",
        description="Builds what a machine runs as a role of Shoal: unpacked, it needs only that machine's Python.",
        epilog="example: tools/release-tree --python 3.11 --arch aarch64 --role agent dist/agent.tar.gz",
    )
    parser.add_argument("out", type=Path, metavar="OUT.tar.gz", help="the archive to write")
    parser.add_argument("--python", choices=PYTHONS, default="3.11", help="the machine's Python")
    parser.add_argument("--arch", choices=ARCHES, default=platform.machine())
    parser.add_argument(
        "--role", choices=sorted(COMMANDS), action="append", required=True, help="may be repeated"
    )
    parser.add_argument("--wheel", type=Path, help="Shoal's wheel (default: build it here)")
    return parser


def _build_wheel(scratch: Path) -> Path:
    # With the build tools of this environment, from no index.
    _pip(
        *("wheel", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(scratch / "wheel"), str(REPOSITORY)),
    )
    return next((scratch / "wheel").glob("shoal-*.whl"))


def _version(wheel: Path) -> str:
    name, version, *tags = wheel.stem.split("-")
    if name != "shoal" or tags[-1:] != ["any"]:
        raise BuildError(f"{wheel.name} is not Shoal's wheel")
    return version


def _dependencies(roles: Sequence[str], python: str, arch: str) -> Path:
    """The installed and compiled dependencies, made once for each set of requirements."""
    requirements = [REPOSITORY / f"requirements/{role}.txt" for role in roles]
    key = hashlib.sha256(f"{arch} {python} {Path(__file__).read_text()}".encode())
    for path in requirements:
        if not path.is_file():
            raise BuildError(f"there is no {path.relative_to(REPOSITORY)} to install from")
        key.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"
    done = base / f"tree-{'-'.join(roles)}-{arch}-py{python}-{key.hexdigest()[:12]}"
    if done.is_dir():
        return done
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base, prefix=".tree-") as part_name:
        lib = Path(part_name) / "lib"
        tags = [f"manylinux_2_{minor}_{arch}" for minor in reversed(GLIBC_MINORS)]
        tags += [f"{old}_{arch}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
        _pip(
            *("install", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"),
            *("--python-version", python, "--implementation", "cp"),
            *(word for tag in tags for word in ("--platform", tag)),
            *("--target", str(lib)),
            *(word for path in requirements for word in ("--requirement", str(path))),
        )
        # These name the interpreter of this computer, and nobody runs them there.
        shutil.rmtree(lib / "bin", ignore_errors=True)
        for record in lib.glob("*.dist-info/RECORD"):
            lines = record.read_text().splitlines(keepends=True)
            record.write_text("".join(line for line in lines if not line.startswith("../../bin/")))
        _compile(lib, python)
        try:
            lib.rename(done)
        except OSError:  # somebody else has just made the same
            if not done.is_dir():
                raise
    return done


def _compile(folder: Path, python: str) -> bool:
    """Add bytecode that is never checked against its source; False without that interpreter here."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if python == here else shutil.which(f"python{python}")
    if interpreter is None:
        return False
    # A file that this Python cannot compile (a test of another version's syntax) is left as it is.
    subprocess.run(
        [
            *(interpreter, "-I", "-m", "compileall", "-q", "-q", "-f"),
            *("--invalidation-mode", "unchecked-hash"),
            *("-s", str(folder), "-p", "/opt/shoal/current/lib", str(folder)),
        ],
        check=False,
        capture_output=True,
    )
    # A version manager's stand-in for an interpreter that it does not have compiles nothing.
    return any(folder.rglob("__pycache__/*.pyc"))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"pip {arguments[0]} failed: {done.stderr.strip()}")


def _files(folder: Path, below: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield f"{below}/{path.relative_to(folder).as_posix()}", path


def _digest(digests: dict[str, str]) -> str:
    """One sha256 for all names and contents: two trees of one version are told apart by it."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pack(files: dict[str, Path], target: Path) -> None:
    """A tar whose bytes depend on nothing but the files; release.json first, for those who read it alone."""
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
        for name in sorted(files, key=lambda name: (name.split("/")[1] != "release.json", name)):
            content = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if name.split("/")[1] == "bin" else 0o644
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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
