"""How fast is too fast: token buckets, the connections of an address, wrong passwords. Pure.

Times are seconds on the broker's monotonic clock. What is remembered of strangers is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from shoal_broker.codec import ConnAckReasonCode

FREE_FAILURES: Final = 3
"""Wrong passwords of an address that cost it nothing."""
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 8.0
"""Below the time that a client has for its CONNECT."""
FORGIVEN_AFTER_S: Final = 60.0
LONGEST_TOLD_S: Final = 1.0
"""Beyond twice the limit, connections are cut: who is told costs more, over TLS the most."""
MAX_ADDRESSES: Final = 10_000
_SITE_BITS: Final = 64
"""Of an IPv6 address: what one customer of a provider has at least."""


class Bucket:
    """As much a second as `per_s`, and a second's worth at once."""

    __slots__ = ("_at_s", "_left", "_per_s")

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at_s = now_s

    def take(self, amount: float, now_s: float) -> float:
        """Take it, there or not; the seconds until it would have been there."""
        left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s)
        self._left = left - amount
        self._at_s = now_s
        return max(0.0, -self._left / self._per_s)

    def give_back(self, amount: float) -> None:
        """What was taken last was not had."""
        self._left += amount

    def is_full(self, now_s: float) -> bool:
        """Whether nothing was taken lately."""
        return self._left + (now_s - self._at_s) * self._per_s >= self._per_s


class Meter:
    """What one client sends, against its limits; a limit of 0 is none."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self, *, messages_per_s: int, bytes_per_s: int, now_s: float) -> None:
        self._messages = Bucket(messages_per_s, now_s) if messages_per_s else None
        self._bytes = Bucket(bytes_per_s, now_s) if bytes_per_s else None

    def take(self, *, messages: int, size_bytes: int, now_s: float) -> float:
        """Count it; for how many seconds the client is not to be read."""
        wait_s = 0.0
        if self._messages is not None:
            wait_s = self._messages.take(messages, now_s)
        if self._bytes is not None:
            wait_s = max(wait_s, self._bytes.take(size_bytes, now_s))
        return wait_s


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last_at_s: float = 0.0
    free_at_s: float = 0.0
    """When the next attempt may be looked at."""


class Guesses:
    """Wrong passwords by address: from the fourth on each costs the address twice the time."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failures] = {}

    def wait_s(self, address: str, now_s: float) -> float | None:
        """How long an attempt waits before it is looked at; None: too many wait already."""
        found = self._failures.get(address)
        if found is None or found.count < FREE_FAILURES:
            return 0.0
        begin_s = max(now_s, found.free_at_s)
        if begin_s - now_s > LONGEST_WAIT_S:
            return None
        found.free_at_s = begin_s + min(
            FIRST_WAIT_S * 2 ** min(found.count - FREE_FAILURES, 10), LONGEST_WAIT_S
        )
        return begin_s - now_s

    def failed(self, address: str, now_s: float) -> None:
        """A password from there was wrong."""
        if len(self._failures) >= MAX_ADDRESSES:
            self._forgive(now_s)
        found = self._failures.setdefault(address, _Failures())
        found.count += 1
        found.last_at_s = now_s
        if found.count == FREE_FAILURES:
            found.free_at_s = now_s + FIRST_WAIT_S

    def sweep(self, now_s: float) -> None:
        """Forgive whose last failure is long ago."""
        for address, found in list(self._failures.items()):
            if now_s - found.last_at_s > FORGIVEN_AFTER_S:
                del self._failures[address]

    def _forgive(self, now_s: float) -> None:
        self.sweep(now_s)
        while len(self._failures) >= MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]


@dataclass(slots=True)
class _Neighbour:
    open: int
    connects: Bucket | None


class Addresses:
    """The connections of each address: how many there are, and how fast they come."""

    def __init__(self, *, max_connections: int, connects_per_s: int) -> None:
        self._max_connections = max_connections
        self._connects_per_s = connects_per_s
        self._known: dict[str, _Neighbour] = {}

    def opened(self, address: str, now_s: float) -> Refusal | None:
        """Count a connection; why it is not welcome, if it is not. Each is followed by `closed`."""
        known = self._known.get(address)
        if known is None:
            per_s = self._connects_per_s
            known = self._known[address] = _Neighbour(0, Bucket(per_s, now_s) if per_s else None)
        known.open += 1
        connects = known.connects
        if connects is not None and (wait_s := connects.take(1, now_s)):
            if wait_s > LONGEST_TOLD_S:
                connects.give_back(1)
            return Refusal(
                ConnAckReasonCode.CONNECTION_RATE_EXCEEDED,
                f"{self._connects_per_s} connections a second may come from one address",
                is_told=wait_s <= LONGEST_TOLD_S,
            )
        if known.open > self._max_connections:
            return Refusal(
                ConnAckReasonCode.QUOTA_EXCEEDED,
                f"{self._max_connections} connections are open from this address, which is the limit",
                is_told=True,
            )
        return None

    def closed(self, address: str, now_s: float) -> None:
        """A connection of this address is gone."""
        known = self._known[address]
        known.open -= 1
        if not known.open and (known.connects is None or known.connects.is_full(now_s)):
            del self._known[address]

    def sweep(self, now_s: float) -> None:
        """Forget who is gone and came slowly enough."""
        for address, known in list(self._known.items()):
            if not known.open and (known.connects is None or known.connects.is_full(now_s)):
                del self._known[address]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is not welcome; `is_told`: it may say CONNECT and hear it."""

    reason_code: ConnAckReasonCode
    reason: str
    is_told: bool


def neighbourhood(host: str) -> str:
    """What counts as one address: an IPv4 address, or the first half of an IPv6 one."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> _SITE_BITS << _SITE_BITS))
    return str(address)
