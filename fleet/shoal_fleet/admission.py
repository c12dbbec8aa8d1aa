"""Which waiting nodes may be given a lease of a rollout now, and why not the others. Pure.

A node is ready when it is online and still meant, the release is signed for its group where releases are signed, its
window is open, it serves what the release requires, no other rollout has offered it anything, and none that goes
first could give it a lease in this moment.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from shoal_fleet.dependencies import missing
from shoal_fleet.errors import RequestError
from shoal_fleet.registry import Node
from shoal_fleet.rollout_open import OpenRollout
from shoal_fleet.rollout_state import Options
from shoal_fleet.selection import GROUP_LABEL
from shoal_fleet.signed_list import SignedList
from shoal_fleet.windows import parse_window, zone_of

TZ_LABEL: Final = "tz"


class Admission:
    """One look at one rollout beside the others that are open. `listed` None: this fleet signs no releases."""

    def __init__(
        self,
        opened: OpenRollout,
        everyone: Iterable[OpenRollout],
        now_ms: int,
        listed: SignedList | None = None,
    ) -> None:
        others = [other for other in everyone if other.id != opened.id]
        self._opened = opened
        self._now_ms = now_ms
        self._others = others
        self._first = [
            (other, _Own(other, now_ms, listed))
            for other in sorted(others, key=lambda other: other.rank)
            if other.rank < opened.rank and other.has_room_at(now_ms)
        ]
        self._own = _Own(opened, now_ms, listed)

    def ready(self, nodes: Iterable[Node]) -> frozenset[str]:
        """Those of these nodes that may be given a lease."""
        return frozenset(
            node.name
            for node in nodes
            if node.online and self._opened.waits(node.name) and not self.why_not(node)
        )

    def why_not(self, node: Node) -> str:
        """What a waiting node waits for, in words; empty: for a lease."""
        if why := self._own.why_not(node):
            return why
        for other in self._others:
            if other.offers(node.name):
                return f"rollout {other.id} waits for it"
        for other, own in self._first:
            if other.waits(node.name) and not own.why_not(node):
                return f"rollout {other.id} goes first"
        return ""

    def waiting(self, nodes: Sequence[Node]) -> Counter[str]:
        """How many of the rollout's waiting nodes wait for what."""
        return Counter(
            self.why_not(node) or "a lease" for node in nodes if self._opened.waits(node.name)
        )


class _Own:
    """What the rollout itself asks of a node. Each zone's window is looked at once."""

    def __init__(self, opened: OpenRollout, now_ms: int, listed: SignedList | None) -> None:
        self._opened = opened
        self._now_ms = now_ms
        self._listed = listed
        self._closed: dict[str, str] = {}
        self._unsigned: dict[str | None, str] = {}

    def why_not(self, node: Node) -> str:
        if not node.online:
            return "it is offline"
        if not self._opened.may_have(node):
            return "it left the group"
        if self._listed is not None and (why := self._unsigned_for(self._listed, node)):
            return why
        if self._opened.state.options.window and (why := self._closed_for(node)):
            return why
        return missing(self._opened.requires, node)

    def _unsigned_for(self, listed: SignedList, node: Node) -> str:
        group, release = node.labels.get(GROUP_LABEL), self._opened.release
        if group not in self._unsigned:
            self._unsigned[group] = listed.why_not(release.name, release.id, group)
        return self._unsigned[group]

    def _closed_for(self, node: Node) -> str:
        options = self._opened.state.options
        name = node.labels.get(TZ_LABEL, options.tz)
        if name not in self._closed:
            self._closed[name] = closed(options, name, self._now_ms)
        return self._closed[name]


def closed(options: Options, zone_name: str, now_ms: int) -> str:
    """Why the window is not open in this zone, in words; empty: it is."""
    try:
        zone = zone_of(zone_name)
        window = parse_window(options.window)
    except RequestError as exc:
        # A label that names no zone must not let a node be touched at noon.
        return str(exc)
    if window.is_open(now_ms, zone):
        return ""
    opens_ms = window.opens_ms(now_ms, zone)
    return f"its window {_when(opens_ms, zone)}"


def _when(opens_ms: int | None, zone: ZoneInfo) -> str:
    if opens_ms is None:
        return "does not open within two weeks"
    local = datetime.fromtimestamp(opens_ms / 1000, zone)
    return f"opens {local:%a %Y-%m-%d %H:%M} {zone.key}"
