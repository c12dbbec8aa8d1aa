"""Errors of sources of chunks."""

from shoal_agent.errors import AgentError


class SourceError(AgentError):
    """Root of what goes wrong with a source; another one is asked then."""


class NotHereError(SourceError):
    """The source has not what it was asked for, or does not hand it out now."""


class HostileSourceError(SourceError):
    """The source answered with what was not asked for."""
