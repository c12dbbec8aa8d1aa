"""Which question an HTTP request asks, by its method and path (Open Inference Protocol v2). Pure."""

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from shoal_agent.local_api.errors import BAD_REQUEST, METHOD_NOT_ALLOWED, NOT_FOUND, ApiError

SOCKET_PATH: Final = "/v2/ws"
_MAX_TARGET: Final = 1024


class Question(Enum):
    """What is asked."""

    LIVE = auto()
    READY = auto()
    SERVER = auto()
    MODEL = auto()
    MODEL_READY = auto()
    INFER = auto()
    SOCKET = auto()


_FIXED: Final = {
    "/v2": Question.SERVER,
    "/v2/health/live": Question.LIVE,
    "/v2/health/ready": Question.READY,
    SOCKET_PATH: Question.SOCKET,
}
_OF_A_MODEL: Final = {
    (): Question.MODEL,
    ("ready",): Question.MODEL_READY,
    ("infer",): Question.INFER,
}
OPEN_TO_ALL: Final = frozenset({Question.LIVE, Question.READY})
"""Asked without a token: they tell nothing but that somebody is here."""


@dataclass(frozen=True, slots=True)
class Route:
    """A question, and of which model; `version` is empty when none was named."""

    question: Question
    model: str = ""
    version: str = ""


@lru_cache(maxsize=64)
def route(method: bytes, target: bytes) -> Route:
    """What `method` on `target` asks; a query is ignored.

    Raises:
        ApiError: 404 there is no such thing, 405 not with this method, 400 no path at all.
    """
    if len(target) > _MAX_TARGET:
        raise ApiError(BAD_REQUEST, "the path is too long")
    try:
        path = target.decode("ascii").partition("?")[0]
    except UnicodeDecodeError as exc:
        raise ApiError(BAD_REQUEST, "the path is not ASCII") from exc
    found = _found(path if path == "/" else path.rstrip("/"))
    if found is None:
        raise ApiError(NOT_FOUND, f"nothing is at {path[:200]}")
    allowed = b"POST" if found.question is Question.INFER else b"GET"
    if method != allowed:
        allow = (("Allow", allowed.decode()),)
        raise ApiError(METHOD_NOT_ALLOWED, f"it is asked with {allowed.decode()}", headers=allow)
    return found


def _found(path: str) -> Route | None:
    if (question := _FIXED.get(path)) is not None:
        return Route(question)
    if not path.startswith("/v2/models/"):
        return None
    try:
        model, *rest = [unquote(part, errors="strict") for part in path.split("/")[3:]]
    except UnicodeDecodeError as exc:
        raise ApiError(BAD_REQUEST, "the path is not UTF-8") from exc
    version = ""
    if rest[:1] == ["versions"] and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    of_model = _OF_A_MODEL.get(tuple(rest))
    return None if of_model is None or not model else Route(of_model, model, version)
