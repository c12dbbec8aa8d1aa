"""Where stretches of the new file stand in the old one, with changes or without: the encoder's search.

Exact seeds of 32 bytes, then of 8 in what is left, found by sorted k-grams; each is extended both ways
over bytes that differ. Numbers in, `Match`es out; operations are made of them in `plan`. The same files
give the same matches everywhere: integers only, ties go to the nearer and then the lower place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_delta.arithmetic import Bytes, as_bytes

Positions = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]

_WIDE, _NARROW = 32, 8
_GAIN, _SMALL_GAIN = 24, 6
_UNMOVED_BYTES = 64 << 10
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FILTER_BITS = 24
# What a match covers need not be looked up: little at once where they follow each other.
_FIRST_PIECE_BYTES, _MAX_PIECE_BYTES = 1 << 11, 1 << 20
# Of the old file at most so many places are indexed: more are thinned out evenly.
_MAX_INDEXED = 1 << 21
_MAX_CANDIDATES = 12
# So many seeds are looked at in a pass: a file of nothing but coincidences must not take for ever.
_MAX_LOOKS = 150_000
_FIRST_LOOK = 64
# An extension looks no further than this past its last exact seed.
_MAX_EXTENSION = 1 << 20
_EQUAL, _NEAR, _OTHER = 2, 0, -2
_NEAR_BY = 8


@dataclass(frozen=True, slots=True)
class Match:
    """`size` bytes at `start` of the new file are about those at `source` of the old one."""

    start: int
    source: int
    size: int

    @property
    def end(self) -> int:
        """Where it ends in the new file."""
        return self.start + self.size

    @property
    def shift(self) -> int:
        """`source` minus `start`."""
        return self.source - self.start


def searches(old: bytes, new: bytes) -> list[list[Match]]:
    """Two searches, one that takes short matches too; see `matches`."""
    if min(len(old), len(new)) < _NARROW:
        return []
    return list(_searched(old, new, (_GAIN, _SMALL_GAIN)))


def matches(old: bytes, new: bytes, *, gain: int = _GAIN) -> list[Match]:
    """Matches in the order of the new file, none overlapping another.

    `gain` is how many bytes a match must save over what stands there otherwise (the match before it
    going on, or literals): about what it costs to say that it is there.
    """
    if min(len(old), len(new)) < _NARROW:
        return []
    return next(_searched(old, new, (gain,)))


def _searched(old: bytes, new: bytes, gains: Sequence[int]) -> Iterator[list[Match]]:
    search = _Search(old, new)
    for gain in gains:
        found = search.seeds(search.unmoved(), _WIDE, gain)
        yield search.extended(search.seeds(found, _NARROW, gain), gain)


def _gaps(found: Sequence[Match], size: int) -> list[tuple[int, int]]:
    ends = [0, *(match.end for match in found)]
    starts = [*(match.start for match in found), size]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]


class _Search:
    def __init__(self, old: bytes, new: bytes) -> None:
        self._old_bytes, self._new_bytes = old, new
        self._old, self._new = as_bytes(old), as_bytes(new)
        self._indexes: dict[int, _Index] = {}
        self._looks = 0

    def unmoved(self) -> list[Match]:
        """Long exact matches at equal offsets, and common ends: a search finds them too, but not as fast.

        Only very long ones: short ones are padding more often than what was there before.
        """
        size = min(self._old.size, self._new.size)
        differs = np.flatnonzero(self._old[:size] != self._new[:size])
        ends = np.concatenate((differs, [size]))
        starts = np.concatenate(([0], differs + 1))
        long = ends - starts >= _UNMOVED_BYTES
        long[0] = starts[0] + _WIDE <= ends[0]
        return [
            Match(start, start, end - start)
            for start, end in zip(starts[long].tolist(), ends[long].tolist(), strict=True)
        ]

    def seeds(self, known: Sequence[Match], width: int, gain: int) -> list[Match]:
        """What is known, and exact matches of `width` bytes or more in the gaps between."""
        gaps = [gap for gap in _gaps(known, self._new.size) if gap[1] - gap[0] >= max(width, gain)]
        if not gaps or min(self._old.size, self._new.size) < width:
            return list(known)
        if width not in self._indexes:
            self._indexes[width] = _Index(self._old, width)
        before = {match.end: match.shift for match in known}
        self._looks = 0
        found = [
            seed
            for start, end in gaps
            for seed in self._in_gap(start, end, before.get(start, 0), self._indexes[width], gain)
        ]
        return sorted([*known, *found], key=lambda match: match.start)

    def _in_gap(
        self, start: int, end: int, shift: int, index: _Index, gain: int
    ) -> Iterator[Match]:
        position, piece, piece_bytes = start, start, _FIRST_PIECE_BYTES
        while piece + index.width <= end:
            after = min(piece + piece_bytes, end - index.width + 1)
            places, firsts = index.places(self._new, piece, after)
            here = 0
            while here < places.size:
                at, position = int(places[here]), int(places[here]) + 1
                self._looks += 1
                if self._looks > _MAX_LOOKS:
                    return
                found = self._best(at, index.candidates(int(firsts[here]), at + shift))
                size = min(found.size, end - at)
                is_gain = found.shift == shift or (
                    size >= index.width and size - self._equal(at, at + shift, size) >= gain
                )
                if size >= index.width and is_gain:
                    shift, position = found.shift, at + size
                    yield Match(at, found.source, size)
                elif size >= index.width:
                    position += size // 8
                here += int(np.searchsorted(places[here:], position))
            is_covered = position > after
            piece, piece_bytes = max(after, position), piece_bytes * 4
            if is_covered or piece_bytes > _MAX_PIECE_BYTES:
                piece_bytes = _FIRST_PIECE_BYTES if is_covered else _MAX_PIECE_BYTES

    def _best(self, at: int, sources: Positions) -> Match:
        """The longest of the candidates; of equals the first."""
        best = Match(at, 0, 0)
        for source in sources.tolist():
            if best.size and not self._is_longer(at, source, best.size):
                continue
            size = self._common(at, source)
            if size > best.size:
                best = Match(at, source, size)
        return best

    def _is_longer(self, at: int, source: int, size: int) -> bool:
        new, old = self._new_bytes, self._old_bytes
        return new[at + size : at + size + 1] == old[source + size : source + size + 1] != b""

    def _common(self, at: int, source: int) -> int:
        """How many bytes agree from there on."""
        limit = min(self._new.size - at, self._old.size - source)
        done, step = 0, _FIRST_LOOK
        while done < limit:
            size = min(step, limit - done)
            new = self._new[at + done : at + done + size]
            differs = new != self._old[source + done : source + done + size]
            first = int(differs.argmax())
            if differs[first]:
                return done + first
            done += size
            step *= 4
        return limit

    def _equal(self, at: int, source: int, size: int) -> int:
        """How many of `size` bytes agree, as far as there are bytes in the old file."""
        skip = max(0, -source)
        size = min(size, self._old.size - source)
        if size <= skip:
            return 0
        new, old = self._new[at + skip : at + size], self._old[source + skip : source + size]
        return int(np.count_nonzero(new == old))

    def extended(self, seeds: Sequence[Match], gain: int) -> list[Match]:
        """The matches grown into the gaps between them; those that meet on one shift are one."""
        if not seeds:
            return []
        grown = [self._back(seeds[0], 0)]
        for seed in seeds[1:]:
            left = grown[-1]
            if left.shift == seed.shift and self._is_bridged(left, seed, gain):
                grown[-1] = Match(left.start, left.source, seed.end - left.start)
                continue
            reach = self._forth(left, seed.start)
            follower = self._back(seed, left.end)
            if reach.end > follower.start:
                reach, follower = self._split(reach, follower)
            grown[-1] = reach
            grown.append(follower)
        grown[-1] = self._forth(grown[-1], self._new.size)
        return grown

    def _is_bridged(self, left: Match, right: Match, gain: int) -> bool:
        """Whether what stands between two matches of one shift is better based than not."""
        scores = self._scores(left.end, left.end + left.shift, right.start - left.end)
        return int(scores.sum()) + 2 * gain >= 0

    def _forth(self, match: Match, end: int) -> Match:
        size = min(end - match.end, self._old.size - match.end - match.shift, _MAX_EXTENSION)
        if size <= 0:
            return match
        best = _peak(self._scores(match.end, match.end + match.shift, size))
        return Match(match.start, match.source, match.size + best)

    def _back(self, match: Match, end: int) -> Match:
        size = min(match.start - end, match.source, _MAX_EXTENSION)
        if size <= 0:
            return match
        best = _peak(self._scores(match.start - size, match.source - size, size)[::-1])
        return Match(match.start - best, match.source - best, match.size + best)

    def _split(self, left: Match, right: Match) -> tuple[Match, Match]:
        """Where two matches overlap, each keeps what it says better."""
        at, size = right.start, left.end - right.start
        gained = self._scores(at, at + left.shift, size) - self._scores(at, at + right.shift, size)
        keep = _peak(gained)
        return (
            Match(left.start, left.source, at + keep - left.start),
            Match(at + keep, right.source + keep, right.size - keep),
        )

    def _scores(self, at: int, source: int, size: int) -> npt.NDArray[np.int32]:
        change = self._new[at : at + size] - self._old[source : source + size]
        near = (change + np.uint8(_NEAR_BY)) <= 2 * _NEAR_BY
        scores = np.where(change == 0, _EQUAL, np.where(near, _NEAR, _OTHER))
        return scores.astype(np.int32)


def _peak(scores: npt.NDArray[np.int32]) -> int:
    """How many from the front add up to the most: the first of equals, 0 when none is above 0."""
    if scores.size == 0:
        return 0
    sums = np.cumsum(scores, dtype=np.int64)
    best = int(sums.argmax())
    return best + 1 if sums[best] > 0 else 0


class _Index:
    """The k-grams of the old file, sorted; places of equal ones in the order of the file."""

    def __init__(self, old: Bytes, width: int) -> None:
        self.width = width
        self._step = -(-(old.size - width + 1) // _MAX_INDEXED)
        hashes = _grams(old, width, self._step)
        # Hash and place in one number: sorting those takes a quarter of the time of an argsort.
        place_bits = np.uint64(hashes.size.bit_length())
        self._mask = ~((np.uint64(1) << place_bits) - np.uint64(1))
        self._keys = np.sort(hashes & self._mask | np.arange(hashes.size, dtype=np.uint64))
        self._order = (self._keys & ~self._mask).astype(np.int64) * self._step
        # Sixteen flags a place: one k-gram in sixteen that is not there gets past them.
        self._fold = np.uint64(64 - min(_FILTER_BITS, hashes.size.bit_length() + 4))
        self._filter = np.zeros(1 << 64 - int(self._fold), dtype=np.bool_)
        self._filter[self._folded(hashes)] = True

    def places(self, new: Bytes, start: int, end: int) -> tuple[Positions, Positions]:
        """Where from `start` to before `end` of `new` a k-gram begins that the old file has, and its number."""
        hashes = _grams(new[start : end + self.width - 1], self.width)
        likely = np.flatnonzero(self._filter[self._folded(hashes)])
        wanted = hashes[likely] & self._mask
        found = np.searchsorted(self._keys, wanted)
        found = np.minimum(found, self._keys.size - 1)
        is_there = self._keys[found] & self._mask == wanted
        return start + likely[is_there], found[is_there]

    def candidates(self, first: int, near: int) -> Positions:
        """Places of k-gram number `first` in the old file, those near to `near` first, not too many."""
        largest = self._keys[first] | ~self._mask
        if first + 1 == self._keys.size or self._keys[first + 1] > largest:
            return self._order[first : first + 1]
        last = int(np.searchsorted(self._keys, largest, side="right"))
        if last - first > _MAX_CANDIDATES:
            middle = first + int(np.searchsorted(self._order[first:last], near))
            first = max(first, min(middle - _MAX_CANDIDATES // 2, last - _MAX_CANDIDATES))
            last = first + _MAX_CANDIDATES
        found = self._order[first:last]
        return found[np.argsort(np.abs(found - near), kind="stable")]

    def _folded(self, hashes: _Hashes) -> Positions:
        return ((hashes * _MULTIPLIER) >> self._fold).astype(np.int64)


def _grams(data: Bytes, width: int, step: int = 1) -> _Hashes:
    """For each `step`th place where `width` bytes begin (a multiple of 8), a hash of them."""
    places = data.size - width + 1
    hashes = np.zeros(-(-places // step), dtype=np.uint64)
    for word in range(0, width, _NARROW):
        # Eight bytes from each place on, as they stand: wherever they begin.
        part = np.ndarray(hashes.shape, dtype="<u8", buffer=data, offset=word, strides=(step,))
        hashes += part
        hashes *= _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes
