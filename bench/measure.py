"""What every benchmark shares: rounds in shuffled order, medians, the machine's facts, the result's shape.

It measures nothing itself but the disk's fsync, and it prints nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FSYNCS = 30
MEMORY_DISKS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
PACKAGES = (
    "shoal",
    "mqtt5",
    "aiomqtt",
    "paho-mqtt",
    "gmqtt",
    "numpy",
    "onnxruntime",
    "zstandard",
    "cbor2",
)


class BenchError(Exception):
    """The benchmark cannot run, or a contender gave a wrong answer; the message says which."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    rounds: int
    seed: int
    is_quick: bool
    folder: Path
    parts: frozenset[str] = frozenset()
    """Of the area, if it has parts. Empty: all."""

    def wants(self, part: str) -> bool:
        """Whether this part of the area is to be measured."""
        return not self.parts or part in self.parts


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of one value a round."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the figure's name, its heading and how many decimals it gets."""

    name: str
    heading: str
    decimals: int = 0
    spread: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One contender. `lost` says what it did not deliver: such a row is never the best."""

    name: str
    is_ours: bool
    figures: dict[str, Figure]
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that we want to reach; `limit` None: it is only told. The median of the rounds counts."""

    name: str
    unit: str
    figure: Figure
    limit: float | None = None
    is_minimum: bool = False
    decimals: int = 0

    @property
    def is_met(self) -> bool | None:
        """None without a limit."""
        if self.limit is None:
            return None
        median = self.figure.median
        return median >= self.limit if self.is_minimum else median <= self.limit


@dataclass(frozen=True, slots=True)
class Table:
    """One area's result. `settings` and `notes` are lines for a person; `skipped` says what is missing."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    goals: tuple[Goal, ...] = ()
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The table without how it is printed."""
        return {
            "title": self.title,
            "rows": [asdict(row) for row in self.rows],
            "goals": [asdict(goal) | {"is_met": goal.is_met} for goal in self.goals],
            "settings": list(self.settings),
            "notes": list(self.notes),
            "skipped": list(self.skipped),
        }


@dataclass(slots=True)
class Rounds:
    """Runs every contender once a round, in an order that is drawn anew for each round."""

    options: Options
    samples: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def run(
        self,
        contenders: Mapping[str, Callable[[], Mapping[str, float]]],
        *,
        say: Callable[[str], None],
    ) -> None:
        """Keep one sample (figure name -> value) a contender and round."""
        names = list(contenders)
        # The seed is printed: the same order can be had again.
        draw = random.Random(self.options.seed)  # noqa: S311 - an order, not a secret
        for number in range(1, self.options.rounds + 1):
            draw.shuffle(names)
            for name in names:
                say(f"round {number}/{self.options.rounds}: {name}")
                self.samples.setdefault(name, []).append(dict(contenders[name]()))

    def figures(self, name: str) -> dict[str, Figure]:
        """Every figure of one contender over the rounds."""
        samples = self.samples[name]
        return {key: Figure.of([sample[key] for sample in samples]) for key in samples[0]}

    def ratios(self, figure: str, ours: str, peer: str) -> Figure:
        """`ours` / `peer`, round by round: what slows both in a round leaves it alone."""
        pairs = zip(self.samples[ours], self.samples[peer], strict=True)
        return Figure.of([one[figure] / other[figure] for one, other in pairs])

    def total(self, name: str, figure: str) -> float:
        """A counter's sum over the rounds."""
        return sum(sample[figure] for sample in self.samples[name])

    def row(self, name: str, *, is_ours: bool) -> Row:
        """The contender's row; what it sent and delivered is counted over all rounds."""
        figures = self.figures(name)
        for counter in {"sent", "delivered"} & figures.keys():
            total = self.total(name, counter)
            figures[counter] = Figure(total, total, total)
        return Row(name, is_ours, figures, self.lost(name))

    def lost(self, name: str) -> str:
        """What it did not deliver, in words; empty: nothing, or it delivers no messages."""
        if "sent" not in self.samples[name][0]:
            return ""
        missing = self.total(name, "sent") - self.total(name, "delivered")
        return f"LOST {missing:.0f}" if missing else ""

    def versus(self, what: str, figure: str, ours: str, peer: str) -> str:
        """The ratio as a line; none against, or for, who lost messages."""
        for name in (ours, peer):
            if lost := self.lost(name):
                return f"{what}, {ours} / {peer}: not compared, {name} {lost}"
        return f"{what}, {ours} / {peer}: {ratio_text(self.ratios(figure, ours, peer))}"


def ratio_text(ratio: Figure) -> str:
    """A ratio with its spread."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})"


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine(folder: Path) -> dict[str, str]:
    """What a reader has to know to judge the figures; `folder` is where the disk is tried."""
    fsync = Figure.of(_fsync_ms(folder))
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "disk": _disk(folder),
        "disk fsync": f"{fsync.median:.2f} ms ({fsync.low:.2f}..{fsync.high:.2f}), 4 KiB",
        "load before": load,
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def refuse_memory_disk(folder: Path) -> None:
    """A file system in memory would make every durable figure a lie. Raises BenchError."""
    device, kind = _file_system(folder)
    if kind in MEMORY_DISKS:
        raise BenchError(
            f"{folder} is on {device} ({kind}), in memory: give --dir a directory on a disk"
        )


def _disk(folder: Path) -> str:
    device, kind = _file_system(folder)
    return f"{device}, {kind}"


def _file_system(folder: Path) -> tuple[str, str]:
    """The device and the type of the file system that the folder is on."""
    longest, device, kind = "", "unknown device", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        mounted_device, mounted, mounted_kind, *_ = line.split(" ")
        # Of two on the same mount point the later one counts.
        if folder.resolve().is_relative_to(mounted) and len(mounted) >= len(longest):
            longest, device, kind = mounted, mounted_device, mounted_kind
    return device, kind


def _fsync_ms(folder: Path) -> list[float]:
    path = folder / "fsync"
    took: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            started = time.perf_counter()
            file.write(b"\0" * 4096)
            os.fsync(file.fileno())
            took.append((time.perf_counter() - started) * 1e3)
    path.unlink()
    return took


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
