"""Counts what really happened, from what the devices wrote down and what the controller has.

The demo is neither the sender of a sample (the simulated microcontroller) nor its receiver (the
controller): it compares their records.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal_fleet.demo.errors import DemoError

DISPLAY_CHANNEL = 2
"""The channel that a pipeline of the demo commands."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One command that a device carried out: the answer to one of its samples."""

    at_s: float
    value: int
    seq: int
    release: str


@dataclass(slots=True)
class DeviceLog:
    """What one simulated microcontroller wrote down, read as it grows."""

    path: Path
    sampled: dict[int, int] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)
    answered: int = 0
    safe_states: int = 0
    _offset: int = 0

    def refresh(self) -> None:
        """Read what was added since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        match event["kind"]:
            case "sample":
                self.sampled[event["seq"]] = event["row"]
            case "answered":
                self.answered += 1
            case "safe":
                self.safe_states += 1
            case "set" if event["channel"] == DISPLAY_CHANNEL and len(event["context"]) > 1:
                seq, release = event["context"][:2]
                self.shown.append(Shown(event["t"], event["value"], seq, release))

    def rows_shown(self, release: str) -> dict[int, int]:
        """The first value shown for each row of the table by this release (id prefix in hex)."""
        rows: dict[int, int] = {}
        for shown in self.shown:
            if shown.release == release:
                rows.setdefault(self.sampled[shown.seq], shown.value)
        return rows

    def shown_between(self, begin_s: float, end_s: float) -> int:
        """How many commands the device carried out in that time of the monotonic clock."""
        return sum(begin_s <= shown.at_s <= end_s for shown in self.shown)


def accuracy(logs: Iterable[DeviceLog], labels: Sequence[int], release: str) -> float:
    """Right answers of a release over all devices and all rows.

    Raises:
        DemoError: a device has not been shown every row by this release.
    """
    right = total = 0
    for log in logs:
        rows = log.rows_shown(release)
        if len(rows) != len(labels):
            raise DemoError(f"{log.path.stem}: {len(rows)} of {len(labels)} digits were classified")
        right += sum(labels[row] == value for row, value in rows.items())
        total += len(rows)
    return right / total


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of at least one value: the least that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def by_key(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sums by key, in the order of the keys."""
    sums: dict[str, int] = defaultdict(int)
    for key, count in pairs:
        sums[key] += count
    return dict(sorted(sums.items()))
