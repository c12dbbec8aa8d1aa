"""Chunks that nodes asked for: each wish once, however many have it. It publishes nothing."""

from collections.abc import Iterable
from typing import Final

ASKED_AT_MOST: Final = 65_536
AGAIN_AFTER_S: Final = 2.0
"""Many nodes that miss the same chunk get it with one message."""


class Repairs:
    """The wishes that are open, oldest first."""

    def __init__(self) -> None:
        self._asked: dict[tuple[bytes, int], None] = {}
        self._sent_s: dict[tuple[bytes, int], float] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, digest: bytes, indexes: Iterable[int], *, count: int) -> None:
        """A node misses these chunks of a blob that has `count`; what does not exist is left out."""
        for index in indexes:
            if len(self._asked) >= ASKED_AT_MOST:
                break
            if 0 <= index < count:
                self._asked[(digest, index)] = None

    def blobs(self, now_s: float) -> list[bytes]:
        """Whose chunks are asked for, less what was sent a moment ago."""
        self._sent_s = {
            wish: sent_s for wish, sent_s in self._sent_s.items() if now_s - sent_s < AGAIN_AFTER_S
        }
        for wish in self._sent_s.keys() & self._asked.keys():
            del self._asked[wish]
        return list(dict.fromkeys(digest for digest, _ in self._asked))

    def of(self, digest: bytes, *, at_most: int) -> list[int]:
        """The next chunks of this blob that are asked for."""
        indexes = [index for wished, index in self._asked if wished == digest]
        return indexes[:at_most]

    def drop(self, digest: bytes, indexes: Iterable[int]) -> None:
        """These wishes are void: the chunks come anyway, or cannot come now."""
        for index in indexes:
            self._asked.pop((digest, index), None)

    def sent(self, digest: bytes, indexes: Iterable[int], now_s: float) -> None:
        """These wishes are fulfilled."""
        for index in indexes:
            self._asked.pop((digest, index), None)
            self._sent_s[(digest, index)] = now_s
