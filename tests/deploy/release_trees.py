"""Release trees for the deployment tests: what `tools/release-tree` builds, without what is only large."""

import gzip
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tools import release_tree

PYTHON = "3.11"
# Tests and tools of our dependencies that nothing of ours imports.
_LEFT_OUT = re.compile(
    r"lib/(numpy/.*tests|numpy/f2py|onnxruntime/(transformers|tools|quantization|datasets)|av|PIL)/"
)


def wheel(scratch: Path) -> Path:
    """Shoal's wheel, made from this checkout."""
    return release_tree._build_wheel(scratch)


def build(
    out: Path,
    *roles: str,
    wheel: Path,
    arch: str = platform.machine(),
    version: str | None = None,
    without: str | None = None,
) -> Path:
    """The archive `out`, for this kind of machine if no other is named.

    Args:
        out: ends in .tar.gz.
        roles: what is to run from it.
        wheel: Shoal's.
        arch: the machine it is for, as `uname -m` says it.
        version: another name for the same content.
        without: a pattern for names below the tree that are left out: a release that is broken.
    """

    def files(folder: Path, below: str) -> Iterator[tuple[str, Path]]:
        for name, path in _files(folder, below):
            if not _LEFT_OUT.match(name) and not (without and re.search(without, name)):
                yield name, path

    def packed(**arguments):
        return gzip.GzipFile(**{**arguments, "compresslevel": 1})

    _files, _version = release_tree._files, release_tree._version
    with (
        mock.patch.object(release_tree, "_files", files),
        mock.patch.object(release_tree, "_version", lambda wheel: version or _version(wheel)),
        mock.patch.object(release_tree, "gzip", SimpleNamespace(GzipFile=packed)),
    ):
        release_tree.build(out, roles=roles, python=PYTHON, arch=arch, wheel=wheel)
    return out
