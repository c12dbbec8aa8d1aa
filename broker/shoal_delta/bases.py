"""One new file, many old ones: what the update costs from each, and the deltas that pay.

Which files are out there, and on how many boards, is for the caller to say; nothing is stored or sent here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from shoal_delta.encode import diff, quick_size
from shoal_delta.errors import DeltaError

File = bytes | Path
"""A file's content, or where it lies; a path is read when its turn comes, one at a time."""

WORTHWHILE = 0.9
"""A delta above this share of the full file is not worth a board's work."""

# Large deltas are estimated within 2 % (docs/benchmarks/estimate.md): from here on one is not even made.
_HOPELESS = 1.05
# Making a delta takes so many times as long as its estimate, and so long for each byte of the new file.
_MAKING_TIMES = 4.0
_MAKING_S_PER_BYTE = 1.5e-6


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an update is likely to cost: bytes of the delta, and seconds to make it here."""

    delta_bytes: int
    full_bytes: int
    make_s: float


class Way(StrEnum):
    """How boards with one base get the new file."""

    DELTA = "delta"
    FULL = "full"
    NOTHING = "nothing"
    """They have it."""


@dataclass(frozen=True, slots=True)
class Update:
    """The way from one base.

    Attributes:
        base: the caller's name of it.
        boards: how many have it.
        board_bytes: what each of them receives; exact when `delta` is there or the way is no delta.
        full_bytes: what each would receive without a delta.
        delta_bytes: of the delta that was made, or of the estimate; None when neither is known.
        delta: the delta, when it was made and pays.
        make_s: seconds it took, or is likely to take.
        reason: why there is no delta, else "".
    """

    base: bytes
    boards: int
    way: Way
    board_bytes: int
    full_bytes: int
    delta_bytes: int | None = None
    delta: bytes | None = field(default=None, repr=False)
    make_s: float = 0.0
    reason: str = ""

    @property
    def total_bytes(self) -> int:
        """What all of its boards receive."""
        return self.boards * self.board_bytes

    @property
    def saved_bytes(self) -> int:
        """What all of its boards do not receive."""
        return self.boards * (self.full_bytes - self.board_bytes)


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """The cheapest way from every base, those that save most first."""

    updates: tuple[Update, ...]

    @property
    def boards(self) -> int:
        """All boards."""
        return sum(update.boards for update in self.updates)

    @property
    def total_bytes(self) -> int:
        """What the fleet receives."""
        return sum(update.total_bytes for update in self.updates)

    @property
    def full_total_bytes(self) -> int:
        """What the fleet would receive without deltas (a board that has the file: nothing)."""
        return self.total_bytes + sum(update.saved_bytes for update in self.updates)

    @property
    def make_s(self) -> float:
        """Seconds of making: spent, or likely to be."""
        return sum(update.make_s for update in self.updates)


def estimate(old: bytes, new: bytes, *, workers: int | None = None) -> Estimate:
    """What `diff` would give and take, in a fraction of its time: planned in earnest, packed quickly.

    How exact it is: docs/benchmarks/estimate.md. It overstates small deltas, most of which are the graph's
    text; the time is rough, and this machine's.
    """
    started = time.perf_counter()
    size = quick_size(old, new, workers=workers)
    spent = time.perf_counter() - started
    return Estimate(size, len(new), _MAKING_TIMES * spent + _MAKING_S_PER_BYTE * len(new))


def plan_updates(
    new: File,
    bases: Mapping[bytes, File],
    counts: Mapping[bytes, int],
    *,
    worthwhile: float = WORTHWHILE,
    most_deltas: int | None = None,
    is_dry: bool = False,
    workers: int | None = None,
    settled: Callable[[Update], None] | None = None,
) -> UpdatePlan:
    """The cheapest way from each of `bases` (by any name) to `new`.

    Every base is estimated first. Then the deltas that pay are made, in the order of what they save the
    fleet; one that cannot pay is not made.

    Args:
        new: the new file.
        bases: the old ones.
        counts: boards by base; a base that is not in it has none, and its delta is made last.
        worthwhile: the share of the full file that a delta has to stay below.
        most_deltas: so many deltas at most, those that save most.
        is_dry: estimates only, no delta is made.
        workers: threads that pack (default: the CPUs, at most 4).
        settled: told of every base as soon as it is, with its delta.

    Raises:
        OSError: a file cannot be read.
    """
    content = _read(new)
    tell = settled or (lambda _update: None)
    likely = [
        _likely(name, content, base, counts.get(name, 0), worthwhile, workers)
        for name, base in bases.items()
    ]
    # Names last, so that the order of the mapping says nothing.
    likely.sort(key=lambda update: (-update.saved_bytes, update.board_bytes, update.base))
    updates, made = [], 0
    for update in likely:
        final = update
        if update.way is Way.DELTA:
            if most_deltas is not None and made >= most_deltas:
                final = _in_full(update, "other deltas save more")
            elif not is_dry:
                final = _made(update, content, _read(bases[update.base]), worthwhile, workers)
            made += final.way is Way.DELTA
        updates.append(final)
        tell(final)
    return UpdatePlan(tuple(updates))


def _likely(
    name: bytes, new: bytes, base: File, boards: int, worthwhile: float, workers: int | None
) -> Update:
    old = _read(base)
    if old == new:
        return Update(name, boards, Way.NOTHING, 0, 0, reason="has it")
    guess = estimate(old, new, workers=workers)
    update = Update(
        name,
        boards,
        Way.DELTA,
        guess.delta_bytes,
        len(new),
        delta_bytes=guess.delta_bytes,
        make_s=guess.make_s,
    )
    if guess.delta_bytes >= _HOPELESS * worthwhile * len(new):
        return _in_full(update, "the delta would not be worth it")
    return update


def _made(update: Update, new: bytes, old: bytes, worthwhile: float, workers: int | None) -> Update:
    started = time.perf_counter()
    try:
        delta = diff(old, new, workers=workers)
    except DeltaError as exc:
        return _in_full(update, str(exc))
    spent = time.perf_counter() - started
    pays = len(delta) < worthwhile * len(new)
    return Update(
        update.base,
        update.boards,
        Way.DELTA if pays else Way.FULL,
        len(delta) if pays else len(new),
        len(new),
        delta_bytes=len(delta),
        delta=delta if pays else None,
        make_s=spent,
        reason="" if pays else "the delta is not worth it",
    )


def _in_full(update: Update, reason: str) -> Update:
    return Update(
        update.base,
        update.boards,
        Way.FULL,
        update.full_bytes,
        update.full_bytes,
        delta_bytes=update.delta_bytes,
        reason=reason,
    )


def _read(file: File) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()
