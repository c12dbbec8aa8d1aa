"""Maintenance windows: `mon-fri 01:00-05:00; sat 00:00-24:00`, by the clock on the wall of the site. Pure.

A window without days is open every day. One that ends before it begins goes on past midnight and belongs to the
day on which it begins. What the clock on the wall skips in spring is not open then; what it shows twice in
autumn is open twice.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from shoal_fleet.errors import RequestError

MAX_CHARS: Final = 256
MAX_SPANS: Final = 16
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN: Final = 24 * 60
LOOK_AHEAD_DAYS: Final = 15
"""Two weeks: the clock may skip a window once."""

_TIMES = re.compile(r"(\d{2}):(\d{2})-(\d{2}):(\d{2})")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")


@dataclass(frozen=True, slots=True)
class Span:
    """One window on one weekday (0: Monday). Minutes count from its midnight; `end_min` may be the next day's."""

    day: int
    start_min: int
    end_min: int


@dataclass(frozen=True, slots=True)
class Window:
    """When something may be done. `text` is what was written."""

    text: str
    spans: tuple[Span, ...]

    def is_open(self, at_ms: int, zone: ZoneInfo) -> bool:
        """Whether it is open at this moment for a site in this zone."""
        local = datetime.fromtimestamp(at_ms / 1000, zone)
        minute = local.hour * 60 + local.minute
        today, yesterday = local.weekday(), (local.weekday() - 1) % 7
        return any(
            (span.day == today and span.start_min <= minute < span.end_min)
            or (span.day == yesterday and minute < span.end_min - DAY_MIN)
            for span in self.spans
        )

    def opens_ms(self, at_ms: int, zone: ZoneInfo) -> int | None:
        """When it opens next: now when it is open; None: not in the two weeks to come."""
        if self.is_open(at_ms, zone):
            return at_ms
        today = datetime.fromtimestamp(at_ms / 1000, zone).replace(
            hour=0, minute=0, second=0, microsecond=0, tzinfo=None
        )
        starts: list[int] = []
        for ahead in range(LOOK_AHEAD_DAYS):
            day = today + timedelta(days=ahead)
            for span in self.spans:
                if span.day != day.weekday():
                    continue
                local = (day + timedelta(minutes=span.start_min)).replace(tzinfo=zone)
                start_ms = round(local.astimezone(UTC).timestamp() * 1000)
                if start_ms > at_ms and self.is_open(start_ms, zone):
                    starts.append(start_ms)
        return min(starts, default=None)


@lru_cache(maxsize=256)
def parse_window(text: str) -> Window:
    """The window in a text.

    Raises:
        RequestError: it is none; the message quotes the part.
    """
    if len(text) > MAX_CHARS:
        raise RequestError(f"a window has at most {MAX_CHARS} characters")
    spans: list[Span] = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        *days, times = part.split()
        start_min, end_min = _minutes(part, times)
        spans += [Span(day, start_min, end_min) for day in _days(part, days)]
    if not spans:
        raise RequestError("a window is like 'mon-fri 01:00-05:00', several with ';' between")
    if len(spans) > MAX_SPANS * len(DAYS):
        raise RequestError(f"a window has at most {MAX_SPANS} parts")
    return Window(text.strip(), tuple(spans))


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name: `Europe/Oslo`, `UTC`.

    Raises:
        RequestError: there is none.
    """
    refusal = f"{name[:64]!r} is not a time zone (like Europe/Oslo)"
    if not _ZONE.fullmatch(name):
        raise RequestError(refusal)
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as exc:
        raise RequestError(refusal) from exc


def _minutes(part: str, times: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(times)
    if match is None:
        raise RequestError(f"window {part!r}: expected times like 01:00-05:00")
    first_h, first_min, last_h, last_min = map(int, match.groups())
    start, end = first_h * 60 + first_min, last_h * 60 + last_min
    if first_min > 59 or last_min > 59 or start >= DAY_MIN or end > DAY_MIN:  # noqa: PLR2004 - minutes
        raise RequestError(f"window {part!r}: there is no such time of day")
    if start == end:
        raise RequestError(f"window {part!r}: begins when it ends; all day is 00:00-24:00")
    return start, end if end > start else end + DAY_MIN


def _days(part: str, words: list[str]) -> list[int]:
    if not words:
        return list(range(len(DAYS)))
    found: dict[int, None] = {}
    for piece in "".join(words).lower().split(","):
        first, dash, last = piece.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise RequestError(
                f"window {part!r}: days are {', '.join(DAYS)}, like mon-fri or sat,sun"
            )
        start = DAYS.index(first)
        count = (DAYS.index(last) - start) % 7 + 1 if dash else 1
        found.update(dict.fromkeys((start + ahead) % 7 for ahead in range(count)))
    return list(found)
