"""What a process writes to its files, counted by strace; for idle.py and flash.py.

The bytes of write calls on files below a folder, with the time of each: what the program asks the
kernel to put on the medium. What the file system adds (journal, whole blocks) is not in it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = "write,pwrite64,writev,pwritev,pwritev2"
# 4711 1764072000.123456 pwrite64(7</x/agent.db-wal>, "..."..., 4096, 0) = 4096
_LINE = re.compile(r"^(?:\d+\s+)?(\d+\.\d+) \w+\(\d+<([^>]*)>.*= (\d+)$")
# A call that another thread interrupts is two lines: 4711 1764072000.1 pwrite64(7</x>, ... <unfinished ...>
_BEGUN = re.compile(r"^(\d+)\s+(\d+\.\d+) \w+\(\d+<([^>]*)>.*<unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+\d+\.\d+ <\.\.\. \w+ resumed>.*= (\d+)$")


@dataclass(frozen=True, slots=True)
class Write:
    """One write; `at_s` is `time.time()`."""

    at_s: float
    path: str
    size_bytes: int


def strace_program() -> str | None:
    """Its path, None when it is not installed."""
    return shutil.which("strace")


def prefix(program: str, log: Path) -> list[str | Path]:
    """What stands before the command line of a process whose writes go into `log`."""
    return [program, "-f", "-q", "-y", "-ttt", "-s", "0", "-e", f"trace={CALLS}", "-o", log]


def writes(log: Path, folder: Path) -> list[Write]:
    """The writes to files below `folder`, in order."""
    below = f"{folder.resolve()}/"
    return [write for write in _all(log) if write.path.startswith(below)]


def _all(log: Path) -> Iterator[Write]:
    begun: dict[str, tuple[float, str]] = {}
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.rstrip("\n")
            if (whole := _LINE.match(text)) is not None:
                yield Write(float(whole[1]), whole[2], int(whole[3]))
            elif (half := _BEGUN.match(text)) is not None:
                begun[half[1]] = (float(half[2]), half[3])
            elif (rest := _RESUMED.match(text)) is not None and rest[1] in begun:
                at_s, path = begun.pop(rest[1])
                yield Write(at_s, path, int(rest[2]))
