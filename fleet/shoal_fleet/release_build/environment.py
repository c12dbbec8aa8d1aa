"""The worker's environment: a virtual environment of its own, made when it is first needed.

Two sizes of it: light (onnx and onnxruntime; enough for a model that is ONNX already) and full (torch,
transformers and optimum as well). `python -m shoal_fleet.release_build.environment [--full] DIR` makes one.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import requires
from pathlib import Path
from typing import Final

import shoal_contract
import shoal_delta
import shoal_fleet
from shoal_broker.durable import write_durably
from shoal_fleet.errors import FleetError, ReleaseBuildError

DIRECTORY: Final = "quantize-env"
MARKER: Final = "shoal-environment.json"
"""Stands in an environment that is complete, with the pins that it was made from."""

_LIGHT: Final = frozenset({"numpy", "zstandard", "onnx", "onnxruntime"})
_LIGHT_MODULES: Final = ("numpy", "zstandard", "onnx", "onnxruntime")
_FULL_MODULES: Final = (*_LIGHT_MODULES, "torch", "transformers", "optimum")
_WORKER: Final = "shoal_fleet.release_build.worker"
# Behind the environment's own packages: ours must not bring other versions of theirs.
_BOOT: Final = (
    "import os, runpy, sys; sys.path.extend(sys.argv.pop(1).split(os.pathsep));"
    f" runpy.run_module({_WORKER!r}, run_name='__main__', alter_sys=True)"
)


def pins(*, is_full: bool) -> list[str]:
    """What is installed: the extra `quantize` of this very distribution, or the light part of it."""
    found = []
    for requirement in requires("shoal") or []:
        text, _, condition = requirement.partition(";")
        name = re.split(r"[^A-Za-z0-9_-]", text.strip(), maxsplit=1)[0].lower()
        if re.search(r"extra\s*==\s*['\"]quantize['\"]", condition) and (is_full or name in _LIGHT):
            found.append(text.strip())
    return sorted(found)


def command(job: Path, *, default: Path, chosen: Path | None, is_full: bool) -> list[str] | None:
    """How to start the worker; None when the default environment has to be made first.

    `chosen` is a person's: it is taken as it is. Else this interpreter, if it has all that is needed.

    Raises:
        ReleaseBuildError: the chosen one is no environment.
    """
    if chosen is not None:
        python = _python(chosen)
        if not python.is_file():
            raise ReleaseBuildError(f"{chosen} is no virtual environment: there is no {python}")
        return _with_our_code(python, job)
    modules = _FULL_MODULES if is_full else _LIGHT_MODULES
    if all(importlib.util.find_spec(name) is not None for name in modules):
        return [sys.executable, "-m", _WORKER, str(job)]
    if is_complete(default, is_full=is_full):
        return _with_our_code(_python(default), job)
    return None


def is_complete(folder: Path, *, is_full: bool) -> bool:
    """Whether it was made to its end, from today's pins."""
    try:
        made_from = set(json.loads((folder / MARKER).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return False
    return set(pins(is_full=is_full)) <= made_from


def make(folder: Path, *, is_full: bool, say: Callable[[str], None]) -> None:
    """Make the environment; `say` hears what pip does. One that was not finished is made anew.

    Raises:
        ReleaseBuildError: the disk or the package index does not let us.
    """
    wanted = pins(is_full=is_full)
    try:
        with suppress(FileNotFoundError):
            (folder / MARKER).unlink()
        folder.parent.mkdir(parents=True, exist_ok=True)
        say(f"making {folder}")
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ReleaseBuildError(f"{folder} cannot be made: {exc}") from exc
    arguments = [str(_python(folder)), "-m", "pip", "install", "--no-input", *wanted]
    last = ""
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        for line in pip.stdout or ():
            last = line.strip() or last
            say(last)
    if pip.returncode != 0:
        raise ReleaseBuildError(f"{folder} cannot be filled: {last} ({', '.join(wanted)})")
    write_durably(folder / MARKER, json.dumps(wanted).encode())


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _with_our_code(python: Path, job: Path) -> list[str]:
    return [str(python), "-c", _BOOT, os.pathsep.join(dict.fromkeys(_our_folders())), str(job)]


def _our_folders() -> Iterator[str]:
    for package in (shoal_fleet, shoal_contract, shoal_delta):
        yield str(Path(package.__path__[0]).parent)


def main(argv: list[str] | None = None) -> int:
    """Make an environment; the exit code says whether it is there."""
    parser = argparse.ArgumentParser(
        prog="python -m shoal_fleet.release_build.environment",
        description="Make the environment that `shoal release build` works in.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="with torch, transformers and optimum")
    options = parser.parse_args(argv)
    if is_complete(options.folder, is_full=options.full):
        sys.stdout.write(f"{options.folder} is complete\n")
        return 0
    try:
        make(options.folder, is_full=options.full, say=lambda line: print(line, flush=True))  # noqa: T201 - a command line
    except FleetError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
