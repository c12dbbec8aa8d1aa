"""Whose commands count here: takes messages out of their envelopes, or refuses them. It obeys nothing.

Without keys every message counts, signed or not, and no signature is checked. With keys a message counts
when one of them, or one that they gave a mandate, has signed it for the topic on which it came. What does not
count has no effect and gets no answer: whoever sent it could use one, and an honest sender would take it
for the node's last word. What the signer may ask for is `mandates`' business.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from shoal_contract import envelope, messages
from shoal_contract.errors import DecodeError, EnvelopeError
from shoal_contract.mandates import Mandates
from shoal_contract.messages import Policy

if TYPE_CHECKING:
    from shoal_contract.signatures import Verifier

log = structlog.get_logger()

SAY_EVERY_S: Final = 60.0
POLICY_OP: Final = "trust.policy"
REASONS: Final = ("unsigned", "shape", "unknown_key", "bad_signature", "not_a_root", "old")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and of whom: the key that signed (empty: nobody had to), and the groups that are asked.

    Of a command to the node itself these are all its groups, of a group's command that one.
    """

    key: bytes = b""
    groups: frozenset[str] = frozenset()


ANYBODY: Final = Asker()


class Trust:
    """The public keys of those who may command this node, and whom they let do so; no keys: everybody may.

    Attributes:
        refused: messages refused since the start, by reason.
        policies: the newest of each signer.
    """

    def __init__(
        self, keys: Iterable[bytes], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.policies: dict[bytes, Policy] = {}
        self._roots = tuple(keys)
        self._mandates = Mandates(self._roots, {})
        self._verifier = _verifier(self._roots)
        self._clock_s = clock_s
        self._said_s: float | None = None
        self._unsaid = 0

    @property
    def asks_for_signatures(self) -> bool:
        """Whether the configuration names keys."""
        return bool(self._roots)

    def follow(self, policies: Mapping[bytes, Policy]) -> None:
        """From now on these policies hold."""
        self.policies = dict(policies)
        self._mandates = Mandates(self._roots, self.policies)
        self._verifier = _verifier(self._mandates.keys if self._roots else ())

    def is_root(self, key: bytes) -> bool:
        """Whether it is one of the configuration's keys, or there are none."""
        return not self._roots or self._mandates.is_root(key)

    def refusal(self, asker: Asker, op: str, *, now_ms: int) -> str:
        """Why this operation is not done for them; empty: it is."""
        if not self._roots:
            return ""
        return self._mandates.refusal(asker.key, op, groups=asker.groups, now_ms=now_ms)

    def open_policy(self, document: bytes, *, topics: Iterable[str]) -> tuple[Policy, bytes]:
        """A signed policy that is meant for one of these topics, and the key that signed it.

        Raises:
            DecodeError: it is none, or its signer may not delegate.
        """
        if self._verifier is None:
            raise DecodeError("this node has no [trust] command_keys: a policy says nothing to it")
        refused: EnvelopeError | None = None
        for topic in topics:
            try:
                payload, key = self._verifier.open(document, topic=topic)
            except EnvelopeError as exc:
                refused = exc
                continue
            if not self._mandates.may_delegate(key):
                raise DecodeError("the signer of this policy may not delegate")
            return messages.decode_as(payload, Policy), key
        raise refused or DecodeError("a policy for no topic")

    def open(self, data: bytes, *, topic: str) -> tuple[bytes, bytes] | None:
        """The message that came on this topic without its envelope, and the key that signed it.

        The key is empty where none are asked for. None: the message is refused.
        """
        try:
            if self._verifier is not None:
                return self._verifier.open(data, topic=topic)
            return envelope.stripped(data), b""
        except EnvelopeError as exc:
            self.refuse(exc, topic=topic)
            return None

    def open_as_root(self, data: bytes, *, topic: str) -> bytes:
        """The message in it, which one of the configuration's keys has to have signed: a mandate does not do.

        Raises:
            EnvelopeError: the message is to be refused.
        """
        if self._verifier is None:
            return envelope.stripped(data)
        payload, key = self._verifier.open(data, topic=topic)
        if not self._mandates.is_root(key):
            raise EnvelopeError("not_a_root", "signed by a key that is not in [trust] command_keys")
        return payload

    def refuse(self, error: EnvelopeError, *, topic: str, event: str = "command refused") -> None:
        """Count a message that has no effect, and say so once a minute: more would let a stranger fill the log."""
        self.refused[error.reason] += 1
        now_s = self._clock_s()
        self._unsaid += 1
        if self._said_s is None or now_s - self._said_s >= SAY_EVERY_S:
            log.error(
                event, why=error.reason, reason=str(error), topic=topic,
                since_last_line=self._unsaid,
            )  # fmt: skip
            self._said_s, self._unsaid = now_s, 0


def _verifier(keys: tuple[bytes, ...]) -> "Verifier | None":
    if not keys:
        return None
    # Imported when it is needed: PyNaCl takes some MiB of memory.
    from shoal_contract.signatures import Verifier  # noqa: PLC0415 - see above

    return Verifier(keys)
