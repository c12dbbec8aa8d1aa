"""Who may speak to the API: the bearer of the token that lies in the state directory.

The token is asked for on loopback, too: other users of the machine are not operators. Also limits how large a
request body may be before anybody reads it.
"""

import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal_broker.durable import write_durably
from shoal_fleet.errors import StateError
from shoal_fleet.releases import MAX_UPLOAD_BYTES

TOKEN_FILE: Final = "token"  # noqa: S105 - the file's name
URL_FILE: Final = "url"
MAX_TOKEN_BYTES: Final = 256
MAX_BODY_BYTES: Final = 256 * 1024
UPLOAD_PATH: Final = "/api/releases"
OPERATOR_HEADER: Final = "Shoal-Operator"
"""Who asks, as the command line says. One token is everybody's: this is a record and no proof."""

OPEN_PATHS: Final = frozenset({"/metrics"})


def load_token(state_dir: Path) -> str:
    """The token of this state directory; made at the first start, readable by its owner only.

    Raises:
        StateError: the file cannot be read or written, is empty, or others may read it.
    """
    path = state_dir / TOKEN_FILE
    try:
        if not path.exists():
            write_durably(path, secrets.token_urlsafe(32).encode() + b"\n", mode=0o600)
        if path.stat().st_mode & 0o077:
            raise StateError(f"{path}: others may read it; chmod 600 {path}")
        token = read_token(path)
    except OSError as exc:
        raise StateError(f"{path}: {os.strerror(exc.errno or 0)}") from exc
    if not token:
        raise StateError(f"{path}: is empty; delete it and start again")
    return token


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()


class BodyTooLargeError(Exception):
    """More came than the request said or may have."""


class Door:
    """ASGI middleware: no request without the token gets any further, and none that is too large.

    There are no WebSockets: one that is asked for is refused.
    """

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_PATHS and not hmac.compare_digest(
            headers.get("authorization", "").encode(), self._expected
        ):
            refusal = "the token is missing or wrong: it is in the controller's state directory"
            await _refuse(401, refusal)(scope, receive, send)
            return
        limit = MAX_UPLOAD_BYTES if scope["path"] == UPLOAD_PATH else MAX_BODY_BYTES
        said = headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > limit:
            await _refuse(413, f"the body is larger than {limit} bytes")(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise BodyTooLargeError
            return message

        try:
            await self._app(scope, receive_limited, send)
        except BodyTooLargeError:
            await _refuse(413, f"the body is larger than {limit} bytes")(scope, receive, send)


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status)
