"""How much memory is left to us, and whom to ask for some back. Reading is a few lines; deciding is pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PRESSURE_PERCENT: Final = 10.0
"""Tasks that stood still for want of memory in a tenth of the last ten seconds (PSI, "some avg10")."""
IDLE_S: Final = 10.0
"""Who was asked later than so long ago is not evicted: it would be back at once."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What may still be taken, and how much of the time somebody waits for memory."""

    free_bytes: int
    pressure_percent: float

    def is_tight(self, reserve_bytes: int) -> bool:
        """Models should give some back."""
        return self.free_bytes < reserve_bytes or self.pressure_percent >= PRESSURE_PERCENT


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded release that could go. `load_s`: what it costs to have it back."""

    release: bytes
    size_bytes: int
    idle_s: float
    load_s: float
    is_pinned: bool = False


def to_evict(residents: Sequence[Resident]) -> bytes | None:
    """Who is missed least: long unused, large, and quick to load again. None: nobody may go."""
    free_to_go = [r for r in residents if not r.is_pinned and r.idle_s >= IDLE_S]
    if not free_to_go:
        return None
    return max(free_to_go, key=_worth).release


def _worth(resident: Resident) -> float:
    return resident.idle_s * max(resident.size_bytes, 1) / max(resident.load_s, 0.001)


def read(filesystem: Path = Path("/")) -> Memory:
    """The memory now; `filesystem` is where /proc and /sys are looked for. What cannot be read does not press.

    Of the board, and of the control groups (cgroup v2) that this process is in: its own and those above it.
    """
    groups = _groups(filesystem)
    free = [_meminfo_available(filesystem), *map(_left_in, groups)]
    known = [value for value in free if value is not None]
    pressures = [_pressure(filesystem / "proc/pressure/memory")]
    pressures += [_pressure(group / "memory.pressure") for group in groups[:1]]
    return Memory(min(known) if known else 1 << 62, max(pressures))


def _meminfo_available(filesystem: Path) -> int | None:
    for line in _text(filesystem / "proc/meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _groups(filesystem: Path) -> list[Path]:
    """The directories of this process's group and of those above it; the root has no limits."""
    path = _text(filesystem / "proc/self/cgroup").partition("0::/")[2].splitlines()
    names = [name for name in (path[0] if path else "").split("/") if name not in {"", "..", "."}]
    root = filesystem / "sys/fs/cgroup"
    return [root.joinpath(*names[:count]) for count in range(len(names), 0, -1)]


def _left_in(group: Path) -> int | None:
    """What the limits of a group leave, counting the file cache that it can drop.

    memory.high counts as memory.max does: who is above it is slowed down until nothing works.
    """
    texts = [_text(group / name).strip() for name in ("memory.max", "memory.high")]
    limits = [int(text) for text in texts if text.isdecimal()]
    used = _text(group / "memory.current").strip()
    if not limits or not used.isdecimal():
        return None
    cached = 0
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file" and value.isdecimal():
            cached = int(value)
    return max(0, min(limits) - int(used) + cached)


def _pressure(file: Path) -> float:
    for line in _text(file).splitlines():
        if line.startswith("some "):
            for word in line.split():
                name, _, value = word.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return 0.0
    return 0.0


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:65536].decode("utf-8", "replace")
    except OSError:
        return ""
