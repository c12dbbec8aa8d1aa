"""Errors on the worker's side, where nothing of the agent is known. The engine's are in `errors`."""


class ModelError(Exception):
    """The release cannot be used, or its model failed at a batch; the message is the reason."""


class InputError(ModelError):
    """The batch does not fit the model; another one may."""


class LateError(ModelError):
    """The batch took longer than it may, and was stopped."""


def one_line(exc: BaseException) -> str:
    """An error of somebody else's library as a short line."""
    return " ".join(str(exc).split())[:300] or type(exc).__name__
