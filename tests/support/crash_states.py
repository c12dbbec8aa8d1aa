"""Every state in which a power cut may leave a recorded directory, as ALICE (OSDI 2014) has it.

Only what was flushed is certain. Of the rest any part may be there: names in any subset that makes sense, of a file's
writes none, all, a beginning, all but one, half of the last, or its length without its bytes. A rename is one step
for both its directories. A commit of the database is there or not, or its log ends in the middle of it. Where more
than `MANY` names are open, subsets are left out: prefixes, all but one, only one.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.recorded_disk import (
    DATABASE,
    ROOT,
    SYMBOLIC,
    Commit,
    Link,
    MakeFolder,
    RecordedDisk,
    Rename,
    Step,
    Sync,
    Told,
    Tree,
    Unlink,
    Write,
)

MANY = 6
_Named = Link | MakeFolder | Rename | Unlink


@dataclass(slots=True)
class CrashState:
    """A directory after a power cut. `told`: everything that the world had been told by then, at the latest."""

    tree: Tree
    told: tuple[object, ...]
    after_step: int

    def write_to(self, folder: Path) -> None:
        """Make it, in a directory that is not there yet."""
        made: dict[int, Path] = {}

        def make(node: int, path: Path) -> None:
            path.mkdir()
            for name, child in self.tree.folders[node].items():
                here = path / name
                if child in self.tree.folders:
                    make(child, here)
                elif child in made:
                    here.hardlink_to(made[child])
                elif self.tree.files[child].startswith(SYMBOLIC):
                    here.symlink_to(os.fsdecode(self.tree.files[child].removeprefix(SYMBOLIC)))
                    made[child] = here
                else:
                    here.write_bytes(self.tree.files[child])
                    made[child] = here

        make(ROOT, folder)
        main, log = self.tree.database
        if main or log:
            (folder / DATABASE).write_bytes(main)
            (folder / f"{DATABASE}-wal").write_bytes(log)


def crash_states(disk: RecordedDisk) -> list[CrashState]:
    """All of them, each once; `told` is the most that holds for one."""
    found: dict[bytes, CrashState] = {}
    told: list[object] = []
    base, pending = disk.start.copy(), list[Step]()
    for number, step in enumerate([*disk.steps, Told(None)]):
        for tree in _after(base, pending, step):
            key = _key(tree)
            # The later a state may be found, the more was told before it.
            found[key] = CrashState(tree, tuple(told), number)
        match step:
            case Sync(node):
                base, pending = _flushed(base, pending, node)
            case Commit(_, after):
                base = base.copy()
                base.database = after
            case Told(what):
                told.append(what)
            case _:
                pending.append(step)
    return list(found.values())


def _flushed(base: Tree, pending: list[Step], node: int) -> tuple[Tree, list[Step]]:
    """Its writes, or its names, are certain; what stays open stays open."""
    certain: list[Step] = []
    open_steps: list[Step] = []
    sources: set[tuple[int, str]] = set()
    for step in reversed(pending):
        if isinstance(step, Write):
            is_certain = step.node == node
        else:
            is_certain = node in {step.folder, getattr(step, "to_folder", step.folder)}
            # Where a rename is certain, so is that there was something to rename.
            made = (step.to_folder, step.to_name) if isinstance(step, Rename) else None
            if isinstance(step, Link | MakeFolder):
                made = (step.folder, step.name)
            if made in sources:
                is_certain = True
                sources.discard(made)
            if is_certain and isinstance(step, Rename):
                sources.add((step.folder, step.name))
        (certain if is_certain else open_steps).append(step)
    tree = base.copy()
    was_possible = _apply(tree, certain[::-1])
    assert was_possible, "what is certain can be done"
    return tree, open_steps[::-1]


def _after(base: Tree, pending: Sequence[Step], step: Step) -> Iterator[Tree]:
    names = [one for one in pending if not isinstance(one, Write)]
    writes: dict[int, list[Write]] = {}
    for one in pending:
        if isinstance(one, Write):
            writes.setdefault(one.node, []).append(one)
    databases = [base.database]
    if isinstance(step, Commit):
        databases += _torn(step)
    for chosen in _subsets(names):
        for written in _written(writes):
            tree = base.copy()
            if not _apply(tree, (*written, *chosen)):
                continue
            for database in databases:
                tree = tree.copy() if len(databases) > 1 else tree
                tree.database = database
                yield tree


def _subsets(names: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
    if len(names) <= MANY:
        for size in range(len(names) + 1):
            yield from itertools.combinations(names, size)
        return
    for length in range(len(names) + 1):
        yield tuple(names[:length])
    for left_out in range(len(names)):
        yield (*names[:left_out], *names[left_out + 1 :])
        yield (names[left_out],)


def _written(writes: dict[int, list[Write]]) -> Iterator[list[Write]]:
    """One file at a time in every way, the others wholly or not at all."""
    everything = [one for some in writes.values() for one in some]
    yield everything
    if not everything:
        return
    yield []
    for node, some in writes.items():
        others = [one for one in everything if one.node != node]
        for way in _ways(some):
            yield [*others, *way]
            if others:
                yield list(way)


def _ways(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    for length in range(1, len(writes)):
        yield writes[:length]
        yield [*writes[: length - 1], *writes[length:]]
    last = writes[-1]
    half = last.content[: len(last.content) // 2]
    if half:
        yield [*writes[:-1], Write(last.node, last.offset, half, last.offset + len(half))]
        yield [
            *writes[:-1],
            Write(last.node, last.offset, bytes(len(last.content)), last.size_bytes),
        ]


def _torn(commit: Commit) -> list[tuple[bytes, bytes]]:
    """It is there; or what it added to the log is not wholly."""
    (main_before, log_before), (main, log) = commit.before, commit.after
    if main != main_before or not log.startswith(log_before) or not log_before:
        return [commit.after]
    added = len(log) - len(log_before)
    cuts = (log[: len(log_before) + added // 2], log[:-8], log_before + bytes(added))
    return [commit.after, *((main, cut) for cut in cuts)]


def _apply(tree: Tree, steps: Sequence[Step]) -> bool:  # noqa: C901 - one case a kind of step
    """Do them; False where one has nothing that it could be done to."""
    for step in steps:
        match step:
            case Write(node, offset, content, size):
                old = tree.files.get(node, b"").ljust(offset, b"\0")
                new = old[:offset] + content + old[offset + len(content) :]
                tree.files[node] = new[:size].ljust(size, b"\0")
            case Link(folder, name, node, content):
                # A directory's names may be on the disk before its own name is.
                names = tree.folders.setdefault(folder, {})
                if name in names:
                    return False
                tree.files.setdefault(node, content)
                names[name] = node
            case MakeFolder(folder, name, node):
                names = tree.folders.setdefault(folder, {})
                if name in names:
                    return False
                tree.folders.setdefault(node, {})
                names[name] = node
            case Rename(folder, name, to_folder, to_name):
                names = tree.folders.setdefault(folder, {})
                there = tree.folders.setdefault(to_folder, {})
                if name not in names:
                    return False
                there[to_name] = names.pop(name)
            case Unlink(folder, name):
                names = tree.folders.get(folder)
                if names is None or name not in names:
                    return False
                # With a directory goes what was in it, whether or not that was on the disk.
                del names[name]
    return True


def _key(tree: Tree) -> bytes:
    digest = hashlib.sha256()
    linked: dict[int, int] = {}

    def add(node: int, path: str) -> None:
        for name, child in sorted(tree.folders.get(node, {}).items()):
            here = f"{path}/{name}"
            if child in tree.folders:
                digest.update(f"{here}/\n".encode())
                add(child, here)
            else:
                content = hashlib.sha256(tree.files[child]).hexdigest()
                digest.update(
                    f"{here} {content} {linked.setdefault(child, len(linked))}\n".encode()
                )

    add(ROOT, "")
    for part in tree.database:
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()
