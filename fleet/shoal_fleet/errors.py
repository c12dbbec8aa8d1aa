"""Errors of the fleet, grouped by whose fault they are. Every message is one line for a person."""

from typing import ClassVar

from shoal_contract.exits import Exit


class FleetError(Exception):
    """Root of every error this package raises on purpose.

    Attributes:
        exit_code: what a command line ends with.
    """

    exit_code: ClassVar[Exit] = Exit.FAILED


class ConfigError(FleetError):
    """The configuration cannot be used: a person's fault. Names the file and the key."""

    exit_code: ClassVar[Exit] = Exit.USAGE


class UsageError(FleetError):
    """A command line that says something impossible: a person's fault."""

    exit_code: ClassVar[Exit] = Exit.USAGE


# ------------------------------------------------------------------ what the API answers
class RequestError(FleetError):
    """The controller will not do what was asked.

    Attributes:
        status: the HTTP status of the answer.
    """

    status: ClassVar[int] = 400


class NotFoundError(RequestError):
    """There is no such node, command, release or rollout."""

    status: ClassVar[int] = 404


class ConflictError(RequestError):
    """What was asked contradicts what is there."""

    status: ClassVar[int] = 409


class ExpressionError(RequestError):
    """A label expression that is none.

    Attributes:
        column: where it goes wrong, from 1.
    """

    def __init__(self, message: str, *, column: int) -> None:
        super().__init__(message)
        self.column = column


class EnrolmentRefusedError(RequestError):
    """A board gets no certificate. The message is for whoever set it up.

    Attributes:
        why: one constant word, for logs and counters.
        retry_s: when asking again may help; 0: only a person can.
    """

    status: ClassVar[int] = 403

    def __init__(self, message: str, *, why: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.why = why
        self.retry_s = retry_s


class ReleaseError(RequestError):
    """A release directory is not a release, or does not do what it says."""

    status: ClassVar[int] = 422


class ReleaseBuildError(FleetError):
    """No release could be built: the model, the calibration set or the environment is not fit for it."""


class DoorRefusedError(FleetError):
    """The JSON door does not do what was asked. The message is for who asked, and may quote them.

    Attributes:
        why: one constant word, for logs and counters.
        request: the id that the message gave itself, when it could be read.
    """

    def __init__(self, message: str, *, why: str, request: str | None = None) -> None:
        super().__init__(message)
        self.why = why
        self.request = request


# ------------------------------------------------------------------ the environment
class StateError(FleetError):
    """The controller's own files cannot be read or written, or have another version."""


class AuthorityError(FleetError):
    """The certificate authority's directory cannot be read or written, or is not what it should be."""


class ListenError(FleetError):
    """The API's, or the enrolment door's, address is taken, or is not this machine's."""


class DeltaBuildError(FleetError):
    """No delta could be made between two files; the full file goes out instead."""


# ------------------------------------------------------------------ what the client sees
class ControllerUnreachableError(FleetError):
    """Nobody answers at the controller's address."""

    exit_code: ClassVar[Exit] = Exit.UNREACHABLE


class ControllerRefusedError(FleetError):
    """The controller answered with an error.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class TimedOutError(FleetError):
    """No answer in time; what was asked may still happen."""

    exit_code: ClassVar[Exit] = Exit.TIMED_OUT
