"""Errors of the agent, grouped by whose fault they are."""


class AgentError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(AgentError):
    """The configuration cannot be used: a person's fault. Names the file and the key."""


class DeviceError(AgentError):
    """A device did not do what it was told: its, or its line's, fault."""


class TooLongError(DeviceError):
    """A command does not fit a device frame; repeating it does not help."""


class UpdateError(AgentError):
    """A model release could not be brought to serve; the old one goes on.

    The message is what the operator reads as the reason.
    """


class UnverifiedReleaseError(UpdateError):
    """Whether a release is signed cannot be said now: the metadata is expired, rolled back, forged or away."""


class UnusableReleaseError(AgentError):
    """A release can never serve here, however often it is tried; the message is the reason."""


class OperationError(AgentError):
    """An operation failed in a way its issuer should read; the message is the reason."""


class PayloadError(AgentError):
    """A message of another program does not hold what a pipeline reads of it: its sender's fault."""


class UnsignedReleaseError(AgentError):
    """Nobody whom this node trusts has signed the release for it; somebody may yet. The message is the reason."""


class IdentityError(AgentError):
    """This board cannot get a certificate as it is set up, or its own files are at fault."""


class DoorUnreachableError(AgentError):
    """Nobody, or nobody who makes sense, answers at the enrolment door."""


class DoorNotTrustedError(AgentError):
    """The enrolment door is not the one that this board was told to trust, or its certificate is not good."""


class DecoderError(AgentError):
    """A process that decodes pictures ended, hangs, or cannot do what it is for: its input's fault, or the board's."""
