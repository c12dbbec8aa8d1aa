"""What the local API answers when it does not do what it was asked."""

from shoal_agent.errors import AgentError
from shoal_agent.inference.errors import (
    BadInputError,
    DeadlineError,
    NobodyServesError,
    NotServingError,
    QueueFullError,
    WorkerLostError,
)

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
TIMED_OUT = 408
TOO_LARGE = 413
UNSUPPORTED_MEDIA = 415
UPGRADE_REQUIRED = 426
TOO_MANY = 429
CANCELLED = 499
FAILED = 500
UNAVAILABLE = 503
DEADLINE_OVER = 504

_COME_AGAIN_S = 1.0


class ApiError(AgentError):
    """A request that is not served: the one error of this package.

    Attributes:
        status: an HTTP status; the same number over WebSocket.
        retry_after_s: when it may be worth another try.
        headers: more headers of an HTTP answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.headers = headers


def refusal(exc: AgentError, *, is_served_here: bool) -> ApiError:
    """The answer to a request that the engine, or whoever was asked instead, did not serve.

    A model that does not run here and that nobody else has either is one that is not found.
    """
    message = str(exc)
    match exc:
        case ApiError():
            return exc
        case BadInputError():
            return ApiError(BAD_REQUEST, message)
        case DeadlineError():
            return ApiError(DEADLINE_OVER, message)
        case QueueFullError():
            return ApiError(TOO_MANY, message, retry_after_s=exc.retry_after_s)
        case NotServingError() | NobodyServesError() if not is_served_here:
            return ApiError(NOT_FOUND, message)
        case NobodyServesError() if isinstance(exc.__cause__, QueueFullError):
            return ApiError(TOO_MANY, message, retry_after_s=exc.__cause__.retry_after_s)
        case NotServingError() | NobodyServesError() | WorkerLostError():
            return ApiError(UNAVAILABLE, message, retry_after_s=_COME_AGAIN_S)
        case _:
            return ApiError(FAILED, message)
