"""Which file of a folder is next: new, complete as far as one can see, of a kind that is read. Standard library only.

A file is taken when two looks in a row find the same size and time of change; who writes beside and renames is
safe whatever the pace.
"""

import os
import stat
from pathlib import Path
from typing import Final

SUFFIXES: Final = {
    "jpeg": (".jpg", ".jpeg", ".jpe"),
    "png": (".png",),
    "webp": (".webp",),
    "bmp": (".bmp",),
}
MAX_ENTRIES: Final = 100_000


class Folder:
    """A folder, or one file, and what is known of it.

    Args:
        known: name -> stamp of what was read before.
    """

    def __init__(self, path: Path, formats: list[str], known: dict[str, str]) -> None:
        self._path = path
        self._suffixes = tuple(suffix for name in formats for suffix in SUFFIXES[name])
        self._known = known
        self._seen: dict[str, str] = {}

    def forget_gone(self) -> list[str]:
        """Names of known files that are not there any more.

        Raises:
            OSError: the folder cannot be read.
        """
        there = {name for name, _, _ in self._entries()}
        gone = [name for name in self._known if name not in there]
        for name in gone:
            del self._known[name]
        return gone

    def look(self) -> tuple[str, str] | None:
        """Name and stamp of the oldest file that is new and has not changed since the last look.

        Raises:
            OSError: the folder cannot be read.
        """
        fresh = [entry for entry in self._entries() if self._known.get(entry[0]) != entry[2]]
        seen, self._seen = self._seen, {name: stamp for name, _, stamp in fresh}
        steady = [(at, name, stamp) for name, at, stamp in fresh if seen.get(name) == stamp]
        if not steady:
            return None
        _, name, stamp = min(steady)
        return name, stamp

    def done(self, name: str, stamp: str, *, delete: bool) -> None:
        """The file is not to be found again unless it changes.

        Raises:
            OSError: it cannot be deleted.
        """
        self._known[name] = stamp
        if delete:
            path = self.file(name)
            if _stamp(path.lstat()) == stamp:
                path.unlink()
                del self._known[name]

    def read(self, name: str, stamp: str, *, max_bytes: int) -> bytes:
        """The file's bytes.

        Raises:
            OSError: it cannot be read.
            ValueError: it is too large, or not the file any more that was found.
        """
        descriptor = os.open(
            self.file(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or _stamp(found) != stamp:
                raise ValueError("it changed while it was looked at")
            if found.st_size > max_bytes:
                raise ValueError(f"{found.st_size} bytes; at most {max_bytes} are read")
            return file.read(max_bytes)

    def file(self, name: str) -> Path:
        """Where the file with this name stands."""
        if "/" in name or name in {"", ".", ".."}:
            raise ValueError(f"{name!r} is no name of a file")
        return self._path / name if self._path.is_dir() else self._path

    def _entries(self) -> list[tuple[str, int, str]]:
        """Name, time of change and stamp of every file of a kind that is read."""
        try:
            if not stat.S_ISDIR(self._path.stat().st_mode):
                found = self._path.lstat()
                return (
                    [(self._path.name, found.st_mtime_ns, _stamp(found))] if _is_file(found) else []
                )
        except FileNotFoundError:
            return []  # it may be written later
        entries = []
        with os.scandir(self._path) as listing:
            for entry in listing:
                if entry.name.startswith(".") or not entry.name.lower().endswith(self._suffixes):
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if _is_file(found):
                    entries.append((entry.name, found.st_mtime_ns, _stamp(found)))
                if len(entries) >= MAX_ENTRIES:
                    break
        return entries


def _is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"
