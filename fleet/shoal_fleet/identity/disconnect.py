"""How a node's connection is ended at the broker: what `revocations` asks of whoever can do it."""

from typing import Protocol

import structlog

log = structlog.get_logger(__name__)


class Disconnect(Protocol):
    """Ends the connection of a node that was revoked, on whatever broker there is."""

    async def __call__(self, node: str) -> None:
        """Return when the node is cut off, or when nothing more can be done about it; the log says which."""
        ...


async def from_no_broker(node: str) -> None:
    """For a broker without TLS: it knows nobody by a certificate, so it cannot keep anybody out either."""
    log.warning(
        "node may still be connected", node=node, reason="the broker asks for no certificate"
    )
