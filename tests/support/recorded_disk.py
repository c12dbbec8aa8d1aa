# ruff: noqa: PTH100, PTH115, PTH116, PTH118, PTH119, PTH120, PTH123 - the os functions it wraps have strings for paths
"""Writes down what a program does to a directory: writes, links, renames, unlinks, directories, fsyncs and commits.

The `os` functions that change names or flush are wrapped; what was written shows in the files, which are looked at
before each of them. SQLite's files are opaque: a commit of a `Store` is one step, with the bytes before and after it.
"""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shoal_broker.store import Store

SYMBOLIC = b"\0symbolic link to "
"""What the content of a symbolic link begins with here."""
ROOT = 0
"""The number of the recorded directory itself."""
DATABASE = "agent.db"
_OPAQUE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of a file; `size_bytes` is how long it is then."""

    node: int
    offset: int
    content: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Link:
    """A name for a file, new or not. `content`: of a new symbolic link, whose bytes come with its name."""

    folder: int
    name: str
    node: int
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class MakeFolder:
    folder: int
    name: str
    node: int


@dataclass(frozen=True, slots=True)
class Rename:
    """One step for both directories, as journaling file systems have it."""

    folder: int
    name: str
    to_folder: int
    to_name: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """Of a file's name, or of an empty directory."""

    folder: int
    name: str


@dataclass(frozen=True, slots=True)
class Sync:
    """What was done to this file or directory before is on the disk."""

    node: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The database file and its log, before and after."""

    before: tuple[bytes, bytes]
    after: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Told:
    """What the world was told at this moment."""

    what: object


Step = Write | Link | MakeFolder | Rename | Unlink | Sync | Commit | Told


@dataclass(slots=True)
class Tree:
    """A directory: what each number is, a file's bytes or a directory's names."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    database: tuple[bytes, bytes] = (b"", b"")

    def copy(self) -> "Tree":
        folders = {node: dict(names) for node, names in self.folders.items()}
        return Tree(dict(self.files), folders, self.database)


