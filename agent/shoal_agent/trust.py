"""Whose commands count here: takes messages out of their envelopes, or refuses them. It obeys nothing.

Without keys every message counts, signed or not, and no signature is checked. With keys a message counts
when one of them has signed it for the topic on which it came. What does not count has no effect and gets
no answer: whoever sent it could use one, and an honest sender would take it for the node's last word.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import structlog

from shoal_contract import envelope
from shoal_contract.errors import EnvelopeError

if TYPE_CHECKING:
    from shoal_contract.signatures import Verifier

log = structlog.get_logger()

SAY_EVERY_S: Final = 60.0
REASONS: Final = ("unsigned", "shape", "unknown_key", "bad_signature")


class Trust:
    """The public keys of those who may command this node; none: everybody may.

    Attributes:
        refused: messages refused since the start, by reason.
    """

    def __init__(
        self, keys: Iterable[bytes], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._verifier = _verifier(tuple(keys))
        self._clock_s = clock_s
        self._said_s: float | None = None
        self._unsaid = 0

    def open(self, data: bytes, *, topic: str) -> bytes | None:
        """The message that came on this topic, without its envelope; None: it is refused."""
        try:
            if self._verifier is not None:
                return self._verifier.open(data, topic=topic)
            return envelope.unpack(data).payload if envelope.is_signed(data) else data
        except EnvelopeError as exc:
            self.refused[exc.reason] += 1
            self._say(exc, topic)
            return None

    def _say(self, error: EnvelopeError, topic: str) -> None:
        """Once a minute: a line for each would let a stranger fill the log."""
        now_s = self._clock_s()
        self._unsaid += 1
        if self._said_s is None or now_s - self._said_s >= SAY_EVERY_S:
            log.error(
                "command refused", why=error.reason, reason=str(error), topic=topic,
                since_last_line=self._unsaid,
            )  # fmt: skip
            self._said_s, self._unsaid = now_s, 0


def _verifier(keys: tuple[bytes, ...]) -> "Verifier | None":
    if not keys:
        return None
    # Imported when it is needed: PyNaCl takes some MiB of memory.
    from shoal_contract.signatures import Verifier  # noqa: PLC0415 - see above

    return Verifier(keys)
