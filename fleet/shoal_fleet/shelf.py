"""Decides which blobs are retained at the broker, which wait for room, and which go out on request. Pure.

Small ones come first. Nobody waits for ever: one that has waited a turn takes the place of those that have
had theirs.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final

TURN_S: Final = 300.0
"""So long a blob may stay while another waits, and so long one waits before it may take a place."""

SMALL_BYTES: Final = 256 << 10
"""Manifests, descriptions, golden inputs: they fit beside anything, and give way to anything."""


@dataclass(frozen=True, slots=True)
class Held:
    """A blob that has a place: its chunks are at the broker, all of them for `complete_s`."""

    size_bytes: int
    complete_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with each blob. `clear` first, then `retain` in its order."""

    retain: tuple[bytes, ...]
    clear: tuple[bytes, ...]
    wait: tuple[bytes, ...]
    on_request: frozenset[bytes]


def plan(
    needed: Mapping[bytes, int],
    held: Mapping[bytes, Held],
    *,
    waited_s: Mapping[bytes, float],
    limit_bytes: int,
    refused: Container[bytes] = (),
) -> Plan:
    """Which blobs keep, get and lose a place within `limit_bytes`.

    Args:
        needed: size by digest.
        held: what has a place now, needed or not.
        waited_s: for how long blobs have been without a place.
        limit_bytes: what all places together may take.
        refused: what the broker does not retain.
    """
    on_request = {
        digest for digest, size in needed.items() if size > limit_bytes or digest in refused
    }
    kept = {
        digest: place
        for digest, place in held.items()
        if digest in needed and digest not in on_request
    }
    # A limit that was lowered.
    for digest in _by_turn(kept):
        if _bytes(kept) > limit_bytes:
            del kept[digest]
    # Who loses a place in this look asks for one in the next.
    queue = [digest for digest in needed if digest not in on_request and digest not in held]
    is_blocked = False
    for digest in sorted(queue, key=lambda digest: _order(needed, waited_s, digest)):
        size_bytes = needed[digest]
        if waited_s.get(digest, 0.0) >= TURN_S:
            _make_room(kept, size_bytes, limit_bytes)
        fits = _bytes(kept) + size_bytes <= limit_bytes
        if fits and (not is_blocked or size_bytes <= SMALL_BYTES):
            kept[digest] = Held(size_bytes)
        else:
            # What comes free is kept for whoever has waited long enough.
            is_blocked = is_blocked or waited_s.get(digest, 0.0) >= TURN_S
    return Plan(
        retain=tuple(sorted(kept, key=lambda digest: (kept[digest].size_bytes, digest))),
        clear=tuple(digest for digest in held if digest not in kept),
        wait=tuple(digest for digest in needed if digest not in kept and digest not in on_request),
        on_request=frozenset(on_request),
    )


def _order(
    needed: Mapping[bytes, int], waited_s: Mapping[bytes, float], digest: bytes
) -> tuple[bool, float, bytes]:
    waited = waited_s.get(digest, 0.0)
    if waited >= TURN_S:
        return False, -waited, digest
    return True, needed[digest], digest


def _make_room(kept: dict[bytes, Held], size_bytes: int, limit_bytes: int) -> None:
    """Take places away from those that have had their turn, if that is enough."""
    leaving: list[bytes] = []
    room_bytes = limit_bytes - _bytes(kept)
    for digest in _by_turn(kept):
        if room_bytes >= size_bytes:
            break
        place = kept[digest]
        if place.complete_s >= TURN_S or place.size_bytes <= SMALL_BYTES:
            leaving.append(digest)
            room_bytes += place.size_bytes
    if room_bytes >= size_bytes:
        for digest in leaving:
            del kept[digest]


def _by_turn(kept: Mapping[bytes, Held]) -> list[bytes]:
    """Who goes first: large ones by the time that they have had, small ones after them."""
    return sorted(
        kept,
        key=lambda digest: (
            kept[digest].size_bytes <= SMALL_BYTES,
            -kept[digest].complete_s,
            -kept[digest].size_bytes,
        ),
    )


def _bytes(kept: Mapping[bytes, Held]) -> int:
    return sum(place.size_bytes for place in kept.values())