class RecordedDisk:
    """Records `folder`, which is there. Use `recording`.

    Attributes:
        start: what there was when it began.
        steps: what was done since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.steps: list[Step] = []
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {os.stat(self.folder).st_ino: ROOT}
        self._paths: dict[str, int] = {"": ROOT}
        self._next = 1
        self._contents: dict[int, bytes] = {}
        self._database = self._read_database()
        self._look(tell=False)
        self.start = self._tree()
        self.steps.clear()

    def tell(self, what: object) -> None:
        with self._lock:
            self._look()
            self.steps.append(Told(what))

    # ------------------------------------------------------------------ what has changed
    def _tree(self) -> Tree:
        tree = Tree(dict(self._contents), {ROOT: {}}, self._database)
        for path, node in sorted(self._paths.items()):
            if node not in self._contents:
                tree.folders.setdefault(node, {})
            if path:
                folder, _, name = path.rpartition("/")
                tree.folders.setdefault(self._paths[folder], {})[name] = node
        return tree

    def _look(self, *, tell: bool = True) -> None:
        """Take down what was made and written since the last look."""
        seen: dict[str, int] = {"": ROOT}
        for top, folders, names in os.walk(self.folder):
            here = os.path.relpath(top, self.folder)
            prefix = "" if here == "." else here + "/"
            parent = seen["" if here == "." else here]
            for name in sorted([*folders, *names]):
                path = prefix + name
                if path in _OPAQUE:
                    continue
                full = os.path.join(top, name)
                status = os.lstat(full)
                node = self._numbers.get(status.st_ino)
                is_folder = stat.S_ISDIR(status.st_mode)
                content = b""
                if node is None:
                    node, self._next = self._next, self._next + 1
                    self._numbers[status.st_ino] = node
                    if stat.S_ISLNK(status.st_mode):
                        content = SYMBOLIC + os.fsencode(os.readlink(full))
                    if not is_folder:
                        self._contents[node] = content
                seen[path] = node
                if tell and self._paths.get(path) != node:
                    made = (
                        MakeFolder(parent, name, node)
                        if is_folder
                        else Link(parent, name, node, content)
                    )
                    self.steps.append(made)
                if stat.S_ISREG(status.st_mode):
                    self._look_into(full, node, tell=tell)
        gone = set(self._paths.values()) - set(seen.values())
        for number in [inode for inode, node in self._numbers.items() if node in gone]:
            self._contents.pop(self._numbers.pop(number), None)
        self._paths = seen

    def _look_into(self, path: str, node: int, *, tell: bool) -> None:
        with open(path, "rb") as file:
            new = file.read()
        old = self._contents[node]
        if new == old:
            return
        self._contents[node] = new
        if tell:
            shared = min(len(old), len(new))
            start = next((at for at in range(shared) if old[at] != new[at]), shared)
            end = len(new)
            if len(old) == len(new):
                while end > start and old[end - 1] == new[end - 1]:
                    end -= 1
            self.steps.append(Write(node, start, new[start:end], len(new)))

    def _read_database(self) -> tuple[bytes, bytes]:
        def read(name: str) -> bytes:
            path = self.folder / name
            return path.read_bytes() if path.exists() else b""

        return read(DATABASE), read(f"{DATABASE}-wal")

    # ------------------------------------------------------------------ what is wrapped
    def node_of(self, path: str) -> int | None:
        """The number of a path in the recorded directory."""
        relative = self._relative(path)
        return None if relative is None else self._paths.get(relative)

    def _relative(self, path: str) -> str | None:
        full = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if full == str(self.folder):
            return ""
        prefix = f"{self.folder}/"
        inside = full.startswith(prefix) and full.removeprefix(prefix) not in _OPAQUE
        return full.removeprefix(prefix) if inside else None

    def place_of(self, path: str) -> tuple[int, str] | None:
        relative = self._relative(path)
        if not relative:
            return None
        folder, _, name = relative.rpartition("/")
        return self._paths[folder], name

    def wrapped(self, real, step_of):
        """`real`, which is done after a look and taken down with `step_of(arguments)`."""

        def call(*args, **kwargs):
            with self._lock:
                step = step_of(self, *args, **kwargs) if self._concerns(args, kwargs) else None
                if step is None:
                    return real(*args, **kwargs)
                self._look()
                result = real(*args, **kwargs)
                step = step_of(self, *args, **kwargs) if isinstance(step, Sync) else step
                if not isinstance(step, Write | Link | MakeFolder):
                    self.steps.append(step)
                    self._look(tell=False)
                else:
                    # A new name or new bytes: the look finds what it is.
                    self._look()
                return result

        return call

    def _concerns(self, args, kwargs) -> bool:
        return any(
            self._relative(_path(arg, kwargs)) is not None
            for arg in args[:2]
            if isinstance(arg, str | bytes | os.PathLike | int)
        )

    def committed(self) -> None:
        with self._lock:
            self._look()
            after = self._read_database()
            if after != self._database:
                self.steps.append(Commit(self._database, after))
                self._database = after


def _path(arg, kwargs) -> str:
    """An argument as an absolute path; one that is no path is nowhere."""
    try:
        if isinstance(arg, int):
            return os.readlink(f"/proc/self/fd/{arg}")
        name = os.fsdecode(arg)
        folder = kwargs.get("dir_fd")
        if folder is not None:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        return os.path.abspath(name)
    except OSError:
        return "/"


def _sync(disk: RecordedDisk, descriptor, **_) -> Step | None:
    path = _path(descriptor, {})
    disk._look()
    node = disk.node_of(path)
    return None if node is None else Sync(node)


def _unlink(disk: RecordedDisk, path, **kwargs) -> Step | None:
    disk._look()
    place = disk.place_of(_path(path, kwargs))
    return None if place is None else Unlink(*place)


def _rename(disk: RecordedDisk, source, target, **_) -> Step | None:
    disk._look()
    here, there = disk.place_of(_path(source, {})), disk.place_of(_path(target, {}))
    return None if here is None or there is None else Rename(*here, *there)


def _grows(disk: RecordedDisk, *_args, **_kwargs) -> Step:
    return Write(ROOT, 0, b"", 0)


@contextmanager
def recording(folder: Path) -> Iterator[RecordedDisk]:
    """Everything that this process does in `folder` while the block runs."""
    disk = RecordedDisk(folder)
    wraps = {
        "fsync": _sync, "unlink": _unlink, "remove": _unlink, "rmdir": _unlink, "rename": _rename,
        "replace": _rename, "link": _grows, "symlink": _grows, "mkdir": _grows, "pwrite": _grows, "truncate": _grows,
        "ftruncate": _grows,
    }  # fmt: skip
    real = {name: getattr(os, name) for name in wraps}
    commit_group = Store._commit_group

    def committing(self, connection, group):
        commit_group(self, connection, group)
        disk.committed()

    for name, step_of in wraps.items():
        setattr(os, name, disk.wrapped(real[name], step_of))
    Store._commit_group = committing
    try:
        yield disk
        with disk._lock:
            disk._look()
    finally:
        Store._commit_group = commit_group
        for name, function in real.items():
            setattr(os, name, function)
