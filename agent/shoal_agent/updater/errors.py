"""Errors of the look at the update metadata."""

from shoal_agent.errors import AgentError


class UnverifiedError(AgentError):
    """The metadata cannot be relied on now: expired, forged, incomplete, or not to be had."""


class RolledBackError(UnverifiedError):
    """The metadata is good, and older than what this node has seen."""
