"""Errors of the agent's own update."""

from shoal_agent.errors import AgentError


class SelfUpdateError(AgentError):
    """The release tree cannot be switched to: the message is the reason that the operator reads."""


class BadTreeError(SelfUpdateError):
    """The archive holds what no release tree may hold, or not what it says: its maker's fault, for good."""


class NotNowError(SelfUpdateError):
    """What was asked cannot be judged or kept now; asking again may help."""
