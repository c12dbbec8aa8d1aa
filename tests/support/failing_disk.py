"""Lets a directory's disk refuse from a chosen write on: full (ENOSPC), or mounted read-only (EROFS)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.recorded_disk import _path

_DELETING = ("unlink", "rmdir")
_CALLS = (
    "open", "pwrite", "fsync", "mkdir", "link", "rename", "replace", "truncate", "ftruncate",
    *_DELETING,
)  # fmt: skip
_WRITING = os.O_CREAT | os.O_WRONLY | os.O_RDWR


class FailingDisk:
    """`writes` counts what was asked for; from number `first` on each is refused while `is_failing`."""

    def __init__(self, folder: Path, error: int, first: int) -> None:
        self.writes = 0
        self.refused = 0
        self.is_failing = True
        self._prefix = f"{folder.resolve()}/"
        self._error = error
        self._first = first

    def wrapped(self, name: str, real):
        def call(*args, **kwargs):
            if self._concerns(name, args, kwargs):
                self.writes += 1
                if self.is_failing and self.writes >= self._first:
                    self.refused += 1
                    raise OSError(self._error, os.strerror(self._error), _path(args[0], kwargs))
            return real(*args, **kwargs)

        return call

    def _concerns(self, name: str, args, kwargs) -> bool:
        if name in _DELETING and self._error != errno.EROFS:
            return False
        if name == "open" and not args[1] & _WRITING:
            return False
        return _path(args[0], kwargs).startswith(self._prefix)


@contextmanager
def failing_disk(folder: Path, *, first: int, error: int = errno.ENOSPC) -> Iterator[FailingDisk]:
    """What this process writes below `folder` is refused from write number `first` on."""
    disk = FailingDisk(folder, error, first)
    real = {name: getattr(os, name) for name in _CALLS}
    for name, function in real.items():
        setattr(os, name, disk.wrapped(name, function))
    try:
        yield disk
    finally:
        for name, function in real.items():
            setattr(os, name, function)
