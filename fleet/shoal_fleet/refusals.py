"""What the broker does not retain, and until when it is not asked again. Says it once; publishes nothing."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

AGAIN_AFTER_S: Final = 600.0
LOSSES: Final = 3
"""A broker that ends the connection so often, at the same chunks, refuses them without saying so."""


class Refusals:
    """The blobs whose retained chunks were refused.

    Attributes:
        retain_available: whether the broker retains anything at all.
    """

    def __init__(self) -> None:
        self.retain_available = True
        self._until_s: dict[bytes, float] = {}
        self._clear_after_s: dict[bytes, float] = {}
        self._losses: Counter[bytes] = Counter()

    def __bool__(self) -> bool:
        return bool(self._until_s or self._clear_after_s)

    def of(self, needed: Iterable[bytes], now_s: float) -> frozenset[bytes]:
        """Which of these are not to be retained now."""
        if not self.retain_available:
            return frozenset(needed)
        self._until_s = {
            digest: until_s for digest, until_s in self._until_s.items() if now_s < until_s
        }
        return frozenset(self._until_s.keys() & set(needed))

    def greeted(self, *, retain_available: bool) -> None:
        """What the broker says of itself."""
        if self.retain_available and not retain_available:
            log.error("broker retains no messages", effect="chunks go out on request only")
        self.retain_available = retain_available

    def refuse(self, digest: bytes, reason: str, now_s: float) -> None:
        """Leave this blob alone for a while; the first one is an alarm, the others are told."""
        tell = log.info if self._until_s else log.error
        tell(
            "broker does not take a blob's chunks",
            blob=digest.hex()[:12],
            reason=reason,
            effect="they go out on request only",
            again_after_s=AGAIN_AFTER_S,
        )
        self._until_s[digest] = now_s + AGAIN_AFTER_S
        del self._losses[digest]

    def may_clear(self, digest: bytes, now_s: float) -> bool:
        """Whether the broker would take it that this blob's chunks are cleared."""
        return self.retain_available and now_s >= self._clear_after_s.get(digest, now_s)

    def refuse_clearing(self, digest: bytes, reason: str, now_s: float) -> None:
        """Chunks stay at the broker that nobody needs; it is asked again later."""
        log.error("broker does not clear a blob", blob=digest.hex()[:12], reason=reason)
        self._clear_after_s[digest] = now_s + AGAIN_AFTER_S

    def lost(self, digest: bytes, reason: str, now_s: float) -> None:
        """The connection ended while its chunks went out."""
        self._losses[digest] += 1
        if self._losses[digest] >= LOSSES:
            self.refuse(digest, f"the connection ends at its chunks: {reason}", now_s)

    def progressed(self, digest: bytes) -> None:
        """The broker took some of its chunks."""
        del self._losses[digest]

    def forget(self) -> None:
        """It may be another broker."""
        self._until_s.clear()
        self._clear_after_s.clear()
        self._losses.clear()
