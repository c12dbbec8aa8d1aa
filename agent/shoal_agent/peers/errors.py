"""Errors between neighbours."""

from shoal_agent.errors import AgentError


class PeerError(AgentError):
    """Root of what goes wrong between two nodes."""


class PeerUnreachableError(PeerError):
    """The neighbour did not answer, or not in our protocol; the message says which."""


class PeerBusyError(PeerError):
    """We have as many requests under way to this neighbour as we allow ourselves."""


class WireError(PeerError):
    """The other end broke the protocol: the connection is to be closed."""
