"""What the head of a request asks for, and heads that are known because they came before. Pure."""

from dataclasses import dataclass
from typing import Final

import h11

from shoal_agent.local_api import routes
from shoal_agent.local_api.access import Access
from shoal_agent.local_api.errors import (
    BAD_REQUEST,
    TOO_LARGE,
    UNSUPPORTED_MEDIA,
    UPGRADE_REQUIRED,
    ApiError,
)
from shoal_agent.local_api.routes import Question, Route

_JSON_LENGTH: Final = b"inference-header-content-length"
# What is read may be there once: two of them are read in two ways by two programs.
_ONCE: Final = frozenset(
    {b"host", b"origin", b"authorization", b"content-encoding", b"upgrade", _JSON_LENGTH}
)
_MOST_DIGITS: Final = 12
_KNOWN: Final = 64
_LONGEST_KNOWN_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Head:
    """A head that was understood and let pass.

    Attributes:
        length: of the body; None: it comes in chunks.
        json_bytes: how much of the body is JSON; None: all of it.
        is_plain: nothing but its bytes decides what it means: the next equal one means the same.
    """

    route: Route
    length: int | None
    json_bytes: int | None
    is_plain: bool


def fields(request: h11.Request) -> dict[bytes, bytes]:
    """The headers by their lower-case names. Raises ApiError."""
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers:
        if name in headers and name in _ONCE:
            raise ApiError(BAD_REQUEST, f"more than one header {name.decode()}")
        headers[name] = value
    return headers


def has_body(headers: dict[bytes, bytes]) -> bool:
    """Whether anything follows."""
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def understood(
    request: h11.Request, headers: dict[bytes, bytes], *, access: Access, max_body_bytes: int
) -> Head:
    """What it asks for. Raises ApiError: nothing that there is, or nothing that it may ask."""
    route = routes.route(request.method, request.target)
    access.check(headers, needs_token=route.question not in routes.OPEN_TO_ALL)
    # h11 has seen to it that it is a number.
    length = int(headers.get(b"content-length", b"0"))
    if length > max_body_bytes:
        raise too_large(max_body_bytes)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise ApiError(UNSUPPORTED_MEDIA, "bodies are taken as they are, not compressed")
    is_websocket = headers.get(b"upgrade", b"").lower() == b"websocket"
    if route.question is Question.SOCKET and not is_websocket:
        upgrade = (("Upgrade", "websocket"),)
        raise ApiError(UPGRADE_REQUIRED, "this is a WebSocket", headers=upgrade)
    is_chunked = b"transfer-encoding" in headers
    return Head(
        route,
        None if is_chunked else length,
        _json_bytes(headers.get(_JSON_LENGTH)),
        is_plain=route.question is Question.INFER and not (is_chunked or b"expect" in headers),
    )


def too_large(max_body_bytes: int) -> ApiError:
    """What a body beyond the limit is answered."""
    return ApiError(
        TOO_LARGE, f"a body has at most {max_body_bytes} bytes ([local_api] max_body_bytes)"
    )


class KnownHeads:
    """Heads by their bytes, the newest 64: a program that asks again and again sends the same ones.

    To be told by its bytes what a head means costs a sixth of reading it.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[bytes, Head | None]:
        """The head that these bytes begin with (empty: it is not whole, or too long), and what it asks."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST_KNOWN_BYTES) + 4
        head = data[:end] if end >= 4 else b""  # noqa: PLR2004 - the length of what is looked for
        return head, self._heads.get(head)

    def keep(self, head: bytes, asked: Head) -> None:
        """Remember it, if it means the same the next time."""
        if head and asked.is_plain:
            if len(self._heads) >= _KNOWN:
                del self._heads[next(iter(self._heads))]
            self._heads[head] = asked


def _json_bytes(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise ApiError(BAD_REQUEST, "Inference-Header-Content-Length is no length")
    return int(text)
