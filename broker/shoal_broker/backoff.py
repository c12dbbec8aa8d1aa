"""How long a session waits before it connects again: full jitter, in a window that grows with the fleet.

Pure but for chance; who waits, and what for, is the session's business.
"""

from __future__ import annotations

import random

from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_random_exponential

from shoal_broker.bus_errors import LinkError, TrustError

# What a broker takes back without strain: a TLS 1.3 handshake is 0.6 ms of its CPU, a session as much.
RETURNS_PER_S = 500.0


class Backoff:
    """Delays, in seconds. `fleet_nodes`: so many come back at once when the broker does."""

    __slots__ = ("_failures", "_initial_s", "_longest_s", "fleet_nodes")

    def __init__(self, *, initial_s: float, longest_s: float) -> None:
        self.fleet_nodes = 0
        self._initial_s = initial_s
        self._longest_s = longest_s
        self._failures = 0

    @property
    def first_s(self) -> float:
        """The window in which a whole fleet comes back."""
        return max(self._initial_s, self.fleet_nodes / RETURNS_PER_S)

    def after_success(self) -> float:
        """A good connection ended: all the others of this broker come back now, too."""
        self._failures = 0
        return random.uniform(0, self.first_s)  # noqa: S311 - jitter

    def after_failure(self, error: LinkError) -> float:
        """Longer each time; slowly at once when waiting alone does not help."""
        self._failures += 1
        if isinstance(error, TrustError):
            return random.uniform(self._longest_s / 2, self._longest_s)  # noqa: S311 - jitter
        wait = wait_random_exponential(
            multiplier=self.first_s, max=max(self.first_s, self._longest_s)
        )
        state = RetryCallState(AsyncRetrying(wait=wait), None, (), {})
        state.attempt_number = self._failures
        return wait(state)
