"""Errors of inference, grouped by whose fault they are."""

from shoal_agent.errors import AgentError


class InferenceError(AgentError):
    """Root: a request or a model could not be served; the message is the reason."""


# ------------------------------------------------------------------ the caller's
class BadInputError(InferenceError):
    """The input is not what the model takes, or gives no finite result. Repeating does not help."""


class NotAdmittedError(InferenceError):
    """A switch to a release that was not admitted before."""


# ------------------------------------------------------------------ the release's
class ModelRefusedError(InferenceError):
    """This release cannot serve here; the message says why."""


class ModelFailedError(InferenceError):
    """The model or its runtime failed at a request that may well be right; another node may do better."""


class LateBatchError(ModelFailedError):
    """A batch took longer than it may, and was stopped; the worker is well."""


# ------------------------------------------------------------------ the moment's
class NotServingError(InferenceError):
    """The model does not run here, or not now."""


class AwayError(NotServingError):
    """The model gave way to its new release, which is not there yet; others serve it meanwhile."""


class NoRoomError(InferenceError):
    """A new release has no room beside what serves, and nothing may be taken away for it."""


class QueueFullError(InferenceError):
    """Too much is waiting.

    Attributes:
        retry_after_s: when there should be room.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(InferenceError):
    """The time that the caller gave is over."""


class NobodyServesError(InferenceError):
    """Neither this node nor a neighbour nor upstream answered; the message lists what each said."""


class WorkerLostError(InferenceError):
    """The worker process cannot be started, died, hung, or spoke nonsense."""
