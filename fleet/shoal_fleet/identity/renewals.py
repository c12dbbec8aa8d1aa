"""Whether a known key may speak for its node: the one rule of renewal and of coming back after a long sleep. Pure."""

from typing import Final, Literal, Protocol

from shoal_fleet.identity.inventory import LAPSED_S

Verdict = Literal["", "unknown", "retired", "revoked", "lapsed"]

_SECOND_MS: Final = 1000


class Certified(Protocol):
    """What is asked of the newest certificate of a key."""

    @property
    def not_after_ms(self) -> int:
        """When it ends."""
        ...

    @property
    def retired_ms(self) -> int | None:
        """Since when a newer key of the node is in use."""
        ...

    @property
    def revoked_ms(self) -> int | None:
        """When it was revoked."""
        ...


def verdict(found: Certified | None, *, now_ms: int) -> Verdict:
    """Why the key of this certificate does not count; empty: it does.

    Retired keys do not: whoever still has one has an old copy of the board.
    """
    if found is None:
        return "unknown"
    if found.revoked_ms is not None:
        return "revoked"
    if found.retired_ms is not None:
        return "retired"
    if now_ms > found.not_after_ms + LAPSED_S * _SECOND_MS:
        return "lapsed"
    return ""
